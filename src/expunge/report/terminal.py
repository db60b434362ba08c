"""The evidence on a terminal of 100 columns, and leaderboards for benches, also as markdown.

Everything is built from `Text`, never from markup, so that brackets in names stay brackets; rich drops colour when
the output is no terminal or NO_COLOR is set.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from expunge.report import attack_table, glossary, numbers, summary, view, yardstick
from expunge.report.schema import Condition, Evidence, Interval, Measured, Verdict

STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
TINTS = ("green", "", "yellow", "dark_orange", "red")
HEADS = ("original", "oracle", "after", "worst attack")


class Row(TypedDict, total=False):
    """One line of a leaderboard."""

    method: str  # "npo"
    condition: str  # "after", "after+relearn(20)"; may be absent
    metrics: Mapping[str, tuple[float | None, Interval | None]]  # metric -> (value, interval); None = n/a
    seconds: float


def print_evidence(evidence: Evidence, console: Console) -> None:
    """Title, one table of all metrics, the attacks, the verdict per claim and what was not tested."""
    console.print(Text(evidence.title, style="bold"))
    console.print(Text(f"{evidence.subject} · {evidence.digest}", style="dim"))
    letters = _letters(evidence)
    flat = _matrix(evidence, letters, joint=" ")
    console.print(flat if _fits(flat, console) else _matrix(evidence, letters, joint="\n"))
    level = numbers.percent(evidence.confidence, whole=True)
    note = f"Ranges are {level} intervals, those of differences 90 % (two one-sided tests at 5 %)"
    note += "; letters name the attack below that was worst. " if letters else ". "
    console.print(Text(note + summary.over(evidence), style="dim"))
    if view.probes(evidence):
        console.print()
        attack_table.print_attacks(evidence, letters, console)
    console.print()
    verdicts = Table.grid(padding=(0, 2, 0, 0))
    for verdict in evidence.verdicts:
        verdicts.add_row(Text(verdict.verdict, style=STYLES[verdict.verdict]), _verdict_text(evidence, verdict))
    if evidence.verdicts:
        console.print(verdicts)
    left = attack_table.left_out(evidence)
    if left:
        console.print(Text(f"Not tested: {left}", style="dim"))
    for warning in evidence.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    outcome = evidence.verdict
    words = Text("Verdict: ", style="bold")
    console.print(words.append(outcome or "none asked", style=STYLES.get(outcome or "", "bold")))


def leaderboard(rows: Sequence[Row], console: Console, *, units: Mapping[str, str] | None = None,
                title: str = "") -> None:
    """One line per method (and condition), value over interval; several tables where one is too wide.

    Args:
        rows: lines in the order to show; a metric that a line lacks is shown as n/a.
        units: metric -> unit; known metrics need none.
    """
    heads, lines = _leaderboard(rows, units or {})
    names, total = _names(rows), len(heads)
    pieces: list[Table] = []
    for parts in range(1, total - names + 1):
        each = -(-(total - names) // parts)
        groups = [range(first, min(first + each, total)) for first in range(names, total, each)]
        pieces = [_board(heads, lines, [*range(names), *group], names) for group in groups]
        if all(_fits(piece, console) for piece in pieces):
            break
    if title:
        console.print(Text(title, style="bold"))
    for index, piece in enumerate(pieces):
        if index:
            console.print()
        console.print(piece)


def to_markdown(rows: Sequence[Row], *, units: Mapping[str, str] | None = None) -> str:
    """The same leaderboard as a markdown table: `97.3 % (95.9–98.4)`."""
    heads, lines = _leaderboard(rows, units or {})
    marks = ["---" if index < _names(rows) else "---:" for index in range(len(heads))]
    cells = [[_escape(head) for head in heads], marks]
    cells += [[_escape(cell.replace("\n", " (") + (")" if "\n" in cell else "")) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _fits(table: Table, console: Console) -> bool:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width


def _matrix(evidence: Evidence, letters: Mapping[str, str], *, joint: str) -> Table:
    table = _table()
    table.add_column("metric", overflow="fold", max_width=22)
    shown = [head for head in HEADS if _exists(evidence, head)]
    for head in shown:
        table.add_column(head)
    for stream in view.streams(evidence):
        count = next((row.n for row in evidence.streams if row.name == stream), None)
        known = view.groups(evidence, stream)
        note = stream + (f", n={count}" if count is not None else "")
        people = Text(f"of {known} subjects" if known else "", style="cyan")
        table.add_row(Text(note, style="bold cyan"), *(people if head == shown[0] else "" for head in shown))
        for metric in view.metrics(evidence, stream):
            cells = [_cell(evidence, _row_for(evidence, head, stream, metric), letters, joint) for head in shown]
            table.add_row(Text(metric), *cells)
    return table


def _cell(evidence: Evidence, row: Measured | None, letters: Mapping[str, str], joint: str) -> Text:
    if row is None:
        return Text("-", style="dim")
    if row.value is None:
        return Text("n/a", style="dim")
    away = yardstick.distance(evidence, row)
    text = Text().append(numbers.number(row.value, row.unit), style=TINTS[away.level] if away else "")
    span = numbers.interval(row.ci, row.unit)
    if span:
        text.append(f"{joint}{span.replace(' to ', '…')}", style="dim")
    if row.condition in letters:
        text.append(f" {letters[row.condition]}", style="magenta")
    return text


def _verdict_text(evidence: Evidence, verdict: Verdict) -> Text:
    unit = view.unit_of(evidence, verdict.stream, verdict.metric)
    said = f"{verdict.claim}: {verdict.metric} on {verdict.stream}"
    if verdict.difference is not None:
        said += f", {_who(evidence, verdict.condition)} {numbers.difference(verdict.difference, verdict.ci, unit)}"
        if verdict.ci is not None:
            said += f" ({numbers.difference_interval(verdict.ci, unit)})"
        said += f" from {verdict.against}"
    if verdict.margin is not None:
        said += f", margin {numbers.margin(verdict.margin, unit)}"
    if verdict.power is not None:
        said += f", power {numbers.percent(verdict.power, whole=True)}"
    return Text(said + (f"; {verdict.reason}" if verdict.reason else ""))


def _who(evidence: Evidence, name: str) -> str:
    condition = evidence.condition(name)
    return name if condition is None or not condition.of else f"{condition.of}+{view.named(evidence, condition)}"


def _letters(evidence: Evidence) -> dict[str, str]:
    probes = view.tried(evidence)
    alphabet = [*string.ascii_lowercase, *(f"{letter}{letter}" for letter in string.ascii_lowercase)]
    return {probe.attacked.name: alphabet[index % len(alphabet)] for index, probe in enumerate(probes)}


def _exists(evidence: Evidence, head: str) -> bool:
    return bool(view.judged(evidence)) if head == HEADS[3] else view.only(evidence, head) is not None


def _row_for(evidence: Evidence, head: str, stream: str, metric: str) -> Measured | None:
    if head == HEADS[3]:
        return view.worst(evidence, stream, metric)
    condition: Condition | None = view.only(evidence, head)
    return evidence.score(condition.name, stream, metric) if condition else None


def _names(rows: Sequence[Row]) -> int:
    """How many of the leading columns hold names."""
    return 2 if any(row.get("condition") for row in rows) else 1


def _leaderboard(rows: Sequence[Row], units: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; a line break stands between a value and its interval."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.get("metrics", {})))
    timed = any("seconds" in row for row in rows)
    heads = ["method", "condition"][: _names(rows)] + metrics + (["seconds"] if timed else [])
    lines = []
    for row in rows:
        line = [row.get("method", ""), row.get("condition", "")][: _names(rows)]
        for metric in metrics:
            value, ci = row.get("metrics", {}).get(metric, (None, None))
            unit = units.get(metric) or glossary.unit(metric)
            span = numbers.interval(ci, unit) if value is not None else ""
            line.append(numbers.number(value, unit) + (f"\n{span}" if span else ""))
        if timed:
            line.append(numbers.significant(row["seconds"]) if "seconds" in row else "n/a")
        lines.append(line)
    return heads, lines


def _board(heads: Sequence[str], lines: Sequence[Sequence[str]], columns: Sequence[int], names: int) -> Table:
    table = _table()
    for index in columns:
        words = heads[index].replace("_", "\n") if index >= names else heads[index]
        table.add_column(Text(words), justify="left" if index < names else "right", vertical="top", overflow="fold")
    for line in lines:
        table.add_row(*(_two_lines(line[index]) for index in columns))
    return table


def _two_lines(cell: str) -> Text:
    value, _, span = cell.partition("\n")
    text = Text().append(value, style="dim" if value == "n/a" else "")
    return text.append(f"\n{span}", style="dim") if span else text


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
