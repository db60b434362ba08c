"""The attacks on a terminal: each by the measure on which it did worst, what did not fit, and what cheap means."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.report import matrix, numbers, recovered, view
from expunge.report.schema import Checked, Condition, Evidence, Verdict

STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
MOST = 12  # things not tested that are named one by one


def print_attacks(evidence: Evidence, letters: Mapping[str, str], console: Console) -> None:
    """A line per attack, then those that did not fit, each reason once, then how cheaply knowledge comes back.

    Args:
        letters: of the attacks, by the name of their condition.
    """
    if letters:
        console.print(_table(evidence, letters))
    if unjudged(evidence):
        console.print(Text(f"not judged: {matrix.ASIDE}; what it shows may have come with the attack", style="dim"))
    for reason, names in unfit(evidence).items():
        console.print(Text(f"n/a: {', '.join(names)}: {reason}", style="dim"), soft_wrap=True)
    for line in savings(evidence):
        console.print(Text(line), soft_wrap=True)


def _table(evidence: Evidence, letters: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("attack", overflow="fold", ratio=3)
    table.add_column("worst measure", overflow="fold", ratio=2)
    for head in ("score", "oracle", "difference"):
        table.add_column(head, justify="right", no_wrap=head != "difference")
    table.add_column("verdict", no_wrap=True)
    for probe in view.tried(evidence):
        condition = probe.attacked
        name = Text().append(f"{letters[condition.name]} ", style="magenta").append(view.named(evidence, condition))
        table.add_row(name, *_cells(evidence, condition, probe.twin))
    return table


def _cells(evidence: Evidence, condition: Condition, twin: Condition | None) -> tuple[Text, ...]:
    stream, metric, found = worst(evidence, condition.name)
    unit = view.unit_of(evidence, stream, metric)
    row = evidence.score(condition.name, stream, metric)
    beside = evidence.score(twin.name, stream, metric) if twin else None
    score, oracle = ("-" if one is None else numbers.number(one.value, unit) for one in (row, beside))
    change = "-"
    if found is not None and found.difference is not None:
        span = numbers.difference_interval(found.ci, unit).replace(" to ", "…")
        change = numbers.difference(found.difference, found.ci, unit).removesuffix(" points")
        change += f" ({span})" if span else ""
    verdict: str = found.verdict if found is not None else ""
    if view.unjudged(evidence, condition):
        verdict = "not judged"
    return Text(metric), Text(score), Text(oracle), Text(change), Text(verdict or "-", style=STYLES.get(verdict, ""))


def worst(evidence: Evidence, condition: str) -> tuple[str, str, Checked | None]:
    """Stream and metric with the gravest comparison of a condition, the one farthest off in margins; without any, the
    most telling metric."""
    found = [(row, item) for row in evidence.verdicts for item in row.checked if item.condition == condition]
    if not found:
        return (*(view.knowledge(evidence) or ("", "")), None)

    def rank(pair: tuple[Verdict, Checked]) -> tuple[int, float]:
        verdict, item = pair
        return matrix.GRAVITY[item.verdict], -abs(item.difference or 0.0) / (verdict.margin or 1.0)

    verdict, item = min(found, key=rank)
    return verdict.stream, verdict.metric, item


def unfit(evidence: Evidence) -> dict[str, list[str]]:
    """The attacks that could not be run, by reason."""
    reasons: dict[str, list[str]] = {}
    for probe in view.probes(evidence):
        reason = view.unfit(evidence, probe.attacked)
        if reason is not None:
            reasons.setdefault(reason, []).append(view.named(evidence, probe.attacked))
    return reasons


def unjudged(evidence: Evidence) -> list[str]:
    """The attacks that make no claim."""
    found = (probe.attacked for probe in view.tried(evidence))
    return [view.named(evidence, one) for one in found if view.unjudged(evidence, one)]


def savings(evidence: Evidence) -> list[str]:
    """Of every attack with a growing budget, how much cheaper it was than on the oracle, by its most telling metric."""
    told = [(curves.title, curves.first) for curves in recovered.curves(evidence)]
    return [f"{title}, {curve.metric}: {curve.said}" for title, curve in told if curve.said]


def left_out(evidence: Evidence) -> str:
    """What was not tested, named while it is little; attacks that did not fit are told with the attacks."""
    told = {name for names in unfit(evidence).values() for name in names}
    aside = unjudged(evidence)
    named = [view.what(evidence, item.what) for item in evidence.untested]
    names = [name for name in named if name not in told and name not in aside]
    more = len(names) - MOST
    return "; ".join(names[:MOST]) + (f"; and {more} more, listed in the report" if more > 0 else "")
