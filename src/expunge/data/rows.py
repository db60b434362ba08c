"""From rows of a file to examples: which column is which field, and clear words when one is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from expunge.data.examples import check_stream
from expunge.errors import DataError, brief, close_to
from expunge.types import Example, Span

Placed = tuple[str, Any]  # where a row stands ("line 3"), and the row

# What others call the two compulsory fields; used only to suggest, never to guess.
_ALSO_CALLED = {
    "prompt": ("question", "instruction", "query", "input", "prefix", "context"),
    "answer": ("response", "output", "completion", "target", "text", "content", "label"),
}
_OPTIONAL = (
    "spans",
    "subject",
    "paraphrases",
    "paraphrased_answer",
    "perturbed",
    "choices",
    "alternative",
    "contrast",
)
_LISTS = frozenset({"paraphrases", "perturbed", "choices"})


@dataclass(frozen=True)
class Columns:
    """Which column holds which field of an example. An empty `prompt` means: text without a prompt."""

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    optional: Mapping[str, str] = field(default_factory=dict)


def columns(prompt: str, answer: str, id: str, fields: Mapping[str, str] | None, where: str) -> Columns:
    """Columns as a reader was asked for them.

    Optional fields are taken from columns of their own name; `fields` names other ones, or "" for: not at all.
    """
    for name in fields or {}:
        if name not in _OPTIONAL:
            raise DataError(
                f"{where}: fields.{name}", "no such field of an example", close_to(name, _OPTIONAL), "Correct the name"
            )
    return Columns(prompt, answer, id, dict(fields or {}))


def examples(rows: Iterable[Placed], where: str, stem: str, wanted: Columns, limit: int | None) -> list[Example]:
    """Make the first `limit` rows into checked examples; rows without an id are called `stem/NUMBER`, from 1.

    Raises: DataError with file, line, and the closest name.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{where}: limit", f"got {limit}", "accepted: 1 or more", "Leave it out to read everything")
    made = [
        _example(row, f"{where}, {place}", f"{stem}/{number}", wanted)
        for number, (place, row) in enumerate(islice(rows, limit), 1)
    ]
    check_stream(where, made)
    return made


def stem_of(path: Path) -> str:
    """`people` for people.jsonl and people.jsonl.gz."""
    return path.name.split(".", 1)[0] or path.name


def _example(row: Any, where: str, fallback_id: str, wanted: Columns) -> Example:
    if not isinstance(row, Mapping):
        raise DataError(
            where,
            f"{type(row).__name__} instead of an object",
            "a row is an object with named fields",
            'Write {"prompt": ..., "answer": ...}',
        )
    answer = _text(row, "answer", wanted.answer, where)
    prompt = _text(row, "prompt", wanted.prompt, where) if wanted.prompt else ""
    extra: dict[str, Any] = {}
    for name in _OPTIONAL:
        column = wanted.optional.get(name, name)
        value = row.get(column)
        if column and name in wanted.optional and column not in row:
            raise _missing(row, name, column, where)
        if not column or value is None or value == "" or column in (wanted.answer, wanted.prompt):
            continue
        at = f"{where}, field '{column}'"
        if name == "spans":
            extra[name] = _spans(value, answer, at)
        else:
            extra[name] = _texts(value, at) if name in _LISTS else _string(value, at)
    return Example(_id(row, wanted.id, where, fallback_id), prompt, answer, **extra)


def _id(row: Mapping[str, Any], column: str, where: str, fallback: str) -> str:
    value = row.get(column)
    if value is None or value == "":
        if column != "id" and column not in row:
            raise _missing(row, "id", column, where)
        return fallback
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(
            f"{where}, field '{column}'", f"got {brief(value)}", "an id is text or a whole number", "Correct it"
        )
    return str(value)


def _text(row: Mapping[str, Any], name: str, column: str, where: str) -> str:
    if row.get(column) is None:
        raise _missing(row, name, column, where)
    return _string(row[column], f"{where}, field '{column}'")


def _missing(row: Mapping[str, Any], name: str, column: str, where: str) -> DataError:
    present = [str(key) for key in row]
    if column in row:
        found, near = f"field '{column}' is null", "accepted: text"
    else:
        found = f"no field '{column}'"
        also = [key for key in _ALSO_CALLED.get(name, ()) if key in present]
        near = f"did you mean '{also[0]}'?" if also else close_to(column, present)
    none = ", or prompt: '' for text without a prompt" if name == "prompt" else ""
    key = f"fields: {{{name}: COLUMN}}" if name in _OPTIONAL else f"{name}: COLUMN"
    return DataError(where, found, near, f"Name the column with {key}{none}")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(where, f"{type(value).__name__} instead of text", "accepted: text", "Write it in quotes")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts; one text stands for a list of one; a table cell may hold a JSON list."""
    value = _decoded(value, where)
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise DataError(where, f"{type(value).__name__} instead of a list", "accepted: a list of texts", "Correct it")
    return tuple(_string(item, f"{where}[{i}]") for i, item in enumerate(value))


def _decoded(value: Any, where: str) -> Any:
    if hasattr(value, "tolist"):  # numpy arrays out of Parquet
        return value.tolist()
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(where, f"is not a JSON list ({error})", 'accepted: ["a", "b"]', "Correct it") from error


def _spans(value: Any, answer: str, where: str) -> tuple[Span, ...]:
    """Each span is [start, end) in characters of the answer, or a text that stands in it (every occurrence)."""
    value = _decoded(value, where)
    if not isinstance(value, (list, tuple)):
        raise DataError(where, f"{type(value).__name__} instead of a list", "accepted: [[start, end]]", "Correct it")
    spans: list[Span] = []
    for i, item in enumerate(value):
        if isinstance(item, str) and item and item in answer:
            start = answer.find(item)
            while start >= 0:
                spans.append((start, start + len(item)))
                start = answer.find(item, start + len(item))
        elif isinstance(item, (list, tuple)) and len(item) == 2 and all(type(end) is int for end in item):
            spans.append((item[0], item[1]))
        else:
            raise DataError(
                f"{where}[{i}]",
                f"got {type(item).__name__} that is no place in the answer",
                "a span is [start, end] in characters, or a text that stands in the answer",
                "Correct it",
            )
    return tuple(sorted(set(spans)))
