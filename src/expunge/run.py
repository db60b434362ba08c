"""A run: its folder, its log, its resumable state. A kill at any moment leaves the last whole state in place.

State on disk is a folder per checkpoint, written aside, flushed and renamed; a folder with its final name is
complete by construction, a `.partial` one is rubbish and is removed at the next start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge import dist
from expunge.errors import Interrupted
from expunge.machine import storage_error, whole_folder

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.types import Bound

LOG, WATCHED = "log.jsonl", "dynamics.jsonl"
Progress = Callable[[str, int, int, str], None]  # what, done, total, note


def _silent(what: str, done: int, total: int, note: str) -> None:
    """No progress shown."""


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a failed write into a StorageError that says what is still there."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    with storage(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@dataclass
class Run:
    """Where a stage writes and how it is stopped. `folder=None` keeps nothing.

    stage: number of the stage. part: where inside it, for stages made of several trainings (see `at`).
    watch: what looks at the model while it is trained; see `expunge.watch`.
    """

    folder: Path | None = None
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    save_every: int = 100
    progress: Progress = _silent
    stage: int = 0
    part: tuple[int, ...] = ()
    watch: Bound | None = None
    stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if dist.rank() == 0:
            for rubbish in self.folder.rglob("*.partial"):
                shutil.rmtree(rubbish, ignore_errors=True) if rubbish.is_dir() else rubbish.unlink(missing_ok=True)

    def at(self, index: int) -> Run:
        """The run of the `index`-th training inside this stage: a log section and a state of its own."""
        return replace(self, part=(*self.part, index))

    # -- log ---------------------------------------------------------------------------------------------------
    def log(self, record: Mapping[str, Any], name: str = LOG) -> None:
        """Append one record to log.jsonl, or to WATCHED."""
        if self.folder is None or dist.rank() != 0:
            return
        path = self.folder / name
        with storage(path), path.open("a", encoding="utf-8") as file:
            where = {"stage": self.stage} | ({"part": self.part} if self.part else {})
            file.write(json.dumps({**where, **record}) + "\n")

    def trim_log(self, step: int, *, later: bool = True) -> None:
        """Drop this training's records at or after `step`, and with `later` those of all that came after it.

        They will be written again. A training that had ended leaves what came after it alone. What was watched after
        `step` steps stays: it was written before the state that the training goes on from.
        """
        if self.folder is None or dist.rank() != 0:
            return
        for name, least in ((LOG, step), (WATCHED, step + (step > 0))):
            path = self.folder / name
            if not path.exists():
                continue
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if (record := _record(line)) and self._stays(record, least, later)]
            write_text(path, "".join(line + "\n" for line in kept))

    def _stays(self, record: Mapping[str, Any], step: int, later: bool) -> bool:
        where = (record["stage"], tuple(record.get("part", ())))
        mine = (self.stage, self.part)
        return record.get("step", -1) < step if where == mine else where < mine or not later

    # -- state -------------------------------------------------------------------------------------------------
    def save_state(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint of this stage; older ones go only when the new one is whole."""
        if self.folder is None or dist.rank() != 0:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        state = self.folder / "state"
        with whole_folder(state / f"{self._name}-step{step:07d}") as aside:
            path = aside / "tensors.safetensors"
            try:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
            except SafetensorError as error:  # the writer in Rust wraps the system's error
                raise storage_error(path, error) from error
            (aside / "meta.json").write_text(json.dumps({"step": step, **meta}), encoding="utf-8")
        for old in self._states()[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def load_state(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint of this stage, if the run is being resumed and there is one."""
        if not self.resume or not (states := self._states()):
            return None
        from safetensors.torch import load_file

        meta = json.loads((states[-1] / "meta.json").read_text(encoding="utf-8"))
        return int(meta["step"]), load_file(states[-1] / "tensors.safetensors"), meta

    @property
    def _name(self) -> str:
        return ".".join([f"stage{self.stage:02d}", *(f"{index:02d}" for index in self.part)])

    def _states(self) -> list[Path]:
        if self.folder is None:
            return []
        found = (self.folder / "state").glob(f"{self._name}-step*")
        return sorted(path for path in found if path.suffix != ".partial")

    # -- stopping ----------------------------------------------------------------------------------------------
    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask the loop to stop after the step in hand, state saved."""

        def ask(_number: int, _frame: Any) -> None:
            self.stopped = True

        try:
            previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was asked for; call when the state is on disk."""
        if self.stopped:
            if self.folder is None:
                raise Interrupted("run", "stopped on request", "nothing of this part is kept", "Start it again")
            raise Interrupted(
                str(self.folder),
                "stopped on request",
                "everything up to the last step is saved",
                "Continue with the same command, the same --out and --resume",
            )


def _record(line: str) -> dict[str, Any] | None:
    """A log line, or None for one cut short by a kill."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "stage" in record else None
