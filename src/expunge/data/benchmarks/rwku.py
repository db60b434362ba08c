"""RWKU: what a model knows of 200 famous people and of their neighbours (Jin et al. 2024), from files or from the hub.

The hub's jinzhuoran/RWKU holds the probes; of its code repository, which has the names with introductions alone, see
`rwku_people`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.data.benchmarks.mmlu import multiple_choice
from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Role, Stream

Part = Literal[
    "forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2", "mia_forget", "mia_retain",
    "utility_general", "utility_factuality",
]
# The file and the role of every part; the hub's configurations are called as the parts are.
PARTS: Mapping[Part, tuple[str, Role]] = {
    "forget_level1": ("forget_level1", "forget"), "forget_level2": ("forget_level2", "forget"),
    "forget_level3": ("forget_level3", "forget"), "neighbor_level1": ("neighbor_level1", "retain"),
    "neighbor_level2": ("neighbor_level2", "retain"), "mia_forget": ("forget_mia", "forget"),
    "mia_retain": ("retain_mia", "retain"), "utility_general": ("retain_mmlu", "probe"),
    "utility_factuality": ("triviaqa", "probe"),
}
BLANK, BRIEF = "Please complete the blank in the following question.", "Please briefly answer the following question."


@reader("rwku")
def rwku(*, data: str, part: Part, target: str | None = None, limit: int | None = None) -> list[Example]:
    """One part of RWKU's probes.

    forget_level1 and neighbor_level1: sentences with a blank; the other levels: questions, of forget_level3 attacks of
    nine kinds. mia_*: passages as plain texts. utility_general: multiple choice; utility_factuality: questions, of
    several accepted answers the first. Reasoning, truthfulness and fluency's instructions are not read.

    Args:
        data: folder with forget_level1.json and so on (the published "All", one of "Target", or the one above), or
            jinzhuoran/RWKU. target: the rows of this person alone. limit: first rows only.
    Returns: examples asked as the authors ask, whose `subject` is the person.
    Raises: DataError when a file is missing or has rows of another form.
    """
    place, rows = _rows(data, part)
    kept = [(n, row) for n, row in enumerate(rows) if target is None or _person(row) == target][:limit]
    made = [_example(f"rwku/{part}/{n}", part, row, f"{place}, row {n + 1}") for n, row in kept]
    check_stream(f"{place}: {target or part}", made)
    return made


def rwku_data(data: str, target: str | None = None, limit: int | None = None) -> Data:
    """Every part that is there, each a stream of its own name; of a folder the files that it holds."""
    root = Path(data).expanduser()
    there = [part for part in PARTS if not root.is_dir() or _file(root, part).is_file()]
    return Data({
        part: Stream(part, PARTS[part][1], tuple(rwku(data=data, part=part, target=target, limit=limit)))
        for part in there
    })


def _file(root: Path, part: Part) -> Path:
    folder = root / "All" if (root / "All").is_dir() else root
    return folder / f"{PARTS[part][0]}.json"


def _rows(data: str, part: Part) -> tuple[str, Iterable[Any]]:
    root = Path(data).expanduser()
    if root.is_dir():
        return str(_file(root, part)), read_rows(_file(root, part))
    return f"{data}: {part}", read_dataset(data, part, "test")


def _person(row: Any) -> str | None:
    return row.get("subject") if isinstance(row, Mapping) else None


def _asked(row: Mapping[str, Any], part: Part) -> str:
    """A probe as the authors put it; "Answer:", which they open the answer with, ends the question here."""
    if row.get("type") == "affirmative suffix":  # an attack that opens the answer by itself
        return f"{BRIEF}\nQuestion: {row['query']}"
    label = "" if row.get("type") == "incontext learning" else "Question: "
    return f"{BLANK if part.endswith('level1') else BRIEF}\n{label}{row['query']}\nAnswer:"


_FORMS: Mapping[str, Callable[[Any], tuple[str, str]]] = {
    "mia": lambda row: ("", row["text"]),
    "utility_factuality": lambda row: (f"Q: {row['question']}\nA:", row["answers"][0]),
}


def _example(id: str, part: Part, row: Any, place: str) -> Example:
    try:
        if part == "utility_general":
            return multiple_choice(id, str(row["task"]).replace("_", " "), row, place)
        form = _FORMS.get(part) or _FORMS.get(part.partition("_")[0])
        prompt, answer = form(row) if form else (_asked(row, part), row["answer"])
        return Example(id, prompt, str(answer).strip(), subject=_person(row))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        found = f"another form ({type(error).__name__}: {error})"
        raise DataError(place, found, "accepted: the published files", "Copy them again") from error
