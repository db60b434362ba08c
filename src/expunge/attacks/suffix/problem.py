"""A prompt with a gap for the string looked for, in tokens and in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.attacks.parts import check_causal
from expunge.attacks.wordings import behind
from expunge.data.texts import Text, asked_of, render, reword, rewritten, texts_of
from expunge.data.tokenise import encode, prompt_tokens
from expunge.errors import DataError, DoesNotFit
from expunge.models import context_length
from expunge.types import Data, Example, Stream, Subject, Wrapper

Place = Literal["suffix", "prefix", "infix"]
START = "x"  # the word that fills the string at the start
WINDOWS = (4, 8, 16, 32)  # neighbours of the string, in tokens, beside which candidates are read back


@dataclass(frozen=True)
class Put:
    """The rewrite that puts a string (with its own spaces) after, before or into the middle of every prompt.

    After it, but before a cue such as "Answer:" that ends the prompt.
    """

    text: str
    place: Place = "suffix"

    def __call__(self, example: Example) -> Example | None:
        return reword(example, self.put)

    def put(self, prompt: str) -> str:
        if self.place == "prefix":
            return self.text + prompt
        spaces = [at for at, letter in enumerate(prompt) if letter == " "]
        if self.place == "suffix" or not spaces:
            return behind(prompt, self.text)
        middle = min(spaces, key=lambda at: abs(2 * at - len(prompt)))
        return prompt[:middle] + self.text + prompt[middle:]


def putting(wrapper: Wrapper, put: Put) -> Wrapper:
    """The wrapper with one more string in every prompt; what was said before a prompt is still said before it."""
    turns = {**wrapper.turns, **{put.put(prompt): said for prompt, said in wrapper.turns.items() if prompt}}
    return replace(rewritten(wrapper, put), turns=turns)


@dataclass(frozen=True, eq=False)
class Problem:
    """One prompt of one model: before | string | after | target. Problems that share the string may differ in model.

    subject: the model that is to say `target` (all subjects of a search must have the same tokenizer).
    before, after, target: token ids. start: the string to start from, token ids; the same in all problems of a search.
    id: of the example. frame: how the string is spelled inside the prompt; None: any token sequence is allowed.
    """

    subject: Subject
    before: tuple[int, ...]
    start: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    id: str = ""
    frame: Frame | None = None

    def put(self, ids: Sequence[int]) -> Put:
        """The rewrite that puts this string into prompts; only with a frame."""
        if self.frame is None:
            raise ValueError("a problem without a frame has no text")
        return Put(self.frame.text(ids), self.frame.place)

    def exact(self, ids: Sequence[int]) -> bool:
        """Whether the whole prompt, asked alone and with the target, is read back as exactly these tokens."""
        if self.frame is None:
            return True
        asked = (*self.before, *ids, *self.after)
        whole, alone = self.frame.read(self.put(ids))
        wanted = (*asked, *self.target)
        return whole[: len(wanted)] == wanted and (alone == asked or not self.frame.alone)


@dataclass(frozen=True, eq=False)
class Frame:
    """How the string stands in the text of one prompt (made by `problems_of`).

    left, right: spaces between the string's tokens and its neighbours. tail, head: the text around it, and tail_ids,
    head_ids its tokens. special: they are the whole text, and the tokenizer adds its own tokens to it.
    alone: the prompt is read alike without the answer.
    """

    subject: Subject
    example: Example
    place: Place
    left: str
    right: str
    tail: str = ""
    head: str = ""
    tail_ids: tuple[int, ...] = ()
    head_ids: tuple[int, ...] = ()
    special: bool = False
    alone: bool = True

    def text(self, ids: Sequence[int]) -> str:
        """The string as it is put into the prompt, with its own spaces."""
        return self.left + spelled(self.subject, [list(ids)])[0] + self.right

    def survive(self, candidates: Tensor) -> Tensor:
        """Which candidates [N, n] are read back as the same tokens beside their neighbours, [N]; one batch call."""
        rows = candidates.tolist()
        texts = [self.tail + self.left + text + self.right + self.head for text in spelled(self.subject, rows)]
        read = self.subject.tokenizer(texts, add_special_tokens=self.special)["input_ids"] if texts else []
        tail, head = list(self.tail_ids), list(self.head_ids)
        same = [[*tail, *row, *head] == back for row, back in zip(rows, read, strict=True)]
        return torch.tensor(same, dtype=torch.bool, device=candidates.device)

    def read(self, put: Put) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of prompt and answer with this string in it, and those of the prompt alone; () if unreadable."""
        subject = replace(self.subject, wrapper=putting(self.subject.wrapper, put))
        text = asked_text(subject, self.example)
        if text is None:
            return (), ()
        whole, alone = encode(subject, [text])[0].tokens, prompt_tokens(subject, [text.prompt])[0]
        return tuple(whole.tolist()), tuple(alone.tolist())


