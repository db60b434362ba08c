"""Noise: as large as said, seeded, and the same however a matrix is stored."""

from __future__ import annotations

import pytest
import torch

from expunge.attacks.noise import noise
from expunge.errors import RecipeError
from expunge.models import weights_hash
from expunge.run import Run
from expunge.testing import tiny_subject
from expunge.types import Data
from support.layouts import in_linears, oriented


def test_noise_is_a_share_of_what_the_weights_of_a_matrix_differ_by():
    """std(W' - W) = scale * std(W), within what a draw of a thousand numbers and more differs."""
    subject = tiny_subject()
    (changed,) = noise(subject, Data(), Run(), scale=0.2)
    for name, weight in oriented(subject).items():
        added = oriented(changed)[name] - weight
        assert float(added.std() / weight.std()) == pytest.approx(0.2, rel=0.1)
        assert abs(float(added.mean())) < 5 * float(added.std()) / added.numel() ** 0.5
    outside = {"model.embed_tokens.weight", "model.norm.weight"}
    for name in outside:
        assert torch.equal(changed.model.get_parameter(name), subject.model.get_parameter(name))


def test_matrices_are_shaken_each_by_its_own_and_by_the_seed():
    subject = tiny_subject()
    once, again, other = (next(noise(subject, Data(), Run(), seed=seed)) for seed in (0, 0, 1))
    assert weights_hash(once) == weights_hash(again) != weights_hash(other)
    names = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    drawn = [(oriented(once)[name] - oriented(subject)[name]).flatten() for name in names]
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.15


def test_a_matrix_is_shaken_alike_however_it_is_stored():
    subject = tiny_subject(family="gpt2")
    stored = [oriented(*noise(one, Data(), Run())) for one in (subject, in_linears(subject))]
    for name, weight in stored[0].items():
        torch.testing.assert_close(weight, stored[1][name])


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_a_number_above_0(scale):
    with pytest.raises(RecipeError, match=r"attacks\.noise\.scale: got .*; accepted: a number above 0"):
        list(noise(tiny_subject(), Data(), Run(), scale=scale))
