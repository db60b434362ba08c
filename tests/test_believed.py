"""An audit under many attacks: no false alarm, no removal believed that was none, hidden knowledge found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from expunge.audit import Audit
from expunge.data.synthetic_base import base_folder
from expunge.demo import QUICK, inject, people
from expunge.forget import forget
from expunge.measure.desk import Partner
from expunge.models import clone
from expunge.recipe import AuditSpec
from expunge.registry import bind, term
from expunge.run import Run
from expunge.testing import tiny_subject
from expunge.types import Bound, Data, Stream, Subject
from expunge.verdicts import overall
from support.learned import short_data

CLAIMS = ("extraction_strength", "exact_memorization", "probability", "rouge")
SMALL: tuple[Any, ...] = (
    {"use": "quantize", "bits": 4}, "paraphrase", "prefill", "few_shot", "perturb_prompt",
    {"use": "sampling", "num": 4},
    {"use": "beam", "beams": 3}, "contrastive", "logit_lens", "noise", {"use": "interpolate", "amounts": (0.1,)},
    {"use": "prune", "kind": "magnitude"}, {"use": "relearn", "steps": 3, "lr": 1e-3}, {"use": "probe", "steps": 5},
    {"use": "chain", "attacks": [{"use": "relearn", "steps": 3, "lr": 1e-3}, {"use": "quantize", "bits": 8}]},
)
DEMO: tuple[Any, ...] = (
    {"use": "quantize", "bits": 4}, {"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, "prefill",
    "few_shot", {"use": "probe", "steps": 60}, {"use": "interpolate", "amounts": (0.5,)}, "orthogonalize",
)
REMOVALS = {
    "ga": {"lr": 2e-3, "epochs": 16, "batch_size": 32},
    "npo": {"lr": 2e-3, "epochs": 15, "batch_size": 32, "alpha": 20.0},
    "rmu": {"layer": 1, "scale": 100.0, "alpha": 3.0, "lr": 5e-3, "steps": 300, "batch_size": 16},
}


def audit(
    after: Subject, oracle: Subject, original: Subject, data: Data, attacks: Sequence[Any], margin: float
) -> Audit:
    spec = AuditSpec(tuple(bind("metric", one) for one in CLAIMS), bounds(attacks), margin=margin)
    made = Audit(data, spec, partner=Partner(lambda: original))
    made.run(after, original=lambda: original, oracle=lambda: oracle)
    return made


def bounds(attacks: Sequence[Any]) -> tuple[Bound, ...]:
    return tuple(bind("attack", one) for one in attacks)


# -- no false alarm ------------------------------------------------------------------------------------------------
def taught(seed: int, *names: str, data: Data) -> Subject:
    """A tiny model taught some streams; the seed decides what is read when."""
    examples = tuple(example for name in names for example in data[name].examples)
    stage = forget(
        terms=[term("nll", on="taught")], steps=90, lr=1e-2, batch_size=12,
        optimizer={"use": "adamw", "weight_decay": 0.0, "warmup": 0.1},
    )
    learned = stage(clone(tiny_subject(seed=2)), Data(taught=Stream("taught", "anchor", examples)), Run(seed=seed))
    return replace(learned, lineage=())


@pytest.mark.slow
def test_a_model_that_never_knew_raises_no_alarm_and_one_that_still_knows_always_does():
    """Twenty twins of the oracle, taught in another order, against it under 15 attacks; and targets nobody changed."""
    data = short_data()
    oracle, target = taught(0, "retain", data=data), taught(0, "forget", "retain", data=data)
    alarms, missed = [], []
    for seed in range(1, 21):
        twin = taught(seed, "retain", data=data)
        found = audit(twin, oracle, target, data, SMALL, margin=0.3)
        failed = [v for v in found.verdicts() if v.claim == "forgotten" and v.verdict == "FAIL"]
        alarms += [(seed, [(v.metric, v.condition, v.difference) for v in failed])] if failed else []
    for seed in range(1, 6):
        knows = taught(seed, "forget", "retain", data=data)
        found = audit(knows, oracle, knows, data, SMALL[:4], margin=0.3)
        missed += [] if overall(found.verdicts()) == "FAIL" else [seed]
    assert len(alarms) <= 1, alarms
    assert not missed


# -- hidden knowledge is found -------------------------------------------------------------------------------------
@cache
def story() -> tuple[Subject, Subject, Data]:
    """The demo's target and oracle, of five people, and its streams."""
    rest = people("retain", QUICK) + people("world_facts", QUICK)
    target, oracle = (inject(base_folder(), more + rest, QUICK) for more in (people("forget", QUICK), []))
    return target, oracle, Data({part: Stream(part, part, tuple(people(part, QUICK))) for part in ("forget", "retain")})


@pytest.mark.slow
@pytest.mark.parametrize("method", REMOVALS)
def test_what_a_method_hid_is_brought_back_and_the_report_says_so(method, tmp_path):
    """By some metric the model as it stands knows no more than the oracle, and under some attack it clearly does."""
    target, oracle, data = story()
    after = clone(target)
    for stage in bind("method", {"use": method, **REMOVALS[method]})():
        after = stage(after, data, Run())
    judged = audit(replace(after, lineage=()), oracle, target, data, DEMO, margin=0.1)
    claims = [v for v in judged.verdicts() if v.claim == "forgotten"]
    opened = {}
    for claim in claims:
        checks = {check.condition: check for check in claim.checked}
        if checks["after"].difference < 0.1:  # as it stands, by this metric, it knows no more than the oracle
            found = [name for name, check in checks.items() if check.verdict == "FAIL" and check.difference > 0.1]
            opened[claim.metric] = found
            if opened[claim.metric]:
                assert claim.verdict == "FAIL"
                assert claim.condition != "after"
                assert "knows clearly more than the oracle" in claim.reason
    assert any(opened.values()), [(v.metric, [(c.condition, c.difference, c.ci) for c in v.checked]) for v in claims]
