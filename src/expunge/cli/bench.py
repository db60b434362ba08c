"""expunge bench NAME"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson, Out


def bench(
    name: Annotated[str, typer.Argument(help="tofu, kul")],
    data: Annotated[Path, typer.Option("--data", help="Folder with the benchmark's files.")] = Path("."),
    split: Annotated[str | None, typer.Option("--split", help="tofu: forget01, forget05, forget10.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", help="Comma-separated; 'all': every one the benchmark has settings for; 'none': the models alone."
        ),
    ] = "ga,graddiff,npo,simnpo",
    models: Annotated[
        str | None, typer.Option("--models", help="Your own ORIGINAL[,ORACLE] instead of training one.")
    ] = None,
    limit_authors: Annotated[int | None, typer.Option("--limit-authors", help="A smaller world of N authors.")] = None,
    attacks: Annotated[str | None, typer.Option("--attacks", help="Comma-separated, or 'none'.")] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Settings tried per method, from its declared grid.")
    ] = 3,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.argument=value, or NAME.argument=value of the benchmark.")
    ] = None,
    from_log: Annotated[
        Path | None, typer.Option("--from-log", help="Re-score a published TOFU evaluation log.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The log of the retain model, for forget quality.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", help="With --from-log: compare the last N forget rows only.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> int:
    """Unlearn with each method at the best of its settings, attack, and print a leaderboard with intervals.

    The models are trained here once and kept. A bench that was stopped goes on where it was with the same --out.
    """
    from expunge.registry import find

    if from_log is not None and name == "tofu":
        return _from_log(from_log, reference, last, as_json)
    find("benchmark", name, "bench")
    from expunge.cli.screen import start

    start()
    from expunge.cli.unlearn import names
    from expunge.workflow import default_folder

    chosen = _chosen(name, methods)
    given = {"split": split, "limit_authors": limit_authors, "models": models}
    own = {"data": str(data)} | {key: value for key, value in given.items() if value is not None}
    changed = _changed([name, *chosen], changes or [])
    world = _for_the_benchmark(name, chosen, changed)
    folder = out or default_folder(f"bench-{name}")
    asked = names(attacks) if attacks is not None else None
    return _work({"use": name, **own, **world}, folder, chosen, asked, trials, changed, as_json)


def _chosen(name: str, methods: str) -> list[str]:
    from expunge.benches import grids
    from expunge.registry import entries

    if methods == "none":
        return []
    if methods != "all":
        return [part.strip() for part in methods.split(",") if part.strip()]
    return sorted(getattr(grids, name.upper(), None) or entries("method"))


def _for_the_benchmark(name: str, methods: list[str], changed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Take out of `changed` what the benchmark itself is to be given; a method may have its name (kul)."""
    from expunge.registry import takes

    mine = changed.pop(name)
    if name not in methods:
        return mine
    own = {key: value for key, value in mine.items() if takes("benchmark", name, key)}
    changed[name] = {key: value for key, value in mine.items() if key not in own}
    return own


def _changed(known: list[str], changes: list[str]) -> dict[str, dict[str, Any]]:
    """`NAME.argument=value` by name."""
    from expunge.errors import RecipeError, close_to
    from expunge.recipe import read_value

    made: dict[str, dict[str, Any]] = {name: {} for name in known}
    for change in changes:
        path, sign, value = change.partition("=")
        name, dot, argument = path.partition(".")
        if not sign or not dot or name not in made:
            raise RecipeError(f"--set {change}", f"'{name}'", close_to(name, made), "Write METHOD.argument=value")
        made[name][argument] = read_value(value, f"--set {change}")
    return made


def _work(
    spec: dict[str, Any], folder: Path, methods: list[str], attacks: Any, trials: int,
    changes: dict[str, dict[str, Any]], as_json: bool,
) -> int:
    from expunge.bench import Bench
    from expunge.cli.screen import bars
    from expunge.registry import bind
    from expunge.run import write_json
    from expunge.workflow import collect_warnings, warn_on_screen

    world = bind("benchmark", spec)
    for method in methods:  # a wrong name or argument is told before anything is spent
        bind("method", {"use": method, **changes.get(method, {})}, f"methods.{method}")
    for attack in attacks or ():
        bind("attack", attack, "attacks")
    with collect_warnings(warn_on_screen), bars(quiet=as_json) as progress:
        made = Bench(world(progress), folder, attacks, trials, changes, progress=progress)
        rows = made.run(methods)
    write_json(folder / "tried.json", made.tried)
    for method, reason in made.failures.items():
        print(f"expunge: {method}: no setting worked: {reason}", file=sys.stderr)
    return _print(rows, folder, as_json)


def _print(rows: list[Any], out: Path, as_json: bool) -> int:
    import json

    from expunge.cli.screen import console
    from expunge.report.terminal import leaderboard, to_markdown
    from expunge.run import write_json, write_text

    write_json(out / "leaderboard.json", rows)
    write_text(out / "leaderboard.md", to_markdown(rows) + "\n")
    if as_json:
        print(json.dumps(rows))
    else:
        screen = console()
        leaderboard(rows, screen)
        screen.print(f"Table: {out / 'leaderboard.md'}", soft_wrap=True)
    return 0


def _from_log(log: Path, reference: Path | None, last: int | None, as_json: bool) -> int:
    import json

    from expunge.metrics.tofu_logs import score_log

    scores = score_log(log, reference, last_n=last)
    if as_json:
        print(json.dumps({name: {"value": s.value, "ci": s.ci, "n": s.n} for name, s in scores.items()}))
        return 0
    from rich.table import Table

    from expunge.cli.screen import console

    table = Table(title=f"TOFU log {log.name}", title_justify="left")
    for heading in ("metric", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, s in scores.items():
        value = "n/a" if s.value is None else f"{s.value:.6g}"
        table.add_row(name, value, "" if s.ci is None else f"{s.ci[0]:.4g} to {s.ci[1]:.4g}", str(s.n))
    console().print(table)
    return 0
