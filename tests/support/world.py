"""A small world on disk (models, streams, a recipe), and processes that can be killed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from expunge.models import save
from expunge.types import Stream
from support.learned import knows, short_data


def write_stream(path: Path, stream: Stream) -> Path:
    rows = [{key: value for key, value in dataclasses.asdict(one).items() if value} for one in stream.examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_world(folder: Path) -> Path:
    """original/ knows forget and retain, oracle/ retain alone; forget.jsonl, retain.jsonl, holdout.jsonl."""
    save(knows("forget", "retain"), folder / "original")
    save(knows("retain"), folder / "oracle")
    for name, stream in short_data().items():
        write_stream(folder / f"{name}.jsonl", stream)
    return folder


def recipe(world: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of two stages without an audit: 12 steps of DPO against KL."""
    terms = [{"use": "dpo", "on": ["refusals", "forget"]}, {"use": "kl", "on": "retain"}]
    return {
        "model": str(world / "original"),
        "data": {name: str(world / f"{name}.jsonl") for name in ("forget", "retain")},
        "stages": [
            {"use": "relabel"},
            {"use": "forget", "terms": terms, "steps": 12, "batch_size": 5, "lr": 1e-3},
        ],
        "seed": 3,
    } | changes


def write_recipe(path: Path, plain: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def start(work: Callable[[], int | None], output: Path | None = None) -> int:
    """Run `work` in a copy of this process; its exit code is what `work` returns, 70 for an exception."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with (output or Path(os.devnull)).open("w", encoding="utf-8") as file:
            sys.stdout = sys.stderr = file
            code = work() or 0
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code; negative for the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)
