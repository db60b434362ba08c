"""Intervals and equivalence."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured
from expunge.metrics import stats
from expunge.metrics.equivalence import equivalence, equivalence_of
from expunge.metrics.stats import (
    bootstrap_ci,
    bootstrap_of,
    clopper_pearson,
    constant_interval,
    mean_score,
    resamples,
)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 10), (57, 400)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_equals_scipy(k: int, n: int, level: float) -> None:
    """scipy's exact binomial interval is the reference."""
    expected = scipy_stats.binomtest(k, n).proportion_ci(level, method="exact")
    assert clopper_pearson(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_clopper_pearson_by_hand() -> None:
    """No success in 10: the upper end u solves (1 - u)^10 = 0.025, u = 1 - 0.025^(1/10) = 0.30850."""
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    with pytest.raises(ValueError, match="wanted"):
        clopper_pearson(3, 2)


def test_constant_interval_is_clopper_pearson_at_the_ends() -> None:
    """1 - (1 - (a/2)^(1/n)) = (a/2)^(1/n), the lower end for n of n; inside the range it reaches both ways."""
    assert constant_interval(1.0, 12) == pytest.approx(clopper_pearson(12, 12))
    assert constant_interval(0.0, 12) == pytest.approx(clopper_pearson(0, 12))
    reach = 1 - 0.025 ** (1 / 50)
    assert constant_interval(0.5, 50) == pytest.approx((0.5 - reach, 0.5 + reach))


def test_bootstrap_mean_agrees_with_the_normal_interval() -> None:
    """400 normal values: the interval is close to mean +- 1.96 sd / 20, within 3 % of its width."""
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_ci(values) or (0.0, 0.0)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half * 2)


def test_bootstrap_mean_agrees_with_scipys_bca() -> None:
    """A skewed sample: scipy's BCa with other draws, within Monte-Carlo noise; the percentile interval lies lower."""
    values = np.random.default_rng(2).exponential(size=60)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", random_state=np.random.default_rng(0)
    ).confidence_interval
    low, high = bootstrap_ci(values, num=20_000) or (0.0, 0.0)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_bootstrap_is_exact_on_rates_and_never_of_zero_width() -> None:
    """Zeros and ones get Clopper-Pearson; equal values of a bounded rate get a reach, unbounded ones no interval."""
    assert bootstrap_ci([0.0, 1.0, 1.0], bounds=(0, 1)) == clopper_pearson(2, 3)
    assert bootstrap_ci([1.0] * 8, bounds=(0, 1)) == clopper_pearson(8, 8)
    assert bootstrap_ci([0.25] * 8, bounds=(0, 1)) == constant_interval(0.25, 8)
    assert bootstrap_ci([0.25] * 8) is None
    assert bootstrap_ci([]) is None
    assert bootstrap_ci([0.5, math.inf]) is None


def test_studentised_bootstrap_by_its_definition():
    """Quantiles of (resampled mean - mean) / resampled standard error, turned round, from the very same draws."""
    values = np.random.default_rng(5).exponential(size=40)
    draws = np.concatenate([values[i] for (i,) in resamples([40], 999, 0)])
    ratios = (draws.mean(1) - values.mean()) / (draws.std(1, ddof=1) / math.sqrt(40))
    low, high = np.quantile(ratios, [0.025, 0.975], method="closest_observation")
    error = values.std(ddof=1) / math.sqrt(40)
    expected = (values.mean() - high * error, values.mean() - low * error)
    found = bootstrap_ci(values, method="studentised", num=999)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[1] - values.mean() > values.mean() - found[0]  # to the right, where the long tail is


def test_studentised_needs_spread_in_the_draws():
    """Of three values with one exception many draws are constant: no end of the interval, or that of the range."""
    assert bootstrap_ci([0.1, 0.1, 0.9], method="studentised") is None
    low, high = bootstrap_ci([0.1, 0.1, 0.9], method="studentised", bounds=(0, 1)) or (0.5, 0.5)
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_ci([0, 0, 0, 0, 1.0], method="studentised") is None  # not 2.4e7: that was rounding


