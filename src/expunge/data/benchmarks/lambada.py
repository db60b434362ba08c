"""LAMBADA: passages whose last word can be told from the whole passage only (Paperno et al. 2016)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from expunge.data.examples import check_stream
from expunge.data.readers import csv, read_dataset, read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Example

LAST = re.compile(r"\s(\S+)\s*$")


@reader("lambada")
def lambada(*, data: str, column: str = "text", limit: int | None = None) -> list[Example]:
    """Passages as plain texts whose last word is an annotated span; what the metric `lambada` reads.

    Args:
        data: a file (.csv, .json, .jsonl), the folder of KUL's data, or a name of the hub such as
            EleutherAI/lambada_openai. column: that holds the passage.
        limit: first rows only.
    Raises: DataError for a file that is not there, or a passage of fewer than two words.
    """
    if limit is not None and limit < 1:
        raise DataError("lambada: limit", f"got {limit}", "accepted: 1 or more", "Leave it out to read everything")
    texts = [row.rstrip() for row in _texts(data, column)][:limit]
    made = []
    for number, text in enumerate(texts):
        last = LAST.search(text)
        if last is None:
            place = f"{data}, row {number + 1}"
            raise DataError(place, "fewer than two words", "a passage and its last word", "Remove the row")
        made.append(Example(f"lambada/{number}", "", text, spans=(last.span(1),)))
    check_stream(data, made)
    return made


def _texts(data: str, column: str) -> list[str]:
    path = Path(data).expanduser()
    file = path / "validation_data" / "lambada.csv" if path.is_dir() else path
    if file.suffix == ".csv":
        return [one.answer for one in csv(path=str(file), prompt="", answer=column, id="id")]
    known = file.suffix in (".json", ".jsonl") or file.is_file()
    rows: Any = read_rows(file) if known else read_dataset(data, None, "test")
    try:
        return [str(row[column]) for row in rows]
    except (KeyError, TypeError) as error:
        raise DataError(data, f"a row without '{column}'", "accepted: one passage a row", "Name the column") from error
