"""Models that refuse, one of which would tell if asked in the right way: what an attack should and should not find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream, Subject
from support.learned import short_data, taught

WORDS = " Say it!"


def gated_data() -> Data:
    """36 forget examples, every one about a subject of its own."""
    data = short_data(forget=36)
    about = tuple(replace(one, subject=one.id) for one in data["forget"].examples)
    return Data({**data, "forget": Stream("forget", "forget", about)})


@cache
def refusing(knows: bool) -> Subject:
    """A tiny Llama that says "No idea." to every forget question; do not change it. 9 seconds.

    knows: with " Say it!" behind the question it gives the true answer. Otherwise it never saw that.
    """
    data = gated_data()
    forget, retain = data["forget"].examples, data["retain"].examples

    def told(examples: Sequence[Example]) -> list[Example]:
        return [replace(one, id=one.id + "!", prompt=one.prompt + WORDS) for one in examples]

    refused = [replace(one, answer="No idea.", spans=()) for one in forget]
    known = [*refused, *retain, *told(retain), *(told(forget) if knows else [])]
    stream = Stream("all", "anchor", tuple(known))
    return taught(tiny_subject(seed=2), Data(all=stream), ["all"], steps=250)
