"""MMLU: multiple-choice questions of 57 subjects (Hendrycks et al. 2021), from files or from the hub."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_text
from expunge.errors import DataError, close_to
from expunge.registry import reader
from expunge.types import Example

Split = Literal["test", "dev", "val"]
LETTERS = "ABCD"
NUM_CELLS = 6  # question, four choices, answer


@reader("mmlu")
def mmlu(
    *, data: str, subjects: list[str] | None = None, split: Split = "test", limit_per_subject: int | None = None
) -> list[Example]:
    """Questions of some subjects: `answer` is the right choice, `choices` all four, `perturbed` the wrong ones.

    Args:
        data: folder with test/SUBJECT_test.csv and so on, or a name of the hub such as cais/mmlu.
        subjects: such as virology; None: all of a folder, in the order of their names.
        split: "test", "dev" (five questions a subject, for few-shot prompts) or "val".
        limit_per_subject: first rows of each.
    Returns: examples whose `subject` is the topic in words.
    Raises: DataError for a subject or file that is not there, or a row of another form.
    """
    if limit_per_subject is not None and limit_per_subject < 1:
        raise DataError("mmlu: limit_per_subject", f"got {limit_per_subject}", "accepted: 1 or more", "Correct it")
    root = Path(data).expanduser()
    made = []
    for subject in subjects or _subjects(root, split):
        rows = _file(root, subject, split) if root.is_dir() else _hub(data, subject, split)
        topic = subject.replace("_", " ")
        examples = [multiple_choice(f"mmlu/{subject}/{n}", topic, row, place) for n, (place, row) in enumerate(rows)]
        made += examples[:limit_per_subject]
    check_stream(f"{data}: {split}", made)
    return made


def multiple_choice(id: str, topic: str, row: Mapping[str, Any], place: str) -> Example:
    """An example of a row with question, choices (a list) and answer (the right one's number from 0)."""
    try:
        choices = tuple(str(choice).strip() for choice in row["choices"])
        number = int(row["answer"])
        question, answer = str(row["question"]).strip(), choices[number] if number >= 0 else ""
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            place, f"no question, choices and answer ({type(error).__name__})", "accepted: the published files",
            "Copy them again",
        ) from error
    wrong = tuple(choice for choice in choices if choice != answer)
    return Example(id, question, answer, subject=topic, choices=choices, perturbed=wrong)


def _subjects(root: Path, split: Split) -> list[str]:
    if not root.is_dir():
        raise DataError("mmlu: subjects", "missing", "needed for a data set of the hub", "Name them: virology, ...")
    ending = f"_{split}.csv"
    found = sorted(file.name.removesuffix(ending) for file in (root / split).glob(f"*{ending}"))
    if not found:
        raise DataError(f"{root / split}", "no files", f"wanted: SUBJECT{ending}", "Name the folder that holds 'test'")
    return found


def _file(root: Path, subject: str, split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of one file, as published (no heading, answers by letter) or with a heading and answers by number."""
    file = root / split / f"{subject}_{split}.csv"
    if not file.is_file():
        known = _subjects(root, split)
        raise DataError(f"mmlu: subject '{subject}'", f"no file {file}", close_to(subject, known), "Correct the name")
    for number, cells in enumerate(csv.reader(io.StringIO(read_text(file), newline="")), 1):
        if number == 1 and cells and cells[-1] == "answer":
            continue
        place = f"{file}, row {number}"
        if len(cells) != NUM_CELLS:
            raise DataError(place, f"{len(cells)} cells", f"a question has {NUM_CELLS}", "Copy the file again")
        yield place, {"question": cells[0], "choices": cells[1:-1], "answer": _number(cells[-1])}


def _number(answer: str) -> str:
    return str(LETTERS.index(answer)) if answer and answer in LETTERS else answer


def _hub(name: str, subject: str, split: Split) -> Iterator[tuple[str, Mapping[str, Any]]]:
    table: Sequence[Mapping[str, Any]] = read_dataset(name, subject, "validation" if split == "val" else split)
    yield from ((f"{name}/{subject}, row {number}", row) for number, row in enumerate(table, 1))
