"""Is what a method hid of forty TOFU authors brought back? Differences from the oracle before and under three attacks.

    EXPUNGE_THREADS=1 python benchmarks/reopened_tofu.py --data TOFU_FOLDER [--methods ga,npo]

The models are those of `expunge bench tofu --limit-authors 40` (trained once and kept). Verdicts with a margin of 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expunge import machine

machine.prepare()
machine.set_threads()

from expunge.audit import Audit  # noqa: E402
from expunge.benches.tofu import tofu  # noqa: E402
from expunge.models import clone, load  # noqa: E402
from expunge.recipe import AuditSpec  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.run import Run, _silent  # noqa: E402
from expunge.types import Data  # noqa: E402

METRICS = ("extraction_strength", "probability", "rouge")
ATTACKS: tuple[Mapping[str, Any], ...] = (
    {"use": "relearn", "at": (20, 60), "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4},
    {"use": "soft_prompt", "steps": 60},
)
REMOVALS: Mapping[str, Mapping[str, Any]] = {
    "ga": {"lr": 2e-3, "epochs": 5, "batch_size": 16},
    "npo": {"lr": 4e-3, "epochs": 8, "alpha": 1.0, "batch_size": 16},
    "rmu": {"layer": 1, "scale": 100.0, "alpha": 3.0, "lr": 5e-3, "steps": 300, "batch_size": 16},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", default="ga,npo")
    given = parser.parse_args(arguments)
    world = tofu(_silent, data=given.data, limit_authors=40)
    target, oracle = load(world.original), load(world.oracle or "")
    data = Data({name: world.audited[name] for name in ("forget", "retain")})
    spec = AuditSpec(tuple(bind("metric", one) for one in METRICS), tuple(bind("attack", one) for one in ATTACKS))
    print("| method | metric | condition | difference | 90 % interval | verdict |\n|---|---|---|---:|---|---|")
    for method in given.methods.split(","):
        after = clone(target)
        for stage in bind("method", {"use": method, **REMOVALS[method]})():
            after = stage(after, world.training, Run())
        audit = Audit(data, spec)
        audit.run(replace(after, lineage=()), oracle=lambda: oracle)
        for claim in audit.verdicts():
            for check in claim.checked if claim.claim == "forgotten" else ():
                told = audit.states[check.condition].condition.shown
                ends = "" if check.ci is None else f"{check.ci[0]:.2f} to {check.ci[1]:.2f}"
                found = f"{check.difference:.2f}" if check.difference is not None else "n/a"
                print(f"| {method} | {claim.metric} | {told} | {found} | {ends} | {check.verdict} |", flush=True)


if __name__ == "__main__":
    main()
