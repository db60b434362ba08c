"""Intervals and comparisons: every score has an interval, every comparison a margin and a power.

Random numbers depend on `seed`, the sample sizes and nothing else, so an interval is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured
from expunge.types import Better, Score

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Interval = tuple[float, float]
Values = Mapping[str, float] | Sequence[float] | Floats
Verdict = Literal["equivalent", "different", "undecided"]

UNIT: Interval = (0.0, 1.0)
_CHUNK = 2_000_000  # resampled indices held at once


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
    num: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: Interval | None = None,
) -> Interval | None:
    """Interval of the mean (BCa) or median (percentile) of a sample by resampling its examples.

    BCa reads the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled means, with z0 from the share of
    them below the mean and a = sum d^3 / (6 (sum d^2)^1.5), d = value - mean.

    Args:
        values: one per example.
        bounds: smallest and largest possible value. With (0, 1) a sample of zeros and ones gets Clopper-Pearson.
        num, level, seed: draws, two-sided coverage, seed.
    Returns: (low, high). All values equal: `constant_interval` when bounds are given, otherwise None, for no spread
        can be seen. None as well for an empty sample or one with a value that is not finite.
    Cost: num * len(values) numbers.
    Source: Efron 1987 (BCa).
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0 or not np.isfinite(sample).all():
        return None
    if statistic == "mean" and bounds == UNIT and np.isin(sample, (0.0, 1.0)).all():
        return clopper_pearson(int(sample.sum()), len(sample), level)
    if _constant(sample):
        return None if bounds is None else constant_interval(float(sample[0]), len(sample), bounds, level)
    reduce = np.mean if statistic == "mean" else np.median
    draws = np.concatenate([reduce(sample[i], axis=1) for (i,) in resamples([len(sample)], num, seed)])
    shares = np.array([(1 - level) / 2, (1 + level) / 2])
    if statistic == "mean":
        shares = _bca_shares(sample, draws, shares)
    low, high = np.quantile(draws, shares)
    return float(low), float(high)


def _bca_shares(sample: Floats, draws: Floats, shares: Floats) -> Floats:
    centre = sample.mean()
    below = (np.mean(draws < centre) + np.mean(draws <= centre)) / 2
    if not 0 < below < 1:
        return shares
    deviation = sample - centre
    acceleration = float((deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5))
    moved = special.ndtri(below) + special.ndtri(shares)
    denominator = 1 - acceleration * moved
    if (denominator <= 0).any():
        return shares
    return np.asarray(special.ndtr(special.ndtri(below) + moved / denominator), dtype=np.float64)


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
    return Score(float(values.mean()), ci, ordered, len(values), unit, better, "ok", reason)


@dataclass(frozen=True)
class Equivalence:
    """What a comparison with a margin says. ci90 is the 1 - 2 alpha interval of the difference a - b."""

    difference: float
    ci90: Interval
    margin: float
    power: float
    se: float
    verdict: Verdict


def equivalence(
    a: Values, b: Values, *, margin: float, paired: bool, level: float = 0.95, unit_range: float = 1.0
) -> Equivalence:
    """Two one-sided tests: is the mean of `a` that of `b`, up to a margin?

    equivalent when mean(a) - mean(b) +- t se lies inside (-margin, margin), different when it lies wholly outside,
    otherwise undecided; t at `level`, so the interval is the 1 - 2 alpha = 90 % one.
    A constant sample (paired: constant differences) shows no spread; then t se is at least unit_range * 3 / n, the
    rule of three for what may hide outside n examples, never zero.

    Args:
        a, b: values by example id; paired=True uses the ids both have (and wants mappings).
        margin: largest difference that does not matter, > 0, in units of the values.
        paired: differences per id (Student), otherwise Welch.
        level: of each one-sided test, in (0.5, 1). unit_range: range of a value.
    Returns: Equivalence; power is that of `equivalence_of`.
    Raises: NotMeasured when a sample is empty, no id is shared, or a value is not finite.
    Source: Schuirmann 1987; Hanley and Lippman-Hand 1983 (rule of three).
    """
    if paired:
        if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
            raise TypeError("paired=True pairs by example id: give mappings")
        shared = sorted(a.keys() & b.keys())
        samples = [np.array([a[key] - b[key] for key in shared], dtype=np.float64)]
    else:
        samples = [_array(a), _array(b)]
    if min(map(len, samples)) == 0:
        raise NotMeasured("no example in common" if paired else "no example on one side of the comparison")
    if not all(np.isfinite(sample).all() for sample in samples):
        raise NotMeasured("a value to be compared is not finite")
    difference = float(samples[0].mean() - (0.0 if paired else samples[1].mean()))
    squares = [0.0 if _constant(s) else float(s.var(ddof=1)) / len(s) for s in samples]
    se = math.sqrt(sum(squares))
    weight = sum(q**2 / (len(s) - 1) for q, s in zip(squares, samples, strict=True) if q > 0)
    df = se**4 / weight if weight > 0 else math.inf
    constant = [len(s) for q, s in zip(squares, samples, strict=True) if q == 0]
    if constant:
        se = max(se, unit_range * 3 / min(constant) / _t(level, df))
    return equivalence_of(difference, se, margin=margin, level=level, df=df)


def equivalence_of(
    difference: float, se: float, *, margin: float, level: float = 0.95, df: float = math.inf
) -> Equivalence:
    """The same tests for a difference whose standard error is known: an AUC, a perplexity, a model utility.

    power = max(0, 2 Phi(margin / se - t) - 1): the chance that the tests would succeed if there were no difference.

    Args:
        difference, se: in units of the score, se > 0; from a 95 % interval, se = width / 3.92.
        margin: > 0. level: of each one-sided test. df: degrees of freedom of se; infinite is the normal.
    """
    if not margin > 0:
        raise RecipeError("margin", f"got {margin!r}", "accepted: a number > 0", "Say which difference does not matter")
    reach = _t(level, df) * se
    low, high = difference - reach, difference + reach
    verdict: Verdict = "undecided"
    if -margin < low and high < margin:
        verdict = "equivalent"
    elif low > margin or high < -margin:
        verdict = "different"
    power = max(0.0, 2 * float(special.ndtr((margin - reach) / se)) - 1) if se > 0 else 1.0
    return Equivalence(difference, (low, high), margin, power, se, verdict)


def _t(level: float, df: float) -> float:
    return float(special.ndtri(level)) if math.isinf(df) else float(special.stdtrit(df, level))


def _array(values: Values) -> Floats:
    if isinstance(values, Mapping):
        values = [values[key] for key in sorted(values)]
    return np.asarray(values, dtype=np.float64)
