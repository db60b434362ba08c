"""Texts and their tokens as values, and how prompt and answer are put together for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from expunge.data.said import in_question, said_in
from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.types import Data, Example, Positions, Span, Stream, Task, Wrapper

Rewrite = Callable[[Example], Example | None]


@dataclass(frozen=True, eq=False)
class Text:
    """One text to tokenise: example id, which of its variants, prompt, answer and spans of the answer."""

    id: str
    item: int
    prompt: str
    answer: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one text. counted[t] and spanned[t] say whether place t is answer / inside a span.

    targets: what should stand at each place where that is not the token itself; read at counted places only.
    source: what the encoder of an encoder-decoder reads; `tokens` are then the decoder's.
    read: how many of the tokens the model reads, where places without a token follow them; None: all.
    pad: the token that fills up a batch, for models that tell padding by its value.
    """

    id: str
    item: int
    tokens: np.ndarray  # [T] int64
    counted: np.ndarray  # [T] bool
    spanned: np.ndarray  # [T] bool
    targets: np.ndarray | None = None  # [T] int64
    source: np.ndarray | None = None  # [S] int64
    task: Task = "causal"
    read: int | None = None
    pad: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def size(self) -> int:
        """Tokens a forward reads: what batches are made by and bills are written in."""
        return len(self.tokens) + (0 if self.source is None else len(self.source))

    @property
    def prompt_length(self) -> int:
        """Tokens before the first counted one."""
        return int(self.counted.argmax()) if self.counted.any() else len(self.tokens)

    def places(self, which: Positions) -> np.ndarray:
        """Which predictions count, [T-1] bool, as `Batch.positions` says it of a batch."""
        if which == "text":
            whole = self.task in ("causal", "seq2seq")
            return np.ones(len(self) - 1, dtype=bool) if whole else self.counted[1:]
        chosen: np.ndarray = {
            "answer": self.counted, "spans": self.spanned, "context": self.counted & ~self.spanned
        }[which][1:]
        return chosen


def texts_of(stream: Stream, variant: str = "answer", ask: str = "prompt", data: Data | None = None) -> list[Text]:
    """The texts of a stream variant; see `expunge.data.variants.variants`."""
    return [Text(*row) for row in variants(stream, variant, ask, data)]


@dataclass(frozen=True)
class Chained:
    """One rewrite after another."""

    first: Rewrite
    then: Rewrite

    def __call__(self, example: Example) -> Example | None:
        put = self.first(example)
        return None if put is None else self.then(put)


def rewritten(wrapper: Wrapper, rewrite: Rewrite) -> Wrapper:
    """The wrapper with one more rewrite, on top of those it has."""
    return replace(wrapper, rewrite=rewrite if wrapper.rewrite is None else Chained(wrapper.rewrite, rewrite))


def reword(example: Example, put: Callable[[str], str]) -> Example | None:
    """The example with its prompt and every paraphrase put differently; None for plain text, which asks nothing."""
    if not example.prompt:
        return None
    changed = in_question(put)
    return replace(example, prompt=changed(example.prompt), paraphrases=tuple(map(changed, example.paraphrases)))


def asked_of(data: Data, wrapper: Wrapper) -> Data:
    """The streams as this wrapper asks them; examples that cannot be put like that are left out."""
    if wrapper.rewrite is None:
        return data
    made = {name: [put for one in stream.examples if (put := wrapper.rewrite(one))] for name, stream in data.items()}
    return Data({name: replace(stream, examples=tuple(made[name])) for name, stream in data.items()})


