"""How each task turns prompts and answers into tokens, and which places of them count.

    causal          prompt and answer as one text; the answer's tokens and the end count. Of a text without a prompt the
                    end is read and does not count: a passage cut from a book does not end where it is cut
    seq2seq         the encoder reads the prompt; the decoder's tokens are start, answer, end; answer and end count
    masked          prompt and answer as one text in which every token of the answer is hidden; the hidden ones count
    classification  the model reads the prompt; the answer names the label, which counts as one place; with several
                    labels a text, every label counts as a place of its own with two outcomes, no and yes

A masked model is asked for the whole answer at once: one forward a text, and no token of the answer helps to find
another. (The pseudo-likelihood that hides one token at a time costs a forward per token and is another number.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from expunge.data.texts import Encoded, Text, render, render_prompt
from expunge.errors import DataError, ModelError, close_to
from expunge.models import several_labels
from expunge.types import Subject, Task

Spots = list[tuple[int, int]]  # of each token, the characters it covers


def _tokenised(tokenizer: Any, texts: list[str], *, special: bool = True, target: bool = False) -> Any:
    asked: dict[str, Any] = {"text_target" if target else "text": texts}
    return tokenizer(**asked, add_special_tokens=special, return_offsets_mapping=True)


# -- causal ----------------------------------------------------------------------------------------------------
def _causal(subject: Subject, texts: Sequence[Text], where: str) -> list[Encoded]:
    tokenizer, wrapper = subject.tokenizer, subject.wrapper
    rendered = [render(wrapper, tokenizer, text.prompt, text.answer) for text in texts]
    plain = [wrapper.template != "chat" or not text.prompt for text in texts]
    encoded: list[Encoded | None] = [None] * len(texts)
    for special in (True, False):  # chat templates write their own special tokens into the text
        rows = [i for i, is_plain in enumerate(plain) if is_plain is special]
        if not rows:
            continue
        out = _tokenised(tokenizer, [rendered[i][0] for i in rows], special=special)
        for i, ids, offsets in zip(rows, out["input_ids"], out["offset_mapping"], strict=True):
            encoded[i] = _mark(texts[i], ids, offsets, rendered[i][1:], tokenizer, close=special)
    return [one for one in encoded if one is not None]


def _mark(
    text: Text, ids: list[int], offsets: Spots, starts: tuple[int, int], tokenizer: Any, *, close: bool
) -> Encoded:
    speaks, start = starts
    tokens, spots, spanned = _aligned(text, ids, offsets, start)
    end = start + len(text.answer.rstrip())
    counted = spots[:, 1] > speaks
    eos = tokenizer.eos_token_id
    closing = np.flatnonzero((spots[:, 0] >= end) & np.isin(tokens, tokenizer.all_special_ids))
    if len(closing):  # a template's own end-of-turn token ends the answer; what follows it is layout
        last = closing[0] + 1
        tokens, counted, spanned = tokens[:last], counted[:last], spanned[:last]
    elif close and eos is not None:
        tokens, counted, spanned = _ended(tokens, counted, spanned, eos)
        if not text.prompt:  # a passage has no end of its own: whoever cut it decided where it stops
            counted[-1] = False
    return Encoded(text.id, text.item, tokens, counted, spanned & counted)


def _aligned(text: Text, ids: list[int], offsets: Spots, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their characters [T, 2], and which of them are inside a span of an answer that starts at `start`."""
    tokens, spots = np.asarray(ids, dtype=np.int64), np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    spanned = np.zeros(len(tokens), dtype=bool)
    for a, b in text.spans:
        spanned |= (spots[:, 0] < start + b) & (spots[:, 1] > start + a)
    return tokens, spots, spanned


