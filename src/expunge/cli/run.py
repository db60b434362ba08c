"""expunge run RECIPE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: a new one under runs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: path=value, e.g. method.lr=1e-4.")]


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    changes: Set = None,
    out: Out = None,
    resume: Resume = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps.")] = None,
    as_json: AsJson = False,
) -> int:
    """Run a recipe: remove, attack, compare, report."""
    from expunge.cli.screen import carry_out, start
    from expunge.recipe import Recipe

    start()
    made = Recipe.load(recipe, [*(changes or []), *([f"device={device}"] if device else [])])
    return carry_out(made, out, recipe.stem, resume=resume, as_json=as_json)
