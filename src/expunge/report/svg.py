"""Inline SVG from a few numbers: no library, no script, readable in print and by a screen reader.

Colours come from the style sheet by class (`k-original`, `k-oracle`, `k-after`, `k-attack`), shapes differ too, so
that nothing depends on seeing colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from expunge.report import numbers
from expunge.report.schema import Interval

CHARACTER = 6.1  # mean width of a character at 11 px


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot. kind: colour and shape."""

    name: str
    kind: str
    value: float | None
    ci: Interval | None = None
    note: str = ""  # shown instead of a value, or in the tooltip


@dataclass(frozen=True)
class Place:
    """One point of the trade-off plot; `start` draws a thin arrow from another point to this one. named: whether its
    name stands beside it, not only in the tooltip."""

    name: str
    kind: str
    x: float
    y: float
    x_ci: Interval | None = None
    y_ci: Interval | None = None
    start: tuple[float, float] | None = None
    named: bool = True


@dataclass(frozen=True)
class Axis:
    """Values to pixels. Values beyond the ends are drawn at the end with an arrow."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    unit: str = ""

    def at(self, value: float) -> float:
        here, low, high = (self._on(number) for number in (value, self.low, self.high))
        share = 0.5 if high == low else (here - low) / (high - low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)

    def beyond(self, value: float) -> int:
        """-1 below the axis, +1 above, 0 on it."""
        here, low, high = (self._on(number) for number in (value, self.low, self.high))
        slack = 1e-9 * max(1.0, abs(high))
        return (here > high + slack) - (here < low - slack)

    def ticks(self) -> list[float]:
        if self.log:
            return _decades(self.low, self.high)
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        if numbers.is_share(self.unit):
            return f"{value * 100:g} %"
        return _power(value) if self.log and (value < 0.01 or value >= 1e4) else f"{value:g}".replace("-", "\u2212")

    def _on(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def axis_for(values: Sequence[float], unit: str, start: float, end: float, *, zoom: bool = False) -> Axis:
    """Shares, AUCs and other values in [0, 1] keep the whole scale; p-values and perplexities are logarithmic.

    zoom: fit the axis to the values (for the trade-off plot, where position and not length carries the meaning).
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if numbers.is_p(unit):
        return Axis(max(1e-12, 10 ** math.floor(math.log10(max(min(low, 0.01), 1e-12)))), 1.0, start, end, True, unit)
    if numbers.is_log(unit):
        low, high = max(low, 1e-3), min(max(high, 1e-3), 1e6)
        return Axis(_round_log(low * 0.95, up=False), _round_log(high * 1.05, up=True), start, end, True, unit)
    if low >= 0 and high <= 1 and not zoom:
        return Axis(0.0, 1.0, start, end, False, unit)
    pad = max((high - low) * 0.15, 0.02 * max(abs(high), abs(low), 1e-9))
    step = _step(high - low + 2 * pad)
    low, high = math.floor((low - pad) / step) * step, math.ceil((high + pad) / step) * step
    if numbers.is_share(unit) or (min(finite) >= 0 and max(finite) <= 1):
        low, high = max(0.0, low), min(1.0, high)
    return Axis(low if zoom or min(finite) < 0 else max(0.0, low), high, start, end, False, unit)


