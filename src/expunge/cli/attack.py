"""expunge attack NAME MODEL --forget F"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.run import AsJson, Out, Resume
from expunge.cli.unlearn import (
    AllowPickle,
    Budget,
    Fields,
    Forget,
    Holdout,
    Metrics,
    Oracle,
    Original,
    Retain,
    TrustRemoteCode,
    listed,
    names,
    pairs,
    streams,
)
from expunge.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from expunge.report.schema import Condition, Evidence


def attack(
    name: Annotated[str, typer.Argument(help="See: expunge list attacks. With arguments: relearn:steps=20")],
    model: Annotated[str, typer.Argument(help="The model to attack.")],
    forget: Forget,
    retain: Retain = None,
    holdout: Holdout = None,
    original: Original = None,
    oracle: Oracle = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="An argument of the attack: name=value, e.g. lr=1e-4.")
    ] = None,
    metrics: Metrics = "default",
    budget: Budget = None,
    fields: Fields = None,
    out: Out = None,
    resume: Resume = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    as_json: AsJson = False,
) -> int:
    """Run one attack alone: every metric before it and after it. Ends 1 when it does not fit this model or data."""
    from expunge.cli.screen import bars, start
    from expunge.presets import METRICS
    from expunge.recipe import Recipe

    spec = attack_spec(name, changes or [])
    start()
    from expunge.workflow import Workflow, default_folder

    if resume and out is None:
        raise RecipeError("--resume", "no --out", "the folder of the interrupted run", "Add --out RUN")
    recipe = Recipe.of({
        "expunge": 1, "title": f"{spec['use']} against {Path(model).name}",
        "model": {"from": model, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code},
        "data": streams(fields, forget=forget, retain=retain, holdout=holdout),
        "audit": {
            "metrics": listed("metric", metrics, METRICS), "attacks": [spec],
            "against": oracle, "original": original, "budget": pairs(budget),
        },
        "device": device,
    })
    folder = out or default_folder(f"attack-{spec['use']}-{Path(model).name}")
    with bars(quiet=as_json) as progress:
        evidence = Workflow(recipe, folder, resume, progress).execute()
    assert evidence is not None
    return _conclude(evidence, spec["use"], folder, as_json)


def attack_spec(name: str, changes: Sequence[str]) -> dict[str, Any]:
    """One attack from `relearn:steps=20` and what `--set` adds."""
    from expunge.recipe import read_value

    found = names(name)
    if len(found) != 1:
        raise RecipeError(
            "NAME", f"{len(found)} attacks in {name!r}", "one attack", "For several: expunge audit --attacks a,b"
        )
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign or not key:
            raise RecipeError(f"--set {change}", "no 'name=value'", "such as steps=50", "Correct the option")
        found[0][key] = read_value(value, f"--set {change}")
    return dict(found[0])


def _conclude(evidence: Evidence, name: str, folder: Path, as_json: bool) -> int:
    from expunge import dist
    from expunge.report import view

    tried = [probe.attacked for probe in view.probes(evidence)]
    known = {row.condition for row in evidence.scores if row.value is not None}
    fits = any(condition.name in known for condition in tried)
    reason = "" if fits else _why_not(evidence, tried, name)
    if dist.rank() == 0:
        if as_json:
            print(json.dumps(_plain(evidence, folder, reason)))
        else:
            _print(evidence, [one for one in tried if one.name in known], folder, reason)
    return 0 if fits else 1


def _why_not(evidence: Evidence, tried: Sequence[Condition], name: str) -> str:
    """Why nothing was measured under the attack."""
    reasons = [row.reason for row in evidence.scores if tried and row.condition == tried[0].name and row.reason]
    reasons += [one.why for one in evidence.untested if one.what.startswith(name) and one.why]
    return next(iter(reasons), "nothing could be measured under it")


def _plain(evidence: Evidence, folder: Path, reason: str) -> dict[str, Any]:
    from expunge.report.jsonform import encode

    return {
        "run": str(folder), "fits": not reason, "reason": reason,
        "conditions": [encode(one) for one in evidence.conditions],
        "scores": [encode(row) for row in evidence.scores],
        "files": {name: str(folder / name) for name in ("scores.json", "report.html")},
    }


def _print(evidence: Evidence, tried: Sequence[Condition], folder: Path, reason: str) -> None:
    from rich.measure import Measurement
    from rich.text import Text

    from expunge.cli.screen import console
    from expunge.report import summary

    screen = console()
    screen.print(Text(evidence.title, style="bold"))
    if reason:
        screen.print(Text(f"It does not fit: {reason}", style="yellow"))
    else:
        table = _table(evidence, tried)
        if Measurement.get(screen, screen.options.update(max_width=10_000), table).maximum > screen.width:
            table = _table(evidence, tried[-1:])  # the largest budget; the others stand in scores.json
        screen.print(table)
        screen.print(Text("In brackets 95 % intervals. " + summary.over(evidence), style="dim"))
        for condition in tried:
            screen.print(Text(f"{condition.shown}: {_bill(condition)}"), soft_wrap=True)
    for warning in evidence.warnings:
        screen.print(Text(f"Warning: {warning}", style="yellow"))
    screen.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _table(evidence: Evidence, tried: Sequence[Condition]) -> Table:
    """Before, after the attack, and the same of the oracle where there is one; a line per metric."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from expunge.report import numbers, view
    from expunge.report.families import growing

    twins = {probe.attacked.name: probe.twin for probe in view.probes(evidence)}
    unit = growing(tried)
    columns = {"before": view.only(evidence, "after")}
    for one in tried:
        told = f"after {numbers.count(getattr(one.cost, unit))} {unit}" if unit else one.suffix
        columns["after it" if len(tried) == 1 else told] = one
    if (oracle := view.only(evidence, "oracle")) is not None:
        columns |= {"never saw it": oracle, "never saw it, after": twins.get(tried[-1].name)}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("metric", *columns):
        table.add_column(Text(head), overflow="fold")
    for stream in view.streams(evidence):
        table.add_row(Text(stream, style="bold cyan"), *("" for _ in columns))
        for metric in view.metrics(evidence, stream):
            rows = [evidence.score(one.name, stream, metric) if one is not None else None for one in columns.values()]
            cells = ["-" if row is None else numbers.with_interval(row.value, row.ci, row.unit) for row in rows]
            table.add_row(Text(metric), *(Text(cell) for cell in cells))
    return table


def _bill(condition: Condition) -> str:
    """What the attacker paid."""
    from expunge.report import numbers

    cost = condition.cost
    spent = [f"{numbers.count(getattr(cost, unit))} {unit}" for unit in ("queries", "steps", "tokens")
             if getattr(cost, unit)]
    return ", ".join([*spent, numbers.seconds(cost.seconds)])
