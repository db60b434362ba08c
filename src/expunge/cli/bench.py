"""expunge bench NAME"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson, Out

Methods = Annotated[
    str,
    typer.Option(
        "--methods", help="Comma-separated; 'all': every one the benchmark has settings for; 'none': models alone."
    ),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="harness: comma-separated tasks, or task files (.yaml).")
]


def bench(
    name: Annotated[str, typer.Argument(help="tofu, muse, wmdp, ... (expunge list benchmarks), or harness.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with the benchmark's files.")] = Path("."),
    split: Annotated[str | None, typer.Option("--split", help="tofu: forget01, forget05, forget10.")] = None,
    methods: Methods = "ga,graddiff,npo,simnpo",
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
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the methods' trainings and of the attacks.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...")] = "cpu",
    tasks: Tasks = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="harness: documents a task at most.")] = None,
    from_log: Annotated[
        Path | None, typer.Option("--from-log", help="Score a published TOFU or OpenUnlearning log again.")
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

    if from_log is not None and name in ("tofu", "muse"):
        return _from_log(from_log, reference, last, as_json)
    if name == "harness":
        return _harness(models, tasks, limit, out, device, as_json)
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
    made = {"attacks": asked, "trials": trials, "changes": changed, "seed": seed, "device": device}
    return _work({"use": name, **own, **world}, folder, chosen, made, as_json)


def _chosen(name: str, methods: str) -> list[str]:
    from expunge.benches.world import methods_of
    from expunge.registry import entries

    if methods == "none":
        return []
    if methods != "all":
        return [part.strip() for part in methods.split(",") if part.strip()]
    return methods_of(name) or sorted(entries("method"))


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


def _work(spec: dict[str, Any], folder: Path, methods: list[str], settings: dict[str, Any], as_json: bool) -> int:
    from expunge.bench import Bench
    from expunge.cli.screen import bars
    from expunge.registry import bind
    from expunge.run import write_json
    from expunge.workflow import collect_warnings, warn_on_screen

    world = bind("benchmark", spec)
    for method in methods:  # a wrong name or argument is told before anything is spent
        bind("method", {"use": method, **settings["changes"].get(method, {})}, f"methods.{method}")
    for attack in settings["attacks"] or ():
        bind("attack", attack, "attacks")
    with collect_warnings(warn_on_screen), bars(quiet=as_json) as progress:
        made = Bench(world(progress), folder, progress=progress, **settings)
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


def _harness(
    models: str | None, tasks: str | None, limit: int | None, out: Path | None, device: str, as_json: bool
) -> int:
    """Tasks of lm-evaluation-harness on models, as rows of scores.json."""
    import json
    from dataclasses import asdict

    from expunge.cli.screen import bars, start
    from expunge.errors import RecipeError
    from expunge.harness import run_harness
    from expunge.workflow import default_folder

    def named(option: str, value: str | None) -> list[str]:
        if not value:
            raise RecipeError(f"bench harness {option}", "missing", "names, comma-separated", f"Add {option}")
        return [part.strip() for part in value.split(",") if part.strip()]

    folders, wanted = named("--models", models), named("--tasks", tasks)
    start()
    folder = out or default_folder("bench-harness")
    with bars(quiet=as_json) as progress:
        rows = run_harness(folders, wanted, limit, folder, device=device, progress=progress)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    from rich.table import Table

    from expunge.cli.screen import console

    table = Table(title="lm-evaluation-harness", title_justify="left")
    for heading in ("model", "metric", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading in ("model", "metric") else "right")
    for row in rows:
        shown = "n/a" if row.value is None else f"{row.value:.4g}"
        interval = "" if row.ci is None else f"{row.ci[0]:.4g} to {row.ci[1]:.4g}"
        table.add_row(row.condition, row.metric, shown, interval, str(row.n))
    screen = console()
    screen.print(table)
    screen.print(f"Scores: {folder / 'scores.json'}", soft_wrap=True)
    return 0


def _from_log(log: Path, reference: Path | None, last: int | None, as_json: bool) -> int:
    import json

    from expunge.metrics.openunlearning_logs import log_scores

    scores = log_scores(log, reference, last)
    if as_json:
        told = {name: {"value": s.value, "ci": s.ci, "n": s.n, "reason": s.reason} for name, s in scores.items()}
        print(json.dumps(told))
        return 0
    from rich.table import Table

    from expunge.cli.screen import console

    table = Table(title=f"Log {log.name}", title_justify="left")
    for heading in ("metric", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, s in scores.items():
        value = "n/a" if s.value is None else f"{s.value:.6g}"
        table.add_row(name, value, "" if s.ci is None else f"{s.ci[0]:.4g} to {s.ci[1]:.4g}", str(s.n))
    screen = console()
    screen.print(table)
    for name, s in scores.items():
        if s.reason:
            screen.print(f"{name}: {s.reason}", soft_wrap=True, highlight=False)
    return 0
