"""How far apart two samples of scores lie: AUC, TPR at a FPR, Kolmogorov-Smirnov. Numbers in, numbers out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from expunge.metrics.stats import (
    Floats,
    Indices,
    Interval,
    bootstrap_of,
    clopper_pearson,
    constant_interval,
    resamples,
)

Sample = Sequence[float] | Floats
MOST_EXACT = 10_000  # scipy turns to the asymptotic p-value above


def _codes(a: Sample, b: Sample) -> tuple[Indices, Indices, int]:
    """Dense ranks of both samples in their union, and how many distinct values there are."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(first) == 0 or len(second) == 0:
        raise ValueError(f"samples of {len(first)} and {len(second)} values: wanted at least one each")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a value is NaN")
    distinct, inverse = np.unique(np.concatenate([first, second]), return_inverse=True)
    codes = inverse.reshape(-1).astype(np.int64)
    return codes[: len(first)], codes[len(first) :], len(distinct)


def _histograms(codes: Indices, size: int) -> Floats:
    """Counts per distinct value of every draw: [draws, n] -> [draws, size]."""
    draws = len(codes)
    flat = (codes + size * np.arange(draws)[:, None]).reshape(-1)
    return np.bincount(flat, minlength=draws * size).reshape(draws, size).astype(np.float64)


def _areas(a: Floats, b: Floats) -> Floats:
    below = b.cumsum(1) - b / 2  # of b below each value, ties half
    return np.asarray((a * below).sum(1) / (a.sum(1) * b.sum(1)))


def _gaps(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.abs(a.cumsum(1) / a.sum(1)[:, None] - b.cumsum(1) / b.sum(1)[:, None]).max(1))


def auc(members: Sample, nonmembers: Sample) -> float:
    """Area under the ROC curve: the chance that a member scores above a non-member.

    P(m > n) + P(m = n) / 2.

    Args:
        members, nonmembers: scores, higher = more member-like; infinities are ordered, NaN is an error.
    Returns: in [0, 1]; 0.5 = cannot be told apart.
    Cost: one sort of all scores.
    """
    a, b, size = _codes(members, nonmembers)
    return float(_areas(_histograms(a[None], size), _histograms(b[None], size))[0])


def auc_interval(
    members: Sample, nonmembers: Sample, *, groups: tuple[Indices | None, Indices | None] = (None, None),
    num: int = 2000, level: float = 0.95, seed: int = 0,
) -> Interval:
    """Bootstrap interval of `auc`, members and non-members redrawn apart.

    Perfect separation and all-tied scores leave no spread to resample; then the interval is that of a constant rate
    in as many trials as the smaller sample has (Clopper-Pearson at 0 and 1), never of width zero.

    Args:
        groups: of each side the group of every value, [values], or None where each stands for itself. Whole groups are
            redrawn then, and the interval is widened by t_(G-1) / z sqrt(G / (G - 1)) for the G groups of the smaller
            side: few groups show too little of their own spread.
    """
    sides = zip((members, nonmembers), groups, strict=True)
    sizes = [len(side) if of is None else len(np.unique(of)) for side, of in sides]
    found = bootstrap_of(redrawn_auc(members, nonmembers, groups), sizes, num=num, level=level, seed=seed)
    value, few = auc(members, nonmembers), min(sizes)
    if found is None or found[1] - found[0] <= 1e-12:
        return constant_interval(value, few, level=level)
    if (groups[0] is None and groups[1] is None) or few < 2:
        return found
    tail = (1 + level) / 2
    wider = float(special.stdtrit(few - 1, tail) / special.ndtri(tail)) * math.sqrt(few / (few - 1))
    return max(0.0, value - wider * (value - found[0])), min(1.0, value + wider * (found[1] - value))


def redrawn_auc(
    members: Sample, nonmembers: Sample, groups: tuple[Indices | None, Indices | None] = (None, None)
) -> Callable[[list[Indices]], Floats]:
    """`auc` of redrawn samples, as `bootstrap_of` wants it: indices [draws, size] of both -> AUC [draws].

    groups: what is redrawn on each side are these instead of single values; see `auc_interval`.
    """
    a, b, size = _codes(members, nonmembers)

    def drawn(codes: Indices, of: Indices | None, indices: Indices) -> Floats:
        if of is None:
            return _histograms(codes[indices], size)
        num = len(np.unique(of))
        held = np.zeros((num, size))  # how often each distinct value stands in each group
        np.add.at(held, (np.unique(of, return_inverse=True)[1], codes), 1.0)
        return np.asarray(_histograms(indices, num) @ held)

    def areas(indices: list[Indices]) -> Floats:
        return _areas(drawn(a, groups[0], indices[0]), drawn(b, groups[1], indices[1]))

    return areas


