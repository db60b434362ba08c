"""Metrics of the token table: memorization, extraction, probability, perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.measure.tables import NotMeasured, Tables
from expunge.metrics.extraction import extraction_strength
from expunge.metrics.likelihood import perplexity, probability
from expunge.metrics.memorization import exact_memorization, memorization_accuracy
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind, entries
from expunge.types import Score
from support.metric_tables import loss_rows, shuffled, tables, token_table

ARGMAX: list[Callable[[Tables], Score]] = [memorization_accuracy, exact_memorization, extraction_strength]
ROWS = [("a", [True, False, True, True]), ("b", [True, True]), ("c", [True, False])]


def test_by_hand() -> None:
    """a: 3 of 4 right, suffix 2 of 4; b: all right; c: 1 of 2, last wrong.

    MA = (3/4 + 1 + 1/2) / 3; EM = 1/3; ES = (1/2 + 1 + 0) / 3.
    """
    given = tables(token_table("argmax", ROWS))
    assert memorization_accuracy(given).per_example == {"a": 0.75, "b": 1.0, "c": 0.5}
    assert memorization_accuracy(given).value == pytest.approx(0.75)
    assert exact_memorization(given).per_example == {"a": 0.0, "b": 1.0, "c": 0.0}
    assert exact_memorization(given).ci == clopper_pearson(1, 3)
    assert extraction_strength(given).per_example == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert extraction_strength(given).value == pytest.approx(0.5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), max_size=7), max_size=6), st.integers(0, 9))
def test_against_obvious_loops(rows: list[list[bool]], seed: int) -> None:
    """One example at a time, position by position; rows without a counted token do not exist; row order is not seen."""
    table = token_table("argmax", [(f"id{k}", row) for k, row in enumerate(rows)])
    counted = {f"id{k}": row for k, row in enumerate(rows) if row}
    expected = {name: [0.0, 0.0, 0.0] for name in counted}
    for name, row in counted.items():
        n = len(row)
        k = next(k for k in range(n + 1) if all(row[k:]))
        expected[name] = [sum(row) / n, float(all(row)), 1 - k / n]
    for column, fn in enumerate(ARGMAX):
        score = fn(tables(table))
        assert score.per_example == pytest.approx({name: values[column] for name, values in expected.items()})
        assert fn(tables(shuffled(table, seed) if rows else table)) == score
        assert score.status == ("ok" if counted else "n/a")


def test_several_rows_of_an_example() -> None:
    """Two texts of one example, 1 of 2 and 2 of 2 right: MA 3/4, ES (0 + 1)/2, exact only if all are."""
    given = tables(token_table("argmax", [("a", [True, False]), ("b", [True]), ("a", [True, True])]))
    assert memorization_accuracy(given).per_example == {"a": 0.75, "b": 1.0}
    assert extraction_strength(given).per_example == {"a": 0.5, "b": 1.0}
    assert exact_memorization(given).per_example == {"a": 0.0, "b": 1.0}


def test_all_extracted_is_not_certain() -> None:
    """5 of 5: the interval is Clopper-Pearson's, for the share and for the strengths that are all 1."""
    given = tables(token_table("argmax", [(str(k), [True, True]) for k in range(5)]))
    for fn in ARGMAX:
        assert fn(given).ci == pytest.approx(clopper_pearson(5, 5))


def test_probability_by_hand() -> None:
    """a: log p = log 1/2 and log 1/8, geometric mean 1/4, whole answer 1/16; b: one token 1/2."""
    given = tables(token_table("logp", [("a", np.log([1 / 2, 1 / 8])), ("b", np.log([1 / 2]))]))
    assert probability(given).per_example == pytest.approx({"a": 1 / 4, "b": 1 / 2})
    assert probability(given, normalise=False).per_example == pytest.approx({"a": 1 / 16, "b": 1 / 2})


