"""Which questions an attack learns from and which are left to score, and how questions are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from expunge.data.texts import Encoded, Text, asked_of, texts_of
from expunge.data.tokenise import encode
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.models import context_length
from expunge.types import Data, Example, Stream, Subject

if TYPE_CHECKING:
    from expunge.attacks.relearn import Split

Generalisation = Literal["within query", "cross query", "cross target"]


@dataclass(frozen=True)
class Lesson:
    """Questions to learn from, worded as they are to be asked, and the ids that must not be scored after that."""

    examples: tuple[Example, ...]
    exposed: frozenset[str] = frozenset()


def part_of(subject: Subject, stream: Stream, share: float, seed: int, where: str) -> tuple[Example, ...]:
    """About a share of the questions of a stream, in their order; at least one is in it and one is not.

    Questions about one subject stay together, where all name theirs and there are several.

    Raises: RecipeError for a share outside (0, 1); DoesNotFit for fewer than two questions.
    """
    if not 0 < share < 1:
        raise RecipeError(where, f"got {share}", "a number between 0 and 1", "Leave some examples to score")
    questions = questions_of(subject, stream)
    if len(questions) < 2:
        raise DoesNotFit(f"stream '{stream.name}' holds fewer than two questions: one to learn from, one to score")
    subjects = {one.subject for one in questions}
    size = min(max(1, round(share * len(questions))), len(questions) - 1)
    split: Split = "subjects" if None not in subjects and len(subjects) > 1 else "examples"
    return _chosen(questions, size, split, seed)


def exposed_of(stream: Stream, examples: Iterable[Example]) -> frozenset[str]:
    """The ids that must not be scored after these examples of a stream were shown.

    Ids are unique within a stream only, and they are looked up among what is to be forgotten: an id of another stream
    would drop an example there that nobody has shown.
    """
    return frozenset(one.id for one in examples) if stream.role == "forget" else frozenset()


def _chosen(questions: Sequence[Example], size: int, split: Split, seed: int) -> tuple[Example, ...]:
    from expunge.attacks.relearn import chosen  # that module reads this one

    return chosen(Stream("forget", "forget", tuple(questions)), size, split, seed)


def lesson(subject: Subject, stream: Stream, generalisation: Generalisation, most: int, seed: int) -> Lesson:
    """Questions for a string or prompt that is to work on others, or on the very same.

    within query: `most` of the questions themselves; the others are not scored.
    cross query: other wordings of them where the examples hold some; otherwise some of the questions about each
        subject, which are then not scored.
    cross target: questions about half of the subjects; nothing about those is scored.

    Args:
        most: questions to learn from; more are drawn from with `seed`.
    Raises: DoesNotFit where the examples hold nothing of the kind.
    """
    known = subject.exposed if stream.role == "forget" else frozenset()
    questions = [one for one in questions_of(subject, stream) if one.id not in known]
    if not questions:
        raise DoesNotFit(f"stream '{stream.name}' holds no question that is still to be scored")
    if generalisation == "within query":
        shown = _some(questions, most, seed)
        return Lesson(_as_asked(subject, shown), exposed_of(stream, questions) - exposed_of(stream, shown))
    if generalisation == "cross query":
        reworded = [replace(one, prompt=words[0]) for one in questions if (words := _other_words(subject, one))]
        if reworded:
            return Lesson(_some(reworded, most, seed))
    split: Split = "siblings" if generalisation == "cross query" else "subjects"
    apart = _chosen(questions, len(questions) // 2, split, seed)
    return Lesson(_as_asked(subject, _some(apart, most, seed)), exposed_of(stream, apart))


def _some(questions: Sequence[Example], most: int, seed: int) -> tuple[Example, ...]:
    """As many of them as allowed, drawn evenly, in their order."""
    return _chosen(questions, most, "examples", seed)


def _asked(subject: Subject, example: Example) -> str:
    """The wording of a question that the subject's wrapper asks."""
    kind, _, number = subject.wrapper.ask.partition(":")
    return example.prompt if kind == "prompt" else example.paraphrases[int(number)]


def _as_asked(subject: Subject, examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(replace(one, prompt=_asked(subject, one)) for one in examples)


def _other_words(subject: Subject, example: Example) -> list[str]:
    asked = _asked(subject, example)
    return [words for words in (*example.paraphrases, example.prompt) if words and words != asked]


def questions_of(subject: Subject, stream: Stream) -> list[Example]:
    """The examples of a stream that this subject's wrapper can ask."""
    known = {text.id for text in _texts(subject, stream.examples) if text.prompt}
    return [one for one in stream.examples if one.id in known]


def asked_like(subject: Subject, examples: Sequence[Example]) -> list[Encoded]:
    """Questions and answers as the subject is asked them, one row per example.

    Raises: DoesNotFit for a question that is too long for the model.
    """
    try:
        return encode(subject, _texts(subject, examples), limit=context_length(subject), where="attack")
    except DataError as error:
        raise DoesNotFit(f"a question does not fit: {error.found}; {error.accepted}") from error


def _texts(subject: Subject, examples: Sequence[Example]) -> list[Text]:
    asked = asked_of(Data(shown=Stream("shown", "forget", tuple(examples))), subject.wrapper)["shown"]
    try:
        return texts_of(asked, "answer", subject.wrapper.ask)
    except LookupError:  # nothing can be put like that
        return []


def growing(budgets: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Numbers of steps, each larger than the one before.

    Raises: RecipeError.
    """
    if budgets[0] < 0 or any(one >= other for one, other in pairwise(budgets)):
        name = "at" if len(budgets) > 1 else "steps"
        raise RecipeError(f"{where}.{name}", f"got {list(budgets)}", "growing numbers, 0 or more", "Correct it")
    return budgets
