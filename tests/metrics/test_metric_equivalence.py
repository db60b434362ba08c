"""Equivalence over subjects, and how many examples would tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from expunge.metrics.equivalence import equivalence, equivalence_of


def of_groups(groups: list[list[float]]) -> tuple[dict[str, float], dict[str, str]]:
    """Values and clusters of examples given group by group."""
    values = {f"{g}/{i}": value for g, group in enumerate(groups) for i, value in enumerate(group)}
    return values, {key: key.partition("/")[0] for key in values}


def test_groups_by_hand():
    """Differences (1, 1), (2), (6): mean 2.5, the groups' sums less the mean: -3, -0.5, 3.5; se^2 = 3/2 * 21.5 / 16 at
    two degrees of freedom, t = 2.919986."""
    a, clusters = of_groups([[1.0, 1.0], [2.0], [6.0]])
    zero = dict.fromkeys(a, 0.0)
    found = equivalence(a, zero, margin=9, paired=True, clusters=clusters)
    assert found.se == pytest.approx(math.sqrt(1.5 * 21.5 / 16))
    assert (found.df, found.groups, found.n) == (2, 3, 4)
    assert found.ci90 == pytest.approx((2.5 - 2.919986 * found.se, 2.5 + 2.919986 * found.se), abs=1e-5)


def test_groups_of_one_are_student():
    """Everybody alone, or everybody in one group: the numbers of the plain test."""
    rng = np.random.default_rng(0)
    a = {str(i): float(x) for i, x in enumerate(rng.random(12))}
    b = {str(i): float(x) for i, x in enumerate(rng.random(12))}
    plain = equivalence(a, b, margin=0.5, paired=True)
    assert plain.se == pytest.approx(np.std([a[k] - b[k] for k in a], ddof=1) / math.sqrt(12))
    for clusters in (dict.fromkeys(a, "all"), {key: key for key in a}, {}):
        assert equivalence(a, b, margin=0.5, paired=True, clusters=clusters) == plain
    assert plain.groups is None


def test_unpaired_groups_are_welch_of_group_sums():
    """Groups of three with the same value each: as many independent values as groups; the other side stands alone."""
    rng = np.random.default_rng(1)
    means, other = rng.normal(size=10), rng.normal(0.3, 2, size=25)
    a, clusters = of_groups([[float(m)] * 3 for m in means])
    b = {f"b{i}": float(x) for i, x in enumerate(other)}
    found = equivalence(a, b, margin=1, paired=False, clusters=clusters)
    expected = scipy_stats.ttest_ind(means, other, equal_var=False).confidence_interval(0.9)
    assert found.ci90 == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(scipy_stats.ttest_ind(means, other, equal_var=False).pvalue)
    swapped = equivalence(b, a, margin=1, paired=False, clusters={}, clusters_b=clusters)
    assert swapped.ci90 == pytest.approx((-expected.high, -expected.low))
    with pytest.raises(TypeError, match="mappings"):
        equivalence([1.0, 2.0], [1.0], margin=1, paired=False, clusters=clusters)


def test_the_rule_of_three_counts_groups():
    """200 equal differences of 20 persons: half width 3/20, not 3/200."""
    a, clusters = of_groups([[1.0] * 10] * 20)
    assert equivalence(a, a, margin=0.1, paired=True).verdict == "equivalent"
    found = equivalence(a, a, margin=0.1, paired=True, clusters=clusters)
    assert found.ci90 == pytest.approx((-0.15, 0.15))
    assert found.verdict == "undecided"
    assert found.constant
    halves, _ = of_groups([[1.0, 0.0] * 5] * 20)  # examples differ, persons do not
    assert equivalence(halves, dict.fromkeys(halves, 0.5), margin=1, paired=True, clusters=clusters).ci90 == (
        pytest.approx((-0.15, 0.15))
    )


def test_false_equivalence_with_and_without_groups():
    """400 worlds whose true difference is the margin: "equivalent" in at most 5 % over persons, far more often over
    questions as if each stood alone."""
    rng, wrong = np.random.default_rng(2), {True: 0, False: 0}
    for _ in range(400):
        sizes = rng.integers(5, 16, 20)
        groups = [(0.1 + 0.15 * rng.normal() + 0.1 * rng.normal(size=n)).tolist() for n in sizes]
        a, clusters = of_groups(groups)
        zero = dict.fromkeys(a, 0.0)
        for grouped in wrong:
            found = equivalence(a, zero, margin=0.1, paired=True, clusters=clusters if grouped else None)
            wrong[grouped] += found.verdict == "equivalent"
    assert wrong[True] / 400 <= 0.08
    assert wrong[False] / 400 >= 0.15


def test_needed_examples_is_the_smallest_number_with_the_power():
    """Checked against the power formula at n and n - 1, for normal and Student's error; none from nothing known."""
    found = equivalence_of(0.0, 0.08, margin=0.1, n=100)
    needed = found.needed_examples()
    assert needed == math.ceil(100 * ((1.6448536 + 1.2815516) * 0.8) ** 2)  # 549: power 0.8
    rng = np.random.default_rng(3)
    values = {str(i): float(x) for i, x in enumerate(rng.normal(0, 0.3, 12))}
    test = equivalence(values, dict.fromkeys(values, 0.0), margin=0.1, paired=True)

    def power(n: int) -> float:
        se, t = test.se * math.sqrt(12 / n), scipy_stats.t.ppf(0.95, n - 1)
        return 2 * scipy_stats.norm.cdf(0.1 / se - t) - 1

    wanted = test.needed_examples()
    assert power(wanted) >= 0.8 > power(wanted - 1)
    assert test.needed_examples(0.9) > wanted
    assert equivalence_of(0.0, 0.08, margin=0.1).needed_examples() is None
    assert equivalence_of(0.0, 0.0, margin=0.1, n=5).needed_examples() is None


