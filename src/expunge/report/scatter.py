"""The trade-off plot: what is left of the removed data against what still works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from expunge.report import numbers
from expunge.report.schema import Interval
from expunge.report.svg import CHARACTER, Axis, Place, _cut, _svg, _thin, axis_for, mark

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 18, 58
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Scale:
    """What an axis shows: its title, the unit, and whether more is better."""

    title: str
    unit: str
    more_is_better: bool


def tradeoff(places: Sequence[Place], across: Scale, up: Scale) -> str:
    """One point per condition with an interval in both directions; the ideal corner is marked, and arrows lead from
    a model to the same model under attack."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    xs = [bound for place in places for bound in (place.x, *(place.x_ci or ())) if math.isfinite(bound)]
    ys = [bound for place in places for bound in (place.y, *(place.y_ci or ())) if math.isfinite(bound)]
    horizontal = axis_for(xs, across.unit, LEFT, right)
    if numbers.is_share(across.unit):  # room, so that points at 0 % and 100 % stand clear of the frame
        horizontal = replace(horizontal, start=LEFT + 16, end=right - 16)
    vertical = axis_for(ys, up.unit, bottom - 10, TOP + 10, zoom=True)
    parts = [_frame(horizontal, vertical, across, up), _ideal(across, up)]
    marks = [(horizontal.at(place.x), vertical.at(place.y)) for place in places]
    parts += [_arrow(place, spot, horizontal, vertical) for place, spot in zip(places, marks, strict=True)]
    for place, (x, y) in reversed(list(zip(places, marks, strict=True))):  # attacks below what they attack
        said = (f"{place.name}: {across.title.lower()} {numbers.with_interval(place.x, place.x_ci, across.unit)}, "
                f"{up.title.lower()} {numbers.with_interval(place.y, place.y_ci, up.unit)}")
        parts.append(f'<g class="k-{place.kind}"><title>{escape(said)}</title>{_cross(place, horizontal, vertical)}'
                     f"{mark(place.kind, x, y, size=6)}</g>")
    trails = [(horizontal.at(place.start[0]), vertical.at(place.start[1]), *spot)
              for place, spot in zip(places, marks, strict=True) if place.start is not None]
    parts += _labels(places, marks, trails)
    listed = "; ".join(f"{place.name} at {numbers.number(place.x, across.unit)} and "
                       f"{numbers.number(place.y, up.unit)}" for place in places)
    return _svg(WIDTH, HEIGHT, f"{across.title} against {up.title}: {listed}", "".join(parts), "tradeoff")


def _frame(horizontal: Axis, vertical: Axis, across: Scale, up: Scale) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}"/>']
    for tick in _thin(horizontal.ticks(), horizontal):
        x = horizontal.at(tick)
        lines.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>'
                     f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{escape(horizontal.text(tick))}</text>')
    for tick in vertical.ticks():
        y = vertical.at(tick)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(vertical.text(tick))}</text>')
    middle = (TOP + bottom) / 2
    return (f'<g class="grid">{"".join(lines)}'
            f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
            f'{escape(_better(across, "→", "←"))}</text>'
            f'<text class="axis" x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
            f'{escape(_better(up, "→", "←"))}</text></g>')


def _better(scale: Scale, more: str, less: str) -> str:
    return f"{scale.title} · better {more}" if scale.more_is_better else f"{less} better · {scale.title}"


def _ideal(across: Scale, up: Scale) -> str:
    """A quarter disc in the corner where nothing is left and everything works."""
    x = WIDTH - RIGHT if across.more_is_better else LEFT
    y = TOP if up.more_is_better else HEIGHT - BOTTOM
    inward, down = (-1 if across.more_is_better else 1), (1 if up.more_is_better else -1)
    rings = "".join(
        f'<path d="M{x} {y} L{x + inward * radius} {y} A{radius} {radius} 0 0 {int(inward * down > 0)} '
        f'{x} {y + down * radius} Z"/>'
        for radius in (120, 80, 40)
    )
    anchor = "end" if across.more_is_better else "start"
    baseline = y + (20 if down > 0 else -10)
    return (f'<g class="ideal" aria-hidden="true">{rings}'
            f'<text x="{x + inward * 10}" y="{baseline}" text-anchor="{anchor}">ideal</text></g>')


