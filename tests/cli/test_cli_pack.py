"""`expunge pack`: a run and the files of its model become one signed file, or one line says why not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge import cli
from expunge.models import load, save
from expunge.run import write_json
from expunge.testing import tiny_subject
from support.learned import short_data
from support.packs import fingerprint, key
from support.world import write_recipe, write_stream


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and its audit; an adapter on it that a run made and audited, with rows in its recipe; a key."""
    folder = tmp_path_factory.mktemp("world")
    save(tiny_subject(), folder / "base")
    data = short_data(forget=4, retain=4, holdout=4)
    for name, stream in data.items():
        write_stream(folder / f"{name}.jsonl", stream)
    rows = [{"id": one.id, "prompt": one.prompt, "answer": one.answer} for one in data["forget"].examples]
    audit = {"metrics": ["probability"]}
    plain: dict[str, Any] = {
        "model": str(folder / "base"), "audit": audit,
        "data": {"forget": {"use": "inline", "rows": rows}, "holdout": str(folder / "holdout.jsonl")},
    }
    stage = {
        "use": "forget", "terms": [{"use": "nll", "on": "forget"}], "steps": 1, "batch_size": 4,
        "scope": {"use": "lora", "rank": 2},
    }
    for name, recipe in (("audited", plain), ("made", plain | {"stages": [stage]})):
        file = write_recipe(folder / f"{name}.yaml", recipe)
        assert cli.main(["run", str(file), "--out", str(folder / name), "--json"]) in (0, 1)
    assert cli.main(["pack", "--new-key", str(folder / "key.pem"), "--json"]) == 0
    return folder


@pytest.fixture
def packed(world, tmp_path, capsys):
    """Pack a run and give back what it printed and the statement."""

    def run(name: str, *arguments: str, out: str = "evidence.json") -> tuple[dict[str, Any], dict[str, Any]]:
        target = tmp_path / out
        capsys.readouterr()
        assert cli.main([
            "pack", str(world / name), "--key", str(world / "key.pem"), "--out", str(target), "--json", *arguments
        ]) == 0
        return json.loads(capsys.readouterr().out), json.loads(target.read_text())["statement"]

    return run