def test_needed_examples_of_groups_and_of_a_constant_sample():
    """20 equal differences reach 3/20: to show 0.1 with power 0.8 the reach must be 0.1 / (1 + 1.2816/1.6449), which
    is n = 30 * 1.77912 = 53.4; ten questions to each person make it ten times as many examples."""
    a = {str(i): 0.0 for i in range(20)}
    assert equivalence(a, a, margin=0.1, paired=True).needed_examples() == 54
    b, clusters = of_groups([[0.0] * 10] * 20)
    assert equivalence(b, b, margin=0.1, paired=True, clusters=clusters).needed_examples() == 534


def leaks(num: int, of: int, groups: int = 0) -> dict[str, float]:
    """Ones among zeros; with groups, each of them so often."""
    return {f"{i}/{j}": float(i < num) for i in range(of) for j in range(groups or 1)}


def false_pass(n: int, margin: float, *, paired: bool, groups: int = 0) -> float:
    """P("equivalent"), exact, where the true rate of leaks is the margin and the other side has none."""
    total = 0.0
    for count in range(n + 1):
        chance, a = scipy_stats.binom.pmf(count, n, margin), leaks(count, n, groups)
        clusters = {key: key.partition("/")[0] for key in a} if groups else None
        if chance > 1e-9:
            found = equivalence(a, dict.fromkeys(a, 0.0), margin=margin, paired=paired, clusters=clusters)
            total += chance * (found.verdict == "equivalent")
    return total


@pytest.mark.parametrize(("n", "told"), [(20, 0.0), (31, 0.0382), (50, 0.0338), (100, 0.0576), (200, 0.0566)])
def test_rare_leaks_do_not_pass_too_often(n, told):
    """Student's t alone: 17, 11, 12, 9 % at n = 31, 50, 100, 200. Unpaired, and groups of two, not more often."""
    assert false_pass(n, 0.1, paired=True) == pytest.approx(told, abs=1e-4)
    assert false_pass(n, 0.1, paired=False) <= 0.06
    assert false_pass(n, 0.1, paired=True, groups=2) == pytest.approx(told, abs=1e-4)


def test_one_leak_among_thirty_by_hand():
    """1/31 +- t(32) se with two more differences, +1 and -1: the squares sum to 2 + 30/31, se^2 that / (33 * 32)."""
    a = leaks(1, 31)
    found = equivalence(a, dict.fromkeys(a, 0.0), margin=0.1, paired=True)
    assert found.se == pytest.approx(math.sqrt((2 + 30 / 31) / (33 * 32)))
    assert (found.difference, found.df, found.verdict) == (pytest.approx(1 / 31), 32, "undecided")
    small = {key: 0.05 * value for key, value in a.items()}  # departs by less than the margin: Student's
    assert equivalence(small, dict.fromkeys(a, 0.0), margin=0.1, paired=True).df == pytest.approx(30)
    assert equivalence(list(a.values()), [0.0, 1.0], margin=math.inf, paired=False).se == pytest.approx(
        math.hypot(1 / 31, 0.5)
    )  # without a margin nothing is claimed: Welch's


def test_continuous_differences_keep_their_power():
    """Normal differences are taken as Student takes them in nearly every sample."""
    rng = np.random.default_rng(5)
    kept = 0
    for _ in range(200):
        values = {str(i): float(x) for i, x in enumerate(rng.normal(0, 0.15, 50))}
        kept += equivalence(values, dict.fromkeys(values, 0.0), margin=0.1, paired=True).df < 49.5
    assert kept >= 190


def test_an_error_that_is_not_known_has_no_power():
    found = equivalence_of(0.0, math.nan, margin=0.1)
    assert (found.power, found.verdict, found.needed_examples()) == (0.0, "undecided", None)
