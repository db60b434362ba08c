"""MUSE: news to be forgotten, questions about it, and texts of the same kind that nobody saw (Shi et al. 2024).

Reads the published files, in a folder with `knowmem`, `verbmem`, `privleak` and `raw`, or the hub's muse-bench sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Role, Stream

Part = Literal["forget", "retain", "privleak", "holdout", "verbmem", "knowmem_forget", "knowmem_retain"]

# Where a part lies, the first that is there: the raw corpora to be retained were published apart from the rest.
_PLACES: dict[Part, tuple[str, ...]] = {
    "forget": ("raw/forget", "raw/forget_200", "privleak/forget"),
    "retain": ("raw/retain2", "privleak/retain2", "privleak/retain"),
    "privleak": ("privleak/forget",),
    "holdout": ("privleak/holdout",),
    "verbmem": ("verbmem/forget",),
    "knowmem_forget": ("knowmem/forget_qa",),
    "knowmem_retain": ("knowmem/retain2_qa", "knowmem/retain_qa"),
}
ROLES: dict[Part, Role] = {
    "forget": "forget", "retain": "retain", "privleak": "forget", "holdout": "holdout", "verbmem": "forget",
    "knowmem_forget": "forget", "knowmem_retain": "retain",
}


@reader("muse")
def muse(
    *, data: str, part: Part, words: int | None = None, shots: int = 10, limit: int | None = None
) -> list[Example]:
    """One part of MUSE.

    forget, retain, privleak, holdout: documents as plain texts. verbmem: the beginning of a text and how it goes on.
    knowmem_forget, knowmem_retain: questions, each after `shots` answered ones in the form "Question: ... Answer: ...".

    Args:
        data: folder of one corpus (news, books, or upstream's bbc, hp), or a name of the hub (muse-bench/MUSE-News).
        words: documents are cut into passages of so many words; of verbmem the last that many of what is asked.
        shots: answered questions in front, at most as many as were published (10). limit: first rows only.
    Raises: DataError when a file is missing or has rows of another form.
    """
    if limit is not None and limit < 1:
        raise DataError("muse: limit", f"got {limit}", "accepted: 1 or more", "Leave it out to read everything")
    place, rows = _rows(data, part)
    try:
        if part == "verbmem":
            made = [Example(f"muse/{place}/{n}", _last(r["prompt"], words), str(r["gt"])) for n, r in enumerate(rows)]
        elif part.startswith("knowmem"):
            before = "".join(f"{asked(r['question'])} {r['answer']}\n\n" for r in _rows(data, part, "_icl")[1][:shots])
            pairs = [(before + asked(r["question"]), str(r["answer"])) for r in rows]
            made = [Example(f"muse/{place}/{n}", *pair) for n, pair in enumerate(pairs)]
        else:
            made = [one for n, row in enumerate(rows) for one in _passages(f"muse/{place}/{n}", _text(row), words)]
    except (KeyError, TypeError, AttributeError) as error:
        found = f"a row of another form ({type(error).__name__})"
        raise DataError(f"{data}: {place}", found, "accepted: the published files", "Copy them again") from error
    check_stream(f"{data}: {part}", made[:limit])
    return made[:limit]


def muse_data(data: str, *, words: int | None = None, shots: int = 10, limit: int | None = None) -> Data:
    """All parts that are there: forget and retain documents, members and non-members, both memories' questions.

    Raises: DataError when the documents to be forgotten are missing (of Books only questions may be at hand).
    """
    found = Data()
    for part in _PLACES:
        examples = muse(data=data, part=part, words=words, shots=shots, limit=limit)
        found[part] = Stream(part, ROLES[part], tuple(examples))
    return found


def asked(question: str) -> str:
    """A question as MUSE puts it to a model that only goes on with texts."""
    return f"Question: {question}\nAnswer:"


def _rows(data: str, part: Part, ending: str = "") -> tuple[str, Sequence[Any]]:
    """Name and rows of the first place of a part that is there."""
    root = Path(data).expanduser()
    places = [place + ending for place in _PLACES[part]]
    if root.is_dir():
        there = [place for place in places if (root / f"{place}.json").is_file()]
        return there[0] if there else places[0], read_rows(root / f"{(there or places)[0]}.json")
    folder, _, split = places[0].partition("/")
    return places[0], list(read_dataset(data, folder, split.replace("retain2_qa", "retain_qa")))


def _text(row: Any) -> str:
    return str(row if isinstance(row, str) else row["text"])


def _passages(id: str, text: str, words: int | None) -> Iterable[Example]:
    """A document whole, or its passages of exactly `words` words."""
    if words is None:
        yield Example(id, "", text)
        return
    places = [match.span() for match in re.finditer(r"\S+", text)]
    for number, first in enumerate(range(0, len(places) - words + 1, words)):
        yield Example(f"{id}/{number}", "", text[places[first][0] : places[first + words - 1][1]])


def _last(text: str, words: int | None) -> str:
    """The last so many words of a text."""
    places = [match.start() for match in re.finditer(r"\S+", text)]
    return text if words is None or len(places) <= words else text[places[-words] :]
