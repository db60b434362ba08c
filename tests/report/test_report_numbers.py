"""Numbers for people, case by case."""

from __future__ import annotations

import math

import pytest

from expunge.report import numbers


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.973, "share", "97.3 %"),
        (0.034, "probability", "3.4 %"),
        (0.0, "share", "0 %"),
        (1.0, "share", "100 %"),
        (0.9997, "share", "> 99.9 %"),
        (0.0004, "share", "0.040 %"),
        (3e-6, "share", "< 0.01 %"),
        (4.35e-25, "p-value", "4.35e-25"),
        (0.42, "p-value", "0.420"),
        (9.9961, "perplexity", "10.0"),
        (12_345.0, "perplexity", "12,300"),
        (math.inf, "perplexity", "∞"),
        (math.nan, "ratio", "not a number"),
        (-0.5, "ratio", "−0.500"),
        (None, "share", "n/a"),
    ],
)
def test_number(value: float | None, unit: str, text: str) -> None:
    assert numbers.number(value, unit) == text


@pytest.mark.parametrize(
    ("ci", "unit", "text"),
    [
        ((0.943, 1.0), "share", "94.3–100"),
        ((0.004, 0.064), "share", "0.4–6.4"),
        ((0.9968, 0.9981), "share", "99.68–99.81"),
        ((0.643, 0.723), "ratio", "0.643–0.723"),
        ((10.8, 12.31), "perplexity", "10.8–12.3"),
        ((-0.107, 0.006), "ratio", "−0.11 to 0.01"),
        ((1e-30, 1e-20), "p-value", "1.00e-30 to 1.00e-20"),
        ((0.5, 0.5), "share", "50.0–50.0"),
        ((1.0, math.inf), "perplexity", "1.00–∞"),
        (None, "share", ""),
    ],
)
def test_interval(ci: tuple[float, float] | None, unit: str, text: str) -> None:
    assert numbers.interval(ci, unit) == text


def test_a_difference_is_as_exact_as_its_interval_is_narrow() -> None:
    assert numbers.difference(0.194, (0.142, 0.247), "share") == "+19.4 points"
    assert numbers.difference(-0.041, (-0.052, -0.03), "share") == "−4.1 points"
    assert numbers.difference(-0.05, (-0.107, 0.006), "ratio") == "−0.05"
    assert numbers.difference(0.05, None, "ratio") == "+0.0500"
    assert numbers.difference(0.0, None, "share") == "0 points"
    assert numbers.difference(None) == "n/a"
    assert numbers.difference_interval((-0.012, 0.038), "share") == "−1.2 to +3.8"


def test_margins_counts_and_times() -> None:
    assert numbers.margin(0.05, "share") == "± 5 points"
    assert numbers.margin(0.08, "ratio") == "± 0.08"
    assert [numbers.count(value) for value in (0, 12_800, 12_345_678)] == ["0", "12,800", "12.3 M"]
    times = [numbers.seconds(value) for value in (0.412, 12.34, 200, 4_330)]
    assert times == ["0.41 s", "12.3 s", "3 min 20 s", "1 h 12 min"]
    assert numbers.percent(0.95, whole=True) == "95 %"
