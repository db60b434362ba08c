"""Probe sampling: a cheap draft model says which candidates the model itself should read.

Source: Zhao et al. 2024 (arXiv 2403.01251). Difference: the draft may be the first blocks of the same model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from expunge.attacks.logit_lens import ending, readable
from expunge.errors import RecipeError
from expunge.models import blocks
from expunge.types import Subject


def first_blocks(subject: Subject, num: int) -> Subject:
    """The model cut behind its first `num` blocks, with its own last norm and head; it shares every tensor.

    Raises: RecipeError for more blocks than there are, or none; DoesNotFit where it does not work like that.
    """
    most = len(blocks(subject.model)) - 1
    if not 0 < num <= most:
        raise RecipeError("search.probe", f"got {num}", f"1 to {most} blocks of this model", "Correct it")
    inside, (last,) = readable(subject, [num - 1], "search.probe", 1)
    return ending(inside, last)


def agreement(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(values.double().numpy()) for values in (one, other))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def filtered_size(correlation: float, num: int, ratio: float) -> int:
    """How many of `num` candidates the model reads: num (1 - correlation) / (2 ratio), at least 1."""
    return max(1, min(num, int((1 - (1 + correlation) / 2) * num / ratio)))


def probed(
    num: int, score: Callable[[Tensor], Tensor], draft: Callable[[], Tensor], *, share: float, ratio: float,
    rng: Generator,
) -> Tensor:
    """Losses of `num` candidates, infinite for those that were not read.

    Args:
        score: losses by the model of the candidates with these numbers. draft: losses of all by the draft model.
        share: of the candidates in the probe set, on which the two are compared.
    """
    guess = draft()
    probe = torch.randperm(num, generator=rng)[: max(2, round(share * num))]
    out = torch.full((num,), float("inf"), dtype=torch.float64)
    out[probe] = score(probe)
    size = filtered_size(agreement(out[probe], guess[probe]), num, ratio)
    best = guess.argsort(stable=True)[:size]
    fresh = best[out[best].isinf()]
    if len(fresh):
        out[fresh] = score(fresh)
    return out


