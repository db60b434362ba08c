"""Reads the evaluation logs of TOFU and of work built on it: losses per row, no model."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from expunge.errors import DataError, close_to

Floats = npt.NDArray[np.float64]

PARTS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
COLUMNS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")


@dataclass(frozen=True, eq=False)
class TofuSet:
    """One question set of a log. Losses are mean negative log-likelihoods per token, nats."""

    ids: tuple[str, ...]  # [rows] row numbers of the log
    l_gt: Floats  # [rows] of the answer
    l_para: Floats  # [rows] of the paraphrased answer
    l_pert: tuple[Floats, ...]  # [rows][K] of the false answers
    rouge: Floats  # [rows] ROUGE-L recall in [0, 1]


def read_log(path: Path | str) -> dict[str, TofuSet]:
    """Read an `eval_log_aggregated.json`, plain or gzipped.

    Accepts both layouts: columns as objects keyed by row number, and as lists.

    Args:
        path: file that ends in .json or .json.gz.
    Returns: "retain", "forget", "real_authors", "world_facts", rows in the order of their numbers.
    Raises: DataError when the file is missing, is not JSON, or lacks a set, a column or rows.
    Source: locuslab/tofu `evaluate_util.py`; list layout: licong-lin/negative-preference-optimization.
    """
    file = Path(path)
    whole = _load(file)
    return {name: _part(whole, part, file) for name, part in PARTS.items()}


def last_rows(rows: TofuSet, last_n: int | None, path: Path | str) -> TofuSet:
    """The last n rows of a set; None: all. More than there are is an error, not a shorter answer."""
    if last_n is None:
        return rows
    if not 1 <= last_n <= len(rows.ids):
        raise DataError(
            f"{path}: last_n", f"got {last_n}", f"the forget set has {len(rows.ids)} rows", "Ask for 1 up to that many"
        )
    return TofuSet(
        rows.ids[-last_n:], rows.l_gt[-last_n:], rows.l_para[-last_n:], rows.l_pert[-last_n:], rows.rouge[-last_n:]
    )


def _load(file: Path) -> Mapping[str, Any]:
    wanted = "wanted: an eval_log_aggregated.json (plain or gzipped), or a *_EVAL.json of OpenUnlearning"
    try:
        raw = file.read_bytes()
        whole = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except FileNotFoundError:
        raise DataError(str(file), "no such file", wanted, "Check the path") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:  # unreadable, cut short, not gzip, not UTF-8, not JSON
        raise DataError(str(file), f"cannot be read ({error})", wanted, "Fetch the file again") from error
    if not isinstance(whole, Mapping):
        raise DataError(str(file), f"holds a {type(whole).__name__}", wanted, "Give the aggregated log")
    return whole


def _part(whole: Mapping[str, Any], part: str, file: Path) -> TofuSet:
    section = whole.get(part)
    if not isinstance(section, Mapping):
        raise DataError(str(file), f"no section '{part}'", close_to(part, map(str, whole)), "Give the aggregated log")
    where = f"{file}: {part}"
    columns = {name: _column(section, name, where) for name in COLUMNS}
    ids = list(columns["avg_gt_loss"])
    for name, column in columns.items():
        if column.keys() != columns["avg_gt_loss"].keys():
            raise DataError(
                f"{where}.{name}", f"{len(column)} rows", f"avg_gt_loss has {len(ids)}, the same ones are wanted",
                "Fetch the file again",
            )
    if not ids:
        raise DataError(where, "no rows", "wanted: at least one", "Run the evaluation that writes the log")
    lists = columns["average_perturb_loss"]
    perturbed = tuple(_numbers(lists[row], f"{where}.average_perturb_loss[{row}]") for row in ids)
    plain = {
        name: np.concatenate([_numbers([columns[name][row]], f"{where}.{name}[{row}]") for row in ids])
        for name in COLUMNS if name != "average_perturb_loss"
    }
    return TofuSet(
        tuple(ids), plain["avg_gt_loss"], plain["avg_paraphrased_loss"], perturbed, plain["rougeL_recall"]
    )


def _column(section: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A column by row number, in order, whichever layout it is stored in."""
    if name not in section:
        raise DataError(where, f"no column '{name}'", close_to(name, map(str, section)), "Give the aggregated log")
    stored = section[name]
    if isinstance(stored, list):
        return {str(row): value for row, value in enumerate(stored)}
    if isinstance(stored, Mapping) and all(str(row).isdecimal() for row in stored):
        return {str(row): stored[row] for row in sorted(stored, key=int)}
    raise DataError(
        f"{where}.{name}", f"holds a {type(stored).__name__}", "accepted: a list, or an object keyed by row number",
        "Give the aggregated log",
    )


def _numbers(values: Any, where: str) -> Floats:
    good = isinstance(values, list) and values and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )
    if not good:
        raise DataError(where, f"got {values!r}"[:80], "wanted: finite numbers", "Fetch the file again")
    return np.array(values, dtype=np.float64)
