"""From examples to tokens: which tokens are the answer is decided by character offsets, never by counting.

Prompt and answer are tokenised together, as the model will see them, so a token that straddles the boundary
counts as answer and no first answer token is lost. The end-of-sequence token after the answer is counted even
where the padding token is the same one, because padding is known from lengths. What the other tasks do instead
stands in `data/tasks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.data.tasks import ENCODERS, hide, sources
from expunge.data.texts import Encoded, Text, render, render_prompt, texts_of
from expunge.errors import DataError, ModelError
from expunge.types import Batch, Subject

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Encoded", "Text", "by_length", "collate", "encode", "prompt_tokens", "render", "render_prompt", "texts_of"
]


def encode(
    subject: Subject, texts: Sequence[Text], *, limit: int | None = None, where: str = "data",
    targets: Mapping[str, Sequence[int]] | None = None,
) -> list[Encoded]:
    """Tokenise texts for the subject's task, marking answer tokens (and spans) by offsets.

    Args:
        limit: longest sequence in tokens the model can read; a longer text is an error.
        where: named in the error.
        targets: for some ids, what should stand at each token (-100: does not count) instead of the token itself.
    Returns: one Encoded per text, in order.
    Raises: DataError for a text longer than `limit`, one whose answer has no token, or targets that do not fit.
    """
    if not texts:
        return []
    empty = next((text for text in texts if not text.answer.strip()), None)
    if empty is not None:
        raise DataError(
            f"{where}[{empty.id}]", "an empty answer", "the answer is what is learned, forgotten and measured",
            "Fill it or remove the row",
        )
    made = ENCODERS[subject.task](subject, texts, where)
    if targets:
        made = [_retarget(one, targets[one.id], where) if one.id in targets else one for one in made]
    if subject.task == "masked":
        made = [hide(one, _mask_token(subject.tokenizer)) for one in made]
    _check_lengths(made, limit, where)
    _check_rows(made, subject, where)
    return made


def _mask_token(tokenizer: Any) -> int:
    if tokenizer.mask_token_id is None:
        raise ModelError(
            type(tokenizer).__name__, "has no mask token", "the tokenizer of a masked model",
            "Set mask_token in tokenizer_config.json",
        )
    return int(tokenizer.mask_token_id)


def _retarget(one: Encoded, targets: Sequence[int], where: str) -> Encoded:
    """The same text with other labels: exactly the places that have one count."""
    labels = np.asarray(targets, dtype=np.int64)
    if labels.shape != one.tokens.shape:
        raise DataError(
            f"{where}[{one.id}]", f"{labels.size} targets for {len(one)} tokens", "one target per token, -100 for none",
            "Make the targets with the same tokenizer, template and text",
        )
    counted = labels != -100
    return replace(one, targets=np.where(counted, labels, one.tokens), counted=counted, spanned=one.spanned & counted)


def _check_lengths(encoded: Iterable[Encoded], limit: int | None, where: str) -> None:
    for one in encoded:
        if not one.counted[1:].any():
            raise DataError(
                f"{where}[{one.id}]", "no token of the answer can be scored", "an answer of at least one token after "
                "the first", "Remove the example, or give it an answer",
            )
    long = [one for one in encoded if limit is not None and _longest(one) > limit]
    if long:
        worst = max(long, key=_longest)
        raise DataError(
            f"{where}[{worst.id}]", f"{_longest(worst)} tokens ({len(long)} example(s) are too long)",
            f"the model reads at most {limit}", "Shorten or split these texts, or use a model with a longer context",
        )


def _longest(one: Encoded) -> int:
    """Tokens of the longest sequence the model reads for this text."""
    return max(len(one) if one.read is None else one.read, 0 if one.source is None else len(one.source))


def _check_rows(encoded: Sequence[Encoded], subject: Subject, where: str) -> None:
    """A token added to the tokenizer without a row in the embedding would index outside it."""
    if subject.model is None:  # tokenising alone
        return
    rows = subject.model.get_input_embeddings().weight.shape[0]
    for one in encoded:
        highest = max(int(ids.max(initial=0)) for ids in (one.tokens, one.targets, one.source) if ids is not None)
        if highest >= rows:
            raise DataError(
                f"{where}[{one.id}]", f"token {highest} is in the tokenizer, not in the model",
                f"the model's embedding has {rows} rows", "Resize the embedding, or use the model's own tokenizer",
            )


def prompt_tokens(subject: Subject, prompts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of what is asked, as a user would send it: without any of the answer."""
    if subject.task == "seq2seq":
        return sources(subject, prompts)
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


def collate(encoded: Sequence[Encoded], *, pad: int | None = None, device: str = "cpu") -> Batch:
    """Pad on the right to the longest row, [B, T]; of encoder-decoders also the source, [B, S].

    Args:
        pad: the token to fill up with; None: as the rows say.
    """
    import torch

    fill_with = encoded[0].pad if pad is None else pad

    def stack(rows: Sequence[np.ndarray], fill: int, dtype: Any) -> Tensor:
        width = max(len(row) for row in rows)
        out = np.full((len(rows), width), fill, dtype=dtype)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out).to(device)

    def ones(lengths: Sequence[int], sizes: Sequence[int]) -> Tensor:
        rows = [np.arange(size) < length for length, size in zip(lengths, sizes, strict=True)]
        return stack(rows, 0, np.int64)

    lengths = [len(one) for one in encoded]
    read = [len(one) if one.read is None else one.read for one in encoded]
    wanted = [one.tokens if one.targets is None else one.targets for one in encoded]
    labels = [np.where(one.counted, row, -100) for one, row in zip(encoded, wanted, strict=True)]
    source = [one.source for one in encoded if one.source is not None]
    sizes = [len(row) for row in source]
    return Batch(
        input_ids=stack([one.tokens for one in encoded], fill_with, np.int64),
        attention_mask=ones(read, lengths),
        labels=stack(labels, -100, np.int64),
        ids=tuple(one.id for one in encoded),
        span_mask=stack([one.spanned for one in encoded], 0, np.bool_),
        targets=stack(wanted, fill_with, np.int64) if any(one.targets is not None for one in encoded) else None,
        source_ids=stack(source, fill_with, np.int64) if source else None,
        source_mask=ones(sizes, sizes) if source else None,
        task=encoded[0].task,
    )


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
