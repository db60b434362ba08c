"""Every recipe of the folder resolves, reads back to itself, and runs two steps of each of its stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge import yaml12
from expunge.recipe import Recipe
from expunge.workflow import Workflow

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.y*ml"))
IDS = [path.relative_to(ROOT / "recipes").as_posix() for path in RECIPES]


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 13
    assert "by_hand.yaml" in IDS


def shortened(path: Path, model: Path) -> Recipe:
    """The recipe on a tiny model with three people, two steps a stage and no audit."""
    plain: dict[str, Any] = yaml12.read(path.read_text(encoding="utf-8"))
    plain["model"] = {key: value for key, value in plain["model"].items() if key != "new"} | {"from": str(model)}
    plain.pop("audit")
    for stream in plain["data"].values():
        stream["num_people" if stream["use"] == "synthetic" else "limit"] = 3
    full = Recipe.of(plain).resolved()
    if "method" in full:  # a method's stages with their number of steps overwritten
        full["stages"] = _spec(Recipe.of(full).stages)
        del full["method"]
    for stage in full["stages"]:
        _cheap(stage)
    return Recipe.of(full)


def _cheap(stage: dict[str, Any]) -> None:
    """Two steps, those of inner stages too; and no condition on where a link starts: this model has learned nothing."""
    if stage["use"] == "forget":
        stage |= {"steps": 2, "batch_size": 4}
        for term in stage["terms"]:
            if "least" in (term.get("link") or {}):
                term["link"]["least"] = 0.0
    for inner in stage.get("stages") or ():
        _cheap(inner)


def _spec(stages: Any) -> list[dict[str, Any]]:
    from expunge.registry import spec_of

    return [spec_of(stage) for stage in stages]


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_recipe_reads_back_to_itself_and_says_what_it_is(path: Path) -> None:
    recipe = Recipe.load(path)
    assert Recipe.of(recipe.resolved()).digest() == recipe.digest()
    assert recipe.title
    assert recipe.audit is not None
    assert recipe.audit.attacks
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first.startswith("# ")
    assert f"expunge run recipes/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_recipe_runs_two_steps(path: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = shortened(path, tiny_model_dir)
    assert Workflow(recipe, tmp_path / "run").execute() is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "part" not in line]  # those of helpers are beside the point
    training = [index for index, stage in enumerate(recipe.stages) if stage.name == "forget"]
    assert [(line["stage"], line["step"]) for line in lines] == [(i, step) for i in training for step in (0, 1)]
    saved = "adapter" if "lora" in path.name else "model"
    assert list((tmp_path / "run" / saved).glob("*.safetensors"))
