"""One offline HTML file from the evidence: no request, no script needed, no text of any example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from expunge.report import figures, glossary, layers, lines, matrix, numbers, recovered, summary, view, yardstick
from expunge.report.schema import Condition, Evidence, Measured, Verdict, load
from expunge.run import write_text

FILE = "report.html"
Panel = tuple[str, str, str]  # title, meaning, svg
Comparison = tuple[str, str, str, str, str]  # condition, difference, interval, verdict, drawing


@dataclass(frozen=True)
class Cell:
    """One cell of the table of scores."""

    kind: str  # of its condition, for the column's colour
    value: str
    interval: str = ""
    level: int | None = None  # closeness to its reference, 0 (close) to 4 (far)
    sign: str = ""  # "≈", "▲", "▼" beside the reference, so that colour is not needed
    note: str = ""  # why it is n/a, or what it was compared with


@dataclass(frozen=True)
class Row:
    """One metric of the table of scores."""

    title: str
    name: str
    meaning: str
    direction: str
    cells: tuple[Cell, ...]
    remark: str = ""  # what the metric itself adds about the unlearned model: rates, sizes, what was left out


@dataclass(frozen=True)
class Section:
    """One stream: its scores without attack, with the attacks the matrix does not show, and its panels."""

    stream: str
    role: str
    size: str  # "120 examples of 12 subjects"; empty when not known
    rows: tuple[Row, ...]
    attacked: matrix.Sheaf | None
    panels: tuple[Panel, ...]
    folded: tuple[Panel, ...]  # panels of measures that nothing is judged by


@dataclass(frozen=True)
class Claim:
    """One line of the verdict table with every comparison behind it. rows: lines of the same claim from here on, where
    it is the first."""

    row: Verdict
    title: str
    metric: str
    condition: str
    against: str
    difference: str
    interval: str
    margin: str
    power: str
    checked: tuple[Comparison, ...]  # not attacked, and the gravest
    folded: tuple[Comparison, ...]  # the others
    rows: int = 0


def render(evidence: Evidence) -> str:
    """The report as one HTML text."""
    return str(template("report.html.j2").render(context(evidence)))


def template(name: str) -> Any:
    """A template of this package."""
    return _environment().get_template(name)


@cache
def _environment() -> Any:
    """What all templates use."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("expunge.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # our own figures; every text inside was escaped when it was drawn
    environment.globals.update(meter=figures.meter, key=figures.key)
    return environment


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
    where, attacks = view.knowledge(evidence), recovered.attacks(evidence)
    return {
        "evidence": evidence,
        "created": _date(evidence.created),
        "opening": summary.opening(evidence),
        "tiles": summary.tiles(evidence),
        "tiles_caption": summary.tiles_caption(evidence),
        "paragraphs": summary.paragraphs(evidence),
        **_claims(evidence),
        "conditions": _unattacked(evidence),
        "sheaves": matrix.under_attack(evidence),
        "legend": _legend(evidence),
        "sections": [_section(evidence, number, stream) for number, stream in enumerate(view.streams(evidence))],
        "tradeoff": figures.tradeoff(evidence),
        "attacks": attacks,
        "legible": recovered.LEGIBLE if len(attacks) > recovered.LEGIBLE + 2 else len(attacks),
        "unfit": recovered.unfit(evidence),
        "curves": recovered.curves(evidence),
        "layers": layers.layers(evidence),
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
        "untested": view.untested(evidence),
        "over": summary.over(evidence),
        "confidence": numbers.percent(evidence.confidence, whole=True),
        "words": summary.WORDS,
    }


def _unattacked(evidence: Evidence) -> list[Condition]:
    return [row for row in view.ordered(evidence) if row.kind != "attack"]


def _legend(evidence: Evidence) -> str:
    """What the tint of a forget stream is a distance to, and what has none."""
    if any(view.unjudged(evidence, probe.attacked) for probe in view.tried(evidence)):
        return (f"{_tint(evidence)} “{matrix.ASIDE.capitalize()}” marks attacks that make no claim and are not tinted: "
                "what they show may have been brought along by the attack, and nothing here can tell.")
    return _tint(evidence)


