"""Solved questions before the question: the model is shown how it is done, and that here things are answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from expunge.attacks.prompts import Unless, asked_as
from expunge.data.examples import stream_of
from expunge.data.said import said_in
from expunge.data.texts import asked_of, rewritten
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Example, Stream, Subject, Wrapper


@attack("few_shot", changes="prompt", says="{num} solved questions first")
def few_shot(
    subject: Subject, data: Data, run: Run, *, num: int = 3, source: str = "retain", on: str = "forget", seed: int = 0
) -> Iterator[Subject]:
    """Put solved questions before every question.

    With a chat template each is a turn of user and assistant; otherwise it stands before the question as text, in the
    same template and on a line of its own. They are put as the attacks before this one put questions.

    Args:
        num: solved questions, 1 or more. source: the stream they are drawn from; the drawn ones are not asked in this
            condition, and those of a stream to be forgotten count as shown.
        on: the stream whose questions count as queries. seed: of the choice.
    Returns: one subject.
    Raises: RecipeError for num below 1; DataError for an unknown stream; DoesNotFit when `source` has too few
        questions, for templates without a place for an answer (most encoder-decoders and classifiers), and where
        every question gets too long for the model; others that do are not asked.
    Cost: the measurement alone, on longer texts; one query per example.
    Source: ours, after in-context extraction in RWKU (Jin et al. 2024, arXiv 2406.10890).
    """
    if num < 1:
        raise RecipeError("attacks.few_shot.num", f"got {num}", "1 or more", "Correct it")
    check_turns(subject)
    stream = stream_of(data, source, "attacks.few_shot.source")
    shown = solved(subject, stream, num, seed)
    event = Event(
        "attack", "few_shot", {"num": num, "source": source, "seed": seed},
        exposed=frozenset(one.id for one in shown) if stream.role == "forget" else frozenset(),
    )
    wrapper = said_first(subject.wrapper, tuple((said_in(one.prompt).question, one.answer) for one in shown))
    wrapper = rewritten(wrapper, Unless(frozenset((one.prompt, one.answer) for one in shown)))
    yield asked_as(subject, data, wrapper, event, on=on, lacking=f"no question of '{on}' is left to be asked")


def solved(subject: Subject, stream: Stream, num: int, seed: int) -> list[Example]:
    """Questions of a stream as this subject is asked them, drawn at random.

    Raises: DoesNotFit when there are too few.
    """
    asked = asked_of(Data({stream.name: stream}), subject.wrapper)[stream.name].examples
    left = [one for one in asked if one.prompt and (stream.role != "forget" or one.id not in subject.exposed)]
    if len(left) < num:
        raise DoesNotFit(f"stream '{stream.name}' has {len(left)} questions, {num} solved ones are wanted")
    return [left[int(row)] for row in np.random.default_rng(seed).permutation(len(left))[:num]]


def said_first(wrapper: Wrapper, turns: tuple[tuple[str, str], ...]) -> Wrapper:
    """The wrapper with turns before all that was said already."""
    known = {"": (), **wrapper.turns}
    return replace(wrapper, turns={prompt: (*turns, *later) for prompt, later in known.items()})


def check_turns(subject: Subject) -> None:
    """Refuse models that cannot be shown an earlier question with its answer.

    Raises: DoesNotFit.
    """
    if subject.wrapper.template != "chat" and "{answer}" not in subject.wrapper.template:
        raise DoesNotFit("this model's template has no place for an earlier answer")
