"""Answers of one question share it: the prompt is read once, every answer sees the prompt and itself.

    [ prompt | answer 1 | answer 2 | ... ]      one sequence; positions restart after the prompt for every answer

The last prompt token predicts the first token of every answer. No answer's last token is read: it predicts nothing.
Exact for models whose attention takes a mask of its own; whether a model does is tried once on a few tokens, and
where it does not (recurrent layers, biases made from the padding mask) every text is run by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.tokenise import Encoded, collate
from expunge.measure.forward import kept_logits, packed_head

SHORTEST = 4  # prompt tokens worth sharing
LONGEST = 512  # tokens of a family (or twice its prompt): attention within it costs their square
TRIAL = (5, 52)  # sequences and tokens that `can_share` runs


@dataclass(frozen=True, eq=False)
class Family:
    """Texts with the same prompt tokens: their numbers, and the length of what they share."""

    members: tuple[int, ...]
    prompt: int
    size: int  # tokens a forward reads


def families(encoded: Sequence[Encoded], rows: Iterable[int], window: int | None = None) -> list[Family]:
    """Texts in groups with the same prompt; a text alone is a group of one.

    Args:
        rows: which texts. window: longest text whose attention is not cut off by a sliding window; longer ones and
            texts with holes in their answer stay alone.
    """
    groups: dict[bytes, list[int]] = {}
    for i in rows:
        one, start = encoded[i], encoded[i].prompt_length
        plain = one.task == "causal" and one.targets is None and bool(one.counted[start:].all())
        fits = plain and start >= SHORTEST and (window is None or len(one) <= window)
        groups.setdefault(one.tokens[:start].tobytes() if fits else b"alone %d" % i, []).append(i)
    found = []
    for whole in groups.values():
        start = encoded[whole[0]].prompt_length
        for members in _pieces(encoded, whole, start):
            if len(members) == 1:
                found.append(Family((members[0],), start, encoded[members[0]].size))
            else:
                size = start + sum(len(encoded[i]) - start - 1 for i in members)
                found.append(Family(tuple(members), start, size))
    return found


def _pieces(encoded: Sequence[Encoded], members: Sequence[int], start: int) -> list[list[int]]:
    """The texts of one question in groups whose sequence stays under a bound."""
    pieces: list[list[int]] = []
    size = 0
    for i in members:
        more = len(encoded[i]) - start - 1
        if not pieces or start + size + more > max(LONGEST, 2 * start):
            pieces.append([])
            size = 0
        pieces[-1].append(i)
        size += more
    return pieces


def run_families(
    model: Any, encoded: Sequence[Encoded], group: Sequence[Family], device: str
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """One forward over families of several texts.

    Returns: logits [K, V] at every counted token, text by text; the tokens that stand there [K]; and per text its
        number and how many of the K rows are its own.
    """
    width = max(family.size for family in group)
    ids = np.zeros((len(group), width), dtype=np.int64)
    positions = np.zeros((len(group), width), dtype=np.int64)
    seen = np.zeros((len(group), 1, width, width), dtype=bool)
    places: list[np.ndarray] = []  # of every prediction, in the flat batch
    targets: list[np.ndarray] = []
    owners: list[tuple[int, int]] = []
    for row, family in enumerate(group):
        start = family.prompt
        ids[row, :start] = encoded[family.members[0]].tokens[:start]
        positions[row, :start] = np.arange(start)
        seen[row, 0, :start, :start] = np.tri(start, dtype=bool)
        at = start
        for i in family.members:
            answer = encoded[i].tokens[start:]
            end = at + len(answer) - 1
            ids[row, at:end] = answer[:-1]
            positions[row, at:end] = np.arange(start, start + end - at)
            seen[row, 0, at:end, :start] = True
            seen[row, 0, at:end, at:end] = np.tri(end - at, dtype=bool)
            places.append(row * width + np.concatenate([[start - 1], np.arange(at, end)]))
            targets.append(answer)
            owners.append((i, len(answer)))
            at = end
        seen[row, 0, np.arange(at, width), np.arange(at, width)] = True  # padding sees itself: no row without any
    picked = torch.from_numpy(np.concatenate(places)).to(device)
    dtype = next(model.parameters()).dtype
    allowed = torch.from_numpy(seen).to(device)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)
    with packed_head(model, (picked // width, picked % width)):
        logits = model(
            input_ids=torch.from_numpy(ids).to(device), position_ids=torch.from_numpy(positions).to(device),
            attention_mask=mask, use_cache=False,
        ).logits[0]
    return logits, torch.from_numpy(np.concatenate(targets)).to(device), owners


def sliding_window(model: Any) -> int | None:
    """The shortest attention window of a model that has one."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    names = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
    found = [size for size in (getattr(config, name, None) for name in names) if isinstance(size, int) and size > 0]
    return min(found, default=None)


@torch.no_grad()
def can_share(model: Any, device: str) -> bool:
    """Whether two made-up answers of one made-up question score in one sequence what they score apart.

    How far apart two scores may be is measured on the model itself: by what a padded batch moves them.
    """
    if model.get_output_embeddings() is None:
        return False
    texts = _made_up(model.get_input_embeddings().weight.shape[0])
    apart = torch.cat([_logp(model, [one], device) for one in texts])
    noise = (apart - _logp(model, texts, device)).abs().max()
    try:
        together, _, _ = run_families(model, texts, families(texts, range(2)), device)
    except (TypeError, ValueError, RuntimeError, IndexError):  # the model takes no positions, or no mask of that shape
        return False
    near = 1e-4 if next(model.parameters()).dtype.itemsize >= 4 else 2e-3
    gap = (together.float().log_softmax(-1) - apart).abs().max()
    return bool(gap.isfinite() and gap <= 4 * noise + near)


def _made_up(size: int) -> list[Encoded]:
    """One question of 6 tokens with answers of 5 and of 3, drawn from `size` tokens."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, size, 6)
    texts = []
    for length in (5, 3):
        counted = np.arange(6 + length) >= 6
        tokens = np.concatenate([prompt, random.integers(0, size, length)])
        texts.append(Encoded("", 0, tokens, counted, counted))
    return texts


def _logp(model: Any, texts: Sequence[Encoded], device: str) -> Tensor:
    """Log-probabilities of every token where one is counted, [K, V], the texts as rows of a padded batch."""
    batch = collate(texts, device=device)
    return kept_logits(model, batch, batch.positions("answer"))[0].float().log_softmax(-1)
