"""From a recipe to a folder: what is saved is what was measured, and mistakes are told before anything is spent."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from expunge.bench import Bench
from expunge.benches.world import World
from expunge.errors import DataError, Interrupted
from expunge.models import load
from expunge.recipe import Recipe
from expunge.types import Cost
from expunge.workflow import Workflow
from support.learned import short_data
from support.world import make_world, recipe, write_stream


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_an_adapter_on_edited_weights_is_saved_with_them(world, tmp_path):
    """F-Learning with LoRA second: the base was edited in place, so the adapter alone would lose the forgetting."""
    lora = {"use": "lora", "rank": 2}
    rates = {"forget_lr": 3e-3, "learn_lr": 1e-4, "batch_size": 6}
    method = {"use": "f_learning", "lam": 2.0, "learn_scope": lora, **rates}
    plain = recipe(world, stages=[], method=method)
    del plain["stages"]
    work = Workflow(Recipe.of(plain), tmp_path / "run")
    work.execute()
    hashed = json.loads((tmp_path / "run" / "lineage.json").read_text())["result"]["weights"]
    from expunge.models import weights_hash

    assert weights_hash(load(str(tmp_path / "run" / "model"))) == hashed
    start = load(str(world / "original")).model.state_dict()
    moved = load(str(tmp_path / "run" / "model")).model.state_dict()
    assert max(float((start[name] - moved[name]).abs().max()) for name in start) > 1e-3


@pytest.mark.parametrize(("method", "stream"), [("kga", "holdout"), ("rmu", "retain"), ("undo", "retain")])
def test_a_stream_that_was_not_given_is_told_before_a_folder_is_made(world, tmp_path, method, stream):
    plain = recipe(world, method=method)
    del plain["stages"]
    del plain["data"][stream if stream == "retain" else "forget"]
    if stream == "holdout":
        plain["data"]["forget"] = str(world / "forget.jsonl")
    with pytest.raises(DataError, match=f"no stream '{stream}'"):
        Workflow(Recipe.of(plain), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_spans_of_an_annotator_do_not_move_what_is_audited(world, tmp_path):
    """The examples bring spans: before and after are measured on them, whatever the annotator finds."""
    write_stream(tmp_path / "forget.jsonl", short_data()["forget"])
    terms = [{"use": "ascent", "on": "forget", "tokens": "spans"}]
    plain = recipe(world, stages=[
        {"use": "annotate", "how": {"use": "quantile", "q": 0.9}},
        {"use": "forget", "terms": terms, "steps": 1, "lr": 0.0},
    ], audit={"metrics": ["span_memorization_accuracy"]})
    plain["data"]["forget"] = str(tmp_path / "forget.jsonl")
    evidence = Workflow(Recipe.of(plain), tmp_path / "run").execute()
    found = [evidence.score(name, "forget", "span_memorization_accuracy").value for name in ("original", "after")]
    assert found[0] == found[1] is not None


def bench(world, folder, **more) -> Bench:
    data = short_data()
    made = World(
        "small", str(world / "original"), str(world / "oracle"), data, data, ["memorization_accuracy"],
        [("forget", "memorization_accuracy"), ("retain", "memorization_accuracy")], [],
        grids={"npo": ({"lr": 1e-3, "epochs": 1}, {"lr": 2e-3, "epochs": 3, "batch_size": 6})},
    )
    return Bench(made, folder, **more)


def test_a_bench_keeps_the_setting_nearest_to_the_oracle_and_goes_on_from_its_files(world, tmp_path, monkeypatch):
    first = bench(world, tmp_path)
    rows = first.run(["npo"])
    assert [row["method"] for row in rows] == ["original", "oracle", "npo"]
    tried = first.tried["npo"]
    assert [one["setting"]["lr"] for one in tried] == [1e-3, 2e-3]
    values = {row["method"]: row["metrics"]["memorization_accuracy"][0] for row in rows}
    best = max(tried, key=lambda one: one["balance"])
    assert values["npo"] == pytest.approx(best["forget"])
    assert values["npo"] < values["original"]
    monkeypatch.setattr(Bench, "_unlearn", lambda *_: pytest.fail("trained again"))
    again = bench(world, tmp_path).run(["npo"])
    assert json.dumps(again) == json.dumps(rows)  # from a file: lists for tuples


def test_a_setting_that_cannot_be_is_a_row_and_a_stop_is_a_stop(world, tmp_path, monkeypatch):
    made = bench(world, tmp_path, changes={"rmu": {"layer": 99}})
    assert made.run(["rmu"])[-1] == {"method": "rmu", "condition": "no setting worked", "metrics": {}}
    assert "this model has blocks 0..1" in made.failures["rmu"]

    def stopped(*_):
        raise Interrupted("run", "stopped on request", "nothing is kept", "Start it again")

    monkeypatch.setattr(Bench, "_unlearn", stopped)
    with pytest.raises(Interrupted):
        bench(world, tmp_path).run(["npo"])
    assert not list((tmp_path / "methods").glob("npo*"))


def test_the_balance_is_a_harmonic_mean(world, tmp_path):
    made = bench(world, tmp_path)
    aims = {"forget": 1.0, "aim": 0.2, "retain": 1.0}
    for forget, retain, wanted in ((0.2, 1.0, 1.0), (1.0, 1.0, 0.0), (0.6, 0.5, 0.5), (0.2, 0.0, 0.0)):
        made._value = lambda _, stream, values={"forget": forget, "retain": retain}: values[stream]
        assert made._balance(None, aims)[0] == pytest.approx(wanted)


@pytest.mark.parametrize("missing", ["forget", "retain"])
def test_a_setting_whose_value_is_not_to_be_had_is_not_the_best(world, tmp_path, missing):
    made = bench(world, tmp_path)
    aims, known = {"forget": 1.0, "aim": 0.2, "retain": 1.0}, {"forget": 0.2, "retain": 1.0, missing: math.nan}
    made._value = lambda _, stream: known[stream]
    balance, values = made._balance(None, aims)
    assert (balance, values[missing]) == (0.0, None)
    known[missing] = 1.0
    assert made._balance(None, {**aims, "aim": math.nan})[0] == 0.0


def test_a_model_whose_name_has_a_plus_has_its_rows(world, tmp_path):
    folders = [tmp_path / "runs" / "a+b", tmp_path / "runs" / "a_b"]
    for folder in folders:
        shutil.copytree(world / "oracle", folder)
    made = bench(world, tmp_path)
    rows = Bench(replace(made.world, others=tuple(map(str, folders))), tmp_path).run([])
    safe = str(folders[1])
    assert [row["method"] for row in rows] == ["original", "oracle", safe, f"{safe}_2"]
    assert all(row["metrics"] for row in rows)


def test_what_changes_the_rows_of_a_method_changes_their_file(world, tmp_path, monkeypatch):
    """Another oracle, other columns, another judged metric: none is answered from the file of the first."""
    monkeypatch.setattr(Bench, "_unlearn", lambda self, method, subject: (subject, Cost()))
    start, twin = load(str(world / "original")), load(str(world / "oracle"))
    made = bench(world, tmp_path)
    columns = replace(made.world, columns=made.world.columns[:1])
    judged = replace(made.world, judged="exact_memorization")
    aims = {"forget": 1.0, "aim": 0.2, "retain": 1.0}
    for number, (one, models) in enumerate((
        (made.world, (start, twin)), (made.world, (start, None)), (made.world, (start, start)),
        (columns, (start, twin)), (judged, (start, twin)), (made.world, (start, twin)),
    )):
        again = Bench(one, tmp_path)
        again._method("npo", again.settings("npo")[:1], models, aims)
        assert len(list((tmp_path / "methods").glob("npo*"))) == min(number + 1, 5)


def test_a_branch_in_a_run_is_resumed(world, tmp_path):
    """Killed while the helper is trained; the resumed run ends at the same weights."""
    fit = {"use": "forget", "terms": [{"use": "nll", "on": "forget"}], "steps": 6, "lr": 1e-3}
    plain = recipe(world, stages=[
        {"use": "branch", "name": "fitted", "stages": [fit]}, {"use": "add_vector", "helper": "fitted", "scale": -1.0},
    ])
    whole = Workflow(Recipe.of(plain), tmp_path / "whole")
    whole.execute()

    def dies(what, done, total, note):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workflow(Recipe.of(plain), tmp_path / "cut", progress=dies, save_every=1).execute()
    Workflow(Recipe.of(plain), tmp_path / "cut", resume=True, save_every=1).execute()
    one, other = (load(str(tmp_path / name / "model")).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
