"""Probe sampling: a cheap draft model says which candidates the model itself should read.

Source: Zhao et al. 2024 (arXiv 2403.01251). Difference: the draft may be the first blocks of the same model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor, nn

from expunge.attacks.parts import shallow
from expunge.errors import RecipeError
from expunge.models import blocks
from expunge.types import Subject


def first_blocks(subject: Subject, num: int) -> Subject:
    """The model cut behind its first `num` blocks, with its own last norm and head; it shares every tensor.

    Raises: RecipeError for more blocks than there are, or none.
    """
    changed = shallow(subject)
    found = blocks(changed.model)
    if not 0 < num < len(found):
        raise RecipeError("search.probe", f"got {num}", f"1 to {len(found) - 1} blocks of this model", "Correct it")
    name = found[0][0].rpartition(".")[0]
    above, _, last = name.rpartition(".")
    setattr(changed.model.get_submodule(above), last, nn.ModuleList([block for _, block in found[:num]]))
    config = changed.model.config
    config.num_hidden_layers = num
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num]
    return changed


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


