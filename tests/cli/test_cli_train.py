"""`expunge train`: a recipe under a watch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge import cli
from support.world import make_world, recipe, write_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_train_watches_by_default_and_says_where_the_curves_are(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "small.yaml", recipe(world))
    out = tmp_path / "run"
    assert cli.main(["train", str(path), "--out", str(out), "--set", "stages[1].steps=4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] is None
    assert set(told["files"]) == {"report.html", "model"}
    records = [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]
    assert {record["stream"] for record in records} == {"forget", "retain", "refusals"}
    assert {record["step"] for record in records} == {0, 2, 4}
    assert "watch:" in (out / "recipe.resolved.yaml").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert cli.main(["train", str(path), "--out", str(out), "--set", "stages[1].steps=4", "--resume"]) == 0


def test_a_watch_of_the_recipe_is_kept(world: Path, tmp_path: Path) -> None:
    plain = recipe(world, watch={"use": "dynamics", "on": ["forget"], "every": "powers"})
    path = write_recipe(tmp_path / "small.yaml", plain)
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run"), "--set", "stages[1].steps=4"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "dynamics.jsonl").read_text().splitlines()]
    assert [(record["stream"], record["step"]) for record in records] == [("forget", step) for step in (0, 1, 2, 4)]


def test_a_recipe_without_stages_has_nothing_to_train(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "small.yaml", recipe(world, stages=[]))
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "nothing to train" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
