"""TOFU: invented authors in a small model that was taught them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from expunge.benches.grids import TOFU
from expunge.benches.world import Architecture, World, trained
from expunge.compat import TOFU as THEIRS
from expunge.compat import Compat, metrics_of
from expunge.data.benchmarks.tofu import Split, tofu_data
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Example, Stream

METRICS = (
    "forget_quality", "model_utility", "extraction_strength", "truth_ratio", "rouge", "memorization_accuracy",
    "exact_memorization", "probability",
)
ATTACKS = (
    {"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4}, "paraphrase",
)
COLUMNS = (
    ("forget", "forget_quality"), ("retain", "model_utility"), ("forget", "extraction_strength"),
    ("forget", "truth_ratio"), ("forget", "rouge"), ("forget", "memorization_accuracy"),
    ("forget", "exact_memorization"), ("retain", "exact_memorization"),
)
# What it calls exact memorization is our accuracy; settings are chosen by that one as ever.
THEIR_COLUMNS = (
    ("forget", "forget_quality"), ("retain", "model_utility"), ("forget", "privleak"),
    ("forget", "extraction_strength"), ("forget", "truth_ratio"), ("forget", "rouge"),
    ("forget", "memorization_accuracy"), ("retain", "memorization_accuracy"),
)


def unseen(data: str, split: Split, streams: Data) -> tuple[Example, ...]:
    """As many rows as are forgotten of authors nobody was taught; world facts where the world is whole."""
    taught = {one.id for one in streams["full"].examples}
    others = [one for one in tofu_data(data, split)["full"].examples if one.id not in taught]
    return tuple(others[: len(streams["forget"])]) or streams["world_facts"].examples


@register("benchmark", "tofu")
def tofu(
    progress: Progress, *, data: str, split: Split = "forget10", limit_authors: int | None = None,
    models: str | None = None, width: int = 192, compat: Compat = "none",
) -> World:
    """TOFU (Maini et al. 2024, arXiv 2401.06121) with a small model trained here, or with your own.

    Args:
        data: folder with the published files. split: forget01, forget05 or forget10.
        limit_authors: a smaller world of that many authors.
        models: ORIGINAL[,ORACLE] folders instead of training. width: of the model trained.
        compat: "openunlearning" measures by that tool's conventions (docs/openunlearning.md).
    """
    streams = tofu_data(data, split, limit_authors)
    if models:
        original, _, oracle = models.partition(",")
    else:
        made = Architecture(width=width)
        full, kept = streams["full"].examples, streams["retain_train"].examples
        original = str(trained(full, full, made, progress=progress))
        oracle = str(trained(kept, full, made, progress=progress))
    forget = tuple(replace(one, alternative=one.perturbed[0]) for one in streams["forget"].examples)
    training = Data(
        forget=Stream("forget", "forget", forget),  # where a method learns another answer, it is the first false one
        retain=Stream("retain", "retain", streams["retain_train"].examples),
        holdout=Stream("holdout", "holdout", unseen(data, split, streams)),
    )
    audited = Data({name: streams[name] for name in ("forget", "retain", "real_authors", "world_facts")})
    if limit_authors is not None:  # a small world is for many methods: a hundred retained rows instead of 400
        audited["retain"] = replace(streams["retain"], examples=streams["retain"].examples[::4])
    metrics: Sequence[Any] = METRICS
    if compat == "openunlearning":
        metrics = metrics_of(THEIRS, oracle=bool(oracle))
        audited["holdout"] = training["holdout"]  # the non-members of its membership attacks
    columns = COLUMNS if compat == "none" else THEIR_COLUMNS
    return World("tofu", original, oracle or None, training, audited, metrics, columns, ATTACKS, grids=TOFU)
