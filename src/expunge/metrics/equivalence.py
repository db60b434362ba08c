"""Two one-sided tests: is a difference shown to be smaller than a margin? If not: how many examples would tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured
from expunge.metrics.clusters import Clusters, codes_of
from expunge.metrics.stats import Floats, Interval, spread

Values = Mapping[str, float] | Sequence[float] | Floats
Verdict = Literal["equivalent", "different", "undecided"]
_MOST = 10**9  # examples: beyond it the number says nothing
_HEAVY = 5.0  # kurtosis (the normal's is 3) above which Student's t trusts too much what few values show


@dataclass(frozen=True)
class Equivalence:
    """What a comparison with a margin says. ci90 is the 1 - 2 alpha interval of the difference a - b.

    power: the chance of "equivalent" if there were no difference. level, df: of each one-sided test.
    n, groups: examples of the first sample and the groups they form; groups None: every example stands alone.
    constant: no spread was seen, `se` comes from the rule of three.
    """

    difference: float
    ci90: Interval
    margin: float
    power: float
    se: float
    verdict: Verdict
    level: float = 0.95
    df: float = math.inf
    n: int = 0
    groups: int | None = None
    constant: bool = False

    @property
    def p(self) -> float:
        """Two-sided p-value of "no difference at all" (not of "within the margin")."""
        if self.se == 0:
            return float(self.difference == 0)
        ratio = -abs(self.difference) / self.se
        return 2 * float(special.ndtr(ratio) if math.isinf(self.df) else special.stdtr(self.df, ratio))

    def needed_examples(self, power: float = 0.8) -> int | None:
        """How many examples (with as many to a group as now) would give this power; None when nothing tells.

        The smallest n with margin >= (t + z) se sqrt(now / n), t at n's degrees of freedom, z = Phi^-1((1+power)/2);
        from a constant sample, whose reach falls with 1/n, the same without the root. Where few values carry the
        spread (see `equivalence`) it is on the safe side.
        """
        if self.n == 0 or not self.se > 0 or not math.isfinite(self.se):
            return None
        z, times = float(special.ndtri((1 + power) / 2)), 1.0
        for _ in range(60):  # t falls as n grows, n falls with t: the two meet
            t = _t(self.level, max(1.0, (self.df + 1) * times - 1))
            ratio = ((_t(self.level, self.df) if self.constant else t) + z) * self.se / self.margin
            times = ratio if self.constant else (times + ratio**2) / 2
        needed = math.ceil(times * self.n - 1e-6)
        return needed if needed < _MOST else None


@dataclass(frozen=True)
class _Sample:
    """One side of a comparison (or the paired differences): n values in `units` groups."""

    mean: float
    square: float  # of the standard error of the mean; 0 when no spread is seen
    n: int
    units: int
    df: int
    grouped: bool

    @staticmethod
    def of(values: Floats, codes: np.ndarray | None, margin: float, unit_range: float) -> _Sample:
        """Where few carry the spread, one unit is added unit_range above the mean, and one as far below."""
        _, away, sizes = spread(values, codes)
        n, units = len(values), len(away)
        size = float((sizes**2).sum()) / n  # of the group that an example drawn at random is in
        added = 2 if _few_carry(away, size, margin) else 0
        sums = float((away**2).sum()) + added * (unit_range * size) ** 2
        counted = units + added
        square = sums * counted / max(1, counted - 1) / (n + added * size) ** 2
        return _Sample(float(values.mean()), square, n, units, counted - 1, codes is not None)


def _few_carry(away: Floats, size: float, margin: float) -> bool:
    """Whether the spread comes from a few units that depart by more than the margin: leaks among equal examples.

    What that does to "equivalent" at a true difference of the margin 0.1, ones among zeros, exact: 0, 3.8, 3.4, 5.8,
    5.7 % for n = 20, 31, 50, 100, 200 (Student's t: 0, 17, 11, 12, 9 %); at margin 0.2 at most 7 %, at 0.3 at most 8 %
    and 11 % with n = 20. Simulated at 0.1: whole groups that leak, 5 to 15 examples each, at most 6.3 % (20 to 100
    groups); unpaired at most 5.8 % (n 20 to 400). Noise about zero in place of zeros: 2 to 7 % for n of 31 and more
    (12 to 7 %), and 9 % with 20, for a leak that was not drawn is not held against a sample with spread.
    What is lost where there is no difference: normal, SD 0.15, passes in 76, 94, 100 % for n = 20, 31, 50 (Student's
    77, 95, 100 %); Laplace's of scale 0.1, as heavy in its tails, in 68, 84, 99 % (82, 96, 100 %).
    """
    second = float((away**2).mean())
    if second == 0 or np.abs(away).max() <= margin * size:
        return False
    return float((away**4).mean()) > _HEAVY * second**2


def equivalence(
    a: Values, b: Values, *, margin: float, paired: bool, level: float = 0.95, unit_range: float = 1.0,
    clusters: Clusters | None = None, clusters_b: Clusters | None = None,
) -> Equivalence:
    """Two one-sided tests: is the mean of `a` that of `b`, up to a margin?

    equivalent when mean(a) - mean(b) +- t se lies inside (-margin, margin), different when it lies wholly outside,
    otherwise undecided; t at `level`, so the interval is the 1 - 2 alpha = 90 % one.
    With clusters se^2 = G/(G-1) sum over the G groups of (sum of value - mean)^2 / n^2, at G-1 degrees of freedom:
    what the examples of a group share is counted once. Without, every example is a group, which is Student's.
    A constant sample (paired: constant differences; groups that do not differ) shows no spread; then t se is at least
    unit_range * 3 / G, the rule of three for what may hide outside G groups, never zero.
    Where a few groups carry the spread (kurtosis above 5, and one departs from the mean by more than the margin: one
    leak among thirty zeros), Student's t passes too often; then se is that of the sample with two more groups, one
    unit_range above and one below the mean. At a true rate of 0.1, the margin, at most 6 % pass (see `_few_carry`).

    Args:
        a, b: values by example id; paired=True uses the ids both have (and wants mappings).
        margin: largest difference that does not matter, > 0, in units of the values.
        paired: differences per id (Student), otherwise Welch.
        level: of each one-sided test, in (0.5, 1). unit_range: range of a value.
        clusters: group by example id; ids it lacks stand alone; a sample of one group counts by its examples.
        clusters_b: those of `b` if unpaired, where they differ.
    Returns: Equivalence; power is that of `equivalence_of`.
    Raises: NotMeasured when a sample is empty, no id is shared, or a value is not finite.
    Source: Schuirmann 1987; Hanley and Lippman-Hand 1983 (rule of three); Liang and Zeger 1986 (groups); Agresti and
        Caffo 2000 (values added to rates; here to the error alone, the difference stays).
    """
    sides: list[tuple[Floats, np.ndarray | None]]
    if not (paired or clusters or clusters_b):
        sides = [(_array(a), None), (_array(b), None)]
    elif not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        raise TypeError("paired=True and clusters go by example id: give mappings")
    elif paired:
        ids = sorted(a.keys() & b.keys())
        sides = [(np.array([a[key] - b[key] for key in ids], dtype=np.float64), codes_of(ids, clusters))]
    else:
        sides = [
            (_array(values), codes_of(sorted(values), groups))
            for values, groups in ((a, clusters), (b, clusters_b if clusters_b is not None else clusters))
        ]
    if min(len(values) for values, _ in sides) == 0:
        raise NotMeasured("no example in common" if paired else "no example on one side of the comparison")
    if not all(np.isfinite(values).all() for values, _ in sides):
        raise NotMeasured("a value to be compared is not finite")
    samples = [_Sample.of(values, codes, margin, unit_range) for values, codes in sides]
    se = math.sqrt(sum(sample.square for sample in samples))
    weight = sum(sample.square**2 / sample.df for sample in samples if sample.square > 0)
    df = se**4 / weight if weight > 0 else math.inf
    least = min((sample.units for sample in samples if sample.square == 0), default=0)
    floor = unit_range * 3 / least / _t(level, df) if least else 0.0
    first = samples[0]
    found = equivalence_of(
        first.mean - (0.0 if paired else samples[1].mean), max(se, floor), margin=margin, level=level, df=df, n=first.n
    )
    groups = first.units if first.grouped else None
    return replace(found, groups=groups, constant=floor >= max(se, 1e-300))


def equivalence_of(
    difference: float, se: float, *, margin: float, level: float = 0.95, df: float = math.inf, n: int = 0
) -> Equivalence:
    """The same tests for a difference whose standard error is known: an AUC, a perplexity, a model utility.

    power = max(0, 2 Phi(margin / se - t) - 1): the chance that the tests would succeed if there were no difference.

    Args:
        difference, se: in units of the score, se > 0; from a 95 % interval, se = width / 3.92.
        margin: > 0. level: of each one-sided test. df: degrees of freedom of se; infinite is the normal.
        n: examples behind it, for `needed_examples`; 0: not known.
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
    power = 1.0 if se == 0 else 0.0 if math.isnan(se) else max(0.0, 2 * float(special.ndtr((margin - reach) / se)) - 1)
    return Equivalence(difference, (low, high), margin, power, se, verdict, level, df, n)


def _t(level: float, df: float) -> float:
    return float(special.ndtri(level)) if math.isinf(df) else float(special.stdtrit(df, level))


def _array(values: Values) -> Floats:
    if isinstance(values, Mapping):
        values = [values[key] for key in sorted(values)]
    return np.asarray(values, dtype=np.float64)
