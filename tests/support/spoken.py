"""Scorers as users write them: `support.spoken:numbers` in a recipe."""

from __future__ import annotations


def numbers(texts: list[str]) -> list[float | None]:
    """The number a text is; None for "?"."""
    return [None if text == "?" else float(text) for text in texts]


def too_few(texts: list[str]) -> list[float]:
    return [0.5] * (len(texts) - 1)


def outside(texts: list[str]) -> list[float]:
    return [1.5] * len(texts)