def test_percentile_is_the_quantiles_of_the_resampled_means():
    values = np.random.default_rng(6).random(30)
    draws = np.concatenate([values[i].mean(1) for (i,) in resamples([30], 500, 0)])
    assert bootstrap_ci(values, method="percentile", num=500) == pytest.approx(np.quantile(draws, [0.025, 0.975]))


def test_large_samples_take_the_same_draws_without_keeping_them(monkeypatch):
    """Above the limit nothing is kept; the interval is the same to the last digits."""
    values = np.random.default_rng(7).random(50)
    kept = bootstrap_ci(values)
    monkeypatch.setattr(stats, "_KEPT", 0)
    before = stats._counts.cache_info().misses
    assert bootstrap_ci(values) == pytest.approx(kept, rel=1e-12)
    assert stats._counts.cache_info().misses == before


def test_equal_means_of_draws_are_ties_on_every_machine():
    """Thirds do not add exactly: multiples of 1/3 give the interval of the whole numbers, divided by three."""
    whole = np.random.default_rng(8).integers(0, 4, 25).astype(float)
    low, high = bootstrap_ci(whole) or (0.0, 0.0)
    assert bootstrap_ci(whole / 3) == pytest.approx((low / 3, high / 3), rel=1e-9)


def test_the_bootstrap_is_fast():
    """2000 draws of 4000 values: 0.06 s the first time, 0.004 s for the next metric of the stream; wide bounds for a
    busy machine."""
    values = np.random.default_rng(9).random(4000)
    stats._counts.cache_clear()
    spent = []
    for _ in range(4):
        begun = time.process_time()
        bootstrap_ci(values)
        spent.append(time.process_time() - begun)
    assert spent[0] < 0.5
    assert min(spent[1:]) < spent[0] / 2


def test_bootstrap_median_and_seed() -> None:
    """The median of 0..100 is 50; the same seed gives the same interval."""
    values = np.arange(101.0)
    low, high = bootstrap_ci(values, statistic="median") or (0.0, 0.0)
    assert low < 50 < high
    assert (low, high) == bootstrap_ci(values, statistic="median")


def test_bootstrap_of_redraws_samples_apart() -> None:
    """Difference of means of two samples of n = 400 with unit variance: half width about 1.96 sqrt(2/400) = 0.139."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
    low, high = bootstrap_of(lambda i: a[i[0]].mean(1) - b[i[1]].mean(1), [400, 400]) or (0.0, 0.0)
    assert low < 1 < high
    assert (high - low) / 2 == pytest.approx(0.139, rel=0.1)
    assert bootstrap_of(lambda i: a[i[0]].mean(1), [0]) is None


def test_equivalence_by_hand() -> None:
    """Differences 1, 2, 3 by id: mean 2, se = 1/sqrt(3), t(.95, 2) = 2.919986, half width 1.685854."""
    a, b = {"x": 2.0, "y": 4.0, "z": 6.0, "w": 99.0}, {"z": 3.0, "y": 2.0, "x": 1.0}
    found = equivalence(a, b, margin=4.0, paired=True)
    assert found.difference == pytest.approx(2.0)
    assert found.se == pytest.approx(1 / math.sqrt(3))
    assert found.ci90 == pytest.approx((2 - 1.6858539, 2 + 1.6858539), abs=1e-6)
    assert found.verdict == "equivalent"
    assert equivalence(a, b, margin=3.0, paired=True).verdict == "undecided"
    assert equivalence(a, b, margin=0.3, paired=True).verdict == "different"
    assert equivalence(b, a, margin=0.3, paired=True).verdict == "different"


def test_equivalence_unpaired_is_welch() -> None:
    """scipy's Welch interval at 90 %."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=30), rng.normal(0.2, 3, size=50)
    expected = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    found = equivalence(a, b, margin=1.0, paired=False)
    assert found.ci90 == pytest.approx((expected.low, expected.high))


