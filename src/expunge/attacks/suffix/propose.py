"""Candidates: changes of a string that may lower the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor

from expunge.errors import DoesNotFit

SIGNS = ".,!?;:()[]{}@#$%&*wxyz"
ROUNDS = 4  # of drawing, where few candidates survive being read back


def allowed_tokens(tokenizer: Any, rows: int, *, ascii_only: bool = True, forbidden: Sequence[int] = ()) -> Tensor:
    """Which of the `rows` tokens of the embedding may stand in the string, [V] bool; without a tokenizer all of them.

    Special and added tokens, rows without a token, tokens without text and (ascii_only) all that is not printable
    ASCII may not.

    Raises: DoesNotFit when nothing is left.
    """
    fine = torch.ones(rows, dtype=torch.bool)
    if tokenizer is not None:
        fine = torch.tensor(_fine(tokenizer, rows, ascii_only))
    fine[[token for token in forbidden if token < rows]] = False
    if not fine.any():
        raise DoesNotFit("no token of this vocabulary may stand in the string")
    return fine


@lru_cache(maxsize=8)
def _fine(tokenizer: Any, rows: int, ascii_only: bool) -> tuple[bool, ...]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    known = set(tokenizer.get_vocab().values()) - special
    texts = tokenizer.batch_decode([[token] for token in range(rows) if token in known])
    told = dict(zip((token for token in range(rows) if token in known), texts, strict=True))

    def fits(text: str) -> bool:
        plain = text.isascii() if ascii_only else "\ufffd" not in text
        return bool(text) and text.isprintable() and plain

    return tuple(token in told and fits(told[token]) for token in range(rows))


def sign_tokens(tokenizer: Any, allowed: Tensor) -> Tensor:
    """Tokens of punctuation marks and a few letters, [k]; all allowed ones where a vocabulary has none of them."""
    known = {} if tokenizer is None else tokenizer.get_vocab()
    found = sorted({known[sign] for sign in SIGNS if sign in known and allowed[known[sign]]})
    return torch.tensor(found) if found else allowed.nonzero().squeeze(-1)


def best_tokens(slope: Tensor, allowed: Tensor, top_k: int) -> Tensor:
    """The tokens with the smallest derivative at each place, [n, k]; k is at most the number of allowed ones."""
    masked = slope[:, : len(allowed)].masked_fill(~allowed.to(slope.device), float("inf"))
    return (-masked).topk(min(top_k, int(allowed.sum())), dim=-1).indices


def swaps(
    ids: Tensor, best: Tensor, allowed: Tensor, width: int, *, num_replace: int, random: float, rng: Generator
) -> Tensor:
    """`width` strings with `num_replace` tokens changed: to ones of `best` at their places, some to any allowed one.

    Args:
        ids: [n]. best: [n, k]. random: share of strings whose new tokens are drawn from all allowed ones.
    """
    n, change = len(ids), min(num_replace, len(ids))
    places = torch.rand(width, n, generator=rng).argsort(dim=-1)[:, :change]  # [width, change], distinct
    picks = torch.randint(best.shape[1], (width, change), generator=rng)
    new = best.cpu()[places, picks]
    free = allowed.cpu().nonzero().squeeze(-1)
    drawn = free[torch.randint(len(free), (width, change), generator=rng)]
    any_token = torch.arange(width) < round(random * width)
    new = torch.where(any_token.unsqueeze(-1), drawn, new)
    return ids.cpu().repeat(width, 1).scatter_(1, places, new)


def all_swaps(ids: Tensor, best: Tensor) -> Tensor:
    """Every place with each of its best tokens, [n * k, n]."""
    n, k = best.shape
    out = ids.cpu().repeat(n * k, 1)
    out[torch.arange(n * k), torch.arange(n).repeat_interleave(k)] = best.cpu().reshape(-1)
    return out


def deletions(ids: Tensor) -> Tensor:
    """The string without one of its tokens, every one of them, [n, n - 1]."""
    n = len(ids)
    keep = ~torch.eye(n, dtype=torch.bool)
    return ids.cpu().repeat(n, 1)[keep].reshape(n, n - 1)


def likely_tokens(said: Tensor, allowed: Tensor, num: int, rng: Generator) -> Tensor:
    """Tokens the model itself might say at each place, drawn without replacement; said: log-probabilities [n, V].

    Returns: [n, k], k at most the number of allowed tokens.
    """
    weights = said[:, : len(allowed)].exp().cpu().double().clamp(min=1e-30) * allowed.cpu()
    return torch.multinomial(weights, min(num, int(allowed.sum())), generator=rng)


def insertions(ids: Tensor, likely: Tensor, width: int, rng: Generator) -> Tensor:
    """`width` strings with one token more: at a place drawn, a token drawn from those likely there [n + 1, k]."""
    n = len(ids)
    places = torch.randint(n + 1, (width,), generator=rng)
    new = likely[places, torch.randint(likely.shape[1], (width,), generator=rng)]
    out = torch.empty(width, n + 1, dtype=torch.long)
    behind = (torch.arange(n + 1) > places.unsqueeze(-1)).long()
    out[:] = torch.cat([ids.cpu(), ids.cpu()[-1:]])[torch.arange(n + 1) - behind]
    out[torch.arange(width), places] = new
    return out


def distinct(candidates: Tensor, base: Tensor) -> Tensor:
    """The candidates in their order, each once, the unchanged string left out."""
    same = candidates.shape[1] == len(base)
    seen: set[bytes] = {base.cpu().numpy().tobytes()} if same else set()
    rows = []
    for number, row in enumerate(candidates.numpy()):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            rows.append(number)
    return candidates[rows]


def survivors(
    draw: Callable[[int], Tensor], survive: Callable[[Tensor], Tensor] | None, base: Tensor, width: int
) -> Tensor:
    """Distinct candidates that are read back as they are, at most `width`; drawn again while there are fewer than half.

    Args:
        draw: the candidates of a round. survive: which of them are read back, [N] bool; None: all.
    """
    for number in range(ROUNDS):
        drawn = draw(number)
        if number == 0:
            tried = found = drawn[:0]
        fresh = distinct(torch.cat([tried, drawn]), base)[len(tried) :]
        tried = torch.cat([tried, fresh])
        found = torch.cat([found, fresh if survive is None or not len(fresh) else fresh[survive(fresh).cpu()]])
        if 2 * len(found) >= width or not len(fresh):
            break
    return found[:width]
