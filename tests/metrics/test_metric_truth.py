"""Truth ratio and forget quality."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from expunge.measure.tables import NotMeasured, Table
from expunge.metrics.truth import (
    forget_quality,
    log_truth_ratios,
    ratios,
    truth_ratio,
    truth_ratio_utility,
    truth_values,
)
from support.metric_tables import loss_rows, shuffled, tables

LOG2 = math.log(2)


def test_log_ratio_by_hand() -> None:
    """p_para = 1/4, wrong 1/2 and 1/8. Geometric mean 1/4: R = 1. Arithmetic mean 5/16: R = 5/4."""
    l_para, l_pert = np.array([2 * LOG2]), [np.array([LOG2, 3 * LOG2])]
    assert log_truth_ratios(l_para, l_pert) == pytest.approx([0.0], abs=1e-15)
    assert np.exp(log_truth_ratios(l_para, l_pert, wrong="arithmetic")) == pytest.approx([5 / 4])


def test_values_by_hand() -> None:
    """R = 1/4, 1, 4: min(R, 1/R) = 1/4, 1, 1/4; max(0, 1 - R) = 3/4, 0, 0. Huge ratios do not overflow."""
    logs = np.log([0.25, 1.0, 4.0])
    assert truth_values(logs, "forget") == pytest.approx([0.25, 1.0, 0.25])
    assert truth_values(logs, "utility") == pytest.approx([0.75, 0.0, 0.0])
    far = log_truth_ratios(np.array([1e4, 0.0]), [np.array([0.0]), np.array([1e4])])
    assert truth_values(far, "forget") == pytest.approx([0, 0], abs=1e-300)
    assert truth_values(far, "utility") == pytest.approx([0, 1])


def stream(name: str = "forget", subject: str = "this", shift: float = 0.0) -> dict[tuple[str, ...], Table]:
    """a: R = e^(1 - 2 + shift); b: R = e^(3 - 1 + shift)."""
    return {
        (subject, name, "answer"): loss_rows({"a": 9.0, "b": 9.0}),
        (subject, name, "paraphrased_answer"): loss_rows({"a": 1.0 + shift, "b": 3.0 + shift}),
        (subject, name, "perturbed"): loss_rows({"a": [1.5, 2.5], "b": [1.0, 0.5, 1.5]}),
    }


def test_metrics_by_hand() -> None:
    """R_a = e^-1, R_b = e^2: forget (e^-1, e^-2), utility (1 - e^-1, 0)."""
    given = tables(stream())
    assert ratios(given) == pytest.approx({"a": math.exp(-1), "b": math.exp(2)})
    assert truth_ratio(given).per_example == pytest.approx({"a": math.exp(-1), "b": math.exp(-2)})
    assert truth_ratio_utility(given).per_example == pytest.approx({"a": 1 - math.exp(-1), "b": 0.0})
    mixed = tables({key: shuffled(table, 3) for key, table in stream().items()})
    assert truth_ratio(mixed) == truth_ratio(given)


def test_without_a_paraphrase_the_answer_stands_in() -> None:
    """The answer's loss 9 takes the place of the paraphrase's, for all ids or for the one without, and is said."""
    given = stream()
    del given["this", "forget", "paraphrased_answer"]
    assert ratios(tables(given)) == pytest.approx({"a": math.exp(9 - 2), "b": math.exp(9 - 1)})
    assert "stands in" in truth_ratio(tables(given)).reason
    given["this", "forget", "paraphrased_answer"] = loss_rows({"a": 1.0})
    assert ratios(tables(given)) == pytest.approx({"a": math.exp(-1), "b": math.exp(8)})
    assert "1 of 2" in truth_ratio(tables(given)).reason


def test_without_false_answers() -> None:
    """No table: not measured. An id without false answers is left out and counted. None at all: n/a."""
    given = stream()
    given["this", "forget", "perturbed"] = loss_rows({"a": [2.0]})
    score = truth_ratio(tables(given))
    assert score.per_example == pytest.approx({"a": math.exp(-1)})
    assert "1 of 2" in score.reason
    given["this", "forget", "perturbed"] = loss_rows({})
    assert truth_ratio(tables(given)).status == "n/a"
    del given["this", "forget", "perturbed"]
    with pytest.raises(NotMeasured):
        truth_ratio(tables(given))


def wide(subject: str, shift: float, num: int = 40) -> dict[tuple[str, ...], Table]:
    rng = np.random.default_rng(0)
    losses = {f"{k:02}": float(value) for k, value in enumerate(rng.normal(2, 1, num) + shift)}
    return {
        (subject, "forget", "answer"): loss_rows(losses),
        (subject, "forget", "paraphrased_answer"): loss_rows(losses),
        (subject, "forget", "perturbed"): loss_rows({key: [2.0, 2.5] for key in losses}),
    }


@pytest.mark.parametrize(("shift", "word"), [(3.0, "above"), (-3.0, "below")])
def test_forget_quality_has_a_sign(shift: float, word: str) -> None:
    """Losses of the truth 3 nats up: ratios above the oracle's (over-forgetting); down: below (not forgotten)."""
    given = tables({**wide("this", shift), **wide("oracle", 0.0)})
    score = forget_quality(given)
    expected = ks_2samp(list(ratios(given).values()), list(ratios(given, subject="oracle").values()))
    assert score.value == pytest.approx(expected.pvalue, rel=1e-12)
    assert f"{word} the oracle's" in score.reason
    assert score.per_example == pytest.approx(dict.fromkeys(score.per_example, shift))
    assert score.ci is not None
    assert score.ci[0] <= expected.pvalue <= score.ci[1] < 0.01


def test_forget_quality_of_the_oracle_itself() -> None:
    """p = 1, but 40 examples cannot say so precisely; ids the subject lacks are not compared."""
    score = forget_quality(tables({**wide("this", 0.0, 30), **wide("oracle", 0.0)}))
    assert (score.value, score.n) == (1.0, 30)
    assert score.ci is not None
    assert score.ci[0] < 0.5
    assert score.ci[1] == 1.0


def test_forget_quality_degenerate() -> None:
    """No oracle: not measured. Nothing shared, or a paraphrase on one side only: n/a with the reason."""
    with pytest.raises(NotMeasured, match="oracle"):
        forget_quality(tables(stream()))
    empty = {("oracle", "forget", v): loss_rows({}) for v in ("answer", "paraphrased_answer", "perturbed")}
    assert "both" in forget_quality(tables({**stream(), **empty})).reason
    lopsided = {**stream(), **stream(subject="oracle")}
    del lopsided["oracle", "forget", "paraphrased_answer"]
    assert "one of" in forget_quality(tables(lopsided)).reason
    broken = {**stream(shift=math.nan), **stream(subject="oracle")}
    assert forget_quality(tables(broken)).status == "n/a"
    assert truth_ratio(tables(broken)).status == "n/a"
    impossible = {**stream(), ("this", "forget", "perturbed"): loss_rows({"a": [math.inf], "b": [1.0]})}
    assert truth_ratio_utility(tables(impossible)).per_example["a"] == 1.0
