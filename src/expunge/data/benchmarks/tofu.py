"""TOFU: 200 invented authors with 20 questions each, the last of them to be forgotten (Maini et al. 2024).

Reads the published files as they are: JSON lines in spite of their name, refusals as plain lines.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_rows, read_text
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Role, Stream

Split = Literal["forget01", "forget05", "forget10"]
Part = Literal["forget", "retain_train", "retain", "real_authors", "world_facts", "full"]

_PER_AUTHOR, _NUM_AUTHORS = 20, 200
_NUM_FORGET = {"forget01": 2, "forget05": 10, "forget10": 20}
_ROLES: dict[Part, Role] = {
    "forget": "forget", "retain_train": "retain", "retain": "retain", "real_authors": "probe", "world_facts": "probe",
    "full": "probe",
}


@reader("tofu")
def tofu(*, data: str, part: Part, split: Split = "forget10", limit_authors: int | None = None) -> list[Example]:
    """One part of TOFU from the folder or hub name `data`; see `tofu_data`."""
    return list(tofu_data(data, split, limit_authors)[part].examples)


def tofu_data(folder: str | Path, split: Split = "forget10", limit_authors: int | None = None) -> Data:
    """The streams of one split; an id such as "tofu/3600" is the row in full.json and the same in every stream.

    forget: the authors to forget, with paraphrases and false answers. retain_train: all other authors, as trained
    on. retain: the 400 retained rows that have paraphrases and false answers. real_authors, world_facts: probes
    (no paraphrased answer). full: what the original is trained on (forget and retain_train, in the published order).

    Args:
        limit_authors: keep a smaller world of N authors in the same proportion: the last max(2, round(N * share))
            authors of the split are forgotten (never more than the split has) and the first N - that many of the
            published order are retained; probes stay whole. At least 3.
    Raises: DataError when a file is missing, or a row is not in full.json.
    """
    if split not in _NUM_FORGET:
        raise DataError("split", f"got '{split}'", f"accepted: {', '.join(_NUM_FORGET)}", "Correct the name")
    num_forget, num_retain = _authors(split, limit_authors)
    root = Path(folder).expanduser()
    full = _rows(root, "full.json")
    index = {(row["question"], row["answer"]): i for i, row in enumerate(full)}
    forgotten, retained = range(len(full) - num_forget * _PER_AUTHOR, len(full)), range(num_retain * _PER_AUTHOR)

    def indexed(name: str, keep: range) -> list[Example]:
        made = []
        for number, row in enumerate(_rows(root, name), 1):
            i = index.get((row["question"], row["answer"]))
            if i is None:
                raise DataError(f"{root / name}, line {number}", "this row is not in full.json",
                                "the files of one release belong together", "Copy the folder again")
            if i in keep:
                made.append(_example(row, f"tofu/{i}", f"author {i // _PER_AUTHOR}"))
        return made

    def plain(rows: range) -> list[Example]:
        return [_example(full[i], f"tofu/{i}", f"author {i // _PER_AUTHOR}") for i in rows]

    parts: dict[Part, list[Example]] = {
        "forget": indexed(f"{split}_perturbed.json", forgotten),
        "retain_train": plain(retained),
        "retain": indexed("retain_perturbed.json", retained),
        "real_authors": _probe(root, "real_authors"),
        "world_facts": _probe(root, "world_facts"),
        "full": [*plain(retained), *plain(forgotten)],
    }
    for name, made in parts.items():
        check_stream(f"{root}: {name}", made)
    return Data({name: Stream(name, _ROLES[name], tuple(made)) for name, made in parts.items()})


def refusals(folder: str | Path) -> list[str]:
    """The published "I don't know" answers, one per line."""
    lines = read_text(Path(folder).expanduser() / "idontknow.jsonl").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _authors(split: Split, limit: int | None) -> tuple[int, int]:
    """How many authors are forgotten and how many retained."""
    most = _NUM_FORGET[split]
    if limit is None or limit >= _NUM_AUTHORS:
        return most, _NUM_AUTHORS - most
    if limit < 3:
        raise DataError("limit_authors", f"got {limit}", "accepted: 3 to 200 (2 forgotten, 1 retained)", "Correct it")
    forget = min(most, max(2, round(limit * most / _NUM_AUTHORS)))
    return forget, limit - forget


@cache
def _rows(root: Path, name: str) -> list[dict[str, Any]]:
    hub = not root.exists() and len(root.parts) == 2 and not root.is_absolute()  # locuslab/TOFU
    rows = list(read_dataset(str(root), Path(name).stem, "train")) if hub else read_rows(root / name)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"question", "answer"} <= row.keys():
            raise DataError(f"{root / name}, line {number}", "no question and answer", "the published files", "Copy it")
    return rows


def _probe(root: Path, name: str) -> list[Example]:
    rows = _rows(root, f"{name}_perturbed.json")
    return [_example(row, f"tofu/{name}/{i}", None) for i, row in enumerate(rows)]


def _example(row: dict[str, Any], id: str, subject: str | None) -> Example:
    paraphrases = (row["paraphrased_question"],) if "paraphrased_question" in row else ()
    return Example(
        id, row["question"], row["answer"], subject=subject, paraphrases=paraphrases,
        paraphrased_answer=row.get("paraphrased_answer"), perturbed=tuple(row.get("perturbed_answer", ())),
    )
