"""Examples of one subject count together: groups, their intervals, and whether these hold what they promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expunge.measure.plan import Measured
from expunge.metrics.clusters import clusters_of, codes_of, is_mean, over_clusters
from expunge.metrics.stats import bootstrap_ci, clopper_pearson, constant_interval, mean_score, spread
from expunge.registry import bind
from expunge.scoring import score, score_all
from expunge.types import Data, Example, Score, Stream
from support.metric_tables import token_table


def stream(*subjects: str | None) -> Stream:
    return Stream("forget", "forget", tuple(Example(str(i), "", "x", subject=s) for i, s in enumerate(subjects)))


def test_groups_are_the_subjects_that_repeat():
    """Two questions of Ann and two of Bob group; Cid with one and those without a subject stand alone."""
    found = clusters_of(stream("Ann", "Bob", "Ann", "Cid", None, None, "Bob"))
    assert found == {"0": "Ann", "2": "Ann", "1": "Bob", "6": "Bob"}
    assert clusters_of(stream("Ann", "Bob", None, None)) == {}
    assert clusters_of(None) == {}


def test_nothing_is_grouped_by_one_subject_or_without_a_pair():
    found = clusters_of(stream("Ann", "Ann", "Bob", "Bob"))
    assert codes_of(["0", "2"], found) is None  # nobody twice
    assert codes_of(["0", "1"], found) is None  # only Ann: her questions are what is drawn
    assert codes_of(["0", "1", "2"], found).tolist() == [0, 0, 1]
    assert codes_of(["0", "1", "new"], found).tolist() == [1, 1, 0]  # an unknown id stands alone


def test_a_subject_is_no_example_id():
    """Subject "3" of examples 0 and 1 is not the group of example 3, which has no subject."""
    assert len(set(codes_of(["0", "1", "3"], {"0": "3", "1": "3"}).tolist())) == 2


def test_what_a_mean_is():
    score = mean_score({"a": 0.25, "b": 0.5}, "share", "lower")
    assert is_mean(score)
    assert not is_mean(replace(score, value=0.4))  # an AUC beside scores per example
    assert not is_mean(Score.missing("no"))
    assert not is_mean(replace(score, n=3))
    assert not is_mean(replace(score, per_example={}))


def test_groups_of_equal_size_are_the_sample_of_their_means():
    """Two questions a person with the same value each: the interval is that over the persons, z replaced by t."""
    values = np.random.default_rng(0).random(30)
    twice, labels = np.repeat(values, 2), np.repeat(np.arange(30), 2)
    wide, plain = bootstrap_ci(twice, groups=labels), bootstrap_ci(values)
    assert wide == bootstrap_ci(values, groups=np.arange(30))  # to the last bit: the size of a group cancels
    ratio = (wide[1] - wide[0]) / (plain[1] - plain[0])
    assert 1.03 < ratio < 1.12  # sqrt(30/29) t(29) / z = 1.0612
    assert bootstrap_ci(twice)[1] - bootstrap_ci(twice)[0] < 0.8 * (plain[1] - plain[0])  # as if 60 had been asked


def test_the_spread_of_groups_by_hand():
    """Values 1 0 | 0 | 1 1 1: mean 2/3; the groups' sums less mean times size: -1/3, -2/3, 1."""
    value, away, sizes = spread(np.array([1.0, 0, 0, 1, 1, 1]), ["x", "x", "y", "z", "z", "z"])
    assert value == pytest.approx(2 / 3)
    assert away == pytest.approx([-1 / 3, -2 / 3, 1.0])
    assert sizes.tolist() == [2, 1, 3]


def test_groups_that_do_not_differ_have_the_reach_of_as_many_trials():
    """Every person has one of two right: no spread between the 8 persons, and no interval of width zero."""
    values, labels = [1.0, 0.0] * 8, np.repeat(np.arange(8), 2)
    assert bootstrap_ci(values, groups=labels, bounds=(0, 1)) == pytest.approx(constant_interval(0.5, 8))
    assert bootstrap_ci(values, groups=labels) is None
    assert bootstrap_ci([0.0] * 16, groups=labels, bounds=(0, 1)) == pytest.approx(clopper_pearson(0, 8))


