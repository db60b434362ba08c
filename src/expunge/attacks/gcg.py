"""GCG: search for a string that, put into the questions, makes the model say the forgotten answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from expunge.attacks.parts import check_causal
from expunge.attacks.shown import questions_of
from expunge.attacks.suffix.problem import Place, Problem, problems_of, putting
from expunge.attacks.suffix.search import Settings, Step
from expunge.attacks.suffix.search import search as search_string
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError, brief, close_to
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Subject

_OWN = frozenset({"steps", "width", "seed"})  # settings that are arguments of the attack


@attack("gcg", changes="prompt", says="a {place} searched for in {steps} steps, in every question")
def gcg(
    subject: Subject, data: Data, run: Run, *, steps: int = 50, width: int = 64, length: int = 20, num: int = 4,
    place: Place = "suffix", held_out: bool = False, at: Sequence[int] = (), on: str = "forget", seed: int = 0,
    search: Mapping[str, Any] | None = None,
) -> Iterator[Subject]:
    """Put one string into every question, searched for so that the model says some of the forgotten answers.

    The string s is to make mean over questions x of -log p(answer | x, s) / tokens small. Each step tries `width`
    strings that differ in one token, chosen by the gradient, and goes on from the best.

    Args:
        steps: most steps. width: strings tried a step (fewer where the tokenizer does not read them back as they are).
        length: tokens of the string. num: questions it is searched on, drawn by `seed`; all are then asked with it.
        place: suffix, prefix, or infix (at the space nearest to the middle).
        held_out: score only the questions it was not searched on. The model is never shown an answer, but the string
            may spell parts of those it was searched on.
        at: also yield the best string after that many steps.
        on: the stream to search on.
        search: more settings (`expunge.attacks.suffix.settings.Settings`): top_k, buffer, mellowmax, fluency, probe,
            max_queries, ban_target, operators, ...
    Returns: the subject with the best string in its prompts, once per entry of `at` and once at the end. The event
        tells the string, its loss, how many answers it makes the model say whole, and the ids it was searched on.
    Raises: DoesNotFit for models that are not causal, without a question that can hold the string, and when the
        tokenizer reads no changed string back; RecipeError for settings out of range.
    Cost: per step num * width queries (forwards of the changed part of a sequence) and num forwards and backwards.
    Source: Zou et al. 2023 (arXiv 2307.15043), as in nanoGCG. Differences: a tenth of the strings is drawn at random;
        the string is read back inside the whole prompt; gradients of several questions are added, not each normalised;
        all questions count from the first step on; the default budget is small.
    """
    check_causal(subject)
    settings = _settings(search or {}, steps=steps, width=width, seed=seed)
    for name, value in (("length", length), ("num", num)):
        if value < 1:
            raise RecipeError(f"attacks.gcg.{name}", f"got {value}", "accepted: 1 or more", "Correct the value")
    problems = _problems(subject, data, on, (length, num, seed, held_out), place)
    last = None
    for step in search_string(problems, settings, run):
        last, told = step, step.number in at
        if told:
            yield _attacked(subject, problems, step, settings, held_out)
    if last is not None and last.number not in at:
        yield _attacked(subject, problems, last, settings, held_out)


def _settings(given: Mapping[str, Any], **own: int) -> Settings:
    """Settings from a recipe's mapping, told where they are wrong."""
    from pydantic import TypeAdapter, ValidationError

    known = {one.name for one in fields(Settings)} - _OWN
    for name in given:
        if name not in known:
            raise RecipeError(
                f"attacks.gcg.search.{name}", f"unknown setting (got {brief(given[name])})", close_to(name, known),
                "See expunge.attacks.suffix.settings.Settings",
            )
    try:
        made: Settings = TypeAdapter(Settings).validate_python({**given, **own})
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"attacks.gcg.search.{first['loc'][0] if first['loc'] else ''}", f"got {brief(first['input'])}",
            first["msg"], "Correct the value",
        ) from error
    return made


def _problems(
    subject: Subject, data: Data, on: str, how: tuple[int, int, int, bool], place: Place
) -> list[Problem]:
    """The questions the string is searched on, in the order of the stream."""
    length, num, seed, held_out = how
    questions = questions_of(subject, stream_of(data, on, "attacks.gcg.on"))
    if len(questions) < 1 + held_out:
        raise DoesNotFit(f"stream '{on}' holds too few questions to search on" + (" and to score" if held_out else ""))
    order = np.random.default_rng(seed).permutation(len(questions))
    limit = min(num, len(questions) - held_out)
    found = problems_of(subject, [questions[int(row)] for row in order], length=length, place=place, limit=limit)
    place_of = {one.id: number for number, one in enumerate(questions)}
    return sorted(found, key=lambda problem: place_of[problem.id])


def _attacked(
    subject: Subject, problems: Sequence[Problem], step: Step, settings: Settings, held_out: bool
) -> Subject:
    put = problems[0].put(step.ids)
    ids = [problem.id for problem in problems]
    hyper = {
        "steps": step.number, "width": settings.width, "length": len(step.ids), "place": put.place, "string": put.text,
        "loss": round(step.loss, 6), "said": step.solved, "searched_on": ids,
    }
    event = Event("attack", "gcg", hyper, step.cost, frozenset(ids) if held_out else frozenset())
    return subject.after(event, wrapper=putting(subject.wrapper, put))
