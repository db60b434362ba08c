"""Benchmarks: train a model and its oracle once, unlearn with each method, attack, and print a leaderboard.

Nothing here measures or trains by itself; it is `forget`, `audit` and a cache of trained models.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.audit import Audit
from expunge.data.examples import stream_hash
from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.models import clone, load, save
from expunge.pretrain import teach
from expunge.recipe import AuditSpec
from expunge.registry import bind, spec_of
from expunge.report.terminal import Row
from expunge.run import Progress, Run, _silent
from expunge.scoring import label
from expunge.types import Bound, Cost, Data, Example, Subject, Wrapper

METRICS: tuple[Any, ...] = (
    "forget_quality",
    "model_utility",
    "extraction_strength",
    "truth_ratio",
    "rouge",
    "memorization_accuracy",
    "exact_memorization",
    "probability",
)
ATTACKS: tuple[Any, ...] = (
    {"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16},
    {"use": "quantize", "bits": 8},
    {"use": "quantize", "bits": 4},
    "paraphrase",
)
# (stream, metric) shown in the leaderboard.
COLUMNS = (
    ("forget", "forget_quality"),
    ("retain", "model_utility"),
    ("forget", "extraction_strength"),
    ("forget", "truth_ratio"),
    ("forget", "rouge"),
    ("forget", "memorization_accuracy"),
    ("forget", "exact_memorization"),
    ("retain", "exact_memorization"),
)
# One setting per method for the small models trained here; the methods' own defaults are the authors', for 7B models.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "ga": {"lr": 3e-4, "epochs": 5},
    "graddiff": {"lr": 1e-3, "epochs": 8, "alpha": 5.0},
    "npo": {"lr": 2e-3, "epochs": 8, "alpha": 5.0},
    "simnpo": {"lr": 1e-3, "epochs": 8, "alpha": 2.0, "gamma": 1.0},
    "idk_dpo": {"lr": 2e-3, "epochs": 8, "alpha": 5.0},
}


@dataclass(frozen=True)
class Architecture:
    """A small Llama trained from scratch and how long: the recipe of `benchmarks/RESULTS.md`."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    vocabulary: int = 4096
    epochs: float = 14.0
    batch_size: int = 16
    lr: float = 0.05
    tokens: str = "answer"


def cache_folder() -> Path:
    """Where trained models are kept: EXPUNGE_CACHE, or ~/.cache/expunge."""
    return Path(os.environ.get("EXPUNGE_CACHE", Path.home() / ".cache" / "expunge"))


def trained(
    examples: Sequence[Example],
    vocabulary: Sequence[Example],
    made: Architecture,
    *,
    progress: Progress = _silent,
    cache: Path | None = None,
    seed: int = 0,
) -> Path:
    """A folder with a model trained from scratch on `examples`, made once and kept.

    Args:
        vocabulary: the examples the tokenizer is built from; the same for a model and its oracle.
    """
    key = json.dumps([stream_hash(examples), stream_hash(vocabulary), vars(made), seed, 1])
    folder = (cache or cache_folder()) / hashlib.sha256(key.encode()).hexdigest()[:16]
    if (folder / "config.json").exists():
        return folder
    tokenizer = build_tokenizer(vocabulary, size=made.vocabulary)
    model = build_model(tokenizer, width=made.width, layers=made.layers, heads=made.heads, seed=seed)
    subject = Subject(model.eval(), tokenizer, Wrapper("chat"))
    run = Run(folder.with_name(folder.name + ".run"), seed, resume=True, save_every=200, progress=progress)
    teach(
        subject, examples, epochs=made.epochs, batch_size=made.batch_size, lr=made.lr, run=run, tokens=made.tokens
    )
    save(subject, folder)
    return folder


@dataclass
class Bench:
    """One benchmark under way.

    original, oracle: folders (oracle None: not to be had). training, audited: the streams methods train on and the
    ones that are measured; both hold "forget" and "retain".
    """

    original: str
    oracle: str | None
    training: Data
    audited: Data
    folder: Path
    attacks: Sequence[Any] = ATTACKS
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SMALL)
    seed: int = 0
    device: str = "cpu"
    progress: Progress = _silent
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, methods: Iterable[str]) -> Audit:
        """Measure original, oracle and every method, each also under every attack."""
        attacks = tuple(bind("attack", spec, "attacks") for spec in self.attacks)
        spec = AuditSpec(tuple(bind("metric", name) for name in METRICS), attacks)
        audit = Audit(self.audited, spec, self.folder / "tables", self.device, self.progress)
        chosen = [self.bound(name) for name in methods]
        audit.expected = 1 + (bool(self.oracle) + len(chosen)) * (1 + len(attacks))
        start = load(self.original, device=self.device)
        twin = load(self.oracle, device=self.device) if self.oracle else None
        if twin is not None:
            self._measure(audit, twin, "oracle")
        audit.measure(start, "original")
        for method in chosen:
            self._measure(audit, self._unlearn(method, clone(start)), method.name)
        return audit

    def bound(self, name: str) -> Bound:
        """A method with this benchmark's settings."""
        return bind("method", {"use": name, **self.settings.get(name, {})}, f"methods.{name}")

    def _measure(self, audit: Audit, subject: Subject, name: str) -> None:
        """A subject as it is and under every attack."""
        audit.measure(subject, name)
        for attack in audit.spec.attacks:
            begun = time.perf_counter()
            audit.attack(attack, subject, name)
            self.seconds[f"{name}+{label(attack)}"] = time.perf_counter() - begun

    def _unlearn(self, method: Bound, subject: Subject) -> Subject:
        begun = time.perf_counter()
        data = Data(self.training)
        known = len(subject.lineage)
        for index, stage in enumerate(method()):
            subject = stage(subject, data, Run(None, self.seed, self.device, progress=self.progress, stage=index))
        self.seconds[method.name] = time.perf_counter() - begun
        cost = sum((event.cost for event in subject.lineage[known:]), Cost())
        with (self.folder / "methods.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"method": spec_of(method), "cost": vars(cost)}) + "\n")
        return subject

    def rows(self, audit: Audit) -> list[Row]:
        """The leaderboard: one row per condition, metric -> (value, interval)."""
        out: list[Row] = []
        for name, state in audit.states.items():
            metrics = {}
            for stream, metric in COLUMNS:
                found = state.scores.get((stream, metric))
                if found is not None:
                    shown = (
                        metric
                        if (stream, metric) != ("retain", "exact_memorization")
                        else "exact_memorization (retain)"
                    )
                    metrics[shown] = (found.value, found.ci)
            method, _, attack = name.partition("+")
            condition = f"after {attack}" if attack else ("before" if name == "original" else "")
            seconds = self.seconds.get(name)
            out.append(
                Row(method=method, condition=condition, metrics=metrics)
                | ({} if seconds is None else {"seconds": seconds})
            )
        return out
