"""Intervals: every score has one.

Random numbers depend on `seed`, the sample sizes and nothing else, so an interval is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from expunge.types import Better, Score

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Interval = tuple[float, float]
Labels = Sequence[Any] | npt.NDArray[Any]
Method = Literal["bca", "studentised", "percentile"]

UNIT: Interval = (0.0, 1.0)
FEW = 5  # groups, under which resampling them shows nothing
_CHUNK = 2_000_000  # resampled indices held at once
_KEPT = 10_000_000  # counts of a resampling that are kept for the next metric, one byte each
_PIECE = 400_000


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """Exact binomial interval of a rate: k successes out of n trials.

    [Beta(a/2; k, n-k+1), Beta(1-a/2; k+1, n-k)], a = 1 - level; 0 below k = 0 and 1 above k = n.

    Args:
        k, n: counts, 0 <= k <= n, n >= 1.
        level: two-sided coverage, in (0, 1).
    Returns: (low, high), both in [0, 1].
    Source: Clopper and Pearson 1934.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k = {k} successes out of n = {n}: wanted 0 <= k <= n, n >= 1")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail))
    return low, high


def constant_interval(value: float, n: int, bounds: Interval = UNIT, level: float = 0.95) -> Interval:
    """Interval of a bounded mean when all n values are the same, so that no spread can be estimated.

    value +- range * (1 - (a/2)^(1/n)), cut at the bounds: a share of examples that small may well differ, by the
    whole range, without one of them being among n drawn. At 0 or 1 it equals Clopper-Pearson; about 3.7/n wide.
    """
    reach = (bounds[1] - bounds[0]) * (1 - ((1 - level) / 2) ** (1 / n))
    return max(bounds[0], value - reach), min(bounds[1], value + reach)


