"""`scores.json` as types: what an audit hands to the report, every key documented.

The audit builds an `Evidence` and calls `write`; everything in this package starts from `load`. No text of an
example has a place in here: streams are named and counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from expunge.errors import DataError
from expunge.report.chapters import Chapter
from expunge.report.jsonform import MisfitError, decode, encode
from expunge.run import write_text

VERSION = 1
FILE = "scores.json"
Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class ConditionCost:
    """What it took to make a condition (for an attack: the attacker's bill)."""

    steps: int = 0  # optimiser steps
    forwards: int = 0  # sequences run forward
    backwards: int = 0  # sequences run backward
    tokens: int = 0  # real (unpadded) tokens
    seconds: float = 0.0  # wall clock
    queries: int = 0  # questions put to the model


@dataclass(frozen=True)
class Condition:
    """One state of the model that was measured."""

    name: str  # unique: "original", "oracle", "after", "after+relearn(20)", "oracle+relearn(20)"
    kind: Literal["original", "oracle", "after", "attack"]
    of: Literal["after", "oracle"] | None = None  # what an attack started from
    attack: str | None = None  # registered name(s) of the attack: "relearn"
    label: str = ""  # for people: "After 20 steps of relearning"; the name when empty
    cost: ConditionCost = field(default_factory=ConditionCost)
    judged: str = "always"  # whether it makes a claim: "always", only beside an "oracle" under the same, "never"

    @property
    def shown(self) -> str:
        return self.label or self.name

    @property
    def suffix(self) -> str:
        """What the attack added to the name: "relearn(20)" of "after+relearn(20)"."""
        return self.name.split("+", 1)[1] if "+" in self.name else (self.attack or self.name)


@dataclass(frozen=True)
class Measured:
    """One score: a metric of one stream under one condition."""

    condition: str  # name of a condition
    stream: str  # name of a stream
    metric: str  # registered name of the metric
    value: float | None  # None exactly when status is "n/a"
    ci: Interval | None = None  # interval at `Evidence.confidence`
    n: int = 0  # examples behind the value
    unit: str = ""  # "share", "prob", "p-value", "perplexity", "auc", ...
    better: Literal["lower", "higher", "oracle"] = "lower"  # where a good removal moves it
    status: Literal["ok", "n/a"] = "ok"
    reason: str = ""  # why it is n/a
    groups: int | None = None  # groups of examples (of one subject each) the interval is over; None: over examples


@dataclass(frozen=True)
class Checked:
    """The comparison of one condition with the yardstick of a claim."""

    condition: str  # name of a condition
    difference: float | None = None  # condition minus yardstick, in the metric's unit
    ci: Interval | None = None  # interval of the difference
    verdict: Outcome = "INCONCLUSIVE"
    n: int = 0  # examples compared
    groups: int | None = None  # the groups they form; None: every example stands alone
    needed: int | None = None  # examples that would give a power of 0.8


@dataclass(frozen=True)
class Change:
    """What an attack did to a score, tested example by example."""

    condition: str  # after the attack
    against: str  # before it
    stream: str
    metric: str
    difference: float | None = None  # condition minus against, in the metric's unit
    ci: Interval | None = None  # interval at `Evidence.confidence`
    p: float | None = None  # two-sided p-value of no difference
    adjusted: float | None = None  # the same, corrected for all attacks of this stream and metric (Holm)
    test: str = ""  # "mcnemar", "sign flip", "welch", "intervals"
    n: int = 0  # examples compared
    groups: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim, its worst case and how sure the audit is."""

    claim: str  # "forgotten", "kept", ...
    metric: str
    stream: str
    verdict: Outcome  # of the worst condition
    condition: str = ""  # the worst condition
    against: str = "oracle"  # the yardstick: "oracle", "holdout", "original"
    difference: float | None = None  # worst condition minus yardstick, in the metric's unit
    ci: Interval | None = None  # interval of that difference
    margin: float | None = None  # differences within +- margin count as equal
    power: float | None = None  # chance to show equality here if it is true, [0, 1]
    reason: str = ""  # one sentence for people
    checked: tuple[Checked, ...] = ()  # every condition looked at, the worst one included


@dataclass(frozen=True)
class Method:
    """What was done to the model."""

    name: str
    paper: str = ""
    summary: str = ""  # one line
    recipe: str = ""  # YAML that repeats the run
    differs: str = ""  # where this implementation departs from the paper


@dataclass(frozen=True)
class StreamCount:
    """A set of examples: its role and its size."""

    name: str
    role: str  # "forget", "retain", "anchor", "holdout", "probe"
    n: int


@dataclass(frozen=True)
class StageCost:
    """The bill of one stage."""

    name: str
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RunCost:
    """The bill of the run."""

    stages: tuple[StageCost, ...] = ()
    audit_seconds: float = 0.0  # measuring and attacking together
    total_seconds: float = 0.0
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Untested:
    """Something a reader might take for granted and nobody looked at."""

    what: str
    why: str = ""


@dataclass(frozen=True)
class TrainingPoint:
    """One point of the training curve."""

    step: int
    loss: float
    terms: Mapping[str, float] = field(default_factory=dict)  # label of a term -> its value, before its weight
    grad_norm: float | None = None


@dataclass(frozen=True)
class Reached:
    """One point of a recovery curve: what a metric reads after so much of an attack."""

    budget: float  # 0: before the attack
    value: float
    ci: Interval | None = None  # interval at `Evidence.confidence`
    condition: str = ""  # name of the condition


@dataclass(frozen=True)
class Saving:
    """How much cheaper an attack was than teaching the same to a model that never knew."""

    budget: float  # spent on the unlearned model
    level: float  # what the metric read there
    ratio: float  # budget with which the oracle gets to that level, over `budget`; 1: no cheaper
    ci: Interval | None = None  # upper end "inf": the oracle may never get there
    censored: bool = False  # the oracle never got there within its budget: the ratio is at least this


@dataclass(frozen=True)
class Recovery:
    """A metric against the growing budget of one attack, on the unlearned model and on the oracle."""

    attack: str  # as in the names of its conditions, without its budget: "relearn(lr=0.001)"
    stream: str
    metric: str
    budget: str  # what grows: "steps", "queries", "tokens"
    after: tuple[Reached, ...]  # by growing budget
    oracle: tuple[Reached, ...] = ()
    savings: tuple[Saving, ...] = ()
    unit: str = ""
    n: int = 0  # examples that every point is over; 0: each point over its own
    groups: int | None = None  # groups of examples the intervals are over; None: over examples
    note: str = ""  # why there are no savings, or no intervals


@dataclass(frozen=True)
class ResidueGrid:
    """How likely the true tokens of the answers are to every layer of one model."""

    condition: str  # name of a condition
    logp: tuple[tuple[float | None, ...], ...]  # [layers][positions]: mean log-probability, nats


@dataclass(frozen=True)
class ResidueGap:
    """By how much the unlearned model differs from its yardstick at one layer, all positions together."""

    layer: int
    difference: float  # of the mean log-probability, nats per token
    ci: Interval | None = None  # interval at `Evidence.confidence`


@dataclass(frozen=True)
class ResidueMap:
    """What can be read of the answers inside the models, by layer and by position in the answer; no text, no token."""

    stream: str
    counts: tuple[int, ...]  # examples that have a token at each position
    grids: tuple[ResidueGrid, ...]  # original, oracle, after: those that were measured
    against: str = ""  # condition the gaps are measured from: "oracle", else "original"
    gaps: tuple[ResidueGap, ...] = ()  # by layer
    n: int = 0
    groups: int | None = None
    head: str = "own"  # whose final norm and head read the layers: "own" or "original"


@dataclass(frozen=True)
class Evidence:
    """All that an audit found: the content of `scores.json`."""

    title: str  # "Removal of 20 people from demo-1m"
    subject: str  # the model, as the user named it
    created: str  # ISO 8601
    digest: str  # 12 hex digits of the resolved recipe
    conditions: tuple[Condition, ...]
    scores: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...] = ()
    verdict: Outcome | None = None  # of the whole run; None when no claim was put
    method: Method | None = None
    streams: tuple[StreamCount, ...] = ()
    cost: RunCost = field(default_factory=RunCost)
    untested: tuple[Untested, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)  # python, torch, device, dtype, threads, ...
    training: tuple[TrainingPoint, ...] = ()  # at most 200 points
    chapters: tuple[Chapter, ...] = ()  # what was watched while the model was trained
    changes: tuple[Change, ...] = ()  # what each attack changed, of the metrics that were judged
    recoveries: tuple[Recovery, ...] = ()  # metrics against growing budgets of an attack
    residue: tuple[ResidueMap, ...] = ()  # what the layers still hold, of each forget stream
    confidence: float = 0.95  # level of every score's interval; differences have 1 - 2 * 0.05
    expunge: int = VERSION  # version of this format

    @cached_property
    def _index(self) -> dict[tuple[str, str, str], Measured]:
        return {(row.condition, row.stream, row.metric): row for row in self.scores}

    @cached_property
    def _by_condition(self) -> dict[str, list[Measured]]:
        found: dict[str, list[Measured]] = {row.name: [] for row in self.conditions}
        for row in self.scores:
            found.setdefault(row.condition, []).append(row)
        return found

    def of(self, condition: str) -> list[Measured]:
        """All scores of a condition."""
        return self._by_condition.get(condition, [])

    def score(self, condition: str, stream: str, metric: str) -> Measured | None:
        """The score of a condition, or None when it was never asked for."""
        return self._index.get((condition, stream, metric))

    def condition(self, name: str) -> Condition | None:
        return next((row for row in self.conditions if row.name == name), None)

    def to_json(self) -> str:
        """The text of `scores.json`: strict JSON; infinities are written as "inf", "-inf", "nan"."""
        return json.dumps(encode(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: Path | str) -> Path:
        """Write to `path` (a run folder, or the file itself), whole or not at all."""
        file = _file_of(Path(path))
        write_text(file, self.to_json())
        return file


def load(path: Path | str) -> Evidence:
    """Read the evidence of a run.

    Args:
        path: a run folder, or its `scores.json`.
    Raises: DataError naming the file and the key when it is missing, is not JSON or does not fit the schema.
    """
    file = _file_of(Path(path))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(
            str(file), found, f"a run that was audited holds {FILE}",
            "Give the folder of a finished `expunge run` or `expunge audit`, or run the audit first",
        ) from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno}", f"not JSON ({error.msg})", "the file an audit writes",
            "Run the audit again; the tables it needs are kept",
        ) from error
    return parse(data, str(file))


def parse(data: Any, where: str = FILE) -> Evidence:
    """Evidence from decoded JSON; `where` opens the error messages."""
    version = data.get("expunge") if isinstance(data, dict) else None
    if version != VERSION:
        raise DataError(
            f"{where}: expunge", f"format version {version!r}", f"this release reads version {VERSION}",
            "Audit the model again with this release, or read the file with the release that wrote it",
        )
    try:
        evidence: Evidence = decode(Evidence, data, "")
    except MisfitError as error:
        raise DataError(
            f"{where}: {error.place or 'top level'}", error.found, error.accepted,
            "Run the audit again, or correct the key by hand",
        ) from error
    _check(evidence, where)
    return evidence


def _check(evidence: Evidence, where: str) -> None:
    """What types cannot say: scores name known conditions, and each stands once."""
    known = [row.name for row in evidence.conditions]
    seen: set[tuple[str, str, str]] = set()
    for number, row in enumerate(evidence.scores):
        key = (row.condition, row.stream, row.metric)
        place = f"{where}: scores[{number}]"
        if row.condition not in known:
            raise DataError(place, f"names the condition '{row.condition}'", "conditions: " + ", ".join(known),
                            "Run the audit again, or add the condition to `conditions`")
        if key in seen:
            raise DataError(place, f"{row.metric} of {row.stream} under {row.condition} stands twice",
                            "one score per condition, stream and metric", "Run the audit again")
        if (row.value is None) != (row.status == "n/a"):
            raise DataError(place, f"value {row.value!r} with status '{row.status}'",
                            "a number with status 'ok', or null with status 'n/a'", "Run the audit again")
        seen.add(key)


def _file_of(path: Path) -> Path:
    return path if path.suffix == ".json" else path / FILE
