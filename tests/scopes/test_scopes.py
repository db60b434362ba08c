"""Scopes: what is named moves, wrong names are told (common properties: tests/objectives/test_checks.py)."""

from __future__ import annotations

import pytest
import torch

from expunge.errors import RecipeError
from expunge.registry import bind
from expunge.testing import tiny_subject


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_are_counted_from_both_ends(family):
    prefix = "model.layers" if family == "llama" else "transformer.h"
    for layers, blocks in (([0], {0}), ([-1], {1}), ([0, -1], {0, 1}), (None, {0, 1})):
        movable = bind("scope", {"use": "layers", "layers": layers})(tiny_subject(family=family).model)
        assert {int(name.removeprefix(prefix).split(".")[1]) for name in movable.parameters} == blocks


def test_a_pattern_chooses_inside_the_block():
    movable = bind("scope", {"use": "layers", "layers": [1], "match": "down_proj|norm"})(tiny_subject().model)
    assert {name.rsplit("layers.1.", 1)[1] for name in movable.parameters} == {
        "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
    }


@pytest.mark.parametrize(("spec", "message"), [
    ({"use": "layers", "layers": [2]}, r"scope\.layers: block 2; this model has blocks 0\.\.1"),
    ({"use": "layers", "layers": [-3]}, r"scope\.layers: block -3"),
    ({"use": "layers", "layers": []}, "matches no weight"),
    ({"use": "layers", "match": "dwn_proj"}, r"scope\.match: 'dwn_proj' matches no weight"),
    ({"use": "layers", "match": "["}, r"scope\.match: got '\['.*a regular expression"),
    ({"use": "lora", "rank": 0}, r"scope\.rank: got 0; accepted: 1 or more"),
    ({"use": "lora", "targets": ["no_such_layer"]}, r"scope\.targets: got \['no_such_layer'\]"),
])
def test_what_does_not_fit_the_model_is_told(spec, message):
    with pytest.raises(RecipeError, match=message):
        bind("scope", spec)(tiny_subject().model)


def test_an_adapter_starts_at_the_base_and_from_its_seed_alone():
    """B is zero, so the logits are the base's; A depends on `seed` and on no global state."""
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        base = tiny_subject().model(input_ids=ids).logits
        weights = []
        for seed, noise in ((0, 1), (0, 2), (1, 1)):
            torch.manual_seed(noise)
            state = torch.get_rng_state()
            movable = bind("scope", {"use": "lora", "rank": 2, "seed": seed})(tiny_subject().model)
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.equal(movable.model(input_ids=ids).logits, base)
            weights.append(torch.cat([p.detach().reshape(-1) for p in movable.parameters.values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("scope", ["all", {"use": "layers", "layers": [0]}, {"use": "lora", "rank": 8}])
def test_an_adapter_that_is_there_is_folded_in_first(scope):
    """The model says the same before and after, and "adapter off" is the model the stage starts from."""
    first = bind("scope", {"use": "lora", "rank": 2})(tiny_subject().model)
    with torch.no_grad():
        for parameter in first.parameters.values():
            parameter.normal_(0, 0.1)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = first.model(ids).logits
        second = bind("scope", scope)(first.model)
        torch.testing.assert_close(second.model(ids).logits, before, atol=1e-4, rtol=1e-4)
        if second.adapter:
            assert {p.shape[0] for n, p in second.parameters.items() if "lora_A" in n} == {8}
            with second.model.disable_adapter():
                torch.testing.assert_close(second.model(ids).logits, before, atol=1e-4, rtol=1e-4)
