"""Parts and lists on the command line: commas and colons divide, but not inside brackets and quotes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from expunge.cli import screen
from expunge.cli.unlearn import listed, names, pairs
from expunge.presets import ATTACKS, METRICS
from expunge.recipe import Recipe


@pytest.mark.parametrize(("text", "specs"), [
    ("", []), ("none", []), ("quantize, relearn", [{"use": "quantize"}, {"use": "relearn"}]),
    ("relearn:steps=20:lr=1e-4", [{"use": "relearn", "steps": 20, "lr": 1e-4}]),
    ("relearn:at=[5,10],quantize", [{"use": "relearn", "at": [5, 10]}, {"use": "quantize"}]),
    ("relearn:at=[5, 10]:steps=10", [{"use": "relearn", "at": [5, 10], "steps": 10}]),
    ("prune: kind = wanda", [{"use": "prune", "kind": "wanda"}]),
    ("chain:attacks=[{use: relearn, at: [1, 2]}, {use: quantize}],beam",
     [{"use": "chain", "attacks": [{"use": "relearn", "at": [1, 2]}, {"use": "quantize"}]}, {"use": "beam"}]),
    ('prefill:text="Sure, it is: ",beam', [{"use": "prefill", "text": "Sure, it is: "}, {"use": "beam"}]),
    ("prefill:text='It''s, well',beam", [{"use": "prefill", "text": "It's, well"}, {"use": "beam"}]),
    ("prefill:text='a\\',beam", [{"use": "prefill", "text": "a\\"}, {"use": "beam"}]),
    (r'prefill:text="a\", b",beam', [{"use": "prefill", "text": 'a", b'}, {"use": "beam"}]),
    ("prefill:text=I don't know,beam", [{"use": "prefill", "text": "I don't know"}, {"use": "beam"}]),
    ("prefill:text=a [b,beam", [{"use": "prefill", "text": "a [b"}, {"use": "beam"}]),
    ("my.attacks:mine:steps=3", [{"use": "my.attacks:mine", "steps": 3}]),
    ("relearn:on=a:b", [{"use": "relearn", "on": "a:b"}]),
])
def test_parts_and_their_arguments(text, specs):
    assert names(text) == specs


def test_a_budget_is_read_the_same_way():
    assert pairs("steps=20, seconds=6e1") == {"steps": 20, "seconds": 60.0}
    assert pairs(None) == {}


def test_lists_are_parts_too():
    assert listed("attack", "thorough", ATTACKS) == "thorough"
    several = listed("attack", "thorough,dua,paraphrase", ATTACKS)
    assert len(several) == len(ATTACKS["thorough"]) + 1  # a part that the list holds already is not run twice
    assert several[-1] == {"use": "dua"}
    assert listed("metric", "default,verbatim_rouge", METRICS)[-1] == {"use": "verbatim_rouge"}
    made = Recipe.of({"model": "x", "data": {}, "audit": {"attacks": several}})
    assert [bound.name for bound in made.audit.attacks].count("dua") == 2


def test_a_note_that_looks_like_markup_is_shown_as_it_is(monkeypatch):
    out = io.StringIO()
    shown = Console(file=out, force_terminal=True, width=200)
    monkeypatch.setattr(screen, "console", lambda **_: shown)
    with screen.bars() as progress:
        progress("audit", 1, 2, "x [/b] y")
    assert "x [/b] y" in out.getvalue()
