"""What a person sees while a command works: a bar on a terminal, nothing but results elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from expunge import dist
from expunge.run import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from expunge.recipe import Recipe
    from expunge.report.schema import Evidence

NAMES = {"forget": "training", "audit": "measuring", "train": "training"}


def console(*, error: bool = False) -> Console:
    """A console that honours NO_COLOR and is plain when not a terminal."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, highlight=False, width=None if stream.isatty() else 110)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress]:
    """Progress bars with rate and time left on a terminal; silent otherwise."""
    screen = console(error=True)
    if quiet or not screen.is_terminal or dist.rank() != 0:
        yield lambda what, done, total, note: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks or (done <= 1 and progress.tasks[tasks[what]].finished):
                tasks[what] = progress.add_task(NAMES.get(what, what), total=total, note=note)
            progress.update(tasks[what], completed=done, total=total, note=note)  # type: ignore[arg-type]

        yield show


def carry_out(recipe: Recipe, out: Path | None, name: str, *, resume: bool = False, as_json: bool = False) -> int:
    """Run a recipe in a folder (a new one under runs/ unless given) and print what was found."""
    from expunge.errors import RecipeError
    from expunge.workflow import Workflow, default_folder

    if resume and out is None:
        raise RecipeError("--resume", "no --out", "the folder of the interrupted run", "Add --out RUN")
    folder = out or default_folder(name)
    with bars(quiet=as_json) as progress:
        evidence = Workflow(recipe, folder, resume, progress).execute()
    return conclude(evidence, folder, as_json=as_json)


def conclude(evidence: Evidence | None, folder: Path, *, as_json: bool) -> int:
    """Print what was found and where it lies; the exit code of the verdict."""
    outcome = evidence.verdict if evidence is not None else None
    if dist.rank() != 0:  # one voice
        return 0 if outcome in (None, "PASS") else 1
    if as_json:
        files = {
            name: str(folder / name)
            for name in ("scores.json", "report.html", "model", "adapter")
            if (folder / name).exists()
        }
        print(json.dumps({"run": str(folder), "verdict": outcome, "files": files}))
    else:
        screen = console()
        if evidence is not None:
            from expunge.report.terminal import print_evidence

            print_evidence(evidence, screen)
        if (folder / "report.html").exists():
            screen.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
        for name in ("model", "adapter"):
            if (folder / name).is_dir():
                screen.print(f"{name.capitalize()}:  {folder / name}", soft_wrap=True)
    return 0 if outcome in (None, "PASS") else 1


def start(device: str | None = None) -> None:
    """Settle threads before heavy work; call inside commands only."""
    from expunge import machine

    machine.set_threads()
