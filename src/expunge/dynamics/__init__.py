"""Memorization dynamics, pure numbers: curves over a training, when they cross a level, how a text is forgotten again.

    M(f)        = #(argmax f(prefix) == token) / #tokens       ratio of sums over all counted tokens of a stream
    T(N, tau)   = first recorded epoch with M >= tau            None: never (censored: the last M is told beside it)
    R(p)        = hits with part of speech p / tokens with part of speech p
    baseline    = lowest M of a batch after it has left the training
    excess      = that minus M of a batch of the same kind that was never in it, at the same moment

M counts easy tokens too ("of", "the"): beside M of what is trained on stands M of what never was.
Source: Tirumala et al. 2022 (arXiv 2205.10770). Differences: T is read off the recorded grid, with the interpolated
crossing beside it; a baseline is never given without its excess over a control.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from expunge.run import WATCHED

TAUS = (0.4, 0.6, 0.8, 0.9)
Point = tuple[float, float]  # epoch or step, share


@dataclass(frozen=True)
class Reading:
    """What a model predicted of one stream at one moment, in whole numbers wherever possible.

    hits, tokens: greedy predictions that were right, and all. nll: mean over tokens, nats. fragile: tokens whose two
    best logits lie within 1e-3, which rounding may flip. exact: examples with every token right, of `examples`.
    tags: part of speech -> (hits, tokens). each: example id -> (hits, tokens).
    """

    stream: str
    hits: int
    tokens: int
    nll: float
    fragile: int
    exact: int
    examples: int
    tags: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    each: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def memorization(self) -> float:
        """M, in [0, 1]."""
        return self.hits / self.tokens

    def share(self, tag: str) -> float | None:
        """R(tag); None where no token has it."""
        hits, tokens = self.tags.get(tag, (0, 0))
        return hits / tokens if tokens else None


@dataclass(frozen=True)
class Visited:
    """A stream that a training saw for `updates` steps from step `at` on, and the one it is held against."""

    stream: str
    at: int
    updates: int
    control: str | None = None


@dataclass(frozen=True)
class Curve:
    """One stream over one training: its readings with the steps and epochs they were taken after."""

    stream: str
    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    readings: tuple[Reading, ...]
    visit: Visited | None = None

    def points(self, tag: str | None = None) -> list[Point]:
        """(epoch, M), or (epoch, R(tag)) where there are such tokens."""
        shares = [one.memorization if tag is None else one.share(tag) for one in self.readings]
        return [(epoch, share) for epoch, share in zip(self.epochs, shares, strict=True) if share is not None]

    def by_step(self) -> list[Point]:
        """(step, M)."""
        return [(float(step), one.memorization) for step, one in zip(self.steps, self.readings, strict=True)]

    def losses(self) -> list[Point]:
        """(epoch, mean negative log-likelihood in nats)."""
        return [(epoch, one.nll) for epoch, one in zip(self.epochs, self.readings, strict=True)]

    def tags(self) -> dict[str, int]:
        """Tokens per part of speech."""
        return {tag: tokens for tag, (_, tokens) in self.readings[0].tags.items()}

    def at(self, step: int) -> Reading | None:
        """The reading taken after `step` steps."""
        return dict(zip(self.steps, self.readings, strict=True)).get(step)


@dataclass(frozen=True)
class Crossing:
    """When a curve reached a level. epoch None: never, and `last` is where it ended (a censored value)."""

    tau: float
    epoch: float | None
    updates: int | None
    interpolated: float | None
    last: float


@dataclass(frozen=True)
class Forgetting:
    """What became of a batch that left the training; steps count from its last update.

    start: M right after. baseline: lowest M afterwards, reached after `step` steps. half_time: first recorded step at
    which half of the drop is done. last: M at the end. before: M before it was ever trained on.
    control, control_before: M of a batch that was never trained on, at the step of the baseline and before the visit.
    """

    start: float
    baseline: float
    step: int
    half_time: int
    last: float
    before: float | None = None
    control: float | None = None
    control_before: float | None = None

    @property
    def drop(self) -> float:
        return self.start - self.baseline

    @property
    def excess(self) -> float | None:
        """Baseline minus control."""
        return None if self.control is None else self.baseline - self.control

    @property
    def left(self) -> float | None:
        """What is left of the visit: the excess beyond the one there was before it (some texts are easier)."""
        if self.excess is None or self.before is None or self.control_before is None:
            return None
        return self.excess - (self.before - self.control_before)

    @property
    def excess_over_before(self) -> float | None:
        return None if self.before is None else self.baseline - self.before


def ratio(counts: Iterable[tuple[int, int]]) -> float:
    """Ratio of sums of (hits, tokens): the corpus level, not the mean of ratios."""
    pairs = list(counts)
    return sum(hits for hits, _ in pairs) / sum(tokens for _, tokens in pairs)


def by_tag(tags: Sequence[str], hits: Sequence[bool | int]) -> dict[str, tuple[int, int]]:
    """Part of speech -> (hits, tokens), tags in alphabetical order."""
    found: dict[str, list[int]] = {}
    for tag, hit in zip(tags, hits, strict=True):
        pair = found.setdefault(tag, [0, 0])
        pair[0] += int(hit)
        pair[1] += 1
    return {tag: (pair[0], pair[1]) for tag, pair in sorted(found.items())}


def first_reach(curve: Sequence[Point], tau: float) -> float | None:
    """T: the first recorded place with a share of at least tau; None if there is none."""
    return next((place for place, share in curve if share >= tau), None)


def interpolated_reach(curve: Sequence[Point], tau: float) -> float | None:
    """Where the line through the recorded points first meets tau; a curve starts from (0, 0) if it does not say so."""
    before: Point = (0.0, 0.0)
    for place, share in curve:
        if share >= tau:
            rise = share - before[1]
            return place if rise <= 0 else before[0] + (tau - before[1]) / rise * (place - before[0])
        before = (place, share)
    return None


def crossings(curve: Curve, taus: Iterable[float] = TAUS) -> list[Crossing]:
    """T in epochs, in updates and interpolated, for every level."""
    found, last = [], curve.readings[-1].memorization
    for tau in taus:
        update = first_reach(curve.by_step(), tau)
        epoch = first_reach(curve.points(), tau)
        found.append(Crossing(
            tau, epoch, None if update is None else int(update), interpolated_reach(curve.points(), tau), last
        ))
    return found


def forgetting(
    curve: Sequence[Point], before: float | None = None, control: Sequence[Point] | None = None,
    control_before: float | None = None,
) -> Forgetting:
    """Baseline, drop and half-time of a batch that left the training.

    Args:
        curve: (steps since its last update, M), the first right after that update.
        before: M before it was trained on. control: (steps, M) of a batch that never was, at the same steps.
        control_before: its M before the visit.
    """
    start = curve[0][1]
    step, baseline = min(curve, key=lambda point: (point[1], point[0]))
    half = baseline + (start - baseline) / 2
    half_time = next(place for place, share in curve if share <= half)
    beside = dict(control).get(step) if control else None
    return Forgetting(start, baseline, int(step), int(half_time), curve[-1][1], before, beside, control_before)


def forgetting_of(curves: Mapping[str, Curve]) -> Forgetting | None:
    """What became of the batch that visited a training, from its curves; None where there was no visit or no look."""
    visit = next((curve.visit for curve in curves.values() if curve.visit), None)
    if visit is None or visit.stream not in curves:
        return None
    gone, special = visit.at + visit.updates, curves[visit.stream]
    after = [(step - gone, share) for step, share in special.by_step() if step >= gone]
    if not after:
        return None
    control, first = curves.get(visit.control or ""), special.at(visit.at)
    beside = [(step - gone, share) for step, share in control.by_step()] if control else None
    at_first = control.at(visit.at) if control else None
    return forgetting(
        after, first.memorization if first else None, beside, at_first.memorization if at_first else None
    )


def overfitting_point(losses: Sequence[Point]) -> float | None:
    """The first epoch after which the loss on held-out text rises; None if it never does."""
    return next((losses[i][0] for i in range(len(losses) - 1) if losses[i + 1][1] > losses[i][1]), None)


def before_overfitting(trained: Curve, heldout: Curve) -> tuple[float, float] | None:
    """(epoch, M) of what is trained on where held-out text is understood best for the first time."""
    epoch = overfitting_point(heldout.losses())
    known = dict(trained.points())
    return None if epoch is None or epoch not in known else (epoch, known[epoch])


def order_of_tags(curve: Curve, tau: float, least: int = 20) -> list[tuple[str, float | None]]:
    """Parts of speech by the (interpolated) epoch at which R(p) reaches tau; those that never do come last.

    least: tokens a part of speech must have to be listed.
    """
    rows = [(tag, interpolated_reach(curve.points(tag), tau)) for tag, num in curve.tags().items() if num >= least]
    return sorted(rows, key=lambda row: (row[1] is None, row[1] or 0.0, row[0]))


def relearning_speed(again: Sequence[Point], first: Sequence[Point], tau: float) -> float | None:
    """T of learning a text again / T of learning it the first time, in the unit of the curves.

    Small: the knowledge was still there. None where one of the two never reaches tau, or the first took no time.
    """
    one, other = interpolated_reach(again, tau), interpolated_reach(first, tau)
    return one / other if one is not None and other else None


# -- records on disk ---------------------------------------------------------------------------------------------
Where = tuple[int, tuple[int, ...]]  # number of a stage, and of a training inside it


def record_of(reading: Reading, step: int, epoch: float) -> dict[str, Any]:
    """One line of `dynamics.jsonl`, without the stage that the run adds."""
    return {"step": step, "epoch": epoch, **asdict(reading)}


def curves_of(records: Iterable[Mapping[str, Any]]) -> dict[Where, dict[str, Curve]]:
    """Training -> stream -> curve, from the records of a run in any order."""
    found: dict[Where, dict[str, dict[int, tuple[float, Reading]]]] = {}
    visits: dict[Where, Visited] = {}
    known = [one.name for one in fields(Reading)]
    for record in records:
        where = (int(record.get("stage", 0)), tuple(record.get("part", ())))
        plain = {name: record[name] for name in known if name in record}
        for name in ("tags", "each"):
            plain[name] = {key: (int(pair[0]), int(pair[1])) for key, pair in plain.get(name, {}).items()}
        if "visit" in record:
            visits[where] = Visited(**record["visit"])
        streams = found.setdefault(where, {})
        streams.setdefault(record["stream"], {})[record["step"]] = (record["epoch"], Reading(**plain))
    return {where: {name: _curve(name, rows, visits.get(where)) for name, rows in streams.items()}
            for where, streams in sorted(found.items())}


def _curve(name: str, rows: Mapping[int, tuple[float, Reading]], visit: Visited | None) -> Curve:
    steps = tuple(sorted(rows))
    return Curve(name, steps, tuple(rows[step][0] for step in steps), tuple(rows[step][1] for step in steps), visit)


def read(folder: Path) -> dict[Where, dict[str, Curve]]:
    """The curves of a run folder; empty where nothing was watched."""
    path = folder / WATCHED
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return curves_of(json.loads(line) for line in lines if line.endswith("}"))
