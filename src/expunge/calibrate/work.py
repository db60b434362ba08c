"""A calibration under way: train the pools, unlearn, attack, measure. Every measured model is a file in the folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.benches.world import Architecture, trained
from expunge.calibrate.judge import COMPARED, judge
from expunge.calibrate.pools import SMALL, Twin, pools, references
from expunge.data.examples import stream_hash
from expunge.errors import DoesNotFit, ExpungeError, Interrupted, StorageError
from expunge.measure.desk import Partner
from expunge.measure.plan import Measured, Plan, measure
from expunge.measure.tables import NotMeasured
from expunge.models import clone, load
from expunge.presets import METRICS
from expunge.registry import bind, entries, spec_of, takes
from expunge.run import Progress, Run, _silent, write_json
from expunge.scoring import label, needs_of, score
from expunge.types import Better, Bound, Data, Role, Stream, Subject

VERSION = 1  # of the records on disk
FORGET: Role = "forget"
DEPTH = "memorization_accuracy"  # of the metrics the one that says how deep is unlearned and what is kept
STRENGTH: Mapping[str, Any] = {"lr": 2e-3, "epochs": 20, "batch_size": 16}  # of a method, where it takes these
METHODS: Mapping[str, Mapping[str, Any]] = {"npo": {"alpha": 5.0}, "graddiff": {"alpha": 5.0}}  # they keep the rest
ATTACKS: tuple[Mapping[str, Any], ...] = (
    {"use": "relearn", "steps": 10, "share": 0.5, "lr": 1e-3, "batch_size": 16}, {"use": "quantize", "bits": 4},
)
ALSO = ("truth_ratio_utility",)  # made for what is kept; on what must go it asks the same: is the truth preferred?

Scores = tuple[dict[str, float], dict[str, str]]  # values and, where there is none, reasons, by label of the metric


def every_metric() -> tuple[list[Bound], dict[str, str]]:
    """All metrics that can score a forget stream with their defaults, and why others cannot."""
    found: dict[str, Bound] = {}
    refused: dict[str, str] = {}
    for spec in (*entries("metric"), *(spec for spec in METRICS["default"] if not isinstance(spec, str))):
        name = spec if isinstance(spec, str) else spec["use"]
        try:
            bound = bind("metric", spec)
        except ExpungeError as error:
            refused[name] = str(error)
            continue
        if FORGET not in bound.meta["roles"] and name not in ALSO:
            refused[name] = f"it is not about a forget stream but about {', '.join(sorted(bound.meta['roles']))}"
        else:
            found.setdefault(label(bound), bound)
    return list(found.values()), refused


@dataclass
class Calibration:
    """Pools, unlearned models and attacks in one folder; `run()` does what is not done yet.

    methods: as in a recipe; each removes the forget examples from every twin that learned them as they stand, until
    it knows no more of them than twins that never saw them. failures: what of it did not work, by model.
    """

    data: Data
    folder: Path
    metrics: Sequence[Bound]
    attacks: Sequence[Bound]
    methods: Sequence[Bound]
    num_models: int = 4
    made: Architecture = SMALL
    device: str = "cpu"
    progress: Progress = _silent
    cache: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)
    _compared: dict[str, dict[str, Measured]] = field(default_factory=dict)
    _done: int = 0
    _total: int = 0

    def run(self) -> dict[str, Any]:
        """The whole calibration as it stands in calibration.json."""
        twins = pools(self.data, self.num_models, self.made)
        removed = [(twin, method) for twin in twins if twin.variant == "full" for method in self.methods]
        self._total = len(twins) + len(removed)
        records = {twin.name: self._twin(twin) for twin in twins}
        level = self._level(records)
        for twin, method in removed:
            record = self._unlearned(twin, method, level, records[twin.name]["utility"])
            if record is not None:
                records[record["name"]] = record
        attacks = {self._named(attack): attack.meta.get("changes", "") for attack in self.attacks}
        made = list(records.values())
        rows = [judge(label(metric), _better(metric), made, attacks) for metric in self.metrics]
        return {
            "expunge": 1,
            "streams": {name: len(stream) for name, stream in self.data.items()},
            "settings": {
                "architecture": asdict(self.made), "attacks": [spec_of(attack) for attack in self.attacks],
                "methods": [spec_of(method) for method in self.methods], "unlearned_to": level,
            },
            "rows": rows, "models": made, "failures": self.failures,
        }

    # -- models --------------------------------------------------------------------------------------------------
    def _twin(self, twin: Twin) -> dict[str, Any]:
        """A member of a pool. Twins that never saw the forget examples are what relearning is compared with."""
        self._tell(twin.name)
        trained_at = self._train(twin)
        compared = [one for one in self.attacks if one.meta.get("changes") == COMPARED]
        attacks = compared if twin.variant == "retain" else []
        return self._record(
            twin.name, [trained_at.name, [spec_of(one) for one in attacks]],
            lambda: load(str(trained_at), device=self.device), attacks,
            pool="present" if twin.knows else "absent", variant=twin.variant,
        )

    def _train(self, twin: Twin) -> Path:
        vocabulary = (*self.data["retain"].examples, *self.data[FORGET].examples)
        return trained(
            twin.examples, vocabulary, twin.made, progress=self.progress, cache=self.cache, seed=twin.seed
        )

    def _level(self, records: Mapping[str, Mapping[str, Any]]) -> float:
        """Accuracy on the forget tokens of models that never saw them: where unlearning ends."""
        seen = [one["level"] for one in records.values() if one["variant"] == "retain"]
        return float(sum(seen) / len(seen))

    def _unlearned(self, twin: Twin, method: Bound, level: float, utility: float) -> dict[str, Any] | None:
        """One twin after one method and its attacks; None, with the reason in `failures`, where it fails."""
        name = f"{method.name}({twin.name})"
        self._tell(name)
        start = self._train(twin)
        if takes("method", method.name, "until") and method.hyper.get("until") is None:
            method = replace(method, hyper={**method.hyper, "until": f"{DEPTH}<{level:.4f}"})

        def unlearn() -> Subject:
            subject, data = clone(load(str(start), device=self.device)), Data(self.data)
            for index, stage in enumerate(method()):
                subject = stage(subject, data, Run(None, 0, self.device, progress=self.progress, stage=index))
            return replace(subject, lineage=())

        try:
            record = self._record(
                name, [start.name, spec_of(method), [spec_of(one) for one in self.attacks]], unlearn, self.attacks,
                pool="unlearned", variant=method.name, of=twin.name,
            )
        except (Interrupted, StorageError):
            raise
        except ExpungeError as error:  # a method that blows up on this data says nothing of the metrics
            self.failures[name] = str(error)
            return None
        return record | {"kept": record["utility"] / max(utility, 1e-9)}

    # -- measuring -----------------------------------------------------------------------------------------------
    def _record(
        self, name: str, made_of: list[Any], make: Callable[[], Subject], attacks: Iterable[Bound], **told: Any
    ) -> dict[str, Any]:
        """What was measured on a model and under its attacks, from its file or by doing the work."""
        key = json.dumps([
            VERSION, made_of, [spec_of(metric) for metric in self.metrics],
            [stream_hash(stream) for stream in self.data.values()],
        ], sort_keys=True, default=str)
        path = self.folder / "measured" / f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        if not path.exists():
            subject = make()
            values, reasons = self._scores(subject, self.data)
            found = {"values": values, "reasons": reasons, "level": self._accuracy(subject, FORGET),
                     "utility": self._accuracy(subject, "retain")}
            found["attacks"] = {self._named(attack): self._attacked(subject, attack) for attack in attacks}
            write_json(path, found)
        record: dict[str, Any] = {"name": name, **told, **json.loads(path.read_text(encoding="utf-8"))}
        return record

    def _attacked(self, subject: Subject, attack: Bound) -> dict[str, Any]:
        """Scores after an attack. Where it shows examples to the model, those very examples, before and after.

        An audit scores what the attack did not show; here the question is how fast the shown comes back compared with
        a model that never knew it, and what was not shown comes back in neither.
        """
        before: Scores | None = None
        after: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for changed in self._made(attack, subject, reasons):
            shown, data = changed.exposed - subject.exposed, self.data
            if shown:
                data = self._only(shown)
                before = before or self._scores(subject, data)
                changed = replace(changed, lineage=subject.lineage)
            values, why = self._scores(changed, data)
            after.append({"values": values})
            reasons |= why
        return {"before": {"values": before[0]} if before else None, "after": after, "reasons": reasons}

    def _made(self, attack: Bound, subject: Subject, reasons: dict[str, str]) -> Iterator[Subject]:
        """What an attack makes; for one that does not fit the model, the reason for every metric."""
        try:
            yield from attack(subject, self.data, Run(None, 0, self.device, progress=self.progress))
        except DoesNotFit as reason:
            reasons |= {label(metric): str(reason) for metric in self.metrics}

    def _only(self, shown: frozenset[str]) -> Data:
        stream = self.data[FORGET]
        return Data({**self.data, FORGET: Stream(FORGET, FORGET, tuple(
            example for example in stream.examples if example.id in shown
        ))})

    def _scores(self, subject: Subject, data: Data) -> Scores:
        """Every metric on the forget stream; what one instrument cannot do on this model does not stop the others."""
        try:
            return self._scored(self.metrics, subject, data)
        except (Interrupted, StorageError):
            raise
        except ExpungeError:
            values: dict[str, float] = {}
            reasons: dict[str, str] = {}
            for metric in self.metrics:
                try:
                    one = self._scored([metric], subject, data)
                except (Interrupted, StorageError):
                    raise
                except ExpungeError as error:
                    one = {}, {label(metric): str(error)}
                values, reasons = values | one[0], reasons | one[1]
            return values, reasons

    def _scored(self, metrics: Sequence[Bound], subject: Subject, data: Data) -> Scores:
        others = self._others(metrics, data)
        measured = self._measure(subject, data, metrics)
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for metric in metrics:
            found = score(metric, FORGET, measured, others.get("oracle"), others.get("original"))
            if found.value is not None and math.isfinite(found.value):
                values[label(metric)] = float(found.value)
            else:
                reasons[label(metric)] = found.reason or "the value is not finite"
        return values, reasons

    def _measure(self, subject: Subject, data: Data, metrics: Sequence[Bound]) -> Measured:
        plan = Plan()
        for metric in metrics:
            plan.add(FORGET, needs_of(metric))
        return measure(subject, data, plan, device=self.device, partner=Partner(_strangers))

    def _others(self, metrics: Sequence[Bound], data: Data) -> dict[str, Measured]:
        """Tables of the oracle and the original, for the metrics that compare with them; made when first asked for."""
        found: dict[str, Measured] = {}
        for name, twin in references(self.data, self.made).items():
            asking = [metric for metric in metrics if any(name in need.subjects for need in needs_of(metric))]
            if not asking:
                continue
            key = json.dumps([name, stream_hash(data[FORGET]), [spec_of(metric) for metric in asking]], default=str)
            if key not in self._compared:
                subject = load(str(self._train(twin)), device=self.device)
                self._compared[key] = {name: self._measure(subject, data, asking)}
            found |= self._compared[key]
        return found

    def _accuracy(self, subject: Subject, stream: str) -> float:
        metric, plan = bind("metric", DEPTH), Plan()
        plan.add(stream, needs_of(metric))
        value = score(metric, stream, measure(subject, self.data, plan, device=self.device)).value
        return 0.0 if value is None else value

    def _named(self, attack: Bound) -> str:
        """Its name; with its arguments where the same attack is run twice."""
        same = sum(other.name == attack.name for other in self.attacks)
        return attack.name if same == 1 else label(attack)

    def _tell(self, name: str) -> None:
        self._done += 1
        self.progress("calibrate", self._done, self._total, name)


def _strangers() -> Subject:
    raise NotMeasured("hidden states of one twin mean nothing in another: they were trained from different seeds")


def _better(metric: Bound) -> Better:
    """Its direction on a forget stream; one that is made for others declares none there."""
    better: Better = metric.meta["better"] if FORGET in metric.meta["roles"] else "oracle"
    return better


def with_strength(spec: Any) -> Bound:
    """A method with the rate and length of a calibration, unless given."""
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    name = str(given.get("use"))
    usual = {key: value for key, value in STRENGTH.items() if takes("method", name, key)}
    return bind("method", {**usual, **METHODS.get(name, {}), **given}, "--methods")
