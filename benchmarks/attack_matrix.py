"""Every attack under every metric on the demo's model, its unlearned copy and its oracle: how long, and what it finds.

    EXPUNGE_THREADS=1 python benchmarks/attack_matrix.py [--methods npo,ga,rmu] [--out FOLDER] [--quick]

One audit per method over the same target and the same oracle, each with the attacks of `attacks: thorough` at the rates
this small model needs, and 16 metrics. A killed run goes on where it was with the same command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge import machine

machine.prepare()
machine.set_threads()

from expunge.cli.screen import bars  # noqa: E402
from expunge.demo import QUICK, Settings, prepare  # noqa: E402
from expunge.presets import ATTACKS, METRICS  # noqa: E402
from expunge.recipe import Recipe  # noqa: E402
from expunge.report.schema import Evidence  # noqa: E402
from expunge.workflow import Workflow  # noqa: E402

MORE = ("logit_lens_extraction", "unlearning_depth", "model_diff")
# What a model of 8 million times fewer weights than the defaults are for needs; the kind of attack stays the same.
SCALED: Mapping[str, Mapping[str, Any]] = {
    "relearn": {"lr": 5e-4, "batch_size": 16},
    "gcg": {"steps": 20, "width": 64, "length": 8},
    "dua": {"steps": 20, "width": 64, "length": 8},
    "soft_prompt": {"steps": 60},
}
REMOVALS: Mapping[str, Mapping[str, Any]] = {
    "npo": {"lr": 2e-3, "epochs": 15, "batch_size": 32, "alpha": 20.0},
    "ga": {"lr": 2e-3, "epochs": 8, "batch_size": 32},
    "rmu": {"layer": 1, "scale": 100.0, "alpha": 3.0, "lr": 5e-3, "steps": 300, "batch_size": 16},
    "nothing": {},
}


def scaled(spec: Any) -> Any:
    """An attack of the list at this model's rates; those inside a chain as well."""
    plain = {"use": spec} if isinstance(spec, str) else dict(spec)
    if "attacks" in plain:
        return plain | {"attacks": [scaled(one) for one in plain["attacks"]]}
    return plain | dict(SCALED.get(plain["use"], {}))


def recipe(folder: Path, settings: Settings, method: str) -> Recipe:
    plain = prepare(folder, settings)
    plain["audit"] |= {
        "metrics": [*METRICS["default"], *MORE], "attacks": [scaled(spec) for spec in ATTACKS["thorough"]],
        "original": str(folder / "target"),
    }
    del plain["method"]
    if method != "nothing":
        plain["method"] = {"use": method, **REMOVALS[method]}
    return Recipe.of(plain | {"title": f"{method} on the demo's model, under every attack"})


def rows(evidence: Evidence) -> list[str]:
    """What each attack did to the extraction of the forgotten answers, beside the oracle under the same attack."""
    found = ["| attack | after | oracle | verdict of the worst claim | seconds |", "|---|---|---|---|---|"]
    order = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}
    for condition in evidence.conditions:
        if condition.name != "after" and condition.of != "after":
            continue
        twin = "oracle" + condition.name.removeprefix("after")
        cells = [_score(evidence, name) for name in (condition.name, twin)]
        checks = [(order[check.verdict], claim.metric, check.verdict) for claim in evidence.verdicts
                  for check in claim.checked if claim.claim == "forgotten" and check.condition == condition.name]
        worst = max(checks, default=(0, "", "n/a"))
        told = condition.suffix if condition.of else "none"
        found.append(f"| {told} | {' | '.join(cells)} | {worst[2]} ({worst[1]}) | {condition.cost.seconds:.1f} |")
    return found


def _score(evidence: Evidence, name: str) -> str:
    row = evidence.score(name, "forget", "extraction_strength")
    if row is None or row.value is None:
        return f"n/a: {row.reason}" if row else "-"
    return f"{row.value:.2f} ({row.ci[0]:.2f}-{row.ci[1]:.2f})" if row.ci else f"{row.value:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="npo")
    parser.add_argument("--out", type=Path, default=Path("runs/attack_matrix"))
    parser.add_argument("--quick", action="store_true", help="five people instead of ten")
    given = parser.parse_args(arguments)
    for method in given.methods.split(","):
        made = recipe(given.out, QUICK if given.quick else Settings(), method)
        folder, begun = given.out / method, time.perf_counter()
        with bars() as progress:
            evidence = Workflow(made, folder, resume=True, progress=progress).execute()
        assert evidence is not None
        attacks = {row.attack for row in evidence.conditions if row.attack}
        metrics = {row.metric for row in evidence.scores}
        print(f"\n{method}: {len(made.audit.attacks if made.audit else ())} attacks of {len(attacks)} kinds, "
              f"{len(evidence.conditions)} conditions, {len(metrics)} metrics, "
              f"{time.perf_counter() - begun:.0f} s; verdict {evidence.verdict}\n")
        print("\n".join(rows(evidence)), flush=True)


if __name__ == "__main__":
    main()
