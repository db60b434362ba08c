"""What a benchmark is made of, and small models that are trained once and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from expunge.data.examples import stream_hash
from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.models import save
from expunge.pretrain import teach
from expunge.run import Progress, Run, _silent
from expunge.types import Data, Example, Subject, Wrapper

Grid = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class World:
    """One benchmark, ready to be worked through.

    original, oracle: model folders (oracle None: not to be had). training, audited: the streams methods train on and
    the ones that are measured; both hold "forget" and "retain" where methods are to be tried.
    others: folders or names of more models that are measured beside them.
    columns: (stream, metric) of the leaderboard. judged: the metric that settings are chosen by.
    grids: method -> the settings tried, the same number for every method; a method without one runs as it is.
    """

    name: str
    original: str
    oracle: str | None
    training: Data
    audited: Data
    metrics: Sequence[Any]
    columns: Sequence[tuple[str, str]]
    attacks: Sequence[Any]
    judged: str = "memorization_accuracy"
    grids: Mapping[str, Grid] = field(default_factory=dict)
    others: Sequence[str] = ()


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


def methods_of(benchmark: str) -> list[str]:
    """The methods a benchmark has settings for: its name in capitals in one of the `grids` modules."""
    folder = Path(__file__).parent
    for path in sorted(folder.glob("grids*.py")):
        found = getattr(import_module(f"expunge.benches.{path.stem}"), benchmark.upper(), None)
        if found is not None:
            return sorted(found)
    return []


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
