"""What the training-based methods share: a retain term by name."""

from __future__ import annotations

from typing import Literal

from expunge.registry import term
from expunge.types import Term

Retain = Literal["none", "nll", "kl"]


def retain_terms(retain: Retain, weight: float) -> list[Term]:
    """No term, likelihood on retain, or forward KL to the reference on retain."""
    return [] if retain == "none" else [term(retain, on="retain", weight=weight)]
