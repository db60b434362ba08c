"""Bad input through the front door: exit 2, one line with four parts, no traceback, and nothing half done."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import cli
from support.world import make_world, recipe, write_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def told(world, tmp_path, capsys):
    """Run a command that must fail; returns its one line."""

    def run(*arguments: str, code: int = 2) -> str:
        out = tmp_path / "out"
        assert cli.main([*arguments, "--out", str(out)]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert re.fullmatch(r"expunge: .+: .+; .+\. .+", line), f"not four parts: {line}"
        assert not (out / "model").exists()
        assert not (out / "scores.json").exists()
        return line

    return run


def rows(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path)


GOOD = [{"id": str(i), "prompt": f"Who is {i}?", "answer": f"Number {i}."} for i in range(4)]


@pytest.mark.parametrize(("found", "message"), [
    ([], r"bad\.jsonl: .*(empty|no rows|no examples)"),
    ([*GOOD, {"id": "5", "prompt": "Who?"}], r"bad\.jsonl, line 5: no field 'answer'"),
    ([{"id": "5", "question": "Who?", "reply": "Me"}], r"bad\.jsonl, line 1: no field .answer.; accepted: id"),
    ([*GOOD, GOOD[1]], r"id '1' stands twice, at positions 2 and 5"),
    ([{**GOOD[0], "answer": "  "}], "empty answer"),
    ([{**GOOD[0], "answer": "word " * 400}], r"\[0\]: \d+ tokens \(1 example\(s\) are too long\); .*at most 256"),
    ([{**GOOD[0], "spans": [[3, 99]]}], r"span \[3, 99\]"),
])
def test_a_stream_that_cannot_be_used(world, told, tmp_path, found, message):
    bad = rows(tmp_path / "bad.jsonl", *found)
    line = told("unlearn", str(world / "original"), "--forget", bad, "--retain", str(world / "retain.jsonl"))
    assert re.search(message, line), line


def test_a_file_that_is_not_there_or_of_no_known_form(world, told, tmp_path):
    model = str(world / "original")
    assert "did you mean" in told("unlearn", model, "--forget", str(world / "forgt.jsonl"))
    (tmp_path / "x.csv").write_bytes(b"")
    assert "x.csv" in told("unlearn", model, "--forget", str(tmp_path / "x.csv"))
    (tmp_path / "y.json").write_text("{not json")
    assert "y.json" in told("audit", model, "--forget", str(tmp_path / "y.json"))
    line = told("unlearn", model, "--forget", str(world / "forget.jsonl"), "--field", "prompt")
    assert "--field prompt: no '='" in line
    line = told("unlearn", model, "--forget", str(world / "forget.jsonl"), "--field", "prompt=questoin")
    assert "questoin" in line


def test_forgetting_what_is_to_be_kept(world, told, tmp_path):
    both = rows(tmp_path / "both.jsonl", *GOOD)
    more = rows(tmp_path / "more.jsonl", *GOOD, {"id": "x", "prompt": "Who?", "answer": "Else."})
    line = told("unlearn", str(world / "original"), "--forget", both, "--retain", more)
    assert "data.forget: all 4 examples are also in a retain stream; forget and retain must differ" in line


def test_a_partial_overlap_warns_with_counts_and_goes_on(world, tmp_path, capsys):
    part = rows(tmp_path / "part.jsonl", *GOOD[:2], {"id": "x", "prompt": "Who?", "answer": "Else."})
    code = cli.main([
        "unlearn", str(world / "original"), "--forget", rows(tmp_path / "f.jsonl", *GOOD), "--retain", part,
        "--set", "epochs=1", "--set", "audit.metrics=[probability]", "--attacks", "none",
        "--out", str(tmp_path / "out"),
    ])
    assert code in (0, 1)
    capsys.readouterr()
    notes = json.loads((tmp_path / "out" / "scores.json").read_text())["warnings"]
    assert any(note.startswith("data.forget: 2 of 4 examples are also in 'retain'") for note in notes)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--method", "nppo"), r"method\.use: unknown method 'nppo'; did you mean 'npo'"),
    (("--set", "betta=1"), r"method\.betta: .*did you mean 'beta'"),
    (("--set", "beta=much"), r"method\.beta: got 'much'"),
    (("--set", "beta"), r"--set .*beta: no 'path=value'"),
    (("--set", "lr=[1"), r"not YAML"),
    (("--set", "batch_size=0"), r"forget\.batch_size: got 0; accepted: 1 or more"),
    (("--set", "lr=-1"), r"forget\.lr: got -1\.0; accepted: 0 or more"),
    (("--set", "epochs=0"), r"forget\.epochs: got 0"),
    (("--set", "scope={use: lora, rank: 0}"), r"scope\.rank: got 0"),
    (("--set", "until=extraction<0.5"), r"until\.use: unknown metric 'extraction'"),
    (("--attacks", "quantise"), r"audit\.attacks\[0\]\.use: unknown attack 'quantise'; did you mean 'quantize'"),
    (("--attacks", "thorogh"), r"--attacks: neither attack nor list 'thorogh'; did you mean 'thorough'"),
    (("--attacks", "quantize,defualt"), r"--attacks: neither attack nor list 'defualt'; did you mean 'default'"),
    (("--attacks", "default:steps=3"), r"audit\.attacks\[0\]\.use: unknown attack 'default'"),
    (("--attacks", "relearn:at=[5,x]"), r"audit\.attacks\[0\]\.at"),
    (("--attacks", "relearn:step=3"), r"audit\.attacks\[0\]\.step: .*did you mean 'steps'"),
    (("--attacks", "relearn:steps=[3"), r"not YAML"),
    (("--set", "audit.metrics=[probabilty]"), r"audit\.metrics\[0\]\.use: unknown metric 'probabilty'; did you mean"),
    (("--device", "cdua"), r"device: 'cdua' cannot be used here"),
])
def test_wrong_options_are_told_with_their_place(world, told, arguments, message):
    streams = ("--forget", str(world / "forget.jsonl"), "--retain", str(world / "retain.jsonl"))
    line = told("unlearn", str(world / "original"), *streams, *arguments)
    assert re.search(message, line), line


def test_metrics_of_an_audit_are_checked_too(world, told):
    line = told(
        "audit", str(world / "original"), "--forget", str(world / "forget.jsonl"), "--metrics", "probability,rogue"
    )
    assert "audit.metrics[1].use: unknown metric 'rogue'; did you mean 'rouge'" in line


def test_a_mark_that_divides_prompts_is_refused(world, told, tmp_path):
    bad = rows(tmp_path / "bad.jsonl", *GOOD, {"id": "x", "prompt": "Who\ufdd0?", "answer": "Me."})
    line = told("audit", str(world / "original"), "--forget", bad)
    assert "'prompt' of example 'x' (position 5) holds U+FDD0" in line


def test_an_interrupt_anywhere_ends_3_with_a_message(monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("expunge.recipe.Recipe.load", stop)
    assert cli.main(["run", "x.yaml"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expunge: interrupted; " in captured.err
    assert "--resume" in captured.err


def test_a_model_that_may_not_or_cannot_be_loaded(world, told, tmp_path):
    forget = ("--forget", str(world / "forget.jsonl"))
    assert "did you mean 'original'" in told("audit", str(world / "orginal"), *forget)
    copy = tmp_path / "pickled"
    shutil.copytree(world / "original", copy)
    (copy / "model.safetensors").rename(tmp_path / "weights")
    torch.save({}, copy / "pytorch_model.bin")
    assert "holds pickles, which run code when read: pytorch_model.bin" in told("audit", str(copy), *forget)
    (copy / "pytorch_model.bin").unlink()
    assert "no weights" in told("audit", str(copy), *forget)
    (copy / "model.safetensors").write_bytes(b"\x00" * 30)
    assert "could not be loaded" in told("audit", str(copy), *forget)
    assert "is a file" in told("audit", str(world / "forget.jsonl"), *forget)
    assert "no such" in told("audit", str(world / "original"), *forget, "--oracle", "./nowhere")


def test_a_loss_that_is_no_number_stops_before_anything_is_saved(world, told, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(world / "original", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    file = write_recipe(tmp_path / "recipe.yaml", recipe(world, model=str(broken)))
    line = told("run", str(file))
    assert "step 0: the loss is dpo(refusals,forget) = nan" in line
    assert "the weights were not moved by this step. Lower lr" in line


def test_a_gradient_that_is_no_number_stops_too(world, told, tmp_path):
    """A finite loss can have an infinite gradient: weights of 1e30 and a huge weight of the term."""
    plain = recipe(world)
    plain["stages"] = [{
        "use": "forget", "terms": [{"use": "nll", "on": "retain", "weight": 1e38}], "steps": 1, "lr": 1e-3,
    }]
    line = told("run", str(write_recipe(tmp_path / "recipe.yaml", plain)))
    assert re.search(r"step 0: the (gradient norm|loss) is .*; finite", line), line


def test_recipes_are_checked_before_anything_is_loaded(world, told, tmp_path):
    plain = recipe(world)
    plain["stages"][1]["terms"][0]["betta"] = 0.1
    line = told("run", str(write_recipe(tmp_path / "recipe.yaml", plain)))
    assert "stages[1].terms[0].betta: unknown argument (got 0.1); did you mean 'beta'?. dpo takes: beta" in line
    assert "no such file; did you mean 'recipe.yaml'" in told("run", str(tmp_path / "recipee.yaml"))
    plain = recipe(world)
    plain["stages"][1]["terms"][1]["on"] = "retian"
    line = told("run", str(write_recipe(tmp_path / "recipe.yaml", plain)))
    assert "term kl(retian): no stream 'retian'; did you mean 'retain'" in line


def test_a_folder_that_holds_a_run_is_not_written_over(world, tmp_path, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(world))
    command = ["run", str(file), "--out", str(tmp_path / "out"), "--set", "stages[1].steps=1"]
    assert cli.main(command) == 0
    before = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*command[:-1], "stages[1].steps=2", "--resume"]) == 2
    assert "another recipe was started here" in capsys.readouterr().err
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert cli.main([*command[:3], str(tmp_path / "file" / "below")]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_a_report_of_nothing(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "scores.json: no such file" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text("{")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not JSON" in capsys.readouterr().err