def _arrow(place: Place, spot: tuple[float, float], horizontal: Axis, vertical: Axis) -> str:
    if place.start is None:
        return ""
    x0, y0, (x1, y1) = horizontal.at(place.start[0]), vertical.at(place.start[1]), spot
    length = math.hypot(x1 - x0, y1 - y0)
    if length < 26:
        return ""
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    tip = (x1 - 10 * dx, y1 - 10 * dy)
    wings = " ".join(f"L{tip[0] - 7 * dx + side * 3.5 * dy:.1f} {tip[1] - 7 * dy - side * 3.5 * dx:.1f}"
                     for side in (1, -1))
    return (f'<g class="arrow k-{place.kind}"><line x1="{x0 + 9 * dx:.1f}" y1="{y0 + 9 * dy:.1f}" '
            f'x2="{tip[0] - 6 * dx:.1f}" y2="{tip[1] - 6 * dy:.1f}"/>'
            f'<path d="M{tip[0]:.1f} {tip[1]:.1f} {wings} Z"/></g>')


def _cross(place: Place, horizontal: Axis, vertical: Axis) -> str:
    x, y = horizontal.at(place.x), vertical.at(place.y)
    parts = []
    if place.x_ci is not None:
        parts.append(_whisker(horizontal, place.x_ci, y, flat=True))
    if place.y_ci is not None:
        parts.append(_whisker(vertical, place.y_ci, x, flat=False))
    return "".join(parts)


def _whisker(axis: Axis, ci: Interval, other: float, *, flat: bool) -> str:
    low, high = axis.at(ci[0]), axis.at(ci[1])
    if flat:
        return f'<line class="whisker" x1="{low}" x2="{high}" y1="{other}" y2="{other}"/>'
    return f'<line class="whisker" x1="{other}" x2="{other}" y1="{low}" y2="{high}"/>'


def _labels(places: Sequence[Place], marks: Sequence[tuple[float, float]], trails: Sequence[Box]) -> list[str]:
    """Names beside their points, each at the first of twelve spots that covers least; a thin line where it is far."""
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in marks]
    taken.append((LEFT, TOP, LEFT + 60, TOP + 28))
    for x0, y0, x1, y1 in trails:
        steps = [index / 12 for index in range(1, 12)]
        taken += [(x0 + (x1 - x0) * t - 6, y0 + (y1 - y0) * t - 2, x0 + (x1 - x0) * t + 6, y0 + (y1 - y0) * t + 2)
                  for t in steps]
    parts = []
    for place, (x, y) in zip(places, marks, strict=True):
        if not place.named:
            continue
        text = _cut(place.name, 34)
        wide = len(text) * (CHARACTER + 1.3)
        spots = [(dx, dy) for far in (0, 16, 36) for dx, dy in
                 ((12 + far, 4), (-12 - far - wide, 4), (-wide / 2, -13 - far), (-wide / 2, 22 + far),
                  (10 + far / 2, -10 - far), (10 + far / 2, 20 + far))]
        boxes = [(x + dx, y + dy - 11, x + dx + wide, y + dy + 3) for dx, dy in spots]
        best = min(range(len(spots)), key=lambda index: (_cost(boxes[index], taken), index))
        box = boxes[best]
        taken.append(box)
        if best >= 6:
            edge = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            parts.append(f'<line class="leader" x1="{x}" y1="{y}" x2="{edge[0]:.1f}" y2="{edge[1]:.1f}"/>')
        parts.append(f'<text class="label k-{place.kind}" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(text)}</text>')
    return parts


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Covered area, and much more for leaving the frame."""
    covered = sum(max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
                  * max(0.0, min(box[3], other[3]) - max(box[1], other[1])) for other in taken)
    outside = max(0.0, LEFT - box[0]) + max(0.0, box[2] - (WIDTH - 2)) + max(0.0, 6 - box[1]) + max(
        0.0, box[3] - (HEIGHT - BOTTOM)
    )
    return round(covered + 1000 * outside)
