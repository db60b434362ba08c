"""Model utility."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.measure.tables import Table
from expunge.metrics.utility import harmonic_mean, model_utility, utility_interval
from support.metric_tables import loss_rows, sample_table, shuffled, tables


def stream(name: str, text: str = "red hat") -> dict[tuple[str, ...], Table]:
    """Probability 1/2 (against one false answer of 1/2: 1/2), truth ratio R = 1 - 3/4, ROUGE of `text`."""
    return {
        (name, "answer"): loss_rows({"a": math.log(2), "b": math.log(2)}),
        (name, "paraphrased_answer"): loss_rows({"a": math.log(2), "b": math.log(2)}),
        (name, "perturbed"): loss_rows({"a": [math.log(8)], "b": [math.log(8)]}),
        (name, "prompt"): sample_table([("a", "red hat", text), ("b", "red hat", "red hat")]),
    }


def test_harmonic_mean_by_hand() -> None:
    """3 / (1/1 + 1/2 + 1/4) = 12/7; a zero component gives zero."""
    assert harmonic_mean(np.array([1.0, 0.5, 0.25])) == pytest.approx(3 / 7)
    assert harmonic_mean(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([0.0, 0.5])


def test_by_hand() -> None:
    """Retain: probability 1/2, ROUGE (1/2 + 1)/2 = 3/4, truth ratio 1 - (1/8)/(1/2) = 3/4.

    real_authors: probability (1/2) / (1/2 + 1/8) = 4/5, ROUGE 1, truth ratio 3/4.
    Utility = 6 / (2 + 4/3 + 4/3 + 5/4 + 1 + 4/3).
    """
    given = {**stream("retain", "red"), **stream("real_authors")}
    score = model_utility(tables(given, "retain"))
    assert score.value == pytest.approx(6 / (2 + 4 / 3 + 4 / 3 + 5 / 4 + 1 + 4 / 3))
    assert "over retain" in score.reason
    assert "without world_facts" in score.reason
    assert score.n == 4
    assert score.ci is not None
    assert score.ci[0] < score.value < score.ci[1]
    mixed = tables({key: shuffled(table, 1) for key, table in given.items()}, "retain")
    assert model_utility(mixed) == score
    alone = model_utility(tables(given, "retain"), streams=("retain",))
    assert alone.value == pytest.approx(3 / (2 + 4 / 3 + 4 / 3))


def test_a_missing_component_is_said() -> None:
    """Without false answers the retain stream has probability 1/2 and ROUGE 1 only: 2 / (2 + 1)."""
    given = stream("retain")
    del given["retain", "perturbed"]
    score = model_utility(tables(given, "retain"))
    assert score.value == pytest.approx(2 / 3)
    assert "without retain truth ratio" in score.reason


def test_a_zero_component_gives_zero_but_not_certainty() -> None:
    """ROUGE 0 on every example: utility 0, with an interval that is not a point."""
    given = stream("retain")
    given["retain", "prompt"] = sample_table([("a", "red", "blue"), ("b", "red", "blue")])
    score = model_utility(tables(given, "retain"))
    assert score.value == 0.0
    assert score.ci is not None
    assert score.ci[0] == 0.0 < score.ci[1]


def test_nothing_measured_is_not_available() -> None:
    score = model_utility(tables({}, "retain"))
    assert score.status == "n/a"
    assert "world_facts" in score.reason
    assert model_utility(tables({}, "retain"), streams=()).status == "n/a"


def test_interval_against_an_obvious_loop() -> None:
    """The same draws, one at a time: mean every component over the drawn examples, then the harmonic mean."""
    rng = np.random.default_rng(0)
    groups = [rng.uniform(0.2, 1, (3, 12)), rng.uniform(0.2, 1, (2, 7))]
    draws, found = np.random.default_rng(5), []
    first, second = draws.integers(0, 12, (200, 12)), draws.integers(0, 7, (200, 7))
    for i, j in zip(first, second, strict=True):
        means = [row[i].mean() for row in groups[0]] + [row[j].mean() for row in groups[1]]
        found.append(len(means) / sum(1 / mean for mean in means))
    assert utility_interval(groups, num=200, seed=5) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))
