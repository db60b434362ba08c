"""The settings tried per method on MUSE and WMDP: three each, those of the benchmarks of the same kind of text."""

from __future__ import annotations

from expunge.benches.grids import KUL, TOFU, Grids

MUSE: Grids = KUL  # plain texts, short, in a small model
WMDP: Grids = {name: TOFU[name] for name in TOFU if name not in ("altpo", "whp", "f_learning", "undo", "cir")}
