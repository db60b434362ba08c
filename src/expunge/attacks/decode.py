"""Other ways to choose an answer from what the model says; the weights and the questions stay as they are.

They change what metrics of generated text see (the sample table). Teacher-forced metrics, and metrics that say
themselves how they draw, are the same as without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from expunge.data.texts import asked_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.measure.decoding import cannot_guide
from expunge.measure.sampled import Taste
from expunge.measure.samples import check_memory
from expunge.measure.tables import NotMeasured
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject

ORIGINAL = "original"


@attack("sampling", changes="decoding", says="{num} answers drawn for every question at temperature {temperature:g}")
def sampling(
    subject: Subject, data: Data, run: Run, *, num: int = 16, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, seed: int = 0,
) -> Iterator[Subject]:
    """Ask every question many times and count the answer that gives most away.

    p(v) ~ exp(logit(v) / temperature) over the top_k likeliest tokens and of these the likeliest that hold top_p of the
    probability. Of the `num` answers the one closest to the reference by ROUGE-L recall counts, so that every metric
    of generated text becomes the worst of `num` (leak@num). The metric `leak_at_k` does the same for a leak alone, and
    for every k up to `num` from one set of draws; with the same settings it sees the same answers.

    Args:
        num: answers to each question, >= 1. temperature: > 0. top_k: 0 = all tokens. top_p: in (0, 1]. seed: of the
            draws; those of an example depend on nothing else than this, its id and the number of the answer.
    Returns: one subject that answers like that.
    Raises: RecipeError for values out of range; DoesNotFit for models and data that ask for no text, and where an
        attack before this one has already said how answers are drawn.
    Cost: `num` queries a question, each an answer drawn; no training. Measuring it costs as many generations.
    Source: Reisizadeh et al. 2025 (arXiv 2511.04934), leak@k: one greedy answer hides what many show. Difference: the
        closest answer counts for every metric, instead of an expectation over choices of k.
    """
    questions = check_askable(subject, data)
    yield _drawing(subject, questions, num, Taste(temperature, top_p, top_k=top_k, where="attacks.sampling"), seed)


@attack(
    "temperature_sweep", changes="decoding", says="{num} answers drawn for every question at temperature {temperatures}"
)
def temperature_sweep(
    subject: Subject, data: Data, run: Run, *, temperatures: tuple[float, ...] = (0.5, 1.0, 1.5), num: int = 16,
    seed: int = 0,
) -> Iterator[Subject]:
    """Ask every question many times at several temperatures.

    At a low temperature an answer that is merely second comes up where the model is unsure; at a high one what was
    pressed down comes up at all. Otherwise as `sampling`.

    Args:
        temperatures: one or more, each > 0. num: answers to each question and temperature, >= 1. seed: of the draws.
    Returns: one subject per temperature, in order.
    Raises: as `sampling`.
    Cost: `num` queries a question and temperature; the cost of a subject includes those before it.
    Source: ours; leak@k of Reisizadeh et al. 2025 (arXiv 2511.04934) at several temperatures.
    """
    if not temperatures:
        raise RecipeError("attacks.temperature_sweep.temperatures", "none", "one number or more", "Name some")
    tastes = [Taste(temperature, where="attacks.temperature_sweep") for temperature in temperatures]
    questions = check_askable(subject, data)
    for tried, taste in enumerate(tastes, 1):
        changed = _drawing(subject, questions, num, taste, seed, tried)
        event = changed.lineage[-1]
        told = replace(event, hyper={**event.hyper, "temperatures": f"{taste.temperature:g}"})
        yield replace(changed, lineage=(*subject.lineage, told))


@attack("beam", changes="decoding", says="the likeliest answer of a search with {beams} beams")
def beam(subject: Subject, data: Data, run: Run, *, beams: int = 8) -> Iterator[Subject]:
    """Search for the likeliest whole answer instead of the likeliest next token.

    argmax over answers y of sum_t log p(y_t | question, y_<t), `beams` beginnings kept at every step. A removal that
    only makes the first token of the answer unlikely loses against the sum over the rest.

    Args:
        beams: beginnings kept, >= 2.
    Returns: one subject that answers like that.
    Raises: RecipeError for less than 2 beams; DoesNotFit as `sampling`, and where another model guides the answers.
    Cost: one query a question, for one answer, however many sequences it is chosen from.
    Source: beam search as in transformers, without its reward for length: the sum decides, and short answers are
        likely ones. Not from a paper on unlearning.
    """
    if beams < 2:
        raise RecipeError("attacks.beam.beams", f"got {beams}", "accepted: 2 or more", "Correct the value")
    questions = check_askable(subject, data)
    check_undrawn(subject)
    if subject.decoding.guide:
        raise DoesNotFit("a beam search does not know how to follow a guide")
    event = Event("attack", "beam", {"beams": beams}, Cost(queries=questions))
    yield subject.after(event, decoding=replace(subject.decoding, beams=beams))


@attack(
    "contrastive", changes="decoding", helpers=(ORIGINAL,), judged="oracle",
    says="answers steered to what the model before the removal says more strongly, {guidance:g} times",
)
def contrastive(subject: Subject, data: Data, run: Run, *, guidance: float = 1.0) -> Iterator[Subject]:
    """Follow the difference between the model before and after the removal: what was taken away stands out.

    next token = argmax of (1 + w) log p_before - w log p_after, over the tokens that are at most 5 nats less likely to
    the model before than its best one. w = 0 is the model before itself.

    Args:
        guidance: w, >= 0.
    Returns: one subject that answers like that. It shows what an attacker gets who kept the old model, and he could
        have asked that one: a value as high as the oracle's under the same attack is no failure of the removal, for
        even a model that never saw the data marks by contrast what it lacks. Only more than the oracle's is.
    Raises: RecipeError for a negative weight; DoesNotFit where the model before the removal is not there, cuts texts
        into other tokens, or keeps no keys and values, and for models that are not causal.
    Cost: one query a question of each of two models: an answer of the one takes a reading of both.
    Judged: beside an oracle only. The answers are steered by the model that knows them.
    Source: Wu et al. 2025 (arXiv 2505.24379) with their released settings: w = 1 and tokens within 5 nats of the
        guide's best, greedily. Difference: they give half of a text away and continue it; here the question alone is.
    """
    if not (0 <= guidance < math.inf):
        raise RecipeError("attacks.contrastive.guidance", f"got {guidance!r}", "accepted: 0 or more", "Correct it")
    questions = check_askable(subject, data)
    helper = subject.helpers.get(ORIGINAL)
    if helper is None:
        raise DoesNotFit("the model before the removal was not given")
    why = cannot_guide(subject, helper)
    if why or subject.decoding.beams > 1:
        raise DoesNotFit(why or "a beam search does not know how to follow a guide")
    event = Event("attack", "contrastive", {"guidance": guidance}, Cost(queries=2 * questions))
    yield subject.after(event, decoding=replace(subject.decoding, guide=ORIGINAL, guidance=guidance))


def check_askable(subject: Subject, data: Data) -> int:
    """How many questions of the streams that must not be known the model can be asked.

    Raises: DoesNotFit where it cannot be asked for a text, or nothing is asked.
    """
    if subject.task not in ("causal", "seq2seq"):
        raise DoesNotFit(f"a {subject.task} model cannot be asked for a text")
    try:
        if subject.task == "causal":
            check_memory(subject.model)
    except NotMeasured as reason:
        raise DoesNotFit(str(reason)) from reason
    streams = [stream for stream in asked_of(data, subject.wrapper).values() if stream.role in ("forget", "probe")]
    questions = sum(bool(example.prompt) for stream in streams for example in stream.examples)
    if not questions:
        raise DoesNotFit("no example of the forget set asks a question")
    return questions


def check_undrawn(subject: Subject) -> None:
    """Refuse a subject whose answers are drawn at random or searched for: there is one way at a time.

    Raises: DoesNotFit.
    """
    if subject.decoding.temperature or subject.decoding.beams > 1:
        raise DoesNotFit("an attack before this one has already said how answers are drawn")


def _drawing(subject: Subject, questions: int, num: int, taste: Taste, seed: int, tried: int = 1) -> Subject:
    """The subject with answers drawn at random. tried: how many settings there have been with this one."""
    if num < 1:
        raise RecipeError(f"{taste.where}.num", f"got {num}", "accepted: 1 or more", "Correct the value")
    check_undrawn(subject)
    drawn: dict[str, Any] = {name: getattr(taste, name) for name in ("temperature", "top_k", "top_p")}
    drawn |= {"num": num, "seed": seed}
    event = Event("attack", taste.where.removeprefix("attacks."), drawn, Cost(queries=tried * num * questions))
    return subject.after(event, decoding=replace(subject.decoding, **drawn))
