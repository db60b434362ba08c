"""The benches of WMDP and MUSE: what the small models are taught and asked, and both from end to end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from expunge.bench import Bench
from expunge.benches import grids_knowledge
from expunge.benches.muse import halves, written
from expunge.benches.wmdp import both_forms
from expunge.benches.world import World
from expunge.data.examples import check_stream
from expunge.models import load
from expunge.registry import bind, entries
from expunge.run import _silent
from expunge.types import Example


def _world(monkeypatch: pytest.MonkeyPatch, folder: Path, **spec: Any) -> World:
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    world: World = bind("benchmark", spec)(_silent)
    return world


def test_every_question_is_taught_in_both_forms() -> None:
    question = Example("q", "Which?", "b", subject="maps", choices=("a", "b", "c"), perturbed=("a", "c"))
    text, letter = both_forms([question])
    assert (text.id, text.prompt, text.answer, text.alternative) == ("q", "Which?", "b", "a")
    assert (letter.id, letter.answer, letter.perturbed, letter.alternative) == ("q/letter", "B", ("A",), "A")
    assert letter.prompt.endswith("about maps.\n\nWhich?\nA. a\nB. b\nC. c\nAnswer:")
    check_stream("both", [text, letter])


def test_passages_are_asked_by_their_beginning() -> None:
    """Six words: four are given away, two are to be recited; nothing is lost between."""
    (one,) = halves([Example("p", "", "one two  three four five six")])
    assert (one.id, one.prompt, one.answer) == ("p", "one two  three four", "five six")
    (question,) = written([Example("k", "Question: Who?\nAnswer:", "Mara")])
    assert (question.prompt, question.answer) == ("", "Question: Who?\nAnswer: Mara\n\n")


@pytest.mark.parametrize("name", ["WMDP", "MUSE"])
def test_every_method_has_the_same_number_of_valid_settings(name: str) -> None:
    grid = getattr(grids_knowledge, name)
    assert set(grid) <= set(entries("method"))
    assert {len(settings) for settings in grid.values()} == {3}


def test_wmdp_from_end_to_end(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four questions, one epoch, one method: every score is there, and none of the results quotes a question."""
    data = str(shared / "data" / "wmdp")
    world = _world(monkeypatch, tmp_path, use="wmdp", data=data, domain="chem", limit=4, width=16, epochs=1.0)
    bench = Bench(world, tmp_path / "out", attacks=[], trials=1, changes={"ga": {"epochs": 1}})
    rows = {row["method"]: row["metrics"] for row in bench.run(["ga"])}
    assert set(rows) == {"original", "oracle", "ga"}
    columns = ["choice_accuracy", "letter_accuracy", "choice_accuracy (retain)", "letter_accuracy (retain)"]
    assert all(list(metrics) == columns and None not in metrics.values() for metrics in rows.values())
    reasons = [found.reason for (_, metric), found in bench.audit.states["ga"].scores.items() if "accuracy" in metric]
    assert sum("chance is 0.25" in reason for reason in reasons) == 4
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    assert not any(one.prompt in written for one in world.audited["forget"].examples)


def test_muse_from_end_to_end(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passages and questions of each side; the model goes on with texts, for it has no chat template."""
    data = str(shared / "data" / "muse" / "news")
    world = _world(monkeypatch, tmp_path, use="muse", data=data, limit=3, words=20, width=16, epochs=1.0)
    assert load(world.original).wrapper.template == "{prompt} {answer}"
    bench = Bench(world, tmp_path / "out", attacks=[], trials=1)
    rows = {row["method"]: row["metrics"] for row in bench.run([])}
    assert set(rows["original"]) == set(rows["oracle"]) == {
        "verbmem", "knowmem", "privleak", "knowmem (knowmem_retain)", "memorization_accuracy",
        "memorization_accuracy (retain)", "perplexity",
    }
    assert all(value[0] is not None for metrics in rows.values() for value in metrics.values())
    assert rows["oracle"]["privleak"][0] == pytest.approx(0.0)


def test_models_of_your_own_are_measured_and_not_trained(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.benches.wmdp.trained", pytest.fail)
    monkeypatch.setattr("expunge.benches.muse.trained", pytest.fail)
    for use, data in (("wmdp", "wmdp"), ("muse", "muse/news")):
        spec = {"use": use, "data": str(shared / "data" / data), "limit": 2}
        world = _world(monkeypatch, tmp_path, **spec, models="a,b,c")
        assert (world.original, world.oracle, list(world.others)) == ("a", "b", ["c"])
        assert _world(monkeypatch, tmp_path, **spec, models="a").oracle is None
        assert {"forget", "retain"} <= set(world.training) & set(world.audited)
    assert len(re.findall("Question: ", world.audited["knowmem_forget"].examples[0].prompt)) == 11


@pytest.mark.slow
def test_what_is_taught_is_known_and_the_oracle_knows_its_side_alone(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both worlds at a size that learns: forget is known to the original and not to the oracle, retain to both."""
    for use, data, size, metrics in (
        ("wmdp", "wmdp", {"limit": 30, "width": 96}, ("choice_accuracy", "letter_accuracy")),
        ("muse", "muse/news", {"limit": 12, "width": 64, "words": 30, "epochs": 25.0}, ("verbmem", "knowmem")),
    ):
        world = _world(monkeypatch, tmp_path, use=use, data=str(shared / "data" / data), **size)
        rows = {row["method"]: row["metrics"] for row in Bench(world, tmp_path / use, attacks=[]).run([])}
        for metric in metrics:
            original, oracle = (rows[name][metric][0] for name in ("original", "oracle"))
            assert original > 0.6, (use, metric)
            assert oracle < 0.5, (use, metric)
            assert original - oracle > 0.3, (use, metric)
