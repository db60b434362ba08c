"""An audit under many attacks: no false alarm, no removal believed that was none, hidden knowledge found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from expunge.audit import Audit
from expunge.data.synthetic_base import base_folder
from expunge.demo import Settings, inject, people
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
    {"use": "prune", "kind": "magnitude"}, {"use": "relearn", "steps": 8, "lr": 3e-3}, {"use": "probe", "steps": 5},
    {"use": "chain", "attacks": [{"use": "relearn", "steps": 8, "lr": 3e-3}, {"use": "quantize", "bits": 8}]},
)
SETTINGS = Settings()
RATE = {"lr": 5e-4, "batch_size": 16}
DEMO: tuple[Any, ...] = (
    {"use": "quantize", "bits": 4}, {"use": "relearn", "at": (20, 60), **RATE}, {"use": "soft_prompt", "steps": 60},
)
HIDDEN = {"ga": "extraction_strength", "npo": "probability", "rmu": "probability"}  # what looks forgotten
REMOVALS = {
    "ga": {"lr": 2e-3, "epochs": 8, "batch_size": 32},
    "npo": {"lr": 2e-3, "epochs": 15, "batch_size": 32, "alpha": 20.0},
    "rmu": {"layer": 1, "scale": 100.0, "alpha": 3.0, "lr": 5e-3, "steps": 300, "batch_size": 16},
}


def bounds(attacks: Sequence[Any]) -> tuple[Bound, ...]:
    return tuple(bind("attack", one) for one in attacks)


# -- no false alarm ------------------------------------------------------------------------------------------------
def taught(seed: int, *names: str, data: Data, init: int = 2) -> Subject:
    """A tiny model taught some streams; the seed decides what is read when, `init` what it starts from."""
    examples = tuple(example for name in names for example in data[name].examples)
    stage = forget(
        terms=[term("nll", on="taught")], steps=120, lr=5e-3, batch_size=4,
        optimizer={"use": "adamw", "weight_decay": 0.0, "warmup": 0.1},
    )
    learned = stage(clone(tiny_subject(seed=init)), Data(taught=Stream("taught", "anchor", examples)), Run(seed=seed))
    return replace(learned, lineage=())


def beside(base: Audit, after: Subject) -> Audit:
    """An audit of another model beside the same oracle, whose measurements are taken over."""
    made = Audit(base.data, base.spec, partner=base.partner, states=dict(base.states))
    made.run(after)
    return made


@pytest.mark.slow
def test_a_model_that_never_knew_raises_no_alarm_and_one_that_still_knows_always_does():
    """Twenty twins of the oracle, taught in another order, half of them from other weights, under 16 attacks."""
    data = short_data(forget=48)
    oracle, target = taught(0, "retain", data=data), taught(0, "forget", "retain", data=data)
    spec = AuditSpec(tuple(bind("metric", one) for one in CLAIMS), bounds(SMALL), margin=0.3)
    base = Audit(data, spec, partner=Partner(lambda: target))
    base.run(oracle, oracle=lambda: oracle)
    base.states = {name: state for name, state in base.states.items() if name.startswith("oracle")}
    outcomes = []
    for seed in range(1, 21):
        twin = taught(seed, "retain", data=data, init=2 if seed % 2 else seed)
        claims = [v for v in beside(base, twin).verdicts() if v.claim == "forgotten"]
        outcomes.append(overall(claims))
        print(seed, outcomes[-1], [(v.metric, v.condition, v.difference) for v in claims if v.verdict != "PASS"])
    missed = [seed for seed in range(1, 6) if overall(
        [v for v in beside(base, taught(seed, "forget", "retain", data=data)).verdicts() if v.claim == "forgotten"]
    ) != "FAIL"]
    assert outcomes.count("FAIL") <= 1, outcomes
    assert outcomes.count("PASS") >= 19, outcomes
    assert not missed


# -- hidden knowledge is found -------------------------------------------------------------------------------------
@cache
def story() -> tuple[Subject, Subject, Data]:
    """The demo's target and oracle, of ten people, and its streams."""
    rest = people("retain", SETTINGS) + people("world_facts", SETTINGS)
    target, oracle = (inject(base_folder(), more + rest, SETTINGS) for more in (people("forget", SETTINGS), []))
    streams = {part: Stream(part, part, tuple(people(part, SETTINGS))) for part in ("forget", "retain")}
    return target, oracle, Data(streams)


@pytest.mark.slow
@pytest.mark.parametrize("method", REMOVALS)
def test_what_a_method_hid_is_brought_back_and_the_verdict_says_so(method):
    """By this metric the model as it stands knows no more than the oracle; under an attack it clearly does."""
    target, oracle, data = story()
    after = clone(target)
    for stage in bind("method", {"use": method, **REMOVALS[method]})():
        after = stage(after, data, Run())
    spec = AuditSpec(tuple(bind("metric", one) for one in CLAIMS), bounds(DEMO), margin=0.1)
    audit = Audit(data, spec, partner=Partner(lambda: target))
    audit.run(replace(after, lineage=()), oracle=lambda: oracle)
    (claim,) = [v for v in audit.verdicts() if (v.claim, v.metric) == ("forgotten", HIDDEN[method])]
    checks = {check.condition: check for check in claim.checked}
    assert checks["after"].ci[1] < 0.1
    opened = {name: check.difference for name, check in checks.items() if check.verdict == "FAIL"}
    print(method, {name: (check.difference, check.ci) for name, check in checks.items()})
    assert opened
    assert min(opened.values()) > 0.1
    assert claim.verdict == "FAIL"
    assert claim.condition in opened
    assert "knows clearly more than the oracle" in claim.reason