@pytest.fixture
def told(capsys):
    """Run a command that must fail; returns its one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main(["pack", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert re.fullmatch(r"expunge: .+: .+; .+\. .+", line), f"not four parts: {line}"
        return line

    return run


def test_an_audited_folder_is_certified_with_everything_that_was_found(world, packed):
    said, statement = packed("audited")
    assert set(statement["model"]["files"]) == {path.name for path in (world / "base").iterdir()}
    assert statement["scores"] == json.loads((world / "audited" / "scores.json").read_text())
    assert statement["lineage"] == json.loads((world / "audited" / "lineage.json").read_text())
    assert statement["settings"] == {
        "template": "{prompt} {answer}", "task": "causal", "precision": "float32",
        "decoding": {"num": 1, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "beams": 1, "seed": 0, "guide": "",
                     "guidance": 0.0},
    }
    assert statement["base"] is None
    assert (said["number"], said["verdict"], said["signer"]) == (
        1, statement["scores"]["verdict"], statement["signer"]["fingerprint"]
    )


def test_an_adapter_is_certified_with_its_base(world, packed):
    _, statement = packed("made")
    assert set(statement["model"]["files"]) == {path.name for path in (world / "made" / "adapter").iterdir()}
    assert set(statement["base"]["files"]) == {path.name for path in (world / "base").iterdir()}


def test_no_text_of_an_example_is_in_a_pack(world, packed):
    _, statement = packed("made")
    text = json.dumps(statement)
    assert statement["recipe"]["content"]["data"]["forget"]["rows"] == "4 rows, not shown"
    for example in short_data(forget=4)["forget"].examples:
        assert example.answer not in text
        assert example.prompt not in text


def test_packs_are_chained(world, packed, told, tmp_path):
    first, _ = packed("audited", out="1.json")
    second, statement = packed("made", "--previous", str(tmp_path / "1.json"), out="2.json")
    assert (second["number"], statement["previous"]) == (2, first["sha256"])
    torn = (tmp_path / "1.json").read_bytes().replace(b'"num":1', b'"num":2')
    (tmp_path / "torn.json").write_bytes(torn)
    line = told(str(world / "made"), "--key", str(world / "key.pem"), "--previous", str(tmp_path / "torn.json"),
                "--out", str(tmp_path / "3.json"))
    assert "torn.json: does not verify (signature:" in line


def test_weights_that_were_not_measured_are_refused(world, told, tmp_path):
    shutil.copytree(world / "base", tmp_path / "other")
    changed = load(str(tmp_path / "other"))
    changed.model.get_input_embeddings().weight.data[0, 0] += 1
    save(changed, tmp_path / "other")
    line = told(str(world / "audited"), "--key", str(world / "key.pem"), "--model", str(tmp_path / "other"))
    assert "is not what was audited: model.safetensors (another one was audited)" in line
    assert not (world / "audited" / "evidence.json").exists()


def test_weights_are_loaded_and_compared_as_well(world, told, tmp_path):
    run = shutil.copytree(world / "audited", tmp_path / "run")
    rewrite_lineage(run, result={"weights": "0" * 16})
    assert "holds other weights" in told(str(run), "--key", str(world / "key.pem"))


def rewrite_lineage(run: Path, **changes: Any) -> None:
    lineage = json.loads((run / "lineage.json").read_text()) | changes
    write_json(run / "lineage.json", {name: one for name, one in lineage.items() if one is not None})


def harm_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0, "layer_norm_epsilon": 0.1}))


def harm_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}Refuse. {{ m.content }}{% endfor %}")


def harm_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 9.0}')


def harm_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left", "model_max_length": 7}))


@pytest.mark.parametrize(("harm", "name"), [
    (harm_config, "config.json"), (harm_template, "chat_template.jinja"),
    (harm_generation, "generation_config.json"), (harm_tokenizer, "tokenizer_config.json"),
])
def test_the_same_weights_with_another_file_are_refused_whichever_was_audited(world, told, tmp_path, harm, name):
    other, key_file = shutil.copytree(world / "base", tmp_path / "other"), str(world / "key.pem")
    harm(other)
    line = told(str(world / "audited"), "--key", key_file, "--model", str(other))
    assert re.search(rf"is not what was audited: {re.escape(name)} \((another|was not there)", line)
    assert line.count("(") == 1  # no other file is blamed
    plain = {"model": str(other), "audit": {"metrics": ["probability"]}, "data": {
        role: str(world / f"{role}.jsonl") for role in ("forget", "holdout")
    }}
    file = write_recipe(tmp_path / "other.yaml", plain)
    assert cli.main(["run", str(file), "--out", str(tmp_path / "run"), "--json"]) in (0, 1)
    line = told(str(tmp_path / "run"), "--key", key_file, "--model", str(world / "base"))
    assert re.search(rf"is not what was audited: {re.escape(name)} \((another|missing)", line)
    assert cli.main(["pack", str(tmp_path / "run"), "--key", key_file, "--json"]) == 0


def test_files_that_were_added_or_are_gone_are_refused_and_texts_for_people_are_not(world, told, packed, tmp_path):
    other = shutil.copytree(world / "base", tmp_path / "other")
    (other / "README.md").write_text("written later")
    _, statement = packed("audited", "--model", str(other))
    assert "README.md" in statement["model"]["files"]  # certified, as verify compares every file
    (other / "docs").mkdir()
    (other / "docs" / "more.md").write_text("x")
    (other / "tokenizer_config.json").unlink()
    line = told(str(world / "audited"), "--key", str(world / "key.pem"), "--model", str(other))
    assert "docs/more.md (was not there when it was audited), tokenizer_config.json (missing);" in line
    for number in range(12):
        (other / f"a{number:02}").write_text("x")
    line = told(str(world / "audited"), "--key", str(world / "key.pem"), "--model", str(other))
    assert "a07 (was not there when it was audited) and 6 more;" in line


def test_an_adapter_on_a_base_with_another_configuration_is_refused(world, told, packed):
    config = (world / "base" / "config.json").read_text()
    harm_config(world / "base")
    try:
        line = told(str(world / "made"), "--key", str(world / "key.pem"))
    finally:
        (world / "base" / "config.json").write_text(config)
    assert "is not what was audited: base: config.json (another one was audited);" in line
    packed("made")


def test_what_a_run_made_is_certified_with_the_card_that_was_written_after_its_audit(world, packed):
    listed = json.loads((world / "made" / "lineage.json").read_text())["files"]
    here = {path.name for path in (world / "made" / "adapter").iterdir()}
    assert "README.md" in here
    assert set(listed["model"]) == here - {"README.md"}
    assert set(listed["base"]) == {path.name for path in (world / "base").iterdir()}
    _, statement = packed("made")
    assert set(statement["model"]["files"]) == here


def test_a_run_that_does_not_list_its_files_is_refused(world, told, tmp_path):
    run = shutil.copytree(world / "audited", tmp_path / "run")
    for files in (None, {}, {"model": {}}, {"model": "x"}, []):
        rewrite_lineage(run, files=files)
        line = told(str(run), "--key", str(world / "key.pem"))
        assert "audited by an older release" in line
        assert line.endswith("Run the audit again")


def test_files_that_are_not_as_the_run_left_them_are_refused(world, told, tmp_path):
    run = shutil.copytree(world / "audited", tmp_path / "run")
    arguments = (str(run), "--key", str(world / "key.pem"))
    report = (run / "report.html").read_text()
    (run / "report.html").write_text(report.replace("</h1>", "!</h1>"))
    assert "is not the report of these scores.json" in told(*arguments)
    (run / "report.html").write_text(report)
    scores = (run / "scores.json").read_text()
    (run / "scores.json").write_text(scores.replace('"scores": [', '"scores":  ['))
    assert "was written to after the run" in told(*arguments)
    (run / "scores.json").write_text(scores)
    recipe = (run / "recipe.resolved.yaml").read_text()
    (run / "recipe.resolved.yaml").write_text(recipe.replace("margin: 0.1", "margin: 0.5"))
    assert "the recipe as the run left it" in told(*arguments)
    (run / "recipe.resolved.yaml").write_text(recipe)
    (run / "scores.json").unlink()
    assert "scores.json: cannot be read" in told(*arguments)


def test_what_would_run_code_from_elsewhere_or_is_an_adapter_on_an_adapter_is_refused(world, told, tmp_path):
    arguments = (str(world / "audited"), "--key", str(world / "key.pem"), "--model", str(tmp_path / "model"))
    shutil.copytree(world / "base", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "other/repo--m.M"}}))
    assert "names code of another repository" in told(*arguments)
    (tmp_path / "model" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(world / "made" / "adapter")})
    )
    assert "an adapter on an adapter" in told(*arguments)


def test_mistakes_are_told(world, told, tmp_path):
    run, sign = str(world / "audited"), ("--key", str(world / "key.pem"))
    assert "no RUN" in told()
    assert "no --key" in told(run)
    assert "--key and --unsigned" in told(run, *sign, "--unsigned")
    assert "cannot be read" in told(run, "--key", str(tmp_path / "none.pem"))
    assert "lies in the certified folder" in told(run, *sign, "--out", str(world / "base" / "evidence.json"))
    (tmp_path / "there.json").write_text("")
    assert "is never overwritten" in told(run, *sign, "--out", str(tmp_path / "there.json"))
    assert "is there already" in told("--new-key", str(world / "key.pem"))
    assert "audited to its end" in told(str(tmp_path), *sign)
    assert "no evidence pack" in told(run, *sign, "--previous", str(tmp_path / "there.json"), "--out", "x.json")


def test_a_person_is_told_what_was_signed_and_how_to_verify_it(world, tmp_path, capsys):
    (tmp_path / "open.pem").write_bytes((world / "key.pem").read_bytes())
    (tmp_path / "open.pem").chmod(0o644)
    capsys.readouterr()
    out = str(tmp_path / "evidence.json")
    assert cli.main(["pack", str(world / "made"), "--key", str(tmp_path / "open.pem"), "--out", out]) == 0
    captured = capsys.readouterr()
    assert "can be read by others" in captured.err
    assert re.search(r"Certified: \d files of adapter and \d of its base", captured.out)
    (command,) = re.findall(r"Verify:    expunge (.*)", captured.out)
    arguments = command.replace("MODEL", str(world / "made" / "adapter")).split()
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("VERIFIED: this is the model that was certified (verdict: ")


def test_unsigned_packs_are_made_on_request_only(world, tmp_path, capsys):
    out = str(tmp_path / "draft.json")
    assert cli.main(["pack", str(world / "audited"), "--unsigned", "--out", out]) == 0
    assert "nobody (UNSIGNED)" in capsys.readouterr().out
    assert cli.main(["verify", out, str(world / "base"), "--trust", fingerprint()]) == 1
    assert capsys.readouterr().out.startswith("NOT VERIFIED: UNSIGNED\n")
    assert key()  # the key that was trusted signed nothing
