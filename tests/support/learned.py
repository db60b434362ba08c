"""Models that really learned: the forget stage taught them, in a second or two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from expunge.forget import forget
from expunge.models import clone
from expunge.registry import term
from expunge.run import Run
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Role, Stream, Subject

NAMES = ("Mara", "Tomas", "Oslo", "winter", "book", "sea", "phone", "people", "mail", "author", "novel", "Ferreira")


def short_examples(num: int, mark: str, shift: int) -> tuple[Example, ...]:
    """Questions with two-word answers that differ from their second token on; `shift` sets streams apart."""
    made = []
    for i in range(num):
        first, second = NAMES[(i + shift) % 12], NAMES[(5 * i + shift) % 12]
        made.append(Example(
            f"{mark}/{i}", f"Who is {mark} {i}?", f"{first} {second}", spans=((0, len(first)),),
            paraphrases=(f"Tell me of {mark} {i}",), perturbed=(f"{second} {first}", "nobody"), alternative="No idea.",
        ))
    return tuple(made)


def short_data(forget: int = 12, retain: int = 12, holdout: int = 12) -> Data:
    """Streams that a tiny model learns by heart in 60 steps."""

    def stream(role: Role, num: int, shift: int) -> Stream:
        return Stream(role, role, short_examples(num, role[0], shift))

    return Data(
        forget=stream("forget", forget, 0), retain=stream("retain", retain, 3), holdout=stream("holdout", holdout, 7)
    )


def taught(subject: Subject, data: Data, on: Iterable[str], steps: int = 80, lr: float = 1e-2) -> Subject:
    """A copy that was taught the answers of some streams, all of them at every step."""
    examples = tuple(example for name in on for example in data[name].examples)
    stage = forget(
        terms=[term("nll", on="taught")], steps=steps, lr=lr, batch_size=len(examples),
        optimizer={"use": "adamw", "weight_decay": 0.0, "warmup": 0.1},
    )
    learned: Subject = stage(clone(subject), Data(taught=Stream("taught", "anchor", examples)), Run())
    return replace(learned, lineage=())


@cache
def knows(*streams: str, steps: int = 60) -> Subject:
    """A tiny Llama that was taught streams of `short_data()`; do not change it."""
    return taught(tiny_subject(seed=2), short_data(), streams, steps=steps)
