"""Relearning: a few steps on a part of what was forgotten; the rest is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from expunge.data.examples import stream_of
from expunge.errors import RecipeError
from expunge.forget import forget
from expunge.models import clone
from expunge.registry import attack, term
from expunge.run import Run
from expunge.types import Data, Event, Stream, Subject


@attack("relearn", changes="weights")
def relearn(
    subject: Subject,
    data: Data,
    *,
    steps: int = 20,
    share: float = 0.2,
    lr: float = 1e-5,
    batch_size: int = 8,
    scope: Any = "all",
    on: str = "forget",
    seed: int = 0,
) -> Iterator[Subject]:
    """Fine-tune a copy on a random part of the forget set; what comes back is measured on the other part.

    Args:
        steps: optimiser steps, constant rate. share: part of the stream shown, in (0, 1).
        lr, batch_size, scope: as in a forget stage.
        on: the stream to relearn from. seed: of the choice of the part.
    Returns: one subject; the examples it was shown are in `exposed` and are not scored.
    Cost: one copy of the model, `steps` forwards and backwards.
    Source: Lucki et al. 2024 (arXiv 2409.18025), 3b. Differences: full weights by default, answers only, and the
        scored examples are never the ones trained on.
    """
    if not 0 < share < 1:
        raise RecipeError(
            "attacks.relearn.share", f"got {share}", "a number between 0 and 1", "Leave some examples to score"
        )
    examples = stream_of(data, on, "attacks.relearn.on").examples
    size = max(1, round(share * len(examples)))
    rows = sorted(np.random.default_rng(seed).permutation(len(examples))[:size])
    shown = tuple(examples[int(row)] for row in rows)
    stage = forget(
        terms=[term("nll", on="shown")],
        scope=scope,
        lr=lr,
        steps=steps,
        batch_size=batch_size,
        optimizer={"use": "adamw", "decay": "constant", "weight_decay": 0.0},
    )
    run = Run(seed=seed, device=str(subject.model.device))
    changed = stage(clone(subject), Data(shown=Stream("shown", "forget", shown)), run)
    cost = changed.lineage[-1].cost
    exposed = frozenset(example.id for example in shown)
    event = Event("attack", "relearn", {"steps": steps, "share": share, "lr": lr}, cost, exposed)
    yield replace(changed, lineage=(*subject.lineage, event))
