"""Benchmarks: unlearn with each method, each at the best of its declared settings, attack, and print a leaderboard.

Nothing here measures or trains by itself; it is `forget`, `audit` and a folder of finished rows. Every finished
method is a file, so a bench that was stopped goes on where it was, and two may share the work.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from expunge.audit import Audit
from expunge.benches.world import World
from expunge.data.examples import stream_hash
from expunge.errors import ExpungeError, Interrupted, RecipeError, StorageError
from expunge.measure.desk import Partner
from expunge.measure.plan import Plan, measure
from expunge.models import clone, load, weights_hash
from expunge.recipe import AuditSpec
from expunge.registry import bind, find, spec_of
from expunge.report.terminal import Row
from expunge.run import Progress, Run, _silent, write_json
from expunge.scoring import needs_of, score
from expunge.types import Bound, Cost, Data, Subject

VERSION = 1  # of the rows on disk


@dataclass
class Bench:
    """One benchmark under way, in a folder.

    attacks: None = the world's. trials: settings tried per method at most. changes: method -> arguments that replace
    those of every setting.
    """

    world: World
    folder: Path
    attacks: Sequence[Any] | None = None
    trials: int = 3
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    progress: Progress = _silent
    failures: dict[str, str] = field(default_factory=dict)
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.world.attacks if self.attacks is None else self.attacks
        attacks = tuple(bind("attack", spec, "attacks") for spec in asked)
        spec = AuditSpec(tuple(bind("metric", name) for name in self.world.metrics), attacks)
        self.audit = Audit(self.world.audited, spec, self.folder / "tables", self.device, self.progress)
        self.judge = bind("metric", self.world.judged)

    def run(self, methods: Iterable[str]) -> list[Row]:
        """The rows of original, oracle and every method, each also under every attack."""
        chosen = {name: self.settings(name) for name in methods}  # a wrong name is told before anything is spent
        if chosen and "forget" not in self.world.training:
            raise RecipeError(
                "--methods", ", ".join(chosen), f"'{self.world.name}' trains nothing: it measures models",
                "Give --methods none",
            )
        start = load(self.world.original, device=self.device)
        twin = load(self.world.oracle, device=self.device) if self.world.oracle else None
        subjects = 1 + (twin is not None) + len(chosen) + len(self.world.others)
        self.audit.expected = subjects * (1 + len(self.audit.spec.attacks))
        self.audit.partner = Partner(lambda: start)
        if twin is not None:
            self._measure(twin, "oracle")
        self._measure(start, "original", attacked=False)
        self.audit.compare_again("oracle")
        rows = self._rows("original") + (self._rows("oracle") if twin is not None else [])
        for name, other in _named(self.world.others, ("original", "oracle", *chosen)).items():
            self._measure(load(other, device=self.device), name)
            rows += self._rows(name)
        aims = self._aims(start, twin) if chosen else {}
        for name, settings in chosen.items():
            rows += self._method(name, settings, (start, twin), aims)
        return rows

    def settings(self, name: str) -> list[Bound]:
        """The settings of a method to be tried: the first `trials` of its grid."""
        entry = find("method", name, f"methods.{name}")
        grid = self.world.grids.get(entry.name, ({},))[: self.trials]
        changed = self.changes.get(name, {})
        return [bind("method", {"use": name, **one, **changed}, f"methods.{name}") for one in grid]

    # -- one method ----------------------------------------------------------------------------------------------
    def _method(
        self, name: str, settings: list[Bound], models: tuple[Subject, Subject | None], aims: Mapping[str, float]
    ) -> list[Row]:
        """Rows of a method, from its file or by doing the work. models: the original and the oracle."""
        start = models[0]
        key = json.dumps([
            VERSION, [weights_hash(one) if one is not None else None for one in models], aims,
            self.world.columns, spec_of(self.judge), [spec_of(one) for one in settings],
            [spec_of(one) for one in (*self.audit.spec.attacks, *self.audit.spec.metrics)], self.seed,
            [stream_hash(stream) for data in (self.world.training, self.world.audited) for stream in data.values()],
        ], sort_keys=True, default=str)
        path = self.folder / "methods" / f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            self.tried[name] = record["tried"]
            found: list[Row] = record["rows"]
            return found
        tried: list[dict[str, Any]] = []
        best: tuple[float, Subject, float] | None = None
        for setting in settings:
            begun = time.perf_counter()
            try:
                subject, cost = self._unlearn(setting, clone(start))
            except (Interrupted, StorageError):
                raise
            except ExpungeError as error:  # a setting that blows up is a finding about the method
                tried.append({"setting": spec_of(setting), "error": str(error)})
                continue
            seconds = time.perf_counter() - begun
            balance, values = self._balance(subject, aims)
            tried.append({
                "setting": spec_of(setting), "balance": balance, **values, "cost": vars(cost), "seconds": seconds,
            })
            if best is None or balance > best[0]:
                best = (balance, subject, seconds)
        if best is None:
            self.failures[name] = str(tried[-1]["error"])
            self.tried[name] = tried
            return [Row(method=name, condition="no setting worked", metrics={})]
        self._measure(best[1], name)
        rows = self._rows(name, seconds=best[2])
        write_json(path, {"method": name, "tried": tried, "rows": rows})
        self.tried[name] = tried
        return rows

    def _unlearn(self, method: Bound, subject: Subject) -> tuple[Subject, Cost]:
        data, known = Data(self.world.training), len(subject.lineage)
        for index, stage in enumerate(method()):
            subject = stage(subject, data, Run(None, self.seed, self.device, progress=self.progress, stage=index))
        return subject, sum((event.cost for event in subject.lineage[known:]), Cost())

    # -- choosing a setting --------------------------------------------------------------------------------------
    def _value(self, subject: Subject, stream: str) -> float:
        plan = Plan()
        plan.add(stream, needs_of(self.judge))
        data = Data({stream: self.world.audited[stream]})
        value = score(self.judge, stream, measure(subject, data, plan, device=self.device)).value
        return float("nan") if value is None else value

    def _aims(self, start: Subject, twin: Subject | None) -> dict[str, float]:
        """Where the judged metric starts and where it should end: the oracle's value, or half way to nothing."""
        forget = self._value(start, "forget")
        aim = self._value(twin, "forget") if twin is not None else forget / 2
        return {"forget": forget, "aim": aim, "retain": self._value(start, "retain")}

    def _balance(self, subject: Subject, aims: Mapping[str, float]) -> tuple[float, dict[str, float | None]]:
        """Harmonic mean of closeness to the oracle on forget and of what is kept on retain, both in [0, 1].

        0 where one of the values is not to be had; it is None then.
        """
        forget, retain = self._value(subject, "forget"), self._value(subject, "retain")
        known = {"forget": forget, "retain": retain}
        values = {name: value if math.isfinite(value) else None for name, value in known.items()}
        if not all(map(math.isfinite, (forget, retain, *aims.values()))):
            return 0.0, values
        near = max(0.0, 1 - abs(forget - aims["aim"]) / max(1e-9, abs(aims["forget"] - aims["aim"])))
        kept = min(1.0, retain / max(1e-9, aims["retain"]))
        both = near + kept
        return 2 * near * kept / both if both > 0 else 0.0, values

    # -- measuring -----------------------------------------------------------------------------------------------
    def _measure(self, subject: Subject, name: str, *, attacked: bool = True) -> None:
        """A subject as it is and under every attack."""
        self.audit.measure(subject, name)
        for attack in self.audit.spec.attacks if attacked else ():
            self.audit.attack(attack, subject, name)

    def _rows(self, name: str, seconds: float | None = None) -> list[Row]:
        """The leaderboard's rows of a subject: as it is, then under each attack."""
        out: list[Row] = []
        for condition, state in self.audit.states.items():
            if condition.partition("+")[0] != name:
                continue
            metrics = {}
            for (stream, metric), found in state.scores.items():
                wanted = self.world.columns  # a column names a metric, or one of its variants
                shown = metric if (stream, metric) in wanted else metric.partition("(")[0]
                if (stream, shown) in wanted:
                    metrics[self._heading(stream, shown)] = (found.value, found.ci)
            attack = condition.partition("+")[2]
            told = f"after {attack}" if attack else ("before" if name == "original" else "")
            row = Row(method=name, condition=told, metrics=self._ordered(metrics))
            if seconds is not None and not attack:
                row["seconds"] = seconds
            out.append(row)
        return out

    def _heading(self, stream: str, metric: str) -> str:
        """The metric's name, with its stream where another column has the same metric."""
        streams = [where for where, name in self.world.columns if name == metric]
        return metric if stream == streams[0] else f"{metric} ({stream})"

    def _ordered(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        wanted = [self._heading(stream, metric) for stream, metric in self.world.columns]
        return {heading: metrics[heading] for heading in wanted if heading in metrics}


def _named(others: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Names of conditions for models: "+" would begin an attack's name, and no name may stand for two."""
    made: dict[str, str] = {}
    used = set(taken)
    for other in dict.fromkeys(others):
        plain = other.replace("+", "_")
        free = (plain if number == 1 else f"{plain}_{number}" for number in count(1))
        name = next(one for one in free if one not in used)
        used.add(name)
        made[name] = other
    return made
