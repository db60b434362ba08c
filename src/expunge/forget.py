"""The one training loop. Unlearning, fine-tuning, relearning and pre-training are all this.

    for step: draw rows (a pure function of seed and step) -> micro-batches of similar length
              -> one forward per stream for all terms on it -> backward -> sum over ranks -> mask, clip, step

Losses are divided once by the count of the whole step, so neither micro-batches nor ranks change the result.
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from expunge import dist
from expunge.data.tokenise import Encoded, by_length, collate, encode, texts_of
from expunge.errors import DataError, NonFinite, RecipeError, close_to
from expunge.measure.forward import kept_logits, make_pass, narrow
from expunge.models import ExpungeWarning, context_length
from expunge.reference import Reference
from expunge.registry import Kind, bind, stage
from expunge.run import Run
from expunge.types import Bound, Cost, Data, Event, Movable, Pass, Subject, Term, View
from expunge.until import Predicate
from expunge.updates import Updater

MICRO_TOKENS = 4096  # padded tokens of one forward with gradients


def draw(num_rows: int, size: int, seed: int, key: str, step: int) -> list[int]:
    """Rows of a step: consecutive pieces of one seeded permutation per pass over the data.

    A pure function of its arguments, so resuming needs no loader state. Streams with the same key draw the same rows.
    """
    spots = np.arange(step * size, (step + 1) * size)
    rows = np.empty(size, dtype=np.int64)
    for epoch in np.unique(spots // num_rows):
        order = np.random.default_rng([seed, zlib.crc32(key.encode()), int(epoch)]).permutation(num_rows)
        here = spots // num_rows == epoch
        rows[here] = order[spots[here] % num_rows]
    return [int(row) for row in rows]


@dataclass(frozen=True, eq=False)
class Feed:
    """An encoded stream (or a variant of one, "forget:alternative") and the key of its draws."""

    name: str
    key: str
    encoded: Sequence[Encoded]


def make_feed(subject: Subject, data: Data, name: str) -> Feed:
    """Encode the stream a term names.

    Raises: DataError for a stream or variant that does not exist, or a text longer than the context.
    """
    base, _, variant = name.partition(":")
    if base not in data:
        raise DataError(
            f"stream '{name}'", "no such stream", close_to(base, data), "Add it under data, or correct 'on'"
        )
    stream = data[base]
    try:
        texts = texts_of(stream, variant or "answer")
    except LookupError as error:
        raise DataError(f"stream '{name}'", str(error), "a field the examples have", "Correct 'on'") from error
    encoded = encode(subject, texts, limit=context_length(subject), where=name)
    return Feed(name, stream.follows or base, encoded)


@dataclass
class Forget:
    """One training run over a subject's weights, in place. Iterate `run()`; stop whenever you like."""

    subject: Subject
    data: Data
    terms: Sequence[Term]
    movable: Movable
    updater: Updater
    steps: int
    batch_size: int
    seed: int = 0
    device: str = "cpu"
    cost: Cost = field(default_factory=Cost, init=False)

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(name for term in self.terms for name in term.on))
        self.feeds = {name: make_feed(self.subject, self.data, name) for name in names}
        self._check_terms()
        self.groups = _linked(self.terms)
        self.reference = self._measure_reference()

    def _check_terms(self) -> None:
        """A term must count something, and one over several streams must see the same examples row by row."""
        for term in self.terms:
            first, *others = (self.feeds[name] for name in term.on)
            if not any(_count(one, term.tokens) for one in first.encoded):
                raise DataError(
                    f"term {term.label}",
                    f"no token counts under tokens: {term.tokens}",
                    "examples with spans, or tokens: answer",
                    "Add 'spans' to the examples, or change 'tokens'",
                )
            ids = [one.id for one in first.encoded]
            for other in others:
                if [one.id for one in other.encoded] != ids or other.key != first.key:
                    raise DataError(
                        f"term {term.label}",
                        f"'{other.name}' does not hold the examples of '{first.name}' row by row",
                        "streams of the same examples (a field such as forget:alternative, or a relabelled stream)",
                        "Complete the field in every row, or make the stream with the stage relabel",
                    )

    def _rows(self, feed: Feed, step: int) -> list[int]:
        size = min(self.batch_size, len(feed.encoded))
        return draw(len(feed.encoded), size, self.seed, feed.key, step)

    def _measure_reference(self) -> Reference:
        wanted = {name for term in self.terms if "ref" in _needs(term) for name in term.on}
        vocab = sorted({name for term in self.terms if "ref_vocab" in _needs(term) for name in term.on})
        rows = {
            name: sorted({row for step in range(self.steps) for row in self._rows(self.feeds[name], step)})
            for name in sorted(wanted)
        }
        reference = Reference(self.subject.model, self.movable, device=self.device)
        reference.measure({name: (self.feeds[name].encoded, kept) for name, kept in rows.items()}, vocab)
        self.cost += Cost(forwards=reference.forwards)
        return reference

    def run(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Train from step `start`; yields one record a step, after the weights have moved."""
        for step in range(start, self.steps):
            begun = time.perf_counter()
            values, tokens = self._accumulate(step)
            loss = sum(term.weight * values[term.label] for term in self.terms)
            if not np.isfinite(loss):
                self.updater.optimizer.zero_grad(set_to_none=True)
                raise NonFinite(
                    f"step {step}",
                    "the loss is " + ", ".join(f"{k} = {v:g}" for k, v in values.items()),
                    "finite losses; the weights were not moved by this step",
                    "Lower lr, or bound the forget term",
                )
            dist.sum_gradients(self.movable.parameters.values())
            norm = self.updater.step(step, self.steps)
            rate = self.updater.optimizer.param_groups[0]["lr"]
            seconds = time.perf_counter() - begun
            self.cost += Cost(steps=1, tokens=tokens, seconds=seconds)
            yield {
                "step": step,
                "loss": float(loss),
                "terms": values,
                "grad_norm": norm,
                "lr": rate,
                "tokens": tokens,
                "seconds": round(seconds, 4),
            }

    def _accumulate(self, step: int) -> tuple[dict[str, float], int]:
        """Gradients of one step, all micro-batches; returns each term's value and the tokens read here."""
        values: dict[str, float] = {}
        read = 0
        for terms in self.groups:
            names = list(dict.fromkeys(name for term in terms for name in term.on))
            rows = {name: self._rows(self.feeds[name], step) for name in names}
            divisors = {term.label: self._divisor(term, rows) for term in terms}
            size = min(len(r) for r in rows.values())
            spots = dist.shard(range(size))
            lengths = [sum(len(self.feeds[name].encoded[rows[name][i]]) for name in names) for i in spots]
            totals = dict.fromkeys(divisors, 0.0)
            for group in by_length(lengths, MICRO_TOKENS):
                mine = {name: [rows[name][spots[i]] for i in group] for name in names}
                read += sum(lengths[i] for i in group)
                losses = self._losses(terms, mine)
                total = sum(term.weight * losses[term.label].sum() / divisors[term.label] for term in terms)
                if isinstance(total, Tensor) and total.requires_grad:
                    total.backward()
                for label, loss in losses.items():
                    totals[label] += float(loss.detach().sum()) / divisors[label]
            values |= {label: dist.sum_number(value) for label, value in totals.items()}
        return values, read

    def _divisor(self, term: Term, rows: dict[str, list[int]]) -> float:
        if term.mean == "examples":
            return float(len(rows[term.on[0]]))
        first = self.feeds[term.on[0]].encoded
        return float(max(1, sum(_count(first[row], term.tokens) for row in rows[term.on[0]])))

    def _losses(self, terms: Sequence[Term], rows: dict[str, list[int]]) -> dict[str, Tensor]:
        """Loss per example of every term on one micro-batch; each stream runs forward once."""
        views: dict[tuple[str, str], View] = {}
        for name, mine in rows.items():
            batch = collate([self.feeds[name].encoded[row] for row in mine], device=self.device)
            here = [term for term in terms if name in term.on]
            masks = {term.tokens: batch.positions(term.tokens) for term in here}
            keep = torch.stack(list(masks.values())).any(0)
            needs = set().union(*(_needs(term) for term in here))
            logits, _ = kept_logits(self.subject.model, batch, keep)
            self.cost += Cost(forwards=len(mine), backwards=len(mine))
            now = make_pass(logits, batch, keep, with_logits="vocab" in needs)
            ref: Pass | None = None
            if "ref" in needs:
                ref = self.reference.view(name, mine, batch, keep, vocab="ref_vocab" in needs)
            for tokens, mask in masks.items():
                views[name, tokens] = View(narrow(now, mask), None if ref is None else narrow(ref, mask), batch)
        return {term.label: term.objective(*(views[name, term.tokens] for name in term.on)) for term in terms}


def _needs(term: Term) -> frozenset[str]:
    return frozenset(term.objective.meta.get("needs", ()))


def _count(one: Encoded, tokens: str) -> int:
    if tokens == "text":
        return len(one) - 1
    return int((one.spanned if tokens == "spans" else one.counted)[1:].sum())


def _linked(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms in groups that share streams: a group is one backward, so its streams' graphs live together."""
    groups: list[tuple[set[str], list[Term]]] = []
    for term in terms:
        streams, members = set(term.on), [term]
        for other in [group for group in groups if group[0] & streams]:
            streams |= other[0]
            members = other[1] + members
            groups.remove(other)
        groups.append((streams, members))
    return [members for _, members in groups]


@stage("forget")
def run_forget(
    subject: Subject,
    data: Data,
    run: Run,
    *,
    terms: Annotated[Any, Kind("objective", many=True)],
    scope: Annotated[Any, Kind("scope")] = "all",
    optimizer: Annotated[Any, Kind("optimizer")] = "adamw",
    lr: float = 1e-5,
    steps: int | None = None,
    epochs: float = 10.0,
    batch_size: int = 32,
    until: str | None = None,
) -> Subject:
    """Train the subject's weights (in place) on a weighted sum of objectives.

    Args:
        terms: objectives with `on` (stream names), `weight`, `mean`, `tokens` and their own arguments.
        scope: what may move. optimizer: adamw, muon or sgd with its schedule and clipping.
        lr: peak rate.
        steps: number of steps; None: `epochs` passes over the first term's first stream.
        batch_size: examples a step from each stream (the whole stream when it is smaller).
        until: stop early when metrics fall under bounds: "extraction_strength<holdout & memorization_accuracy<0.3".
    Returns: the subject with its lineage extended.
    Raises: NonFinite before a bad step; Interrupted with the state saved; DataError, RecipeError.
    Cost: 1 forward+backward per stream and step; references once per distinct example.
    """
    _check_numbers(lr, steps, epochs, batch_size)
    movable: Movable = scope(subject.model)
    if movable.model is not None and movable.model is not subject.model:
        kind = "adapter" if movable.adapter else "merge"
        subject = subject.after(Event(kind, scope.name, scope.hyper), model=movable.model)
    _warn_half(movable)
    updater: Updater = optimizer(movable, lr)
    total = _num_steps(steps, epochs, batch_size, data, terms)
    loop = Forget(subject, data, terms, movable, updater, total, batch_size, run.seed, run.device)
    stop = Predicate.parse(until, subject, data, batch_size=batch_size) if until else None  # bounds: the start model's
    start, done = _resume(run, movable, updater)
    final = start
    with run.stoppable():
        for record in [] if done else loop.run(start):
            final = record["step"] + 1
            met = stop is not None and stop.met(subject, data, final)
            run.log(record | ({"until": stop.values} if stop and stop.values else {}))
            run.stopped = dist.sum_number(float(run.stopped)) > 0  # a signal may reach the ranks in different steps
            run.progress("forget", final, total, f"loss {record['loss']:.3f}")
            if met or run.stopped or final == total or final % run.save_every == 0:
                run.save_state(final, _tensors(movable, updater), {"finished": met or final == total})
            run.check_stop()
            if met:
                break
    hyper = {"terms": [term.label for term in terms], "scope": scope.name, "steps": final, "lr": lr}
    if any("ref_vocab" in _needs(term) for term in terms):
        hyper["reference"] = loop.reference.way
    return subject.after(Event("stage", "forget", hyper, loop.cost))


def _warn_half(movable: Movable) -> None:
    half = {str(p.dtype) for p in movable.parameters.values() if p.dtype.itemsize < 4}
    if half and not movable.adapter:
        told = ExpungeWarning(
            "forget.scope",
            f"the weights that move are {', '.join(sorted(half))}",
            "float32, or scope: {use: lora}",
            "Small steps round to nothing in half precision: load with dtype float32",
        )
        warnings.warn(told, stacklevel=3)


def _check_numbers(lr: float, steps: int | None, epochs: float, batch_size: int) -> None:
    checks = (
        ("lr", lr, 0 <= lr < float("inf"), "0 or more"),
        ("steps", steps, steps is None or steps >= 1, "1 or more, or null for 'epochs' passes"),
        ("epochs", epochs, 0 < epochs < float("inf"), "more than 0"),
        ("batch_size", batch_size, batch_size >= 1, "1 or more"),
    )
    for name, value, fits, accepted in checks:
        if not fits:
            raise RecipeError(f"forget.{name}", f"got {value!r}", f"accepted: {accepted}", "Correct the value")


def _num_steps(steps: int | None, epochs: float, batch_size: int, data: Data, terms: Sequence[Term]) -> int:
    if not terms:
        raise RecipeError("terms", "an empty list", "at least one objective", "Add a term")
    labels = [term.label for term in terms]
    if len(set(labels)) < len(labels):
        raise RecipeError(
            "terms", f"the same objective on the same streams twice: {', '.join(labels)}", "one term each", "Merge them"
        )
    if steps is not None:
        return steps
    first = data.get(terms[0].on[0].partition(":")[0])
    return max(1, round(epochs * max(1.0, (len(first) if first else 1) / batch_size)))


def _tensors(movable: Movable, updater: Updater) -> dict[str, Tensor]:
    return {f"weight.{name}": parameter for name, parameter in movable.parameters.items()} | updater.state()


def _resume(run: Run, movable: Movable, updater: Updater) -> tuple[int, bool]:
    """Load the newest state of this stage; returns the step to go on from, and whether the stage had ended."""
    found = run.load_state()
    if found is None:
        run.trim_log(0)
        return 0, False
    step, tensors, meta = found
    with torch.no_grad():
        for name, parameter in movable.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
    updater.load(tensors)
    run.trim_log(step)
    return step, bool(meta["finished"])


def forget(**hyper: Any) -> Bound:
    """The stage as a value, for methods and recipes in Python: `forget(terms=[...], lr=1e-5)`."""
    return bind("stage", {"use": "forget", **hyper}, "forget")
