"""An attack under way: what it makes, under which name, at what cost, until its budget is spent; and the record of it.

The record of an attack that came to its end lets a killed audit go on behind it. One that was killed within an attack
starts that attack again; its trainings and searches go on from their own states, and what was measured is read back.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from expunge import dist
from expunge.data.examples import stream_hash
from expunge.errors import DataError, DoesNotFit
from expunge.measure.plan import Measured, identity
from expunge.measure.tables import Table
from expunge.recipe import AuditSpec
from expunge.registry import JUDGED, spec_of
from expunge.report import schema
from expunge.run import Run, write_json
from expunge.scoring import label
from expunge.types import Bound, Cost, Data, Role, Stream, Subject


@dataclass(frozen=True)
class Tried:
    """One thing an attack made, or why it made nothing. measured: its tables. left_out: parts that did not fit."""

    condition: schema.Condition
    reason: str = ""
    measured: Measured | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def parts_of(attack: Bound) -> Iterator[Bound]:
    """The attacks inside a chain; another attack itself."""
    inside = attack.hyper.get("attacks") if attack.name == "chain" else None
    if inside is None:
        yield attack
    else:
        for part in inside:
            yield from parts_of(part)


def judged_of(attack: Bound) -> str:
    """Whether what it brings back makes a claim; of a chain what its least telling part allows."""
    levels: list[str] = [part.meta.get("judged", "always") for part in parts_of(attack)]
    return max(levels, key=JUDGED.index)


def wants_helpers(attack: Bound) -> frozenset[str]:
    """Companions that an attack, or a part of a chain, reads where they can be had."""
    return frozenset().union(*(part.meta.get("helpers", ()) for part in parts_of(attack)))


def name_of(attack: Bound) -> str:
    """The label of an attack, those of a chain joined: "relearn(steps=5)+quantize"."""
    return "+".join(label(part) for part in parts_of(attack))


def describe(attack: Bound, told: Sequence[Mapping[str, Any]] = ()) -> str:
    """What an attack does, for people. told: what its events say of this subject, over the attack's own arguments."""
    said = []
    for number, part in enumerate(parts_of(attack)):
        words = part.meta.get("says", "")
        own = told[number] if number < len(told) else {}
        said.append(" ".join(words.format_map(_Known({**part.hyper, **own})).split()) if words else label(part))
    return ", then ".join(said)


class _Known(dict[str, Any]):
    """What is known of an attack; what only its outcome could tell is left out."""

    def __missing__(self, key: str) -> str:
        return ""


def tries(
    attack: Bound, subject: Subject, data: Data, run: Run, budget: Mapping[str, float], name: str
) -> Iterator[tuple[Tried, Subject | None]]:
    """What an attack yields until its budget is spent: the condition, and the subject (None: it does not fit).

    Args:
        budget: most queries, steps, forwards, backwards, tokens or seconds; looked at after each subject.
        name: of the first condition; further ones are counted in brackets.
    """
    known, seconds, index = len(subject.lineage), 0.0, 0
    made = attack(subject, by_role(data), run)
    kind, judged = "+".join(part.name for part in parts_of(attack)), judged_of(attack)
    while True:
        begun = time.perf_counter()
        try:
            changed = next(made, None)
        except (DoesNotFit, DataError) as error:
            reason = _lacks(error)
            told = describe(attack)
            condition = schema.Condition(_numbered(name, index), "attack", attack=kind, label=told, judged=judged)
            yield Tried(condition, reason), None
            break
        seconds += time.perf_counter() - begun
        if changed is None:
            break
        events = [event for event in changed.lineage[known:] if event.kind == "attack"]
        cost = replace(sum((event.cost for event in events), Cost()), seconds=round(seconds, 3))
        shown = describe(attack, [event.hyper for event in events])
        condition = schema.Condition(
            _numbered(name, index), "attack", attack=kind, label=shown, judged=judged,
            cost=schema.ConditionCost(**asdict(cost)),
        )
        left_out = {key: why for event in events for key, why in event.hyper.get("left_out", {}).items()}
        yield Tried(condition, left_out=left_out), changed
        index += 1
        spent = any(getattr(cost, unit) >= most for unit, most in budget.items())
        if dist.agree(spent):  # every rank has a clock of its own
            made.close()
            break
    if run.folder is not None and dist.rank() == 0:  # weights of half-made models are of no use to anybody
        shutil.rmtree(run.folder / "state", ignore_errors=True)


