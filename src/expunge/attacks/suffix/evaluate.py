"""Exact losses of many strings in one prompt, cheaply: what they share is read once.

Keys and values of the text before the string are kept for the whole search. Those of the string that is being changed
are read once a step: candidates, sorted by the first place where they differ from it, go in buckets, and each bucket is
read from its first changed place on. Logits exist only where the target (and, if asked for, the string) is predicted,
and the last target token is not read at all, because nothing follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from expunge.attacks.suffix.losses import Seen, Term, Value
from expunge.attacks.suffix.problem import Problem
from expunge.attacks.suffix.shared import Past, cache_of, keeps_keys, kept, listening, shortened
from expunge.measure.forward import packed_head
from expunge.types import Cost

MOST_LOGITS = 2**26  # numbers in the logits of one forward
LEAST_TOKENS = 512  # in a bucket: below, a forward of its own costs more than what it shares


@dataclass(frozen=True, eq=False)
class Goal:
    """What is made small: the target loss and further terms."""

    value: Value
    terms: tuple[Term, ...] = ()

    @property
    def string(self) -> bool:
        return any(term.string for term in self.terms)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for term in self.terms for layer in term.layers}))

    def losses(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Target loss and the whole, [N] each."""
        target = self.value(seen)
        return target, sum((term.weight * term.value(seen) for term in self.terms), target)


@dataclass(frozen=True, eq=False)
class Scored:
    """N strings in one problem, on the CPU: target loss [N], the whole [N], whether the target is said [N]."""

    target: Tensor
    total: Tensor
    solved: Tensor


@dataclass(frozen=True, eq=False)
class Base:
    """The string [n] that candidates are changes of.

    past: keys and values of before and string; None: not shared. said: log-probabilities of what the model would say
    at each place of the string and behind it, [n + 1, V] (0 where nothing stands before); None: not asked for.
    """

    ids: Tensor
    past: Past | None = None
    said: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Slope:
    """How the whole loss changes. vectors: with those of the string's tokens, [n, D].

    logp: with the log-probability of each token of the string [n], and `said`, those of all tokens there [n, V]; for
    goals that read the string's own log-probabilities.
    """

    vectors: Tensor
    logp: Tensor | None = None
    said: Tensor | None = None


