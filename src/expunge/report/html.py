"""One offline HTML file from the evidence: no request, no script needed, no text of any example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from expunge.report import figures, glossary, lines, numbers, summary, view
from expunge.report.schema import Condition, Evidence, Measured, Verdict, load
from expunge.run import write_text

FILE = "report.html"


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    kind: str  # of its condition, for the column's colour
    value: str
    interval: str = ""
    level: int | None = None  # closeness to its reference, 0 (close) to 4 (far)
    sign: str = ""  # "≈", "▲", "▼" beside the reference, so that colour is not needed
    note: str = ""  # why it is n/a, or what it was compared with


@dataclass(frozen=True)
class Row:
    """One metric of the matrix."""

    title: str
    name: str
    meaning: str
    direction: str
    cells: tuple[Cell, ...]
    remark: str = ""  # what the metric itself adds about the unlearned model: rates, sizes, what was left out


@dataclass(frozen=True)
class Section:
    """One stream of the matrix with its panels."""

    stream: str
    role: str
    size: str  # "120 examples of 12 subjects"; empty when not known
    rows: tuple[Row, ...]
    panels: tuple[tuple[str, str, str], ...]  # title, meaning, svg


@dataclass(frozen=True)
class Claim:
    """One line of the verdict table with every comparison behind it."""

    row: Verdict
    title: str
    metric: str
    condition: str
    against: str
    difference: str
    interval: str
    margin: str
    power: str
    checked: tuple[tuple[str, str, str, str, str], ...]  # condition, difference, interval, verdict, drawing


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


def render(evidence: Evidence) -> str:
    """The report as one HTML text."""
    return str(template("report.html.j2").render(context(evidence)))


def template(name: str) -> Any:
    """A template of this package with what all of them use."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # our own figures; every text inside was escaped when it was drawn
    environment.globals.update(meter=figures.meter, key=figures.key)
    return environment.get_template(name)


def write(evidence: Evidence, path: Path | str) -> Path:
    """Write the report to `path` (a folder, or the file itself), whole or not at all."""
    target = Path(path)
    file = target if target.suffix == ".html" else target / FILE
    write_text(file, render(evidence))
    return file


def write_report(run: Path | str) -> Path:
    """Render a run folder's `scores.json` to `report.html` beside it (`expunge report RUN`)."""
    folder = Path(run)
    return write(load(folder), folder.parent if folder.suffix == ".json" else folder)


def context(evidence: Evidence) -> dict[str, Any]:
    """All that the template shows, as finished texts."""
    where = view.knowledge(evidence)
    return {
        "evidence": evidence,
        "created": _date(evidence.created),
        "opening": summary.opening(evidence),
        "tiles": summary.tiles(evidence),
        "tiles_caption": summary.tiles_caption(evidence),
        "paragraphs": summary.paragraphs(evidence),
        "claims": [_claim(evidence, row) for row in evidence.verdicts],
        "conditions": view.ordered(evidence),
        "sections": [_section(evidence, stream) for stream in view.streams(evidence)],
        "tradeoff": figures.tradeoff(evidence),
        "attacks": _attacks(evidence),
        "attack_metric": glossary.title(where[1]) if where else "",
        "attack_plot": figures.attacks(evidence),
        "stages": _stages(evidence),
        "training": figures.training(evidence),
        "chapters": lines.shown(evidence.chapters),
        "memory": _memory(evidence.cost.peak_memory_mb),
        "audit_time": numbers.seconds(evidence.cost.audit_seconds),
        "total_time": numbers.seconds(evidence.cost.total_seconds),
        "environment": [(key, _plain(value)) for key, value in evidence.environment.items()],
        "glossary": _glossary(evidence),
        "terms": glossary.TERMS,
        "has_oracle": view.only(evidence, "oracle") is not None,
        "over": summary.over(evidence),
        "confidence": numbers.percent(evidence.confidence, whole=True),
        "words": summary.WORDS,
    }


def _section(evidence: Evidence, stream: str) -> Section:
    rows = tuple(_row(evidence, stream, metric) for metric in view.metrics(evidence, stream))
    panels = tuple((glossary.title(metric), glossary.describe(metric), drawing)
                   for metric in view.metrics(evidence, stream)
                   if (drawing := figures.panel(evidence, stream, metric)))
    count = next((row.n for row in evidence.streams if row.name == stream), None)
    size = "" if count is None else view.sized(evidence, stream, count)
    return Section(stream, view.role(evidence, stream), size, rows, panels)


def _row(evidence: Evidence, stream: str, metric: str) -> Row:
    known = [row for row in evidence.scores if (row.stream, row.metric) == (stream, metric)]
    words = {"lower": "lower is better", "higher": "higher is better", "oracle": "best as the oracle", "": ""}
    cells = tuple(_cell(evidence, condition, evidence.score(condition.name, stream, metric))
                  for condition in view.ordered(evidence))
    after = view.only(evidence, "after")
    remark = next((row.reason for row in known if after and row.condition == after.name and row.status == "ok"), "")
    return Row(glossary.title(metric), metric, glossary.describe(metric), words[view.direction(evidence, known[0])],
               cells, remark)