def resamples(sizes: Sequence[int], num: int, seed: int) -> Iterator[list[Indices]]:
    """Bootstrap draws of several samples, each redrawn on its own (stratified), a chunk of draws at a time.

    Yields: per chunk a list with one index array [draws, size] per sample; all chunks together hold `num` draws.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, min(num, _CHUNK // max(1, sum(sizes))))
    for start in range(0, num, rows):
        yield [rng.integers(0, size, size=(min(rows, num - start), size)) for size in sizes]


def bootstrap_of(
    fn: Callable[[list[Indices]], Floats],
    sizes: Sequence[int],
    *,
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of any statistic of one or several samples.

    Args:
        fn: takes one index array [draws, size] per sample, returns the statistic of each draw [draws].
        sizes: sample sizes.
        num: draws. level: two-sided coverage. seed: of the draws.
    Returns: (low, high), or None when a sample is empty or a draw is not finite.
    Cost: num * sum(sizes) numbers, in chunks.
    Source: Efron and Tibshirani 1993, chapter 13.
    """
    if not sizes or min(sizes) == 0:
        return None
    draws = np.concatenate([fn(indices) for indices in resamples(sizes, num, seed)])
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ci(
    values: Sequence[float] | Floats,
    *,
    statistic: Literal["mean", "median"] = "mean",
    method: Method = "bca",
    groups: Labels | None = None,
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: Interval | None = None,
) -> Interval | None:
    """Interval of the mean or median of a sample by resampling its examples, or whole groups of them.

    BCa reads the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled means, with z0 from the share of
    them below the mean and a = sum d^3 / (6 (sum d^2)^1.5), d = value - mean. Studentised (bootstrap-t):
    mean - q se, q the quantiles of (resampled mean - mean) / resampled se. With groups a group's sum of d takes the
    place of d, the mean is a ratio of resampled sums, and z is sqrt(G/(G-1)) times Student's quantile at G-1, for
    resampling G groups shows only (G-1)/G of their spread. Under 5 groups it is Student's, mean +- t(G-1) se.

    Coverage of 95 % BCa, simulated (rates that differ between groups, correlation 0.3 inside, 1 to 30 examples each):
    rate 0.5: 88 to 93 % with 2 to 4 groups, 91 % with 5, 95 % with 10 to 40; rate 0.1: 88, 88, 91, 93 % with 5, 10,
    20, 40; rate 0.03: 87 to 95 %, for a few groups carry everything. Without the groups: 54 to 62 %. Studentised:
    95 % and more everywhere, at small rates 1.2 to 7 times as wide.

    Args:
        values: one per example.
        statistic: the median knows the percentile interval only, without groups.
        groups: the group of each value; None: every value stands for itself.
        bounds: smallest and largest possible value, where Student's is cut. With (0, 1) a sample of zeros and ones
            without groups gets Clopper-Pearson.
        num, level, seed: draws, two-sided coverage, seed.
    Returns: (low, high). All values (or groups) equal: `constant_interval` of as many trials as there are values
        (groups) when bounds are given, otherwise None, for no spread can be seen. None as well for an empty sample
        or one with a value that is not finite.
    Cost: the draws once per number of values (groups) and seed, 3 ms for 2000 x 4000; then num * len(values).
    Source: Efron 1987 (BCa); Hesterberg 2015, arXiv 1411.5279 (the factor for few groups); Davison and Hinkley 1997.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0 or not np.isfinite(sample).all():
        return None
    if statistic == "median" and not _constant(sample):
        return bootstrap_of(lambda i: np.median(sample[i[0]], axis=1), [len(sample)], num=num, level=level, seed=seed)
    if groups is None and bounds == UNIT and np.isin(sample, (0.0, 1.0)).all():
        return clopper_pearson(int(sample.sum()), len(sample), level)
    value, away, sizes = spread(sample, groups)
    if not away.any():
        return None if bounds is None else constant_interval(value, len(away), bounds, level)
    shares = np.array([(1 - level) / 2, (1 + level) / 2])
    if groups is not None and len(away) < FEW:
        return _student(value, away, sizes, shares, bounds)
    draws = Draws.of(away, sizes, num, seed, spread=method == "studentised")
    if method == "studentised":
        return draws.studentised(value, shares, bounds)
    if groups is not None:
        num_groups = len(away)
        wider = math.sqrt(num_groups / (num_groups - 1)) * special.stdtrit(num_groups - 1, shares)
        shares = special.ndtr(np.clip(wider, -7, 7))  # beyond, a share is 0 or 1 to the last digit
    low, high = value + np.quantile(draws.moved, _bca_shares(away, draws.moved, shares) if method == "bca" else shares)
    return float(low), float(high)


def _student(value: float, away: Floats, sizes: Floats, shares: Floats, bounds: Interval | None) -> Interval:
    """Student's interval of a mean over few groups."""
    size = len(away)
    error = math.sqrt(size / (size - 1) * float((away**2).sum())) / float(sizes.sum())
    low, high = value + special.stdtrit(size - 1, shares) * error
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return float(low), float(high)


def spread(sample: Floats, groups: Labels | None = None) -> tuple[float, Floats, Floats]:
    """The mean of a sample, by how much each group's sum departs from it (all zero: no spread), and group sizes.

    Returns: mean, sum over the group of (value - mean) [groups], number of values [groups]. Without groups every
        value is one.
    """
    value = float(sample[0]) if _constant(sample) else float(sample.mean())
    away, sizes = sample - value, np.ones(len(sample))
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        away = np.bincount(codes, weights=away).astype(np.float64)
        sizes = np.bincount(codes).astype(np.float64)
    tiny = 1e-12 * max(1.0, float(np.abs(sample).max())) * sizes.max()
    return value, np.zeros_like(away) if np.abs(away).max() <= tiny else away, sizes