def dot_plot(title: str, dots: Sequence[Dot], unit: str, *, reference: Dot | None = None,
             margin: float | None = None, size: tuple[int, int] = (310, 100)) -> str:
    """A panel of a small multiple: one row per condition, dot and interval; the reference as a dashed line with the
    agreed margin (else its interval) as a band. size: width in all, and of the names."""
    (width, label), row, top = size, 23, 8
    numbers_at, bottom = width - 58, top + row * len(dots)
    values = [bound for dot in dots for bound in (dot.value, *(dot.ci or ())) if bound is not None]
    axis = axis_for(values, unit, label + 12, numbers_at - 8)
    parts = [f'<g class="grid">{_grid(axis, top, bottom)}</g>']
    if reference is not None and reference.value is not None:
        parts.append(_band(axis, reference, margin, top, bottom))
    for index, dot in enumerate(dots):
        middle = top + row * index + row / 2
        parts.append(f'<g class="k-{dot.kind}"><title>{escape(_tooltip(dot, unit))}</title>')
        parts.append(f'<text class="name" x="{label}" y="{middle + 4}" text-anchor="end">'
                     f'{escape(_cut(dot.name, int(label / CHARACTER)))}</text>')
        if dot.value is None:
            why = _cut(f"n/a: {dot.note or 'no value'}", int((width - label) / CHARACTER) - 1)
            parts.append(f'<text class="note" x="{label + 12}" y="{middle + 4}">{escape(why)}</text></g>')
            continue
        parts.append(_whisker(axis, dot.ci, middle))
        parts.append(mark(dot.kind, axis.at(dot.value), middle, beyond=axis.beyond(dot.value)))
        parts.append(f'<text class="value" x="{width}" y="{middle + 4}" text-anchor="end">'
                     f'{escape(numbers.number(dot.value, unit))}</text></g>')
    spoken = "; ".join(_tooltip(dot, unit) for dot in dots)
    return _svg(width, bottom + 20, f"{title}: {spoken}", "".join(parts), "dots")


