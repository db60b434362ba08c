"""Readers: files, folders, hub data sets and inline rows -> examples.

Every reader takes the names of the columns that hold `prompt`, `answer` and `id`, optional fields by `fields`
({example field: column}; a column of the field's own name is taken by itself, {field: ""} leaves it out), and
`limit` (first rows only).
"""

from __future__ import annotations

import csv as csv_module
import gzip
import io
import json as json_module
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from expunge.data.rows import Columns, Placed, columns, examples, stem_of
from expunge.errors import DataError, close_to
from expunge.registry import reader
from expunge.types import Example

_GZIP = b"\x1f\x8b"


@reader("jsonl")
def jsonl(
    *, path: str, prompt: str = "prompt", answer: str = "answer", id: str = "id", limit: int | None = None,
    fields: dict[str, str] | None = None,
) -> list[Example]:
    """JSON lines: one object per line; blank lines are skipped; may be gzipped."""
    wanted = columns(prompt, answer, id, fields, path)
    return _read(path, lambda file: _lines(read_text(file), str(file)), wanted, limit)


@reader("json")
def json(
    *, path: str, prompt: str = "prompt", answer: str = "answer", id: str = "id", limit: int | None = None,
    fields: dict[str, str] | None = None,
) -> list[Example]:
    """A JSON array of objects; JSON lines are taken as well, whatever the file is called; may be gzipped."""
    wanted = columns(prompt, answer, id, fields, path)
    return _read(path, lambda file: _array(read_text(file), str(file)), wanted, limit)


@reader("csv")
def csv(
    *, path: str, prompt: str = "prompt", answer: str = "answer", id: str = "id", limit: int | None = None,
    fields: dict[str, str] | None = None, delimiter: str = ",",
) -> list[Example]:
    """A table with a header line; cells of list fields hold JSON lists; may be gzipped. Tab: delimiter "\\t"."""
    if len(delimiter) != 1:
        raise DataError(f"{path}: delimiter", f"got {delimiter!r}", "accepted: one character", "Correct it")
    return _read(path, lambda file: read_table(file, delimiter), columns(prompt, answer, id, fields, path), limit)


@reader("parquet")
def parquet(
    *, path: str, prompt: str = "prompt", answer: str = "answer", id: str = "id", limit: int | None = None,
    fields: dict[str, str] | None = None,
) -> list[Example]:
    """A Parquet file."""
    return _read(path, _parquet, columns(prompt, answer, id, fields, path), limit)


@reader("hf")
def hf(
    *, path: str, config: str | None = None, split: str | None = None, prompt: str = "prompt", answer: str = "answer",
    id: str = "id", limit: int | None = None, fields: dict[str, str] | None = None,
) -> list[Example]:
    """A data set of the hub by name, or a local folder: one that save_to_disk wrote, or one of data files."""
    wanted = columns(prompt, answer, id, fields, path)
    table = read_dataset(path, config, split)
    rows = ((f"row {number}", row) for number, row in enumerate(table, 1))
    return examples(rows, path, Path(path).name or path, wanted, limit)


@reader("text")
def text(*, path: str, words: int = 100, limit: int | None = None) -> list[Example]:
    """Plain text without prompts, cut into passages of `words` words; white space inside a passage is kept."""
    if words < 1:
        raise DataError(f"{path}: words", f"got {words}", "accepted: 1 or more", "Correct it")
    return _read(path, lambda file: _passages(read_text(file), words), Columns(prompt=""), limit)


@reader("inline")
def inline(
    *, rows: list[dict[str, Any]], prompt: str = "prompt", answer: str = "answer", id: str = "id",
    limit: int | None = None, fields: dict[str, str] | None = None,
) -> list[Example]:
    """Rows written in the recipe itself."""
    placed = ((f"row {number}", row) for number, row in enumerate(rows, 1))
    return examples(placed, "inline", "inline", columns(prompt, answer, id, fields, "inline"), limit)


def _read(path: str, rows: Callable[[Path], Iterator[Placed]], wanted: Columns, limit: int | None) -> list[Example]:
    file = Path(path).expanduser()
    return examples(rows(file), path, stem_of(file), wanted, limit)


