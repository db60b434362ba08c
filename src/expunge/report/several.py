"""Several runs of one recipe as one table: on a terminal, as markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.text import Text

from expunge.report import numbers
from expunge.report.jsonform import encode
from expunge.report.schema import Interval, Outcome
from expunge.report.terminal import STYLES, _escape, _table

OVER = (
    "The mean over runs. SD: how far single runs lie from each other. “other seeds”: the 95 % range of the mean if "
    "only the seed changes; “other seeds and examples”: if the examples change as well, which is the one to quote."
)
HEADS = ("condition", "metric", "runs", "mean", "SD", "other seeds", "other seeds and examples")


@dataclass(frozen=True)
class Pooled:
    """One score over several runs: a metric of one stream under one condition."""

    condition: str
    stream: str
    metric: str
    runs: int  # runs in which it has a value
    mean: float | None = None  # None where no run has a value
    sd: float | None = None  # between runs
    over_runs: Interval | None = None  # of the mean, over seeds, for these very examples
    total: Interval | None = None  # of the mean, over seeds and examples (or the subjects they belong to)
    n: int = 0  # examples, the fewest of any run
    groups: int | None = None  # subjects they belong to, where intervals are over subjects
    unit: str = ""
    better: Literal["lower", "higher", "oracle"] = "lower"
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """The verdicts of the runs on one claim."""

    claim: str
    metric: str
    stream: str
    worst: Outcome
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Several:
    """What several runs found together."""

    title: str
    runs: tuple[str, ...]  # names of the runs
    seeds: tuple[int | None, ...]  # of each run, where its recipe tells
    scores: tuple[Pooled, ...]
    claims: tuple[Claim, ...] = ()
    verdict: Outcome | None = None  # the worst of all runs
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(encode(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def print_several(found: Several, console: Console) -> None:
    """A table per stream, the verdicts of the runs, and what the ranges are over."""
    console.print(Text(_head(found), style="bold"))
    for stream, rows in _by_stream(found):
        table = _table()
        for head in HEADS:
            table.add_column(head, justify="left" if head in HEADS[:2] else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in _cells(row)))
        console.print(Text(_stream(stream, rows), style="bold cyan"))
        console.print(table)
        for note in _notes(rows):
            console.print(Text(note, style="dim"))
        console.print()
    console.print(Text(OVER, style="dim"))
    for claim in found.claims:
        console.print(Text(claim.worst, style=STYLES[claim.worst]), Text(_told(claim)))
    for warning in found.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    console.print(Text(f"Verdict: {found.verdict or 'none asked'}", style=STYLES.get(found.verdict or "", "bold")))


def to_markdown(found: Several) -> str:
    """The same as a markdown document."""
    parts = [f"# {_escape(_head(found))}", OVER]
    for stream, rows in _by_stream(found):
        lines = [HEADS, ("---", "---", *["---:"] * (len(HEADS) - 2)), *map(_cells, rows)]
        table = "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)
        parts += [f"## {_escape(_stream(stream, rows))}", table, *map(_escape, _notes(rows))]
    if found.claims:
        told = [f"- **{claim.worst}** {_escape(_told(claim))}" for claim in found.claims]
        parts += ["## Verdicts", "\n".join(told), f"Of all runs: **{found.verdict}**."]
    parts += [f"Warning: {_escape(warning)}" for warning in found.warnings]
    return "\n\n".join(parts) + "\n"


def _head(found: Several) -> str:
    seeds = [str(seed) for seed in found.seeds if seed is not None]
    told = f", seeds {', '.join(seeds)}" if len(seeds) == len(found.runs) else ""
    return f"{found.title}: {len(found.runs)} runs{told}"


def _by_stream(found: Several) -> Iterator[tuple[str, list[Pooled]]]:
    for stream in dict.fromkeys(row.stream for row in found.scores):
        yield stream, [row for row in found.scores if row.stream == stream]


def _stream(stream: str, rows: list[Pooled]) -> str:
    count = max(row.n for row in rows)
    groups = max((row.groups for row in rows if row.groups is not None), default=None)
    return f"{stream}, n = {count}" + (f" of {groups} subjects" if groups is not None else "")


def _cells(row: Pooled) -> list[str]:
    if row.mean is None:
        return [row.condition, row.metric, str(row.runs), "n/a", "-", "-", "-"]
    spread = "-" if row.sd is None else numbers.difference(row.sd, row.over_runs, row.unit).removeprefix("+")
    spans = [numbers.interval(span, row.unit) or "-" for span in (row.over_runs, row.total)]
    return [row.condition, row.metric, str(row.runs), numbers.number(row.mean, row.unit), spread, *spans]


def _notes(rows: list[Pooled]) -> list[str]:
    """Why rows are n/a or lack a range, one line for each reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            where.setdefault((row.metric, row.reason), []).append(row.condition)
    return [f"{metric} ({', '.join(names)}): {reason}" for (metric, reason), names in where.items()]


def _told(claim: Claim) -> str:
    tally = ", ".join(f"{count} {outcome}" for outcome, count in claim.outcomes.items() if count)
    return f"{claim.claim}: {claim.metric} on {claim.stream}: {tally}"
