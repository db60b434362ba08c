"""Golden values of Łucki et al.'s read-outs and directions, and of the lenses, asked of the attacks themselves.

Attention, MLP and their sum as places of a read-out: tests/measure/test_hidden.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.attacks.directions import Moments, ablate, apartness, project_writes, read
from expunge.attacks.logit_lens import ending, logit_lens, readable
from expunge.attacks.parts import shallow
from expunge.attacks.tuned_lens import Translator, attach
from expunge.data.texts import Encoded
from expunge.metrics.choice import credit
from expunge.models import blocks
from expunge.run import Run
from expunge.types import Data, Subject
from support import golden, toys

IDS = torch.tensor([toys.X[0]])
TEXT = Encoded("toy/0", 0, np.array(toys.X[0]), np.ones(8, bool), np.zeros(8, bool))


@pytest.fixture(scope="module")
def expected():
    return golden.load("adversarial_perspective")


def toy() -> Subject:
    return Subject(toys.llama(), None)


def unlearned() -> Subject:
    """The toy with a junk direction written by the MLP of block 1."""
    made = toys.toy_llama()
    junk = toys.fill((8,), 7001)
    with torch.no_grad():
        made.model.layers[1].mlp.down_proj.weight.add_(4.0 * (junk / junk.norm())[:, None] * toys.fill((1, 12), 7002))
    return Subject(made, None)


@torch.no_grad()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(input_ids=IDS, use_cache=False).logits[0]


def options(subject: Subject, expected) -> list[float]:
    found: list[float] = logits(subject)[-1, expected["option_ids"]].tolist()
    return found


@torch.no_grad()
def direction() -> torch.Tensor:
    """Mean over all eight places of block 1's output, unlearned minus original."""
    here, there = Moments(), Moments()
    for moments, subject in ((here, unlearned()), (there, toy())):
        read(subject.model, [TEXT], 0, [1], moments)
    return here.mean(1) - there.mean(1)


def test_the_lens_at_every_block(expected):
    rows = expected["logit_lens_logits_last_position"]
    made = list(logit_lens(toy(), Data(), Run(), layers=[0, 1, -1]))
    for row, subject in zip(rows, made, strict=True):
        assert options(subject, expected) == pytest.approx(row["block"], **toys.NEAR)
        assert int(np.argmax(options(subject, expected))) == row["pred_block"]
    assert options(made[-1], expected) == pytest.approx(
        expected["final_block_lens_equals_model_logits"], **toys.NEAR
    )
    assert torch.equal(logits(made[-1]), logits(toy()))


def test_probabilities_that_round_to_a_tie_do_not_tie(expected):
    """Rounded to six decimals all four options are 0 and a tie earns a quarter; as they are, the second wins."""
    part = expected["rounding_tie"]
    assert part["rounded_6dp"] == [0.0] * 4
    exact = np.log(part["probs"])
    best = part["argmax_exact"]
    assert credit(exact[best], np.delete(exact, best)) == 1.0
    first = part["first_of_stable_sort_desc"]
    assert credit(exact[first], np.delete(exact, first)) == 0.0
    assert credit(0.0, np.zeros(3)) == 0.25


def test_the_direction(expected):
    assert direction().tolist() == pytest.approx(expected["diff_of_means_direction_layer1"], **toys.NEAR)


def test_ablating_the_direction_brings_the_logits_back(expected):
    part = expected["ablation"]
    start, broken = toy(), unlearned()
    changed = shallow(broken)
    vector = direction()
    ablate(blocks(changed.model)[part["layer"]][1], vector / vector.norm())
    for subject, name in ((start, "original"), (broken, "unlearned"), (changed, "unlearned_ablated")):
        assert options(subject, expected) == pytest.approx(part[f"logits_last_opts_{name}"], **toys.NEAR)
    gaps = [float((logits(subject) - logits(start)).abs().mean()) for subject in (broken, changed)]
    assert gaps == pytest.approx([part["mean_abs_logit_gap_before"], part["mean_abs_logit_gap_after"]], **toys.NEAR)
    twice = shallow(changed)
    ablate(blocks(twice.model)[part["layer"]][1], -vector / vector.norm())
    torch.testing.assert_close(logits(twice), logits(changed), rtol=1e-9, atol=1e-9)


def test_the_direction_out_of_the_weights_is_the_direction_out_of_every_write(expected):
    part = expected["weight_orthogonalisation_equals_hook_at_all_writes"]
    unit = direction()
    unit = unit / unit.norm()
    changed, hooked = shallow(unlearned()), unlearned()
    project_writes(changed.model, unit)
    inner = hooked.model.model
    writes = [inner.embed_tokens, *(m for block in inner.layers for m in (block.self_attn.o_proj, block.mlp.down_proj))]
    for module in writes:
        module.register_forward_hook(lambda _, __, out: out - (out @ unit)[..., None] * unit)
    assert float((logits(changed) - logits(hooked)).abs().max()) < part["max_abs_diff_below"]
    assert options(changed, expected) == pytest.approx(part["logits_last_opts"], **toys.NEAR)


def test_outlying_vectors(expected):
    part = expected["outlier_zscore"]
    deviations = apartness(torch.cat([toys.fill((30, 4), 8001, 0.1), torch.full((1, 4), 9.0, dtype=torch.float64)]))
    assert float(deviations[-1]) == pytest.approx(part["z_last"], **toys.NEAR)
    assert (deviations > 3).nonzero().flatten().tolist() == part["flagged"]


def test_ablation_of_explicit_states():
    part = golden.load("interp")["ablation_algebra"]
    states, vector = toys.fill((5, 4), 9201), torch.tensor(part["v"], dtype=torch.float64)
    block = torch.nn.Linear(4, 4, bias=False).double()
    block.weight.data = torch.eye(4, dtype=torch.float64)
    ablate(block, vector / vector.norm())
    found = block(states).detach()
    assert found[0].tolist() == pytest.approx(part["ablated_row0"], abs=1e-8)
    assert float(states[0].norm() - found[0].norm()) == pytest.approx(part["norm_drop_row0"], abs=1e-8)
    assert (found.norm(dim=-1) <= states.norm(dim=-1)).all()
    assert float((found @ vector).abs().max()) < 1e-12


def test_the_tuned_lens_starts_as_the_lens_and_its_offset_has_the_slope():
    """Their layer 1 is what enters block 1: what block 0 puts out."""
    part = golden.load("interp")["tuned_lens_layer1"]
    inside, _ = readable(toy(), [0], "layers", 1)
    made = ending(inside, 0)
    translator = Translator(inside.states[0])
    attach(blocks(made.model)[-1][1], translator)
    final = logits(toy()).log_softmax(-1)

    def gap() -> torch.Tensor:
        said = made.model(input_ids=IDS, use_cache=False).logits[0].log_softmax(-1)
        return (final.exp() * (final - said)).sum(-1).mean()

    start = gap()
    assert start.item() == pytest.approx(part["KL_identity_init"], **toys.NEAR)
    (slope,) = torch.autograd.grad(start, translator.offset)
    slope = slope / translator.size  # theirs is added to the state, ours times the usual size of its entries
    assert slope.tolist() == pytest.approx(part["grad_bias"], **toys.NEAR)
    with torch.no_grad():
        translator.offset.sub_(0.1 * slope / translator.size)
    assert gap().item() == pytest.approx(part["KL_after_bias_step_lr0.1"], **toys.NEAR)
