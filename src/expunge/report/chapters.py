"""Further chapters of a report: line charts and tables over a training or a study, as plain numbers.

A run puts its chapters into its evidence; a run without an audit, and a study of many runs, write a page of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One line of a chart: points (x, y) from left to right.

    spans: intervals (x, low, high), drawn as a band. kind: whose colour and mark it has ("after", "oracle", ...); a
    line without one takes the next colour.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    spans: tuple[tuple[float, float, float], ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    across: title of the x axis. unit: of the values ("share", ""). marks: places on the x axis to be marked, with a
    word. doubling: the x axis is 0, 1, 2, 4, 8, ... at equal distances. ticks: numbers on the x axis; none: round ones.
    """

    title: str
    across: str
    lines: tuple[Line, ...]
    note: str = ""
    unit: str = "share"
    marks: tuple[tuple[float, str], ...] = ()
    doubling: bool = False
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A table of finished texts; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Chapter:
    """A section of a report."""

    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    sheets: tuple[Sheet, ...] = ()
