"""Tests between conditions: closed forms, what grouping changes, and false alarms counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from expunge.measure.tables import NotMeasured
from expunge.metrics.comparison import compare, holm, mcnemar, sign_flip
from expunge.metrics.stats import mean_score
from expunge.types import Score


def rate(values) -> Score:
    return mean_score({str(i): float(value) for i, value in enumerate(values)}, "share", "lower")


def test_sign_flip_by_hand():
    """Differences 1, 2, 3: of the 8 sign patterns two reach |6|, p = 1/4; with -1, 2, 3 the sums 4, 6 and their
    opposites: p = 1/2."""
    assert sign_flip(np.array([1.0, 2, 3])) == (0.25, True)
    assert sign_flip(np.array([-1.0, 2, 3])) == (0.5, True)
    assert sign_flip(np.zeros(5)) == (1.0, True)
    assert sign_flip(np.array([0.0, 0.0, 1.0, 2.0, 3.0])) == (0.25, True)  # a zero has no sign
    assert sign_flip(np.array([0.1] * 10))[0] == 2 / 1024  # round-off does not break ties


def test_sign_flip_moves_a_group_as_one():
    """Two groups with sums 3 and 3: p = 2/4, though six examples alone would give 2/64."""
    away = np.ones(6)
    assert sign_flip(away, groups=list("aaabbb")) == (0.5, True)
    assert sign_flip(away) == (2 / 64, True)


def test_random_signs_agree_with_all_signs_and_never_give_zero():
    """15 examples go by 9999 random patterns, held against all 2^15. What no pattern reaches gives 1/10000."""
    away = np.random.default_rng(3).normal(0.4, 1, 15)
    found, exact = sign_flip(away)
    signs = np.array(list(product((-1, 1), repeat=15)))
    everything = np.mean(np.abs(signs @ away) >= abs(away.sum()) - 1e-9)
    assert not exact
    assert found == pytest.approx(everything, abs=4 * np.sqrt(everything / 9999))
    assert sign_flip(away, seed=1)[0] != found
    assert sign_flip(np.ones(100)) == (1 / 10_000, False)
    assert sign_flip(np.ones(5000), num=1999)[0] == 1 / 2000  # in several pieces


@pytest.mark.parametrize(("gained", "lost"), [(0, 6), (2, 9), (5, 5), (30, 12), (1, 0)])
def test_mcnemar_is_the_binomial_test_of_the_changed(gained, lost):
    assert mcnemar(gained, lost) == pytest.approx(scipy_stats.binomtest(gained, gained + lost).pvalue)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_without_a_change():
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand():
    """0.01, 0.02, 0.03, 0.04 of four: 0.04, 0.06, 0.06, 0.06; never above 1; the order given is kept."""
    assert holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06}
    )
    assert list(holm({"x": 0.9, "y": 0.8})) == ["x", "y"]
    assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
    assert holm({}) == {}


def test_compare_takes_mcnemar_for_zeros_and_ones_that_stand_alone():
    """20 answers, 9 lost and 1 gained: p = 2 (1 + 10) / 2^10; with groups of two it is the sign-flip test."""
    before, after = [1] * 15 + [0] * 5, [0] * 9 + [1] * 6 + [1] + [0] * 4
    found = compare(rate(after), rate(before))
    assert (found.test, found.exact, found.n, found.groups) == ("mcnemar", True, 20, None)
    assert found.difference == pytest.approx(-0.4)
    assert found.p == pytest.approx(2 * 11 / 1024)
    assert found.ci[0] < -0.4 < found.ci[1] < 0
    grouped = compare(rate(after), rate(before), clusters={str(i): str(i // 2) for i in range(20)})
    assert (grouped.test, grouped.groups) == ("sign flip", 10)
    assert grouped.p > found.p


def test_compare_takes_the_sign_flip_for_other_means():
    low, high = rate([0.2, 0.3, 0.25, 0.4]), rate([0.3, 0.5, 0.3, 0.6])
    found = compare(high, low)
    assert (found.test, found.exact) == ("sign flip", True)
    assert found.p == 2 / 16
    same = compare(low, low)
    assert (same.p, same.difference) == (1.0, 0.0)
    assert same.ci[0] < 0 < same.ci[1]  # four equal pairs leave room


def test_compare_over_different_examples_is_welch():
    """scipy's Welch test and interval."""
    rng = np.random.default_rng(4)
    a, b = rng.random(30), rng.random(50) ** 2
    other = mean_score({f"other/{i}": value for i, value in enumerate(b)}, "share", "lower")
    found, expected = compare(rate(a), other), scipy_stats.ttest_ind(a, b, equal_var=False)
    assert (found.test, found.n) == ("welch", 30)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.ci == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_compare_of_values_that_are_no_means_goes_by_their_intervals():
    """AUC 0.8 (0.7 to 0.9) and 0.6 (0.5 to 0.7): se = 0.2 sqrt(2) / 3.92 = 0.0722, z = 2.77, p = 0.0056; the scores per
    example, whose means are something else, are not compared."""
    a = replace(rate([0.1, 0.9]), value=0.8, ci=(0.7, 0.9))
    b = replace(rate([0.1, 0.9]), value=0.6, ci=(0.5, 0.7))
    found = compare(a, b)
    assert found.test == "intervals"
    assert found.p == pytest.approx(0.0056, abs=1e-4)
    assert found.ci == pytest.approx((0.2 - 0.1 * 2**0.5, 0.2 + 0.1 * 2**0.5))
    for wrong in (Score.missing("no answer"), replace(a, ci=None)):
        with pytest.raises(NotMeasured, match=r"no answer|no interval"):
            compare(wrong, b)


def test_false_alarms_with_and_without_groups():
    """200 worlds without a difference: 12 persons whose ten questions move together. At 5 %, the test over persons is
    wrong in about 5 %, the one over questions in far more."""
    rng, alarms = np.random.default_rng(0), {"groups": 0, "alone": 0}
    labels = np.repeat(np.arange(12), 10)
    for _ in range(200):
        away = np.repeat(rng.normal(size=12), 10) + rng.normal(size=120)
        alarms["groups"] += sign_flip(away, groups=labels)[0] <= 0.05
        alarms["alone"] += sign_flip(away, num=199)[0] <= 0.05
    assert alarms["groups"] / 200 <= 0.09
    assert alarms["alone"] / 200 >= 0.3
