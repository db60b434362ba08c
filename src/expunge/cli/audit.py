"""expunge audit MODEL --forget F --retain R"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson, Out, Resume
from expunge.cli.unlearn import (
    AllowPickle,
    Attacks,
    Budget,
    Fields,
    Forget,
    Holdout,
    Metrics,
    Oracle,
    Original,
    Retain,
    TrustRemoteCode,
    listed,
    pairs,
    streams,
)


def audit(
    model: Annotated[str, typer.Argument(help="The model that is claimed to have forgotten.")],
    forget: Forget,
    retain: Retain = None,
    original: Original = None,
    oracle: Oracle = None,
    holdout: Holdout = None,
    metrics: Metrics = "default",
    attacks: Attacks = "default",
    budget: Budget = None,
    fields: Fields = None,
    out: Out = None,
    resume: Resume = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    as_json: AsJson = False,
) -> int:
    """Audit any claimed unlearning, ours or somebody else's."""
    from expunge.cli.screen import carry_out, start
    from expunge.presets import ATTACKS, METRICS
    from expunge.recipe import Recipe

    start()
    plain: dict[str, Any] = {
        "expunge": 1, "title": f"Audit of {Path(model).name}",
        "model": {"from": model, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code},
        "data": streams(fields, forget=forget, retain=retain, holdout=holdout),
        "audit": {
            "metrics": listed("metric", metrics, METRICS), "attacks": listed("attack", attacks, ATTACKS),
            "against": oracle, "original": original, "budget": pairs(budget),
        },
        "device": device,
    }
    made = Recipe.of(plain)
    return carry_out(made, out, f"audit-{Path(model).name}", resume=resume, as_json=as_json)
