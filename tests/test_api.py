"""The Python front door: light to import, the same names whatever was imported before, the same runs as the CLI."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import expunge
from expunge.errors import DataError, ModelError, RecipeError
from expunge.recipe import Recipe
from expunge.workflow import Workflow
from support.streams import examples

SMALL = {"epochs": 1, "batch_size": 4, "lr": 1e-3}


def test_importing_the_package_brings_no_torch() -> None:
    code = (
        "import sys, expunge; from expunge import Example, Recipe, entries; assert expunge.__version__; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert set(dir(expunge)) == set(expunge.__all__)
    for name in expunge.__all__:
        assert getattr(expunge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        expunge.audits  # noqa: B018
    assert "npo" in expunge.entries("method")


def test_the_audit_function_is_not_hidden_by_the_audit_module() -> None:
    from expunge.audit import Audit

    assert Audit.__module__ == "expunge.audit"
    assert expunge.audit.__module__ == "expunge.api"


def test_unlearn_from_lists_runs_saves_and_audits(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"id": e.id, "prompt": e.prompt, "answer": e.answer} for e in examples(6, "r")]
    forget = [replace(e, answer=f"{e.answer} Secret word xyzzy.", spans=()) for e in examples(6, "f")]
    made = expunge.unlearn(
        tiny_model_dir, forget=forget, retain=rows, holdout=examples(5, "h"), method={"use": "npo", "retain": "kl"},
        attacks=["paraphrase", {"use": "relearn", "steps": 1}], out=tmp_path / "run", **SMALL,
    )
    assert made.folder == tmp_path / "run"
    assert made.verdict in ("PASS", "FAIL", "INCONCLUSIVE")
    assert made.report.exists()
    assert made.evidence is not None
    names = [condition.name for condition in made.evidence.conditions]
    assert names[:2] == ["original", "after"]
    assert "after+paraphrase" in names
    assert made.load().model.config.hidden_size == 32
    for shared in ("recipe.resolved.yaml", "scores.json", "report.html", "log.jsonl", "model/README.md"):
        assert "xyzzy" not in (made.folder / shared).read_text(encoding="utf-8"), shared
    kept = [json.loads(line) for line in (made.folder / "data" / "forget.jsonl").read_text().splitlines()]
    assert kept[0]["paraphrases"] == ["Tell me of f 0"]


def test_a_python_run_can_be_gone_on_with_as_a_recipe(tiny_model_dir: Path, tmp_path: Path) -> None:
    """What stands in the folder is the recipe: resuming with it finds the run finished and trains no more."""
    made = expunge.unlearn(tiny_model_dir, forget=examples(4, "f"), method="ga", attacks=[], out=tmp_path, **SMALL)
    lines = (tmp_path / "log.jsonl").read_text()
    again = Workflow(Recipe.load(tmp_path / "recipe.resolved.yaml"), tmp_path, resume=True).execute()
    assert (tmp_path / "log.jsonl").read_text() == lines
    assert made.evidence is not None
    assert again is not None
    assert again.digest == made.evidence.digest


def test_audit_compares_with_oracle_and_original(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps({"prompt": e.prompt, "answer": e.answer}) + "\n" for e in examples(5, "f")))
    made = expunge.audit(
        tiny_model_dir, forget=file, retain={"use": "inline", "rows": [{"prompt": "a", "answer": "b c"}]},
        original=tiny_model_dir, oracle=tiny_model_dir, metrics=["exact_memorization", "extraction_strength"],
        attacks=[{"use": "quantize", "bits": 8}], out=tmp_path / "run",
    )
    assert made.evidence is not None
    names = {condition.name for condition in made.evidence.conditions}
    assert names == {"original", "oracle", "after", "oracle+quantize(bits=8)", "after+quantize(bits=8)"}
    assert made.evidence.method is None
    with pytest.raises(ModelError, match="holds no model"):
        made.load()


def test_mistakes_are_told_before_anything_is_spent(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'epochs'"):
        expunge.unlearn(tiny_model_dir, forget=examples(2, "f"), out=tmp_path / "a", epoch=1)
    assert not (tmp_path / "a").exists()  # no text was written for a run that cannot be
    with pytest.raises(DataError, match=r"fo\.jsonl: no such file"):
        expunge.unlearn(tiny_model_dir, forget=tmp_path / "fo.jsonl", out=tmp_path / "b")


def test_a_folder_that_holds_a_run_keeps_its_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    call = {"method": "ga", "attacks": [], "out": tmp_path, **SMALL}
    expunge.unlearn(tiny_model_dir, forget=examples(3, "f"), **call)
    before = (tmp_path / "data" / "forget.jsonl").read_text()
    with pytest.raises(RecipeError, match="already holds a run"):
        expunge.unlearn(tiny_model_dir, forget=examples(3, "other"), **call)
    assert (tmp_path / "data" / "forget.jsonl").read_text() == before
