"""expunge demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.run import AsJson


def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder for models, run and report.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Half the people, half the time.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Train the base from nothing first (minutes).")] = False,
    as_json: AsJson = False,
) -> int:
    """The whole story in about a minute: a model that knows secrets, their removal, attacks, and a report."""
    from expunge.cli.screen import bars, conclude, console, start

    start()
    from expunge.demo import QUICK, Settings, prepare
    from expunge.recipe import Recipe
    from expunge.workflow import Workflow, default_folder

    folder = out or default_folder("demo")
    settings = QUICK if quick else Settings()
    screen = console()
    if not as_json:
        both = settings.forget + settings.retain
        screen.print(f"A small model learns {both} invented people; {settings.forget} ask to be forgotten.")
    with bars(quiet=as_json) as progress:
        base = None
        if rebuild:
            from expunge.pretrain import build_base

            base = build_base(folder / "base", progress=progress)
        plain = prepare(folder, settings, base=base, progress=progress)
        evidence = Workflow(Recipe.of(plain), folder / "run", False, progress).execute()
    conclude(evidence, folder / "run", as_json=as_json)
    return 0
