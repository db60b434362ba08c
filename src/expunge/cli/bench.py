"""expunge bench NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson, Out

METHODS = "ga,graddiff,npo,simnpo,idk_dpo"


def bench(
    name: Annotated[str, typer.Argument(help="tofu")],
    data: Annotated[Path, typer.Option("--data", help="Folder with the benchmark's files.")] = Path("."),
    split: Annotated[str, typer.Option("--split", help="tofu: forget01, forget05, forget10.")] = "forget10",
    methods: Annotated[str, typer.Option("--methods", help="Comma-separated methods, or 'all'.")] = METHODS,
    models: Annotated[
        str | None, typer.Option("--models", help="Your own ORIGINAL[,ORACLE] instead of training one.")
    ] = None,
    limit_authors: Annotated[int | None, typer.Option("--limit-authors", help="A smaller world of N authors.")] = None,
    attacks: Annotated[str | None, typer.Option("--attacks", help="Comma-separated, or 'none'.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="METHOD.argument=value")] = None,
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
    """Train a model and its oracle, unlearn with each method, attack, and print a leaderboard with intervals."""
    from expunge.errors import RecipeError, close_to

    if name != "tofu":
        raise RecipeError("bench", f"unknown benchmark '{name}'", close_to(name, ["tofu"]), "See: expunge bench --help")
    if from_log is not None:
        return _from_log(from_log, reference, last, as_json)
    from expunge.cli.screen import start

    start()
    from expunge.cli.unlearn import names
    from expunge.registry import entries
    from expunge.workflow import default_folder

    chosen = (
        list(entries("method")) if methods == "all" else [part.strip() for part in methods.split(",") if part.strip()]
    )
    return _tofu(
        data,
        split,
        limit_authors,
        chosen,
        models,
        names(attacks) if attacks is not None else None,
        _changed(chosen, changes or [], small=models is None),
        out or default_folder(f"bench-tofu-{split}"),
        as_json,
    )


def _changed(methods: list[str], changes: list[str], *, small: bool) -> dict[str, dict[str, Any]]:
    """The settings of each method with `METHOD.argument=value` applied."""
    from expunge.bench import SMALL
    from expunge.errors import RecipeError, close_to
    from expunge.recipe import read_value

    made = {name: dict(SMALL.get(name, {}) if small else {}) for name in methods}
    for change in changes:
        path, sign, value = change.partition("=")
        method, dot, argument = path.partition(".")
        if not sign or not dot or method not in made:
            raise RecipeError(f"--set {change}", f"'{method}'", close_to(method, made), "Write METHOD.argument=value")
        made[method][argument] = read_value(value, f"--set {change}")
    return made


def _tofu(
    folder: Path,
    split: str,
    limit: int | None,
    methods: list[str],
    models: str | None,
    attacks: Any,
    settings: dict[str, dict[str, Any]],
    out: Path,
    as_json: bool,
) -> int:
    from expunge.bench import ATTACKS, Architecture, Bench, trained
    from expunge.cli.screen import bars
    from expunge.data.benchmarks.tofu import tofu_data
    from expunge.registry import bind
    from expunge.types import Data, Stream

    for method in methods:  # a wrong name or argument is told before anything is spent
        bind("method", {"use": method, **settings[method]}, f"methods.{method}")
    streams = tofu_data(folder, split, limit)  # type: ignore[arg-type]
    training = Data(forget=streams["forget"], retain=Stream("retain", "retain", streams["retain_train"].examples))
    audited = Data({name: streams[name] for name in ("forget", "retain", "real_authors", "world_facts")})
    with bars(quiet=as_json) as progress:
        if models:
            original, _, oracle = models.partition(",")
        else:
            full, kept = streams["full"].examples, streams["retain_train"].examples
            original = str(trained(full, full, Architecture(), progress=progress))
            oracle = str(trained(kept, full, Architecture(), progress=progress))
        out.mkdir(parents=True, exist_ok=True)
        made = Bench(
            original,
            oracle or None,
            training,
            audited,
            out,
            ATTACKS if attacks is None else attacks,
            settings,
            progress=progress,
        )
        audit = made.run(methods)
    return _print(made.rows(audit), out, as_json)


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
