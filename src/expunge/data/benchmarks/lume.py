"""LUME: invented stories, invented people with personal data, and real biographies (Ramakrishna et al. 2025).

Of every document there is a beginning with how it goes on, and one question (five of an invented person).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Role, Span, Stream

Task = Literal["stories", "people", "biographies"]
Side = Literal["forget", "retain"]
Part = Literal["all", "completion", "question"]
TASKS: Mapping[Task, str] = {"stories": "Task1", "people": "Task2", "biographies": "Task3"}
KINDS: Mapping[str, Part] = {"sc": "completion", "qa": "question"}
_ID = re.compile(r'"?(.+?)"?(sc|qa)(\d+)')  # the ids of some tasks carry quotation marks


@reader("lume")
def lume(
    *, data: str, task: Task = "people", side: Side = "forget", part: Part = "all", words: int | None = None,
    limit: int | None = None,
) -> list[Example]:
    """One side of one task of LUME: beginnings of documents with how they go on, and questions about them.

    Args:
        data: folder with the published files (forget.jsonl, retain.jsonl, or with "lume_" in front), or a hub name.
        task: "stories", "people" (names, numbers and addresses are invented) or "biographies" (of real people).
        part: "completion", "question", or both. words: the last so many of a beginning; None: whole.
        limit: documents, counted with all their rows.
    Returns: examples whose `subject` is their document, so that intervals are over documents. Personal data of the
        invented people are annotated as spans: whole answers, and where they stand in a completion.
    Raises: DataError when a file is missing or a row has another form.
    """
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    place, rows = _rows(data, side)
    for number, row in enumerate(rows, 1):
        named = _ID.fullmatch(str(row.get("id"))) if isinstance(row, Mapping) else None
        if named is None or not all(isinstance(row.get(key), str) for key in ("input", "output", "task")):
            raise DataError(
                f"{place}, row {number}", "is no row of LUME",
                "accepted: id (ending sc1, qa0, ...), input, output, task", "Copy the file again",
            )
        if row["task"] == TASKS[task]:
            found.setdefault(named[1], []).append((named[2] + named[3], row))
    made = [one for name in list(found)[:limit] for one in _document(name, found[name], task, words)]
    wanted = [one for one in made if part == "all" or KINDS[one.id.rsplit("/", 1)[1][:2]] == part]
    check_stream(f"{place}: {task}", wanted)
    return wanted


def lume_data(
    data: str, task: Task = "people", *, limit: int | None = None, words: int | None = None, held: int = 0
) -> Data:
    """The streams: forget and retain (completions), forget_qa and retain_qa (questions), and what nobody is taught.

    Args:
        data, task, words: see `lume`. limit: documents of each side.
        held: documents of the retain side that become the holdout, those after the ones that are retained; there are
            no published non-members.
    """
    whole = lume(data=data, task=task, side="retain", words=words)
    names = list(dict.fromkeys(one.subject for one in whole))
    kept = names[: limit if limit is not None else len(names) - held]
    sides = {
        "forget": lume(data=data, task=task, words=words, limit=limit),
        "retain": [one for one in whole if one.subject in set(kept)],
        "holdout": [one for one in whole if one.subject in set(names[len(kept) : len(kept) + held])],
    }
    roles: tuple[Role, ...] = ("forget", "retain", "holdout")
    found = Data()
    for role in roles:
        for part, ending in (("sc", ""), ("qa", "_qa")):
            examples = tuple(one for one in sides[role] if one.id.rsplit("/", 1)[1].startswith(part))
            if examples:
                found[role + ending] = Stream(role + ending, role, examples)
    return found


def _rows(data: str, side: Side) -> tuple[str, Iterable[Any]]:
    root = Path(data).expanduser()
    if not root.is_dir():
        return f"{data}: {side}_train", read_dataset(data, None, f"{side}_train")
    files = [root / f"{start}{side}.jsonl" for start in ("lume_", "")]
    file = next((one for one in files if one.is_file()), files[1])
    return str(file), read_rows(file)


def _document(
    name: str, rows: Sequence[tuple[str, Mapping[str, Any]]], task: Task, words: int | None
) -> Iterator[Example]:
    secrets = [row["output"] for kind, row in rows if kind.startswith("qa")] if task == "people" else []
    for kind, row in rows:
        asked, said = row["input"].strip(), row["output"].strip()
        if kind.startswith("sc") and words is not None:
            asked = " ".join(asked.split()[-words:])
        yield Example(f"lume/{task}/{name}/{kind}", asked, said, _places(said, secrets), subject=f"{task}/{name}")


def _places(text: str, secrets: Iterable[str]) -> tuple[Span, ...]:
    """Where secrets stand in a text, however their numbers are cut up and their signs escaped."""
    found = set()
    for secret in secrets:
        bare = secret.strip().rstrip(".")
        form = r"[-. ]?".join(bare) if bare.isdigit() else re.escape(bare).replace("_", r"\\?_")
        found |= {match.span() for match in re.finditer(form, text)}
    return tuple(sorted(found))