def _cell(evidence: Evidence, condition: Condition, row: Measured | None) -> Cell:
    kind = figures.kind_of(condition)
    if row is None:
        return Cell(kind, "–", note="not asked for")
    if row.value is None:
        return Cell(kind, "n/a", note=row.reason or "no reason given")
    value, span = numbers.number(row.value, row.unit), numbers.interval(row.ci, row.unit)
    away = view.distance(evidence, row)
    if away is None:
        return Cell(kind, value, span)
    sign = "≈" if away.level == 0 else ("▲" if away.side > 0 else "▼")
    words = ("as close as can be told to", "near", "off", "far from", "very far from")[away.level]
    return Cell(kind, value, span, away.level, sign, f"{words} {view.label(evidence, away.reference)}")


def _claim(evidence: Evidence, row: Verdict) -> Claim:
    unit = view.unit_of(evidence, row.stream, row.metric)
    checked = tuple((view.label(evidence, item.condition), numbers.difference(item.difference, item.ci, unit),
                     numbers.difference_interval(item.ci, unit), item.verdict, drawing)
                    for item, drawing in figures.strips(evidence, row))
    return Claim(
        row, summary.CLAIMS.get(row.claim, glossary.title(row.claim)), glossary.title(row.metric),
        view.label(evidence, row.condition) if row.condition else "–", summary.AGAINST.get(row.against, row.against),
        numbers.difference(row.difference, row.ci, unit), numbers.difference_interval(row.ci, unit),
        numbers.margin(row.margin, unit),
        numbers.percent(row.power, whole=True) if row.power is not None else "n/a", checked,
    )


def _attacks(evidence: Evidence) -> list[AttackRow]:
    where = view.knowledge(evidence)
    found = []
    for probe in view.probes(evidence):
        condition = probe.attacked
        shown = AttackRow(condition.shown, glossary.attack(condition.attack), _bill(condition), "–", "n/a", "", "–",
                          "–", None, _checked(evidence, condition.name))
        row = evidence.score(condition.name, *where) if where else None
        if where is None or row is None:
            found.append(shown)
            continue
        after, twin = view.only(evidence, "after"), probe.twin
        base = evidence.score(after.name, *where) if after else None
        mirror = evidence.score(twin.name, *where) if twin else None
        share, change = view.recovered(evidence, row), view.change(evidence, row)
        chance = numbers.p_value(change.adjusted) if change is not None and change.adjusted is not None else ""
        found.append(AttackRow(
            shown.label, shown.meaning, shown.cost, _bare(base), _bare(row) if row.value is not None
            else f"n/a ({row.reason})", numbers.interval(row.ci, row.unit), _bare(mirror),
            "–" if share is None else numbers.percent(max(0.0, share)), share, shown.verdict, chance,
        ))
    return found


def _bare(row: Measured | None) -> str:
    return "–" if row is None else numbers.number(row.value, row.unit)


def _checked(evidence: Evidence, name: str) -> str:
    """The gravest verdict a condition got."""
    rank = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    seen = [item.verdict for row in evidence.verdicts for item in row.checked if item.condition == name]
    seen += [row.verdict for row in evidence.verdicts if row.condition == name]
    return min(seen, key=lambda verdict: rank[verdict], default="")


def _bill(condition: Condition) -> str:
    cost = condition.cost
    named = ((cost.steps, "step"), (cost.queries, "question"), (cost.forwards, "forward"), (cost.backwards, "backward"))
    parts = [f"{numbers.count(amount)} {word}{'' if amount == 1 else 's'}" for amount, word in named if amount]
    if cost.seconds:
        parts.append(numbers.seconds(cost.seconds))
    return ", ".join(parts) or "none recorded"


def _stages(evidence: Evidence) -> list[tuple[str, str, str, str, str, str, float]]:
    """Name, steps, forwards, backwards, tokens, seconds, share of the longest."""
    cost = evidence.cost
    longest = max([row.seconds for row in cost.stages] + [cost.audit_seconds, 1e-9])
    rows = [(row.name, numbers.count(row.steps), numbers.count(row.forwards), numbers.count(row.backwards),
             numbers.count(row.tokens), numbers.seconds(row.seconds), row.seconds / longest) for row in cost.stages]
    if cost.audit_seconds:
        rows.append(("audit, with attacks", "–", "–", "–", "–", numbers.seconds(cost.audit_seconds),
                     cost.audit_seconds / longest))
    return rows


def _glossary(evidence: Evidence) -> Iterator[tuple[str, str, str]]:
    for metric in dict.fromkeys(row.metric for row in evidence.scores):
        meaning = glossary.describe(metric)
        yield (glossary.title(metric), metric,
               meaning if meaning != metric else "No description is stored for this metric.")


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y}, {moment:%H:%M}{zone}"


def _memory(megabytes: float | None) -> str:
    if megabytes is None:
        return "not recorded"
    return f"{numbers.significant(megabytes / 1000)} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
