"""The machine under us: CPU defaults, what it is, how much memory was used, and folders written whole.

Nothing here imports torch at module level: `prepare()` must run before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.errors import StorageError

_PACKAGES = ("expunge", "torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "datasets", "numpy")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc malloc.h
_KEEP_BYTES = 1 << 30  # buffers below this stay in the process between steps
_SWAP_PATHS, _HERE = 2, -100  # renameat2: RENAME_EXCHANGE, AT_FDCWD


def prepare() -> None:
    """Set CPU defaults; call before torch is imported. What the user has set in the environment wins.

    OpenMP threads spin shortly instead of long (a taken core would otherwise cost several times its share), and
    glibc keeps large buffers between steps (about a quarter more tokens per second on small models;
    EXPUNGE_MALLOPT=0 switches that off).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_buffers()


def _keep_buffers() -> None:
    if os.environ.get("EXPUNGE_MALLOPT", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc: nothing to tune
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def trim() -> None:
    """Give freed memory back to the system, where the C library can: it keeps what lies between living blocks."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def num_threads() -> int:
    """How many threads to compute with: as many as there are idle cores now, at least one.

    EXPUNGE_THREADS or OMP_NUM_THREADS decide when set; a pytest-xdist worker gets one. Otherwise the share of idle
    time of the cores we may use is read over 50 ms, because a thread on a taken core slows all others down.
    """
    for name in ("EXPUNGE_THREADS", "OMP_NUM_THREADS"):
        asked = os.environ.get(name, "")
        if asked.isdigit() and int(asked) > 0:
            return int(asked)
    if "PYTEST_XDIST_WORKER" in os.environ:
        return 1
    cores = _cores()
    if len(cores) == 1:
        return 1
    before = _core_times()
    time.sleep(0.05)
    after = _core_times()
    if not before:  # no /proc: ask the load of the last minute
        return max(1, round(len(cores) - os.getloadavg()[0])) if hasattr(os, "getloadavg") else len(cores)
    idle = 0.0
    for core in cores & before.keys() & after.keys():
        idle_ticks, all_ticks = (now - then for now, then in zip(after[core], before[core], strict=True))
        idle += idle_ticks / all_ticks if all_ticks else 1.0
    return max(1, min(len(cores), round(idle)))


def set_threads() -> int:
    """Give torch the threads of `num_threads()`; returns how many."""
    import torch

    threads = num_threads()
    torch.set_num_threads(threads)
    return threads


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _core_times() -> dict[int, tuple[int, int]]:
    """(idle, all) clock ticks of every core since boot; empty where the system does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    times = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            ticks = [int(field) for field in fields[:8]]  # guest time is already inside user time
            times[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return times


def environment() -> dict[str, Any]:
    """Versions and hardware, as written to env.json. Asks torch only if it is already imported."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(_cores()),
        "memory_mb": _memory_mb(),
        "versions": versions,
        "settings": {
            name: os.environ[name]
            for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "EXPUNGE_THREADS", "EXPUNGE_MALLOPT")
            if name in os.environ
        },
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        found["accelerators"] = [torch.cuda.get_device_name(i) for i in devices]
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6
    except (ValueError, OSError, AttributeError):
        return None


def peak_memory_mb() -> float:
    """Most memory this process ever held, in 10^6 bytes; 0.0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears complete or not at all: yields an empty folder beside it, to be filled.

    On leaving, everything is flushed to the disk and takes the place of `folder` in one step; the old content is
    removed only afterwards. If the body fails, what was written is removed and the old folder is untouched. What
    a killed process left half written is removed by the next call.

    Raises: StorageError when the disk is full or the place cannot be written. Cost: room for both versions.
    """
    folder = Path(os.path.abspath(folder))
    aside, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():  # killed between the two renames of `_replace`
            old.rename(folder)
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            _flush(aside)
            _replace(folder, aside, old)
        finally:
            for left in (aside, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise storage_error(folder, error) from error


def storage_error(path: Path, error: BaseException) -> StorageError:
    """The four parts of a write that failed."""
    reason = getattr(error, "strerror", None) or str(error)
    kept = "what stood there before is untouched" if path.exists() else "nothing was left behind"
    return StorageError(str(path), f"could not be written ({reason})", kept, "Free some space or choose another folder")


def _flush(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder):
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(folder: Path, aside: Path, old: Path) -> None:
    if not folder.exists():
        aside.rename(folder)
    elif not _swap(aside, folder):
        folder.rename(old)
        aside.rename(folder)
    if os.name != "nt":
        handle = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _SWAP_PATHS) == 0)