def by_role(data: Data) -> Data:
    """The streams, and where none is called "forget" or "retain" those of that role together under this name."""
    found = Data(data)
    for role in ("forget", "retain"):
        streams = [one for one in data.of_role(role) if one.follows is None]
        if role not in data and streams:
            examples = {one.id: one for stream in streams for one in stream.examples}
            found[role] = Stream(role, role, tuple(examples.values()))
    return found


def _lacks(error: DoesNotFit | DataError) -> str:
    """Why an attack cannot be tried; a stream that no user named and nobody gave is such a reason.

    Raises: DataError for any other.
    """
    if isinstance(error, DoesNotFit):
        return str(error)
    for role in get_args(Role):
        if error.found == f"no stream '{role}'":
            return f"no {role} stream was given"
    raise error


def _numbered(name: str, index: int) -> str:
    return name + (f"[{index}]" if index else "")


def record_key(subject: Subject, attack: Bound, spec: AuditSpec, data: Data, beside: str = "") -> str:
    """What an attack's outcome depends on, the same in every process. beside: identity of the model before, if read."""
    parts = [
        identity(subject), beside, spec_of(attack), dict(spec.budget), [spec_of(metric) for metric in spec.metrics],
        {name: stream_hash(stream) for name, stream in data.items()},
        {name: identity(one) for name, one in subject.helpers.items()} if wants_helpers(attack) else {},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Records:
    """The record of one attack on one subject, written when it came to its end."""

    folder: Path | None
    name: str
    key: str
    resume: bool

    @property
    def path(self) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / "attacks" / f"{self.readable}.json"

    @property
    def readable(self) -> str:
        """The name as part of a path: short, and without anything that means something there."""
        return f"{re.sub(r'[^a-zA-Z0-9_-]+', '_', self.name)[:80]}.{self.key}"

    def read(self) -> list[Tried] | None:
        """What was found before; None when it must be found (again), or a table of it is gone."""
        if not self.resume or self.path is None or not dist.agree(self.path.is_file()):
            return None
        try:
            return [_tried(plain, self.path.parents[1]) for plain in json.loads(self.path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, found: Sequence[Tried]) -> None:
        if self.path is not None and dist.rank() == 0:
            write_json(self.path, [_plain(tried) for tried in found])


def _plain(tried: Tried) -> dict[str, Any]:
    measured = tried.measured
    return {
        "condition": asdict(tried.condition),
        "reason": tried.reason,
        "left_out": dict(tried.left_out),
        "measured": None if measured is None else {
            "tables": [[*asked, measured.files[asked].name] for asked in measured.tables],
            "missing": [[*asked, reason] for asked, reason in measured.missing.items()],
            "bill": [measured.forwards, measured.tokens, measured.backwards],
        },
    }


def _tried(plain: Mapping[str, Any], folder: Path) -> Tried:
    cost = schema.ConditionCost(**plain["condition"]["cost"])
    condition = schema.Condition(**{**plain["condition"], "cost": cost})
    kept = plain["measured"]
    if kept is None:
        return Tried(condition, plain["reason"], left_out=plain["left_out"])
    tables = {}
    for stream, instrument, variant, file in kept["tables"]:
        table = Table.stored(folder / "tables" / file)
        if table is None:
            raise ValueError(file)
        tables[stream, instrument, variant] = table
    missing = {(stream, instrument, variant): reason for stream, instrument, variant, reason in kept["missing"]}
    return Tried(condition, plain["reason"], Measured(tables, missing, *kept["bill"]), plain["left_out"])