def strip(dot: Dot, unit: str, margin: float | None, reach: float) -> str:
    """One difference to the yardstick with its interval against the band that counts as equal; zero in the middle."""
    width, height, middle = 300, 26, 13
    axis = Axis(-reach, reach, 8, width - 8)
    parts, zero = [], axis.at(0)
    if margin is not None:
        left, right = axis.at(-margin), axis.at(margin)
        parts.append(f'<rect class="band" x="{left}" y="0" width="{round(right - left, 1)}" height="{height}"/>')
    parts.append(f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="{height}"/><g class="k-{dot.kind}">')
    if dot.value is not None:
        parts += [_whisker(axis, dot.ci, middle),
                  mark(dot.kind, axis.at(dot.value), middle, beyond=axis.beyond(dot.value))]
    return _svg(width, height, _tooltip(dot, unit, change=True), "".join(parts) + "</g>", "strip")


def reach(rows: Sequence[Dot], margin: float | None) -> float:
    """Half the width of the axis that strips of one claim share: all intervals and twice the margin fit in."""
    bounds = [abs(bound) for dot in rows for bound in (dot.value, *(dot.ci or ()))
              if bound is not None and math.isfinite(bound)]
    return float(max([*bounds, 2.0 * (margin or 0.0), 1e-6])) * 1.06


def meter(share: float, kind: str) -> str:
    """A bar from 0 to 100 %; decoration under a printed number, hidden from screen readers."""
    return (f'<svg class="meter k-{kind}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="rail" width="100" height="6" rx="1"/>'
            f'<rect class="fill" width="{round(100 * min(1, max(0, share)), 2)}" height="6" rx="1"/></svg>')


def mark(kind: str, x: float, y: float, *, beyond: int = 0, size: float = 5.0) -> str:
    """Square = original, diamond = oracle, circle = after, triangle = attack; an arrow head when off the axis."""
    if beyond:
        tip, back = x + beyond * 6, x - beyond * 4
        return f'<path class="mark" d="M{tip} {y} L{back} {y - 5} L{back} {y + 5} Z"/>'
    if kind == "original":
        return (f'<rect class="mark" x="{round(x - size + .5, 1)}" y="{round(y - size + .5, 1)}" '
                f'width="{2 * size - 1}" height="{2 * size - 1}"/>')
    if kind.startswith("oracle"):
        tall = size + 1.5
        return f'<path class="mark" d="M{x} {y - tall} L{x + tall} {y} L{x} {y + tall} L{x - tall} {y} Z"/>'
    if kind == "attack":
        tall = size + 1
        return (f'<path class="mark" d="M{x} {y - tall} L{round(x + tall, 1)} {y + size - 1} '
                f'L{round(x - tall, 1)} {y + size - 1} Z"/>')
    return f'<circle class="mark" cx="{x}" cy="{y}" r="{size}"/>'


def curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """A line over steps (the training loss)."""
    seen = [point for point in points if math.isfinite(point[1])]
    if len(seen) < 2:
        return ""
    width, height, left = 560, 150, 56
    across = Axis(seen[0][0], seen[-1][0], left, width - 12)
    up = axis_for([point[1] for point in seen], "", height - 26, 10, zoom=True)
    line = " ".join(f"{across.at(x)},{up.at(y)}" for x, y in seen)
    parts = [f'<line x1="{left}" x2="{width - 12}" y1="{up.at(tick)}" y2="{up.at(tick)}"/>'
             f'<text x="{left - 6}" y="{up.at(tick) + 4}" text-anchor="end">{escape(up.text(tick))}</text>'
             for tick in up.ticks()]
    ends = "".join(f'<text x="{across.at(x)}" y="{height - 8}" text-anchor="{anchor}">{escape(name)}</text>'
                   for x, anchor, name in ((seen[0][0], "start", f"step {seen[0][0]:g}"),
                                           (seen[-1][0], "end", f"step {seen[-1][0]:g}")))
    body = f'<g class="grid">{"".join(parts)}{ends}</g><polyline class="line k-after" points="{line}"/>'
    spoken = f"{title}: {numbers.significant(seen[0][1])} at the start, {numbers.significant(seen[-1][1])} at the end"
    return _svg(width, height, spoken, body, "curve")


def _svg(width: float, height: float, spoken: str, body: str, name: str) -> str:
    return (f'<svg class="plot {name}" role="img" aria-label="{escape(spoken, quote=True)}" '
            f'viewBox="0 0 {width:g} {height:g}">{body}</svg>')


def _grid(axis: Axis, top: float, bottom: float) -> str:
    parts = []
    for tick in _thin(axis.ticks(), axis):
        x = axis.at(tick)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
                     f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{escape(axis.text(tick))}</text>')
    return "".join(parts)


def _band(axis: Axis, reference: Dot, margin: float | None, top: float, bottom: float) -> str:
    assert reference.value is not None
    span = reference.ci if margin is None else (reference.value - margin, reference.value + margin)
    x = axis.at(reference.value)
    line = f'<line class="reference" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
    if span is None:
        return line
    left, right = axis.at(span[0]), axis.at(span[1])
    return (f'<rect class="band" x="{left}" y="{top}" width="{round(max(right - left, 1), 1)}" '
            f'height="{bottom - top}"/>{line}')


def _whisker(axis: Axis, ci: Interval | None, y: float) -> str:
    if ci is None or any(math.isnan(bound) for bound in ci):
        return ""
    left, right = axis.at(ci[0]), axis.at(ci[1])
    return f'<line class="whisker" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'


def _tooltip(dot: Dot, unit: str, *, change: bool = False) -> str:
    if dot.value is None:
        return f"{dot.name}: n/a ({dot.note or 'no value'})"
    if change:
        span = numbers.difference_interval(dot.ci, unit)
        return f"{dot.name}: {numbers.difference(dot.value, dot.ci, unit)}" + (f" (interval {span})" if span else "")
    return f"{dot.name}: {numbers.with_interval(dot.value, dot.ci, unit)}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _step(span: float) -> float:
    """A round step that gives 3 to 6 ticks."""
    if span <= 0 or not math.isfinite(span):
        return 1.0
    raw = span / 4
    size = math.pow(10.0, math.floor(math.log10(raw)))
    return size * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)


def _round_log(value: float, *, up: bool) -> float:
    """The next of ..., 1, 2, 5, 10, 20, 50, ... above or below."""
    decade = math.pow(10.0, math.floor(math.log10(value)))
    steps = [factor * decade for factor in (1, 2, 5, 10)]
    return next(step for step in steps if step >= value) if up else next(
        step for step in reversed(steps) if step <= value
    )


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        steps = (factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5))
        return [step for step in steps if low * 0.999 <= step <= high * 1.001]
    every = max(1, math.ceil((last - first) / 4))
    return [10.0**power for power in range(last, first - 1, -every)][::-1]


def _thin(ticks: list[float], axis: Axis) -> list[float]:
    """Drop every other tick until the labels do not touch."""
    while len(ticks) > 2 and max(len(axis.text(tick)) for tick in ticks) * CHARACTER * len(ticks) > abs(
        axis.end - axis.start
    ):
        ticks = ticks[::2]
    return ticks


def _power(value: float) -> str:
    digits = str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "10" + digits
