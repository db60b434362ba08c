"""The sides of a pair as texts: a sentence, the same with other words in one place, and perhaps an unrelated one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from expunge.data.variants import Texts
from expunge.errors import DataError, close_to
from expunge.registry import variant
from expunge.types import Data, Example, Span

SIDES = ("answer", "contrast", "perturbed")
EXTENTS = ("whole", "fill")
_WORD = re.compile(r"\S+")


@variant("pair")
def pair(example: Example, prompt: str, data: Data, side: str, extent: str = "whole") -> Texts:
    """One side of a pair, with a span over the whole text ("whole") or the words in which the sides differ ("fill")."""
    for got, known in ((side, SIDES), (extent, EXTENTS)):
        if got not in known:
            raise DataError(f"pair:{side}:{extent}", f"got '{got}'", close_to(got, known), "Write pair:SIDE:EXTENT")
    if example.contrast is None:
        return
    texts = {"answer": (example.answer,), "contrast": (example.contrast,), "perturbed": example.perturbed}
    everything = [text for found in texts.values() for text in found]
    fills = dict(zip(everything, differing(everything), strict=True)) if extent == "fill" else {}
    for text in texts[side]:
        yield prompt, text, fills.get(text, ((0, len(text)),))


def differing(texts: Sequence[str]) -> list[tuple[Span, ...]]:
    """Where sentences made from one template differ, in characters of each; marks that all have there do not count.

    Of sentences with as many words each, the runs of words that are not the same in all; otherwise the one stretch
    between the words all begin with and those all end with, of at least one word. Beside a text without words
    everything differs, and it has no place itself.
    """
    found = [list(_WORD.finditer(text)) for text in texts]
    if not all(found):
        return [((one[0].start(), one[-1].end()),) if one else () for one in found]
    words = [[word[0] for word in one] for one in found]
    runs = _runs(words) if len({len(one) for one in words}) == 1 else _middle(words)
    made: list[list[Span]] = [[] for _ in texts]
    for run in runs:
        places = [(one[a].start(), one[b - 1].end()) for one, (a, b) in zip(found, run, strict=True)]
        left, right = _shared_marks([text[a:b] for text, (a, b) in zip(texts, places, strict=True)])
        for spans, (a, b) in zip(made, places, strict=True):
            spans.append((a + left, b - right))
    return [tuple(spans) for spans in made]


def _runs(words: Sequence[Sequence[str]]) -> list[list[Span]]:
    """Of sentences with the same number of words: the runs of places where they differ, for every sentence."""
    same = [len(set(column)) == 1 for column in zip(*words, strict=True)]
    edges = [i for i, (a, b) in enumerate(pairwise([True, *same, True])) if a is not b]
    return [[(a, b)] * len(words) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _middle(words: Sequence[Sequence[str]]) -> list[list[Span]]:
    """The stretch of words between the common beginning and the common end."""
    shortest = min(map(len, words))
    first = next((i for i in range(shortest) if len({one[i] for one in words}) > 1), shortest)
    last = next((i for i in range(shortest) if len({one[-1 - i] for one in words}) > 1), shortest)
    first = min(first, shortest - 1)
    last = min(last, shortest - 1 - first)
    return [[(first, len(one) - last) for one in words]]


def _shared_marks(fills: Sequence[str]) -> tuple[int, int]:
    """How many characters that are no letters all fills begin, and end, with; something is left of each."""
    room, counts = min(map(len, fills)) - 1, []
    for order in (1, -1):
        turned = [fill[::order] for fill in fills]
        num = 0
        while num < room and turned[0][num] in ".,;:!?\"'()" and len({one[num] for one in turned}) == 1:
            num += 1
        counts.append(num)
        room -= num
    return counts[0], counts[1]
