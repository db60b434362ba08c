"""Stop predicates: `until: "extraction_strength<holdout & memorization_accuracy<0.3"`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from expunge.errors import RecipeError, close_to
from expunge.measure.plan import Plan, measure
from expunge.registry import bind
from expunge.scoring import needs_of, score
from expunge.types import Bound, Data, Subject

_CLAUSE = re.compile(r"^\s*([\w:]+)\s*([<>])\s*([\w.+-]+)\s*$")


@dataclass
class Predicate:
    """Clauses that must all hold on the forget stream; checked once per pass over it.

    A bound is a number, or the name of a stream (usually "holdout"): then it is the metric's value on that stream,
    measured on the model as it was before training.
    """

    clauses: list[tuple[Bound, str, float]]
    every: int = 1
    values: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def parse(text: str, subject: Subject, data: Data, *, batch_size: int = 1) -> Predicate:
        """Read the predicate and measure its bounds on the subject as it is now.

        Raises: RecipeError for a clause that is not `metric<bound` or names an unknown metric or stream.
        """
        clauses = []
        for part in text.split("&"):
            match = _CLAUSE.match(part)
            if match is None:
                raise RecipeError(
                    "until", f"got {part.strip()!r}", "clauses METRIC<BOUND joined by &", "Correct the clause"
                )
            metric, sign, bound = bind("metric", match[1], "until"), match[2], match[3]
            clauses.append((metric, sign, _bound(metric, bound, subject, data)))
        every = max(1, math.ceil(len(data["forget"]) / batch_size)) if "forget" in data else 1
        return Predicate(clauses, every)

    def met(self, subject: Subject, data: Data, step: int) -> bool:
        """Whether every clause holds after `step` steps; `values` keeps what was measured."""
        self.values = {}
        if step % self.every:
            return False
        self.values = {metric.name: _value(metric, "forget", subject, data) for metric, _, _ in self.clauses}
        return all(
            self.values[metric.name] < bound if sign == "<" else self.values[metric.name] > bound
            for metric, sign, bound in self.clauses
        )


def _bound(metric: Bound, text: str, subject: Subject, data: Data) -> float:
    if text in data:
        return _value(metric, text, subject, data)
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(
            "until", f"bound '{text}'", "a number or a stream: " + close_to(text, data), "Correct the bound"
        ) from error


def _value(metric: Bound, stream: str, subject: Subject, data: Data) -> float:
    plan = Plan()
    plan.add(stream, needs_of(metric))
    found = score(metric, stream, measure(subject, data, plan, device=str(subject.model.device)))
    if found.value is None:
        raise RecipeError(
            "until",
            f"'{metric.name}' on '{stream}' is n/a: {found.reason}",
            "a metric that can be measured",
            "Choose another",
        )
    return found.value
