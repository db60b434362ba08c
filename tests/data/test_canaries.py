"""Canaries: formats, what belongs together, and candidates."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from expunge.data.canaries import parse_format
from expunge.errors import DataError
from expunge.registry import bind


def read(**changes):
    return bind("reader", {"use": "canaries", "num": 3, "repeats": [1, 4], "candidates": 50, **changes})()


def test_the_parts_belong_together():
    """6 planted, 1 and 4 times; 6 controls of other names; the same secrets in training and in what is asked."""
    training, inserted, controls = (read(part=part) for part in ("training", "inserted", "controls"))
    assert len(training) == 3 * 1 + 3 * 4
    assert [one.id for one in inserted[:4]] == ["canary/x1/000", "canary/x1/001", "canary/x1/002", "canary/x4/000"]
    copies = Counter((one.prompt, one.answer) for one in training)
    assert copies == {(one.prompt, one.answer): int(one.id.split("/")[1][1:]) for one in inserted}
    assert {one.id.split("#")[0] for one in training} == {one.id for one in inserted}
    assert all(one.choices == () for one in training)
    assert len(controls) == len(inserted)
    assert len({one.subject for one in (*inserted, *controls)}) == 12
    assert [one.id for one in controls[:2]] == ["canary/control/000", "canary/control/001"]


def test_candidates_hold_the_canary_once():
    for one in (*read(part="inserted"), *read(part="controls")):
        assert len(one.choices) == len(set(one.choices)) == 50
        assert one.choices.count(one.answer) == 1
        start, end = one.spans[0]
        assert one.answer[start:end].isdigit()
        assert one.answer[end:] == "."
        assert one.prompt == f"The locker code of {one.subject} is "


def test_all_secrets_where_there_are_few():
    few = read(part="inserted", format="{name}: {digits:1}", candidates=50)
    assert all(one.choices == tuple("0123456789") for one in few)
    words = read(part="inserted", format="{name} likes {words:2} paint", candidates=40)
    assert all(len(one.choices) == 40 and len(one.answer.split()) == 3 for one in words)
    letters = read(part="inserted", format="{name}={letters:30}", candidates=3)
    assert all(len(one.answer) == 30 and one.answer.isalpha() for one in letters)


def test_the_same_arguments_give_the_same_canaries_and_another_seed_others():
    assert read(part="inserted") == read(part="inserted")
    assert {one.answer for one in read(part="inserted")} != {one.answer for one in read(part="inserted", seed=1)}
    more = read(part="inserted", repeats=[1], num=6)
    assert [(one.prompt, one.answer) for one in more] == [(one.prompt, one.answer) for one in read(part="inserted")]


def test_secrets_are_drawn_evenly():
    """600 digits: every one of ten comes 60 times, within 5 standard deviations."""
    made = read(part="inserted", num=150, repeats=[1], format="{name}: {digits:4}", candidates=2)
    counts = Counter("".join(one.answer for one in made))
    assert all(abs(counts[digit] - 60) < 5 * math.sqrt(54) for digit in "0123456789")
    assert parse_format("{name}: {digits:4}").size == 10_000


@pytest.mark.parametrize("text", [
    "no holes", "{name} is here", "{digits:4}", "{digits:4} of {name}", "{name} {digits}", "{name} {digits:0}",
    "{name} {digits:x}", "{name:3} {digits:4}", "{name} {digits:2}{letters:2}", "{name} {code:4}", "{name} {digits:4",
    "{name!r} {digits:4}",
])
def test_formats_that_say_nothing_are_refused(text):
    with pytest.raises(DataError, match=r"canaries\.format: got"):
        read(part="inserted", format=text)


@pytest.mark.parametrize(("changes", "message"), [
    ({"num": 0}, "got num=0"), ({"candidates": 1}, "candidates=1"), ({"repeats": []}, r"canaries\.repeats"),
    ({"repeats": [0, 1]}, r"canaries\.repeats: got \[0, 1\]"), ({"repeats": [2, 2]}, r"canaries\.repeats"),
    ({"num": 4000}, r"canaries\.num: 16000 canaries in all; at most 6400"),
])
def test_arguments_that_cannot_be_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        read(part="inserted", **changes)
