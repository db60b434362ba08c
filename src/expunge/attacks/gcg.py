"""GCG: search for a string that, put into the questions, makes the model say the forgotten answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from expunge.attacks.parts import check_causal
from expunge.attacks.shown import exposed_of, growing, questions_of
from expunge.attacks.suffix.problem import Place, Problem, problems_of, putting
from expunge.attacks.suffix.search import Settings, Step, milestones
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError, brief, close_to
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Stream, Subject

_OWN = frozenset({"steps", "width", "seed"})  # settings that are arguments of the attack


@attack("gcg", changes="prompt", judged="oracle", says="a {place} searched for in {steps} steps, in every question")
def gcg(
    subject: Subject, data: Data, run: Run, *, steps: int = 50, width: int = 64, length: int = 20, num: int = 4,
    place: Place = "suffix", held_out: bool = False, at: tuple[int, ...] = (), on: str = "forget", seed: int = 0,
    search: Mapping[str, Any] | None = None,
) -> Iterator[Subject]:
    """Put one string into every question, searched for so that the model says some of the forgotten answers.

    The string s is to make mean over questions x of -log p(answer | x, s) / tokens small. Each step tries `width`
    strings that differ in one token, chosen by the gradient, and goes on from the best.

    Args:
        steps: most steps. width: strings tried a step (fewer where the tokenizer does not read them back as they are).
        length: tokens of the string. num: questions it is searched on, drawn by `seed`; all are then asked with it.
        place: suffix (but before a cue such as "Answer:" that ends the question), prefix, or infix (at the space
            nearest to the middle).
        held_out: score only the questions it was not searched on. The model is never shown an answer, but the string
            may spell parts of those it was searched on.
        at: growing numbers of steps after which the best string is measured, in place of `steps`; 0: "x x x ...".
        on: the stream to search on.
        search: more settings (`expunge.attacks.suffix.settings.Settings`): top_k, buffer, mellowmax, fluency, probe,
            max_queries, ban_target, operators, ...
    Returns: the subject with the best string in its prompts, one per budget, also where the search ends early because
        every answer is said. The event tells the loss, how many answers the string makes the model say whole, and the
        ids it was searched on. The string itself may spell parts of answers: it stands in the wrapper's rewrite alone,
        in no label and no record.
    Raises: DoesNotFit for models that are not causal, without a question that can hold the string, and when the
        tokenizer reads no changed string back; RecipeError for settings out of range.
    Cost: per step num * width queries (forwards of the changed part of a sequence) and num forwards and backwards.
        Queries are strings tried times questions they are tried on, all budgets up to this one together; asking every
        question with the string found is not counted.
    Judged: beside an oracle only. The search is told the answers, and may spell them to a model that never knew.
    Source: Zou et al. 2023 (arXiv 2307.15043), as in nanoGCG. Differences: a tenth of the strings is drawn at random;
        the string is read back inside the whole prompt; gradients of several questions are added, not each normalised;
        all questions count from the first step on; the default budget is small. Not built: enhanced GCG of Lucki et
        al. 2024 (arXiv 2409.18025), whose targets are what the original model says and whose loss has a term of
        hidden states; no setting of this attack reaches that.
    """
    check_causal(subject)
    budgets = growing(tuple(at) or (steps,), "attacks.gcg")
    settings = _settings(search or {}, steps=budgets[-1], width=width, seed=seed)
    for name, value in (("length", length), ("num", num)):
        if value < 1:
            raise RecipeError(f"attacks.gcg.{name}", f"got {value}", "accepted: 1 or more", "Correct the value")
    stream = stream_of(data, on, "attacks.gcg.on")
    problems = _problems(subject, stream, (length, num, seed, held_out), place)
    searched_on = {one.id for one in problems}
    exposed = exposed_of(stream, (one for one in stream.examples if held_out and one.id in searched_on))
    for step in milestones(problems, settings, budgets, run):
        yield _attacked(subject, problems, step, settings, exposed)


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


def _problems(subject: Subject, stream: Stream, how: tuple[int, int, int, bool], place: Place) -> list[Problem]:
    """The questions the string is searched on, in the order of the stream."""
    length, num, seed, held_out = how
    questions = questions_of(subject, stream)
    if len(questions) < 1 + held_out:
        more = " and to score" if held_out else ""
        raise DoesNotFit(f"stream '{stream.name}' holds too few questions to search on{more}")
    order = np.random.default_rng(seed).permutation(len(questions))
    limit = min(num, len(questions) - held_out)
    found = problems_of(subject, [questions[int(row)] for row in order], length=length, place=place, limit=limit)
    place_of = {one.id: number for number, one in enumerate(questions)}
    return sorted(found, key=lambda problem: place_of[problem.id])


def _attacked(
    subject: Subject, problems: Sequence[Problem], step: Step, settings: Settings, exposed: frozenset[str]
) -> Subject:
    put = problems[0].put(step.ids)
    ids = [problem.id for problem in problems]
    hyper = {
        "steps": step.number, "width": settings.width, "length": len(step.ids), "place": put.place,
        "loss": round(step.loss, 6), "said": step.solved, "searched_on": ids,
    }
    event = Event("attack", "gcg", hyper, step.cost, exposed)
    return subject.after(event, wrapper=putting(subject.wrapper, put))
