"""expunge train RECIPE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.run import AsJson, Out, Resume, Set


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML) with stages, or with a method.")],
    changes: Set = None,
    out: Out = None,
    resume: Resume = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps.")] = None,
    as_json: AsJson = False,
) -> int:
    """Run a recipe under a watch: what is learned by heart when, and what is forgotten again."""
    from dataclasses import replace

    from expunge.cli.screen import carry_out, start
    from expunge.errors import RecipeError
    from expunge.recipe import Recipe
    from expunge.registry import bind

    start()
    made = Recipe.load(recipe, [*(changes or []), *([f"device={device}"] if device else [])])
    if not made.stages:
        raise RecipeError(str(recipe), "nothing to train", "a recipe with stages or a method", "Add them")
    if made.watch is None:
        made = replace(made, watch=bind("watch", "dynamics"))
    return carry_out(made, out, recipe.stem, resume=resume, as_json=as_json)
