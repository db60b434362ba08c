"""Re-scoring of stored TOFU logs: the published numbers of real models."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import DataError
from expunge.metrics.likelihood import probability
from expunge.metrics.rouge import rouge_scores
from expunge.metrics.tofu_logs import score_log
from expunge.metrics.truth import ratios, truth_ratio, truth_ratio_utility
from expunge.metrics.utility import model_utility
from support.metric_tables import loss_rows, sample_table, tables

LOGS = Path(__file__).parents[2].parent / "shared" / "data" / "tofu_eval_logs"
present = pytest.mark.skipif(not LOGS.exists(), reason="../shared/data/tofu_eval_logs is not here: real TOFU logs")


def records() -> list[dict[str, Any]]:
    return json.loads((LOGS / "expected.json").read_text()) if LOGS.exists() else []


@present
@pytest.mark.parametrize("record", records(), ids=lambda r: f"{r['log']}-{r['forget_split']}")
def test_published_numbers(record: dict[str, Any]) -> None:
    """Every aggregate to 1e-12, the p-value and the statistic to 1e-12 relative, each inside its interval."""
    scores = score_log(LOGS / record["log"], LOGS / record["retain_reference"], last_n=record["last_n_forget_rows"])
    assert len(record["aggregates"]) == 13
    for name, value in record["aggregates"].items():
        assert scores[name].value == pytest.approx(value, abs=1e-12), name
    assert scores["Forget Quality"].value == pytest.approx(record["forget_quality_p"], rel=1e-12)
    assert scores["KS Statistic"].value == pytest.approx(record["ks_statistic"], rel=1e-12)
    assert len(scores) == 15
    for name, score in scores.items():
        assert score.ci is not None
        assert score.value is not None
        assert score.ci[0] <= score.value <= score.ci[1], name
        assert score.ci[0] < score.ci[1], name


@present
@pytest.mark.parametrize("log", sorted({record["log"] for record in records()}))
def test_the_mean_probability_variant(log: str) -> None:
    """`wrong="arithmetic"` gives the other numbers in use; without a reference forget quality is n/a."""
    expected = next(record for record in records() if record["log"] == log)
    scores = score_log(LOGS / log, wrong="arithmetic")
    for name, value in expected["aggregates_if_truth_ratio_uses_mean_probability"].items():
        assert scores[name].value == pytest.approx(value, abs=1e-12), name
    assert scores["Forget Quality"].status == "n/a"


@present
def test_list_layout() -> None:
    """SOURCE.md gives the numbers of the list-layout log to six digits."""
    scores = score_log(LOGS / "listformat_llama2-7b_retain99.json.gz")
    expected = {
        "Prob. Retain": 0.989928, "ROUGE Retain": 0.985249, "Truth Ratio Retain": 0.478231,
        "Prob. Real Authors": 0.450568, "ROUGE Real Authors": 0.925, "Truth Ratio Real Authors": 0.586294,
        "Prob. Real World": 0.421913, "ROUGE Real World": 0.870370, "Truth Ratio Real World": 0.547137,
        "Prob. Forget": 0.175083, "ROUGE Forget": 0.406189, "Truth Ratio Forget": 0.670178,
        "Model Utility": 0.622015,
    }
    assert {name: scores[name].value for name in expected} == pytest.approx(expected, abs=1e-6)


@present
def test_more_rows_than_there_are() -> None:
    with pytest.raises(DataError, match="has 300 rows"):
        score_log(LOGS / "phi_full.json.gz", LOGS / "phi_retain99.json.gz", last_n=301)


@present
def test_the_metrics_on_tables_give_the_same() -> None:
    """The log's losses as tables through the registered metrics: the same numbers by the other road."""
    whole = json.loads(gzip.decompress((LOGS / "phi_full.json.gz").read_bytes()))
    names = {
        "forget": "eval_log_forget.json", "retain": "eval_log.json",
        "real_authors": "eval_real_author_wo_options.json", "world_facts": "eval_real_world_wo_options.json",
    }
    found = {}
    for stream, part in names.items():
        found[stream, "answer"] = loss_rows(whole[part]["avg_gt_loss"])
        found[stream, "paraphrased_answer"] = loss_rows(whole[part]["avg_paraphrased_loss"])
        found[stream, "perturbed"] = loss_rows(whole[part]["average_perturb_loss"])
        texts = whole[part]["generated_text"].items()
        found[stream, "prompt"] = sample_table([(row, reference, text) for row, (_, text, reference) in texts])
    scores = score_log(LOGS / "phi_full.json.gz")
    forget, retain = tables(found, "forget"), tables(found, "retain")
    assert probability(forget).value == pytest.approx(scores["Prob. Forget"].value, abs=1e-12)
    assert truth_ratio(forget).value == pytest.approx(scores["Truth Ratio Forget"].value, abs=1e-12)
    assert truth_ratio_utility(retain).value == pytest.approx(scores["Truth Ratio Retain"].value, abs=1e-12)
    authors = probability(tables(found, "real_authors"), against_perturbed=True)
    assert authors.value == pytest.approx(scores["Prob. Real Authors"].value, abs=1e-12)
    assert model_utility(retain).value == pytest.approx(scores["Model Utility"].value, abs=1e-12)
    stored = whole["eval_log_forget.json"]["truth_ratio"]
    assert ratios(forget) == pytest.approx(stored, abs=1e-4)


@present
@pytest.mark.parametrize("kind", ["rouge1", "rougeL"])
def test_rouge_recall_equals_the_stored_values(kind: Any) -> None:
    """Generations of Phi after retaining 99 %, world facts and the forget set: the stored recall of every row."""
    whole = json.loads(gzip.decompress((LOGS / "phi_retain99.json.gz").read_bytes()))
    for part in ("eval_log_forget.json", "eval_real_world_wo_options.json"):
        rows = whole[part]["generated_text"]
        found = rouge_scores([row[2] for row in rows.values()], [row[1] for row in rows.values()], kind=kind)
        assert found == pytest.approx([whole[part][f"{kind}_recall"][row] for row in rows], abs=1e-12)
