"""What attacks recovered, for the report: a row per attack, worst first, and curves against their budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.report import glossary, lines, matrix, numbers, view
from expunge.report.chapters import Chart, Line
from expunge.report.schema import Evidence, Measured, Reached, Recovery, Saving

LEGIBLE = 6  # attacks that a reader takes in at once; the others are folded away, if they are more than two


@dataclass(frozen=True)
class AttackRow:
    """What one attack recovered, by the most telling metric."""

    label: str
    meaning: str
    cost: str
    before: str
    attacked: str
    attacked_interval: str
    twin: str
    recovered: str
    share: float | None
    verdict: str
    chance: str = ""  # "p = 0.034": how often chance alone changes a score that much
    aside: str = ""  # in place of a verdict: shown, not judged


@dataclass(frozen=True)
class Curve:
    """A recovery curve with its table: budget, unlearned model, oracle, savings."""

    title: str
    metric: str
    said: str  # the savings in a sentence
    drawing: str
    budget: str
    rows: tuple[tuple[str, str, str, str], ...]
    note: str


@dataclass(frozen=True)
class Curves:
    """The curves of one attack on one stream: the most telling metric and the others."""

    title: str
    first: Curve
    others: tuple[Curve, ...]


def attacks(evidence: Evidence) -> list[AttackRow]:
    """The attacks that fitted, the gravest first."""
    rows = [_attack(evidence, probe) for probe in view.tried(evidence)]
    return sorted(rows, key=lambda row: (matrix.GRAVITY[row.verdict], -(row.share or 0.0)))


def _attack(evidence: Evidence, probe: view.Probe) -> AttackRow:
    condition, where = probe.attacked, view.knowledge(evidence)
    label, verdict = view.short(evidence, condition), matrix.gravest(evidence, condition.name)
    meaning, cost = glossary.attack(condition.attack), matrix.bill(condition) or "none recorded"
    row = evidence.score(condition.name, *where) if where else None
    aside = matrix.ASIDE if view.unjudged(evidence, condition) else ""
    if where is None or row is None:
        return AttackRow(label, meaning, cost, "–", "n/a", "", "–", "n/a", None, verdict, aside=aside)
    after = view.only(evidence, "after")
    base = evidence.score(after.name, *where) if after else None
    twin = evidence.score(probe.twin.name, *where) if probe.twin else None
    share, change = view.recovered(evidence, row), view.change(evidence, row)
    return AttackRow(
        label, meaning, cost, _bare(base), _bare(row) if row.value is not None else f"n/a ({row.reason})",
        numbers.interval(row.ci, row.unit), _bare(twin),
        "n/a" if share is None else numbers.percent(max(0.0, share)), share, verdict,
        numbers.p_value(change.adjusted) if change is not None and change.adjusted is not None else "", aside,
    )


def unfit(evidence: Evidence) -> list[tuple[str, str]]:
    """Attacks that could not be run on this model, each with the reason."""
    reasons = [(probe.attacked, view.unfit(evidence, probe.attacked)) for probe in view.probes(evidence)]
    return [(view.short(evidence, one), reason) for one, reason in reasons if reason is not None]


def _bare(row: Measured | None) -> str:
    return "–" if row is None else numbers.number(row.value, row.unit)


# -- curves ----------------------------------------------------------------------------------------------------
def curves(evidence: Evidence) -> list[Curves]:
    """Every attack with a growing budget, its most telling metric first."""
    found: dict[tuple[str, str], list[Recovery]] = {}
    for one in evidence.recoveries:
        found.setdefault((one.attack, one.stream), []).append(one)
    made = []
    for (attack, stream), rows in found.items():
        told = sorted(rows, key=lambda row: _rank(row.metric))
        drawn = [curve(evidence, row) for row in told]
        made.append(Curves(f"{glossary.attack_title(attack)}, on “{stream}”", drawn[0], tuple(drawn[1:])))
    return made


def _rank(metric: str) -> int:
    name = glossary.base(metric)
    return glossary.KNOWLEDGE.index(name) if name in glossary.KNOWLEDGE else len(glossary.KNOWLEDGE)


def curve(evidence: Evidence, found: Recovery) -> Curve:
    """One metric against the budget, drawn and as a table."""
    drawn = [_line("after", "unlearned", found.after), _line("oracle", "oracle", found.oracle)]
    before = view.value_of(evidence, "original", found.stream, found.metric)
    budgets = sorted({point.budget for point in (*found.after, *found.oracle)})
    note = "" if before is None else f"Before the removal: {numbers.number(before, found.unit)}."
    chart = Chart(
        f"{glossary.title(found.metric)} after so many {_many(found.budget)}", _many(found.budget),
        tuple(line for line in drawn if line.points), note, found.unit,
        doubling=len(budgets) > 2 and budgets[-1] > 6 * budgets[1], ticks=tuple(budgets),
    )
    blind = [numbers.count(one.budget) for one in found.savings if not says(one)]
    notes = [note, f"Over {found.n:,} examples that no attack of this curve was shown." if found.n else "",
             f"No savings can be told at {', '.join(blind)}: the oracle does not get there, with no more budget."
             if blind else "",
             found.note[:1].upper() + found.note[1:] + "." if found.note else ""]
    return Curve(chart.title, glossary.title(found.metric).lower(), _told(found), lines.draw(chart),
                 _many(found.budget), tuple(_rows(found)), " ".join(filter(None, notes)))


def _line(kind: str, name: str, points: tuple[Reached, ...]) -> Line:
    spans = [(point.budget, *point.ci) for point in points if point.ci and all(map(math.isfinite, point.ci))]
    return Line(name, tuple((point.budget, point.value) for point in points), tuple(spans), kind)


def _rows(found: Recovery) -> list[tuple[str, str, str, str]]:
    mine, theirs = ({point.budget: point for point in points} for points in (found.after, found.oracle))
    saved = {one.budget: one for one in found.savings}
    return [
        (numbers.count(budget), _at(mine.get(budget), found.unit), _at(theirs.get(budget), found.unit),
         ratio(saved[budget]) if budget in saved else "–")
        for budget in sorted({*mine, *theirs})
    ]


def _at(point: Reached | None, unit: str) -> str:
    return "–" if point is None else numbers.with_interval(point.value, point.ci, unit)


def ratio(saving: Saving) -> str:
    """`4.2 × (3.1–6.0)`, `≥ 4.2 ×`, with the interval open above where the oracle may never get there; `–` where
    nothing can be told."""
    if not says(saving):
        return "–"
    text = ("≥ " if saving.censored else "") + f"{numbers.significant(saving.ratio, 2)} ×"
    if saving.ci is None:
        return text
    low, high = saving.ci
    if saving.censored and low < 1:
        return f"{text} (may be chance)"
    least = numbers.significant(low, 2)
    return f"{text} ({least} or more)" if math.isinf(high) else f"{text} ({least}–{numbers.significant(high, 2)})"


def says(saving: Saving) -> bool:
    """Not where the oracle did not get there with a budget that was no larger than that of the unlearned model."""
    return not saving.censored or saving.ratio > 1


def telling(savings: Sequence[Saving]) -> Saving | None:
    """The savings to be told: of those that are surely above 1 the ones at the largest budget, where the start counts
    least; else those at the largest budget at which the oracle got there at all. None where none says anything."""
    known = [one for one in savings if says(one)]
    sure = [one for one in known if one.ci is not None and one.ci[0] > 1]
    seen = [one for one in known if not one.censored]
    return max(sure or seen or known, key=lambda one: one.budget, default=None)


def _told(found: Recovery) -> str:
    saving = telling(found.savings)
    if saving is None:
        return ""
    start = f"What {numbers.count(saving.budget)} {_many(found.budget)} bring back"
    if saving.censored:
        most = max(point.budget for point in found.oracle)
        return f"{start} the oracle does not reach with {numbers.count(most)}: savings {ratio(saving)}."
    if saving.ratio == 0:
        return f"{start} the oracle reaches without any: nothing was saved."
    need = numbers.count(round(saving.ratio * saving.budget))
    return f"{start} the oracle reaches with {need}: savings {ratio(saving)}."


def _many(budget: str) -> str:
    return glossary.BUDGETS.get(budget, budget)
