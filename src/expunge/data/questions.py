"""Variants for multiple choice: right and wrong choices as texts, and the same questions answered by a letter.

Every text carries a span over the whole answer, so that a metric can leave out the token that ends it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from expunge.data.said import said_in
from expunge.data.variants import Texts
from expunge.registry import variant
from expunge.types import Data, Example

INTRODUCTION = "The following are multiple choice questions (with answers)"
LETTERS = string.ascii_uppercase


def wrong_choices(example: Example) -> tuple[str, ...]:
    """The false answers; where none are named, every choice but the answer."""
    return example.perturbed or tuple(choice for choice in example.choices if choice != example.answer)


def right_choices(example: Example) -> tuple[str, ...]:
    """The answer first, then every other choice that is not false."""
    false = {*wrong_choices(example), example.answer}
    return (example.answer, *(choice for choice in example.choices if choice not in false))


def lettered(example: Example, question: str) -> str:
    """A question with its choices below it, each after its letter, up to where the letter is to be said."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, example.choices, strict=False))
    return f"{question.strip()}\n{choices}Answer:"


def letters_of(example: Example, texts: Sequence[str]) -> list[str]:
    """The letters under which some texts stand among the choices."""
    return [letter for letter, choice in zip(LETTERS, example.choices, strict=False) if choice in texts]


def introduced(example: Example, question: str, shots: Sequence[Example] = ()) -> str:
    """What is asked: introduction with the topic, answered questions, and the question itself."""
    topic = f" about {example.subject}" if example.subject else ""
    asked = [lettered(one, said_in(one.prompt).question) for one in shots]
    before = "".join(f"{text} {letters_of(one, [one.answer])[0]}\n\n" for text, one in zip(asked, shots, strict=True))
    return f"{INTRODUCTION}{topic}.\n\n{before}{lettered(example, question)}"


@variant("right")
def right(example: Example, prompt: str, data: Data) -> Texts:
    """The answer, and every other choice that is not false."""
    yield from ((prompt, text, ((0, len(text)),)) for text in right_choices(example))


@variant("wrong")
def wrong(example: Example, prompt: str, data: Data) -> Texts:
    """Every false answer; where none are named, every choice but the answer."""
    yield from ((prompt, text, ((0, len(text)),)) for text in wrong_choices(example))


@variant("letters")
def letters(example: Example, prompt: str, data: Data, which: str, shots: str = "0", source: str = "dev") -> Texts:
    """The question with its choices, answered by the letters of the right or of the wrong ones.

    which: "right" or "wrong". shots: so many answered questions of the stream `source` and of the same topic first.
    """
    known = letters_of(example, right_choices(example))
    if not known or len(example.choices) > len(LETTERS):
        return
    before = _shots(example, data, int(shots), source)
    others = LETTERS[: len(example.choices)]
    said = known if which == "right" else [letter for letter in others if letter not in known]
    yield from ((introduced(example, prompt, before), letter, ((0, 1),)) for letter in said)


def _shots(example: Example, data: Data, num: int, source: str) -> list[Example]:
    if num <= 0:
        return []
    if source not in data:
        raise LookupError(f"no stream '{source}' with answered questions was given")
    same = [
        one for one in data[source].examples
        if one.subject == example.subject and one.id != example.id and one.answer in one.choices
    ]
    if len(same) < num:
        raise LookupError(f"'{source}' has {len(same)} answered questions about {example.subject}, {num} are wanted")
    return same[:num]


@variant("unasked")
def unasked(example: Example, prompt: str, data: Data, normalise: str, which: str) -> Texts:
    """The right or the wrong choices after "Answer:" alone: how probable they are before anything is asked.

    normalise: only "prior" has use for them.
    """
    if normalise != "prior":
        return
    texts = right_choices(example) if which == "right" else wrong_choices(example)
    yield from (("Answer:", text, ((0, len(text)),)) for text in texts)
