"""Watching a training: what the model predicts of some streams, measured at chosen steps while its weights move.

    expunge train RECIPE, `watch:` in a recipe, `watched(stage, ...)`, or `expunge.trainer.DynamicsCallback`

A watch is a registered function `(subject, data, run, course, **hyper) -> Watcher`; the training calls its watcher
before the first step and after every one. Nothing is moved: no gradients, no dropout, no random number is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from expunge.data.texts import Encoded, Text, render, texts_of
from expunge.data.tokenise import encode
from expunge.dynamics import Reading, by_tag, record_of
from expunge.errors import DataError, RecipeError, close_to
from expunge.measure.tokens import measure_tokens
from expunge.models import context_length
from expunge.recipe import watched as watched
from expunge.registry import register
from expunge.run import WATCHED, Run
from expunge.tagging import Tagger, tagger_of, tags_of_pieces
from expunge.types import Cost, Data, Subject, Visit

MOST_EPOCHS = 64  # looks of a watch that looks once a pass; beyond, it skips passes
FRAGILE = 1e-3  # logits nearer than this may change places by rounding


@dataclass(frozen=True)
class Course:
    """The training that is watched: its steps, how many make a pass over the data, and what visits it."""

    total: int
    per_epoch: float
    visit: Visit | None = None

    def epoch(self, step: int) -> float:
        """Passes over the training data after `step` steps; those of a visit do not count."""
        before = step
        if self.visit is not None:
            before -= min(max(0, step - self.visit.at), self.visit.updates)
        return before / self.per_epoch


class Watcher(Protocol):
    """What a training calls: `after(0)` before its first step, then after every step."""

    def after(self, step: int, *, last: bool = False) -> Cost:
        """Look, if it is time; returns what that took. last: the training ends here."""
        ...


@dataclass(frozen=True, eq=False)
class _Probed:
    """One stream, tokenised and tagged once."""

    name: str
    texts: Sequence[Text]
    encoded: Sequence[Encoded]
    tags: Sequence[Sequence[str]] | None  # per text, of its counted tokens


class DynamicsProbe:
    """Readings of streams by the token instrument: hits and counts as integers, per example and per part of speech.

    Args:
        on: stream names, also variants ("train:identified"); None: every stream.
        tagger: patterns, nltk, spacy, none, or module:function.
        most: examples of each stream that are read, the first ones; None: all.
    Raises: DataError for a stream that does not exist; what the tagger raises.
    Cost of `measure`: 1 forward per example; tokenised and tagged once.
    """

    def __init__(
        self, subject: Subject, data: Data, *, on: Iterable[str] | None = None, tagger: str = "patterns",
        most: int | None = 256, device: str = "cpu",
    ) -> None:
        self.subject, self.device = subject, device
        made = tagger_of(tagger) if subject.task in ("causal", "masked") else None
        self.streams = [self._probed(data, name, made, most) for name in (on if on is not None else data)]

    def _probed(self, data: Data, name: str, tagger: Tagger | None, most: int | None) -> _Probed:
        base, _, variant = name.partition(":")
        if base not in data:
            raise DataError(f"watch.on: {name}", "no such stream", close_to(base, data), "Correct 'on'")
        stream = replace(data[base], examples=data[base].examples[:most])
        try:
            texts = texts_of(stream, variant or "answer", self.subject.wrapper.ask, data)
        except LookupError as error:
            raise DataError(f"watch.on: {name}", str(error), "what the examples have", "Correct 'on'") from error
        encoded = encode(self.subject, texts, limit=context_length(self.subject), where=name)
        tags = None
        if tagger is not None:
            tags = [_tags(self.subject, text, one, tagger) for text, one in zip(texts, encoded, strict=True)]
        return _Probed(name, texts, encoded, tags)

    @property
    def cost(self) -> Cost:
        """Of one measurement."""
        rows = [one for stream in self.streams for one in stream.encoded]
        return Cost(forwards=len(rows), tokens=sum(one.size for one in rows))

    def measure(self) -> list[Reading]:
        """One reading per stream, of the weights as they are now; the model's mode is put back."""
        model = self.subject.model
        was_training = bool(model.training)
        model.eval()
        try:
            pooled = [one for stream in self.streams for one in stream.encoded]
            rows = measure_tokens(self.subject, pooled, ("margin",), device=self.device)
        finally:
            model.train(was_training)
        readings, start = [], 0
        for stream in self.streams:
            mine = rows[start : start + len(stream.encoded)]
            start += len(stream.encoded)
            readings.append(_reading(stream, mine))
        return readings


def _reading(stream: _Probed, rows: Sequence[Mapping[str, np.ndarray]]) -> Reading:
    hits = [row["argmax"] for row in rows]
    tags = {}
    if stream.tags is not None:
        tags = by_tag([tag for one in stream.tags for tag in one], [hit for one in hits for hit in one])
    names = [text.id if text.item == 0 else f"{text.id}#{text.item}" for text in stream.texts]
    tokens = sum(len(one) for one in hits)
    nll = -math.fsum(float(value) for row in rows for value in row["logp"]) / tokens
    fragile = sum(int((row["margin"] < FRAGILE).sum()) for row in rows)
    return Reading(
        stream.name, sum(int(one.sum()) for one in hits), tokens, nll, fragile,
        sum(bool(one.all()) for one in hits), len(rows), tags,
        {name: (int(one.sum()), len(one)) for name, one in zip(names, hits, strict=True)},
    )


