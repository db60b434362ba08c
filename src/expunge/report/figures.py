"""The figures of the report: which numbers of the evidence go into which drawing."""

from __future__ import annotations

from expunge.report import glossary, scatter, svg, view
from expunge.report.schema import Checked, Condition, Evidence, Verdict
from expunge.report.svg import Dot, meter

CROWDED, NAMED = 10, 3  # attacks from which on only the strongest are named in the trade-off plot

__all__ = ["attacks", "key", "kind_of", "meter", "panel", "strips", "tradeoff", "training"]


def kind_of(condition: Condition) -> str:
    """The class and shape of a condition; attacks on the oracle look like a hollow oracle."""
    return "oracle-attack" if condition.of == "oracle" else condition.kind


def panel(evidence: Evidence, stream: str, metric: str) -> str:
    """Before, after, worst attack (with the same attack on the oracle) and oracle for one metric of one stream."""
    worst = view.worst(evidence, stream, metric)
    chosen: list[tuple[str, Condition | None]] = [("Before", view.only(evidence, "original")),
                                                  ("After", view.only(evidence, "after"))]
    if worst is not None:
        chosen.append((_short(evidence, worst.condition), evidence.condition(worst.condition)))
        twin = next((probe.twin for probe in view.probes(evidence) if probe.attacked.name == worst.condition), None)
        chosen.append(("Oracle, attacked", twin))
    chosen.append(("Oracle", view.only(evidence, "oracle")))
    dots = []
    for name, condition in chosen:
        row = evidence.score(condition.name, stream, metric) if condition else None
        if condition is not None and row is not None:
            dots.append(Dot(name, kind_of(condition), row.value, row.ci, row.reason))
    if not any(dot.value is not None for dot in dots):
        return ""
    oracle = next((dot for dot in dots if dot.kind == "oracle"), None)
    verdict = view.verdict_for(evidence, stream, metric)
    margin = verdict.margin if verdict and verdict.against == "oracle" else None
    return svg.dot_plot(f"{glossary.title(metric)} on {stream}", dots, view.unit_of(evidence, stream, metric),
                        reference=oracle, margin=margin)


def strips(evidence: Evidence, verdict: Verdict) -> list[tuple[Checked, str]]:
    """Every comparison behind a verdict with its drawing, on one axis."""
    alone = (Checked(verdict.condition, verdict.difference, verdict.ci, verdict.verdict),) if verdict.condition else ()
    unit, found = view.unit_of(evidence, verdict.stream, verdict.metric), []
    for row in verdict.checked or alone:
        condition = evidence.condition(row.condition)
        kind = kind_of(condition) if condition else "attack"
        found.append((row, Dot(view.label(evidence, row.condition), kind, row.difference, row.ci)))
    reach = svg.reach([dot for _, dot in found], verdict.margin)
    return [(row, svg.strip(dot, unit, verdict.margin, reach)) for row, dot in found]


def attacks(evidence: Evidence) -> str:
    """All attacks side by side, by the most telling metric of the removed data."""
    where = view.knowledge(evidence)
    probes = view.tried(evidence)
    if where is None or not probes:
        return ""
    named = [("Before", view.only(evidence, "original")), ("After", view.only(evidence, "after"))]
    for probe in probes:
        named.append((f"After + {view.named(evidence, probe.attacked)}", probe.attacked))
        if probe.twin:
            named.append((f"Oracle + {view.named(evidence, probe.twin)}", probe.twin))
    named.append(("Oracle", view.only(evidence, "oracle")))
    dots = []
    for name, condition in named:
        row = evidence.score(condition.name, *where) if condition else None
        if condition is not None and row is not None:
            dots.append(Dot(name, kind_of(condition), row.value, row.ci, row.reason))
    oracle = next((dot for dot in dots if dot.kind == "oracle"), None)
    return svg.dot_plot(f"{glossary.title(where[1])} on {where[0]} under every attack", dots,
                        view.unit_of(evidence, *where), reference=oracle, size=(640, 190))


def tradeoff(evidence: Evidence) -> dict[str, str]:
    """The trade-off plot with its caption; empty when one of the two sides was not measured."""
    left, works = view.knowledge(evidence), view.utility(evidence)
    if left is None or works is None:
        return {}
    places: list[svg.Place] = []
    named = _named(evidence, left)
    at: dict[str, tuple[float, float]] = {}
    for condition in view.ordered(evidence):
        x, y = evidence.score(condition.name, *left), evidence.score(condition.name, *works)
        if x is None or y is None or x.value is None or y.value is None:
            continue
        at[condition.name] = (x.value, y.value)
        base = view.only(evidence, condition.of) if condition.of else None
        places.append(svg.Place(_name(evidence, condition), kind_of(condition), x.value, y.value, x.ci, y.ci,
                                at.get(base.name) if base else None, condition.name in named))
    if not places:
        return {}
    units = view.unit_of(evidence, *left), view.unit_of(evidence, *works)
    across = scatter.Scale(f"Knowledge left: {glossary.title(left[1]).lower()}, {left[0]}", units[0],
                           _more(evidence, *left))
    up = scatter.Scale(f"Still works: {glossary.title(works[1]).lower()}, {works[0]}", units[1],
                       _more(evidence, *works))
    missing = [row.shown for row in evidence.conditions if row.name not in at and view.unfit(evidence, row) is None]
    caption = f"Not drawn, for lack of a value: {', '.join(missing)}." if missing else ""
    if any(not place.named for place in places):
        caption = f"Of the attacks only the {NAMED} that brought back most are named. {caption}".strip()
    return {"plot": scatter.tradeoff(places, across, up), "caption": caption}


def _named(evidence: Evidence, where: tuple[str, str]) -> set[str]:
    """Conditions whose names stand in the trade-off plot: with many attacks only those that brought back most."""
    plain = {row.name for row in evidence.conditions if row.kind != "attack"}
    attacked = [row.name for row in evidence.conditions if row.kind == "attack"]
    if len(attacked) <= CROWDED:
        return plain | set(attacked)
    rows = [row for probe in view.judged(evidence) if (row := evidence.score(probe.attacked.name, *where))]
    known = [row for row in rows if row.value is not None]
    return plain | {row.condition for row in sorted(known, key=lambda row: -view.brought_back(evidence, row))[:NAMED]}


def training(evidence: Evidence) -> str:
    """The training loss over steps."""
    return svg.curve([(float(row.step), row.loss) for row in evidence.training], "Training loss")


def key(kind: str) -> str:
    """The mark of a condition for legends and column heads."""
    return (f'<svg class="key k-{kind}" viewBox="0 0 16 16" aria-hidden="true">'
            f"{svg.mark(kind, 8, 8, size=5)}</svg>")


def _name(evidence: Evidence, condition: Condition) -> str:
    if condition.kind != "attack":
        return {"original": "Before", "oracle": "Oracle", "after": "After"}[condition.kind]
    return ("Oracle + " if condition.of == "oracle" else "+ ") + view.named(evidence, condition)


def _short(evidence: Evidence, name: str) -> str:
    condition = evidence.condition(name)
    return f"+{view.named(evidence, condition)}" if condition else name


def _more(evidence: Evidence, stream: str, metric: str) -> bool:
    row = next(row for row in evidence.scores if (row.stream, row.metric) == (stream, metric))
    return view.direction(evidence, row) == "higher"
