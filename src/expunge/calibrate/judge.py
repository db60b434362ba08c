"""From the values of a metric on many models to a word about it. Numbers in, numbers out; nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from scipy import special, stats

from expunge.metrics.separation import auc, auc_interval
from expunge.metrics.stats import Interval, bootstrap_ci, constant_interval
from expunge.types import Better

BELIEVED_AUC = 0.9  # to believe a metric, it must order this share of the pairs (knows, does not) rightly
DOUBTED_AUC = 0.7  # below, it is not to be believed at all
BELIEVED_ROBUSTNESS = 0.7  # to believe what it says of an unlearned model, this much of it must stand every attack
LEAST_MARGIN = 0.05  # the hardest variants of the two pools must lie this part of the metric's range apart
LARGEST_P = 0.05  # an AUC that a chance split of the same models reaches more often is no evidence
KEPT_UTILITY = 0.8  # unlearned models that kept less of what they were to keep say nothing about metrics
BOOTSTRAPPED_FROM = 10  # models in each pool; with fewer the interval is that of a rate in so many trials
MOST_SPLITS = 20_000  # splits of the pools that are counted out one by one
NOTHING = 0.05  # of the distance between the pools: a smaller gain is noise, nothing came back
COMPARED = "weights"  # attacks that change these teach any model something: twins without the knowledge are the measure

Record = Mapping[str, Any]


def small_interval(value: float, n: int, level: float = 0.95) -> Interval:
    """Interval of an AUC of few models: that of a rate of the same size in `n` trials, without rounding to counts.

    [Beta(a/2; k, n-k+1), Beta(1-a/2; k+1, n-k)], k = n AUC. Clopper-Pearson where k is whole. The variance of an AUC
    is at most AUC (1 - AUC) / min(present, absent), whatever the distributions (Birnbaum and Klose 1957), so with
    n = min(present, absent) this errs on the wide side.
    """
    tail, k = (1 - level) / 2, value * n
    low = 0.0 if k <= 0 else float(special.betaincinv(k, n - k + 1, tail))
    high = 1.0 if k >= n else float(special.betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def permutation_p(present: Sequence[float], absent: Sequence[float], *, two_sided: bool) -> float:
    """How often a chance split of these models into pools of the same sizes has an AUC as high as this one.

    Exact: every split is counted (up to 20,000 of them; the normal approximation above). two_sided: as far from 1/2,
    for a metric whose direction was read off the same models.
    """
    values, size = np.array([*present, *absent], dtype=np.float64), len(present)
    if math.comb(len(values), size) > MOST_SPLITS:
        side = "two-sided" if two_sided else "greater"
        return float(stats.mannwhitneyu(present, absent, alternative=side, method="asymptotic").pvalue)
    ranks = stats.rankdata(values)
    sums = np.array([ranks[list(rows)].sum() for rows in combinations(range(len(values)), size)])
    middle, seen = size * (len(values) + 1) / 2, ranks[:size].sum()
    if two_sided:
        return float(np.mean(np.abs(sums - middle) >= abs(seen - middle) - 1e-9))
    return float(np.mean(sums >= seen - 1e-9))


def faithfulness(present: Sequence[float], absent: Sequence[float], better: Better) -> dict[str, Any]:
    """AUC of a metric between models that know and models that do not, knowing ones above.

    Args:
        present, absent: its value on each model; at least one each.
        better: as the metric declares for the forget stream. "oracle" declares no direction: it is the one in which
            these very models differ, which is told (`found`) and paid for by a two-sided p.
    Returns: auc, ci, p, sign (+1: a higher value means more knowledge), found, and the means and sizes of the pools.
    """
    found = better == "oracle"
    sign = -1 if better == "higher" or (found and auc(present, absent) < 0.5) else 1
    a, b = [sign * value for value in present], [sign * value for value in absent]
    value, few = auc(a, b), min(len(a), len(b))
    ci = auc_interval(a, b) if few >= BOOTSTRAPPED_FROM else small_interval(value, few)
    return {
        "auc": value, "ci": list(ci), "p": permutation_p(a, b, two_sided=found), "sign": sign, "found": found,
        "present": len(a), "absent": len(b), "mean_present": float(np.mean(present)),
        "mean_absent": float(np.mean(absent)),
    }


def margin(metric: str, sign: int, records: Sequence[Record]) -> dict[str, Any]:
    """How far apart the hardest variants of the two pools lie, as a part of the range of all variants' means.

    (lowest mean of a variant that knows - highest mean of one that does not) / (highest - lowest mean of any). An AUC
    sees order alone: 0.978 above 0.977, every time, is an AUC of 1.
    """
    means: dict[tuple[str, str], float] = {}
    for pool, variant in sorted({(one["pool"], one.get("variant", "")) for one in records}):
        members = [one for one in records if (one["pool"], one.get("variant", "")) == (pool, variant)]
        if pool in ("present", "absent") and (values := _values(members, metric)):
            means[pool, variant] = sign * float(np.mean(values))
    knowing = min((mean, variant) for (pool, variant), mean in means.items() if pool == "present")
    other = max((mean, variant) for (pool, variant), mean in means.items() if pool == "absent")
    reach = max(means.values()) - min(means.values())
    told = f"models that know ({knowing[1]}) and do not ({other[1]})"
    return {"margin": (knowing[0] - other[0]) / reach if reach > 0 else None, "hardest": told}


def threshold(present: Sequence[float], absent: Sequence[float]) -> float:
    """Where to cut so that most models are told rightly: above it knows, below it does not (midpoint of best cuts)."""
    values = sorted({*present, *absent})
    cuts = [(low + high) / 2 for low, high in pairwise(values)] or values
    right = [
        np.mean([value > cut for value in present]) + np.mean([value < cut for value in absent]) for cut in cuts
    ]
    best = [cut for cut, rate in zip(cuts, right, strict=True) if rate >= max(right) - 1e-12]
    return float((best[0] + best[-1]) / 2)


def held_against_twins(gain: float, twin_gain: float, reach: float) -> float:
    """Robustness to what teaches any model: min(1, gain of models that never knew / gain of the unlearned one).

    1: it comes back no faster than it would be learned anew, as the metric had said. 0: it was there all along.

    Args:
        gain, twin_gain: in knowledge (a higher value knows more). reach: how far models that know lie above those that
            do not; an unlearned model that gains at most 5 % of it scores 1.
    """
    if gain <= NOTHING * max(0.0, reach):
        return 1.0
    return min(1.0, max(0.0, twin_gain / gain))


def held(before: float, after: float, reach: float) -> float:
    """Robustness to what teaches nothing: 1 - the share of the way back to knowing models that was gone, in [0, 1].

    Args:
        before, after: knowledge of an unlearned model without and with the change. reach: how far models that know lie
            above those that do not, > 0.
    """
    return 1.0 - min(1.0, max(0.0, (after - before) / reach))


def harmonic(values: Sequence[float]) -> float:
    """Harmonic mean; 0 as soon as one value is."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def verdict(found: Mapping[str, Any], attacks: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """A word and its reason: believe, with care, do not believe."""
    size = found["present"] + found["absent"]
    if found["auc"] < DOUBTED_AUC:
        return "do not believe", f"AUC {found['auc']:.2f}: it hardly tells models that know from those that do not"
    doubts = []
    if found["auc"] < BELIEVED_AUC:
        doubts.append(f"AUC {found['auc']:.2f} is under {BELIEVED_AUC}")
    if found["margin"] is not None and found["margin"] < LEAST_MARGIN:
        apart = f"lie {found['margin']:.1%} of its range apart".replace("%", " %")
        doubts.append(f"{found['hardest']} {apart if found['margin'] > 0 else 'overlap'}")
    if found["p"] > LARGEST_P:
        doubts.append(f"{size} models are too few to tell it from chance (p = {found['p']:.2g})")
    for name, attack in attacks.items():
        if attack["robustness"] is None:
            doubts.append(f"{name}: {attack['reason']}")
        elif attack["robustness"] < BELIEVED_ROBUSTNESS:
            doubts.append(f"{name} undoes what it says ({attack['robustness']:.2f})")
    if not attacks:
        doubts.append("no attack was run")
    return ("with care", "; ".join(doubts)) if doubts else ("believe", "")


def judge(metric: str, better: Better, records: Sequence[Record], attacks: Mapping[str, str]) -> dict[str, Any]:
    """Everything there is to say about one metric.

    Args:
        records: of all models, as `work` writes them. attacks: label -> what the attack changes.
    Returns: a row of calibration.json; without faithfulness where too few models have a value, with the reason.
    """
    pools = {pool: _values([one for one in records if one["pool"] == pool], metric) for pool in ("present", "absent")}
    if min(map(len, pools.values())) < 2:
        reasons = [one["reasons"][metric] for one in records if metric in one["reasons"]]
        reason = reasons[0] if reasons else "fewer than two models of a pool have a value"
        return {"metric": metric, "verdict": "n/a", "why": reason}
    found = faithfulness(pools["present"], pools["absent"], better)
    found |= margin(metric, found["sign"], records)
    tried = {name: _attacked(metric, name, changes == COMPARED, found, pools, records)
             for name, changes in attacks.items()}
    known = [attack["robustness"] for attack in tried.values()]
    robust = None if not known or None in known else harmonic(known)
    word, why = verdict(found, tried)
    return {
        "metric": metric, "verdict": word, "why": why, "faithfulness": found, "attacks": tried, "robustness": robust,
        "overall": None if robust is None else harmonic([found["auc"], robust]),
    }


def _values(records: Sequence[Record], metric: str) -> list[float]:
    return [one["values"][metric] for one in records if metric in one["values"]]


def _attacked(
    metric: str, attack: str, compared: bool, found: Mapping[str, Any], pools: Mapping[str, Sequence[float]],
    records: Sequence[Record],
) -> dict[str, Any]:
    """Robustness of a metric to one attack: the mean over unlearned models that it says have forgotten."""
    sign = found["sign"]
    cut = threshold(*([sign * value for value in pools[pool]] for pool in ("present", "absent")))
    kept = [one for one in records if one["pool"] == "unlearned" and one["kept"] >= KEPT_UTILITY]
    called = [one for one in kept if metric in one["values"] and sign * one["values"][metric] <= cut]
    if not called:
        why = "it calls none of the unlearned models forgotten" if kept else "no unlearned model kept its utility"
        return {"robustness": None, "ci": None, "n": 0, "reason": why}
    changes = [change for one in called if (change := _change(one, attack, metric, sign)) is not None]
    if not changes:
        reason = next((one["attacks"].get(attack, {}).get("reasons", {}).get(metric) for one in called), None)
        return {"robustness": None, "ci": None, "n": 0, "reason": reason or "no value after it"}
    reach = sign * (found["mean_present"] - found["mean_absent"])
    if compared:
        twins = [change for one in records if one["pool"] == "absent"
                 if (change := _change(one, attack, metric, sign)) is not None]
        if not twins:
            return {"robustness": None, "ci": None, "n": 0, "reason": "no twin without the knowledge was attacked"}
        gain = float(np.mean([after - before for before, after in twins]))
        shares = [held_against_twins(after - before, gain, reach) for before, after in changes]
    else:
        if reach <= 0:
            return {"robustness": None, "ci": None, "n": 0, "reason": "models that know do not lie above the others"}
        shares = [held(before, after, reach) for before, after in changes]
    interval = constant_interval(shares[0], len(shares)) if len(shares) == 1 else bootstrap_ci(shares, bounds=(0, 1))
    told = {"robustness": float(np.mean(shares)), "ci": None if interval is None else list(interval), "n": len(shares)}
    return told | ({} if compared else {"ratio": _ratio(changes)})


def _change(record: Record, attack: str, metric: str, sign: int) -> tuple[float, float] | None:
    """Knowledge before and after an attack; the worst of several results."""
    state = record["attacks"].get(attack)
    if state is None:
        return None
    before = (state["before"] or record)["values"].get(metric)
    after = [sign * one["values"][metric] for one in state["after"] if metric in one["values"]]
    return None if before is None or not after else (sign * before, max(after))


def _ratio(changes: Sequence[tuple[float, float]]) -> float | None:
    """The quotient of the literature, mean of min(1, before / after); None where a value is not above 0."""
    if any(before <= 0 or after <= 0 for before, after in changes):
        return None
    return float(np.mean([min(1.0, before / after) for before, after in changes]))
