"""lm-evaluation-harness: its results as our rows, and, where it is installed, its accuracy equal to ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import DataError, MissingExtra, RecipeError
from expunge.harness import rows_of, run_harness, samples_of
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import Table
from expunge.metrics.stats import clopper_pearson
from expunge.models import load, save
from expunge.registry import bind
from expunge.report import schema
from expunge.scoring import needs_of, score
from expunge.types import Data, Example, Stream, Wrapper
from support.learned import short_examples, taught

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed (extra 'eval')"
)

RESULTS: dict[str, Any] = {
    "results": {
        "t": {"alias": "t", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25, "word_perplexity,none": 9.0,
              "word_perplexity_stderr,none": "N/A", "exact_match,strict-match": 1.0,
              "exact_match_stderr,strict-match": 0.0, "odd,none": "text", "odd_stderr,none": 0.1},
    },
    "groups": {"g": {"alias": "g", "acc,none": 0.5, "acc_stderr,none": 0.05}},
    "n-samples": {"t": {"original": 100, "effective": 4}},
    "higher_is_better": {"t": {"acc": True, "word_perplexity": False, "exact_match": True}, "g": {"acc": True}},
    "samples": {"t": [
        {"doc_id": 7, "doc": {"q": "secret"}, "filter": "none", "metrics": ["acc", "odd"], "acc": 1.0, "odd": "x"},
        {"doc_id": 8, "doc": {"q": "secret"}, "filter": "none", "metrics": ["acc"], "acc": 0.0},
    ]},
}


def test_results_become_rows() -> None:
    """0.75 +- 1.96 * 0.25 cut at 1; no standard error, no interval; all 4 equal: Clopper-Pearson's 4 of 4."""
    rows = {row.metric: row for row in rows_of(RESULTS, "m")}
    assert set(rows) == {
        "harness/t/acc", "harness/t/word_perplexity", "harness/t/exact_match:strict-match", "harness/t/odd",
        "harness/g/acc",
    }
    acc = rows["harness/t/acc"]
    assert (acc.condition, acc.stream, acc.value, acc.n, acc.unit, acc.better) == ("m", "t", 0.75, 4, "share", "higher")
    assert acc.ci == pytest.approx((0.75 - 1.959964 * 0.25, 1.0))
    assert "standard error 0.25" in acc.reason
    perplexity = rows["harness/t/word_perplexity"]
    assert (perplexity.ci, perplexity.better, perplexity.unit) == (None, "lower", "perplexity")
    assert "no standard error" in perplexity.reason
    assert rows["harness/t/exact_match:strict-match"].ci == pytest.approx(clopper_pearson(4, 4))
    assert rows["harness/t/odd"].status == "n/a"
    assert rows["harness/g/acc"].ci == pytest.approx((0.5 - 0.0979982, 0.5 + 0.0979982))


def test_samples_become_a_table_without_texts() -> None:
    table = samples_of(RESULTS)
    assert table.ids == ["t/7", "t/8"]
    assert table.column("value").tolist() == [1.0, 0.0]
    assert "secret" not in str(table.arrow.to_pydict())


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'expunge\[eval\]'"):
        run_harness(["nowhere"], ["arc_easy"])


