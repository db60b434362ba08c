"""Schedules: how often the training of a stage runs, and on which part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Protocol

import numpy as np

from expunge.data.examples import stream_of
from expunge.errors import RecipeError, close_to
from expunge.measure.plan import Plan, measure
from expunge.registry import Kind, register
from expunge.run import Run
from expunge.scoring import label, needs_of, score
from expunge.types import Bound, Data, Event, Subject, Term, Visit


class Train(Protocol):
    """One training with an optimiser of its own."""

    @property
    def terms(self) -> Sequence[Term]: ...

    def __call__(self, subject: Subject, data: Data, run: Run) -> Subject: ...


def part(run: Run, index: int) -> Run:
    """The run of the `index`-th training; from the second on its draws are others, so that retain rows are not the
    same few in every piece and made streams differ from round to round."""
    return run.at(index) if index == 0 else replace(run.at(index), seed=part_seed(run.seed, index))


def part_seed(seed: int, index: int) -> int:
    """Seed of the `index`-th training of a schedule, index > 0."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@register("schedule", "once")
def once(subject: Subject, data: Data, run: Run, train: Train) -> Subject:
    """One training over all data."""
    return train(subject, data, run)


@register("schedule", "chunked")
def chunked(
    subject: Subject,
    data: Data,
    run: Run,
    train: Train,
    *,
    chunks: int | None = None,
    size: int | None = None,
    on: str = "forget",
    metrics: Annotated[Any, Kind("metric", many=True)] = ("memorization_accuracy",),
) -> Subject:
    """Sequential requests: one training per piece of a stream, each from the last weights with its own stop rule.

    After each piece all pieces so far are measured again, because earlier ones can come back. Thresholds of `until`
    are those of the model before the first piece; the reference `start` of a term is what the piece before left (name
    a helper, a `branch` before this stage, to compare with the original). `steps` and `epochs` count per piece.

    Args:
        chunks: number of pieces, as equal as can be; or size: examples of a piece. Neither: one piece.
        on: the stream to cut; streams that follow its draws are cut alike.
        metrics: measured on every piece after every training, written to the log and the lineage.
    Source: sequential unlearning of Jang et al. 2022 (arXiv 2210.01504).
    """
    cut = {name for name, stream in data.items() if name == on or stream.follows == on}
    read = {name.partition(":")[0] for term in train.terms for name in term.on}
    if not cut & read:
        raise RecipeError(
            "schedule.on", f"no term stands on '{on}' or on a stream that follows it", close_to(on, read),
            "Cut a stream that is trained on",
        )
    bounds = _cuts(len(stream_of(data, on, "schedule.on")), chunks, size)
    pieces = [_cut(data, on, a, b) for a, b in pairwise(bounds)]
    measured: dict[str, dict[str, float | None]] = {}
    for index, piece in enumerate(pieces):
        subject = train(subject, piece, part(run, index))
        seen = pieces[: index + 1]
        measured = {f"{on}[{number}]": _values(subject, one, on, metrics) for number, one in enumerate(seen)}
        steps = subject.lineage[-1].hyper.get("steps", 0)
        run.at(index).log({"step": steps, "piece": index, "measured": measured})
    return subject.after(Event("schedule", "chunked", {"pieces": len(pieces), "measured": measured}))


@register("schedule", "iterate")
def iterate(
    subject: Subject,
    data: Data,
    run: Run,
    train: Train,
    *,
    rounds: int = 3,
    make: Annotated[Any, Kind("stage", many=True)] = (),
) -> Subject:
    """Make streams anew, then train; again and again.

    Args:
        rounds: how often. make: stages run before each training (relabel, sample, translate, ...).
    """
    if rounds < 1:
        raise RecipeError("schedule.rounds", f"got {rounds}", "accepted: 1 or more", "Correct the value")
    for number in range(rounds):
        mine = part(run, number)
        for index, stage in enumerate(make):
            subject = stage(subject, data, mine.at(index))
        subject = train(subject, data, mine.at(len(make)))
    return subject


@register("schedule", "inject")
def inject(
    subject: Subject, data: Data, run: Run, train: Train, *, stream: str, at: int, updates: int = 1,
    into: str | None = None,
) -> Subject:
    """Show the model other examples for some steps of a training, and go on without them as if nothing had been.

    steps 0..at-1 as always, `updates` steps on `stream`, the rest as always: one training with one optimiser, whose
    state carries the visit for a few steps. What becomes of it is told by `watch: dynamics`, against a stream of the
    same kind that is never trained on.

    Args:
        stream: whose examples are shown. at: steps before. updates: steps on them, all of them at each step where they
            fit into a batch.
        into: the stream they take the place of; None: the first term's first.
    Raises: DataError for a stream that does not exist; RecipeError for a place that no term trains on.
    Source: the special batch of Tirumala et al. 2022 (arXiv 2205.10770).
    """
    read = [name.partition(":")[0] for term in train.terms for name in term.on]
    place = read[0] if into is None else into
    if place not in read:
        raise RecipeError("schedule.into", f"no term stands on '{place}'", close_to(place, read), "Correct 'into'")
    for name, value, least in (("at", at, 0), ("updates", updates, 1)):
        if value < least:
            raise RecipeError(f"schedule.{name}", f"got {value}", f"accepted: {least} or more", "Correct the value")
    shown = stream_of(data, stream, "schedule.stream")
    visited = replace(stream_of(data, place, "schedule.into"), visit=Visit(stream, shown.examples, at, updates))
    return train(subject, Data({**data, place: visited}), run)


def _cuts(length: int, chunks: int | None, size: int | None) -> list[int]:
    if chunks is not None and size is not None:
        raise RecipeError("schedule", "both 'chunks' and 'size'", "one of the two", "Remove one")
    given = size if size is not None else chunks
    if given is not None and not 1 <= given <= length:
        name = "size" if size is not None else "chunks"
        raise RecipeError(f"schedule.{name}", f"got {given}", f"1 to {length}, the examples there are", "Correct it")
    if size is not None:
        return [*range(0, length, size), length]
    pieces = chunks or 1
    return [round(i * length / pieces) for i in range(pieces + 1)]


def _cut(data: Data, on: str, start: int, stop: int) -> Data:
    """The same streams, with `on` and those that follow it row by row reduced to some rows."""
    whole, cut = len(data[on]), Data(data)
    for name, stream in data.items():
        copies, rest = divmod(len(stream), whole)
        if name == on or (stream.follows == on and not rest):
            cut[name] = replace(stream, examples=stream.examples[start * copies : stop * copies])
    return cut


def _values(subject: Subject, data: Data, on: str, metrics: list[Bound]) -> dict[str, float | None]:
    plan = Plan()
    for metric in metrics:
        plan.add(on, needs_of(metric))
    measured = measure(subject, data, plan, device=str(subject.model.device))
    return {label(metric): score(metric, on, measured).value for metric in metrics}
