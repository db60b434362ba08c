"""Stop predicates: `until: "extraction_likelihood<holdout & retain.perplexity<1.2*start for 2 unless perplexity>1e6"`.

    text       CLAUSES [for N] [unless CLAUSES]...
    CLAUSES    clauses joined by &
    clause     [STREAM.]METRIC[(argument=value, ...)] <, <=, > or >= BOUND
    BOUND      a number, or [FACTOR*]NAME[^POWER]

STREAM is what is measured, forget where none is named. NAME is a stream (the same metric on that stream), `start`
(the same metric on the clause's own stream) or `vocabulary` (the number of tokens: the perplexity of blind guessing).
All bounds are those of the model as it was when the predicate was parsed: before training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import yaml

from expunge import yaml12
from expunge.errors import RecipeError, close_to
from expunge.measure.desk import NOT_FINITE
from expunge.measure.plan import Plan, measure
from expunge.registry import bind
from expunge.scoring import label, needs_of, score
from expunge.types import Bound, Data, Subject

Verdict = Literal["go", "met", "guard"]
Quantity = tuple[str, str]  # stream, label of the metric

_CLAUSE = re.compile(r"^\s*([\w.:-]+)\s*(?:\(([^()]*)\))?\s*([<>]=?)\s*(.+?)\s*$", re.DOTALL)
_NUMBER = r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
_BOUND = re.compile(rf"^(?:{_NUMBER}\s*\*\s*)?([A-Za-z_][\w-]*)(?:\s*\^\s*{_NUMBER})?$")
_PATIENCE = re.compile(r"^(.*?)\s+for\s+(\S+)\s*$", re.DOTALL)
_AND, _UNLESS = re.compile(r"&(?![^()]*\))"), re.compile(r"\bunless\b")
_FORMS = "clauses METRIC<BOUND (or <=, >, >=) joined by &, then 'for N' and 'unless CLAUSES' where wanted"


@dataclass(frozen=True)
class Clause:
    """One comparison: a metric on a stream, and a number it is to be under or over."""

    metric: Bound
    sign: str
    bound: float
    stream: str = "forget"

    @property
    def quantity(self) -> Quantity:
        return self.stream, label(self.metric)

    @property
    def generates(self) -> bool:
        """Whether the model has to speak for it; teacher-forced metrics cost one forward a text."""
        return any(need.instrument != "tokens" for need in needs_of(self.metric))

    def holds(self, values: Mapping[Quantity, float]) -> bool:
        value = values[self.quantity]
        if self.sign.endswith("=") and value == self.bound:
            return True
        return value < self.bound if self.sign[0] == "<" else value > self.bound


@dataclass
class Predicate:
    """When to stop: all `clauses` hold at `patience` checks in a row, or all clauses of one of the `guards` do.

    A check is made once per pass over the forget stream, every `every` steps. `values` keeps what the last check
    measured. `on(data)` is the same predicate, with the same bounds, for other data. It knows nothing of weights:
    whoever trains goes back to good ones when a guard fires.
    """

    clauses: list[Clause]
    every: int = 1
    guards: list[list[Clause]] = field(default_factory=list)
    patience: int = 1
    batch_size: int = 1
    values: dict[str, float] = field(default_factory=dict)
    row: int = 0  # checks in a row at which all clauses held

    @staticmethod
    def parse(text: str, subject: Subject, data: Data, *, batch_size: int = 1) -> Predicate:
        """Read the predicate and measure its bounds on the subject as it is now.

        Raises: RecipeError for what is not in the grammar, an unknown metric, argument or stream, a metric that
            cannot be measured, and a guard that holds already.
        """
        met, *guarded = _UNLESS.split(text)
        met, patience = _patience(met)
        clauses, *guards = [[_read(part, data) for part in _AND.split(group)] for group in (met, *guarded)]
        wanted = [draft.compared for group in (clauses, *guards) for draft in group if draft.compared]
        guarding = [(draft.stream, draft.metric) for guard in guards for draft in guard]
        known = _measured([*wanted, *guarding], subject, data)
        settled = [[draft.settle(known, subject) for draft in guard] for guard in guards]
        for guard in settled:
            _refuse_fired(guard, known)
        made = [draft.settle(known, subject) for draft in clauses]
        return Predicate(made, guards=settled, patience=patience, batch_size=batch_size).on(data)

    def on(self, data: Data) -> Predicate:
        """The same bounds for other data (a piece of a stream), patience from the start."""
        every = max(1, math.ceil(len(data["forget"]) / self.batch_size)) if "forget" in data else 1
        return replace(self, every=every, values={}, row=0)

    def verdict(self, subject: Subject, data: Data, step: int) -> Verdict:
        """Whether to go on after `step` steps, to stop, or to go back to the last weights that the guards let pass.

        Where what costs one forward a text decides already, nothing is generated.

        Raises: RecipeError when a condition cannot be measured. A guard that could be measured at the start and can
            no longer (the model says no numbers any more) counts as fired.
        """
        self.values = {}
        if step % self.every:
            return "go"
        guarding = [clause for guard in self.guards for clause in guard]
        cheap = [clause for clause in self.clauses if not clause.generates]
        costly = [clause for clause in self.clauses if clause.generates]
        first = cheap or costly
        found = self._look([*guarding, *first], guarding, subject, data)
        if any(all(clause.holds(found) for clause in guard) for guard in self.guards):
            self.row = 0
            return "guard"
        holds = all(clause.holds(found) for clause in first)
        if holds and cheap and costly:
            found = self._look(costly, [], subject, data)
            holds = all(clause.holds(found) for clause in costly)
        self.row = self.row + 1 if holds else 0
        return "met" if self.row >= self.patience else "go"

    def met(self, subject: Subject, data: Data, step: int) -> bool:
        """Whether the conditions hold after `step` steps, as often in a row as asked; a check like `verdict`."""
        return self.verdict(subject, data, step) == "met"

    def state(self) -> list[float]:
        """What a resumed run needs: how often in a row the conditions held."""
        return [float(self.row)]

    def load(self, state: Sequence[float]) -> None:
        """The inverse of `state`."""
        self.row = int(state[0])

    def _look(
        self, clauses: Sequence[Clause], guarding: Sequence[Clause], subject: Subject, data: Data
    ) -> dict[Quantity, float]:
        """Measure what these clauses compare and write it down in `values`."""
        fired = {clause.quantity: math.inf if clause.sign[0] == ">" else -math.inf for clause in guarding}
        found = _measured([(clause.stream, clause.metric) for clause in clauses], subject, data, fired)
        self.values |= {_told(quantity): value for quantity, value in found.items()}
        return found


@dataclass(frozen=True)
class _Draft:
    """A clause before anything was measured; `name` is empty where the bound is a number, then the `factor`."""

    metric: Bound
    stream: str
    sign: str
    factor: float
    name: str
    power: float

    @property
    def compared(self) -> tuple[str, Bound] | None:
        """What has to be measured for the bound."""
        if self.name in ("", "vocabulary"):
            return None
        return (self.stream if self.name == "start" else self.name), self.metric

    def settle(self, known: Mapping[Quantity, float], subject: Subject) -> Clause:
        value = 1.0
        if self.name == "vocabulary":
            value = float(subject.model.get_input_embeddings().weight.shape[0])
        elif self.compared is not None:
            value = known[self.compared[0], label(self.metric)]
        return Clause(self.metric, self.sign, self.factor * value**self.power, self.stream)


def _patience(text: str) -> tuple[str, int]:
    match = _PATIENCE.match(text)
    if match is None:
        return text, 1
    if not match[2].isdigit() or int(match[2]) < 1:
        raise RecipeError("until", f"got 'for {match[2]}'", "a number of checks in a row, 1 or more", "Correct it")
    return match[1], int(match[2])


def _read(text: str, data: Data) -> _Draft:
    match = _CLAUSE.match(text)
    if match is None:
        raise RecipeError("until", f"got {text.strip()!r}", _FORMS, "Correct the clause")
    stream, name = _split(match[1], data)
    metric = bind("metric", {"use": name, **_arguments(match[2])}, "until")
    return _Draft(metric, stream, match[3], *_bound(match[4], data))


def _split(text: str, data: Data) -> tuple[str, str]:
    """Stream and metric. A metric given as module:attr has dots of its own."""
    stream, dot, name = text.partition(".")
    if not dot or (":" in text and stream not in data):
        return "forget", text
    if stream not in data:
        raise RecipeError("until", f"'{text}': no stream '{stream}'", close_to(stream, data), "Correct the stream")
    return stream, name


def _arguments(text: str | None) -> dict[str, object]:
    """`n=5, denominator=target` as a mapping; values are what YAML takes them for."""
    given: dict[str, object] = {}
    for part in re.split(r",(?![^\[]*\])", text) if text and text.strip() else []:
        key, sign, value = part.partition("=")
        try:
            read = yaml12.read(value)
        except yaml.YAMLError:
            read = None
        if not sign or not key.strip().isidentifier() or read is None:
            raise RecipeError("until", f"got '({part.strip()})'", "arguments NAME=VALUE with commas", "Correct them")
        given[key.strip()] = read
    return given


def _bound(text: str, data: Data) -> tuple[float, str, float]:
    """Factor, name and power; a number is the factor alone."""
    try:
        number = float(text)
    except ValueError:
        match = _BOUND.match(text)
        accepted = [*data, "start", "vocabulary"]
        if match is None or match[2] not in accepted:
            found = text if match is None else match[2]
            near = "a number or a stream, start or vocabulary, with a factor before it: " + close_to(found, accepted)
            raise RecipeError("until", f"bound '{text}'", near, "Correct the bound") from None
        return float(match[1] or 1), match[2], float(match[3] or 1)
    if not math.isfinite(number):
        raise RecipeError("until", f"bound '{text}'", "a finite number", "Correct the bound")
    return number, "", 1.0


def _refuse_fired(guard: Sequence[Clause], known: Mapping[Quantity, float]) -> None:
    if all(clause.holds(known) for clause in guard):
        told = " & ".join(f"{_told(clause.quantity)} = {known[clause.quantity]:.4g}" for clause in guard)
        raise RecipeError(
            "until", f"the guard holds before training ({told})", "a guard that the start model does not trip",
            "Loosen its bound",
        )


def _told(quantity: Quantity) -> str:
    stream, name = quantity
    return name if stream == "forget" else f"{stream}.{name}"


def _measured(
    asked: Sequence[tuple[str, Bound]], subject: Subject, data: Data, fallback: Mapping[Quantity, float] | None = None
) -> dict[Quantity, float]:
    """Metrics on streams, each text run once for all of them.

    fallback: what stands for one that is n/a. Where there is some, guards decide about a model that says no numbers any
    more, and a condition on it is just not met.
    """
    plan, values = Plan(), {}
    for stream, metric in asked:
        plan.add(stream, needs_of(metric))
    measured = measure(subject, data, plan, device=str(subject.model.device))
    for stream, metric in asked:
        quantity = stream, label(metric)
        found = score(metric, stream, measured)
        stands = {quantity: math.nan} if fallback and found.reason == NOT_FINITE else {}
        stands |= fallback or {}
        if found.value is None and quantity not in stands:
            raise RecipeError(
                "until", f"'{label(metric)}' on '{stream}' is n/a: {found.reason}", "a metric that can be measured",
                "Choose another",
            )
        values[quantity] = found.value if found.value is not None else stands[quantity]
    return values
