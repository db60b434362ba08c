"""What a folder holds: SHA-256 and size of every file, read in pieces, through one handle a file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from expunge.artefacts import read_json
from expunge.errors import ModelError
from expunge.run import Progress, _silent

_PIECE = 1 << 20
_MIB = 1 << 20
# A pipe must not block, and Windows must not translate line ends.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class File:
    """The bytes of a file: their SHA-256 in hex and how many they are."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Listing:
    """The files of a folder and its sub-folders by path (with slashes), and what could not be read as a file."""

    files: dict[str, File]
    problems: dict[str, str]


def file_of(content: bytes) -> File:
    return File(hashlib.sha256(content).hexdigest(), len(content))


def read_folder(folder: Path, progress: Progress = _silent) -> Listing:
    """Hash every file under a folder.

    A link to a file counts as the file it leads to: these are the bytes a loader gets, and a hub cache is made of such
    links. A link to a folder, a pipe, a device and whatever cannot be read is a problem. Empty folders do not count.

    Cost: reads every byte once, 1 MiB at a time; about 1.7 GB/s where the processor has SHA instructions.
    """
    found = Listing({}, {})
    waiting = list(_walk(folder))
    total = sum(_size(path) for _, path, problem in waiting if not problem)
    done = 0
    for name, path, problem in waiting:
        progress("hashing", done // _MIB, max(1, total // _MIB), name)
        try:
            if problem:
                raise OSError(problem)
            found.files[name] = _hash(path)
            done += found.files[name].size
        except OSError as error:
            found.problems[name] = error.strerror or str(error)
    progress("hashing", max(1, total // _MIB), max(1, total // _MIB), "")
    return found


def certified(folder: Path, progress: Progress = _silent) -> dict[str, File]:
    """The same of a folder that is to be certified.

    Raises: ModelError when something in it is no readable file, or there is nothing in it.
    """
    found = read_folder(folder, progress)
    for name, problem in found.problems.items():
        raise ModelError(
            shown(f"{folder}/{name}"), problem, "a certified folder holds readable files only",
            "Copy the model to a folder of its own",
        )
    if not found.files:
        raise ModelError(str(folder), "holds no file", "accepted: a model folder", "Name the folder of the model")
    return found.files


def hashes_of(folder: Path, progress: Progress = _silent) -> dict[str, str]:
    """SHA-256 in hex of every file of a model folder by relative path (with slashes, sorted).

    The texts for people at its top (*.md) are left out: the card is written after the audit, and no loader reads it.
    So is what cannot be read as a file; nothing with such a file in it is certified anyhow (see `certified`).
    """
    return hashes(read_folder(folder, progress).files)


def hashes(files: Mapping[str, File]) -> dict[str, str]:
    """The same of files that were read already."""
    return {name: one.sha256 for name, one in sorted(files.items()) if "/" in name or not name.endswith(".md")}


@contextmanager
def reading(path: str | Path) -> Iterator[FileIO]:
    """A handle on a file. Raises: OSError, also for pipes and devices, without waiting for them."""
    with open(os.open(path, _FLAGS), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a file")
        yield file


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and number of every file: equal before and after means nobody wrote in between."""
    seen = {name: os.stat(path) for name, path, problem in _walk(folder) if not problem}
    return {name: (one.st_size, one.st_mtime_ns, one.st_ino) for name, one in seen.items()}


def base_of(folder: Path) -> str | None:
    """Where the base of an adapter lies, as the adapter names it; None for a folder that is no adapter."""
    if not (folder / "adapter_config.json").is_file():
        return None
    base = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    beside = folder / base
    return str(beside) if base and beside.is_dir() and not Path(base).is_dir() else base


def shown(text: str) -> str:
    """A text from elsewhere as it may go to a terminal: no control codes, no invisible or turning characters."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _walk(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Path inside the folder, path, and what is wrong with it, if anything is."""
    waiting = [("", str(folder))]
    while waiting:
        inside, here = waiting.pop()
        try:
            children = sorted(os.scandir(here), key=lambda one: one.name)
        except OSError as error:
            yield inside or ".", here, error.strerror or str(error)
            continue
        for child in children:
            if child.is_dir(follow_symlinks=False):
                waiting.append((f"{inside}{child.name}/", child.path))
            else:
                yield f"{inside}{child.name}", child.path, "a link to a folder" if os.path.isdir(child.path) else ""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _hash(path: str) -> File:
    with reading(path) as file:
        before = os.fstat(file.fileno())
        digest, piece, size = hashlib.sha256(), bytearray(min(_PIECE, before.st_size + 1)), 0
        while read := file.readinto(piece):
            digest.update(memoryview(piece)[:read])
            size += read
        after = os.fstat(file.fileno())
        if (size, after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
            raise OSError("written to while it was read")
    return File(digest.hexdigest(), size)
