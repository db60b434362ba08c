"""A program of its own, alone or as several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_ranks(folder: Path, source: str, ranks: int) -> Path:
    """Run a program in a new folder; its arguments are the folder and the number of ranks. Fails with what it said."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(source + "\nfrom expunge import dist\ndist.leave()\n")  # as the console script ends
    command = [sys.executable, str(program), str(folder), str(ranks)]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*launcher, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder
