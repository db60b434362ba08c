"""Are two conditions different? Tests that go example by example, and groups of examples where they belong together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from scipy import special

from expunge.measure.tables import NotMeasured
from expunge.metrics.clusters import Clusters, codes_of, is_mean
from expunge.metrics.equivalence import equivalence, equivalence_of
from expunge.metrics.stats import Floats, Interval, Labels, Method, bootstrap_ci
from expunge.types import Score

Test = Literal["mcnemar", "sign flip", "welch", "intervals"]
EXACT = 14  # groups up to which all 2^G sign patterns are looked at
_CHUNK = 4_000_000  # signs held at once
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Comparison:
    """A difference a - b with its interval at 95 %, the two-sided p-value of "no difference", and what tested it.

    exact: the p-value is no approximation. n, groups: examples compared, and the groups they form (None: none).
    """

    difference: float
    ci: Interval | None
    p: float
    test: Test
    exact: bool
    n: int
    groups: int | None = None


def compare(
    a: Score, b: Score, *, clusters: Clusters | None = None, clusters_b: Clusters | None = None,
    num: int = 9999, method: Method = "bca", seed: int = 0,
) -> Comparison:
    """The test that fits two scores of one metric.

    - Both are means over the same examples: on their differences, McNemar's exact test where all values are 0 or 1 and
      examples stand alone, else the sign-flip test; the interval is the bootstrap of the paired differences.
    - Both are means, over different examples: Welch's test.
    - One is no mean over examples (an AUC, a perplexity): the normal approximation from the two 95 % intervals, as if
      they were independent. On the same examples they are not, so this errs on the side of "no difference".

    Args:
        clusters: group by example id; `clusters_b`: of b's examples where they are others.
        num: sign patterns where not all are looked at. method, seed: of the bootstrap.
    Raises: NotMeasured when a side is n/a or has no interval to compare by.
    """
    for score in (a, b):
        if score.value is None:
            raise NotMeasured(score.reason or "no value")
    if not (is_mean(a) and is_mean(b)):
        return _from_intervals(a, b)
    ids = sorted(a.per_example.keys() & b.per_example.keys())
    if not ids:
        found = equivalence(
            a.per_example, b.per_example, margin=math.inf, paired=False, level=0.975, clusters=clusters,
            clusters_b=clusters_b,
        )
        return Comparison(found.difference, found.ci90, found.p, "welch", False, found.n, found.groups)
    one, other = (np.array([score.per_example[key] for key in ids]) for score in (a, b))
    codes, away = codes_of(ids, clusters), one - other
    bounds = (a.bounds[0] - a.bounds[1], a.bounds[1] - a.bounds[0]) if a.bounds and a.bounds == b.bounds else None
    ci = bootstrap_ci(away, method=method, groups=codes, seed=seed, bounds=bounds)
    if codes is None and np.isin(one, (0.0, 1.0)).all() and np.isin(other, (0.0, 1.0)).all():
        p = mcnemar(int((away > 0).sum()), int((away < 0).sum()))
        return Comparison(float(away.mean()), ci, p, "mcnemar", True, len(ids))
    p, exact = sign_flip(away, groups=codes, num=num, seed=seed)
    groups = None if codes is None else int(codes.max()) + 1
    return Comparison(float(away.mean()), ci, p, "sign flip", exact, len(ids), groups)


def _from_intervals(a: Score, b: Score) -> Comparison:
    if a.value is None or b.value is None or a.ci is None or b.ci is None:
        raise NotMeasured("a score that is no mean over examples has no interval to compare by")
    se = math.hypot(*(high - low for low, high in (a.ci, b.ci))) / (2 * 1.959963984540054)
    found = equivalence_of(a.value - b.value, se, margin=math.inf, level=0.975, n=min(a.n, b.n))
    return Comparison(found.difference, found.ci90, found.p, "intervals", False, min(a.n, b.n))


def sign_flip(
    differences: Floats, *, groups: Labels | None = None, num: int = 9999, seed: int = 0
) -> tuple[float, bool]:
    """Permutation test of "the differences are as likely to be positive as negative", two-sided.

    The share of sign patterns with |sum of s d| >= |sum of d|; examples of a group change their sign together. All 2^G
    patterns up to G = 14 groups with a difference, else `num` random ones: (1 + hits) / (1 + num), never 0.

    Args:
        differences: one per example. groups: the group of each; None: every example is one.
        num, seed: random patterns and their seed.
    Returns: p-value in (0, 1], and whether every pattern was looked at.
    Cost: num * G signs.
    Source: Fisher 1935; Phipson and Smyth 2010 (the 1 + in Monte Carlo).
    """
    away = np.asarray(differences, dtype=np.float64)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        away = np.bincount(codes, weights=away).astype(np.float64)
    away = away[np.abs(away) > 1e-12 * max(1e-300, float(np.abs(away).max(initial=0.0)))]  # a zero has no sign
    size = len(away)
    if size == 0:
        return 1.0, True
    reached = abs(float(away.sum())) * (1 - 1e-9)
    if size <= EXACT:
        signs = 1 - 2.0 * ((np.arange(2**size)[:, None] >> np.arange(size)) & 1)
        return float((np.abs(signs @ away) >= reached).mean()), True
    rng, hits = np.random.default_rng(seed), 0
    starts = [*range(0, num, max(1, _CHUNK // size)), num]
    for start, stop in pairwise(starts):
        bits = np.frombuffer(rng.bytes(-(-(stop - start) * size // 8)), dtype=np.uint8)
        signs = np.unpackbits(bits, count=(stop - start) * size).reshape(-1, size).astype(np.float64)
        hits += int((np.abs(2 * (signs @ away) - away.sum()) >= reached).sum())
    return (1 + hits) / (1 + num), False


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar test of two rates on the same examples: p = min(1, 2 P(X <= min(gained, lost))), X ~ B(both, 1/2).

    Args:
        gained, lost: examples that only the first, and only the second, has right. Those both agree on say nothing.
    Source: McNemar 1947, exact as in Agresti 2013, 11.1.
    """
    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(ps: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for being a family: the chance of even one false alarm among them stays at the level.

    In rising order p_(i) * (m - i + 1), never less than the one before, at most 1.

    Source: Holm 1979.
    """
    adjusted: dict[Key, float] = {}
    least = 0.0
    for rank, (key, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(ps) - rank)))
        adjusted[key] = least
    return {key: adjusted[key] for key in ps}
