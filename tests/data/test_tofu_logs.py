"""Reading TOFU evaluation logs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.benchmarks.tofu_logs import PARTS, last_rows, read_log
from expunge.errors import DataError


def section(as_lists: bool = False) -> dict[str, Any]:
    """Eleven rows, so that row 10 would sort before row 2 as text; objects are written in reverse order."""
    columns: dict[str, Any] = {
        "avg_gt_loss": [float(k) for k in range(11)],
        "avg_paraphrased_loss": [k + 0.5 for k in range(11)],
        "average_perturb_loss": [[k + 1.0] * (3 + k % 2) for k in range(11)],
        "rougeL_recall": [k / 10 for k in range(11)],
    }
    if as_lists:
        return columns
    return {name: {str(k): values[k] for k in reversed(range(11))} for name, values in columns.items()}


def write(path: Path, whole: Any) -> Path:
    text = json.dumps(whole).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("as_lists", [False, True])
@pytest.mark.parametrize("name", ["log.json", "log.json.gz"])
def test_both_layouts_plain_and_gzipped(tmp_path: Path, as_lists: bool, name: str) -> None:
    log = read_log(write(tmp_path / name, {part: section(as_lists) for part in PARTS.values()}))
    assert set(log) == {"retain", "forget", "real_authors", "world_facts"}
    rows = log["forget"]
    assert rows.ids == tuple(map(str, range(11)))
    assert rows.l_gt.tolist() == [float(k) for k in range(11)]
    assert rows.l_para[3] == 3.5
    assert [len(row) for row in rows.l_pert[:3]] == [3, 4, 3]
    assert rows.rouge[10] == 1.0


def test_last_rows(tmp_path: Path) -> None:
    rows = read_log(write(tmp_path / "log.json", {part: section() for part in PARTS.values()}))["forget"]
    assert last_rows(rows, 2, "log").ids == ("9", "10")
    assert last_rows(rows, None, "log") is rows
    for wrong in (0, 12):
        with pytest.raises(DataError, match="11 rows"):
            last_rows(rows, wrong, "log")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not JSON, cut-short gzip, damaged gzip, another JSON: one error with four parts each."""
    good = gzip.compress(json.dumps({"x": list(range(1000))}).encode())
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "short.json.gz").write_bytes(good[: len(good) // 2])
    (tmp_path / "damaged.json.gz").write_bytes(good[:12] + b"\xff" * 40 + good[52:])
    write(tmp_path / "list.json", [1])
    for name, found in [
        ("absent.json", "no such file"), (".", "cannot be read"), ("text.json", "cannot be read"),
        ("short.json.gz", "cannot be read"), ("damaged.json.gz", "cannot be read"), ("list.json", "holds a list"),
    ]:
        with pytest.raises(DataError, match=found) as error:
            read_log(tmp_path / name)
        assert error.value.where == str(tmp_path / name)
        assert error.value.accepted
        assert error.value.do


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda part: part.pop("avg_gt_loss"), "no column 'avg_gt_loss'"),
        (lambda part: part.update(avg_gt_loss=3), "holds a int"),
        (lambda part: part.update(avg_gt_loss={"first": 1.0}), "holds a dict"),
        (lambda part: part["rougeL_recall"].pop("4"), "10 rows"),
        (lambda part: part["rougeL_recall"].update({"4": None}), "got \\[None\\]"),
        (lambda part: part["avg_gt_loss"].update({"4": float("nan")}), "got \\[nan\\]"),
        (lambda part: part["average_perturb_loss"].update({"4": []}), "got \\[\\]"),
        (lambda part: part.update({name: {} for name in part}), "no rows"),
    ],
)
def test_logs_that_are_not_whole(tmp_path: Path, change: Any, found: str) -> None:
    whole = {part: section() for part in PARTS.values()}
    change(whole["eval_log_forget.json"])
    with pytest.raises(DataError, match=found) as error:
        read_log(write(tmp_path / "log.json", whole))
    assert "eval_log_forget.json" in error.value.where


def test_a_missing_section_names_the_close_one(tmp_path: Path) -> None:
    whole = {part: section() for part in PARTS.values()}
    whole["eval_log_forgets.json"] = whole.pop("eval_log_forget.json")
    with pytest.raises(DataError, match=r"did you mean 'eval_log_forgets.json'"):
        read_log(write(tmp_path / "log.json", whole))