def render(wrapper: Wrapper, tokenizer: Any, prompt: str, answer: str) -> tuple[str, int, int]:
    """The text as the model sees it, the character from which the model speaks, and the one where the answer starts.

    The two differ where a template puts a space between them. An empty prompt is plain text: the answer alone.

    Raises: DataError for a chat template that does not write the answer as it is.
    """
    if not prompt:
        return answer, 0, 0
    prefill = wrapper.prefill + said_in(prompt).begun
    if wrapper.template != "chat":
        before, after = wrapper.template.split("{answer}")
        start = _said(wrapper, prompt) + before.replace("{prompt}", said_in(prompt).question) + prefill
        return start + answer + after, len(start.rstrip(" ")), len(start)
    text = _turns(wrapper, tokenizer, prompt, prefill + answer)
    past = _past_opening(wrapper, tokenizer, prompt, text)
    at = text.find((prefill + answer).strip(), len(past)) if text.startswith(past) else -1
    if at < 0:
        raise DataError(
            "chat template", f"an answer of {len(answer)} characters does not stand in it as given",
            "accepted: a template that writes what the assistant says unchanged",
            "Correct the template or the answer, or set the wrapper's template to one of your own",
        )
    opening = render_prompt(wrapper, tokenizer, prompt)
    said = prefill + answer
    stripped = len(said) - len(said.lstrip()) - len(prefill)  # spans count from the answer as given
    return text, len(opening if text.startswith(opening) else past + prefill.strip()), at - stripped


def _said(wrapper: Wrapper, prompt: str) -> str:
    """Earlier turns as plain text, each in the wrapper's template and on a line of its own."""
    told = []
    for asked, answered in _earlier(wrapper, prompt):
        before, after = wrapper.template.split("{answer}")
        told.append(before.replace("{prompt}", asked) + answered + after + "\n")
    return "".join(told)


def _earlier(wrapper: Wrapper, prompt: str) -> tuple[tuple[str, str], ...]:
    """What was said before a prompt."""
    return (*wrapper.turns.get(prompt, wrapper.turns.get("", ())), *said_in(prompt).turns)


def _messages(wrapper: Wrapper, prompt: str, answer: str | None) -> list[dict[str, str]]:
    """A conversation as chat templates read it; `answer` None leaves the last word to the user."""
    pairs: list[tuple[str, str | None]] = [*_earlier(wrapper, prompt), (said_in(prompt).question, answer)]
    return [
        {"role": role, "content": content}
        for pair in pairs for role, content in zip(("user", "assistant"), pair, strict=True) if content is not None
    ]


def _turns(wrapper: Wrapper, tokenizer: Any, prompt: str, answer: str) -> str:
    return str(tokenizer.apply_chat_template(_messages(wrapper, prompt, answer), tokenize=False))


def _past_opening(wrapper: Wrapper, tokenizer: Any, prompt: str, text: str, begun: str = "") -> str:
    """All that stands before the answer in a past turn, which some templates open unlike the one to be answered.

    Found with a word in the answer's place that stands nowhere else, neither in the prompt nor in the template.
    begun: what the assistant has said before it.
    """
    word = "ANSWER"
    while word in text or word in prompt or word in begun:
        word += "S"
    before, found, _ = _turns(wrapper, tokenizer, prompt, begun + word).partition(word)
    return before if found else text


def render_prompt(wrapper: Wrapper, tokenizer: Any, prompt: str) -> str:
    """The text up to where the model starts to answer: all that an encoder or a classifier reads."""
    if not prompt:
        return "" if wrapper.template != "chat" else _opened(wrapper, tokenizer, prompt)
    said = said_in(prompt)
    prefill = wrapper.prefill + said.begun
    if wrapper.template != "chat":
        before = wrapper.template.split("{answer}")[0].replace("{prompt}", said.question)
        return (_said(wrapper, prompt) + before + prefill).rstrip(" ")
    if not prefill:
        return _opened(wrapper, tokenizer, prompt)
    whole = _turns(wrapper, tokenizer, prompt, prefill)  # what was begun stands as in a past turn
    return _past_opening(wrapper, tokenizer, prompt, whole, prefill).rstrip(" ")


def _opened(wrapper: Wrapper, tokenizer: Any, prompt: str) -> str:
    turns = _messages(wrapper, prompt, None)
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