def test_few_groups_get_students_interval():
    """Two groups of two, means 0 and 1: 0.5 +- t(.975, 1) sqrt(2 (1 + 1)) / 4, cut at the bounds; three groups by hand:
    0.3 +- 4.302653 * 0.1 / sqrt(3)."""
    values, labels = [0.0, 0.0, 1.0, 1.0], list("aabb")
    assert bootstrap_ci(values, groups=labels, bounds=(0, 1)) == (0.0, 1.0)
    assert bootstrap_ci(values, groups=labels) == pytest.approx((0.5 - 12.706205 / 2, 0.5 + 12.706205 / 2), abs=1e-5)
    half = 4.302653 * 0.1 / 3**0.5
    found = bootstrap_ci(np.repeat([0.2, 0.3, 0.4], 2), groups=list("aabbcc"))
    assert found == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)


@pytest.mark.parametrize("method", ["bca", "percentile", "studentised"])
@pytest.mark.parametrize("num_groups", [2, 3, 5, 6])
def test_few_lopsided_groups_break_nothing(num_groups, method):
    """A group of one example beside large ones, skewed both ways: an interval around the mean, and no warning."""
    rng = np.random.default_rng(num_groups)
    for _ in range(40):
        sizes = rng.integers(1, 31, num_groups)
        values = np.repeat(rng.beta(0.3, 0.6, num_groups), sizes) + 1e-3 * rng.random(sizes.sum())
        low, high = bootstrap_ci(
            values, groups=np.repeat(np.arange(num_groups), sizes), method=method, num=300, bounds=(0, 1.001)
        )
        assert low <= values.mean() <= high


def test_a_score_over_subjects_says_so_and_one_that_is_no_mean_stays():
    per = {f"{person}/{i}": float(person % 2) for person in range(10) for i in range(5)}
    clusters = {key: key.partition("/")[0] for key in per}
    rate = mean_score(per, "share", "lower", binary=True)
    assert rate.ci == clopper_pearson(25, 50)
    wide = over_clusters(rate, clusters)
    assert (wide.groups, wide.n, wide.value) == (10, 50, 0.5)
    assert wide.ci[0] < rate.ci[0] < rate.ci[1] < wide.ci[1]  # ten coins, not fifty
    area = replace(rate, value=0.7)
    assert over_clusters(area, clusters) is area
    assert over_clusters(rate, {}) is rate
    assert over_clusters(wide, {}) is wide
    unbounded = over_clusters(mean_score({k: float(k[-1]) for k in per}, "nats", "lower", bounds=None), clusters)
    assert (unbounded.ci, unbounded.groups) == (None, 10)
    assert unbounded.reason == "no interval: the 10 groups of examples do not differ"


def test_scoring_groups_by_the_subjects_of_the_stream():
    """Through the registry: three persons of two questions; the one who is known carries the rate."""
    ids = [f"{i}" for i in range(6)]
    table = token_table("argmax", [(key, [int(key) < 2]) for key in ids])
    metric = bind("metric", "exact_memorization")
    data = Data(forget=stream("Ann", "Ann", "Bob", "Bob", "Cid", "Cid"))
    measured = Measured({("forget", "tokens", "answer"): table}, {}, 0, 0)
    (found,) = score_all([metric], data, measured).values()
    assert (found.groups, found.n) == (3, 6)
    plain = score(metric, "forget", measured)
    assert plain.groups is None
    assert plain.ci == clopper_pearson(2, 6)
    (alone,) = score_all([metric], Data(forget=stream(*"abcdef")), measured).values()
    assert alone == plain


def _rates(rng: np.random.Generator, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros and ones of persons who differ (Beta with mean 1/2, correlation 0.3), 1 to 30 questions each."""
    sizes, rate = rng.integers(1, 31, num_groups), rng.beta(7 / 6, 7 / 6, num_groups)
    return (rng.random(sizes.sum()) < np.repeat(rate, sizes)).astype(float), np.repeat(np.arange(num_groups), sizes)


@pytest.mark.parametrize("method", ["bca", "studentised"])
def test_simulated_coverage_with_and_without_groups(method):
    """300 worlds of 20 persons, true rate 1/2: 95 % intervals over persons hold it (s.e. 1.3 %), those over examples
    in about every second world."""
    rng, held, alone = np.random.default_rng(7), 0, 0
    for _ in range(300):
        values, labels = _rates(rng, 20)
        low, high = bootstrap_ci(values, method=method, groups=labels, bounds=(0, 1), num=1000)
        held += low <= 0.5 <= high
        low, high = clopper_pearson(int(values.sum()), len(values))
        alone += low <= 0.5 <= high
    assert 0.92 <= held / 300 <= 0.99
    assert alone / 300 < 0.7
