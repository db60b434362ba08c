"""Golden values and how their logits become views."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.measure.forward import make_pass
from expunge.types import Batch, View

SYSTEMS = Path(__file__).resolve().parents[2].parent / "shared" / "systems"


@cache
def load(name: str) -> Any:
    """A golden file, or a skip that says what is absent."""
    path = SYSTEMS / "golden" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"golden values are not here ({path.name})")
    return json.loads(path.read_text())


def view(part: dict[str, Any], *, positions: str = "answer", grad: bool = False) -> View:
    """A view of explicit logits [B, T, V] and labels, in float64; the reference from `logits_ref`."""
    labels = torch.tensor(part["labels"])
    mask = torch.tensor(part["attention_mask"]) if "attention_mask" in part else torch.ones_like(labels)
    batch = Batch(labels.clamp(min=0), mask, labels, tuple(str(i) for i in range(len(labels))))
    keep = batch.positions(positions)

    def of(logits: Any) -> torch.Tensor:
        return torch.tensor(logits, dtype=torch.float64)[:, :-1][keep]

    now = of(part["logits"]).requires_grad_(grad)
    ref = make_pass(of(part["logits_ref"]), batch, keep, with_logits=True)
    return View(make_pass(now, batch, keep, with_logits=True), ref, batch)
