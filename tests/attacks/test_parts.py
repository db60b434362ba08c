"""Copies that share their tensors, the matrices inside the blocks, and blocks that give something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.attacks.parts import after_block, check_causal, check_plain, matrices, settle, shallow
from expunge.errors import DoesNotFit
from expunge.models import blocks, clone, weights_hash
from expunge.registry import bind
from expunge.testing import tiny_subject

IDS = torch.arange(1, 9).unsqueeze(0)


def logits(subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bart"])
def test_a_shallow_copy_shares_every_tensor_and_no_module(family):
    subject = tiny_subject(family=family)
    other = shallow(subject)
    theirs = dict(other.model.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in subject.model.named_parameters())
    assert not set(map(id, subject.model.modules())) & set(map(id, other.model.modules()))
    assert torch.equal(logits(other), logits(subject))
    assert weights_hash(other) == weights_hash(subject)
    assert other.model.config is not subject.model.config  # a cut model may say how many layers it has


def test_a_changed_block_is_part_of_the_state_and_of_copies():
    subject = tiny_subject()
    changed = shallow(subject)
    _, block = blocks(changed.model)[0]
    after_block(block, lambda module, hidden: hidden + module.shift, shift=torch.tensor(0.5))
    assert weights_hash(changed) != weights_hash(subject)
    assert not torch.equal(logits(changed), logits(subject))
    copied = clone(changed)
    assert torch.equal(logits(copied), logits(changed))
    dict(copied.model.named_buffers())[f"{blocks(copied.model)[0][0]}.shift"].zero_()
    assert torch.equal(logits(copied), logits(subject))  # the copy reads its own buffer
    assert not torch.equal(logits(changed), logits(subject))


def test_matrices_are_those_inside_the_blocks():
    llama = {name.split(".", 3)[-1] for name, _, _ in matrices(tiny_subject().model)}
    assert llama == {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj",
    }
    gpt2 = list(matrices(tiny_subject(family="gpt2").model))
    assert {name.split(".", 3)[-1] for name, _, _ in gpt2} == {
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
    }
    assert all(transposed for _, _, transposed in gpt2)


def test_settling_folds_an_adapter_in_and_leaves_the_subject_alone():
    subject = tiny_subject()
    lora = replace(subject, model=bind("scope", {"use": "lora", "rank": 2})(clone(subject).model).model)
    for name, parameter in lora.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    before, said = weights_hash(lora), logits(lora)
    folded = settle(lora)
    assert not hasattr(folded.model, "peft_config")
    torch.testing.assert_close(logits(folded), said)
    assert weights_hash(lora) == before


def test_models_an_attack_cannot_change_are_told():
    packed = clone(tiny_subject())
    packed.model.config.quantization_config = {"bits": 4}
    with pytest.raises(DoesNotFit, match="stored quantised"):
        check_plain(packed)
    with pytest.raises(DoesNotFit, match="a masked one"):
        check_causal(tiny_subject(family="bert"))
