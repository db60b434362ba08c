"""The gradient with respect to the string's tokens, [n, V], from the gradient with respect to their vectors.

With e = O W (O one row of ones and zeros per place, W the embedding), d loss / d O = (d loss / d e) W^T: only the
vectors need automatic differentiation, and one product of [n, D] and [D, V] gives the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.attacks.suffix.evaluate import Base, Reader, Slope


@torch.no_grad()
def embedding_scale(embed: Any) -> float:
    """What the embedding module multiplies its rows by (Gemma 3: sqrt(D) inside the module; most: 1)."""
    ids = torch.arange(min(8, len(embed.weight)), device=embed.weight.device)
    row, given = embed.weight[ids].float(), embed(ids).float()
    length = (row * row).sum()
    return float((row * given).sum() / length) if length > 0 else 1.0


def token_slope(readers: Sequence[Reader], bases: Sequence[Base]) -> Tensor:
    """Mean over the problems of d loss / d token, [n, V] float32 or better, on the device of the first.

    Gradients of one model's problems are added before the product; those of several models are brought to length 1 at
    each place first, because their losses change at different rates.

    Cost: 1 forward and backward per problem, and per model one product of [n, D] and [D, V].
    """
    by_model: dict[int, list[tuple[Reader, Slope]]] = {}
    for reader, base in zip(readers, bases, strict=True):
        by_model.setdefault(id(reader.model), []).append((reader, reader.slope(base)))
    slopes = [_of_model([slope for _, slope in found], found[0][0].model) for found in by_model.values()]
    if len(slopes) == 1:
        return slopes[0] / len(readers)
    device = slopes[0].device
    return sum((_unit(slope).to(device) for slope in slopes[1:]), _unit(slopes[0])) / len(slopes)


@torch.no_grad()
def _of_model(slopes: Sequence[Slope], model: Any) -> Tensor:
    embed = model.get_input_embeddings()
    vectors = sum((slope.vectors for slope in slopes[1:]), slopes[0].vectors)
    total: Tensor = (vectors @ embed.weight.to(vectors).T) * embedding_scale(embed)
    total = total.float() if total.dtype.itemsize < 4 else total
    for slope in slopes:
        if slope.logp is not None and slope.said is not None:
            total[:, : slope.said.shape[-1]] += slope.logp.unsqueeze(-1) * slope.said
    return total


def _unit(slope: Tensor) -> Tensor:
    length: Tensor = slope.norm(dim=-1, keepdim=True)
    return slope / length.clamp(min=torch.finfo(slope.dtype).tiny)