def _tint(evidence: Evidence) -> str:
    rows = [row for row in evidence.scores if view.role(evidence, row.stream) == "forget"]
    kinds = {away.yardstick.kind for row in rows if (away := yardstick.distance(evidence, row)) is not None}
    if not kinds:
        return "There is nothing in this run to hold the removed data against, so these scores are not tinted."
    margins = "in margins: differences that were agreed not to matter."
    if view.only(evidence, "oracle") is not None:
        return ("The tint shows how far a score is from the oracle under the same attack (the oracle itself where the "
                f"attack was not run on it), {margins}")
    said = ["There is no oracle in this run."]
    held = [yardstick.NAMES[kind] for kind in ("holdout", "chance") if kind in kinds]
    if held:
        said.append(f"The tint shows how far a score is from {' or '.join(held)}, {margins}")
    if "original" in kinds:
        start = "Of all other measures the" if held else "The"
        said.append(f"{start} tint shows how near a score still is to the model before the removal: near is bad.")
    return " ".join(said)


def _section(evidence: Evidence, number: int, stream: str) -> Section:
    metrics = view.metrics(evidence, stream)
    judged = [metric for metric in metrics if view.verdict_for(evidence, stream, metric)]
    shown = judged or metrics[: recovered.LEGIBLE]
    panels: dict[str, Panel] = {
        metric: (glossary.title(metric), glossary.describe(metric), drawing)
        for metric in metrics if (drawing := figures.panel(evidence, stream, metric))
    }
    count = next((row.n for row in evidence.streams if row.name == stream), None)
    return Section(
        stream, view.role(evidence, stream), "" if count is None else view.sized(evidence, stream, count),
        tuple(_row(evidence, stream, metric) for metric in metrics), matrix.twins(evidence, stream, number),
        tuple(panel for metric, panel in panels.items() if metric in shown),
        tuple(panel for metric, panel in panels.items() if metric not in shown),
    )


def _row(evidence: Evidence, stream: str, metric: str) -> Row:
    known = [row for row in evidence.scores if (row.stream, row.metric) == (stream, metric)]
    words = {"lower": "lower is better", "higher": "higher is better", "oracle": "best as the oracle", "": ""}
    cells = tuple(_cell(evidence, condition, evidence.score(condition.name, stream, metric))
                  for condition in _unattacked(evidence))
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
    away = yardstick.distance(evidence, row)
    return Cell(kind, value, span, away.level, away.sign, away.told) if away else Cell(kind, value, span)


def _claims(evidence: Evidence) -> dict[str, Any]:
    """The verdict table; of the drawings the gravest one, or all where they are few, and the others to be folded."""
    made: list[Claim] = []
    for verdicts in view.by_claim(evidence.verdicts).values():
        lines_of = [_claim(evidence, row) for row in verdicts]
        made += [replace(lines_of[0], rows=len(lines_of)), *lines_of[1:]]
    drawn = [claim for claim in made if claim.checked]
    few = sum(len(claim.checked) for claim in drawn) <= 2 * recovered.LEGIBLE
    worst = sorted(drawn, key=lambda claim: matrix.GRAVITY[claim.row.verdict])[: None if few else 1]
    shown = [claim for claim in drawn if claim in worst]
    return {"claims": made, "worst_claims": shown, "other_claims": [claim for claim in drawn if claim not in worst]}


def _claim(evidence: Evidence, row: Verdict) -> Claim:
    unit = view.unit_of(evidence, row.stream, row.metric)
    found = figures.strips(evidence, row)
    by_gravity = sorted(found, key=lambda pair: (matrix.GRAVITY[pair[0].verdict], -abs(pair[0].difference or 0.0)))
    worst = {item.condition for item, _ in by_gravity[: recovered.LEGIBLE - 1]} | {"after"}
    checked = [(item.condition in worst, (
        view.label(evidence, item.condition), numbers.difference(item.difference, item.ci, unit),
        numbers.difference_interval(item.ci, unit), item.verdict, drawing,
    )) for item, drawing in found]
    return Claim(
        row, summary.CLAIMS.get(row.claim, glossary.title(row.claim)), glossary.title(row.metric),
        view.label(evidence, row.condition) if row.condition else "–", summary.AGAINST.get(row.against, row.against),
        numbers.difference(row.difference, row.ci, unit), numbers.difference_interval(row.ci, unit),
        numbers.margin(row.margin, unit),
        numbers.percent(row.power, whole=True) if row.power is not None else "n/a",
        tuple(line for shown, line in checked if shown), tuple(line for shown, line in checked if not shown),
    )


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
