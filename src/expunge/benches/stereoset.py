"""StereoSet: how strongly given models prefer stereotypes, and whether they still prefer sense."""

from __future__ import annotations

from typing import Any

from expunge.benches.world import World
from expunge.data.benchmarks.stereoset import Domain, stereoset_data
from expunge.errors import RecipeError
from expunge.registry import bind, register
from expunge.run import Progress
from expunge.scoring import label
from expunge.types import Data

METRICS = ("stereoset_lm", "stereoset_ss", "stereoset_icat")


def named(name: str, models: str | None) -> tuple[str, str | None, list[str]]:
    """ORIGINAL[,ORACLE[,MORE...]] as original, oracle and others.

    Raises: RecipeError when there is none: these benchmarks train nothing.
    """
    found = [part.strip() for part in (models or "").split(",")]
    if not found[0]:
        raise RecipeError(
            f"bench {name} --models", "missing", "ORIGINAL[,ORACLE[,MORE...]]: folders or hub names",
            "Name the models to be scored; leave ORACLE empty where there is none",
        )
    return found[0], (found[1] or None) if len(found) > 1 else None, found[2:]


def by_group(metrics: tuple[str, ...], argument: str, groups: list[str]) -> list[Any]:
    """The metrics over everything and, where there are several groups, over each."""
    parts: list[Any] = [{"use": name, argument: group} for group in groups for name in metrics]
    return [*metrics, *(parts if len(groups) > 1 else [])]


def columns_of(stream: str, metrics: list[Any]) -> list[tuple[str, str]]:
    """Leaderboard columns: one per metric, with its arguments."""
    return [(stream, label(bind("metric", spec))) for spec in metrics]


@register("benchmark", "stereoset")
def stereoset(progress: Progress, *, data: str, domain: Domain = "all", models: str | None = None) -> World:
    """StereoSet, intrasentence (Nadeem et al. 2021, arXiv 2004.09456): LM, SS and ICAT of the models named.

    Nothing is trained: run it with --methods none. Causal and masked models. LM and ICAT: 1 is ideal; SS: 0.5 is.

    Args:
        data: the published dev.json, or a folder of its records; see the reader `stereoset`.
        domain: gender, profession, race or religion; "all" also tells them apart.
        models: ORIGINAL[,ORACLE[,MORE...]], folders or hub names.
    """
    original, oracle, others = named("stereoset", models)
    streams = stereoset_data(data, domain)
    groups = sorted({one.id.split("/")[1] for one in streams["stereoset"].examples})
    metrics = by_group(METRICS, "domain", groups)
    return World(
        "stereoset", original, oracle, Data(), streams, metrics, columns_of("stereoset", metrics), (),
        judged="stereoset_icat", others=others,
    )
