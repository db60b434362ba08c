"""From examples to tokens: which tokens are the answer is decided by character offsets, never by counting.

Prompt and answer are tokenised together, as the model will see them, so a token that straddles the boundary
counts as answer and no first answer token is lost. The end-of-sequence token after the answer is counted even
where the padding token is the same one, because padding is known from lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.data.examples import variants
from expunge.errors import DataError
from expunge.types import Batch, Span, Stream, Subject, Wrapper

if TYPE_CHECKING:
    from torch import Tensor


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
    """Token ids of one text. counted[t] and spanned[t] say whether token t is answer / inside a span."""

    id: str
    item: int
    tokens: np.ndarray  # [T] int64
    counted: np.ndarray  # [T] bool
    spanned: np.ndarray  # [T] bool

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first counted one."""
        return int(self.counted.argmax()) if self.counted.any() else len(self.tokens)


def texts_of(stream: Stream, variant: str = "answer", ask: str = "prompt") -> list[Text]:
    """The texts of a stream variant; see `expunge.data.examples.variants`."""
    return [Text(*row) for row in variants(stream, variant, ask)]


def render(wrapper: Wrapper, tokenizer: Any, prompt: str, answer: str) -> tuple[str, int, int]:
    """The text as the model sees it, the character from which the model speaks, and the one where the answer starts.

    The two differ where a template puts a space between them. An empty prompt is plain text: the answer alone.
    """
    if not prompt:
        return answer, 0, 0
    if wrapper.template != "chat":
        before, after = wrapper.template.split("{answer}")
        start = before.replace("{prompt}", prompt)
        return start + answer + after, len(start.rstrip(" ")), len(start)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    opening = render_prompt(wrapper, tokenizer, prompt)
    follows = text.startswith(opening)  # some templates open a past turn differently
    said = answer.strip()
    at = max(text.find(said, len(opening)) if follows else text.rfind(said), 0)
    stripped = len(answer) - len(answer.lstrip())  # spans count from the answer as given; the template strips it
    return text, len(opening) if follows else at, at - stripped


def render_prompt(wrapper: Wrapper, tokenizer: Any, prompt: str) -> str:
    """The text up to where the model starts to answer."""
    if wrapper.template != "chat":
        return wrapper.template.split("{answer}")[0].replace("{prompt}", prompt).rstrip(" ") if prompt else ""
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def encode(subject: Subject, texts: Sequence[Text], *, limit: int | None = None, where: str = "data") -> list[Encoded]:
    """Tokenise texts, marking answer tokens (and spans) by offsets.

    Args:
        limit: longest sequence in tokens the model can read; a longer text is an error.
        where: named in the error.
    Returns: one Encoded per text, in order.
    Raises: DataError for a text longer than `limit`, or one whose answer has no token.
    """
    tokenizer, wrapper = subject.tokenizer, subject.wrapper
    rendered = [render(wrapper, tokenizer, text.prompt, text.answer) for text in texts]
    if not rendered:
        return []
    plain = [wrapper.template != "chat" or not text.prompt for text in texts]
    encoded: list[Encoded | None] = [None] * len(texts)
    for special in (True, False):  # chat templates write their own special tokens into the text
        rows = [i for i, is_plain in enumerate(plain) if is_plain is special]
        if not rows:
            continue
        out = tokenizer([rendered[i][0] for i in rows], add_special_tokens=special, return_offsets_mapping=True)
        for i, ids, offsets in zip(rows, out["input_ids"], out["offset_mapping"], strict=True):
            encoded[i] = _mark(texts[i], ids, offsets, rendered[i][1:], tokenizer, close=special)
    result = [one for one in encoded if one is not None]
    _check_lengths(result, limit, where)
    _check_rows(result, subject, where)
    return result


