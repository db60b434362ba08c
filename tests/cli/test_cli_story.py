"""The main job through the front door, on a model that learned: unlearn, audit, report."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge import cli
from support.learned import short_data
from support.world import make_world, recipe, write_recipe

STREAMS = ("forget", "retain", "holdout")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def streams(world):
    return [part for name in STREAMS for part in (f"--{name}", str(world / f"{name}.jsonl"))]


@pytest.fixture(scope="module")
def unlearned(world, tmp_path_factory):
    """`expunge unlearn` with every default audit metric and the three attacks."""
    out = tmp_path_factory.mktemp("runs") / "unlearned"
    code = cli.main([
        "unlearn", str(world / "original"), *streams(world), "--oracle", str(world / "oracle"), "--method", "npo",
        "--set", "epochs=15", "--set", "lr=1e-3", "--set", "beta=1", "--set", "batch_size=12",
        "--attacks", "quantize:bits=8,relearn:steps=3,paraphrase", "--out", str(out), "--json",
    ])
    return out, code


def test_unlearn_writes_everything_it_promises(unlearned):
    out, code = unlearned
    assert {path.name for path in out.iterdir()} == {
        "recipe.resolved.yaml", "env.json", "log.jsonl", "state", "model", "tables", "scores.json", "report.html",
        "lineage.json", "attacks",
    }
    evidence = json.loads((out / "scores.json").read_text())
    assert code == (0 if evidence["verdict"] == "PASS" else 1)
    conditions = {row["condition"] for row in evidence["scores"]}
    attacks = ("quantize(bits=8)", "relearn(steps=3)", "paraphrase")
    assert conditions == {"original", "oracle", "after"} | {f"{of}+{a}" for of in ("oracle", "after") for a in attacks}
    assert all(row["reason"] for row in evidence["scores"] if row["status"] == "n/a")
    assert all(row["value"] is not None for row in evidence["scores"] if row["status"] == "ok")
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert AutoTokenizer.from_pretrained(out / "model").eos_token == "<|end|>"
    assert model.config.num_hidden_layers == 2
    assert (out / "model" / "README.md").read_text().startswith("---")


def test_the_removal_removed(unlearned):
    """The original says every forget answer by heart, the model after at most one in five, and retain stays."""
    rows = json.loads((unlearned[0] / "scores.json").read_text())["scores"]
    value = {(r["condition"], r["stream"]): r["value"] for r in rows if r["metric"] == "exact_memorization"}
    assert value["original", "forget"] == 1.0
    assert value["oracle", "forget"] == 0.0
    assert value["after", "forget"] <= 0.2
    assert value["after", "retain"] >= 0.8


def test_texts_of_the_forget_set_are_in_nothing_that_is_shown(unlearned):
    """Ids may be told, answers and prompts may not (tables/ hold what was measured and are not shown)."""
    out, _ = unlearned
    for name in ("scores.json", "report.html", "log.jsonl", "lineage.json", "env.json", "recipe.resolved.yaml"):
        text = (out / name).read_text(encoding="utf-8")
        for example in short_data()["forget"].examples:
            assert example.answer not in text, f"{name} tells the answer of {example.id}"
            assert example.prompt not in text, f"{name} tells the prompt of {example.id}"
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert not any(example.answer in card for example in short_data()["forget"].examples)


def test_an_audit_of_nothing_done_fails_with_exit_1(world, tmp_path, capsys):
    out = tmp_path / "out"
    code = cli.main([
        "audit", str(world / "original"), *streams(world), "--original", str(world / "original"), "--oracle",
        str(world / "oracle"), "--metrics", "exact_memorization,probability", "--attacks", "none", "--out", str(out),
        "--json",
    ])
    captured = capsys.readouterr()
    assert code == 1
    found = json.loads(captured.out)
    assert found["verdict"] == "FAIL"
    assert found["run"] == str(out)
    assert set(found["files"]) == {"scores.json", "report.html"}
    assert captured.err == ""
    assert not (out / "model").exists()  # an audit changes nothing


def test_an_audit_that_passes_ends_0_and_one_that_cannot_tell_ends_1(world, tmp_path, capsys):
    plain = {
        "model": str(world / "oracle"), "data": {name: str(world / f"{name}.jsonl") for name in STREAMS},
        "audit": {"metrics": ["exact_memorization"], "against": str(world / "oracle"), "margin": 0.3},
    }
    file = write_recipe(tmp_path / "recipe.yaml", plain)
    for margin, code, verdict in ((0.3, 0, "PASS"), (0.1, 1, "INCONCLUSIVE")):
        out = str(tmp_path / verdict)
        assert cli.main(["run", str(file), "--set", f"audit.margin={margin}", "--out", out, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_a_table_and_the_place_of_the_report_are_shown(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = tmp_path / "out"
    code = cli.main([
        "audit", str(world / "oracle"), *streams(world), "--metrics", "exact_memorization", "--attacks", "quantize",
        "--out", str(out),
    ])
    captured = capsys.readouterr()
    assert code in (0, 1)
    assert captured.err == ""
    assert f"Report: {out / 'report.html'}" in captured.out
    assert "\x1b" not in captured.out
    for word in ("INCONCLUSIVE", "PASS", "FAIL"):
        if word in json.loads((out / "scores.json").read_text())["verdict"]:
            assert word in captured.out


def test_a_report_is_rendered_again_from_its_scores(unlearned, capsys):
    out, _ = unlearned
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert cli.main(["report", str(out), "--json"]) == 0  # rendering is no verdict
    assert json.loads(capsys.readouterr().out)["files"]["report.html"] == str(out / "report.html")
    assert (out / "report.html").read_text() == before


def test_a_resumed_finished_run_measures_and_trains_nothing_again(unlearned, capsys, monkeypatch):
    import expunge.measure.samples as samples
    import expunge.measure.tokens as tokens

    out, code = unlearned
    before = (out / "model" / "model.safetensors").read_bytes()

    def never(*_args, **_kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(tokens, "measure_each", never)
    monkeypatch.setattr(samples, "measure_samples", never)
    assert cli.main(["run", str(out / "recipe.resolved.yaml"), "--out", str(out), "--resume", "--json"]) == code
    assert (out / "model" / "model.safetensors").read_bytes() == before


def test_show_prints_a_recipe_with_every_default_and_its_cost(world, tmp_path, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(world))
    assert cli.main(["show", str(file)]) == 0
    out = capsys.readouterr().out
    for part in ("# digest ", "batch_size: 5", "weight_decay: 0.01", "Expands to:", "a step, per example: "):
        assert part in out, part
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(out.split("Expands to:")[0])
    assert cli.main(["show", str(resolved)]) == 0
    assert capsys.readouterr().out == out  # what it prints is a recipe, the same one


def test_an_adapter_is_written_as_an_adapter(world, tmp_path, capsys):
    plain = recipe(world)
    plain["stages"][1] |= {"scope": {"use": "lora", "rank": 2}, "steps": 2}
    out = tmp_path / "out"
    assert cli.main(["run", str(write_recipe(tmp_path / "r.yaml", plain)), "--out", str(out), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {"adapter"}
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    audit = ["audit", str(out / "adapter"), *streams(world), "--metrics", "probability", "--attacks", "quantize"]
    assert cli.main([*audit, "--out", str(tmp_path / "audit"), "--json"]) in (0, 1)
