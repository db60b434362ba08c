"""Noise: what a narrow change of the weights hides may come back when all of them are shaken a little."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from expunge.attacks.quantize import apart, exchange
from expunge.errors import RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject


@attack("noise", changes="weights", says="noise of {scale:g} standard deviations on the weights")
def noise(subject: Subject, data: Data, run: Run, *, scale: float = 0.1, seed: int = 0) -> Iterator[Subject]:
    """Add noise to the matrices of the blocks, as large as a share of how much each one's weights differ.

    W <- W + scale * std(W) * N(0, 1), drawn anew for every matrix.

    Args:
        scale: share of the standard deviation of a matrix, > 0; at 0.1 a model says much the same as before.
        seed: of the draw, which depends on it and on the matrix's name alone.
    Returns: one subject.
    Raises: RecipeError for a scale that is not above 0; DoesNotFit for a quantised base.
    Cost: one copy of the matrices; no forward.
    Source: ours; a control for the other attacks on weights: what comes back under noise of the same size was not
        brought back by the direction in which they change them.
    """
    if not 0 < scale < math.inf:
        raise RecipeError("attacks.noise.scale", f"got {scale}", "accepted: a number above 0", "Correct the value")
    begun = time.perf_counter()

    def shaken(name: str, weight: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        drawn = torch.randn(weight.shape, generator=random).to(weight.device)
        wide = weight.float() if weight.dtype.itemsize < 4 else weight
        return wide + scale * wide.std(correction=0) * drawn

    changed = apart(subject)
    exchange(changed.model, shaken)
    yield changed.after(
        Event("attack", "noise", {"scale": scale, "seed": seed}, Cost(seconds=time.perf_counter() - begun))
    )
