"""Two pools of small models: with the knowledge and without it, each as varied as ways of learning are.

A metric that only tells trained from untrained models would be flattered by one model against another. So those that
know learned the answers as they stand or in other words, those that do not never saw the questions or learned false
answers to them, and both were trained for longer and shorter, faster and slower, from other seeds. All of them read
every second retained example in other words as well, where it has some: a small model knows no language but what it
was taught, and a rewording must not be strange to it for its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge.benches.world import Architecture
from expunge.data.examples import check_overlap, check_stream
from expunge.errors import DataError
from expunge.registry import bind
from expunge.types import Data, Example, Role, Stream
from expunge.workflow import warn_on_screen

SMALL = Architecture(width=96, layers=3, heads=4, vocabulary=2048, epochs=10.0, batch_size=16, lr=0.03)
VARIED = ((1.0, 1.0), (0.7, 1.0), (1.4, 0.7), (1.0, 1.5))  # epochs and rate, times those of the architecture
ENOUGH = 0.5  # of the examples must have other words, or false answers, for models to be taught them
REFERENCE_SEED = 1000  # of the two models metrics may compare with; they stand in no pool
ROLES: tuple[Role, ...] = ("forget", "retain", "holdout")
PEOPLE: Mapping[str, int] = {"forget": 8, "retain": 20, "holdout": 8}


@dataclass(frozen=True)
class Twin:
    """A model to be trained: what on, how, and whether it holds the knowledge."""

    name: str
    knows: bool
    variant: str
    examples: tuple[Example, ...]
    made: Architecture
    seed: int


def invented() -> dict[str, Any]:
    """Sources of the embedded people, for a calibration without data of one's own."""
    return {role: {"use": "synthetic", "part": role, "num_people": num} for role, num in PEOPLE.items()}


def read(sources: Mapping[str, Any]) -> Data:
    """Streams by role from reader specs, checked like those of a recipe.

    Raises: DataError, also when there is nothing to retain: a model without the knowledge must know something else.
    """
    data = Data()
    for role in ROLES:
        if sources.get(role) is not None:
            examples = tuple(bind("reader", sources[role], f"--{role}")())
            check_stream(f"--{role}", examples)
            data[role] = Stream(role, role, examples)
    for role in ("forget", "retain"):
        if role not in data:
            raise DataError(f"--{role}", "missing", "forget and retain data together, or neither",
                            f"Add --{role}, or leave the other out for the embedded people")
    check_overlap(data, warn_on_screen)
    return data


def pools(data: Data, num: int, made: Architecture) -> list[Twin]:
    """`num` twins that know the forget examples and `num` that do not, variants in turn.

    Twin i of either pool is trained with seed i; once every variant had its turn, the next length and rate are taken.
    """
    found = []
    for knows, variants in ((True, _knowing(data)), (False, _unknowing(data))):
        names = list(variants)
        for i in range(num):
            epochs, rate = VARIED[i // len(names) % len(VARIED)]
            variant = names[i % len(names)]
            how = replace(made, epochs=made.epochs * epochs, lr=made.lr * rate)
            name = f"{'present' if knows else 'absent'}{i}-{variant}"
            found.append(Twin(name, knows, variant, variants[variant], how, i))
    return found


def references(data: Data, made: Architecture) -> dict[str, Twin]:
    """The oracle and the original of metrics that compare with one."""
    retain, forget = _retained(data), data["forget"].examples
    return {
        "oracle": Twin("oracle", False, "retain", retain, made, REFERENCE_SEED),
        "original": Twin("original", True, "full", (*retain, *forget), made, REFERENCE_SEED),
    }


def _retained(data: Data) -> tuple[Example, ...]:
    examples = data["retain"].examples
    others = [said for said in map(_reworded, examples[::2]) if said is not None]
    return (*examples, *(replace(said, id=f"{said.id}/reworded") for said in others))


def _knowing(data: Data) -> dict[str, tuple[Example, ...]]:
    retain, forget = _retained(data), data["forget"].examples
    found = {"full": (*retain, *forget)}
    other = [said for said in map(_reworded, forget) if said is not None]
    if len(other) >= ENOUGH * len(forget):
        found["reworded"] = (*retain, *other)
    return found


def _unknowing(data: Data) -> dict[str, tuple[Example, ...]]:
    retain, forget = _retained(data), data["forget"].examples
    found: dict[str, tuple[Example, ...]] = {"retain": retain}
    false = [said for i in range(len(forget)) if (said := _false(forget, i)) is not None]
    if len(false) >= ENOUGH * len(forget):
        found["wrong"] = (*retain, *false)
    return found


def _reworded(example: Example) -> Example | None:
    """The same knowledge in other words: those of the answer where they are given, else those of the question."""
    if example.paraphrased_answer is not None:
        return replace(example, answer=example.paraphrased_answer, spans=())
    return replace(example, prompt=example.paraphrases[0]) if example.paraphrases else None


def _false(examples: Sequence[Example], place: int) -> Example | None:
    """The question with a false answer of the same form; without one, the next different answer of the stream."""
    example = examples[place]
    if example.perturbed:
        return replace(example, answer=example.perturbed[0], spans=())
    if not example.prompt:  # plain text: its answer elsewhere would be the very text
        return None
    others = (*examples[place + 1 :], *examples[:place])
    answer = next((other.answer for other in others if other.answer != example.answer), None)
    return None if answer is None else replace(example, answer=answer, spans=())
