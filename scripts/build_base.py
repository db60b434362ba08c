"""Rebuild the base model that ships with the package: `python scripts/build_base.py [FOLDER]`."""

from __future__ import annotations

import sys
import time

from expunge.machine import prepare, set_threads


def main() -> None:
    prepare()
    from expunge.data.synthetic_base import base_folder
    from expunge.pretrain import build_base

    set_threads()
    begun = time.perf_counter()

    def show(_what: str, done: int, total: int, note: str) -> None:
        if done % 50 == 0 or done == total:
            print(f"step {done}/{total}  {note}  {time.perf_counter() - begun:.0f} s", flush=True)

    folder = build_base(sys.argv[1] if len(sys.argv) > 1 else base_folder(), progress=show)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