def spelled(subject: Subject, rows: Sequence[Sequence[int]]) -> list[str]:
    """Token rows as text, nothing skipped and nothing tidied."""
    decoded: list[str] = subject.tokenizer.batch_decode(
        rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return decoded


def asked_text(subject: Subject, example: Example) -> Text | None:
    """The question and answer as this subject's wrapper puts them; None where it cannot."""
    asked = asked_of(Data(one=Stream("one", "probe", (example,))), subject.wrapper)["one"]
    try:
        texts = texts_of(asked, "answer", subject.wrapper.ask)
    except LookupError:  # no such paraphrase
        return None
    return texts[0] if texts and texts[0].prompt else None


def problems_of(
    subject: Subject, examples: Sequence[Example], *, length: int = 20, place: Place = "suffix", start: str = "",
    num_target: int = 0, limit: int | None = None,
) -> list[Problem]:
    """One problem per example, all with the same string to start from; the target is the answer, its end token not.

    The subject's own wrapper (template, rewrite, turns, prefill) is kept; the string goes into the user's turn. To have
    something else said, give examples with another `answer`.

    Args:
        length: tokens of the string at most. place: where it stands. start: words to start from; "": "x x x ...".
        num_target: only the first tokens of the answer; 0: all.
        limit: examples at most, the first that fit.
    Returns: examples without a prompt, or whose neighbours do not let the string be read back, are left out.
    Raises: DoesNotFit when none is left, and for models that are not causal.
    """
    check_causal(subject)
    for words in ([start] if start else _fillings(subject, length)):
        found: list[Problem] = []
        for example in examples:
            made = _problem(subject, example, words, place, num_target)
            if made is None or (not start and len(made.start) > length):
                continue
            if not found or (made.start, _sides(made)) == (found[0].start, _sides(found[0])):
                found.append(made)
            if len(found) == limit:
                break
        if found:
            return found
    raise DoesNotFit("no question can hold the string: beside it, its text is not read back as the same tokens")


def _sides(problem: Problem) -> tuple[str, str]:
    assert problem.frame is not None
    return problem.frame.left, problem.frame.right


def _fillings(subject: Subject, length: int) -> Iterator[str]:
    """Starts of fewer and fewer words: how many tokens a word takes depends on the tokenizer."""
    each = max(1, len(subject.tokenizer(f" {START}" * 8, add_special_tokens=False)["input_ids"]) // 8)
    for num in sorted({length, (length + 1) // each, length // each, 1}, reverse=True):
        if num > 0:
            yield " ".join([START] * num)


@dataclass(frozen=True)
class _Spot:
    """The rendered text, and what of it stands before and after the string with its own spaces."""

    whole: str
    before: str
    after: str


def _spot(subject: Subject, example: Example, put: Put) -> _Spot | None:
    """Where the string stands in the text that the template makes, found by a word that stands nowhere else."""

    def rendered(text: str) -> str | None:
        changed = replace(subject, wrapper=putting(subject.wrapper, Put(text, put.place)))
        asked = asked_text(changed, example)
        if asked is None:
            return None
        try:
            return render(changed.wrapper, subject.tokenizer, asked.prompt, asked.answer)[0]
        except DataError:
            return None

    core, whole, mark = put.text.strip(), rendered(put.text), "QXQ"
    while whole is not None and mark in whole:
        mark += "Q"
    marked = rendered(put.text.replace(core, mark))
    between = put.text.replace(core, mark)
    if whole is None or marked is None or marked.count(between) != 1:
        return None
    before, after = marked.split(between)
    return _Spot(whole, before, after) if before + put.text + after == whole else None


def _problem(subject: Subject, example: Example, words: str, place: Place, num_target: int) -> Problem | None:
    """The problem of one example with these words as the string, or None where they do not stand as they should."""
    put = Put(f"{words} " if place == "prefix" else f" {words}", place)
    spot = _spot(subject, example, put)
    if spot is None:
        return None
    special = subject.wrapper.template != "chat"
    read = subject.tokenizer(spot.whole, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = read["input_ids"], read["offset_mapping"]
    begin, end = len(spot.before), len(spot.whole) - len(spot.after)
    inside = [i for i, (a, b) in enumerate(offsets) if spot.whole[max(a, begin) : min(b, end)].strip()]
    if not inside:
        return None
    first, past = inside[0], inside[-1] + 1
    text = spelled(subject, [ids[first:past]])[0]
    over = spot.whole[offsets[first][0] : begin] + spot.whole[end : offsets[past - 1][1]]
    if over.strip() or text not in put.text:  # a token reaches over the edge of the string
        return None
    left, _, right = put.text.partition(text)
    made = _cut(Frame(subject, example, place, left, right), put, ids, (first, past), num_target)
    return None if made is None else _windowed(made, spot, read)


def _cut(frame: Frame, put: Put, ids: Sequence[int], string: tuple[int, int], num_target: int) -> Problem | None:
    """Prompt and answer cut into before | string | after | target."""
    subject = replace(frame.subject, wrapper=putting(frame.subject.wrapper, put))
    text = asked_text(subject, frame.example)
    assert text is not None
    try:
        one = encode(subject, [text], limit=context_length(subject))[0]
    except DataError:  # too long, or nothing to score
        return None
    tokens, at, (first, past) = one.tokens.tolist(), one.prompt_length, string
    target = tokens[at : at + num_target] if num_target else tokens[at:]
    while target and target[-1] in subject.tokenizer.all_special_ids:
        target.pop()
    if tokens[:at] != list(ids[:at]) or at < past or not target:
        return None
    alone = prompt_tokens(subject, [text.prompt])[0].tolist() == tokens[:at]
    before, start, after = (tuple(tokens[a:b]) for a, b in ((0, first), (first, past), (past, at)))
    frame = replace(frame, alone=alone)
    return Problem(frame.subject, before, start, after, tuple(target), frame.example.id, frame)


def _windowed(problem: Problem, spot: _Spot, read: Any) -> Problem | None:
    """The problem with the smallest surroundings beside which its start is read back."""
    frame, ids, offsets = problem.frame, tuple(read["input_ids"]), read["offset_mapping"]
    assert frame is not None
    first, start = len(problem.before), torch.tensor([problem.start])
    past, end = first + len(problem.start), len(spot.whole) - len(spot.after)
    special = problem.subject.wrapper.template != "chat"
    for num in (*WINDOWS, len(ids)):
        a, b = max(0, first - num), min(past + num, len(ids))
        whole = num == len(ids)
        from_, to = (0, len(spot.whole)) if whole else (offsets[a][0], offsets[b - 1][1])
        tried = replace(
            frame, tail=spot.before[from_:], head=spot.whole[end : max(to, end)], tail_ids=ids[a:first],
            head_ids=ids[past:b], special=special and whole,
        )
        if bool(tried.survive(start)):
            return replace(problem, frame=tried)
    return None