# -- with the harness --------------------------------------------------------------------------------------------
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
"""


LETTERS = """task: our_letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about people.\\n\\n"
doc_to_text: "{{{{asked}}}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
LAST_WORD = """task: our_last_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.rsplit(' ', 1)[0]}}}}"
doc_to_target: "{{{{' ' + text.rsplit(' ', 1)[1]}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def _questions() -> tuple[Example, ...]:
    """Twenty questions, eight of which are taught; the right choice stands at every place in turn."""
    made, answers = [], sorted({one.answer for one in short_examples(12, "f", 0)})
    for i, one in enumerate(short_examples(20, "f", 0)):
        others = [answers[(i + 5 * k) % 12] for k in range(4)]
        others = [other for other in others if other != one.answer][:3]
        choices = (*others[: i % 4], one.answer, *others[i % 4 :])
        made.append(replace(one, choices=choices, perturbed=(), subject="people"))
    return tuple(made)


@pytest.fixture
def local_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task file over rows on this machine, and a data set cache of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows: list[dict[str, Any]] = [
        {"question": one.prompt, "choices": list(one.choices), "answer": one.choices.index(one.answer)}
        for one in _questions()
    ]
    for row in rows:
        row["text"] = f"{row['question']} {row['choices'][row['answer']]}"
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"], strict=True))
        row["asked"] = f"{row['question']}\n{listed}Answer:"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("our_choice", TASK), ("our_letters", LETTERS), ("our_last_word", LAST_WORD)):
        (tmp_path / f"{name}.yaml").write_text(text.format(name=name, file=tmp_path / "rows.jsonl"))
    return tmp_path / "our_choice.yaml"


def _last(text: str) -> tuple[int, int]:
    """Where the last word stands."""
    return text.rindex(" ") + 1, len(text)


@needs_harness
@pytest.mark.filterwarnings("ignore")  # those of the harness and of what it imports
def test_the_harness_and_our_metrics_agree(tiny, tmp_path: Path, local_task: Path) -> None:
    """A model that learned eight of twenty questions: document by document the same are right, and the same share."""
    stream = Stream("forget", "forget", _questions())
    known = Data(forget=replace(stream, examples=stream.examples[:8]))
    subject = replace(taught(tiny, known, ("forget",)), wrapper=Wrapper("{prompt} {answer}"))
    folder, out = save(subject, tmp_path / "out" / "model"), tmp_path / "out"
    files = [str(local_task.with_name(f"our_{name}.yaml")) for name in ("choice", "letters", "last_word")]
    rows = {row.metric: row for row in run_harness([str(folder)], files, out=out)}

    table = Table.read(out / "tables" / "harness.model.parquet")
    written = Stream("probe", "probe", tuple(
        replace(one, prompt="", answer=f"{one.prompt} {one.answer}", spans=(_last(f"{one.prompt} {one.answer}"),))
        for one in stream.examples
    ))
    for asked, spec, task, theirs in (
        (stream, {"use": "choice_accuracy"}, "our_choice", "acc"),
        (stream, {"use": "choice_accuracy", "normalise": "characters"}, "our_choice", "acc_norm"),
        (stream, {"use": "choice_accuracy", "normalise": "bytes"}, "our_choice", "acc_bytes"),
        (stream, {"use": "letter_accuracy"}, "our_letters", "acc"),
        (written, {"use": "lambada"}, "our_last_word", "acc"),
    ):
        metric, plan = bind("metric", spec), Plan()
        plan.add(asked.name, needs_of(metric))
        found = score(metric, asked.name, measure(load(str(folder)), Data({asked.name: asked}), plan))
        assert found.value is not None
        assert 0.0 < found.value < 1.0, spec
        assert rows[f"harness/{task}/{theirs}"].value == pytest.approx(found.value), spec
        mine = table.select((table.column("metric") == theirs) & (table.column("task") == task))
        each = dict(zip(mine.ids, mine.column("value"), strict=True))
        assert each == {f"{task}/{i}": found.per_example[one.id] for i, one in enumerate(asked.examples)}, spec
    acc = rows["harness/our_choice/acc"]
    assert acc.n == 20
    assert acc.ci is not None
    assert acc.value is not None
    assert acc.ci[0] < acc.value < acc.ci[1]
    assert schema.load(out).score("model", "our_choice", "harness/our_choice/acc") == acc


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_rows_are_added_to_the_scores_of_a_run(tiny_model_dir: Path, tmp_path: Path, local_task: Path) -> None:
    """The model in the run's own folder is its condition "after"; measured twice, a row still stands once."""
    import shutil

    shutil.copytree(tiny_model_dir, tmp_path / "run" / "model")
    old = schema.Measured("after", "forget", "rouge", 0.5)
    schema.Evidence("a run", "m", "2025-01-01", "0" * 12, (schema.Condition("after", "after"),), (old,)).write(
        tmp_path / "run"
    )
    for _ in range(2):
        rows = run_harness([str(tmp_path / "run" / "model")], [str(local_task)], limit=3, out=tmp_path / "run")
    found = schema.load(tmp_path / "run")
    assert {row.condition for row in rows} == {"after"}
    assert found.title == "a run"
    assert set(found.scores) == {old, *rows}
    assert rows[0].n == 3


@needs_harness
@pytest.mark.slow  # the harness reads some ten thousand task files
@pytest.mark.filterwarnings("ignore")
def test_wrong_tasks_are_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'arc_easy'"):
        run_harness([str(tiny_model_dir)], ["arc_eazy"])
    with pytest.raises(RecipeError, match="no file"):
        run_harness([str(tiny_model_dir)], [str(tmp_path / "none.yaml")])
    broken = tmp_path / "broken.yaml"
    broken.write_text(TASK.format(name="broken", file=tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="the harness failed"):
        run_harness([str(tiny_model_dir)], [str(broken)])


def test_conditions_are_named_after_the_models(tmp_path: Path) -> None:
    """Two folders of the same name stay apart; the first model is the original and the second the oracle."""
    from expunge.harness import _evidence, _names

    assert _names(["a/model", "b/model", "owner/base"], None) == {
        "model": "a/model", "b_model": "b/model", "base": "owner/base",
    }
    assert _names([str(tmp_path / "adapter")], tmp_path) == {"after": str(tmp_path / "adapter")}
    found = _evidence(None, rows_of(RESULTS, "model"), {"model": 1.0, "b_model": 2.0, "base": 3.0})
    assert [(one.name, one.kind) for one in found.conditions] == [
        ("model", "original"), ("b_model", "oracle"), ("base", "after"),
    ]
    assert schema.load(found.write(tmp_path)) == found
