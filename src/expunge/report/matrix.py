"""Attack by metric: a table of the states of a model against what was measured of a stream, as finished texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expunge.report import figures, glossary, numbers, view, yardstick
from expunge.report.schema import Condition, Evidence, Measured

WIDEST = 10  # metrics side by side: what fits on a printed page
MARKS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}
SAID = {"PASS": "passed", "FAIL": "failed", "INCONCLUSIVE": "is undecided"}
ASIDE = "shown, not judged"
GRAVITY = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2, "": 3}


@dataclass(frozen=True)
class Spot:
    """One cell. note: number of the footnote that says why it is n/a."""

    value: str
    interval: str = ""
    level: int | None = None  # tint, 0 to 4
    sign: str = ""
    verdict: str = ""
    told: str = ""  # all of it in words
    note: int = 0

    @property
    def mark(self) -> str:
        return MARKS.get(self.verdict, "")


@dataclass(frozen=True)
class Line:
    """One state of the model. unfit: why its attack gave nothing, in place of cells. aside: shown, not judged."""

    label: str
    name: str
    kind: str
    cost: str
    verdict: str
    spots: tuple[Spot, ...] = ()
    unfit: str = ""
    aside: str = ""


@dataclass(frozen=True)
class Group:
    """Lines that are one attack with different settings; a single line needs no title."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Column:
    title: str
    name: str
    meaning: str
    direction: str
    margin: str


