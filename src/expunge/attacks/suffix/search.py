"""The search loop: propose, score, move, remember the best. Resumable, seeded, bounded by steps and by queries."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from expunge.attacks.suffix import propose
from expunge.attacks.suffix.evaluate import Base, Goal, Reader
from expunge.attacks.suffix.losses import Term, Value, cross_entropy, fluency, mellowmax, repetition
from expunge.attacks.suffix.probe import first_blocks, probed
from expunge.attacks.suffix.problem import Problem
from expunge.attacks.suffix.settings import Settings, check, digest, drawn, seeded
from expunge.attacks.suffix.slope import token_slope
from expunge.errors import DoesNotFit
from expunge.measure.plan import evaluating
from expunge.run import Run
from expunge.types import Cost, Subject

__all__ = ["Settings", "Step", "milestones", "search"]

MOST_READ_BACK = 256  # candidates, from the best on, whose whole prompts are read back before a step stands still


@dataclass(frozen=True)
class Held:
    """A string that was scored on every problem: everything about it belongs together."""

    ids: tuple[int, ...]
    loss: float
    losses: tuple[float, ...]
    solved: int


@dataclass(frozen=True)
class Step:
    """Where the search stands after `number` steps. The best loss, its ids and its text belong together.

    ids, text: the best string so far, `text` as it is put into prompts ("" for problems without a frame). Every one of
    its prompts is read back token by token. A string that makes the model say every target whole comes first, then the
    lowest loss. loss: its whole loss, mean over problems; losses: target loss per problem. solved: in how many
    problems the model says the whole target greedily. current, current_loss: the string the search goes on from.
    cost: queries (candidate x problem), steps, forwards, backwards, tokens so far.
    """

    number: int
    ids: tuple[int, ...]
    text: str
    loss: float
    losses: tuple[float, ...]
    solved: int
    current: tuple[int, ...]
    current_loss: float
    cost: Cost


def search(
    problems: Sequence[Problem], settings: Settings, run: Run, *, value: Value | None = None,
    terms: Sequence[Term] = (), draft: Subject | None = None,
) -> Iterator[Step]:
    """Search one string for all problems; yields step 0 (the start) and then every step.

    Args:
        problems: all with the same start and spaces around it. Their subjects may be several models with one tokenizer.
        run: of this search alone (`run.at(i)` for several): resumes bit by bit, shows progress, stops when asked.
        value: the target loss, instead of cross-entropy or `settings.mellowmax`: see `losses`.
        terms: more to be made small, beside the target loss: see `losses.Term`.
        draft: a smaller model with the same tokenizer for probe sampling, instead of the first `probe` blocks.
    Returns: an iterator; stop reading whenever a budget of your own is spent. A resumed search yields its earlier
        steps again, from what was saved.
    Raises: DoesNotFit when no candidate survives being read back; RecipeError for settings out of range; Interrupted.
    Cost: per step and problem 1 forward and backward of one sequence and `width` forwards of the changed part.
    """
    check(settings, problems)
    subjects = [one.subject for one in problems] + ([] if draft is None else [draft])
    with run.stoppable(), _evaluating(subjects):
        going = Search(list(problems), settings, run, goal_of(settings, value, terms), draft)
        going.begin()
    yield from going.trail
    while not going.done():
        with run.stoppable(), _evaluating(subjects):
            if not going.advance():
                break
        yield going.trail[-1]


@contextmanager
def _evaluating(subjects: Iterable[Subject]) -> Iterator[None]:
    """While active nothing is dropped out, whose losses would rank candidates by chance."""
    with ExitStack() as stack:
        for model in {id(one.model): one.model for one in subjects}.values():
            stack.enter_context(evaluating(model))
        yield


def milestones(
    problems: Sequence[Problem], settings: Settings, budgets: Sequence[int], run: Run
) -> Iterator[Step]:
    """The best string after each number of steps; as many as there are budgets, also where the search ends early.

    Args:
        budgets: growing; `settings.steps` is the last of them.
    """
    left, last = list(budgets), None
    for last in search(problems, settings, run):
        while left and last.number >= left[0]:
            left.pop(0)
            yield last
        if not left:
            return
    assert last is not None
    for _ in left:
        yield last


def goal_of(settings: Settings, value: Value | None = None, terms: Sequence[Term] = ()) -> Goal:
    """What these settings make small."""
    if value is None:
        value = cross_entropy if settings.mellowmax is None else mellowmax(settings.mellowmax)
    own = [Term(fluency, settings.fluency, string=True)] if settings.fluency else []
    own += [Term(repetition, settings.repetition)] if settings.repetition else []
    return Goal(value, (*own, *terms))


@dataclass(frozen=True, eq=False)
class Round:
    """The candidates of a step and what is known of them: on the problems `of`, [K, N]; infinite where not read."""

    candidates: Tensor  # [N, n]
    of: tuple[int, ...]
    total: Tensor
    target: Tensor
    solved: Tensor
    read: Tensor  # [N] bool

    @property
    def loss(self) -> Tensor:
        """[N]"""
        return torch.where(self.read, self.total.mean(0), float("inf"))


@dataclass
class Search:
    """A search under way."""

    problems: list[Problem]
    settings: Settings
    run: Run
    goal: Goal
    draft: Subject | None = None
    held: list[Held] = field(default_factory=list)  # best first; the first is the one to go on from
    trail: list[Step] = field(default_factory=list)  # every step so far
    past: Cost = field(default_factory=Cost)  # before the search was resumed

    def __post_init__(self) -> None:
        given, first = self.settings, self.problems[0].subject
        self.readers = [Reader(one, self.goal, given.buckets, given.batch_tokens) for one in self.problems]
        drafted = [replace(one, subject=draft) for one, draft in zip(self.problems, self._drafts(), strict=False)]
        self.drafts = [Reader(one, Goal(self.goal.value), given.buckets, given.batch_tokens) for one in drafted]
        rows = min(one.subject.model.get_input_embeddings().weight.shape[0] for one in self.problems)
        forbidden = [*given.banned, *(token for one in self.problems if given.ban_target for token in one.target)]
        self.allowed = propose.allowed_tokens(first.tokenizer, rows, ascii_only=given.ascii_only, forbidden=forbidden)
        self.begun, self.asked = time.perf_counter(), 0

    def _drafts(self) -> list[Subject]:
        """The draft model of each problem; none where there is no probe sampling."""
        if self.draft is not None:
            return [self.draft] * len(self.problems)
        if not self.settings.probe:
            return []
        subjects = {id(one.subject.model): one.subject for one in self.problems}
        cut = {number: first_blocks(subject, self.settings.probe) for number, subject in subjects.items()}
        return [cut[id(one.subject.model)] for one in self.problems]

    # -- state -----------------------------------------------------------------------------------------------------
    @property
    def cost(self) -> Cost:
        """All so far; what a draft model read counts, but not as a question to the model."""
        drafted = sum((reader.bill for reader in self.drafts), Cost())
        bills = sum((reader.bill for reader in self.readers), replace(drafted, queries=0))
        return replace(self.past + bills, steps=max(0, self.number))

    @property
    def number(self) -> int:
        """Steps done."""
        return len(self.trail) - 1

    @cached_property
    def key(self) -> str:
        """What a saved state must have been made with."""
        return digest(self.settings, self.problems, self.goal, self.draft)

    def _text(self, ids: Sequence[int]) -> str:
        problem = self.problems[0]
        return problem.put(ids).text if problem.frame is not None else ""

    def _tell(self, best: Held) -> None:
        """One more step to tell of."""
        current, text = self.held[0], self._text(best.ids)
        cost = replace(self.cost, steps=len(self.trail))
        where = (current.ids, current.loss, cost)
        self.trail.append(Step(len(self.trail), best.ids, text, best.loss, best.losses, best.solved, *where))

    def begin(self) -> None:
        """Take up a saved state, or score the start."""
        saved = self.run.load_state()
        if saved is not None and saved[2].get("search") == self.key:
            _, tensors, meta = saved
            self.held = [_held(tensors[f"held{i}"], plain) for i, plain in enumerate(meta["held"])]
            self.trail = [_step({**plain, "text": self._text(plain["ids"])}) for plain in meta["trail"]]
            self.past = self.trail[-1].cost
            for reader in (*self.readers, *self.drafts):  # what they have read so far was paid for before
                reader.bill = Cost()
            return
        start = torch.tensor([self.problems[0].start])
        rows = torch.cat([start, self._others(start[0])]) if self.settings.buffer > 1 else start
        if self.settings.max_queries is not None:  # the start is read in any case
            rows = rows[: max(1, self.settings.max_queries // len(self.problems))]
        self.held = sorted(self._hold(rows), key=lambda one: one.loss)
        self._tell(min(self.held, key=self._rank))

    def _others(self, start: Tensor) -> Tensor:
        """Strings of random signs, to fill the buffer with."""
        rng, most = seeded(self.settings.seed, 0), self.settings.buffer - 1
        signs = propose.sign_tokens(self.problems[0].subject.tokenizer, self.allowed)

        def draw(_: int) -> Tensor:
            return signs[torch.randint(len(signs), (2 * most, len(start)), generator=rng)]

        found = self._survivors(draw, start, most)
        return found[[row for row, ids in enumerate(found.tolist()) if self._exact(ids)]]

    def save(self) -> None:
        if self.run.folder is None:
            return
        tensors = {f"held{i}": torch.tensor(one.ids) for i, one in enumerate(self.held)}
        held = [{"loss": one.loss, "losses": one.losses, "solved": one.solved} for one in self.held]
        trail = [{**asdict(step), "text": ""} for step in self.trail]  # a string may spell parts of an answer
        meta = {"search": self.key, "held": held, "trail": trail}
        self.run.save_state(self.number, tensors, meta)

    def done(self) -> bool:
        solved = self.settings.early_stop and self.trail[-1].solved == len(self.problems)
        return self.number >= self.settings.steps or solved or self._room() < 1

    def _room(self) -> int:
        """How many candidates may be asked about at the next step."""
        given, each = self.settings, self.settings.sample or len(self.problems)
        if given.max_queries is None:
            return 10**9 if given.exhaustive else given.width
        left = given.max_queries - self.cost.queries - (len(self.problems) - each)
        return left // each if given.exhaustive else min(given.width, left // each)

    # -- a step ----------------------------------------------------------------------------------------------------
    def advance(self) -> bool:
        """One step; False when nothing could be proposed and the search is over."""
        rng = seeded(self.settings.seed, self.number + 1)
        current = self.held[0]
        how = drawn(self.settings, len(current.ids), rng)
        bases = [reader.base(current.ids, said=how in ("insert", "sample")) for reader in self.readers]
        candidates = self._propose(how, torch.tensor(current.ids), bases, rng)
        if not len(candidates) and not self.settings.varies:
            if not self.number:
                raise DoesNotFit("no changed string is read back by the tokenizer as the same tokens")
            return False
        self._tell(self._move(self._scored(candidates, bases, rng)) if len(candidates) else self._best)
        self.asked += len(candidates)
        rate, best = self.asked / (time.perf_counter() - self.begun), self.trail[-1]
        note = f"loss {best.loss:.3f}, {best.solved} said whole, {rate:,.0f} candidates/s"
        self.run.progress("prompt search", self.number, self.settings.steps, note)
        if self.run.stopped or self.done() or self.number % self.run.save_every == 0:
            self.save()
        self.run.check_stop()
        return True

    def _propose(self, how: str, ids: Tensor, bases: Sequence[Base], rng: Generator) -> Tensor:
        given, width = self.settings, self._room()
        if how == "delete":
            return self._survivors(lambda _: propose.deletions(ids), ids, width)
        if how == "swap":
            best = propose.best_tokens(token_slope(self.readers, bases), self.allowed, given.top_k)
        else:
            said = bases[int(torch.randint(len(bases), (1,), generator=rng))].said
            assert said is not None
            best = propose.likely_tokens(said, self.allowed, given.top_k, rng)
        if how == "insert":
            return self._survivors(lambda _: propose.insertions(ids, best, width, rng), ids, width)
        if given.exhaustive:
            return self._survivors(lambda _: propose.all_swaps(ids, best[: len(ids)]), ids, width)
        random = given.random if how == "swap" else 0.0

        def draw(_: int) -> Tensor:
            return propose.swaps(
                ids, best[: len(ids)], self.allowed, width, num_replace=given.num_replace, random=random, rng=rng
            )

        return self._survivors(draw, ids, width)

    def _survivors(self, draw: Any, ids: Tensor, width: int) -> Tensor:
        frame = self.problems[0].frame
        return propose.survivors(draw, None if frame is None else frame.survive, ids, width)

    def _exact(self, ids: Sequence[int]) -> bool:
        return all(problem.exact(ids) for problem in self.problems)

    # -- scoring and moving ----------------------------------------------------------------------------------------
    def _scored(self, candidates: Tensor, bases: Sequence[Base], rng: Generator) -> Round:
        """The losses of the candidates, on all problems or on those drawn for this step."""
        count, num = len(self.problems), len(candidates)
        of = tuple(range(count))
        if 0 < self.settings.sample < count:
            of = tuple(sorted(torch.randperm(count, generator=rng)[: self.settings.sample].tolist()))
        total, target = (torch.full((len(of), num), float("inf"), dtype=torch.float64) for _ in range(2))
        solved, read = torch.zeros(len(of), num, dtype=torch.bool), torch.zeros(num, dtype=torch.bool)

        def score(rows: Tensor) -> Tensor:
            for row, number in enumerate(of):
                found = self.readers[number].score(candidates[rows], bases[number])
                total[row, rows], target[row, rows], solved[row, rows] = found.total, found.target, found.solved
            read[rows] = True
            return total[:, rows].mean(0)

        def guess() -> Tensor:
            current = self.held[0].ids
            drafts = [self.drafts[number] for number in of]
            return torch.stack([one.score(candidates, one.base(current)).total for one in drafts]).mean(0)

        if self.drafts:
            probed(num, score, guess, share=self.settings.probe_share, ratio=self.settings.probe_ratio, rng=rng)
        else:
            score(torch.arange(num))
        return Round(candidates, of, total, target, solved, read)

    def _hold(self, rows: Tensor, known: Round | None = None, numbers: Sequence[int] = ()) -> list[Held]:
        """Strings scored on every problem, as far as they were not; `numbers`: theirs in a round that is known."""
        parts = []
        for number, reader in enumerate(self.readers):
            if known is not None and number in known.of:
                row = known.of.index(number)
                parts.append((known.total[row, numbers], known.target[row, numbers], known.solved[row, numbers]))
            else:
                found = reader.score(rows)
                parts.append((found.total, found.target, found.solved))
        total, target, solved = (torch.stack(each) for each in zip(*parts, strict=True))  # [K, N]
        told = zip(rows.tolist(), total.mean(0), target.T.tolist(), solved.sum(0), strict=True)
        return [Held(tuple(ids), float(loss), tuple(losses), int(said)) for ids, loss, losses, said in told]

    @property
    def _best(self) -> Held:
        last = self.trail[-1]
        return Held(last.ids, last.loss, last.losses, last.solved)

    def _rank(self, held: Held) -> tuple[bool, float]:
        return held.solved < len(self.problems), held.loss

    def _move(self, known: Round) -> Held:
        """Go on from the best candidates whose prompts are read back. Returns: the best string of the whole search."""
        given = self.settings
        most = max(1, given.buffer) if given.varies else 1
        order = known.loss.argsort(stable=True)
        whole = known.solved.all(0)[order] if len(known.of) == len(self.problems) else known.read[order] & False
        order = torch.cat([order[whole], order[~whole]])
        order = order[known.read[order]][:MOST_READ_BACK]
        fine: list[int] = []
        for row in order.tolist():
            if len(fine) < most and self._exact(known.candidates[row].tolist()):
                fine.append(row)
        winners = self._hold(known.candidates[fine], known, fine) if fine else []
        current = self.held[0]
        if given.varies:
            self.held = sorted([*self.held[1:], *winners], key=lambda one: one.loss)[:most] or [current]
        elif winners and given.buffer == 0:
            self.held = winners if not given.keep_best or winners[0].loss < current.loss else [current]
        elif winners:
            full = len(self.held) >= given.buffer
            if not full or winners[0].loss < self.held[-1].loss:
                kept = self.held[:-1] if full else self.held
                self.held = sorted([*kept, *winners], key=lambda one: one.loss)
        return min([self._best, *winners], key=self._rank)


def _step(plain: dict[str, Any]) -> Step:
    sequences = {name: tuple(plain[name]) for name in ("ids", "losses", "current")}
    return Step(**{**plain, **sequences, "cost": Cost(**plain["cost"])})


def _held(ids: Tensor, plain: dict[str, Any]) -> Held:
    return Held(tuple(ids.tolist()), plain["loss"], tuple(plain["losses"]), plain["solved"])
