"""Checks of streams before anything is spent on them, and their hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

from expunge.data.said import SPEAKS, TURN
from expunge.errors import DataError, close_to
from expunge.types import Data, Example, Stream


def check_stream(name: str, examples: Sequence[Example]) -> None:
    """Refuse a stream that is empty, names an id twice, has an empty answer, spans outside one, or reserved marks.

    Raises: DataError naming the id and its positions (counted from 1).
    """
    if not examples:
        raise DataError(name, "no examples", "a stream needs at least one", "Check the file, the split and 'limit'")
    seen: dict[str, int] = {}
    for position, example in enumerate(examples, 1):
        if example.id in seen:
            raise DataError(
                name, f"id '{example.id}' stands twice, at positions {seen[example.id]} and {position}",
                "ids must be unique within a stream, because every measurement is kept by id",
                "Rename or remove one of the two",
            )
        seen[example.id] = position
        if not example.answer.strip():
            raise DataError(
                name, f"example '{example.id}' (position {position}) has an empty answer",
                "the answer is what is learned, forgotten and measured", "Fill it or remove the row",
            )
        for start, end in example.spans:
            if not 0 <= start < end <= len(example.answer):
                raise DataError(
                    name, f"example '{example.id}' (position {position}) has the span [{start}, {end}]",
                    f"spans are [start, end) inside its answer of {len(example.answer)} characters", "Correct the span",
                )
        _check_marks(name, position, example)


def _check_marks(name: str, position: int, example: Example) -> None:
    """A mark in any text could end in a prompt, where it would be read as the end of a turn or a begun answer."""
    for key, value in vars(example).items():
        texts = value if isinstance(value, tuple) else (value,)
        found = {mark for text in texts if isinstance(text, str) for mark in (TURN, SPEAKS) if mark in text}
        if key != "id" and found:
            marks = " and ".join(f"U+{ord(mark):04X}" for mark in sorted(found))
            raise DataError(
                name, f"'{key}' of example '{example.id}' (position {position}) holds {marks}",
                "U+FDD0 and U+FDD1 mark turns and begun answers inside a prompt, and no text may hold them",
                "Remove these characters",
            )


def check_overlap(data: Data, warn: Callable[[str], None]) -> None:
    """Compare the forget examples with what is retained or held out, by content and not by id.

    The same text on both sides is pulled both ways (retain), or makes a non-member of a member (holdout): `warn`
    is called once per pair of streams with the counts.

    Raises: DataError when every example of a forget stream is also retained: nothing would be left to forget.
    """
    others = {stream.name: _contents(stream) for role in ("retain", "holdout") for stream in data.of_role(role)}
    retained = set().union(*(others[stream.name] for stream in data.of_role("retain")))
    for stream in data.of_role("forget"):
        contents = [_content(example) for example in stream.examples]
        if contents and all(content in retained for content in contents):
            raise DataError(
                f"data.{stream.name}", f"all {len(contents)} examples are also in a retain stream",
                "forget and retain must differ", "Remove the forget examples from the retain data",
            )
        for name, other in others.items():
            shared = sum(content in other for content in contents)
            if shared:
                warn(
                    f"data.{stream.name}: {shared} of {len(contents)} examples are also in '{name}'; "
                    "the same prompt and answer should stand on one side only. Remove them from one of the two"
                )


def _content(example: Example) -> str:
    text = "\0".join(" ".join(part.split()) for part in (example.prompt, example.answer))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _contents(stream: Stream) -> set[str]:
    return {_content(example) for example in stream.examples}


def stream_of(data: Data, name: str, where: str) -> Stream:
    """A stream by name.

    Raises: DataError naming the closest stream.
    """
    if name not in data:
        raise DataError(where, f"no stream '{name}'", close_to(name, data), "Name a stream of the recipe")
    return data[name]


def stream_hash(stream: Stream | Iterable[Example]) -> str:
    """Sixteen hex digits of the examples, all fields, in their order; the stream's name does not count."""
    digest = hashlib.sha256()
    for example in stream.examples if isinstance(stream, Stream) else stream:
        line = json.dumps(dataclasses.astuple(example), ensure_ascii=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]
