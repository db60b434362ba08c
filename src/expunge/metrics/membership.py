"""Membership inference: can the forget set be told from text of the same kind that was never seen?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Tables
from expunge.metrics import separation
from expunge.metrics.clusters import codes_of
from expunge.metrics.membership_scores import SMALLEST_SIGMA, MembershipScore, check_share, membership_scores
from expunge.metrics.separation import auc, auc_interval
from expunge.metrics.shift import NEEDS_TEXTS, shift_remark
from expunge.metrics.stats import UNIT, Floats, Indices
from expunge.registry import metric
from expunge.types import Better, Needs, Score

RATES = (0.001, 0.01, 0.05, 0.1)  # false positive rates told beside an AUC
NEEDS = (Needs("tokens", columns=("logp", "zlib", "mean", "var"), sets=("stream", "{against}")), NEEDS_TEXTS)


@metric("membership", *NEEDS, unit="AUC", better="oracle", roles=("forget",))
def membership(
    tables: Tables, *, score: MembershipScore = "loss", share: float = 0.2, against: str = "holdout",
    ending: bool = True, least_sigma: float = SMALLEST_SIGMA,
) -> Score:
    """Membership inference: AUC of a score between this stream (members) and text that was never seen.

    AUC = P(member > non-member) + ties / 2. With l_t = log p(x_t | x_<t) at the counted tokens, loss: mean l_t;
    zlib: mean l_t / bytes of the compressed text; min_k: mean of the smallest share of l_t; min_k_plus_plus: the same
    of (l_t - mu_t) / sigma_t, with mean and deviation of log p(v), v ~ p.

    Args:
        tables: token tables of this stream and of `against`, and their texts.
        score: "loss", "min_k", "min_k_plus_plus" or "zlib". Scores that need more than one forward a text are metrics
            of their own: membership_lowercase, _reference, _neighbourhood, _recall, _gradient.
        share: of the tokens that min_k and min_k_plus_plus look at, in (0, 1]; max(1, floor(share n)) tokens.
        against: the stream of non-members.
        ending: whether the last counted token counts, which after an answer is the end of sequence.
        least_sigma: what sigma_t is held above in min_k_plus_plus; a certain prediction has no spread.
    Returns: AUC in [0, 1], 0.5 = indistinguishable; far below 0.5 leaks as well, so the target is the oracle's value.
        Interval: stratified bootstrap. Per example of this stream its score. `reason`: TPR at 0.1, 1, 5 and 10 % FPR
        with exact intervals, and the smallest FPR that N non-members can show, 1/N.
    Fooled by: members and non-members that differ in topic, date or form (`membership_without_model` tells; `reason`
        says so where it does). A weak score: 0.5 does not prove that nothing is left. Removal that makes forgotten
        text less likely than unseen text drives AUC under 0.5 and is as visible.
    Cost: 1 forward per example, shared.
    Source: Yeom et al. 2018; Carlini et al. 2021 (zlib); Shi et al. 2023 (arXiv 2310.16789); Zhang et al. 2024
        (arXiv 2404.02936). At least one token is always looked at. OpenUnlearning leaves out the end of sequence in
        min_k and min_k_plus_plus and holds sigma above 1e-3: `ending=False`, `share=0.4`, `least_sigma=0.001`.
    """
    check_share(share)
    members, outside = (
        membership_scores(
            tables.get("tokens", set=name), score=score, share=share, ending=ending, least_sigma=least_sigma
        )
        for name in ("stream", against)
    )
    return separated(tables, members, outside, score=score, against=against)


@metric("tpr_at_fpr", *NEEDS, unit="share", better="lower", roles=("forget",))
def tpr_at_fpr(
    tables: Tables, *, score: MembershipScore = "loss", fpr: float = 0.01, share: float = 0.2, against: str = "holdout"
) -> Score:
    """How many members an outsider names while he is almost never wrong: the true at a bounded false positive rate.

    max over thresholds t of P(member >= t) subject to P(non-member >= t) <= fpr; no interpolation.

    Args:
        tables: as `membership`.
        score: as `membership`, higher = more member-like.
        fpr: false positive rate that is allowed, in [0, 1]. Below 1/N for N non-members: no false positive at all.
        share: of the tokens that min_k and min_k_plus_plus look at, in (0, 1].
        against: the stream of non-members.
    Returns: rate in [0, 1]; a score that knows nothing names a share of `fpr`. Interval: Clopper-Pearson, the
        threshold taken as given. Per example of this stream 1 if it is named.
    Fooled by: what fools `membership`. One lucky non-member moves the threshold; with N of them nothing under 1/N can
        be told.
    Cost: 1 forward per example, shared.
    Source: Carlini et al. 2022 (arXiv 2112.03570).
    """
    check_share(share, "tpr_at_fpr.share")
    if not 0 <= fpr <= 1:
        raise RecipeError("tpr_at_fpr.fpr", f"got {fpr!r}", "accepted: a number in [0, 1]", "Correct the value")
    members, outside = (
        membership_scores(tables.get("tokens", set=name), score=score, share=share) for name in ("stream", against)
    )
    given = both_sides(tables, members, outside, score=score, against=against, unit="share", better="lower")
    if isinstance(given, Score):
        return given
    a, b = given
    rate, interval = separation.tpr_at_fpr(a, b, fpr)
    named = dict(zip(sorted(members), separation.named_at_fpr(a, b, fpr).astype(float).tolist(), strict=True))
    reason = _told([_sizes(a, b), _smallest(b), shift_remark(tables, against)])
    return Score(rate, interval, named, len(a), "share", "lower", "ok", reason, bounds=UNIT)


def separated(
    tables: Tables, members: Mapping[str, float], outside: Mapping[str, float], *, score: str, against: str,
    remarks: Sequence[str] = (),
) -> Score:
    """AUC of scores by id as a Score: its interval, rates at low FPR, and what is wrong with the split.

    Args:
        score: its name. against: the stream of non-members. remarks: more to say in `reason`.
    """
    given = both_sides(tables, members, outside, score=score, against=against, remarks=remarks)
    if isinstance(given, Score):
        return given
    a, b = given
    reason = _told([_sizes(a, b), *_rates(a, b), _smallest(b), *remarks, shift_remark(tables, against)])
    ordered = {key: members[key] for key in sorted(members)}
    groups = subjects(tables, sorted(members), "stream"), subjects(tables, sorted(outside), against)
    interval = auc_interval(a, b, groups=groups)
    num = None if groups[0] is None else len(np.unique(groups[0]))
    return Score(auc(a, b), interval, ordered, len(a), "AUC", "oracle", "ok", reason, groups=num)


def subjects(tables: Tables, ids: Sequence[str], set: str) -> Indices | None:
    """The group of every example that shares its subject with others, [examples]; None where none does."""
    try:
        table = tables.get("texts", set=set)
    except NotMeasured:
        return None
    about = {key: name for key, name in zip(table.ids, table.texts("subject"), strict=True) if name}
    return codes_of(ids, about)


def both_sides(
    tables: Tables, members: Mapping[str, float], outside: Mapping[str, float], *, score: str, against: str,
    unit: str = "AUC", better: Better = "oracle", remarks: Sequence[str] = (),
) -> tuple[Floats, Floats] | Score:
    """The scores of both sides in the order of their ids, or why they cannot be compared."""
    if not members or not outside:
        where = against if members else tables.stream
        why = f"stream '{where}' has no example with a counted token"
        return Score.missing(_told([why, *remarks]), unit, better)
    a, b = (np.array([found[key] for key in sorted(found)]) for found in (members, outside))
    if np.isnan(a).any() or np.isnan(b).any():
        return Score.missing(f"the {score} score of an example is NaN", unit, better)
    return a, b


def _told(parts: Sequence[str]) -> str:
    return "; ".join(filter(None, parts))


def _sizes(members: Floats, outside: Floats) -> str:
    return f"{len(members)} members, {len(outside)} non-members"


def _smallest(outside: Floats) -> str:
    return f"smallest meaningful FPR 1/{len(outside)} = {1 / len(outside):.2g}"


def _rates(members: Floats, outside: Floats) -> list[str]:
    found = []
    for fpr in RATES:
        rate, (low, high) = separation.tpr_at_fpr(members, outside, fpr)
        found.append(f"TPR at {100 * fpr:g} % FPR = {rate:.3f} [{low:.3f}, {high:.3f}]")
    return found
