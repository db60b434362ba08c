"""Chapters as HTML: line charts drawn as SVG, in the report of an audit or on a page of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from expunge.report import numbers
from expunge.report.chapters import Chapter, Chart, Line
from expunge.report.svg import CHARACTER, Axis, _svg, _thin, axis_for, mark

KINDS = ("after", "original", "oracle", "attack")  # the four colours of the style sheet, in the order lines take them
DASHES = ("", "7 4", "2 3", "9 3 2 3")  # beyond four lines the strokes differ as well


def draw(chart: Chart) -> str:
    """The chart as inline SVG; empty where fewer than two points are known."""
    if sum(len(line.points) for line in chart.lines) < 2:
        return ""
    left, top, names = 50, 12, max(len(line.name) for line in chart.lines) * CHARACTER + 26
    width, bottom = 640, 240
    xs = [_place(x, chart) for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    ys += [y for line in chart.lines for span in line.spans for y in span[1:] if math.isfinite(y)]
    across = Axis(min(xs), max(xs), left, width - names)
    up = axis_for(ys, chart.unit, bottom, top, zoom=True)
    parts = [f'<g class="grid">{_scale(chart, across, up, width - names, bottom)}</g>']
    drawn = [line for line in chart.lines if line.points]
    heights = _spread([up.at(line.points[-1][1]) for line in drawn], top, bottom)
    for number, line in enumerate(drawn):
        parts.append(_line(line, number, chart, across, up, heights[number]))
    spoken = "; ".join(f"{line.name} ends at {numbers.number(line.points[-1][1], chart.unit)}"
                       for line in chart.lines if line.points)
    return _svg(width, bottom + 40, f"{chart.title}: {spoken}", "".join(parts), "lines")


def _line(line: Line, number: int, chart: Chart, across: Axis, up: Axis, height: float) -> str:
    """A line with its band and marks, and its name at the right end."""
    kind = line.kind or KINDS[number % len(KINDS)]
    dash = "" if line.kind else DASHES[number // len(KINDS) % len(DASHES)]
    stroke = f' stroke-dasharray="{dash}"' if dash else ""
    spots = [(across.at(_place(x, chart)), up.at(y)) for x, y in line.points]
    ends = "; ".join(f"{x:g}: {numbers.number(y, chart.unit)}" for x, y in (line.points[0], line.points[-1]))
    band = [(across.at(_place(x, chart)), up.at(low), up.at(high)) for x, low, high in line.spans]
    outline = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
    around = f'<polygon class="around" points="{_points(outline)}"/>' if outline else ""
    whiskers = "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>' for x, low, high in band)
    marks = "".join(mark(kind, x, y, size=4) for x, y in spots) if line.kind else ""
    right = across.end
    return (
        f'<g class="k-{kind}"><title>{escape(f"{line.name}: {ends}")}</title>{around}{whiskers}'
        f'<polyline class="line"{stroke} points="{_points(spots)}"/>{marks}'
        f'<line class="whisker" x1="{spots[-1][0] + 2}" x2="{right + 14}" y1="{spots[-1][1]}" y2="{height}"/>'
        f'<text class="name" x="{right + 18}" y="{height + 4}">{escape(line.name)}</text></g>'
    )


def _points(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in spots)


def _apart(ticks: Sequence[float], across: Axis, chart: Chart) -> list[float]:
    """The ticks whose numbers do not run into each other, from the left."""
    kept: list[float] = []
    free = -math.inf
    for tick in ticks:
        middle, half = across.at(_place(tick, chart)), len(f"{tick:g}") * CHARACTER / 2
        if middle - half >= free:
            kept.append(tick)
            free = middle + half + 6
    return kept


def _place(x: float, chart: Chart) -> float:
    return math.log2(1 + x) if chart.doubling else x


def _scale(chart: Chart, across: Axis, up: Axis, right: float, bottom: float) -> str:
    """Grid lines with their numbers, the title of the x axis and the marks."""
    parts = [f'<line x1="{across.start}" x2="{right}" y1="{up.at(tick)}" y2="{up.at(tick)}"/>'
             f'<text x="{across.start - 6}" y="{up.at(tick) + 4}" text-anchor="end">{escape(up.text(tick))}</text>'
             for tick in up.ticks()]
    if chart.ticks:
        ticks = _apart(chart.ticks, across, chart)
    elif chart.doubling:
        most = round(2**across.high - 1)
        ticks = [0.0, *(float(2**power) for power in range(most.bit_length() + 1) if 2**power <= most)]
    else:
        ticks = _thin(across.ticks(), across)
    parts += [f'<text x="{across.at(_place(tick, chart))}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
              for tick in ticks]
    parts.append(f'<text x="{(across.start + right) / 2}" y="{bottom + 34}" text-anchor="middle">'
                 f"{escape(chart.across)}</text>")
    for place, word in chart.marks:
        x = across.at(_place(place, chart))
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="{up.end}" y2="{bottom}"/>'
                     f'<text x="{x + 4}" y="{up.end + 8}">{escape(word)}</text>')
    return "".join(parts)


def _spread(heights: Sequence[float], top: float, bottom: float, apart: float = 14.0) -> list[float]:
    """Heights of labels that do not overlap, as near to those of the line ends as can be."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed: dict[int, float] = {}
    last = top - apart
    for i in order:
        last = placed[i] = max(heights[i], last + apart)
    over = max(0.0, last - bottom)
    ceiling = math.inf
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i] if not over else min(placed[i], bottom), ceiling - apart)
    return [round(placed[i], 1) for i in range(len(heights))]


def shown(chapters: Sequence[Chapter]) -> list[dict[str, Any]]:
    """Chapters as the template takes them, charts drawn."""
    return [
        {"title": one.title, "text": one.text, "sheets": one.sheets,
         "charts": [(chart, drawing) for chart in one.charts if (drawing := draw(chart))]}
        for one in chapters
    ]


def page(title: str, chapters: Sequence[Chapter], *, over: str, meta: Sequence[tuple[str, str]] = ()) -> str:
    """An offline HTML page of chapters alone.

    Args:
        over: the line above the title. meta: names and values under it.
    """
    from expunge.report.html import template

    rendered: str = template("page.html.j2").render(title=title, over=over, meta=meta, chapters=shown(chapters))
    return rendered
