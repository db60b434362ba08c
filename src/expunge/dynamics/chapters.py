"""What was watched as chapters of a report: curves over epochs, when levels were reached, what became of a visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge import dynamics
from expunge.dynamics import TAUS, Crossing, Curve, Where
from expunge.report.chapters import Chapter, Chart, Line, Sheet
from expunge.report.numbers import percent, significant

HIDDEN = ("none", "punctuation")  # classes that say nothing about words
MOST_CLASSES = 8  # lines of a chart that can still be told apart
EXPLAINED = (
    "Share of the word pieces that the model predicts exactly when it is shown everything before them. It counts easy "
    "ones too, so it is to be held against a stream that was never trained on."
)


def chapters_of(folder: Path) -> tuple[Chapter, ...]:
    """One chapter per watched training of a run folder; none where nothing was watched."""
    found = dynamics.read(folder)
    return tuple(chapter(curves, _title(where, len(found))) for where, curves in found.items())


def _title(where: Where, num: int) -> str:
    number = ".".join(str(part) for part in (where[0] + 1, *(part + 1 for part in where[1])))
    return "Memorization while training" + (f", stage {number}" if num > 1 else "")


def chapter(curves: Mapping[str, Curve], title: str) -> Chapter:
    """The charts and tables of one training."""
    first = next(iter(curves.values()))
    marks = [(first.epochs[i], first.visit.stream) for i, step in enumerate(first.steps)
             if first.visit is not None and step == first.visit.at]
    charts = [
        Chart("Exact memorization", "epochs", tuple(_line(curve.points(), name) for name, curve in curves.items()),
              marks=tuple(marks)),
        Chart("Loss", "epochs", tuple(_line(curve.losses(), name) for name, curve in curves.items()),
              note="Mean negative log-likelihood of a word piece, in nats.", unit="", marks=tuple(marks)),
        Chart(f"Exact memorization of “{first.stream}” by word class", "epochs",
              tuple(_line(first.points(tag), tag) for tag in _classes(first))),
    ]
    sheets = [last_readings(curves), *reached(curves)]
    gone = dynamics.forgetting_of(curves)
    if gone is not None and first.visit is not None:
        charts.append(after_visit(curves))
        sheets.append(Sheet(
            f"What became of “{first.visit.stream}”",
            ("", "before", "after its last update", "lowest after that", "control, same step", "excess", "left",
             "half gone after"),
            ((first.visit.stream, _share(gone.before), _share(gone.start), _share(gone.baseline),
              _share(gone.control), _points(gone.excess), _points(gone.left), f"{gone.half_time:,} steps"),),
            "Excess: lowest minus control. Left: what of it was not there before the visit.",
        ))
    sheets += [order_sheet({first.stream: first})]
    return Chapter(title, EXPLAINED, tuple(charts), tuple(sheets))


def _line(points: Sequence[tuple[float, float]], name: str) -> Line:
    return Line(name, tuple(points))


def _classes(curve: Curve) -> list[str]:
    """The word classes with most tokens, most first."""
    counted = sorted(((num, tag) for tag, num in curve.tags().items() if tag not in HIDDEN), reverse=True)
    return [tag for _, tag in counted[:MOST_CLASSES]]


def after_visit(curves: Mapping[str, Curve]) -> Chart:
    """M of what visited and of its control, over the steps since its last update."""
    visit = next(curve.visit for curve in curves.values() if curve.visit)
    gone = visit.at + visit.updates
    names = [name for name in (visit.stream, visit.control) if name is not None and name in curves]
    lines = [_line([(step - gone, share) for step, share in curves[name].by_step() if step >= gone], name)
             for name in names]
    return Chart(f"“{visit.stream}” after it has left", "steps since its last update", tuple(lines), doubling=True)


def last_readings(curves: Mapping[str, Curve]) -> Sheet:
    """Where every stream ended."""
    rows = []
    for name, curve in curves.items():
        last = curve.readings[-1]
        fragile = percent(last.fragile / last.tokens)
        rows.append((name, f"{last.examples:,}", f"{last.tokens:,}", percent(last.memorization),
                     percent(last.exact / last.examples), significant(last.nll), fragile))
    head = ("stream", "examples", "word pieces", "exact", "examples exact throughout", "loss", "could flip by rounding")
    return Sheet("At the end", head, tuple(rows))


def reached(curves: Mapping[str, Curve], taus: Sequence[float] = TAUS) -> list[Sheet]:
    """When each stream reached each level, and M where held-out text was understood best."""
    rows = [(name, *(crossing_text(one) for one in dynamics.crossings(curve, taus))) for name, curve in curves.items()]
    head = ("stream", *(percent(tau, whole=True) for tau in taus))
    note = "Epochs by interpolation between two looks; in brackets the first look at or above the level, and its step."
    sheets = [Sheet("When a level was reached", head, tuple(rows), note)]
    first, *others = curves.values()
    best = [(other.stream, found) for other in others if (found := dynamics.before_overfitting(first, other))]
    if best:
        sheets.append(Sheet(
            "Memorization before overfitting", ("held out", "loss lowest at epoch", f"“{first.stream}” exact then"),
            tuple((name, f"{epoch:g}", percent(share)) for name, (epoch, share) in best),
        ))
    return sheets


def crossing_text(one: Crossing) -> str:
    """`12.4 (13, step 416)`, or where the curve ended instead."""
    if one.epoch is None or one.interpolated is None:
        return f"never; ends at {percent(one.last)}"
    return f"{one.interpolated:.1f} ({one.epoch:g}, step {one.updates:,})"


def order_sheet(curves: Mapping[str, Curve], tau: float = 0.5) -> Sheet:
    """Word classes by the epoch at which half of them was right, one column per curve."""
    orders = {name: dict(dynamics.order_of_tags(curve, tau)) for name, curve in curves.items()}
    tags = [tag for tag in next(iter(orders.values())) if tag not in HIDDEN]
    rows = [(tag, *("–" if order.get(tag) is None else f"{order[tag]:.1f}" for order in orders.values()))
            for tag in tags]
    return Sheet(
        f"Epoch at which {percent(tau, whole=True)} of a word class was exact", ("word class", *orders), tuple(rows),
        "–: not reached, or too few words of that class.",
    )


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f} points"
