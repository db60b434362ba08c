"""How far a score is from what it should be like, in margins: the one meaning of every tint in a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from expunge.report import glossary, numbers, view
from expunge.report.schema import Evidence, Interval, Measured

STEPS = (0.5, 1.0, 2.0, 4.0)  # margins at which the tint changes
MARGIN = 0.1  # where no claim was put, and so no margin agreed
SCALED = numbers.SHARES | {"auc", "utility", "gap"}  # units in which a margin of 0.1 means a tenth of the scale
WORDS = ("within half the margin", "within the margin", "up to 2 margins off", "up to 4 margins off", "farther off")
NAMES = {
    "twin": "the oracle under the same attack",
    "oracle": "the oracle",
    "holdout": "texts it never saw",
    "chance": "guessing",
    "original": "the model before the removal",
}


@dataclass(frozen=True)
class Yardstick:
    """What a score is held against."""

    kind: Literal["twin", "oracle", "holdout", "chance", "original"]
    value: float
    ci: Interval | None = None

    @property
    def name(self) -> str:
        return NAMES[self.kind]


@dataclass(frozen=True)
class Distance:
    """level: tint, 0 (as it should be) to 4 (far from it). amount: the same 0 to 4 as a distance. side: -1, 0, +1.

    The two differ where only the model before the removal is there to compare with: near it is bad.
    """

    level: int
    amount: int
    side: int
    yardstick: Yardstick
    margins: float | None = None  # None for p-values, whose steps are 0.05, 0.001 and a millionth

    @property
    def sign(self) -> str:
        """The distance without colour: "≈" within the margin, then one to three arrows."""
        return "≈" if self.amount < 2 else ("▲" if self.side > 0 else "▼") * (self.amount - 1)

    @property
    def told(self) -> str:
        """`3.9 margins above the oracle under the same attack`."""
        return self._off(self.yardstick.name)

    @property
    def briefly(self) -> str:
        """The same where the yardstick was just named: `3.9 margins above it`."""
        return self._off("it")

    def _off(self, name: str) -> str:
        way = {1: "above", -1: "below"}.get(self.side, "from")
        if self.margins is None:
            return f"{WORDS[self.amount]} ({way} {name})"
        many = "many" if self.margins > 99 else numbers.significant(self.margins, 2)
        return f"{many} margins {way} {name}"


def yardstick(evidence: Evidence, row: Measured) -> Yardstick | None:
    """The same attack on the oracle, else the oracle; without one, for forget streams texts that were never seen or
    guessing, and where these are missing too the model before the removal, as for all that is to be kept."""
    found = view.reference(evidence, row)
    if found is not None and found.value is not None:
        condition = evidence.condition(found.condition)
        kind: Literal["twin", "oracle", "original"] = "oracle"
        if condition is not None and condition.kind != "oracle":
            kind = "twin" if condition.of == "oracle" else "original"
        return Yardstick(kind, found.value, found.ci)
    condition = evidence.condition(row.condition)
    if condition is None or view.only(evidence, "oracle") or view.role(evidence, row.stream) != "forget":
        return None
    if glossary.base(row.metric) == "membership":
        return Yardstick("chance", 0.5)
    for stream in view.streams(evidence):
        unseen = evidence.score(row.condition, stream, row.metric)
        if view.role(evidence, stream) == "holdout" and unseen is not None and unseen.value is not None:
            return Yardstick("holdout", unseen.value, unseen.ci)
    original = view.only(evidence, "original")
    before = evidence.score(original.name, row.stream, row.metric) if original and original != condition else None
    return Yardstick("original", before.value, before.ci) if before and before.value is not None else None


def margin(evidence: Evidence, stream: str, metric: str) -> float:
    """The margin that was agreed for this measure, else the one of the other claims."""
    own = [row.margin for row in evidence.verdicts if (row.stream, row.metric) == (stream, metric) and row.margin]
    others = [row.margin for row in evidence.verdicts if row.margin]
    return (own or others or [MARGIN])[0]


def step(evidence: Evidence, stream: str, metric: str, unit: str) -> tuple[float, str] | None:
    """One margin on the scale of a measure, and how that is said; None where there is no telling."""
    size = margin(evidence, stream, metric)
    verdict = view.verdict_for(evidence, stream, metric)
    if numbers.is_log(unit):
        return (math.log10(1 + size), f"± {numbers.percent(size, whole=True)} of its value")
    if unit.lower() in SCALED or (verdict is not None and verdict.margin):
        return size, numbers.margin(size, unit)
    ends = [view.value_of(evidence, kind, stream, metric) for kind in ("original", "oracle")]
    if ends[0] is None or ends[1] is None or ends[0] == ends[1]:
        return None
    way = abs(ends[0] - ends[1])
    return size * way, f"± {numbers.percent(size, whole=True)} of the way from before to the oracle"


def distance(evidence: Evidence, row: Measured) -> Distance | None:
    """How far a score is from its yardstick; None without one, without a value, where no margin makes sense, and of
    what makes no claim."""
    target, condition = yardstick(evidence, row), evidence.condition(row.condition)
    if condition is not None and view.unjudged(evidence, condition):
        return None
    if target is None or row.value is None or math.isnan(row.value) or math.isnan(target.value):
        return None
    here, there = view.position(row.value, row.unit), view.position(target.value, row.unit)
    side = (here > there) - (here < there)
    if numbers.is_p(row.unit):
        amount = sum(row.value < limit for limit in (0.05, 0.05, 1e-3, 1e-6))
        return Distance(amount, amount, side, target)
    size = step(evidence, row.stream, row.metric, row.unit)
    if size is None:
        return None
    margins = abs(here - there) / size[0]
    amount = sum(margins > limit * (1 + 1e-9) for limit in STEPS)
    inverted = target.kind == "original" and view.role(evidence, row.stream) == "forget"
    return Distance(4 - amount if inverted else amount, amount, side, target, margins)
