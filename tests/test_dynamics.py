"""Curves, levels and forgetting as numbers: golden values, closed forms and limits."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from expunge import dynamics
from expunge.dynamics import Curve, Reading, Visited
from expunge.measure.tokens import measure_tokens
from support.bigram import bigram, encoded
from support.golden import load


def golden(name: str) -> tuple[Any, Any]:
    case = next(one for one in load("dynamics")["cases"] if one["id"] == name)
    return case["inputs"], case["expected"]


def curve(shares: list[float], *, stream: str = "train", tokens: int = 1000, every: int = 10, **more: Any) -> Curve:
    readings = tuple(Reading(stream, round(share * tokens), tokens, 1.0 - share, 0, 0, 10) for share in shares)
    steps = tuple(every * i for i in range(len(shares)))
    return Curve(stream, steps, tuple(float(i) for i in range(len(shares))), readings, **more)


def test_golden_exact_memorization_is_a_ratio_of_sums() -> None:
    given, expected = golden("exact_memorization")
    logits, ids, mask = (np.array(given[key]) for key in ("logits", "input_ids", "attention_mask"))
    hits = (logits[:, :-1].argmax(-1) == ids[:, 1:]) & (mask[:, 1:] == 1)
    assert hits.astype(int).tolist() == expected["hits"]
    counts = list(zip(hits.sum(-1).tolist(), mask[:, 1:].sum(-1).tolist(), strict=True))
    assert dynamics.ratio(counts) == pytest.approx(expected["M"])
    assert float(np.mean([hit / num for hit, num in counts])) == pytest.approx(expected["mean_of_row_ratios"])


def test_golden_levels() -> None:
    given, expected = golden("T")
    points = [(float(epoch), share) for epoch, share in given["curve"]]
    by_step = [(epoch * given["steps_per_epoch"], share) for epoch, share in points]
    for i, tau in enumerate(given["taus"]):
        assert dynamics.first_reach(points, tau) == expected["T"][i]
        assert dynamics.first_reach(by_step, tau) == expected["T_update"][i]
        assert dynamics.interpolated_reach(points, tau) == (
            expected["T_interp"][i] and pytest.approx(expected["T_interp"][i])
        )


def test_golden_forgetting() -> None:
    given, expected = golden("forgetting")
    found = dynamics.forgetting([tuple(point) for point in given["curve"]], given["M_before_injection"])
    assert found.baseline == expected["baseline"]
    assert found.drop == pytest.approx(expected["drop"])
    assert found.half_time == expected["half_time"]
    assert found.excess_over_before == pytest.approx(expected["excess_over_never_seen"])


def test_golden_parts_of_speech() -> None:
    given, expected = golden("pos")
    table = dynamics.by_tag(given["pos"], given["hit"])
    assert {tag: hits / num for tag, (hits, num) in table.items()} == expected["R"]


def test_the_best_bigram_model_has_the_closed_form() -> None:
    """M = sum_v max_w count(v, w) / sum counts, for a table of bigram counts; a uniform one hits token 0 alone."""
    rows = np.random.default_rng(0).integers(0, 8, size=(6, 30)).tolist()
    pairs = Counter((a, b) for row in rows for a, b in pairwise(row))
    table = [[float(pairs[v, w]) for w in range(8)] for v in range(8)]
    closed = sum(max(row) for row in table) / sum(pairs.values())

    def measured(values: list[list[float]]) -> float:
        found = measure_tokens(bigram(values), encoded(rows), ())
        return dynamics.ratio((int(one["argmax"].sum()), len(one["argmax"])) for one in found)

    assert measured(table) == pytest.approx(closed)
    zeros = sum(b == 0 for row in rows for b in row[1:])
    assert measured([[0.0] * 8] * 8) == pytest.approx(zeros / sum(pairs.values()))  # ties go to the lowest id


def test_the_margin_tells_near_ties() -> None:
    table = [[0.0, 1.0, 0.9995], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    (found,) = measure_tokens(bigram(table), encoded([[0, 1, 0, 2]]), ("margin",))
    assert found["margin"].tolist() == pytest.approx([0.0005, 2.0, 0.0005], abs=1e-6)


def test_levels_rise_with_tau_and_a_level_never_reached_is_censored() -> None:
    made = curve([0.0, 0.2, 0.5, 0.85, 0.8])
    found = dynamics.crossings(made, (0.1, 0.4, 0.6, 0.8, 0.9))
    epochs = [one.epoch for one in found]
    assert epochs == [1.0, 2.0, 3.0, 3.0, None]
    assert [one.updates for one in found] == [10, 20, 30, 30, None]
    between = [one.interpolated for one in found if one.interpolated is not None]
    assert between == sorted(between)
    assert between[0] == pytest.approx(0.5)
    assert found[-1].last == 0.8


def test_what_a_visit_leaves_is_held_against_a_control_and_against_what_was_there_before() -> None:
    visit = Visited("special", at=20, updates=10, control="control")
    special = curve([0.1, 0.2, 0.3, 0.9, 0.5, 0.4], stream="special", visit=visit)
    control = curve([0.1, 0.2, 0.25, 0.24, 0.27, 0.3], stream="control", visit=visit)
    found = dynamics.forgetting_of({"special": special, "control": control})
    assert found is not None
    assert (found.start, found.baseline, found.step, found.half_time) == (0.9, 0.4, 20, 10)
    assert found.excess == pytest.approx(0.1)
    assert found.left == pytest.approx(0.1 - 0.05)
    alone = dynamics.forgetting_of({"special": special})
    assert alone is not None
    assert alone.excess is alone.left is None
    assert dynamics.forgetting_of({"train": curve([0.1, 0.2])}) is None


def test_memorization_before_overfitting_is_read_where_held_out_loss_is_lowest() -> None:
    assert dynamics.overfitting_point([(0, 5.0), (1, 4.0), (2, 3.5), (3, 3.6), (4, 3.0)]) == 2
    assert dynamics.overfitting_point([(0, 5.0), (1, 4.0)]) is None
    heldout = curve([0.1, 0.3, 0.2], stream="heldout")  # its loss is 1 - share
    assert dynamics.before_overfitting(curve([0.1, 0.4, 0.9]), heldout) == (1.0, 0.4)


def test_word_classes_are_ordered_by_when_they_are_known() -> None:
    known = {"number": (20, 20), "rare": (3, 3)}
    readings = [
        Reading("train", 0, 100, 1.0, 0, 0, 1, {"name": (a, 40), "verb-like": (b, 40)} | known)
        for a, b in ((0, 0), (30, 10), (40, 16))
    ]
    made = Curve("train", (0, 1, 2), (0.0, 1.0, 2.0), tuple(readings))
    assert dynamics.order_of_tags(made, 0.5) == [
        ("number", 0.0), ("name", pytest.approx(2 / 3)), ("verb-like", None)
    ]


def test_relearning_is_measured_in_units_of_the_first_time() -> None:
    slow, fast = [(0.0, 0.0), (10.0, 1.0)], [(0.0, 0.8), (1.0, 1.0)]
    assert dynamics.relearning_speed(fast, slow, 0.9) == pytest.approx(0.5 / 9)
    assert dynamics.relearning_speed(fast, [(0.0, 0.1)], 0.9) is None


def test_records_become_the_curves_they_came_from() -> None:
    visit = {"stream": "special", "at": 1, "updates": 1, "control": None}
    first = Reading("train", 3, 10, 0.5, 1, 0, 2, {"name": (1, 4)}, {"a": (1, 5), "b": (2, 5)})
    records = [
        {"stage": 1, "part": [2], "visit": visit, **dynamics.record_of(first, step, epoch)}
        for step, epoch in ((4, 2.0), (0, 0.0))
    ]
    ((where, found),) = dynamics.curves_of(records).items()
    assert where == (1, (2,))
    assert found["train"].steps == (0, 4)
    assert found["train"].readings == (first, first)
    assert found["train"].visit == Visited("special", 1, 1)
    assert found["train"].points("name") == [(0.0, 0.25), (2.0, 0.25)]
    assert found["train"].points("nothing") == []
