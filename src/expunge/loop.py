"""The one training loop. Unlearning, fine-tuning, relearning and pre-training are all this.

    for step: draw rows (a pure function of seed and step) -> micro-batches of similar length
              -> one forward per stream for all terms on it -> backward -> sum over ranks -> mask, clip, step

A perturbation may run the middle part several times. Losses are divided once by the count of the whole step, so
neither micro-batches nor ranks change the result.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import dist
from expunge.data.tokenise import Encoded, by_length, collate, encode, texts_of
from expunge.errors import DataError, NonFinite, RecipeError, close_to
from expunge.links import Link
from expunge.measure.forward import make_pass, narrow, run_model
from expunge.models import context_length
from expunge.perturb import Inside, Micro, Perturbation, nothing
from expunge.reference import Reference
from expunge.types import Batch, Cost, Data, Movable, Pass, Positions, Stream, Subject, Term, View, Visit
from expunge.updates import Updater

MICRO_TOKENS = 4096  # padded tokens of one forward with gradients
Rows = dict[str, list[int]]  # stream -> rows of a step or of a micro-batch


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
    """An encoded stream (or a variant of one, "forget:alternative") and the key of its draws.

    copies: rows for each row of the stream it follows; they stand together and are drawn together.
    visit: what takes the place of its own rows for some steps; its `guests` rows stand after all others.
    """

    name: str
    key: str
    encoded: Sequence[Encoded]
    copies: int = 1
    visit: Visit | None = None
    guests: int = 0

    def rows(self, size: int, seed: int, step: int) -> list[int]:
        """Rows of a step of at most `size` examples."""
        own, first, key = len(self.encoded) // self.copies - self.guests, 0, self.key
        if self.visit and step >= self.visit.at:
            if step < self.visit.at + self.visit.updates:
                own, first, key, step = self.guests, own, f"{key}:visit", step - self.visit.at
            else:
                step -= self.visit.updates
        drawn = draw(own, min(size, own), seed, key, step)
        return [(first + row) * self.copies + k for row in drawn for k in range(self.copies)]


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
    visiting = replace(stream, examples=stream.visit.examples) if stream.visit else None
    try:
        texts = texts_of(stream, variant or "answer", data=data)
        guests = texts_of(visiting, variant or "answer", data=data) if visiting else []
    except LookupError as error:
        raise DataError(f"stream '{name}'", str(error), "a field the examples have", "Correct 'on'") from error
    targets = None if variant else stream.targets
    encoded = encode(subject, [*texts, *guests], limit=context_length(subject), where=name, targets=targets)
    copies = 1 if variant or guests else copies_of(stream, data)
    return Feed(name, stream.follows or base, encoded, copies, stream.visit, len(guests))


def copies_of(stream: Stream, data: Data) -> int:
    """Rows of a stream for each row of the one it follows."""
    followed = data.get(stream.follows or "")
    return len(stream) // len(followed) if followed and len(stream) % len(followed) == 0 else 1


def layers_of(needs: Iterator[str] | Sequence[str] | frozenset[str], prefix: str) -> tuple[int, ...]:
    """Block numbers among needs such as "hidden:7"."""
    return tuple(sorted({int(need.partition(":")[2]) for need in needs if need.startswith(prefix + ":")}))


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
    perturb: Perturbation = field(default_factory=Perturbation)
    cost: Cost = field(default_factory=Cost, init=False)

    def __post_init__(self) -> None:
        linked = [str(t.link.hyper["stream"]) for t in self.terms if t.link and "stream" in t.link.hyper]
        names = [*(name for term in self.terms for name in term.on), *linked]
        self.feeds = {name: make_feed(self.subject, self.data, name) for name in dict.fromkeys(names)}
        check_terms(self.terms, self.feeds)
        self.perturb.check(self.subject.model, self.terms)
        self.groups = _linked(self.terms)
        self.references = self._measure_references()
        self.links: dict[str, Link] = {}
        for term in self.terms:
            self.links[term.label] = term.link(partial(self._mean_over, term)) if term.link else Link()

    # -- references and links, before training -------------------------------------------------------------------
    def _measure_references(self) -> dict[str, Reference]:
        """What each reference says about the rows that will be drawn; all rows where a link takes a mean over them."""
        asked: dict[str, dict[str, set[str]]] = {}  # reference -> stream -> needs
        whole: set[tuple[str, str]] = set()
        for term in self.terms:
            if "ref" not in term.needs:
                continue
            for name in term.on:
                asked.setdefault(term.reference, {}).setdefault(name, set()).update(term.needs)
            if term.link is not None:
                stream = str(term.link.hyper.get("stream", term.on[0]))
                reference = str(term.link.hyper.get("reference", term.reference))
                asked.setdefault(reference, {}).setdefault(stream, set()).update(term.needs)
                whole |= {(reference, stream), *((term.reference, name) for name in term.on)}
        found = {}
        for reference, streams in asked.items():
            made = self._reference(reference)
            rows = {
                name: range(len(self.feeds[name].encoded)) if (reference, name) in whole else self._drawn(name)
                for name in sorted(streams)
            }
            vocab = sorted(name for name, needs in streams.items() if "ref_vocab" in needs)
            layers = {name: layers_of(frozenset(needs), "ref_hidden") for name, needs in streams.items()}
            made.measure({name: (self.feeds[name].encoded, kept) for name, kept in rows.items()}, vocab, layers)
            self.cost += Cost(forwards=made.forwards)
            found[reference] = made
        return found

    def _drawn(self, name: str) -> list[int]:
        feed = self.feeds[name]
        return sorted({row for step in range(self.steps) for row in feed.rows(self.batch_size, self.seed, step)})

    def _reference(self, name: str) -> Reference:
        if name == "start":
            return Reference(self.subject.model, self.movable, device=self.device, task=self.subject.task)
        if name not in self.subject.helpers:
            raise DataError(
                f"reference '{name}'", "no such helper", close_to(name, ["start", *self.subject.helpers]),
                "Make it with the stage branch, or correct 'reference'",
            )
        other = self.subject.helpers[name].model
        return Reference(other, Movable({}), device=self.device, task=self.subject.task, frozen=other)

    @torch.no_grad()
    def _mean_over(self, term: Term, stream: str | None, reference: str | None) -> float:
        """The mean of a term's objective over all examples of a stream, weights as they are now."""
        names = term.on if stream is None else (stream,)
        asked = Term(term.objective, names, 1.0, term.mean, term.tokens, reference or term.reference)
        every = {name: list(range(len(self.feeds[name].encoded))) for name in names}
        total = 0.0
        for group in by_length([one.size for one in self.feeds[names[0]].encoded], MICRO_TOKENS):
            mine = {name: [int(row) for row in group] for name in names}
            total += float(self._losses([asked], mine, self._batches(mine))[asked.label].sum())
        return total / self._divisor(asked, every)

    # -- training ------------------------------------------------------------------------------------------------
    def run(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Train from step `start`; yields one record a step, after the weights have moved."""
        for step in range(start, self.steps):
            begun = time.perf_counter()
            values, tokens = self._accumulate(step)
            loss = sum(term.weight * self.links[term.label].value(values[term.label]) for term in self.terms)
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
            for label, link in self.links.items():
                link.after(values[label])
            rate = self.updater.optimizer.param_groups[0]["lr"]
            seconds = time.perf_counter() - begun
            self.cost += Cost(steps=1, tokens=tokens, seconds=seconds)
            yield {
                "step": step,
                "loss": float(loss),
                "terms": values,
                **self._multipliers(),
                "grad_norm": norm,
                "lr": rate,
                "tokens": tokens,
                "seconds": round(seconds, 4),
            }

    def _multipliers(self) -> dict[str, Any]:
        moving = {label: link.state for label, link in self.links.items() if link.state}
        return {"links": moving} if moving else {}

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides weights and optimiser, as tensors."""
        return {f"link.{label}": torch.tensor(link.state, dtype=torch.float64) for label, link in self.links.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for label, link in self.links.items():
            link.state = [float(number) for number in tensors[f"link.{label}"]]

    def _accumulate(self, step: int) -> tuple[dict[str, float], int]:
        """Gradients of one step; returns each term's mean and the tokens read here."""
        values: dict[str, float] = {}
        read = 0
        for terms in self.groups:
            names = list(dict.fromkeys(name for term in terms for name in term.on))
            means, tokens = self.perturb.around(names, self.movable, partial(self._group, terms, names, step))
            values |= means
            read += tokens
        return values, read

    def _group(self, terms: Sequence[Term], names: Sequence[str], step: int) -> tuple[dict[str, float], int]:
        """Gradients of the terms of one group, all micro-batches."""
        rows = {name: self.feeds[name].rows(self.batch_size, self.seed, step) for name in names}
        divisors = {term.label: self._divisor(term, rows) for term in terms}
        spots = dist.shard(range(min(len(r) for r in rows.values())))
        lengths = [sum(self.feeds[name].encoded[rows[name][i]].size for name in names) for i in spots]
        groups = by_length(lengths, MICRO_TOKENS)
        micros = [{name: [rows[name][spots[i]] for i in group] for name in names} for group in groups]
        slopes = self._slopes(terms, micros, divisors, step)
        totals = dict.fromkeys(divisors, 0.0)
        for mine in micros:
            losses = self.perturb.losses(self._micro(terms, mine, step))
            for label, loss in losses.items():
                totals[label] += float(loss.detach().sum()) / divisors[label]
            if slopes is None:  # the one micro-batch there is: its means are those of the step
                slopes = {label: self.links[label].slope(value) for label, value in totals.items()}
            total = sum(
                term.weight * slopes[term.label] * losses[term.label].sum() / divisors[term.label] for term in terms
            )
            self._check_influence(terms, losses)
            assert isinstance(total, Tensor)
            total.backward()
        return {label: dist.sum_number(value) for label, value in totals.items()}, sum(lengths)

    @torch.no_grad()
    def _slopes(
        self, terms: Sequence[Term], micros: Sequence[Rows], divisors: Mapping[str, float], step: int
    ) -> dict[str, float] | None:
        """What the links multiply gradients with; None when the step is one micro-batch, which then tells it."""
        linked = [term for term in terms if self.links[term.label].reads_mean]
        if linked and len(micros) == 1 and dist.world_size() == 1:
            return None
        means = {term.label: 0.0 for term in terms}
        for mine in micros if linked else ():
            for label, loss in self.perturb.losses(self._micro(terms, mine, step)).items():
                means[label] += float(loss.sum()) / divisors[label]
        if linked:
            means = {label: dist.sum_number(mean) for label, mean in means.items()}
        return {label: self.links[label].slope(mean) for label, mean in means.items()}

    def _check_influence(self, terms: Sequence[Term], losses: Mapping[str, Tensor]) -> None:
        for term in terms:
            if not losses[term.label].requires_grad:
                raise RecipeError(
                    "forget.scope", f"no weight that may move has influence on {term.label}",
                    "a scope at or below what the terms read", "Change the scope, or the layer the objective reads",
                )

    def _divisor(self, term: Term, rows: Mapping[str, Sequence[int]]) -> float:
        if term.mean == "examples":
            return float(len(rows[term.on[0]]))
        first = self.feeds[term.on[0]].encoded
        return float(max(1, sum(count(first[row], term.tokens) for row in rows[term.on[0]])))

    def _micro(self, terms: Sequence[Term], rows: Rows, step: int) -> Micro:
        batches = self._batches(rows)
        keep = {}
        for name, batch in batches.items():
            keep[name] = torch.stack([batch.positions(term.tokens) for term in terms if name in term.on]).any(0)
        run: Callable[[Inside], dict[str, Tensor]] = partial(self._losses, terms, rows, batches)
        return Micro(self.subject.model, batches, keep, self.seed, step, run, self._count)

    def _count(self, forwards: int, backwards: int) -> None:
        self.cost += Cost(forwards=forwards, backwards=backwards)

    def _batches(self, rows: Rows) -> dict[str, Batch]:
        return {
            name: collate([self.feeds[name].encoded[row] for row in mine], device=self.device)
            for name, mine in rows.items()
        }

    def _losses(
        self, terms: Sequence[Term], rows: Rows, batches: Mapping[str, Batch], inside: Inside = nothing
    ) -> dict[str, Tensor]:
        """Loss per example of every term on one micro-batch; each stream runs forward once."""
        views: dict[tuple[str, str], View] = {}
        for name, mine in rows.items():
            batch = batches[name]
            here = [term for term in terms if name in term.on]
            masks = {term.tokens: batch.positions(term.tokens) for term in here}
            keep = torch.stack(list(masks.values())).any(0)
            needs = frozenset().union(*(term.needs for term in here))
            blind = all("no_logp" in term.needs for term in here)
            with inside(name):
                ran = run_model(self.subject.model, batch, keep, layers=layers_of(needs, "hidden"), stop=blind)
            self._count(len(mine), len(mine) if torch.is_grad_enabled() else 0)
            now = make_pass(ran.logits, batch, keep, with_logits="vocab" in needs, hidden=ran.hidden)
            for term in here:
                ref: Pass | None = None
                if "ref" in term.needs:
                    layers = layers_of(term.needs, "ref_hidden")
                    made = self.references[term.reference]
                    ref = made.view(name, mine, batch, keep, vocab="ref_vocab" in term.needs, layers=layers)
                    ref = narrow(ref, masks[term.tokens])
                views[name, term.label] = View(narrow(now, masks[term.tokens]), ref, batch)
        return {term.label: term.objective(*(views[name, term.label] for name in term.on)) for term in terms}


def count(one: Encoded, tokens: Positions) -> int:
    """Counted tokens of a text under a term's `tokens`."""
    return int(one.places(tokens).sum())


def check_terms(terms: Sequence[Term], feeds: Mapping[str, Feed]) -> None:
    """A term must count something, and one over several streams must see the same examples row by row."""
    for term in terms:
        if "ref" not in term.needs and term.reference != "start":
            raise RecipeError(
                f"term {term.label}", f"'{term.objective.name}' compares with no reference",
                "an objective that needs 'ref': " + "npo, kl, dpo, ...", "Leave 'reference' out",
            )
        if len(term.on) > 1 and term.link is not None and "stream" in term.link.hyper:
            raise RecipeError(
                f"term {term.label}", f"the link '{term.link.name}' on a term of {len(term.on)} streams",
                "a link with a target on a term of one stream", "Leave the link out",
            )
        first, *others = (feeds[name] for name in term.on)
        if not any(count(one, term.tokens) for one in first.encoded):
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
