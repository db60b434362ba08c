"""Line charts: points stand where they belong, names do not overlap, and nothing in a text can break the page."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from expunge.report.chapters import Chapter, Chart, Line, Sheet
from expunge.report.lines import _spread, draw, page

CHART = Chart("M", "epochs", (
    Line("train", ((0.0, 0.0), (1.0, 0.5), (2.0, 1.0))), Line("held <out>", ((0.0, 0.0), (2.0, 0.2))),
), marks=((1.0, "visit"),))


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y in (spot.split(",") for spot in line.split())]
            for line in re.findall(r'points="([^"]*)"', svg)]


def test_points_stand_at_their_values() -> None:
    (a, b, c), (_, d) = points(draw(CHART))
    assert b[0] - a[0] == c[0] - b[0]
    assert a[1] - b[1] == b[1] - c[1] > 0
    assert (a[1] - d[1]) / (a[1] - c[1]) == pytest.approx(0.2)
    assert c[0] == d[0]


def test_a_doubling_axis_gives_every_doubling_the_same_room() -> None:
    chart = Chart("F", "steps", (Line("special", tuple((2.0**k - 1, 0.5) for k in range(5))),), doubling=True)
    ((*spots,),) = points(draw(chart))
    gaps = {round(b[0] - a[0], 0) for a, b in pairwise(spots)}
    assert len(gaps) == 1
    assert [f">{tick}</text>" in draw(chart) for tick in (0, 1, 2, 4, 8)] == [True] * 5


def test_names_at_the_ends_keep_apart_and_inside() -> None:
    placed = _spread([200.0, 200.0, 199.0, 10.0], 12, 200)
    ordered = sorted(placed)
    assert all(b - a >= 14 for a, b in pairwise(ordered))
    assert max(placed) <= 200
    assert placed[3] == 12.0
    assert placed[2] < placed[0] < placed[1]


def test_a_chart_of_one_point_is_no_chart() -> None:
    assert draw(Chart("M", "epochs", (Line("train", ((0.0, 0.1),)),))) == ""


def test_a_page_is_complete_and_escapes() -> None:
    sheet = Sheet("Levels & <more>", ("stream", "40 %"), (("<train>", "3.1"),), "a note")
    text = page("Study <1>", [Chapter("One & two", "said", (CHART,), (sheet,))], over="Expunge", meta=[("by", "us")])
    assert text.count("<svg") == 1
    assert "held &lt;out&gt;" in text
    assert "&lt;train&gt;" in text
    assert "<1>" not in text
    assert 'href="#chapter-1">One &amp; two</a>' in text
    assert "aria-label" in text