def _tags(subject: Subject, text: Text, one: Encoded, tagger: Tagger) -> list[str]:
    """Tags of the counted tokens of a text, by character offsets of the text as the model reads it."""
    whole, _, start = render(subject.wrapper, subject.tokenizer, text.prompt, text.answer)
    special = subject.task == "masked" or subject.wrapper.template != "chat" or not text.prompt
    out = subject.tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
    pieces = [*out["offset_mapping"], (0, 0)][: len(one)]  # the end token that is added has no characters
    tags = tags_of_pieces(whole, tagger(text.answer), pieces, start)
    return [tag for tag, counted in list(zip(tags, one.counted, strict=True))[1:] if counted]


def grid(every: str | int, course: Course) -> frozenset[int]:
    """Steps after which to look: at each "epoch" (64 of them at most), at "powers" of two, or every so many steps.

    Before the first step and after the last one always.

    A visit adds the moment before it, the one after its last update, and 1, 2, 4, 8, ... steps after that.

    Raises: RecipeError for another `every`.
    """
    total = course.total
    if every == "epoch":
        visit = course.visit
        gap = visit.updates if visit is not None else 0
        passes = int(total / course.per_epoch) + 1
        apart = math.ceil((passes - 1) / MOST_EPOCHS) or 1
        ends = (round(number * course.per_epoch) for number in range(apart, passes + 1, apart))
        steps = {end + gap if visit is not None and end > visit.at else end for end in ends}
    elif every == "powers":
        steps = _powers(total)
    elif isinstance(every, int) and not isinstance(every, bool) and every > 0:
        steps = set(range(0, total, every))
    else:
        raise RecipeError("watch.every", f"got {every!r}", "epoch, powers, or a number of steps", "Correct the value")
    if course.visit is not None:
        left = course.visit.at + course.visit.updates
        steps |= {course.visit.at, left, *(left + power for power in _powers(total))}
    return frozenset(step for step in {0, total, *steps} if 0 <= step <= total)


def _powers(most: int) -> set[int]:
    return {2**power for power in range(most.bit_length())}


@dataclass(frozen=True, eq=False)
class Dynamics:
    """The watcher of `dynamics`: one record per stream and look, into `dynamics.jsonl` and into `records`."""

    probe: DynamicsProbe
    steps: frozenset[int]
    course: Course
    run: Run
    visit: Mapping[str, Any]
    each: bool
    records: list[dict[str, Any]] = field(default_factory=list, init=False)

    def after(self, step: int, *, last: bool = False) -> Cost:
        if step not in self.steps and not last:
            return Cost()
        for reading in self.probe.measure():
            kept = reading if self.each else replace(reading, each={})
            record = record_of(kept, step, self.course.epoch(step)) | ({"visit": self.visit} if self.visit else {})
            self.records.append(record)
            self.run.log(record, WATCHED)
        return self.probe.cost


@register("watch", "dynamics")
def dynamics(
    subject: Subject, data: Data, run: Run, course: Course, *, on: list[str] | None = None, every: str | int = "epoch",
    tagger: str = "patterns", most: int | None = 256, control: str | None = None, each: bool = True,
) -> Dynamics:
    """What the model predicts exactly, by stream, part of speech and example, while it is trained.

    M = #(argmax == token) / #tokens, teacher forced, a ratio of sums; beside it the negative log-likelihood, whole
    examples that are exact, and fragile hits. Written to `dynamics.jsonl`; the report draws it and says when M reached
    0.4, 0.6, 0.8 and 0.9.

    Args:
        on: streams to look at, also variants ("train:identified"); null: all.
        every: "epoch" (once a pass, 64 times at most), "powers" (of two) or a number of steps; before the first step
            and after the last one always, and 1, 2, 4, ... steps after a visit (`schedule: inject`).
        tagger: "patterns" (lists, capitals and endings; no model), "nltk", "spacy", "none", or module:function.
        most: examples of each stream, the first ones; null: all.
        control: stream that is never trained on, against which a visit is held; null: the first with role holdout.
        each: keep hits and tokens of every example.
    Raises: DataError for a stream that does not exist; MissingExtra or ModelError of the tagger; RecipeError.
    Cost: 1 forward per example and look.
    Source: Tirumala et al. 2022 (arXiv 2205.10770), no code released. Difference: a level is reached on the grid of
        the looks; the crossing between two looks stands beside it.
    """
    if control is not None and control not in data:
        raise DataError("watch.control", f"no stream '{control}'", close_to(control, data), "Correct the name")
    probe = DynamicsProbe(subject, data, on=on, tagger=tagger, most=most, device=run.device)
    return Dynamics(probe, grid(every, course), course, run, _visit_of(course, data, control), each)


def _visit_of(course: Course, data: Data, control: str | None) -> dict[str, Any]:
    """What the records say of a visit: its stream, its steps and what it is held against."""
    if course.visit is None:
        return {}
    never = [stream.name for stream in data.of_role("holdout") if stream.name != course.visit.name]
    return {
        "stream": course.visit.name, "at": course.visit.at, "updates": course.visit.updates,
        "control": control or next(iter(never), None),
    }
