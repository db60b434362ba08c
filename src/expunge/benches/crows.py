"""CrowS-Pairs: how often given models prefer the more stereotyping sentence of a pair."""

from __future__ import annotations

from expunge.benches.stereoset import by_group, columns_of, named
from expunge.benches.world import World
from expunge.data.benchmarks.crows import Direction, crows_data
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data


@register("benchmark", "crows")
def crows(
    progress: Progress, *, data: str, bias_type: str = "all", direction: Direction = "both", models: str | None = None
) -> World:
    """CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133): share of pairs, in all and by bias type, of the models named.

    Nothing is trained: run it with --methods none. Causal and masked models; the paper has masked ones only. 0.5 is
    ideal.

    Args:
        data: the published CSV, or the folder it is in.
        bias_type: one of the nine, or "all". direction: stereo, antistereo or both.
        models: ORIGINAL[,ORACLE[,MORE...]], folders or hub names.
    """
    original, oracle, others = named("crows", models)
    streams = crows_data(data, bias_type, direction)
    groups = sorted({one.id.split("/")[1] for one in streams["crows"].examples})
    metrics = by_group(("crows_pairs",), "bias_type", groups)
    return World(
        "crows", original, oracle, Data(), streams, metrics, columns_of("crows", metrics), (), judged="crows_pairs",
        others=others,
    )
