"""The suffix search against golden values, and closed forms that need none."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.attacks.suffix import losses, probe, propose
from expunge.attacks.suffix.evaluate import Goal, Reader
from expunge.attacks.suffix.problem import Problem
from expunge.attacks.suffix.search import Settings, search
from expunge.attacks.suffix.slope import token_slope
from expunge.run import Run
from expunge.types import Subject
from support import golden, toys

NEAR = toys.NEAR


@pytest.fixture
def told():
    return golden.load("gcg")


@pytest.fixture
def problem(told):
    parts = (tuple(told[name]) for name in ("before", "opt_init", "after", "target"))
    return Problem(Subject(toys.llama(), None), *parts)


def allowed(told):
    return propose.allowed_tokens(None, 23, forbidden=told["banned_ids"])


def slope(problem):
    reader = Reader(problem, Goal(losses.cross_entropy))
    return token_slope([reader], [reader.base(problem.start)])


def test_the_loss_of_the_start(told, problem):
    start = torch.tensor([problem.start])
    for value, name in ((losses.cross_entropy, "ce"), (losses.mellowmax(1.0), "mellowmax_alpha1")):
        found = Reader(problem, Goal(value)).score(start).target
        assert float(found[0]) == pytest.approx(told[f"init_loss_{name}"], **NEAR)


def test_the_gradient_and_its_best_tokens(told, problem):
    found = slope(problem)
    assert list(found.shape) == told["onehot_grad_shape"]
    assert found[0].tolist() == pytest.approx(told["onehot_grad_row0"], **NEAR)
    assert propose.best_tokens(found, allowed(told), 4).tolist() == told["topk4_per_position"]


@pytest.mark.parametrize("how", [{"share": False}, {"buckets": 1}, {"buckets": 0}, {"buckets": 3, "batch_tokens": 1}])
def test_all_swaps(told, problem, how):
    candidates = propose.all_swaps(torch.tensor(problem.start), torch.tensor(told["topk4_per_position"]))
    for row, swap in zip(candidates.tolist(), told["swap_losses"], strict=True):
        assert row[swap["pos"]] == swap["id"]
    reader = Reader(problem, Goal(losses.cross_entropy), **how)
    found = reader.score(candidates, reader.base(problem.start)).total
    assert found.tolist() == pytest.approx([swap["loss"] for swap in told["swap_losses"]], **NEAR)


def test_the_trace_moves_even_to_a_worse_string_and_keeps_the_best_pair(told, problem):
    settings = Settings(steps=6, exhaustive=True, top_k=4, banned=tuple(told["banned_ids"]), early_stop=False)
    start, *steps = search([problem], settings, Run())
    assert start.loss == pytest.approx(told["init_loss_ce"], **NEAR)
    for step, wanted in zip(steps, told["deterministic_trace"], strict=True):
        assert list(step.current) == wanted["ids"]
        assert step.current_loss == pytest.approx(wanted["best_loss"], **NEAR)
    last = steps[-1]
    assert last.current_loss > last.loss == steps[-2].current_loss
    assert last.ids == steps[-2].current


def test_how_many_candidates_the_draft_leaves(told):
    for case in told["probe_sampling_filtered_size"]:
        assert probe.filtered_size(case["rank_corr"], case["B"], case["R"]) == case["size"]


def test_flrt(told):
    part, other = told["flrt_attack_loss"], told["flrt_repetition"]
    xent = torch.tensor([part["xent"]], dtype=torch.float64)
    found = losses.weighted(xent, part["n_force"], part["p_threshold"])
    assert float(found[0]) == pytest.approx(part["loss"], rel=1e-9)
    assert losses.token_weights(5, part["n_force"]).tolist() == pytest.approx(part["weights"])
    assert float(losses.repeated(torch.tensor([other["ids"]]), other["exponent"])[0]) == pytest.approx(other["value"])


def test_mellowmax(told):
    part = told["mellowmax"]
    assert float(losses.soft_maximum(torch.tensor(part["t"]), 1.0)) == pytest.approx(part["alpha1"])


# -- closed forms ---------------------------------------------------------------------------------------------------
def test_mellowmax_lies_between_mean_and_maximum():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert float(losses.soft_maximum(values, 1e-6)) == pytest.approx(7 / 3, abs=1e-5)
    assert float(losses.soft_maximum(values, 1e3)) == pytest.approx(4.0, abs=2e-3)
    assert float(losses.soft_maximum(values, 1.0)) == pytest.approx(math.log((math.e + math.e**2 + math.e**4) / 3))


def test_repeated_tokens_whatever_their_order():
    ids = torch.tensor([[3, 3, 3, 5, 5, 7], [7, 3, 5, 3, 5, 3], [1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 9, 9]])
    wanted = [(2**1.5 + 1) / 6, (2**1.5 + 1) / 6, 0.0, 5**1.5 / 6]
    assert losses.repeated(ids).tolist() == pytest.approx(wanted)


def test_the_first_and_the_forced_tokens_weigh_more_and_said_ones_nothing():
    assert losses.token_weights(4, 2).tolist() == pytest.approx([4.5 / 9.5 * 4, 3 / 9.5 * 4, 4 / 9.5, 4 / 9.5])
    xent = torch.tensor([[0.1, 2.0]], requires_grad=True)  # p = .9 > .6: left alone
    losses.weighted(xent, 2, 0.6).sum().backward()
    assert xent.grad.tolist()[0] == pytest.approx([0.0, 3 / 7.5])


def test_a_teacher_who_is_certain_teaches_the_target_itself():
    logits, target = toys.fill((2, 4, 6), 3), torch.tensor([5, 0, 2, 2])
    seen = losses.Seen(None, target.expand(2, -1), logits, target)
    certain = torch.nn.functional.one_hot(target, 6).double().log()
    plain = losses.flrt(force=2, threshold=None)(seen)
    torch.testing.assert_close(losses.flrt(force=2, teacher=lambda _: certain, threshold=None)(seen), plain)
    torch.testing.assert_close(plain, losses.weighted(losses.token_losses(seen), 2, None))
    even = losses.flrt(force=1, teacher=lambda _: torch.full((4, 6), 1 / 6).log().double(), threshold=None)(seen)
    said = -logits.log_softmax(-1)
    by_hand = torch.cat([said[:, :1, 5], said[:, 1:].mean(-1)], dim=1)
    torch.testing.assert_close(even, losses.weighted(by_hand, 1, None), rtol=1e-6, atol=1e-6)


def test_how_far_the_draft_is_trusted():
    assert [probe.filtered_size(rho, 512, 8) for rho in (-1.0, 0.0, 1.0)] == [64, 32, 1]
    assert probe.agreement(torch.tensor([1.0, 2, 5]), torch.tensor([10.0, 20, 21])) == pytest.approx(1.0)
    assert probe.agreement(torch.tensor([1.0, 2, 5]), torch.tensor([3.0, 2, 1])) == pytest.approx(-1.0)
    assert probe.agreement(torch.ones(3), torch.arange(3)) == 0.0