def test_probability_against_perturbed_by_hand() -> None:
    """p = 0.2 against 0.1 and 0.1: 0.5. b has no false answer and is left out."""
    given = tables({
        ("forget", "answer"): loss_rows({"a": -math.log(0.2), "b": 1.0}),
        ("forget", "perturbed"): loss_rows({"a": [-math.log(0.1), -math.log(0.1)]}),
    })
    assert probability(given, against_perturbed=True).per_example == pytest.approx({"a": 0.5})
    with pytest.raises(NotMeasured, match="perturbed"):
        probability(tables(loss_rows({"a": 1.0})), against_perturbed=True)


def test_probability_against_perturbed_does_not_underflow() -> None:
    """Losses of 2000 nats, one apart: e^-2000 is 0 in doubles, yet p / (p + q) = 1 / (1 + e^-1)."""
    found = {("forget", "answer"): loss_rows({"a": 2000.0}), ("forget", "perturbed"): loss_rows({"a": [2001.0]})}
    given = tables(found)
    assert probability(given, against_perturbed=True).value == pytest.approx(1 / (1 + math.exp(-1)))


def test_perplexity_by_hand() -> None:
    """3 tokens of loss 1 and 1 token of loss 5: exp(8/4) = e^2, not the mean of e and e^5."""
    score = perplexity(tables(token_table("logp", [("a", [-1.0] * 3), ("b", [-5.0])])))
    assert score.value == pytest.approx(math.exp(2))
    assert score.per_example == pytest.approx({"a": math.e, "b": math.exp(5)})
    assert score.ci == pytest.approx((math.e, math.exp(5)))


def test_perplexity_interval_covers() -> None:
    """200 examples of 1..20 tokens with losses of mean 2: e^2 inside, and order of rows does not matter."""
    rng = np.random.default_rng(0)
    table = token_table("logp", [(f"{k:03}", -rng.gamma(4, 0.5, rng.integers(1, 21))) for k in range(200)])
    score = perplexity(tables(table))
    assert score.ci is not None
    assert score.ci[0] < math.exp(2) < score.ci[1]
    again = perplexity(tables(shuffled(table)))
    assert (again.value, again.ci) == (pytest.approx(score.value), pytest.approx(score.ci))


def test_a_ruined_model_has_finite_numbers() -> None:
    """An impossible token: perplexity is held at e^700 and says so, probability is 0; another row is not touched."""
    given = tables(token_table("logp", [("a", [-math.inf, -1.0]), ("b", [-1.0])]))
    score = perplexity(given)
    assert score.value == pytest.approx(math.exp(700))
    assert "held at" in score.reason
    assert score.per_example["b"] == pytest.approx(math.e)
    assert probability(given).per_example == pytest.approx({"a": 0.0, "b": math.exp(-1)})


def test_one_row_and_no_row() -> None:
    one = perplexity(tables(token_table("logp", [("a", [-1.0])])))
    assert one.ci is None
    assert "no interval" in one.reason
    for fn in (perplexity, probability, *ARGMAX):
        assert fn(tables(token_table("argmax", []))).status == "n/a"


def test_not_a_number_is_said() -> None:
    given = tables(token_table("logp", [("a", [math.nan]), ("b", [-1.0])]))
    assert probability(given).status == perplexity(given).status == "n/a"


def test_every_metric_is_registered_with_its_directions() -> None:
    """Importing the folder registers all; hyper-parameters bind; unit and direction of a missing score agree."""
    expected = {
        "probability", "perplexity", "memorization_accuracy", "exact_memorization", "extraction_strength", "rouge",
        "truth_ratio", "truth_ratio_utility", "forget_quality", "model_utility", "membership",
    }
    known = entries("metric")
    assert expected <= known.keys()
    for name in expected:
        assert known[name].summary.endswith((".", "?"))
        assert all(need.columns for need in known[name].meta["needs"])
        assert bind("metric", name).name == name
    empty = tables(token_table("argmax", []))
    for fn, name in zip(ARGMAX, ("memorization_accuracy", "exact_memorization", "extraction_strength"), strict=True):
        score = fn(empty)
        assert (score.unit, score.better) == (known[name].meta["unit"], known[name].meta["better"])
