"""The settings tried per method on LUME, RWKU's introductions and edited facts: those of the benchmarks of that size.

Facts come with another answer (`alternative`), which three methods learn. Completions and introductions have none:
methods that need some are left out there, with those that need other texts or are slow beyond use.
"""

from __future__ import annotations

from expunge.benches.grids import TOFU, Grids, _each, _retaining

_OTHERS = ("f_learning", "altpo", "whp", "undo", "cir", "kga")
LUME: Grids = {name: TOFU[name] for name in TOFU if name not in _OTHERS}
RWKU: Grids = LUME
_LONG = ("kul", "seul")  # stop by the extraction likelihood of ten tokens, and look for spans: answers are shorter
EDITING: Grids = {name: LUME[name] for name in LUME if name not in _LONG} | {
    "idk": _retaining(refusals="alternative"),
    "idk_dpo": _retaining(refusals="alternative"),
    "f_learning": _each(
        {"batch_size": 16, "forget_epochs": 10.0, "learn_epochs": 10.0, "forget_lr": 2e-3},
        {"learn_lr": 2e-3, "lam": 0.3}, {"learn_lr": 4e-3, "lam": 0.3}, {"learn_lr": 2e-3, "lam": 1.0},
    ),
}
