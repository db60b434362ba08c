"""Interpolation: where the weights stand on the way back, and when there is no way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.attacks.interpolate import interpolate
from expunge.errors import DoesNotFit, RecipeError
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.scopes.weights import merged
from expunge.testing import tiny_subject
from expunge.types import Data


def pair(family="llama", original=1):
    return replace(tiny_subject(family=family), helpers={"original": tiny_subject(seed=original, family=family)})


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_weights_are_mixed(family):
    subject = pair(family)
    theirs = dict(subject.helpers["original"].model.named_parameters())
    hashes = weights_hash(subject), weights_hash(subject.helpers["original"])
    made = list(interpolate(subject, Data(), Run(), amounts=(0.25, -0.5)))
    for amount, one in zip((0.25, -0.5), made, strict=True):
        for name, weight in one.model.named_parameters():
            own = subject.model.get_parameter(name)
            torch.testing.assert_close(weight, (1 - amount) * own + amount * theirs[name])
    assert (weights_hash(subject), weights_hash(subject.helpers["original"])) == hashes
    assert [one.lineage[-1].hyper["amounts"] for one in made] == [0.25, -0.5]


def test_no_step_is_the_model_itself_and_ties_stay():
    (same,) = interpolate(pair(), Data(), Run(), amounts=(0.0,))
    assert weights_hash(same) == weights_hash(pair())
    (half,) = interpolate(pair(), Data(), Run(), amounts=(0.5,))
    assert half.model.get_output_embeddings().weight is half.model.get_input_embeddings().weight


def test_an_adapter_counts_on_either_side():
    def adapted(seed):
        subject = tiny_subject(seed=seed)
        movable = bind("scope", {"use": "lora", "rank": 2, "seed": seed})(subject.model)
        with torch.no_grad():
            for parameter in movable.parameters.values():
                parameter.add_(0.05)
        return replace(subject, model=movable.model)

    (half,) = interpolate(replace(adapted(0), helpers={"original": adapted(1)}), Data(), Run(), amounts=(0.5,))
    whole = [merged(adapted(seed).model) for seed in (0, 1)]
    for name, weight in half.model.named_parameters():
        torch.testing.assert_close(weight, sum(one.get_parameter(name) for one in whole) / 2)


def test_half_precision_is_rounded_once():
    subject = pair()
    for one in (subject, subject.helpers["original"]):
        one.model.to(torch.bfloat16)
    (mixed,) = interpolate(subject, Data(), Run(), amounts=(0.3,))
    theirs = dict(subject.helpers["original"].model.named_parameters())
    for name, weight in mixed.model.named_parameters():
        own = subject.model.get_parameter(name).float()
        assert torch.equal(weight, (own + 0.3 * (theirs[name].float() - own)).to(torch.bfloat16))


def test_there_must_be_a_way_back():
    with pytest.raises(DoesNotFit, match="was not given"):
        next(interpolate(tiny_subject(), Data(), Run()))
    other = replace(tiny_subject(), helpers={"original": tiny_subject(family="gpt2")})
    with pytest.raises(DoesNotFit, match=r"has other weights: .* that the other side lacks"):
        next(interpolate(other, Data(), Run()))
    longer = tiny_subject()
    longer.model.resize_token_embeddings(310)
    with pytest.raises(DoesNotFit, match=r"has other weights: .* is \(310, 32\) here and"):
        next(interpolate(replace(tiny_subject(), helpers={"original": longer}), Data(), Run()))


@pytest.mark.parametrize("amounts", [(), (0.5, 1.0), (2.0,), (float("nan"),)])
def test_the_original_itself_is_no_attack(amounts):
    with pytest.raises(RecipeError, match=r"attacks\.interpolate\.amounts: got .*numbers below 1"):
        next(interpolate(pair(), Data(), Run(), amounts=amounts))
