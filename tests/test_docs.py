"""The documentation says what the code does: generated parts are fresh, every part has a heading, quotes are real."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import expunge
from expunge import errors, yaml12
from expunge.cli import app
from expunge.forget import forget
from expunge.recipe import _AUDIT, _TOP, Recipe
from expunge.registry import HOMES, _entries, bind, entries, term
from expunge.report import glossary
from expunge.run import Run
from expunge.types import Subject
from support.streams import small_data

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "objective": "objectives", "method": "methods", "metric": "metrics", "attack": "attacks", "scope": "recipe",
    "optimizer": "recipe", "stage": "recipe", "perturb": "training", "schedule": "training", "link": "training",
    "annotator": "streams", "dictionary": "streams", "benchmark": "benchmarks", "judge": "metrics",
    "variant": "measuring", "instrument": "measuring", "scorer": "metrics", "watch": "dynamics",
}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generator", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generator = _generator()
DOCS = generator.pages()


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def headings(text: str) -> set[str]:
    return {line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_generated_parts_are_what_the_code_says(page: Path) -> None:
    """Refresh with: python scripts/docs.py"""
    text = page.read_text(encoding="utf-8")
    assert generator.filled(text) == text


def test_the_generator_sees_a_difference() -> None:
    text = "<!-- generated: table scope -->\nold\n<!-- end -->"
    assert "| [`lora`](#lora) |" in generator.filled(text)
    assert generator.filled(generator.filled(text)) == generator.filled(text)
    with pytest.raises(errors.RecipeError, match="did you mean 'table'"):
        generator.filled(text.replace("table", "tabel"))


@pytest.mark.parametrize("kind", sorted(PAGES))
def test_every_registered_part_has_a_heading_and_its_generated_section(kind: str) -> None:
    text = read(f"docs/{PAGES[kind]}.md")
    ours = {name for name, entry in entries(kind).items() if entry.fn.__module__.startswith("expunge.")}
    assert ours
    assert ours <= headings(text)
    assert {name for name in ours if f"<!-- generated: {kind} {name} -->" not in text} == set()


def test_every_metric_tells_its_range_what_fools_it_and_what_it_costs() -> None:
    texts = {name: entry.fn.__doc__ or "" for name, entry in entries("metric").items()}
    wanted = ("Returns:", "Fooled by:", "Cost:", "Source:")
    assert {name: [word for word in wanted if word not in text] for name, text in texts.items()
            if not all(word in text for word in wanted)} == {}


def test_every_metric_has_a_sentence_for_people() -> None:
    ours = {name for name, entry in entries("metric").items() if entry.fn.__module__.startswith("expunge.")}
    assert ours - set(glossary.METRICS) == set()


def test_every_kind_is_documented() -> None:
    assert set(PAGES) | {"reader"} == set(HOMES)
    assert "<!-- generated: readers -->" in read("docs/recipe.md")


def test_every_command_has_a_heading() -> None:
    import typer

    group = typer.main.get_command(app)
    assert set(group.commands) <= headings(read("docs/cli.md"))  # type: ignore[attr-defined]


def test_every_key_of_a_recipe_is_explained() -> None:
    text = read("docs/recipe.md")
    assert [key for key in _TOP if f"| `{key}` |" not in text] == []
    assert [key for key in _AUDIT if f"| `{key}` |" not in text] == []


def test_every_public_name_is_in_the_readme() -> None:
    text = read("README.md")
    assert [name for name in expunge.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_every_error_class_has_a_heading() -> None:
    classes = {name for name, value in vars(errors).items()
               if isinstance(value, type) and issubclass(value, errors.ExpungeError)}
    assert classes - {"ExpungeError"} <= headings(read("docs/errors.md"))


def test_every_quoted_message_stands_in_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src/expunge").rglob("*.py")))
    quoted = re.findall(r"^\| `(.+?)` \|", read("docs/errors.md"), re.MULTILINE)
    assert len(quoted) > 40
    assert [message for message in quoted if message not in code] == []


def test_links_inside_the_repository_lead_somewhere() -> None:
    broken = []
    for page in [*DOCS, ROOT / "CONTRIBUTING.md"]:
        targets = re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        local = [target for target in targets if target and "://" not in target]
        broken += [f"{page.name}: {target}" for target in local if not (page.parent / target).exists()]
    assert broken == []


def test_anchors_lead_to_headings() -> None:
    broken = []
    for page in DOCS:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]*)\)", text):
            if "://" in target:
                continue
            other = read(str((page.parent / target).resolve().relative_to(ROOT))) if target else text
            known = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings(other)}
            if anchor not in known:
                broken.append(f"{page.name}: {target}#{anchor}")
    assert broken == []


def test_recipes_in_the_documents_are_recipes() -> None:
    """Every YAML block that starts with `expunge: 1` resolves."""
    found = 0
    for page in DOCS:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if block.startswith("expunge: 1"):
                Recipe.of(yaml12.read(block))
                found += 1
    assert found >= 2


@pytest.fixture
def _own_registry():
    """What a document's program registers is gone after the test."""
    yield
    for key in [key for key, entry in _entries.items() if entry.fn.__module__ == "a_document"]:
        del _entries[key]


@pytest.mark.usefixtures("_own_registry")
def test_parts_shown_in_the_documents_work(tiny: Subject) -> None:
    space: dict[str, Any] = {"__name__": "a_document"}
    for page in ("objectives", "attacks"):
        (block,) = re.findall(r"```python\n(.*?)```", read(f"docs/{page}.md"), re.DOTALL)
        exec(block, space)
    data = small_data()
    made = forget(terms=[term("softened", on="forget", beta=0.5)], steps=2, batch_size=4, lr=1e-3)
    after = made(tiny, data, Run())
    (changed,) = bind("attack", {"use": "halve_head", "factor": 0.5})(after, data, Run())
    assert changed.lineage[-1].name == "halve_head"


def test_documents_name_no_place_outside_the_repository() -> None:
    words = re.compile(r"/work/|\.\./shared|/root/|/tmp/")
    documents = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "recipes").glob("*.yaml"))]
    assert [page.name for page in documents if words.search(page.read_text(encoding="utf-8"))] == []
