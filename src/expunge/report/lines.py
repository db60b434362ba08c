"""Chapters as HTML: line charts drawn as SVG, in the report of an audit or on a page of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from expunge.report import numbers
from expunge.report.chapters import Chapter, Chart
from expunge.report.svg import CHARACTER, Axis, _svg, _thin, axis_for

KINDS = ("after", "original", "oracle", "attack")  # the four colours of the style sheet, in the order lines take them
DASHES = ("", "7 4", "2 3", "9 3 2 3")  # beyond four lines the strokes differ as well


def draw(chart: Chart) -> str:
    """The chart as inline SVG; empty where fewer than two points are known."""
    if sum(len(line.points) for line in chart.lines) < 2:
        return ""
    left, top, names = 50, 12, max(len(line.name) for line in chart.lines) * CHARACTER + 26
    width, bottom = 640, 240
    xs = [_place(x, chart) for line in chart.lines for x, _ in line.points]
    across = Axis(min(xs), max(xs), left, width - names)
    up = axis_for([y for line in chart.lines for _, y in line.points], chart.unit, bottom, top, zoom=True)
    parts = [f'<g class="grid">{_scale(chart, across, up, width - names, bottom)}</g>']
    heights = _spread([up.at(line.points[-1][1]) for line in chart.lines if line.points], top, bottom)
    for number, line in enumerate(line for line in chart.lines if line.points):
        spots = [(across.at(_place(x, chart)), up.at(y)) for x, y in line.points]
        dash = DASHES[number // len(KINDS) % len(DASHES)]
        stroke = f' stroke-dasharray="{dash}"' if dash else ""
        ends = "; ".join(f"{x:g}: {numbers.number(y, chart.unit)}" for x, y in (line.points[0], line.points[-1]))
        parts.append(
            f'<g class="k-{KINDS[number % len(KINDS)]}"><title>{escape(f"{line.name}: {ends}")}</title>'
            f'<polyline class="line"{stroke} points="{" ".join(f"{x},{y}" for x, y in spots)}"/>'
            f'<line class="whisker" x1="{spots[-1][0] + 2}" x2="{width - names + 14}" y1="{spots[-1][1]}" '
            f'y2="{heights[number]}"/>'
            f'<text class="name" x="{width - names + 18}" y="{heights[number] + 4}">{escape(line.name)}</text></g>'
        )
    spoken = "; ".join(f"{line.name} ends at {numbers.number(line.points[-1][1], chart.unit)}"
                       for line in chart.lines if line.points)
    return _svg(width, bottom + 40, f"{chart.title}: {spoken}", "".join(parts), "lines")


def _place(x: float, chart: Chart) -> float:
    return math.log2(1 + x) if chart.doubling else x


def _scale(chart: Chart, across: Axis, up: Axis, right: float, bottom: float) -> str:
    """Grid lines with their numbers, the title of the x axis and the marks."""
    parts = [f'<line x1="{across.start}" x2="{right}" y1="{up.at(tick)}" y2="{up.at(tick)}"/>'
             f'<text x="{across.start - 6}" y="{up.at(tick) + 4}" text-anchor="end">{escape(up.text(tick))}</text>'
             for tick in up.ticks()]
    if chart.doubling:
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
