"""Every registered part, of whatever kind, passes the checks of its kind; and the checks catch what they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge import testing
from expunge.models import clone
from expunge.registry import entries
from expunge.testing.parts import bound_of
from expunge.types import Bound, Cost, Event, Movable, Score

VARIANTS = {  # hyper-parameters that lead elsewhere than the defaults
    "objective": [
        {"use": "npo", "length_norm": True}, {"use": "simnpo", "delta": 0.5}, {"use": "dpo", "beta": 2.0},
        {"use": "ceu", "skip_first": False}, {"use": "satimp", "beta1": 0.0, "beta2": 0.0},
        {"use": "rmu", "layer": 1, "scale": 20.0}, {"use": "adaptive_rmu", "layer": 0},
        {"use": "kl", "direction": "reverse"}, {"use": "kl", "length_norm": True},
        {"use": "ascent", "length_norm": True},
    ],
    "metric": [
        {"use": "membership", "score": score} for score in ("min_k", "min_k_plus_plus", "zlib")
    ] + [
        {"use": "probability", "against_perturbed": True}, {"use": "probability", "normalise": False},
        {"use": "truth_ratio", "wrong": "arithmetic"}, {"use": "rouge", "kind": "rouge1", "measure": "f1"},
        {"use": "model_utility", "streams": ["retain"]}, {"use": "jsd", "against": "original"},
        {"use": "leak_rate", "kind": "bleu"}, {"use": "hallucination_rate", "kind": "bleu"},
        {"use": "membership_reference", "reference": "original"}, {"use": "membership_gradient", "p": "inf"},
        {"use": "privleak", "score": "loss"},
    ],
    "attack": [
        {"use": "quantize", "bits": 8}, {"use": "relearn", "scope": {"use": "lora", "rank": 2}, "steps": 2},
        {"use": "chain", "attacks": [{"use": "quantize", "bits": 8}, "paraphrase"]},
        {"use": "quantize", "kind": "nf4", "double": True}, {"use": "prune", "kind": "magnitude", "per": "model"},
        {"use": "prefill", "words": 1}, {"use": "perturb_prompt", "share": 0.2},
        {"use": "few_shot", "source": "forget"},
        {"use": "orthogonalize", "form": "weights"}, {"use": "tuned_lens", "target": "original"},
        {"use": "prune", "kind": "wanda"}, {"use": "relearn", "at": [2, 4], "scope": {"use": "lora", "rank": 2}},
    ],
    "scope": [{"use": "lora", "rank": 2}, {"use": "layers", "layers": [-1], "match": "mlp"}],
}
SMALL = {"width": 8, "length": 4, "pairs": 2}  # of the searches
AT_LEAST = {"objective": 8, "metric": 11, "attack": 3, "scope": 3}


def parts(kind: str) -> list[Bound]:
    plain = [entry for name, entry in entries(kind).items() if name != "chain"]  # which has nothing to do by itself
    found = [bound_of(kind, part) for part in [*plain, *VARIANTS[kind]]]
    small = {"steps": 3} | (SMALL if kind == "attack" else {})
    return [
        replace(part, hyper={**part.hyper, **{name: small[name] for name in small.keys() & part.hyper}})
        for part in found
    ]


def cases(kind: str, checks) -> list:
    return [
        pytest.param(part, check, id=f"{part.name}{number}-{check.__name__.removeprefix('check_')}")
        for number, part in enumerate(parts(kind))
        for check in checks
    ]


@pytest.mark.parametrize(("kind", "least"), AT_LEAST.items())
def test_the_registry_is_not_empty(kind, least):
    """An empty registry would pass every test below."""
    assert len(entries(kind)) >= least


@pytest.mark.parametrize(("part", "check"), cases("objective", testing.OBJECTIVE_CHECKS))
def test_objectives(part, check):
    check(part)


@pytest.mark.parametrize(("part", "check"), cases("metric", testing.METRIC_CHECKS))
def test_metrics(part, check):
    check(part)


@pytest.mark.filterwarnings("ignore:attacks.relearn.lr")  # three steps at the default rate move little
@pytest.mark.parametrize(("part", "check"), cases("attack", testing.ATTACK_CHECKS))
def test_attacks(part, check, tiny):
    before = {"original": testing.tiny_subject(seed=1)}
    check(part, replace(tiny, helpers=before), testing.tiny_data())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("part", "check"), cases("scope", testing.SCOPE_CHECKS))
def test_scopes(part, check, family):
    check(part, family)


# -- the checks themselves ------------------------------------------------------------------------------------------
def mean_over_rows(view):
    return (-view.now.sum_logp).mean().expand(len(view.now.logp))


def counts_padding(view):
    return -view.now.logp.mean(-1)


def weighs_by_place(view):
    return -view.now.sum_logp * torch.arange(1, len(view.now.logp) + 1)


def forgets_the_gradient(view):
    return -view.now.sum_logp.detach()


def one_number(view):
    return -view.now.sum_logp.sum()


def explodes(view):
    return view.now.sum_logp.exp().log()


def writes(view):
    view.batch.labels.zero_()
    return -view.now.sum_logp


BROKEN = {
    mean_over_rows: "beside it", counts_padding: "columns of padding", weighs_by_place: "beside it",
    forgets_the_gradient: "no gradient", one_number: "wanted losses", explodes: "not finite", writes: "was changed",
}


@pytest.mark.parametrize("fn", BROKEN, ids=lambda fn: fn.__name__)
def test_broken_objectives_are_caught(fn):
    with pytest.raises(AssertionError, match=f"objective '{fn.__name__}': .*{BROKEN[fn]}"):
        testing.check_objective(Bound("objective", fn.__name__, fn))


def test_what_an_objective_did_not_declare_it_does_not_get():
    with pytest.raises(ValueError, match="must declare 'ref'"):
        testing.check_objective(Bound("objective", "npo", entries("objective")["npo"].fn, {"beta": 0.1}))


def metric_like(fn) -> Bound:
    return replace(bound_of("metric", "memorization_accuracy"), name=fn.__name__, fn=fn, hyper={})


def test_broken_metrics_are_caught():
    def percent(tables):
        return Score(50.0, None, {}, 9, "share")

    def first_row(tables):
        value = float(tables.get("tokens").row_sum("argmax")[0] > 0) if len(tables.get("tokens")) else 0.0
        return Score(value, None, {}, 9, "share")

    def off_its_interval(tables):
        return Score(0.5, (0.6, 0.7), {}, 9, "share")

    def always(tables):
        return Score(0.5, (0.0, 1.0), {}, 9, "share")

    told = {percent: "outside", off_its_interval: "its interval", always: "without a row"}
    for fn, message in told.items():
        with pytest.raises(AssertionError, match=message):
            testing.check_metric(metric_like(fn))
    with pytest.raises(AssertionError, match=r"order of rows|without a row"):
        testing.check_metric(metric_like(first_row))


def test_broken_attacks_are_caught(tiny):
    def in_place(subject, data, run):
        with torch.no_grad():
            next(iter(subject.model.parameters())).add_(1)
        yield subject.after(Event("attack", "in_place", cost=Cost(steps=1)))

    def without_cost(subject, data, run):
        changed = clone(subject)
        with torch.no_grad():
            next(iter(changed.model.parameters())).add_(1)
        yield changed.after(Event("attack", "without_cost"))

    def nothing(subject, data, run):
        yield from ()

    told = {in_place: "was changed", without_cost: "no cost", nothing: "nothing came"}
    for fn, message in told.items():
        with pytest.raises(AssertionError, match=message):
            testing.check_attack(Bound("attack", fn.__name__, fn, {}, {"changes": "weights"}), clone(tiny))


def test_broken_scopes_are_caught():
    def thaws_all(model):
        name, parameter = next(iter(model.named_parameters()))
        return Movable({name: parameter})

    def a_stranger(model):
        return Movable({"mine": torch.nn.Parameter(torch.zeros(1))})

    for fn, message in {thaws_all: "should be frozen", a_stranger: "no parameter of the model"}.items():
        with pytest.raises(AssertionError, match=message):
            testing.check_scope(Bound("scope", fn.__name__, fn))
