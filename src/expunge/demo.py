"""The whole story on the embedded default: a small model that knows secrets, its oracle twin, and their removal.

The shipped base knows the language of an invented world and none of the people below. The demo teaches it the
forget and the retain people (the target), teaches an identical copy the retain people alone in as many steps (the
oracle), removes the forget people from the target, attacks the result and writes a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data.synthetic import synthetic
from expunge.data.synthetic_base import base_folder
from expunge.models import load, save
from expunge.pretrain import teach
from expunge.run import Progress, Run, _silent
from expunge.types import Example, Subject


@dataclass(frozen=True)
class Settings:
    """Sizes of the story: people, and how the base is taught."""

    forget: int = 10
    retain: int = 20
    holdout: int = 20
    world_facts: int = 1  # all of them; what everybody knows must stay known
    steps: int = 160
    batch_size: int = 32
    lr: float = 0.02
    seed: int = 0


QUICK = Settings(forget=5, retain=10, holdout=5, steps=110)


def people(part: str, settings: Settings) -> list[Example]:
    """Questions and answers of one part of the story."""
    return synthetic(part=part, num_people=getattr(settings, part), seed=settings.seed)  # type: ignore[arg-type]


def inject(base: Path, examples: list[Example], settings: Settings, progress: Progress = _silent) -> Subject:
    """The base, taught these examples in `settings.steps` steps."""
    subject = load(str(base))
    epochs = settings.steps * settings.batch_size / len(examples)
    run = Run(None, settings.seed, progress=progress)
    return teach(
        subject, examples, epochs=epochs, batch_size=settings.batch_size, lr=settings.lr, run=run, tokens="answer"
    )


def prepare(
    folder: Path, settings: Settings, *, base: Path | None = None, progress: Progress = _silent
) -> dict[str, Any]:
    """Make the target and its oracle twin under `folder`; returns the recipe of the removal as a plain mapping."""
    base = base or base_folder()
    forget, rest = people("forget", settings), people("retain", settings) + people("world_facts", settings)
    for name, examples in (("target", forget + rest), ("oracle", rest)):
        if not (folder / name / "config.json").exists():
            save(inject(base, examples, settings, progress), folder / name)
    streams = {
        role: {"use": "synthetic", "part": role, "num_people": getattr(settings, role), "seed": settings.seed}
        for role in ("forget", "retain", "holdout", "world_facts")
    }
    streams["world_facts"]["role"] = "probe"
    anchor = {"use": "synthetic", "part": "anchor", "num_people": 10, "seed": settings.seed}
    return {
        "expunge": 1,
        "title": f"Removal of {settings.forget} people from a small model that knew them",
        "model": {"from": str(folder / "target")},
        "data": {**streams, "anchor": anchor},
        "method": {"use": "npo", "lr": 2e-3, "epochs": 15, "batch_size": 32, "alpha": 20.0},
        "audit": {
            "attacks": [
                {"use": "quantize", "bits": 8},
                {"use": "quantize", "bits": 4},
                {"use": "paraphrase"},
                {"use": "relearn", "at": [5, 20], "lr": 5e-4, "batch_size": 16},
            ],
            "against": str(folder / "oracle"),
        },
        "seed": settings.seed,
    }
