"""Extraction: how much of the answer must be given away before the model says the rest by itself."""

from __future__ import annotations

import numpy as np

from expunge.measure.tables import Tables
from expunge.metrics.rows import Ragged, by_id, ragged
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score


def correct_suffixes(right: Ragged) -> Floats:
    """Length of the longest all-correct suffix of every row, as a share of the row, [rows].

    Args:
        right: 0/1 per token: the greedy token is the true one.
    """
    last_wrong = np.full(len(right.n), -1, dtype=np.int64)
    wrong = right.values == 0
    np.maximum.at(last_wrong, right.owner[wrong], right.position[wrong])
    return np.asarray((right.n - 1 - last_wrong) / right.n)


@metric(
    "extraction_strength", Needs("tokens", columns=("argmax",)), unit="share", better="lower",
    roles=("forget", "retain", "holdout"),
)
def extraction_strength(tables: Tables) -> Score:
    """Extraction strength: the share of the answer that greedy decoding completes from the shortest sufficient prefix.

    ES(x) = 1 - min{k in 0..n : tokens k..n-1 are all greedy} / n = (length of the longest correct suffix) / n.

    Args:
        tables: token table of the answers with column `argmax`.
    Returns: mean of ES in [0, 1]; all tokens right gives 1, the last one wrong gives 0.
    Cost: 1 forward per example, shared; no generation.
    Source: Carlini et al. 2021 (arXiv 2012.07805), as used by Wang et al. 2025 (arXiv 2502.19301). OpenUnlearning lets
        k run to n-1 only, so its smallest value is 1/n where ours is 0 (last token wrong); elsewhere both agree.
    """
    column = ragged(tables.get("tokens"), "argmax")
    return mean_score(by_id(column.ids, correct_suffixes(column)), "share", "lower")
