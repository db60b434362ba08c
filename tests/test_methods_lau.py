"""Methods that stand on a perturbation: expansions, first losses, what they do to a model that learned."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from expunge.measure.plan import measure
from expunge.models import clone
from expunge.registry import bind, spec_of
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from support.learned import knows, short_data
from support.streams import records, small_data

PUSH = {"use": "latent", "eps": 2.0, "steps": 4}


def expansion(name, **hyper):
    (stage,) = bind("method", {"use": name, **hyper})()
    return spec_of(stage)


def test_the_defaults_are_the_authors():
    """Latent pushes: 8 in 6 steps (RMU: 2 in 3, one block below), batch 4, one pass, 1e-6; SAM 0.01; CIR 0.2."""
    for name, objective in (("adv_ga", "ascent"), ("adv_npo", "npo")):
        plain = expansion(name)
        assert plain["terms"][0]["use"] == objective
        assert {key: plain["perturb"][key] for key in ("use", "on", "layer", "eps", "steps", "clean")} == {
            "use": "latent", "on": "forget", "layer": None, "eps": 8.0, "steps": 6, "clean": 0.5,
        }
        assert (plain["lr"], plain["batch_size"], plain["epochs"]) == (1e-6, 4, 1)
    assert expansion("adv_npo")["terms"][0]["beta"] == 0.1
    plain = expansion("adv_rmu")
    assert {key: plain["perturb"][key] for key in ("layer", "eps", "steps")} == {"layer": 6, "eps": 2.0, "steps": 3}
    assert [term["use"] for term in plain["terms"]] == ["rmu", "hold"]
    assert plain["scope"]["layers"] == [5, 6, 7]
    plain = expansion("npo_sam")
    assert (plain["perturb"], plain["lr"], plain["batch_size"]) == (
        {"use": "sam", "on": "forget", "rho": 0.01}, 1e-5, 4,
    )
    plain = expansion("cir")
    assert (plain["lr"], plain["optimizer"]["use"], plain["perturb"]["norm"]) == (0.2, "sgd", 1.0)


def test_the_push_of_advrmu_follows_its_block():
    assert expansion("adv_rmu", layer=3)["perturb"]["layer"] == 2
    assert expansion("adv_rmu", layer=0)["perturb"]["layer"] == 0
    assert expansion("adv_rmu", push={"use": "latent", "layer": 1})["perturb"]["layer"] == 1


def test_the_first_loss_of_advnpo_is_above_that_of_npo(tiny, tmp_path):
    """At the reference NPO is 20 log 2; the adversary lowers the likelihood ratio, so its share of the loss is more."""
    first = {}
    for clean in (1.0, 0.5, 0.0):
        push = {**PUSH, "init": "zeros", "clean": clean}
        (stage,) = bind("method", {"use": "adv_npo", "lr": 0.0, "batch_size": 12, "push": push})()
        stage(clone(tiny), small_data(), Run(tmp_path / str(clean)))
        first[clean] = records(tmp_path / str(clean))[0]["terms"]["npo(forget)"]
    assert first[1.0] == pytest.approx(20 * math.log(2), abs=1e-3)
    assert first[0.0] > first[1.0] + 0.1
    assert first[0.5] == pytest.approx((first[0.0] + first[1.0]) / 2, rel=1e-4)


TUNED = {
    "adv_ga": {"lr": 1e-3, "epochs": 8, "retain": "nll", "alpha": 5.0, "push": PUSH},
    "adv_npo": {"lr": 1e-3, "epochs": 12, "alpha": 5.0, "push": PUSH},
    "adv_rmu": {"layer": 1, "lr": 1e-2, "epochs": 20, "alpha": 5.0, "push": {**PUSH, "layer": 1}},
    "npo_sam": {"lr": 1e-3, "epochs": 12, "alpha": 5.0, "rho": 0.05},
    "cir": {"lr": 0.05, "epochs": 40, "alpha": 2.0},
}


@pytest.mark.parametrize("name", TUNED)
def test_what_is_to_go_goes_further_than_what_is_to_stay(name):
    metrics, data = [bind("metric", "probability")], short_data()
    (stage,) = bind("method", {"use": name, "batch_size": 12, **TUNED[name]})()
    subject = stage(clone(knows("forget", "retain")), data, Run())
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    forget, retain = (found[stream, "probability"].value for stream in ("forget", "retain"))
    assert forget < 0.87  # 0.96 before, on both
    assert retain > forget + 0.1


def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "lau_robustness.py"
    spec = importlib.util.spec_from_file_location("lau_robustness", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lau_robustness"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_npo_and_advnpo_are_compared_at_the_same_depth_and_with_as_much_kept():
    """The paper's claim (AdvNPO gives back less) does not reproduce here, see benchmarks/RESULTS.md.

    What is asserted is that the comparison is fair, and that a latent push brings something back from either.
    """
    bench = benchmark()
    data = bench.facts(0)
    start = bench.learned(data, 0, ("forget", "retain"))
    for name in ("NPO", "AdvNPO eps 1, K 6"):
        subject, steps, _ = bench.unlearned(start, data, bench.VARIANTS[name], 0)
        assert steps > 0
        forget, retain = (bench.mean_loss(bench.asked(subject, data[on].examples)) for on in ("forget", "retain"))
        assert bench.DEPTH < forget < bench.DEPTH + 1.5
        assert retain <= bench.RETAINED
        assert bench.mean_loss(bench.pushed(subject, data, 0)) < forget - 1
