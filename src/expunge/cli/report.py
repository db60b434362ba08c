"""expunge report RUN..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.run import AsJson


def report(
    folders: Annotated[list[Path], typer.Argument(
        metavar="RUN...", help="Folder of a finished run; several: one recipe with different seeds."
    )],
    out: Annotated[Path | None, typer.Option("--out", help="With several runs: folder for the table.")] = None,
    as_json: AsJson = False,
) -> int:
    """Render the report of a run again from its scores.json, or put several runs into one table."""
    from expunge.cli.screen import conclude
    from expunge.errors import RecipeError
    from expunge.report import html, schema
    from expunge.run import write_text

    if len(folders) > 1:
        return _several(folders, out, as_json)
    if out is not None:
        raise RecipeError("--out", "one run", "several runs: the report of one lies beside its scores.json",
                          "Leave out --out, or give more runs")
    evidence = schema.load(folders[0])
    write_text(folders[0] / "report.html", html.render(evidence))
    conclude(evidence, folders[0], as_json=as_json)
    return 0


def _several(folders: list[Path], out: Path | None, as_json: bool) -> int:
    from expunge.cli.screen import console
    from expunge.metrics.seeds import pool
    from expunge.report import schema, several
    from expunge.run import write_text

    found = pool([(str(folder), schema.load(folder)) for folder in folders])
    if out is not None:
        write_text(out / "seeds.json", found.to_json())
        write_text(out / "seeds.md", several.to_markdown(found))
    if as_json:
        print(found.to_json(), end="")
        return 0
    screen = console()
    several.print_several(found, screen)
    if out is not None:
        screen.print(f"Table: {out / 'seeds.md'}", soft_wrap=True)
    return 0
