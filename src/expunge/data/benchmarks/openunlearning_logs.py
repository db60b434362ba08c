"""Reads the evaluation logs of OpenUnlearning (TOFU_EVAL.json, MUSE_EVAL.json): values per row, no model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from expunge.errors import DataError, close_to

Floats = npt.NDArray[np.float64]
Column = Mapping[str, float]  # by row number of the data set, as text

TRUTH, MEMBERSHIP = "forget_Truth_Ratio", "mia_min_k"  # what forget quality and PrivLeak are made of
SIDES = ("forget", "holdout")
SMALLEST = 1e-300  # a truth ratio of 0 has no logarithm


@dataclass(frozen=True, eq=False)
class Logged:
    """One metric of a log: its value as the file says, and its columns.

    columns: numbers by row, lists of them (several false answers) averaged; of a membership attack the scores of the
    forget and the holdout rows. left_out: rows without a number.
    """

    value: float | None
    columns: Mapping[str, Column] = field(default_factory=dict)
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class EvalLog:
    """A log: its metrics by the names of the file."""

    path: Path
    metrics: Mapping[str, Logged]

    def log_ratios(self, last: int | None = None) -> Floats:
        """log R of the forget rows (of the last so many), in the order of their numbers.

        Raises: DataError when the log has none, or fewer.
        """
        column = self._of(TRUTH, "score")
        rows = sorted(column, key=int)
        if last is not None and not 1 <= last <= len(rows):
            found = f"the forget set has {len(rows)} rows"
            raise DataError(f"{self.path}: last", f"got {last}", found, "Ask for 1 up to that many")
        return np.log(np.maximum([column[row] for row in rows[-last if last else 0 :]], SMALLEST))

    def min_k(self) -> tuple[Floats, Floats]:
        """Min-k scores of the forget rows and of the holdout rows, higher = more like a member."""
        inside, outside = (np.array(list(self._of(MEMBERSHIP, side).values())) for side in SIDES)
        return -inside, -outside

    def _of(self, name: str, column: str) -> Column:
        logged = self.metrics.get(name)
        if logged is None or not logged.columns.get(column):
            near = close_to(name, self.metrics)
            raise DataError(str(self.path), f"no rows of '{name}'", near, "Run that evaluation, or give another log")
        return logged.columns[column]


def read_eval(path: Path | str) -> EvalLog:
    """Read a *_EVAL.json.

    Raises: DataError when the file is missing, is not JSON, or holds no metrics with an `agg_value`.
    """
    file = Path(path)
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(str(file), "no such file", "wanted: a *_EVAL.json", "Check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(str(file), f"cannot be read ({error})", "wanted: a *_EVAL.json", "Fetch it again") from error
    if not is_eval(whole):
        raise DataError(
            str(file), "no metric with an 'agg_value'", "wanted: TOFU_EVAL.json or MUSE_EVAL.json of OpenUnlearning",
            "Give the *_EVAL.json itself; a *_SUMMARY.json has no rows",
        )
    return EvalLog(file, {str(name): _logged(entry) for name, entry in whole.items() if isinstance(entry, Mapping)})


def is_eval(whole: Any) -> bool:
    """Whether a JSON value is laid out like such a log."""
    return isinstance(whole, Mapping) and any(
        isinstance(entry, Mapping) and "agg_value" in entry for entry in whole.values()
    )


def _logged(entry: Mapping[str, Any]) -> Logged:
    sides = {side: entry[side] for side in SIDES if isinstance(entry.get(side), Mapping)}
    parts = sides or {"": entry}
    columns: dict[str, dict[str, float]] = {}
    left_out = 0
    for side, part in parts.items():
        for row, found in (part.get("value_by_index") or {}).items():
            numbers = dict(_numbers(found))
            left_out += not numbers
            for name, value in numbers.items():
                columns.setdefault(side if side and name == "score" else name, {})[str(row)] = value
    whole = entry.get("agg_value")
    return Logged(float(whole) if isinstance(whole, (int, float)) else None, columns, left_out)


def _numbers(found: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name, lists averaged; texts and what is not finite are none."""
    for name, value in found.items() if isinstance(found, Mapping) else ():
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(one, (int, float)) and math.isfinite(one) for one in values):
            yield str(name), sum(values) / len(values)
