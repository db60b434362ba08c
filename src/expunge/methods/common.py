"""What the training-based methods share: a retain term by name, and the field's default optimiser."""

from __future__ import annotations

from typing import Any, Literal

from expunge.forget import forget
from expunge.registry import term
from expunge.types import Bound, Term

Retain = Literal["none", "nll", "kl"]


def retain_terms(retain: Retain, weight: float) -> list[Term]:
    """No term, likelihood on retain, or forward KL to the reference on retain."""
    return [] if retain == "none" else [term(retain, on="retain", weight=weight)]


def train_on(terms: list[Term], *, epochs: float, optimizer: Any, **rest: Any) -> Bound:
    """A forget stage; without an optimiser of the user's: AdamW, one epoch of warm-up (at most half), linear to 0."""
    warm = {"use": "adamw", "warmup": min(0.5, 1 / epochs) if epochs > 0 else 0.0}
    return forget(terms=terms, epochs=epochs, optimizer=optimizer or warm, **rest)
