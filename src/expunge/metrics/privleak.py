"""PrivLeak: is the forget set as hard to tell from unseen text as for a model that never saw it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.data.benchmarks.openunlearning_logs import read_eval
from expunge.errors import RecipeError
from expunge.measure.tables import Tables
from expunge.metrics.membership import both_sides
from expunge.metrics.membership_scores import MembershipScore, check_share, membership_scores
from expunge.metrics.separation import auc, auc_interval, redrawn_auc
from expunge.metrics.shift import NEEDS_TEXTS, shift_remark
from expunge.metrics.stats import Floats, Indices, Interval, bootstrap_of
from expunge.registry import metric
from expunge.types import Needs, Score

UNIT = "%"
SUBJECTS = ("this", "oracle")
NOTHING = "the oracle, too, tells every member from every non-member: nothing to divide by"


def privleak_of(unlearned: float, retrained: float) -> float:
    """100 (AUC_unlearned - AUC_retrained) / AUC_retrained, of two AUCs of the same orientation."""
    if retrained == 0:
        raise ZeroDivisionError("the retrained model's AUC is 0")
    return 100 * (unlearned - retrained) / retrained


@metric(
    "privleak",
    Needs(
        "tokens", columns=("logp", "zlib", "mean", "var"), sets=("stream", "{against}"), subjects=SUBJECTS
    ),
    NEEDS_TEXTS, unit=UNIT, better="oracle", roles=("forget",),
)
def privleak(
    tables: Tables, *, score: MembershipScore = "min_k", share: float = 0.4, against: str = "holdout",
    ending: bool = True, reference: float | str | None = None,
) -> Score:
    """PrivLeak (MUSE): how far the membership AUC lies from that of a model retrained without the data, in percent.

    100 (U - R) / R, U and R = P(non-member scores above member) + ties / 2 of this model and of the oracle: the
    unseen texts of `against` are the positive class, so U = 1 - AUC of `membership`, and likewise R.

    Args:
        tables: token tables of this model and of the oracle, of this stream and of `against`; examples both have.
        score: as `membership`. share: of the tokens that min_k and min_k_plus_plus look at, in (0, 1].
        against: the stream of non-members. ending: as `membership`.
        reference: what stands in for the oracle: its AUC as `membership` tells it, in [0, 1], or a TOFU_EVAL.json or
            MUSE_EVAL.json of OpenUnlearning, for score "min_k". OpenUnlearning takes 0.5 where it has none.
    Returns: 0 = as the oracle. -100 = every forget text is recognised (U = 0): nothing was removed. Above 0 = forget
        texts look less familiar than unseen ones: too much was removed, and that can be seen too; at most
        100 (1 - R) / R, +100 where R = 0.5. Interval: bootstrap, the same examples redrawn in both models. Per example
        of this stream its score minus the oracle's. n/a without an oracle, and where the oracle, too, tells all apart.
    Fooled by: what fools `membership`; a shift of the split moves R from 0.5, and the ratio then counts leaks of one
        sign for more. One number hides which texts leak.
    Cost: 1 forward per example and model, shared.
    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460). OpenUnlearning computes the same from AUC of the opposite sign.
    """
    check_share(share, "privleak.share")
    scored = {
        (subject, name): membership_scores(
            tables.get("tokens", set=name, subject=subject), score=score, share=share, ending=ending
        )
        for subject in (SUBJECTS if reference is None else SUBJECTS[:1]) for name in ("stream", against)
    }
    if reference is not None:
        members, outside = (scored["this", name] for name in ("stream", against))
        found = both_sides(tables, members, outside, score=score, against=against, unit=UNIT)
        if isinstance(found, Score):
            return found
        return leak_of(found, _given(reference, score), shift_remark(tables, against), members)
    shared = {name: sorted(scored["this", name].keys() & scored["oracle", name].keys()) for name in ("stream", against)}
    sides = []
    for subject in SUBJECTS:
        members, outside = ({key: scored[subject, name][key] for key in shared[name]} for name in ("stream", against))
        found = both_sides(tables, members, outside, score=score, against=against, unit=UNIT)
        if isinstance(found, Score):
            return found
        sides.append((found[1], found[0]))  # the positive class first
    (unlearned, retrained), remark = (auc(*side) for side in sides), shift_remark(tables, against)
    if retrained == 0:
        return Score.missing("; ".join(filter(None, [NOTHING, remark])), UNIT, "oracle")
    value = privleak_of(unlearned, retrained)
    told = [f"membership AUC {1 - unlearned:.3f}, of the oracle {1 - retrained:.3f}", remark]
    gaps = {key: scored["this", "stream"][key] - scored["oracle", "stream"][key] for key in shared["stream"]}
    ci = leak_interval(sides, value)
    return Score(value, ci, gaps, len(gaps), UNIT, "oracle", "ok", "; ".join(filter(None, told)))


def _given(reference: float | str, score: str) -> float:
    """AUC of `membership` of what stands in for the oracle."""
    if isinstance(reference, str) and score != "min_k":
        raise RecipeError("privleak.reference", f"a log, with score '{score}'", "min_k", "Give the AUC as a number")
    value = auc(*read_eval(reference).min_k()) if isinstance(reference, str) else reference
    if not 0 <= value <= 1:
        raise RecipeError("privleak.reference", f"an AUC of {value}", "accepted: a number in [0, 1]", "Correct it")
    return value


def leak_of(sides: tuple[Floats, Floats], reference: float, remark: str, each: Mapping[str, float]) -> Score:
    """PrivLeak of scores [members, non-members] against an AUC that is given; its interval is this model's alone."""
    if reference == 1:
        return Score.missing("; ".join(filter(None, [NOTHING, remark])), UNIT, "oracle")
    value, (low, high) = auc(*sides), auc_interval(*sides)
    told = [f"membership AUC {value:.3f}, of the reference {reference:.3f} as given", remark]
    ends = privleak_of(1 - high, 1 - reference), privleak_of(1 - low, 1 - reference)
    found = privleak_of(1 - value, 1 - reference)
    ordered = {key: each[key] for key in sorted(each)}
    return Score(found, ends, ordered, len(sides[0]), UNIT, "oracle", "ok", "; ".join(filter(None, told)))


def leak_interval(sides: Sequence[tuple[Floats, Floats]], value: float) -> Interval:
    """Interval of the ratio over redrawn examples, the same ones in both models.

    Where no draw moves it (both models tell all apart, or none), that of this model's AUC over the oracle's. A draw in
    which the oracle tells all apart counts half a pair for it, the finest step an AUC can take.
    """
    sizes = [len(part) for part in sides[0]]
    this, oracle = (redrawn_auc(*side) for side in sides)

    def ratios(indices: list[Indices]) -> Floats:
        retrained = np.maximum(oracle(indices), 0.5 / (sizes[0] * sizes[1]))
        return np.asarray(100 * (this(indices) - retrained) / retrained)

    found = bootstrap_of(ratios, sizes)
    if found is None or found[1] - found[0] <= 1e-9:
        retrained = auc(*sides[1])
        low, high = auc_interval(*sides[0])
        found = privleak_of(low, retrained), privleak_of(high, retrained)
    return min(found[0], value), max(found[1], value)
