"""Exposure and reciprocal rank of canaries: by hand, curves of known shape, and a model that was taught some."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.exposure import (
    exposure,
    exposure_of,
    extrapolated_exposure,
    mean_reciprocal_rank,
    rank_of,
)
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Stream
from support.learned import taught
from support.metric_tables import shuffled

FORMAT = "The code of {name} is {digits:2}"


def table(rows):
    """rows: (id, tokens, bits of the whole text)."""
    logp = [[-bits * math.log(2) / len(tokens)] * len(tokens) for _, tokens, bits in rows]
    return Table.of({
        "id": [name for name, *_ in rows], "item": list(range(len(rows))),
        "token": pa.array([tokens for _, tokens, _ in rows], type=pa.list_(pa.int32())),
        "logp": pa.array(logp, type=pa.list_(pa.float64())),
    })


def tables(choices, answers=(("a", [7, 1]),)):
    truth = table([(name, tokens, 1.0) for name, tokens in answers])
    choice = choices if isinstance(choices, Table) else table(choices)
    found = {("this", "forget", "tokens", "answer"): truth, ("this", "forget", "tokens", "choices"): choice}
    return Tables(found, "forget", {})


CHOICES = [("a", [7, 0], 3.0), ("a", [7, 1], 5.0), ("a", [7, 2], 9.0), ("a", [7, 3, 3], 4.0)]


def test_by_hand():
    """Two of four candidates are likelier: rank 3, log2 4 - log2 3 bits. A candidate that stands twice counts once."""
    found = exposure(tables(CHOICES))
    assert found.per_example == pytest.approx({"a": 2 - math.log2(3)})
    assert found.reason.startswith("largest possible: 2.00 bits among 4 candidates")
    assert mean_reciprocal_rank(tables(CHOICES)).value == pytest.approx(1 / 3)
    twice = [*CHOICES, CHOICES[0], CHOICES[1]]
    assert exposure(tables(twice)) == found
    assert exposure(tables(shuffled(table(twice), 2))) == found


def test_equals_share_the_middle():
    """A model that finds all n equally likely exposes log2 n - log2((n + 1) / 2), at most one bit, not log2 n."""
    assert rank_of(2.0, [2.0, 2.0, 1.0, 3.0]) == 3.0
    assert exposure_of(0.0, [0.0] * 7) == pytest.approx(3 - math.log2(4.5))


def test_a_canary_that_is_not_among_its_candidates_is_left_out():
    rows = [*CHOICES, ("b", [1], 1.0), ("b", [2], 1.0), ("c", [4], 1.0)]
    found = exposure(tables(rows, [("a", [7, 1]), ("b", [3]), ("c", [4])]))
    assert list(found.per_example) == ["a"]
    assert "2 of 3 examples left out: the answer is not one of two or more choices" in found.reason
    with pytest.raises(NotMeasured, match="no candidate"):
        exposure(tables(table([]), []))


def test_a_random_rank_exposes_log2_e_bits():
    """E[log2 n - log2 U{1..n}] tends to log2 e = 1.4427 with n."""
    n = 4096
    ranks = np.arange(1, n + 1)
    assert float(np.mean(math.log2(n) - np.log2(ranks))) == pytest.approx(math.log2(math.e), abs=0.01)
    others = np.arange(1, n, dtype=float)
    assert exposure_of(0.5, others) == pytest.approx(math.log2(n))
    assert exposure_of(n, others) == pytest.approx(0.0)


@pytest.mark.parametrize("shape", [0.0, 3.0, -3.0])
def test_the_curve_finds_the_tail_it_was_drawn_from(shape):
    """2,000 candidates of a known curve: the exposure of its quantile at 2^-8 is 8 bits, at 2^-20 about 20."""
    others = stats.skewnorm.rvs(shape, 30, 4, size=2000, random_state=1)
    for bits, off in ((1, 0.1), (8, 0.6), (20, 3.0)):
        canary = float(stats.skewnorm.ppf(2.0**-bits, shape, 30, 4))
        assert extrapolated_exposure(canary, others) == pytest.approx(bits, abs=off)
    by_rank = exposure_of(float(np.quantile(others, 1 / 16)), others)
    assert extrapolated_exposure(float(np.quantile(others, 1 / 16)), others) == pytest.approx(by_rank, abs=0.3)


def test_where_no_curve_fits_there_is_no_number():
    assert extrapolated_exposure(1.0, np.ones(50)) is None
    assert extrapolated_exposure(1.0, np.arange(5.0)) is None
    assert extrapolated_exposure(1.0, np.random.default_rng(0).exponential(3, 1000) + 10) is None  # an edge, no tail
    found = exposure(tables(CHOICES), extrapolate=True)
    assert found.value is None
    assert "1 of 1 examples left out: no curve fits" in found.reason


def test_a_taught_canary_is_exposed_and_one_never_planted_is_not():
    """100 secrets: planted ones reach log2 100 = 6.64 bits, 32 controls stay at 1.44 within three standard errors."""
    spec = {"use": "canaries", "format": FORMAT, "num": 4, "repeats": [1, 7], "candidates": 100}
    parts = {part: tuple(bind("reader", {**spec, "part": part})()) for part in ("training", "inserted")}
    parts["controls"] = tuple(bind("reader", {**spec, "part": "controls", "num": 16})())
    subject = taught(tiny_subject(seed=3), Data(taught=Stream("taught", "anchor", parts["training"])), ["taught"], 40)
    data = Data(forget=Stream("forget", "forget", parts["inserted"]))
    data["holdout"] = Stream("holdout", "holdout", parts["controls"])
    specs = ("exposure", "mean_reciprocal_rank", {"use": "exposure", "extrapolate": True})
    metrics = [bind("metric", one) for one in specs]
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    planted = found["forget", "exposure"]
    assert planted.value is not None
    assert all(value > 6 for key, value in planted.per_example.items() if "/x7/" in key)
    assert planted.value > 5
    control = found["holdout", "exposure"]
    assert control.value == pytest.approx(math.log2(math.e), abs=3 * math.log2(math.e) / math.sqrt(control.n))
    assert found["forget", "mean_reciprocal_rank"].value > 0.7 > 0.3 > found["holdout", "mean_reciprocal_rank"].value
    further = found["forget", "exposure(extrapolate=True)"]
    assert further.value is not None
    assert further.value > 5