def tpr_at_fpr(members: Sample, nonmembers: Sample, fpr: float) -> tuple[float, Interval]:
    """True positive rate at a bounded false positive rate: how many members are named at all safely.

    max over thresholds t of P(member >= t) subject to P(non-member >= t) <= fpr; no interpolation.

    Args:
        members, nonmembers: scores, higher = more member-like.
        fpr: in [0, 1]. With N non-members, anything below 1/N means no false positive at all.
    Returns: (rate in [0, 1], Clopper-Pearson interval; the threshold is taken as given).
    Source: Carlini et al. 2022 (arXiv 2112.03570).
    """
    named = named_at_fpr(members, nonmembers, fpr)
    return float(named.mean()), clopper_pearson(int(named.sum()), len(named))


def named_at_fpr(members: Sample, nonmembers: Sample, fpr: float) -> npt.NDArray[np.bool_]:
    """Which members lie over the threshold of `tpr_at_fpr`, [members]."""
    a, b, _ = _codes(members, nonmembers)
    allowed = math.floor(fpr * len(b) + 1e-9)
    return np.asarray(a > np.sort(b)[::-1][allowed] if allowed < len(b) else np.ones(len(a), dtype=bool))


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """statistic in [0, 1], p-value, and whether the first sample lies above or below the second where they differ.

    exact: False when the p-value is the asymptotic one.
    """

    statistic: float
    p: float
    shift: Literal["above", "below", "none"]
    exact: bool = True


def kolmogorov_smirnov(a: Sample, b: Sample) -> KolmogorovSmirnov:
    """Two-sample Kolmogorov-Smirnov test, two-sided, p-value exact where scipy can (up to 10 000 values).

    max_t |F_a(t) - F_b(t)|; shift "above" means that F_a lies under F_b at the largest gap, so `a` is larger there.
    """
    from scipy.stats import ks_2samp

    with warnings.catch_warnings(record=True) as caught:  # said by `exact`; also when rounding lifts p just above 1
        warnings.simplefilter("always")
        found = ks_2samp(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    exact = not caught and max(len(a), len(b)) <= MOST_EXACT
    statistic = float(found.statistic)
    shift: Literal["above", "below", "none"] = "below" if found.statistic_sign > 0 else "above"
    return KolmogorovSmirnov(statistic, float(found.pvalue), shift if statistic > 0 else "none", exact)


def ks_intervals(
    a: Sample, b: Sample, *, num: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Interval, Interval]:
    """Bootstrap intervals of the Kolmogorov-Smirnov statistic and of its p-value, both samples redrawn apart.

    Resampling adds spread of its own and pushes the statistic up, so the percentile interval is widened where
    needed to hold the value itself. The p-value falls as the statistic rises: its ends are read at the two ends.

    Returns: ((low, high) of the statistic, (low, high) of the p-value).
    Cost: num * (distinct values) numbers, three exact tests.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    codes_a, codes_b, size = _codes(first, second)
    sizes = [len(first), len(second)]
    gaps = np.concatenate([
        _gaps(_histograms(codes_a[i], size), _histograms(codes_b[j], size)) for i, j in resamples(sizes, num, seed)
    ])
    order = np.argsort(gaps, kind="stable")
    ends = {int(order[round(share * (num - 1))]) for share in ((1 - level) / 2, (1 + level) / 2)}
    tests, start = [kolmogorov_smirnov(first, second)], 0
    for i, j in resamples(sizes, num, seed):  # the same draws again: only two of them are tested
        here = [k - start for k in ends if start <= k < start + len(i)]
        tests += [kolmogorov_smirnov(first[i[k]], second[j[k]]) for k in here]
        start += len(i)
    statistics, ps = [test.statistic for test in tests], [test.p for test in tests]
    return (min(statistics), max(statistics)), (min(ps), max(ps))
