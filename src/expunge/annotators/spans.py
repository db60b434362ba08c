"""What all annotators share: runs of tokens, whole words, spans that say something, places of a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.data.words import STOP_WORDS
from expunge.types import Cost, Span

# One character is a word where a script puts no spaces between words; elsewhere a word may have signs inside it, so
# that a number with hyphens or a mail address is forgotten whole: half of it would be a prompt for the other half.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{_ALONE}]"
WORD = re.compile(rf"[{_ALONE}]|{_LETTER}+(?:[^\w\s]+{_LETTER}+)*")
_PIECE = re.compile(r"\w+|[^\w\s]")



class Found(list[tuple[Span, ...]]):
    """What an annotator found, with what it tells the audit record about how, and what it cost."""

    def __init__(
        self, spans: Iterable[tuple[Span, ...]], *, record: Mapping[str, Any] | None = None, cost: Cost | None = None
    ) -> None:
        super().__init__(spans)
        self.record: Mapping[str, Any] = record or {}
        self.cost = cost or Cost()


def runs(mask: np.ndarray, gap: int = 0) -> list[Span]:
    """Runs of true entries as [start, end), those with at most `gap` false ones between them made one."""
    merged_runs: list[Span] = []
    for place in np.flatnonzero(mask).tolist():
        if merged_runs and place - merged_runs[-1][1] <= gap:
            merged_runs[-1] = (merged_runs[-1][0], place + 1)
        else:
            merged_runs.append((place, place + 1))
    return merged_runs


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in order, those that overlap or touch made one."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)


def trimmed(text: str, span: Span) -> Span | None:
    """The span without white space at its ends; None when nothing is left."""
    start, end = max(span[0], 0), min(span[1], len(text))
    said = text[start:end]
    left = len(said) - len(said.lstrip())
    stripped = said.strip()
    return (start + left, start + left + len(stripped)) if stripped else None


def whole_words(text: str, span: Span) -> Span:
    """The span, extended over every word it touches."""
    start, end = span
    for word in WORD.finditer(text):
        if word.start() < end and word.end() > start:
            start, end = min(start, word.start()), max(end, word.end())
    return start, end


def says_something(text: str) -> bool:
    """Whether a text is more than punctuation and stop words. Emoji and symbols count as something."""
    return any(
        piece.lower() not in STOP_WORDS if piece[0].isalnum() else unicodedata.category(piece[0]) == "So"
        for piece in _PIECE.findall(text)
    )


def occurrences(text: str, part: str, *, every: bool = True) -> list[Span]:
    """Where `part` stands in `text` verbatim, from left to right without overlaps; the first one, or every one.

    A part that begins or ends in the middle of a word counts only where it stands as words of its own, if it does so
    anywhere: "Ann" is not looked for inside "Annual".
    """
    found, start = [], text.find(part) if part else -1
    while start >= 0:
        found.append((start, start + len(part)))
        start = text.find(part, start + len(part))
    alone = [(a, b) for a, b in found if not _cuts(text, a) and not _cuts(text, b)]
    kept = alone or found
    return kept if every else kept[:1]


def _cuts(text: str, place: int) -> bool:
    return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()


def overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(start < span[1] and end > span[0] for start, end in others)