def _ended(
    tokens: np.ndarray, counted: np.ndarray, spanned: np.ndarray, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with one end token, which counts."""
    if len(tokens) and tokens[-1] == eos and not counted[-1]:  # the tokenizer adds eos itself, without offsets
        counted[-1] = True
        return tokens, counted, spanned
    return np.append(tokens, eos), np.append(counted, True), np.append(spanned, False)


# -- encoder-decoder -------------------------------------------------------------------------------------------
def start_token(model: Any) -> int:
    """What the decoder reads before it has said anything.

    Raises: ModelError when neither the model nor its generation settings name it.
    """
    settings = (model.config, getattr(model, "generation_config", None))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for owner in settings:
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
    raise ModelError(
        type(model).__name__, "names no token its decoder starts with", "decoder_start_token_id in config.json",
        "Add it; it is the padding token of T5 and Marian, the end token of BART",
    )


def sources(subject: Subject, prompts: Sequence[str]) -> list[np.ndarray]:
    """What the encoder reads for each prompt, [S]; the end token alone for an empty one."""
    tokenizer = subject.tokenizer
    texts = [render_prompt(subject.wrapper, tokenizer, prompt) for prompt in prompts]
    rows = tokenizer(texts)["input_ids"] if texts else []
    empty = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id or 0
    return [np.asarray(row or [empty], dtype=np.int64) for row in rows]


def _seq2seq(subject: Subject, texts: Sequence[Text], where: str) -> list[Encoded]:
    tokenizer, start = subject.tokenizer, start_token(subject.model)
    read = sources(subject, [text.prompt for text in texts])
    out = _tokenised(tokenizer, [text.answer for text in texts], target=True)
    made = []
    for text, source, ids, offsets in zip(texts, read, out["input_ids"], out["offset_mapping"], strict=True):
        tokens, spots, spanned = _aligned(text, ids, offsets, 0)
        counted = spots[:, 1] > 0  # a language code or start token that the tokenizer puts in front is no answer
        if tokenizer.eos_token_id is not None:
            tokens, counted, spanned = _ended(tokens, counted, spanned, tokenizer.eos_token_id)
        rows = (np.insert(tokens, 0, start), np.insert(counted, 0, False), np.insert(spanned & counted, 0, False))
        made.append(Encoded(text.id, text.item, *rows, source=source, task="seq2seq"))
    return made


# -- masked ----------------------------------------------------------------------------------------------------
def _masked(subject: Subject, texts: Sequence[Text], where: str) -> list[Encoded]:
    tokenizer = subject.tokenizer
    rendered = [render(subject.wrapper, tokenizer, text.prompt, text.answer) for text in texts]
    out = _tokenised(tokenizer, [whole for whole, _, _ in rendered])
    made = []
    for text, (_, speaks, start), ids, offsets in zip(
        texts, rendered, out["input_ids"], out["offset_mapping"], strict=True
    ):
        tokens, spots, spanned = _aligned(text, ids, offsets, start)
        end = start + len(text.answer.rstrip())
        counted = (spots[:, 1] > speaks) & (spots[:, 0] < end)  # what a template writes after the answer stays
        made.append(Encoded(text.id, text.item, tokens, counted, spanned & counted, task="masked"))
    return made


def hide(one: Encoded, mask: int) -> Encoded:
    """The text a masked model reads: a mask stands where it is asked."""
    counted = one.counted.copy()
    counted[:1] = False  # the first place is never asked (it holds the tokenizer's own start)
    wanted = one.tokens if one.targets is None else one.targets
    return replace(one, tokens=np.where(counted, mask, one.tokens), targets=wanted, counted=counted)


# -- classification --------------------------------------------------------------------------------------------
def _classification(subject: Subject, texts: Sequence[Text], where: str) -> list[Encoded]:
    model, tokenizer = subject.model, subject.tokenizer
    pad = next((i for i in (model.config.pad_token_id, tokenizer.pad_token_id) if isinstance(i, int)), 0)
    made = []
    for text, source in zip(texts, sources(subject, [text.prompt for text in texts]), strict=True):
        if not text.prompt:
            raise DataError(
                f"{where}[{text.id}]", "no prompt", "a text to classify as the prompt, its label as the answer",
                "Read the text into 'prompt' and the label into 'answer'",
            )
        labels = _labels(text, model, where)
        places = np.full(max(0, len(labels) + 1 - len(source)), pad)  # a short text, many labels
        tokens, counted = np.concatenate([source, places]), np.zeros(len(source) + len(places), dtype=bool)
        counted[1 : len(labels) + 1] = True
        targets = tokens.copy()
        targets[counted] = labels
        nothing = np.zeros_like(counted)
        made.append(Encoded(
            text.id, text.item, tokens, counted, nothing, targets, task="classification", read=len(source), pad=pad
        ))
    return made


def _labels(text: Text, model: Any, where: str) -> list[int]:
    """The class of a text, or with several labels a text 0 or 1 for each of them."""
    known: Mapping[str, int] = {str(name).strip(): int(number) for name, number in model.config.label2id.items()}
    answer = text.answer.strip()
    several = several_labels(model)
    names = [name.strip() for name in answer.split(",")] if several and answer not in known else [answer]
    for name in names:
        if name not in known:
            raise DataError(
                f"{where}[{text.id}]", f"'{name}' is no label of this classifier", close_to(name, known),
                "Write the label as in label2id of config.json" + (", several with commas" if several else ""),
            )
    if not several:
        return [known[names[0]]]
    chosen = {known[name] for name in names}
    return [int(number in chosen) for number in range(len(known))]


ENCODERS: Mapping[Task, Callable[[Subject, Sequence[Text], str], list[Encoded]]] = {
    "causal": _causal, "seq2seq": _seq2seq, "masked": _masked, "classification": _classification,
}
