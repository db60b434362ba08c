"""The base can be built from nothing, twice to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.synthetic_base import base_folder
from expunge.models import load
from expunge.pretrain import build_base


@pytest.mark.slow
def test_building_the_base_is_deterministic(tmp_path: Path) -> None:
    first, second = (build_base(tmp_path / name, num_people=6, rounds=1) for name in ("one", "two"))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert (first / "tokenizer.json").read_bytes() == (base_folder() / "tokenizer.json").read_bytes()
    assert (first / "config.json").read_bytes() == (base_folder() / "config.json").read_bytes()
    assert load(str(first)).wrapper.template == "chat"
