"""Membership inference: can the forget set be told from text of the same kind that was never seen?"""

from __future__ import annotations

from typing import Literal

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import Table, Tables
from expunge.metrics.rows import Ragged, by_id, ragged, row_column
from expunge.metrics.separation import auc, auc_interval, tpr_at_fpr
from expunge.metrics.stats import Floats
from expunge.registry import metric
from expunge.types import Needs, Score

MembershipScore = Literal["loss", "min_k", "min_k_plus_plus", "zlib"]

SMALLEST_SIGMA = 1e-6  # a certain prediction has no spread; min-k++ divides by it


def smallest_mean(column: Ragged, share: float) -> Floats:
    """Mean of the smallest `share` of the values of each row, at least one value: max(1, floor(share n)), [rows]."""
    order = np.lexsort((column.values, column.owner))
    count = np.maximum(1, np.floor(share * column.n + 1e-9).astype(np.int64))
    taken = column.position < count[column.owner]  # rows are contiguous, so places within a row are its ranks
    sums = np.bincount(column.owner[taken], weights=column.values[order][taken], minlength=len(column.n))
    return np.asarray(sums / count)


def membership_scores(table: Table, *, score: MembershipScore = "loss", share: float = 0.2) -> dict[str, float]:
    """Membership score by example id, higher = more member-like.

    l_t = log p(x_t | x_<t). loss: mean l_t. zlib: mean l_t / bytes of the compressed text. min_k: mean of the smallest
    share of l_t. min_k_plus_plus: the same of (l_t - mu_t) / sigma_t, with mean and deviation of log p(v), v ~ p.
    """
    column = ragged(table, "logp")
    if not column.ids:
        return {}
    if score == "loss":
        values = column.means()
    elif score == "zlib":
        values = np.asarray(column.means() / row_column(table, "zlib", column))
    elif score == "min_k":
        values = smallest_mean(column, share)
    else:
        mean, variance = ragged(table, "mean").values, ragged(table, "var").values
        sigma = np.maximum(np.sqrt(np.maximum(variance, 0.0)), SMALLEST_SIGMA)
        standard = np.asarray((column.values - mean) / sigma)
        values = smallest_mean(Ragged(standard, column.owner, column.n, column.ids), share)
    return by_id(column.ids, values)


@metric(
    "membership",
    Needs("tokens", columns=("logp", "zlib", "mean", "var"), sets=("stream", "holdout")),
    unit="AUC", better="oracle", roles=("forget",),
)
def membership(tables: Tables, *, score: MembershipScore = "loss", share: float = 0.2) -> Score:
    """Membership inference: AUC of a score between this stream (members) and the stream `holdout` (non-members).

    AUC = P(member > non-member) + ties / 2, with the score's definition in `membership_scores`.

    Args:
        tables: token tables of this stream and of `holdout`.
        score: "loss", "min_k", "min_k_plus_plus" or "zlib".
        share: of the tokens that min_k and min_k_plus_plus look at, in (0, 1]; at least one token.
    Returns: AUC in [0, 1], 0.5 = indistinguishable; far below 0.5 leaks as well, so the target is the oracle's value.
        Interval: stratified bootstrap. Per example of this stream its score. `reason`: TPR at low FPR with exact
        intervals. If the two streams differ in topic or date, AUC measures that and not membership.
    Cost: 1 forward per example, shared.
    Source: Yeom et al. 2018; Carlini et al. 2021 (zlib); Shi et al. 2023 (arXiv 2310.16789); Zhang et al. 2024
        (arXiv 2404.02936).
    """
    if not 0 < share <= 1:
        raise RecipeError("membership.share", f"got {share!r}", "accepted: a number in (0, 1]", "Correct the value")
    members = membership_scores(tables.get("tokens"), score=score, share=share)
    outside = membership_scores(tables.get("tokens", set="holdout"), score=score, share=share)
    if not members or not outside:
        where = "holdout" if members else tables.stream
        return Score.missing(f"stream '{where}' has no example with a counted token", "AUC", "oracle")
    a, b = (np.array([found[key] for key in sorted(found)]) for found in (members, outside))
    if np.isnan(a).any() or np.isnan(b).any():
        return Score.missing(f"the {score} score of an example is NaN", "AUC", "oracle")
    return Score(auc(a, b), auc_interval(a, b), members, len(a), "AUC", "oracle", "ok", _rates(a, b))


def _rates(members: Floats, outside: Floats) -> str:
    parts = [f"{len(members)} members, {len(outside)} non-members"]
    for fpr in (0.01, 0.1):
        rate, (low, high) = tpr_at_fpr(members, outside, fpr)
        parts.append(f"TPR at {fpr:.0%} FPR = {rate:.3f} [{low:.3f}, {high:.3f}]".replace("%", " %"))
    parts.append(f"smallest meaningful FPR 1/{len(outside)} = {1 / len(outside):.2g}")
    return "; ".join(parts)
