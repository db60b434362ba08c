"""What all tests share: one thread per worker, no network, and small real models."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("EXPUNGE_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest

from expunge import machine
from expunge.types import Subject

machine.prepare()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def _tiny() -> Subject:
    from expunge.testing import tiny_subject

    machine.set_threads()
    return tiny_subject()


@pytest.fixture
def tiny(_tiny: Subject) -> Subject:
    """A 2-block Llama of width 32 over ~300 byte-level tokens; a copy of its own for every test."""
    from expunge.models import clone

    return clone(_tiny)


@pytest.fixture(scope="session")
def tiny_tokenizer(_tiny: Subject) -> Any:
    """The tokenizer of `tiny`; do not change it."""
    return _tiny.tokenizer


@pytest.fixture(scope="session")
def tiny_model_dir(_tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` on disk; copy it before changing it."""
    from expunge.models import save

    return save(_tiny, tmp_path_factory.mktemp("models") / "tiny")
