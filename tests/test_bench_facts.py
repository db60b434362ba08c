"""The benchmarks of people and facts, end to end on invented files: small models are taught, or models are named."""

from __future__ import annotations

import json

import pytest

from expunge.benches import grids, grids_editing
from expunge.benches.editing import fact_streams, file_of
from expunge.benches.rwku import by_person
from expunge.cli import main
from expunge.errors import DataError
from expunge.models import save
from expunge.registry import bind
from expunge.run import _silent
from support.learned import NAMES

SMALL = {"width": 32, "epochs": 40.0}


@pytest.fixture(autouse=True)
def kept(tmp_path_factory, monkeypatch):
    """Trained models are kept for these tests alone."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pair(i):
    return f"{NAMES[i % 12]} {NAMES[(5 * i + 3) % 12]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve facts, ten people and documents, as the published files hold them."""
    folder = tmp_path_factory.mktemp("facts")
    facts = [{
        "subject": str(i), "src": f"Who is {i}?", "rephrase": f"Name {i}", "answers": [pair(i)],
        "alt": pair(i + 5), "loc": f"nq question: what is {i}", "loc_ans": pair(i + 2),
    } for i in range(12)]
    (folder / "zsre_mend_eval.json").write_text(json.dumps(facts))
    flat = [{
        "case_id": i, "prompt": f"{i} lives in", "ground_truth": NAMES[i % 12], "target_new": NAMES[(i + 5) % 12],
        "subject": str(i), "rephrase_prompt": f"The home of {i} is", "locality_prompt": f"{i} was born in",
        "locality_ground_truth": NAMES[(i + 2) % 12],
    } for i in range(12)]
    (folder / "counterfact-val.json").write_text(json.dumps(flat))
    (folder / "all_intro.json").write_text(json.dumps({f"P{i}": [f"{pair(i)} is {pair(i + 1)}."] for i in range(10)}))
    for side, shift in (("forget", 0), ("retain", 20)):
        rows = []
        for i in range(shift, shift + 8):
            rows.append({"id": f"{i}sc1", "input": f"The story of {i} is", "output": pair(i), "task": "Task1"})
            rows.append({"id": f"{i}qa0", "input": f"Where is {i}?", "output": NAMES[i % 12], "task": "Task1"})
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bench(name, folder, out, capsys, *more, **settings):
    asked = ["bench", name, "--data", str(folder), "--attacks", "none", "--out", str(out), "--json", *more]
    for key, value in settings.items():
        asked += ["--set", f"{name}.{key}={value}"]
    assert main(asked) == 0
    return {row["method"]: row["metrics"] for row in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("name", ["zsre", pytest.param("counterfact", marks=pytest.mark.slow)])
def test_facts_are_known_and_what_was_not_taught_is_not(files, tmp_path, capsys, name):
    rows = bench(name, files, tmp_path, capsys, "--methods", "none", limit=4, **SMALL)
    original, oracle = rows["original"], rows["oracle"]
    assert original["exact_memorization"][0] == original["exact_memorization (retain)"][0] == 1.0
    assert oracle["exact_memorization"][0] <= 0.5
    assert oracle["exact_memorization (retain)"][0] == 1.0
    assert original["reliability"][0] < 0.5
    assert original["locality"][0] == 1.0
    assert original["portability"] == [None, None]  # these records have no questions one step further


def test_documents_and_their_questions(files, tmp_path, capsys):
    rows = bench("lume", files, tmp_path, capsys, "--methods", "none", task="stories", limit=4, **SMALL)
    original, oracle = rows["original"], rows["oracle"]
    for column in ("rouge", "answer_exact", "rouge (retain)", "answer_exact (retain_qa)", "membership"):
        assert original[column][0] == 1.0, column
    assert oracle["rouge (retain)"][0] == 1.0
    assert oracle["rouge"][0] < 0.7
    assert oracle["membership"][0] < 1.0


def test_people_by_their_introductions_are_split_by_person(files, tmp_path, capsys):
    streams = by_person(str(files), None)
    assert {name: [one.subject for one in stream.examples] for name, stream in streams.items()} == {
        "forget": ["P0", "P2", "P5", "P7"], "retain": ["P1", "P3", "P6", "P8"], "holdout": ["P4", "P9"],
    }
    rows = bench("rwku", files, tmp_path, capsys, "--methods", "none", **SMALL)
    assert rows["original"]["rouge_rwku"][0] == rows["oracle"]["rouge_rwku (retain)"][0] == 1.0
    assert rows["oracle"]["rouge_rwku"][0] < 0.8
    world = bind("benchmark", {"use": "rwku", "data": str(files), **SMALL})(_silent)
    assert world.name == "rwku (introductions)"


@pytest.mark.slow
def test_a_method_replaces_facts(files, tmp_path, capsys):
    """F-Learning from the grid: the new answers are given, the old ones no more."""
    rows = bench(
        "zsre", files, tmp_path, capsys, "--methods", "f_learning", "--trials", "1", "--set",
        "f_learning.learn_epochs=40", "--set", "f_learning.learn_lr=0.005", limit=4, **SMALL,
    )
    assert rows["f_learning"]["reliability"][0] > 0.8
    assert rows["f_learning"]["exact_memorization"][0] == 0.0


def test_published_probes_are_for_models_that_are_named(files, tiny, tmp_path, capsys):
    save(tiny, tmp_path / "model")
    probes = tmp_path / "probes"
    probes.mkdir()
    row = {"query": "Who is P0?", "answer": "Mara", "subject": "P0", "type": "question"}
    passages = [{"text": "Mara is at sea", "subject": "P0"}]
    for name, rows in (("forget_level1", [row]), ("neighbor_level2", [row, row]), ("forget_mia", passages)):
        (probes / f"{name}.json").write_text(json.dumps(rows))
    models = ("--models", f"{tmp_path / 'model'},,{tmp_path / 'model'}", "--methods", "none")
    rows = bench("rwku", probes, tmp_path / "out", capsys, *models)
    assert set(rows) == {"original", str(tmp_path / "model")}
    assert set(rows["original"]) == {"rouge_rwku", "rouge_rwku (neighbor_level2)", "perplexity"}
    for name, folder in (("lume", files), ("zsre", files)):
        more = {"task": "stories"} if name == "lume" else {}
        found = bench(name, folder, tmp_path / name, capsys, *models, limit=2, **more)["original"]
        assert found.get("membership", [None])[0] is None  # nobody knows what a model that is named never saw


def test_what_cannot_be_is_told(files, tmp_path, capsys):
    assert main(["bench", "rwku", "--data", str(files), "--set", "rwku.target=P0", "--methods", "none"]) == 2
    assert "only with your own models" in capsys.readouterr().err
    assert main(["bench", "rwku", "--data", str(files), "--models", "m", "--methods", "none"]) == 2
    assert "no probes" in capsys.readouterr().err
    with pytest.raises(DataError, match="no file of zsre"):
        file_of(str(tmp_path), "zsre")
    (tmp_path / "few.json").write_text(json.dumps(json.loads((files / "zsre_mend_eval.json").read_text())[:2]))
    with pytest.raises(DataError, match="three at least"):
        fact_streams(str(tmp_path / "few.json"), "zsre", 4)


def test_every_method_has_three_valid_settings():
    """Those of documents and people are settings of the same methods as those of facts, or known from TOFU."""
    assert grids_editing.RWKU is grids_editing.LUME
    assert set(grids_editing.LUME) - set(grids_editing.EDITING) == {"kul", "seul"}
    assert all(grids_editing.LUME[name] is grids.TOFU[name] for name in grids_editing.LUME)
    for method, settings in grids_editing.EDITING.items():
        assert len(settings) == 3, method
        for setting in settings:
            if setting not in grids.TOFU[method]:
                assert bind("method", {"use": method, **setting})(), method