@dataclass(frozen=True, eq=False)
class Draws:
    """Resampled means, as distances from the mean [num]; and the standard error of each [num], if asked for."""

    moved: Floats
    errors: Floats
    error: float  # of the mean itself

    @staticmethod
    def of(away: Floats, sizes: Floats, num: int, seed: int, *, spread: bool = False) -> Draws:
        columns = [away, sizes] + ([away**2, away * sizes, sizes**2] if spread else [])
        size, sums = len(away), _resampled_sums(columns, num, seed)
        moved = sums[:, 0] / sums[:, 1]
        if not spread:
            return Draws(moved, np.zeros(0), 0.0)
        factor = size / max(1, size - 1)
        squares = sums[:, 2] - 2 * moved * sums[:, 3] + moved**2 * sums[:, 4]
        errors = np.sqrt(factor * np.maximum(squares, 0.0)) / sums[:, 1]
        return Draws(moved, errors, float(np.sqrt(factor * (away**2).sum()) / sizes.sum()))

    def studentised(self, value: float, shares: Floats, bounds: Interval | None) -> Interval | None:
        """The bootstrap-t interval; None where too many draws have no spread to divide by, and no bounds are known."""
        flat = self.errors <= 1e-6 * self.error  # the root of what rounding leaves of a difference of squares
        endless = np.where(self.moved > 0, np.inf, -np.inf)
        ratios = np.where(flat, endless, self.moved / np.where(flat, 1.0, self.errors))
        ratios[flat & (np.abs(self.moved) <= 1e-9 * self.error)] = 0.0
        ends = np.quantile(ratios, shares, method="closest_observation")
        low, high = value - ends[1] * self.error, value - ends[0] * self.error
        if bounds is not None:
            low, high = max(bounds[0], low), min(bounds[1], high)
        return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _resampled_sums(columns: Sequence[Floats], num: int, seed: int) -> Floats:
    """Sum of each column over every draw of `resamples`, [num, columns]: how often a value is drawn, times the value.

    The counts are kept for the next sample of this size: twelve times as fast as drawing again.
    """
    size = len(columns[0])
    sums = []
    if size * num <= _KEPT:
        for piece in _counts(size, num, seed):
            counts = piece.astype(np.float64)
            sums.append([counts @ column for column in columns])
    else:
        sums = [[column[drawn].sum(1) for column in columns] for (drawn,) in resamples([size], num, seed)]
    return np.concatenate([np.stack(each, 1) for each in sums])


@lru_cache(maxsize=8)
def _counts(size: int, num: int, seed: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """How often each of `size` values is drawn, [draws, size], by pieces that fit a processor's cache."""
    pieces: list[npt.NDArray[np.uint8]] = []
    rows = max(1, _PIECE // size)
    for (drawn,) in resamples([size], num, seed):
        flat = (drawn + size * np.arange(len(drawn))[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).astype(np.uint8)
        pieces += [counts[start : start + rows] for start in range(0, len(counts), rows)]
    return tuple(pieces)


def _bca_shares(away: Floats, moved: Floats, shares: Floats) -> Floats:
    tie = 1e-9 * float(np.sqrt((moved**2).mean()))  # sums in another order differ in the last digit
    below = (np.mean(moved < -tie) + np.mean(moved <= tie)) / 2
    if not 0 < below < 1:
        return shares
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    shift = special.ndtri(below) + special.ndtri(shares)
    denominator = 1 - acceleration * shift
    if (denominator <= 0).any():
        return shares
    return np.asarray(special.ndtr(special.ndtri(below) + shift / denominator), dtype=np.float64)


def _constant(sample: Floats) -> bool:
    return bool(np.ptp(sample) <= 1e-12 * max(1.0, float(np.abs(sample).max())))


def mean_score(
    per_example: Mapping[str, float],
    unit: str,
    better: Better,
    binary: bool = False,
    *,
    bounds: Interval | None = UNIT,
    reason: str = "",
) -> Score:
    """The mean over examples as a Score: what most metrics end with.

    Args:
        per_example: value by example id; order does not matter.
        unit, better: as registered.
        binary: every value is 0 or 1; the interval is Clopper-Pearson.
        bounds: range of a value, for the interval of a constant sample; None when unbounded.
        reason: a remark that travels with the score.
    Returns: Score; "n/a" when there is no example or a value is not finite.
    """
    values = np.array([per_example[key] for key in sorted(per_example)], dtype=np.float64)
    if len(values) == 0:
        return Score.missing(reason or "no example with a counted token", unit, better)
    broken = int((~np.isfinite(values)).sum())
    if broken:
        return Score.missing(f"{broken} of {len(values)} values are not finite", unit, better)
    if binary and not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("binary=True, but a value is neither 0 nor 1")
    ci = clopper_pearson(int(values.sum()), len(values)) if binary else bootstrap_ci(values, bounds=bounds)
    if ci is None:
        reason = "; ".join(filter(None, [reason, f"no interval: all {len(values)} values are equal"]))
    ordered = {key: float(per_example[key]) for key in sorted(per_example)}
    return Score(float(values.mean()), ci, ordered, len(values), unit, better, "ok", reason, bounds=bounds)
