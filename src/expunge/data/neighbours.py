"""Variants that change the words of a text, or put other texts before it: what membership scores compare with.

All of them are the same on every machine: choices hang on ids and numbers, never on the order of examples.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from expunge.data.variants import Texts
from expunge.data.words import STOP_WORDS
from expunge.errors import DataError
from expunge.registry import variant
from expunge.types import Data, Example, Stream

Number = TypeVar("Number", int, float)

WORD = re.compile(r"\w+(?:['’]\w+)*")
ENDINGS = ("ing", "ed", "ly", "s")  # of lower-case words: about what part of speech they are
BETWEEN = "\n\n"  # between the texts of a prefix, and before what follows it
REMEMBERED = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """What is read off a stream once: its words by class, its examples by id and in an order of no meaning."""

    stream: Stream

    @cached_property
    def examples(self) -> Mapping[str, Example]:
        return {example.id: example for example in self.stream.examples}

    @cached_property
    def words(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, set[str]] = {}
        for example in self.stream.examples:
            for word in WORD.findall(example.answer):
                kind = word_class(word)
                if kind is not None:
                    found.setdefault(kind, set()).add(word)
        return {kind: sorted(words) for kind, words in found.items()}

    @cached_property
    def shuffled(self) -> Sequence[Example]:
        return sorted(self.stream.examples, key=lambda one: hashlib.sha256(_utf8(one.id)).digest())


_seen: OrderedDict[int, Seen] = OrderedDict()  # by identity; the stream is held, so no other takes its place


def seen(stream: Stream, room: int = REMEMBERED) -> Seen:
    """`Seen` of a stream, from memory where it is known; those used last are kept, at least `room` of them."""
    found = _seen.get(id(stream))
    if found is None:
        found = _seen[id(stream)] = Seen(stream)
        while len(_seen) > max(REMEMBERED, room):
            _seen.popitem(last=False)
    _seen.move_to_end(id(stream))
    return found


def word_class(word: str) -> str | None:
    """Words of one class may stand for each other; None for those that stay: grammar, and marks that are no word.

    Numbers by their digits, words with digits by their shape, then capitals, capitalised, and lower case by ending.
    """
    if word.lower() in STOP_WORDS or not any(character.isalnum() for character in word):
        return None
    if any(character.isdigit() for character in word):
        return "shape " + "".join("9" if c.isdigit() else "A" if c.isupper() else "a" for c in word)
    if word.isupper() and len(word) > 1:
        return "capitals"
    if word[0].isupper():
        return "capitalised"
    ending = next((end for end in ENDINGS if word.endswith(end) and len(word) > len(end) + 2), "")
    return f"lower case {ending}".rstrip()


def neighbour(text: str, words: Mapping[str, Sequence[str]], replaced: float, random: np.random.Generator) -> str:
    """The text with a share of its replaceable words (at least one) replaced by others of their class.

    Args:
        words: what may stand for a word, by class, sorted. replaced: share, in (0, 1].
    Returns: the text itself where no word can be replaced.
    """
    places = []
    for match in WORD.finditer(text):
        pool = words.get(word_class(match[0]) or "", ())
        own = bisect_left(pool, match[0])
        others = len(pool) - (own < len(pool) and pool[own] == match[0])
        if others:
            places.append((match, pool, own, others))
    if not places:
        return text
    number = max(1, round(replaced * len(places)))
    parts, end = [], 0
    for place in sorted(random.choice(len(places), size=number, replace=False).tolist()):
        match, pool, own, others = places[place]
        drawn = int(random.integers(others))
        skipped = drawn >= own and others < len(pool)  # the word itself stands at `own` and is not drawn
        parts += [text[end : match.start()], pool[drawn + skipped]]
        end = match.end()
    return "".join([*parts, text[end:]])


@variant("lowercase")
def lowercase(example: Example, prompt: str, data: Data) -> Texts:
    """Prompt and answer in lower case."""
    yield prompt.lower(), example.answer.lower(), ()


@variant("neighbours")
def neighbours(example: Example, prompt: str, data: Data, num: str, replaced: str = "0.3") -> Texts:
    """Up to `num` texts near the answer: a share of its content words replaced by others of its stream's answers.

    A word is replaced by one of its class (`word_class`), so names stay names and a number keeps its digits; grammar
    stays. These are word swaps, not the substitutes of a masked language model. Equal ones stand once; an example
    without a word to replace has none. Of several streams that hold the example, the first by name lends the words.
    """
    share, texts = _number(replaced, float, "neighbours"), {example.answer}
    if not 0 < share <= 1:
        raise DataError(
            "variant neighbours", f"got a share of '{replaced}'", "accepted: more than 0, at most 1",
            "Correct the argument 'replaced'",
        )
    words = next((known.words for known in _holding(example, data)), None)
    if words is None:
        return
    for number in range(_number(num, int, "neighbours")):
        random = np.random.default_rng([zlib.crc32(_utf8(example.id)), number])
        text = neighbour(example.answer, words, share, random)
        if text not in texts:
            texts.add(text)
            yield prompt, text, ()


@variant("conditioned")
def conditioned(example: Example, prompt: str, data: Data, against: str, shots: str) -> Texts:
    """The text after `shots` texts of the stream `against`, the same ones for every example that is not among them.

    They stand before the prompt. Plain text has none, and a prompt would be dressed by the template: there they stand
    before the answer, and whoever compares leaves their tokens out.
    """
    if against not in data:
        raise LookupError(f"no stream '{against}' was given")
    number = _number(shots, int, "conditioned")
    own = (example.prompt, example.answer)
    others = list(_first(seen(data[against]).shuffled, number, own))
    if len(others) < number:
        raise LookupError(f"stream '{against}' has {len(others)} other texts, {number} are to stand before each")
    before = "".join(" ".join(filter(None, (one.prompt, one.answer))) + BETWEEN for one in others)
    if prompt:
        yield before + prompt, example.answer, example.spans
    else:
        at = len(before)
        yield "", before + example.answer, tuple((start + at, end + at) for start, end in example.spans)


def _first(examples: Sequence[Example], number: int, but: tuple[str, str]) -> Iterator[Example]:
    """The first so many examples that are not this text."""
    for example in examples:
        if number <= 0:
            return
        if (example.prompt, example.answer) != but:
            number -= 1
            yield example


def _holding(example: Example, data: Data) -> Iterator[Seen]:
    """The streams an example is of, by name: what is drawn must not hang on the order of streams."""
    for name in sorted(data):
        known = seen(data[name], len(data))  # all are asked for every example: fewer would be read again each time
        if known.examples.get(example.id) is example:
            yield known


def _number(text: str, kind: Callable[[str], Number], where: str) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        raise DataError(f"variant {where}", f"got '{text}'", "accepted: a number", "Correct the argument") from error


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
