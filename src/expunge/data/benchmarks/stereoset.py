"""StereoSet: sentences with a stereotype, its opposite and something unrelated in one place (Nadeem et al. 2021).

Reads the official dev.json and the lists of the same records that others cut from it, as they are. The intersentence
half (the next sentence of a dialogue) is not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_text
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Stream

Domain = Literal["all", "gender", "profession", "race", "religion"]
Triple = tuple[float, float, float]  # scores of stereotype, anti-stereotype, unrelated
LABELS = ("stereotype", "anti-stereotype", "unrelated")


@dataclass(frozen=True)
class Record:
    """One target term in one context: the ids and texts of the three sentences, in the order of LABELS."""

    domain: str
    term: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]


@reader("stereoset")
def stereoset(*, data: str, domain: Domain = "all") -> list[Example]:
    """StereoSet, intrasentence: stereotype as the answer, anti-stereotype as the contrast; see `stereoset_data`."""
    return list(stereoset_data(data, domain)["stereoset"].examples)


def stereoset_data(data: str | Path, domain: Domain = "all") -> Data:
    """One probe stream, "stereoset"; an id such as "stereoset/race/TERM/17" holds domain and target term.

    answer: the stereotype; contrast: the anti-stereotype; perturbed: the unrelated sentence; subject: the term.

    Args:
        data: a file (official dev.json, or a list of its records), or a folder with dev.json or with files called
            ...DOMAIN_test.json (EditBias). In EditBias's gender file stereotype and anti-stereotype seem to be
            exchanged: published predictions score there what is left of 100 after their published score.
    Raises: DataError for a missing file, a record without its three sentences, or a domain nobody wrote about.
    """
    made = [
        Example(
            f"stereoset/{one.domain}/{one.term.replace('/', ' ')}/{number}", "", one.texts[0], subject=one.term,
            perturbed=one.texts[2:], contrast=one.texts[1],
        )
        for number, one in enumerate(records(data)) if domain in ("all", one.domain)
    ]
    check_stream(f"{data}: {domain}", made)
    return Data(stereoset=Stream("stereoset", "probe", tuple(made)))


def prediction_triples(gold: str | Path, predictions: str | Path, domain: Domain = "all") -> dict[str, list[Triple]]:
    """By target term the scores that a file of predictions (published form: one score per sentence id) gives."""
    file = Path(predictions).expanduser()
    rows = _parsed(file)
    if isinstance(rows, Mapping):
        rows = rows.get("intrasentence")
    try:
        known = {str(row["id"]): float(row["score"]) for row in rows}
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            str(file), "no scores of intrasentence items", '{"intrasentence": [{"id": ..., "score": ...}]}',
            "Name a file of predictions as upstream writes it",
        ) from error
    found: dict[str, list[Triple]] = {}
    for one in records(gold):
        if domain in ("all", one.domain):
            lacking = [name for name in one.ids if name not in known]
            if lacking:
                raise DataError(str(file), f"no score for sentence {lacking[0]}", "a score for each", "Copy it again")
            first, second, third = (known[name] for name in one.ids)
            found.setdefault(one.term, []).append((first, second, third))
    return found


def records(data: str | Path) -> Iterator[Record]:
    """The intrasentence records of a file, or of a folder's files in the order of their names."""
    root = Path(data).expanduser()
    if not root.is_dir():
        files = [root]
    elif (root / "dev.json").exists() or not (files := sorted(root.glob("*_test.json"))):
        files = [root / "dev.json"]
    for file in files:
        rows = _parsed(file)
        if isinstance(rows, Mapping):
            rows = rows.get("data", {}).get("intrasentence", [])
        for number, row in enumerate(rows, 1):
            try:
                yield _record(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"{file}, record {number}", f"is no intrasentence record ({type(error).__name__}: {error})",
                    f"target, bias_type and a sentence for each of {', '.join(LABELS)}", "Name the published file",
                ) from error


def _record(row: Mapping[str, Any]) -> Record:
    sides = {one["gold_label"]: one for one in row["sentences"]} if "sentences" in row else row["data"]
    chosen = [sides[label] for label in LABELS]
    ids, texts = ([str(one[name]) for one in chosen] for name in ("id", "sentence"))
    return Record(str(row["bias_type"]), str(row["target"]), tuple(ids), tuple(texts))


def _parsed(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise DataError(str(file), f"is not JSON ({error})", "accepted: published files", "Copy it again") from error