def test_equivalence_power_is_the_chance_to_succeed_at_no_difference() -> None:
    """margin / se = 3.29: 2 Phi(3.29 - 1.645) - 1 = 0.9; margin = 1.645 se: 0. Simulated as well."""
    z = 1.6448536
    assert equivalence_of(0.0, 1.0, margin=2 * z).power == pytest.approx(0.9, abs=1e-6)
    assert equivalence_of(0.0, 1.0, margin=z).power == 0.0
    draws = np.random.default_rng(5).normal(size=4000)
    share = np.mean([equivalence_of(draw, 1.0, margin=2.5).verdict == "equivalent" for draw in draws])
    assert share == pytest.approx(equivalence_of(0.0, 1.0, margin=2.5).power, abs=0.03)


def test_equivalence_of_constant_samples_uses_the_rule_of_three() -> None:
    """20 zeros against 20 zeros: half width 3/20 = 0.15, so a margin of 0.1 decides nothing and 0.2 does."""
    zeros = {str(k): 0.0 for k in range(20)}
    for paired in (True, False):
        found = equivalence(zeros, zeros, margin=0.2, paired=paired)
        assert found.ci90 == pytest.approx((-0.15, 0.15))
        assert found.verdict == "equivalent"
        assert equivalence(zeros, zeros, margin=0.1, paired=paired).verdict == "undecided"
    assert equivalence({"a": 0.3}, {"a": 0.1}, margin=0.5, paired=True).verdict == "undecided"


def test_equivalence_of_one_constant_sample_is_no_narrower() -> None:
    """10 ones against varied values: the reach is at least 3/10."""
    found = equivalence([1.0] * 10, [0.999, 1.0] * 100, margin=0.2, paired=False)
    assert found.ci90[1] - found.ci90[0] >= 0.6 - 1e-12
    assert found.verdict == "undecided"


def test_equivalence_says_what_cannot_be_compared() -> None:
    with pytest.raises(NotMeasured, match="in common"):
        equivalence({"a": 1.0}, {"b": 1.0}, margin=1, paired=True)
    with pytest.raises(NotMeasured, match="one side"):
        equivalence({}, {"b": 1.0}, margin=1, paired=False)
    with pytest.raises(NotMeasured, match="finite"):
        equivalence({"b": math.nan}, {"b": 1.0}, margin=1, paired=True)
    with pytest.raises(TypeError, match="mappings"):
        equivalence([1.0], [1.0], margin=1, paired=True)
    with pytest.raises(RecipeError, match="margin"):
        equivalence({"a": 1.0}, {"a": 1.0}, margin=0, paired=True)


@settings(deadline=None, max_examples=15)
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=12))
def test_mean_score_does_not_see_the_order(values: dict[str, float]) -> None:
    """The dictionary reversed gives the same score to the last bit; the interval holds the mean and is not a point."""
    score = mean_score(values, "share", "lower")
    assert score == mean_score(dict(reversed(values.items())), "share", "lower")
    assert score.value == pytest.approx(sum(values.values()) / len(values))
    assert score.ci is not None
    assert score.ci[0] < score.ci[1]
    assert score.n == len(values)


def test_mean_score_degenerate() -> None:
    assert mean_score({}, "share", "lower").status == "n/a"
    assert "1 of 2" in mean_score({"a": math.nan, "b": 1.0}, "share", "lower").reason
    unbounded = mean_score({"a": 3.0}, "nats", "lower", bounds=None)
    assert unbounded.ci is None
    assert "no interval" in unbounded.reason
    assert mean_score({"a": 1.0, "b": 0.0}, "share", "lower", binary=True).ci == clopper_pearson(1, 2)
    with pytest.raises(ValueError, match="binary"):
        mean_score({"a": 0.5}, "share", "lower", binary=True)
