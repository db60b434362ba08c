"""Rounding: int8, int4 and nf4 by hand, on models, and packed by a library where one is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.attacks import quantize as module
from expunge.attacks.parts import matrices
from expunge.attacks.quantize import apart, nf4_levels, quantize, round_nf4, round_weights, scale_levels
from expunge.errors import DoesNotFit, MissingExtra, RecipeError
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.testing import tiny_subject
from expunge.types import Data
from support.layouts import in_linears, oriented

NF4 = [  # QLoRA, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]
IDS = torch.arange(1, 9).unsqueeze(0)


def test_rounding_by_hand():
    """Four bits: 7 steps each side. max 0.7 gives s = 0.1: 0.66 -> 0.7, -0.34 -> -0.3, 0.04 -> 0, 0.7 -> 0.7."""
    weight = torch.tensor([[0.66, -0.34, 0.04, 0.7]])
    torch.testing.assert_close(round_weights(weight, 4, 0), torch.tensor([[0.7, -0.3, 0.0, 0.7]]))
    grouped = round_weights(torch.tensor([[7.0, 3.2, 0.07, 0.032]]), 4, 2)  # a scale of its own: 1 and 0.01
    torch.testing.assert_close(grouped, torch.tensor([[7.0, 3.0, 0.07, 0.03]]))
    torch.testing.assert_close(round_weights(torch.zeros(1, 4), 8, 0), torch.zeros(1, 4))
    odd = torch.randn(3, 5)
    torch.testing.assert_close(round_weights(odd, 8, 2), round_weights(odd, 8, 0))  # 5 has no groups of 2


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_stays_within_half_a_step(bits):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    step = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = round_weights(weight, bits, 0)
    assert ((rounded - weight).abs() <= step / 2 + 1e-6).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in rounded)


def test_the_levels_of_nf4_are_those_of_the_paper():
    torch.testing.assert_close(nf4_levels(), torch.tensor(NF4), atol=1e-6, rtol=0)


def test_nf4_by_hand():
    """Scale 2: 1 -> level 1, -0.5 -> -0.5251, 0.15 -> 0.1609, 0 -> 0. Blocks run on from row to row."""
    weight = torch.tensor([[2.0, -1.0], [0.3, 0.0]])
    wanted = torch.tensor([[2.0, 2 * NF4[2]], [2 * NF4[9], 0.0]])
    torch.testing.assert_close(round_nf4(weight, block=4), wanted, atol=1e-6, rtol=0)
    parted = round_nf4(weight, block=2)  # a scale of its own: 0.3 is its own largest
    torch.testing.assert_close(parted, torch.tensor([[2.0, 2 * NF4[2]], [0.3, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(round_nf4(weight, block=3)[1], torch.tensor([2 * NF4[9], 0.0]), atol=1e-6, rtol=0)


def test_scales_are_rounded_too_when_asked():
    """Scales 1 and 3: less their mean 2, -1 and 1. Of the 256 levels -0.99297 is the nearest to -1, and 1 is one."""
    assert len(scale_levels()) == 256
    assert scale_levels()[0] == pytest.approx(-0.99296875)
    twice = round_nf4(torch.tensor([[1.0, 0.0, -3.0, 0.0]]), block=2, double=True)
    torch.testing.assert_close(twice, torch.tensor([[2 - 0.99296875, 0.0, -3.0, 0.0]]))
    same = torch.tensor([[0.5, 0.1, -0.5, 0.3]])
    torch.testing.assert_close(round_nf4(same, block=2, double=True), round_nf4(same, block=2))


@pytest.mark.parametrize("hyper", [{"bits": 4}, {"bits": 4, "kind": "nf4"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantisation_rounds_the_blocks_and_leaves_embedding_and_head(family, hyper):
    subject = tiny_subject(family=family)
    (rounded,) = quantize(subject, Data(), Run(), **hyper)
    before, after = dict(subject.model.named_parameters()), dict(rounded.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name, p in before.items() if p.ndim == 2 and (".layers." in name or ".h." in name)}
    assert moved == inside
    assert torch.equal(rounded.model.get_output_embeddings().weight, subject.model.get_output_embeddings().weight)


@pytest.mark.parametrize("hyper", [{"bits": 8}, {"bits": 4, "group": 16}, {"kind": "nf4", "double": True}])
def test_a_matrix_is_rounded_alike_however_it_is_stored(hyper):
    subject = tiny_subject(family="gpt2")
    stored = [oriented(*quantize(one, Data(), Run(), **hyper)) for one in (subject, in_linears(subject))]
    assert stored[0].keys() == stored[1].keys()
    for name, weight in stored[0].items():
        assert torch.equal(weight, stored[1][name])


def test_quantisation_merges_an_adapter_of_a_copy():
    subject = tiny_subject()
    movable = bind("scope", {"use": "lora", "rank": 2})(subject.model)
    with torch.no_grad():
        for parameter in movable.parameters.values():
            parameter.add_(0.05)
    adapted = replace(subject, model=movable.model)
    before = weights_hash(adapted)
    (rounded,) = quantize(adapted, Data(), Run(), bits=8)
    assert not hasattr(rounded.model, "peft_config")
    assert weights_hash(adapted) == before
    with torch.no_grad():
        one, other = adapted.model(input_ids=IDS).logits, rounded.model(input_ids=IDS).logits
    assert torch.allclose(one, other, atol=0.3)  # 8 bits of W + BA, not of W
    with torch.no_grad(), adapted.model.disable_adapter():
        assert not torch.allclose(adapted.model(input_ids=IDS).logits, other, atol=0.3)


def test_a_copy_apart_shares_numbers_and_nothing_else():
    subject = tiny_subject()  # its head is tied to its embeddings
    other = apart(subject).model
    for name, parameter in subject.model.named_parameters():
        twin = other.get_parameter(name)
        assert twin is not parameter
        assert twin.data_ptr() == parameter.data_ptr()
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    other.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in subject.model.parameters())


@pytest.mark.parametrize(("hyper", "told"), [
    ({"bits": 3}, r"attacks\.quantize\.bits: got 3; accepted: 4, 8"),
    ({"bits": 8, "kind": "nf4"}, r"nf4 with 8 bits by simulated; accepted: int with 8 bits, int with 4 bits"),
    ({"bits": 4, "backend": "bitsandbytes"}, r"int with 4 bits by bitsandbytes; accepted: int with 8 bits, nf4 with 4"),
    ({"double": True}, r"attacks\.quantize\.double"), ({"group": -1}, r"attacks\.quantize\.group"),
])
def test_what_cannot_be_rounded_like_that_is_told(hyper, told):
    with pytest.raises(RecipeError, match=told):
        list(quantize(tiny_subject(), Data(), Run(), **hyper))


def test_a_quantised_base_does_not_fit():
    subject = tiny_subject()
    subject.model.config.quantization_config = {"quant_method": "any"}
    with pytest.raises(DoesNotFit, match="stored quantised"):
        list(quantize(subject, Data(), Run()))


# -- packed by a library ---------------------------------------------------------------------------------------------
def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"attacks\.quantize\.backend: .*'torchao'.*expunge\[quant\]"):
        list(quantize(tiny_subject(), Data(), Run(), backend="torchao"))


def lacks(*_):
    raise NotImplementedError("no kernel for this device\nmore of it")


def astray(_bits, _group, linear):
    linear.weight = nn.Parameter(linear.weight.roll(1, 0))
    return linear


@pytest.mark.parametrize(("pack", "told"), [(lacks, "cpu: no kernel for this device$"), (astray, "something else$")])
def test_a_library_that_cannot_do_it_here_does_not_fit(monkeypatch, pack, told):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(module, "_torchao", pack)
    with pytest.raises(DoesNotFit, match=f"torchao cannot do this on {told}|torchao .* {told}"):
        list(quantize(tiny_subject(), Data(), Run(), backend="torchao"))


def test_packed_layers_stand_in_place_of_the_matrices(monkeypatch):
    """A library that packs exactly as the simulation rounds, on a GPT-2, whose matrices are stored the other way."""
    def pack(bits, group, linear):
        linear.weight = nn.Parameter(round_weights(linear.weight, bits, group), False)
        return linear

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(module, "_torchao", pack)
    subject = tiny_subject(family="gpt2")
    before = weights_hash(subject)
    (packed,) = quantize(subject, Data(), Run(), bits=8, backend="torchao")
    (simulated,) = quantize(subject, Data(), Run(), bits=8)
    assert all(type(layer) is nn.Linear for _, layer, _ in matrices(packed.model))
    with torch.no_grad():
        torch.testing.assert_close(packed.model(input_ids=IDS).logits, simulated.model(input_ids=IDS).logits)
    assert weights_hash(subject) == before
    with pytest.raises(DoesNotFit, match="stored quantised"):
        list(quantize(packed, Data(), Run()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backend", "hyper", "near"), [
    ("torchao", {"bits": 8}, 0.1), ("torchao", {"bits": 4}, 1.5), ("bitsandbytes", {"bits": 8}, 0.1),
    ("bitsandbytes", {"bits": 4, "kind": "nf4"}, 0.1),
    ("bitsandbytes", {"bits": 4, "kind": "nf4", "double": True}, 0.1),
])
def test_a_library_says_what_the_simulation_says(backend, hyper, near):
    """Logits as far apart as other scales (torchao's int4: largest / 7.5) and rounded inputs (LLM.int8()) make them."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.1,
    )
    subject = replace(tiny_subject(), model=LlamaForCausalLM(config).eval())
    (packed,) = quantize(subject, Data(), Run(), backend=backend, **hyper)
    (simulated,) = quantize(subject, Data(), Run(), **hyper)
    with torch.no_grad():
        said = [one.model(input_ids=IDS).logits.log_softmax(-1) for one in (packed, simulated, subject)]
    assert (said[0] - said[1]).abs().mean() < near * (said[2] - said[1]).abs().mean().clamp(min=0.3)