@dataclass(frozen=True)
class Matrix:
    """A table with its footnotes. id: for anchors. judged: whether verdicts rest on it."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    judged: bool = False
    verdicts: bool = False  # whether lines have one


@dataclass(frozen=True)
class Sheaf:
    """All that was measured of one stream under some conditions: the judged measures, the others, and those of which
    nothing could be measured, with the reason."""

    stream: str
    judged: tuple[Matrix, ...]
    others: tuple[Matrix, ...]
    missing: tuple[tuple[str, str], ...]

    @property
    def further(self) -> int:
        return sum(len(matrix.columns) for matrix in self.others)


def under_attack(evidence: Evidence) -> list[Sheaf]:
    """Of every forget stream: before, never seen, after, and after every attack."""
    chosen = [row for row in view.ordered(evidence) if row.of != "oracle"]
    if not any(row.kind == "attack" for row in chosen):
        return []
    forget = [stream for stream in view.streams(evidence) if view.role(evidence, stream) == "forget"]
    return [sheaf(evidence, stream, chosen, f"attacked-{number}") for number, stream in enumerate(forget)]


def twins(evidence: Evidence, stream: str, number: int) -> Sheaf | None:
    """What the attack matrix does not show of a stream: the attacks on the oracle, on other streams all attacks."""
    forget = view.role(evidence, stream) == "forget"
    chosen = [row for row in view.ordered(evidence) if row.kind == "attack" and (row.of == "oracle" or not forget)]
    return sheaf(evidence, stream, chosen, f"all-{number}") if chosen else None


def sheaf(evidence: Evidence, stream: str, chosen: Sequence[Condition], name: str) -> Sheaf:
    """The measures of a stream in tables of at most ten columns."""
    metrics, missing = [], []
    for metric in view.metrics(evidence, stream):
        rows = [row for one in chosen if (row := evidence.score(one.name, stream, metric))
                and view.unfit(evidence, one) is None]
        reasons = {row.reason for row in rows}
        if rows and all(row.value is None for row in rows) and len(reasons) == 1:
            missing.append((glossary.title(metric), reasons.pop() or "no reason given"))
        elif rows:
            metrics.append(metric)
    judged = [metric for metric in metrics if view.verdict_for(evidence, stream, metric)]
    others = [metric for metric in metrics if metric not in judged]
    parts = [(True, part) for part in _parts(judged)] + [(False, part) for part in _parts(others)]
    made = [_matrix(evidence, stream, part, chosen, f"{name}-{number}", judged=is_judged)
            for number, (is_judged, part) in enumerate(parts)]
    made = [replace(one, caption=one.caption + _counted(made, number)) for number, one in enumerate(made)]
    return Sheaf(stream, tuple(one for one in made if one.judged), tuple(one for one in made if not one.judged),
                 tuple(missing))


def _counted(made: Sequence[Matrix], number: int) -> str:
    """", 1 of 2" where a caption stands over several tables."""
    alike = [place for place, one in enumerate(made) if one.caption == made[number].caption]
    return f", {alike.index(number) + 1} of {len(alike)}" if len(alike) > 1 else ""


def _parts(metrics: Sequence[str]) -> list[Sequence[str]]:
    """In equal parts of at most ten."""
    many = -(-len(metrics) // WIDEST)
    each = -(-len(metrics) // many) if many else 1
    return [metrics[start : start + each] for start in range(0, len(metrics), each)]


def _matrix(
    evidence: Evidence, stream: str, metrics: Sequence[str], chosen: Sequence[Condition], name: str, *, judged: bool
) -> Matrix:
    notes: list[str] = []
    groups = []
    for attack, members in _families(chosen):
        lines = tuple(_line(evidence, stream, metrics, one, notes, judged=judged) for one in members)
        groups.append(Group(glossary.attack_title(attack) if attack and len(lines) > 1 else "", lines))
    caption = f"“{stream}”: {'what the verdicts rest on' if judged else 'further measures'}"
    verdicts = judged and any(line.verdict for group in groups for line in group.lines)
    return Matrix(name, caption, tuple(_column(evidence, stream, metric) for metric in metrics), tuple(groups),
                  tuple(notes), judged, verdicts)


def _families(chosen: Sequence[Condition]) -> list[tuple[str, list[Condition]]]:
    """Conditions by the name of their attack, those of the oracle apart, in the order in which each first stands."""
    found: dict[tuple[str | None, str], list[Condition]] = {}
    for row in chosen:
        found.setdefault((row.of, row.attack or ""), []).append(row)
    return [(attack, rows) for (_, attack), rows in found.items()]


def _column(evidence: Evidence, stream: str, metric: str) -> Column:
    row = next(row for row in evidence.scores if (row.stream, row.metric) == (stream, metric))
    words = {"lower": "lower is better", "higher": "higher is better", "oracle": "best as the oracle", "": ""}
    unit = view.unit_of(evidence, stream, metric)
    size = yardstick.step(evidence, stream, metric, unit)
    margin = "" if numbers.is_p(unit) else "no margin" if size is None else size[1]
    return Column(glossary.title(metric), metric, glossary.describe(metric), words[view.direction(evidence, row)],
                  margin)


def _line(
    evidence: Evidence, stream: str, metrics: Sequence[str], condition: Condition, notes: list[str], *, judged: bool
) -> Line:
    why = view.unfit(evidence, condition)
    verdict = gravest(evidence, condition.name, stream) if judged else ""
    label = ("Oracle: " if condition.of == "oracle" else "") + view.short(evidence, condition)
    kind = figures.kind_of(condition)
    if why is not None:
        return Line(label, condition.name, kind, "", "", (), why)
    spots = tuple(_spot(evidence, condition, stream, metric, notes) for metric in metrics)
    aside = ASIDE if view.unjudged(evidence, condition) else ""
    return Line(label, condition.name, kind, bill(condition), verdict, spots, aside=aside)


def _spot(evidence: Evidence, condition: Condition, stream: str, metric: str, notes: list[str]) -> Spot:
    row = evidence.score(condition.name, stream, metric)
    head = f"{view.short(evidence, condition)}. {glossary.title(metric)}: "
    if row is None:
        return Spot("–", told=head + "not asked for.")
    if row.value is None:
        reason = row.reason or "no reason given"
        if reason not in notes:
            notes.append(reason)
        return Spot("n/a", told=f"{head}n/a, {reason.rstrip('.')}.", note=notes.index(reason) + 1)
    checked = check(evidence, condition.name, stream, metric)
    away = yardstick.distance(evidence, row)
    told = [head + _said(evidence, row) + "."]
    if away is not None:
        beside = numbers.with_interval(away.yardstick.value, away.yardstick.ci, row.unit)
        told.append(f"{away.yardstick.name[:1].upper()}{away.yardstick.name[1:]}: {beside}; this is {away.briefly}.")
    if checked:
        told.append(f"This comparison {SAID[checked]}.")
    elif view.unjudged(evidence, condition):
        told.append(f"{ASIDE.capitalize()}.")
    return Spot(
        numbers.number(row.value, row.unit), numbers.interval(row.ci, row.unit), away.level if away else None,
        away.sign if away else "", checked, " ".join(told),
    )


def _said(evidence: Evidence, row: Measured) -> str:
    count = f", {row.n:,} example{'' if row.n == 1 else 's'}" if row.n else ""
    whose = f" of {row.groups:,} subjects" if row.n and row.groups else ""
    return numbers.with_interval(row.value, row.ci, row.unit) + count + whose


def check(evidence: Evidence, condition: str, stream: str, metric: str) -> str:
    """The verdict of the comparison behind one cell; empty where it was not judged."""
    verdict = view.verdict_for(evidence, stream, metric)
    rows = verdict.checked if verdict else ()
    return next((row.verdict for row in rows if row.condition == condition), "")


def gravest(evidence: Evidence, name: str, stream: str | None = None) -> str:
    """The gravest verdict that a condition got, on one stream or on any."""
    seen = [item.verdict for row in evidence.verdicts if stream in (None, row.stream)
            for item in row.checked if item.condition == name]
    seen += [row.verdict for row in evidence.verdicts if row.condition == name and stream in (None, row.stream)]
    return min(seen, key=lambda verdict: GRAVITY[verdict], default="")


def bill(condition: Condition) -> str:
    """What an attack took: "20 steps, 640 questions, 6.40 s"; empty where nothing is recorded."""
    cost = condition.cost
    named = ((cost.steps, "step"), (cost.queries, "question"), (cost.forwards, "forward"), (cost.backwards, "backward"))
    parts = [f"{numbers.count(amount)} {word}{'' if amount == 1 else 's'}" for amount, word in named if amount]
    if cost.seconds:
        parts.append(numbers.seconds(cost.seconds))
    return ", ".join(parts)