def read_bytes(file: Path) -> bytes:
    """The content of a file, unpacked if it is gzip (whatever it is called).

    Raises: DataError when it is missing, a folder, unreadable, broken or empty.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        siblings = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
        near = close_to(file.name, siblings) if siblings else f"the folder {file.parent} has no files"
        raise DataError(str(file), "no such file", near, "Correct the path (relative to where you are)") from error
    except OSError as error:
        raise DataError(
            str(file), f"cannot be read ({error.strerror})", "accepted: a readable file", "Check path and permissions"
        ) from error
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(str(file), f"broken gzip ({error})", "accepted: a whole file", "Copy it again") from error
    if not content.strip():
        raise DataError(str(file), "the file is empty", "accepted: at least one example", "Check how it was written")
    return content


def read_text(file: Path) -> str:
    """The text of a file: UTF-8, with or without a byte-order mark."""
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            str(file), f"byte {error.start} is not UTF-8", "accepted: UTF-8 text", "Convert it with iconv -t utf-8"
        ) from error


def read_rows(file: Path) -> list[Any]:
    """The rows of a JSON array or JSON-lines file, for benchmarks that know their columns."""
    return [row for _, row in _array(read_text(file), str(file))]


def _lines(content: str, where: str) -> Iterator[Placed]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json_module.loads(line)
        except ValueError as error:
            raise DataError(
                f"{where}, line {number}", f"is not JSON ({error})", "accepted: one JSON object per line",
                "Correct the line; an array over several lines is read with use: json",
            ) from error
        yield f"line {number}", row


def _array(content: str, where: str) -> Iterator[Placed]:
    start = content.lstrip()[:1]
    if start == "[":
        try:
            rows = json_module.loads(content)
        except ValueError as error:
            raise DataError(
                where, f"is not JSON ({error})", "accepted: an array of objects, or JSON lines", "Correct the file"
            ) from error
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return
    try:
        single = json_module.loads(content)
    except ValueError:  # several objects: JSON lines
        yield from _lines(content, where)
        return
    if "\n" in content.strip():
        keys = ", ".join(list(single)[:5]) if isinstance(single, dict) else type(single).__name__
        raise DataError(
            where, f"is one object ({keys})", "accepted: an array of objects, or JSON lines", "Take the rows out of it"
        )
    yield "line 1", single


def read_table(file: Path, delimiter: str) -> Iterator[Placed]:
    """The rows of a table with a header line, and where each stands."""
    content = read_text(file)
    if "\n" not in content:
        content = content.replace("\r", "\n")
    csv_module.field_size_limit(2**31 - 1)
    table = csv_module.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(table)
        for cells in table:
            if not cells:
                continue
            place = f"line {table.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{file}, {place}", f"{len(cells)} cells", f"the header has {len(header)}",
                    "Quote cells that contain the delimiter, or name another one with 'delimiter'",
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv_module.Error as error:
        raise DataError(
            f"{file}, line {table.line_num}", f"broken table ({error})", "accepted: CSV, double quotes", "Correct it"
        ) from error


def _parquet(file: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(read_bytes(file)))
    except pyarrow.ArrowException as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(str(file), f"is not Parquet ({reason})", "accepted: Parquet", "Write it again") from error
    yield from ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1))


def _passages(content: str, words: int) -> Iterator[Placed]:
    places = [match.span() for match in re.finditer(r"\S+", content)]
    for first in range(0, len(places), words):
        last = min(first + words, len(places)) - 1
        yield f"word {first + 1}", {"answer": content[places[first][0] : places[last][1]]}


def read_dataset(path: str, config: str | None, split: str | None) -> Any:
    """One split of a data set of the hub, or of a local folder."""
    import datasets

    folder = Path(path).expanduser()
    saved = folder.is_dir() and any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(path, config)
    except Exception as error:  # the network and the many formats below raise many kinds
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(
            path, f"could not be had ({type(error).__name__}: {reason})",
            "accepted: a data set of the hub (with 'config' where it has several), or a local folder",
            "Check name, config and network; without a network, give a local folder",
        ) from error
    if not isinstance(found, dict):
        return found
    if split is None and len(found) > 1:
        raise DataError(f"{path}: split", "missing", f"accepted: {', '.join(found)}", "Add 'split: NAME'")
    if split is not None and split not in found:
        raise DataError(f"{path}: split", f"no split '{split}'", close_to(split, found), "Correct the name")
    return found[split or next(iter(found))]
