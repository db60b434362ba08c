"""Logs of OpenUnlearning: every number of the file again from its rows, with intervals, against another log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.metrics.likelihood import against
from expunge.metrics.openunlearning_logs import log_scores, score_log
from expunge.metrics.privleak import privleak
from expunge.metrics.truth import forget_quality, log_truth_ratios, truth_values
from support.metric_tables import loss_rows, tables, token_table

RATIOS, OTHERS = (0.5, 2.0, 0.25, 0.1, 4.0, 0.2), (0.9, 2.1, 1.25, 1.1, 4.5, 0.8)
SEEN, UNSEEN = (1.0, 2.0, 3.0, 6.0), (2.5, 4.0, 5.0, 7.0)  # losses: the higher, the less of a member


def rows(name: str, values: Any, **more: Any) -> dict[str, Any]:
    return {str(i): {name: value, **more} for i, value in enumerate(values)}


def attack(seen: Any, unseen: Any, auc: float) -> dict[str, Any]:
    sides = {side: {"agg_value": 0.0, "value_by_index": rows("score", of)} for side, of in (
        ("forget", seen), ("holdout", unseen)
    )}
    return {**sides, "auc": auc, "agg_value": auc}


def a_log() -> dict[str, Any]:
    """What the tool writes; 12 of 16 pairs of losses are the right way round."""
    said = {"input": "q", "ground_truth": "a", "generation": "b", "rouge1_recall": 0.9, "rougeL_f1": 0.4}
    ratio = np.array(RATIOS)
    return {
        "forget_Q_A_Prob": {"agg_value": 0.4, "value_by_index": rows("prob", (0.2, 0.6), avg_loss=1.0)},
        "forget_Q_A_PERT_Prob": {
            "agg_value": 0.3, "value_by_index": rows("prob", ([0.1, 0.3], [0.3, 0.5]), avg_loss=[1.0, 2.0])
        },
        "forget_Q_A_ROUGE": {"agg_value": 0.5, "value_by_index": rows("rougeL_recall", (0.25, 0.75), **said)},
        "forget_knowmem_ROUGE": {"agg_value": 0.4, "value_by_index": rows("rougeL_recall", (0.25, 0.75), **said)},
        "forget_Truth_Ratio": {
            "agg_value": float(np.minimum(ratio, 1 / ratio).mean()), "value_by_index": rows("score", RATIOS)
        },
        "retain_Truth_Ratio": {
            "agg_value": float(np.maximum(0, 1 - ratio).mean()), "value_by_index": rows("score", RATIOS)
        },
        "exact_memorization": {"agg_value": 0.7, "value_by_index": rows("score", (0.6, None, 0.8))},
        "mia_min_k": attack(SEEN, UNSEEN, 12 / 16),
        "privleak": {"agg_value": 100 * (4 / 16 - 0.5) / 0.5},
        "forget_quality": {"agg_value": None},
        "other": {"agg_value": 0.125},
    }


def write(folder: Path, log: Any, name: str = "TOFU_EVAL.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(log))
    return path


def twin(folder: Path) -> Path:
    """The log of the retrained model: AUC 10/16."""
    log = {
        "forget_Truth_Ratio": {"agg_value": 0.5, "value_by_index": rows("score", OTHERS)},
        "mia_min_k": attack((1.0, 4.5, 3.0, 6.0), UNSEEN, 0.0),
    }
    return write(folder, log, "retain.json")


def test_every_number_of_the_file(tmp_path: Path) -> None:
    log = a_log()
    found = score_log(write(tmp_path, log))
    for name in log.keys() - {"forget_quality", "other"}:
        assert found[name].value == pytest.approx(log[name]["agg_value"], abs=1e-12), name
        assert found[name].ci is not None, name
        assert found[name].ci[0] <= found[name].value <= found[name].ci[1], name
        assert "the file says" not in found[name].reason, name
    assert found["forget_quality"].status == "n/a"
    assert found["other"].value == 0.125
    assert found["other"].ci is None
    assert "no rows" in found["other"].reason
    assert found["exact_memorization"].n == 2
    assert "1 rows without a number" in found["exact_memorization"].reason
    assert "0.5 is assumed" in found["privleak"].reason


def test_against_the_log_of_a_retrained_model(tmp_path: Path) -> None:
    """p of the exact test by scipy; 4/16 wrong pairs against 6/16 make a PrivLeak of -33 %."""
    from scipy.stats import ks_2samp

    found = score_log(write(tmp_path, a_log()), twin(tmp_path))
    expected = ks_2samp(RATIOS, OTHERS)
    assert found["forget_quality"].value == pytest.approx(expected.pvalue, rel=1e-12)
    assert found["ks_statistic"].value == pytest.approx(expected.statistic, rel=1e-12)
    assert found["privleak"].value == pytest.approx(-100 / 3)
    assert "the file says -50" in found["privleak"].reason
    last = score_log(write(tmp_path, a_log()), twin(tmp_path), last=3)["forget_quality"]
    assert (last.n, last.value) == (3, pytest.approx(ks_2samp(RATIOS[3:], OTHERS[3:]).pvalue))
    with pytest.raises(DataError, match="has 6 rows"):
        score_log(write(tmp_path, a_log()), twin(tmp_path), last=7)


def test_model_utility_of_its_nine_parts(tmp_path: Path) -> None:
    parts = {f"{part}_{name}": (i + 2) / 12 for i, (part, name) in enumerate(
        (part, name) for part in ("retain", "ra", "wf")
        for name in ("Q_A_Prob" if part == "retain" else "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    )}
    log: dict[str, Any] = {}
    for name, value in parts.items():
        column = "prob" if "Prob" in name else "rougeL_recall" if "ROUGE" in name else "score"
        values = np.array([value - 0.1, value + 0.1])
        log[name] = {"agg_value": value, "value_by_index": rows(column, 1 - values if column == "score" else values)}
    expected = 9 / sum(1 / value for value in parts.values())
    log["model_utility"] = {"agg_value": expected}
    found = score_log(write(tmp_path, log))["model_utility"]
    assert found.value == pytest.approx(expected)
    assert found.ci is not None
    assert found.ci[0] < expected < found.ci[1]
    assert not found.reason


def test_what_does_not_fit_the_file_is_told(tmp_path: Path) -> None:
    log = a_log()
    log["forget_Q_A_Prob"]["agg_value"] = 0.41
    assert "the file says 0.41" in score_log(write(tmp_path, log))["forget_Q_A_Prob"].reason


def test_one_door_for_both_layouts(tmp_path: Path) -> None:
    assert log_scores(write(tmp_path, a_log()))["forget_Q_A_Prob"].value == pytest.approx(0.4)
    with pytest.raises(DataError, match="no section"):
        log_scores(write(tmp_path, {"eval_log.jsn": {}}))


@pytest.mark.parametrize("content", ["", "[1]", '{"forget_Q_A_Prob": 0.4}', "{}"])
def test_what_is_no_such_log(tmp_path: Path, content: str) -> None:
    path = tmp_path / "TOFU_SUMMARY.json"
    path.write_text(content)
    with pytest.raises(DataError, match="EVAL"):
        score_log(path)
    with pytest.raises(DataError, match="no such file"):
        score_log(tmp_path / "absent.json")


def test_a_log_as_the_reference_of_a_model_of_ones_own(tmp_path: Path) -> None:
    """Forget quality: the same ratios as in the log cannot be told apart. PrivLeak against the log's own AUC is 0."""
    truth = {str(i): 1.0 for i in range(len(OTHERS))}
    false = {str(i): 1.0 - math.log(ratio) for i, ratio in enumerate(OTHERS)}
    named = {("stream", "answer"): loss_rows(truth), ("stream", "perturbed"): loss_rows(false)}
    same = forget_quality(tables(named, "stream"), reference=str(twin(tmp_path)))
    assert same.value == pytest.approx(1.0)
    other = forget_quality(tables(named, "stream"), reference=str(write(tmp_path, a_log())))
    assert other.value is not None
    assert other.value < 0.99
    sides = {
        (stream, "answer"): token_table("logp", [(str(i), [-value]) for i, value in enumerate(values)])
        for stream, values in (("stream", SEEN), ("holdout", UNSEEN))
    }
    leak = privleak(tables(sides, "stream"), reference=str(write(tmp_path, a_log())))
    assert leak.value == pytest.approx(0.0)
    assert leak.ci is not None
    assert leak.ci[0] < 0 < leak.ci[1]
    assert privleak(tables(sides, "stream"), reference=0.5).value == pytest.approx(-50.0)


def test_epsilon_in_a_ruined_model() -> None:
    """p = e^-30 of the truth and e^-25 of the false answer: R = e^5, with 1e-10 added to what it divides by 0.139."""
    truth, false = np.array([30.0]), [np.array([25.0])]
    assert np.exp(log_truth_ratios(truth, false)) == pytest.approx(math.exp(5))
    with_epsilon = math.exp(-25) / (math.exp(-30) + 1e-10)
    assert np.exp(log_truth_ratios(truth, false, epsilon=1e-10)) == pytest.approx(with_epsilon)
    share = math.exp(-25) / (math.exp(-25) + math.exp(-30) + 1e-10)
    assert against(-false[0], [-truth], epsilon=1e-10) == pytest.approx(share)
    assert truth_values(np.log([1.0, 3.0]), "share") == pytest.approx([0.5, 0.25])