def _mark(
    text: Text, ids: list[int], offsets: list[tuple[int, int]], starts: tuple[int, int], tokenizer: Any, *, close: bool
) -> Encoded:
    tokens, spots = np.asarray(ids, dtype=np.int64), np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    speaks, start = starts
    end = start + len(text.answer.rstrip())
    counted = spots[:, 1] > speaks
    spanned = np.zeros(len(tokens), dtype=bool)
    for a, b in text.spans:
        spanned |= (spots[:, 0] < start + b) & (spots[:, 1] > start + a)
    eos = tokenizer.eos_token_id
    closing = np.flatnonzero((spots[:, 0] >= end) & np.isin(tokens, tokenizer.all_special_ids))
    if len(closing):  # a template's own end-of-turn token ends the answer; what follows it is layout
        last = closing[0] + 1
        tokens, counted, spanned = tokens[:last], counted[:last], spanned[:last]
    elif close and eos is not None:
        if len(tokens) and tokens[-1] == eos and not counted[-1]:  # the tokenizer adds eos itself, without offsets
            counted[-1] = True
        else:
            tokens, counted, spanned = np.append(tokens, eos), np.append(counted, True), np.append(spanned, False)
    return Encoded(text.id, text.item, tokens, counted, spanned & counted)


def _check_lengths(encoded: Iterable[Encoded], limit: int | None, where: str) -> None:
    for one in encoded:
        if not one.counted[1:].any():
            raise DataError(
                f"{where}[{one.id}]", "no token of the answer can be scored", "an answer of at least one token after "
                "the first", "Remove the example, or give it an answer",
            )
    long = [one for one in encoded if limit is not None and len(one) > limit]
    if long:
        worst = max(long, key=len)
        raise DataError(
            f"{where}[{worst.id}]", f"{len(worst)} tokens ({len(long)} example(s) are too long)",
            f"the model reads at most {limit}", "Shorten or split these texts, or use a model with a longer context",
        )


def _check_rows(encoded: Sequence[Encoded], subject: Subject, where: str) -> None:
    """A token added to the tokenizer without a row in the embedding would index outside it."""
    if subject.model is None:  # tokenising alone
        return
    rows = subject.model.get_input_embeddings().weight.shape[0]
    for one in encoded:
        if int(one.tokens.max()) >= rows:
            raise DataError(
                f"{where}[{one.id}]", f"token {int(one.tokens.max())} is in the tokenizer, not in the model",
                f"the model's embedding has {rows} rows", "Resize the embedding, or use the model's own tokenizer",
            )


def prompt_tokens(subject: Subject, prompts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of what is asked, as a user would send it: without any of the answer."""
    tokenizer, wrapper = subject.tokenizer, subject.wrapper
    texts = [render_prompt(wrapper, tokenizer, prompt) for prompt in prompts]
    special = wrapper.template != "chat"
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=special)["input_ids"]
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    rows = []
    for text, row in zip(texts, ids, strict=True):
        closed = special and len(row) > (eos == bos) and row[-1] == eos and not text.endswith(tokenizer.eos_token)
        rows.append(np.asarray(row[:-1] if closed else row, dtype=np.int64))
    return rows


def collate(encoded: Sequence[Encoded], *, pad: int = 0, device: str = "cpu") -> Batch:
    """Pad on the right to the longest row, [B, T]."""
    import torch

    width = max(len(one) for one in encoded)

    def stack(rows: Sequence[np.ndarray], fill: int, dtype: Any) -> Tensor:
        out = np.full((len(rows), width), fill, dtype=dtype)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out).to(device)

    input_ids = stack([one.tokens for one in encoded], pad, np.int64)
    labels = stack([np.where(one.counted, one.tokens, -100) for one in encoded], -100, np.int64)
    attention = stack([np.ones(len(one), dtype=np.int64) for one in encoded], 0, np.int64)
    spans = stack([one.spanned for one in encoded], 0, np.bool_)
    return Batch(input_ids, attention, labels, tuple(one.id for one in encoded), spans)


def by_length(lengths: Sequence[int], max_tokens: int) -> Iterable[np.ndarray]:
    """Row numbers in batches of similar length (at most twice the shortest) whose padded size stays under a bound."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batch: list[int] = []
    for row in order:
        width = lengths[batch[0]] if batch else lengths[row]
        if batch and (width * (len(batch) + 1) > max_tokens or width > 2 * lengths[row]):
            yield np.asarray(batch)
            batch = []
        batch.append(int(row))
    if batch:
        yield np.asarray(batch)