@dataclass
class Reader:
    """One problem under search: what is read once for all of it, and the bill.

    share: keep keys and values, where the architecture lets them be kept. buckets: 1: those before the string alone.
    """

    problem: Problem
    goal: Goal
    buckets: int = 8
    batch_tokens: int = 16384
    share: bool = True
    bill: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.model = self.problem.subject.model
        self.device = self.model.device
        one = self.problem
        self.before, self.after, self.target = (self._ids(part) for part in (one.before, one.after, one.target))
        self.past: Past | None = None
        self.first: Tensor | None = None  # [V] log-probabilities of what is said at the string's first place
        self.share = self.share and keeps_keys(self.model)
        if len(self.before):
            self._read_before()

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def _read_before(self) -> None:
        logits, out = self._forward({"input_ids": self.before.unsqueeze(0)}, None, [-1], self.share)
        self.first = logits[0, 0].log_softmax(-1)
        self.past = kept(out, len(self.before)) if self.share else None
        self.share = self.past is not None
        self._count(1, len(self.before))

    def _count(self, forwards: int, tokens: int, queries: int = 0, backwards: int = 0) -> None:
        self.bill += Cost(queries=queries, forwards=forwards, backwards=backwards, tokens=tokens)

    # -- forwards --------------------------------------------------------------------------------------------------
    def _forward(
        self, given: Mapping[str, Tensor], past: Past | None, places: Sequence[int], keep: bool = False
    ) -> tuple[Tensor, Any]:
        """One forward over what follows `past`: logits [N, len(places), V], and all that the model gave back."""
        rows = len(next(iter(given.values())))
        extra: dict[str, Any] = {"use_cache": keep or past is not None}
        if past is not None:
            extra["past_key_values"] = cache_of(self.model, past, rows)
        row = torch.arange(rows, device=self.device).repeat_interleave(len(places))
        with packed_head(self.model, (row, torch.tensor(list(places) * rows, device=self.device))):
            out = self.model(**given, **extra)
        logits = out.logits[0].unflatten(0, (rows, len(places)))
        return logits.float() if logits.dtype.itemsize < 4 else logits, out

    def _see(self, given: Mapping[str, Tensor], past: Past | None, ids: Tensor, told: Tensor | None) -> Seen:
        """What is said about strings [N, n] whose first places are in `past`.

        told: [s + 1, V] the log-probabilities at the string's places that were read before; None: not asked for.
        """
        m, start = len(self.target), 0 if told is None else len(told) - 1
        shift = len(self.before) if past is None else 0
        own = [] if told is None else list(range(shift, shift + ids.shape[1] - start - 1))
        with listening(self.model, self.goal.layers, m) as hidden:
            logits, _ = self._forward(given, past, [*own, *range(-m, 0)])
        string = None
        if told is not None:
            known = told[torch.arange(start + 1, device=self.device), ids[:, : start + 1]]
            rest = logits[:, : len(own)].log_softmax(-1).gather(-1, ids[:, start + 1 :].unsqueeze(-1)).squeeze(-1)
            string = torch.cat([known, rest], dim=1)
        return Seen(self.problem, ids, logits[:, len(own) :], self.target, string, hidden)

    def _first(self, like: Tensor) -> Tensor:
        """Log-probabilities at the string's first place, [1, V]."""
        return (torch.zeros_like(like) if self.first is None else self.first).unsqueeze(0)

    def _rest(self, rows: int) -> Tensor:
        """What follows the string and is read, [rows, a + m - 1]."""
        return torch.cat([self.after, self.target[:-1]]).expand(rows, -1)

    # -- scoring ---------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def base(self, ids: Sequence[int], *, said: bool = False) -> Base:
        """Read the string that candidates will be changes of. said: what the model would say in it is wanted too."""
        string, said = self._ids(ids), said or self.goal.string
        share = self.share and self.buckets != 1
        if not share and not said:
            return Base(string)
        given = string if self.past is not None else torch.cat([self.before, string])
        places = list(range(-len(string), 0)) if said else [-1]
        logits, out = self._forward({"input_ids": given.unsqueeze(0)}, self.past, places, share)
        self._count(1, len(given))
        logp = logits[0].log_softmax(-1)
        past = kept(out, len(self.before) + len(string)) if share else None
        return Base(string, past, torch.cat([self._first(logp[0]), logp]) if said else None)

    @torch.no_grad()
    def score(self, candidates: Tensor, base: Base | None = None) -> Scored:
        """Losses of candidates [N, n], in their order; the same whatever the batches and buckets."""
        candidates = candidates.to(self.device)
        base = base or self._nothing()
        found = torch.empty(3, len(candidates), dtype=torch.float64)
        for rows, start in self._groups(candidates, base):
            ids = candidates[rows]
            past = self.past
            if start and base.past is not None:
                past = shortened(base.past, len(self.before) + start)
            parts = [ids[:, start:], self._rest(len(ids))]
            if past is None:
                parts.insert(0, self.before.expand(len(ids), -1))
            given = torch.cat(parts, dim=1)
            seen = self._see({"input_ids": given}, past, ids, None if base.said is None else base.said[: start + 1])
            said = (seen.logits.argmax(-1) == self.target).all(-1)
            target, total = self.goal.losses(seen)
            found[:, rows.cpu()] = torch.stack([target, total, said]).to(found)
            self._count(len(ids), given.numel(), queries=len(ids))
        return Scored(found[0], found[1], found[2].bool())

    def _nothing(self) -> Base:
        """A base that shares nothing: every candidate is read from its first place on."""
        width = self.model.get_output_embeddings().weight.shape[0]
        first = self._first(torch.zeros(width, device=self.device)) if self.goal.string else None
        return Base(self._ids([]), None, first)

    def _groups(self, candidates: Tensor, base: Base) -> Iterator[tuple[Tensor, int]]:
        """Rows to be read together, and from which place on."""
        num, n = candidates.shape
        first = torch.zeros(num, dtype=torch.long)
        if base.past is not None:
            first = changed(candidates, base.ids).cpu()
        order = first.argsort(stable=True)
        rows, first = order.to(self.device), first[order]
        width = n + len(self.after) + len(self.target) + (len(self.before) if self.past is None else 0)
        head = (len(self.target) + n * self.goal.string) * self.model.get_output_embeddings().weight.shape[0]
        size = max(1, min(self.batch_tokens // width, MOST_LOGITS // head))
        buckets = min(self.buckets, max(1, num * width // LEAST_TOKENS))
        for begin, end in cuts(first, buckets):
            for at in range(begin, end, size):
                yield rows[at : min(at + size, end)], int(first[begin])

    # -- gradient --------------------------------------------------------------------------------------------------
    def slope(self, base: Base) -> Slope:
        """The gradient of the whole loss at this string. No parameter receives any.

        Cost: 1 forward and 1 backward of one sequence behind the text before the string.
        """
        embed = self.model.get_input_embeddings()
        with torch.no_grad():
            before, vectors, rest = (embed(part.unsqueeze(0)) for part in (self.before, base.ids, self._rest(1)[0]))
        vectors.requires_grad_()
        with torch.enable_grad():
            given = torch.cat([vectors, rest] if self.past is not None else [before, vectors, rest], dim=1)
            told = None if base.said is None else base.said[:1]
            seen = self._see({"inputs_embeds": given}, self.past, base.ids.unsqueeze(0), told)
            loss = self.goal.losses(seen)[1].sum()
            wanted = [vectors] if seen.string_logp is None else [vectors, seen.string_logp]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        self._count(1, given.shape[1], backwards=1)
        if base.said is None or len(grads) < 2 or grads[1] is None:
            return Slope(grads[0][0])
        return Slope(grads[0][0], grads[1][0], base.said[:-1])


def changed(candidates: Tensor, base: Tensor) -> Tensor:
    """The first place where each candidate [N, n] differs from the base [n0]; its last place where none does. [N]"""
    both = min(candidates.shape[1], len(base))
    other = candidates[:, :both] != base[:both]
    first = torch.where(other.any(1), other.int().argmax(1), both)
    return first.clamp(max=candidates.shape[1] - 1)


def cuts(first: Tensor, buckets: int) -> list[tuple[int, int]]:
    """Where to cut rows sorted by `first` [N] into buckets of equal size; 0 buckets: one for each value."""
    num = len(first)
    if buckets:
        edges = sorted({num * i // buckets for i in range(buckets + 1)})
    else:
        edges = [0, *(int(i) + 1 for i in (first[1:] != first[:-1]).nonzero()), num]
    return [(a, b) for a, b in pairwise(edges) if b > a]
