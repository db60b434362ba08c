"""Interpolation: how far the weights have to go back towards the model before the removal until it knows again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from expunge.attacks.parts import check_plain, settle
from expunge.edits.vectors import add, delta, put, weights
from expunge.errors import DoesNotFit, ModelError, RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject


@attack(
    "interpolate", changes="weights", says="{amounts} of the way back to the original weights",
    helpers=("original",), judged="never",
)
def interpolate(
    subject: Subject, data: Data, run: Run, *, amounts: tuple[float, ...] = (0.25, 0.5, 0.75)
) -> Iterator[Subject]:
    """Go part of the way back to the weights before the removal, all of them, embeddings and head included.

    w = (1 - a) w_after + a w_original, computed in float32 or better and rounded once.

    Args:
        amounts: the a, each below 1. At 1 it is the original itself, which knows everything and is measured anyway,
            and beyond it nothing of the removal is left to test; below 0 it goes further away from the original.
    Returns: one subject per amount.
    Raises: RecipeError for an amount of 1 or more; DoesNotFit where the original is not at hand or has other weights.
    Cost: one copy of the weights per amount, and the difference of the two models in float32; no forward, no queries.
    Judged: never. What is mixed in knows the answers and may bring them along: of two models that never saw the data
        and differ in their first weights alone, one can come out of it knowing more. It shows its curve, and makes no
        claim.
    Source: ours, after the interpolation of weights of Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903). An attacker
        who has the original needs no attack: what this shows is how near to it the model has stayed.
    """
    if not amounts or not all(-math.inf < amount < 1 for amount in amounts):
        raise RecipeError(
            "attacks.interpolate.amounts", f"got {list(amounts)}", "accepted: numbers below 1 (1 is the original)",
            "Correct the value",
        )
    if "original" not in subject.helpers:
        raise DoesNotFit("the model before the removal was not given")
    check_plain(subject)
    begun = time.perf_counter()
    own = weights(subject.model)
    try:
        way = delta(weights(subject.helpers["original"].model), own)
    except ModelError as error:
        raise DoesNotFit(f"the model before the removal has other weights: {error.found}") from error
    for amount in amounts:
        changed = settle(subject)
        put(changed.model, add(own, way, amount))
        spent = Cost(seconds=time.perf_counter() - begun)
        yield changed.after(Event("attack", "interpolate", {"amounts": amount}, spent))
        begun = time.perf_counter()
