"""AUC, TPR at a FPR, Kolmogorov-Smirnov."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from expunge.metrics.separation import auc, auc_interval, kolmogorov_smirnov, ks_intervals, tpr_at_fpr
from expunge.metrics.stats import clopper_pearson

SAMPLES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def test_auc_by_hand() -> None:
    """Members 2, 1 against 1, 0: of four pairs three are won and one tied, (3 + 0.5) / 4 = 0.875."""
    assert auc([2, 1], [1, 0]) == 0.875
    assert auc([-math.inf, 0], [0, 1]) == 0.125


@settings(deadline=None, max_examples=40)
@given(SAMPLES, SAMPLES, st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]))
def test_against_obvious_loops(members: list[float], outside: list[float], fpr: float) -> None:
    """All pairs for AUC; all thresholds for TPR; all cut points for KS."""
    pairs = [(m > n) + (m == n) / 2 for m in members for n in outside]
    assert auc(members, outside) == pytest.approx(np.mean(pairs))
    allowed = [t for t in [*members, *outside] if np.mean([n >= t for n in outside]) <= fpr + 1e-12]
    rates = [0.0, *(np.mean([m >= t for m in members]) for t in allowed)]
    assert tpr_at_fpr(members, outside, fpr)[0] == pytest.approx(max(rates))
    gaps = [abs(np.mean(np.array(members) <= t) - np.mean(np.array(outside) <= t)) for t in [*members, *outside]]
    assert kolmogorov_smirnov(members, outside).statistic == pytest.approx(max(gaps))


def test_auc_interval_covers_and_shrinks() -> None:
    """Normal scores one deviation apart: AUC = Phi(1/sqrt 2) = 0.7602; Hanley-McNeil se at 200 + 200 is about 0.024."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 200), rng.normal(0, 1, 200)
    low, high = auc_interval(a, b)
    assert low < 0.7602 < high
    assert (high - low) / 3.92 == pytest.approx(0.024, rel=0.15)


def test_auc_interval_of_perfect_separation_is_not_a_point() -> None:
    """20 members all above 30 others: the interval of 20 of 20; all scores equal: both ways around one half."""
    assert auc_interval(np.arange(20) + 100.0, np.arange(30.0)) == pytest.approx(clopper_pearson(20, 20))
    low, high = auc_interval([0.0] * 10, [0.0] * 10)
    assert low < 0.5 < high
    assert auc_interval([1.0], [0.0])[0] == pytest.approx(0.025)


def test_tpr_at_fpr_by_hand() -> None:
    """Non-members 0..9; at 10 % one may be named, so members above 8 count: 3 of 4; at 5 % those above 9: 2 of 4."""
    members, outside = [5.0, 8.5, 9.5, 12.0], list(range(10))
    assert tpr_at_fpr(members, outside, 0.10) == (0.75, clopper_pearson(3, 4))
    assert tpr_at_fpr(members, outside, 0.05)[0] == 0.5
    assert tpr_at_fpr([9.0], outside, 0.05)[0] == 0.0


def test_ks_direction_and_p() -> None:
    """Shifted up by 10: statistic 1, `above`; p = 2 / C(10, 5) = 1/126; equal samples: p = 1."""
    found = kolmogorov_smirnov(np.arange(5) + 10, np.arange(5))
    assert (found.statistic, found.shift) == (1.0, "above")
    assert found.p == pytest.approx(1 / 126)
    assert kolmogorov_smirnov(np.arange(5), np.arange(5) + 10).shift == "below"
    same = kolmogorov_smirnov([1.0, 2.0], [2.0, 1.0])
    assert (same.p, same.shift, same.exact) == (1.0, "none", True)


def test_ks_says_when_p_is_not_exact() -> None:
    """D = 1/7 of 7 and 7: the exact p, 1, rounds above 1; scipy then gives the asymptotic one, 0.99996."""
    found = kolmogorov_smirnov([0.0] * 7, [0.0] * 6 + [1.0])
    assert found.p == pytest.approx(1.0, abs=1e-4)
    assert not found.exact
    assert not kolmogorov_smirnov(np.arange(10_001.0), np.arange(10_001.0)).exact


def test_ks_intervals_hold_the_values() -> None:
    """The p interval runs from the p of the upper to that of the lower end of the statistic."""
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.5):
        a, b = rng.normal(shift, 1, 60), rng.normal(0, 1, 40)
        statistic, p = ks_intervals(a, b, num=500)
        expected = scipy_stats.ks_2samp(a, b)
        assert statistic[0] <= expected.statistic <= statistic[1]
        assert p[0] <= expected.pvalue <= p[1]
        assert 0 <= p[0] < p[1] <= 1


def test_empty_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        auc([], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        auc([math.nan], [1.0])
