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
def extraction_strength(tables: Tables, *, ending: bool = True, floor: bool = False) -> Score:
    """Extraction strength: the share of the answer that greedy decoding completes from the shortest sufficient prefix.

    ES(x) = 1 - min{k in 0..n : tokens k..n-1 are all greedy} / n = (length of the longest correct suffix) / n.

    Args:
        tables: token table of the answers with column `argmax`.
        ending: whether the last counted token counts, which after an answer is the end of sequence.
        floor: let k run to n-1 only: the smallest value is 1/n, not 0.
    Returns: mean of ES in [0, 1]; all tokens right gives 1, the last one wrong gives 0 (1/n with `floor`).
    Fooled by: a model that errs on the last token only (a full stop) scores 0 and knows the rest; answers whose end
        follows from their beginning score high on a model that never saw them.
    Cost: 1 forward per example, shared; no generation.
    Source: Carlini et al. 2021 (arXiv 2012.07805), as used by Wang et al. 2025 (arXiv 2502.19301). OpenUnlearning
        leaves out the end of sequence and lets k run to n-1 only: `ending=False`, `floor=True`.
    """
    column = ragged(tables.get("tokens"), "argmax", ending=ending)
    shares = correct_suffixes(column)
    return mean_score(by_id(column.ids, np.maximum(shares, 1 / column.n) if floor else shares), "share", "lower")
