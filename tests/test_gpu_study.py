"""The study for a GPU runs from end to end in a tiny form: the script is ready when a device is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_study_runs_in_its_tiny_form(tmp_path, monkeypatch, shared):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    study = importlib.import_module("gpu_study")
    monkeypatch.setitem(sys.modules, "gpu_study", study)
    study.main(["prepare", "--tiny", "--data", str(shared / "data"), "--out", str(tmp_path / "data")])
    size = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
    assert size < 60 * 2**20  # what can be carried to another machine
    study.main(["run", "--tiny", "--data", str(tmp_path / "data"), "--out", str(tmp_path), "--device", "cpu"])
    text = (tmp_path / "gpu_study.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    for name in ("original", "oracle", "graddiff", "npo", "simnpo", "rmu", "undial"):
        assert name in rows
        if name != "original":
            assert sum(row.startswith(f"{name}+") for row in rows) == 3
    assert "tiny" in rows
    assert "not reached" not in text.lower()
