"""Pruning: which weights go, by hand and against slow loops, and that the two layouts of a matrix agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from expunge.attacks.noise import noise
from expunge.attacks.prune import lowest, prune, snip, top, wanda
from expunge.attacks.quantize import apart
from expunge.attacks.shown import asked_like
from expunge.data.tokenise import collate
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.forward import kept_logits, token_logp
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.testing import tiny_data, tiny_subject
from expunge.types import Data, Stream
from support.layouts import in_linears, oriented

KINDS = [
    {"kind": "magnitude"}, {"kind": "magnitude", "per": "row"}, {"kind": "magnitude", "per": "model"},
    {"kind": "wanda", "num": 4}, {"kind": "set_difference", "num": 3},
]


def zeros(subject, changed) -> dict[str, torch.Tensor]:
    """Which weights of each matrix were set to zero; all others must be as they were."""
    before, after = oriented(subject), oriented(changed)
    gone = {name: (weight == 0) & (before[name] != 0) for name, weight in after.items()}
    for name, mask in gone.items():
        assert torch.equal(after[name], before[name].masked_fill(mask, 0.0))
    return gone


# -- which -----------------------------------------------------------------------------------------------------------
def test_the_top_by_hand_and_of_equal_ones_the_first():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top(scores, 0.4).tolist() == [[True, False, True, False, False], [True, True, False, False, False]]
    assert top(scores, 0.8).tolist() == [[True, False, True, True, True], [True, True, True, True, False]]
    assert not top(scores, 0.19).any()  # floor(0.95)
    assert top(scores, 1.0).all()
    assert top(torch.arange(20.0).unsqueeze(0), 0.15).sum() == 3  # 0.15 * 20 is 2.9999999999999996 or 3


def test_a_smaller_share_lies_inside_a_larger_one():
    """With ties all over: otherwise p >= q would not spare all of Q where both scores are the same."""
    scores = torch.randint(0, 3, (4, 50), generator=torch.Generator().manual_seed(0)).float()
    nested = [top(scores, share) for share in (0.1, 0.3, 0.31, 0.9)]
    for one, other in pairwise(nested):
        assert (one <= other).all()


def test_the_lowest_by_hand():
    """[[1, 4], [3, 2]] and [[5, 0]]: half of every row, of every matrix, and a third of all six."""
    scores = {"a": torch.tensor([[1.0, 4.0], [3.0, 2.0]]), "b": torch.tensor([[5.0, 0.0]])}
    found = {per: lowest(scores, 0.5 if per != "model" else 0.34, per) for per in ("row", "matrix", "model")}
    assert found["row"]["a"].tolist() == [[True, False], [False, True]]
    assert found["matrix"]["a"].flatten().tolist() == [True, False, False, True]
    assert found["model"]["a"].flatten().tolist() == [True, False, False, False]
    assert [found[per]["b"].flatten().tolist() for per in found] == [[False, True]] * 3


@pytest.mark.parametrize("per", ["row", "matrix"])
def test_pruning_by_magnitude_takes_the_smallest(per):
    subject = tiny_subject()
    (changed,) = prune(subject, Data(), Run(), kind="magnitude", share=0.25, per=per)
    for name, gone in zeros(subject, changed).items():
        size = oriented(subject)[name].abs()
        rows, gone = (size, gone) if per == "row" else (size.reshape(1, -1), gone.reshape(1, -1))
        assert (gone.sum(-1) == rows.shape[1] // 4).all()
        assert (rows.where(gone, 0.0).amax(-1) <= rows.where(~gone, 9.0).amin(-1)).all()
    assert changed.lineage[-1].hyper["share"] == pytest.approx(0.25, abs=1e-3)
    assert changed.exposed == frozenset()


# -- how much they matter --------------------------------------------------------------------------------------------
def inputs_of(model, name, batches) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0][0].clone()))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids)
    handle.remove()
    return torch.cat(seen)  # [tokens, in]


def test_wanda_is_each_weight_times_the_norm_of_what_comes_in():
    subject = tiny_subject()
    texts = asked_like(subject, tiny_data()["retain"].examples[:3])
    scores = wanda(apart(subject).model, texts)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        given = inputs_of(subject.model, name, [collate([one]) for one in texts])
        weight = subject.model.get_submodule(name).weight.detach()
        wanted = torch.tensor([
            [abs(float(weight[i, j])) * float(given[:, j].norm()) for j in range(0, weight.shape[1], 5)] for i in (0, 7)
        ])
        torch.testing.assert_close(scores[name][[0, 7], ::5], wanted, rtol=1e-4, atol=1e-6)


def test_gradients_are_made_absolute_text_by_text_before_they_are_added():
    subject = tiny_subject()
    texts = asked_like(subject, tiny_data()["forget"].examples[:3])
    scores = snip(apart(subject).model, texts)
    name = "model.layers.1.self_attn.v_proj"
    weight = subject.model.get_submodule(name).weight
    apart_, together = torch.zeros_like(weight), torch.zeros_like(weight)
    for one in texts:
        batch = collate([one])
        keep = batch.positions("answer")
        loss = -token_logp(kept_logits(subject.model, batch, keep)[0], batch, keep)[keep].mean()
        (slope,) = torch.autograd.grad(loss, weight)
        apart_, together = apart_ + slope.abs(), together + slope
    torch.testing.assert_close(scores[name], weight.detach().abs() * apart_)
    assert not torch.allclose(scores[name], weight.detach().abs() * together.abs(), rtol=0.1)
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_sparing_all_that_matters_elsewhere_spares_everything_where_both_are_the_same():
    """S_f = S_u and p >= q prune nothing; p = 0 prunes exactly the top q."""
    subject, data = tiny_subject(), tiny_data()
    same = {"on": "retain", "utility": "retain", "num": 3}
    for keep in (0.1, 0.3):
        (changed,) = prune(subject, data, Run(), share=0.1, keep=keep, **same)
        assert weights_hash(changed) == weights_hash(subject)
        assert changed.lineage[-1].hyper["share"] == 0
    (bare,) = prune(subject, data, Run(), share=0.1, keep=0.0, **same)
    scores = snip(apart(subject).model, asked_like(subject, [
        one for one in data["retain"].examples if one.id in drawn(data["retain"], 3)
    ]))
    for name, gone in zeros(subject, bare).items():
        assert torch.equal(gone.reshape(1, -1), top(scores[name].reshape(1, -1), 0.1))
    assert bare.lineage[-1].cost.forwards == bare.lineage[-1].cost.backwards == 6
    assert all(parameter.requires_grad for parameter in bare.model.parameters())  # as they were


def drawn(stream, num) -> set[str]:
    return {stream.examples[row].id for row in np.random.default_rng(0).permutation(len(stream))[:num]}


def test_texts_to_be_forgotten_that_were_looked_at_are_not_scored():
    (changed,) = prune(tiny_subject(), tiny_data(), Run())  # 8 texts: half at most
    assert len(changed.exposed) == 4
    assert all(name.startswith("forget/") for name in changed.exposed)
    (few,) = prune(tiny_subject(), tiny_data(), Run(), num=2)
    assert len(few.exposed) == 2
    data = tiny_data()
    data["forget"] = Stream("forget", "forget", data["forget"].examples[:1])
    with pytest.raises(DoesNotFit, match="single text"):
        list(prune(tiny_subject(), data, Run()))


# -- models ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hyper", KINDS, ids=lambda hyper: "-".join(map(str, hyper.values())))
def test_a_matrix_is_pruned_alike_however_it_is_stored(hyper):
    subject = tiny_subject(family="gpt2")
    subject.model.double()  # the two multiply in another order: in float32 a near tie may fall either way
    masks = [zeros(one, *prune(one, tiny_data(), Run(), share=0.2, keep=0.1, **hyper))
             for one in (subject, in_linears(subject))]
    assert sum(int(mask.sum()) for mask in masks[0].values()) > 500
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])


@pytest.mark.parametrize("hyper", KINDS, ids=lambda hyper: "-".join(map(str, hyper.values())))
def test_an_adapter_is_folded_in_first_and_nothing_given_is_touched(hyper):
    subject = tiny_subject()
    movable = bind("scope", {"use": "lora", "rank": 2})(subject.model)
    with torch.no_grad():
        for parameter in movable.parameters.values():
            parameter.add_(0.05)
    adapted = replace(subject, model=movable.model)
    before, flags = weights_hash(adapted), [one.requires_grad for one in adapted.model.parameters()]
    (changed,) = prune(adapted, tiny_data(), Run(), **hyper)
    assert not hasattr(changed.model, "peft_config")
    assert weights_hash(adapted) == before
    assert [one.requires_grad for one in adapted.model.parameters()] == flags
    plain = replace(adapted, model=apart(adapted).model)
    (wanted,) = prune(plain, tiny_data(), Run(), **hyper)
    assert weights_hash(changed) == weights_hash(wanted)


def test_attacks_on_weights_follow_each_other():
    (pruned,) = prune(tiny_subject(), Data(), Run(), kind="magnitude", share=0.5)
    (shaken,) = noise(pruned, Data(), Run())
    assert [event.name for event in shaken.lineage] == ["prune", "noise"]
    assert all((weight == 0).float().mean() > 0.49 for weight in oriented(pruned).values())
    assert all((weight == 0).float().mean() < 0.01 for weight in oriented(shaken).values())


@pytest.mark.parametrize(("hyper", "told"), [
    ({"share": 1.5}, r"share: got 1\.5; accepted: 0 to 1"), ({"keep": -0.1}, "keep: got"), ({"num": 0}, "num: got 0"),
    ({"per": "row"}, "per: 'row' with set_difference"),
])
def test_wrong_numbers_are_told(hyper, told):
    with pytest.raises(RecipeError, match=rf"attacks\.prune\.{told}"):
        list(prune(tiny_subject(), tiny_data(), Run(), **hyper))
    with pytest.raises(DataError, match=r"attacks\.prune\.utility: no stream 'retian'; did you mean 'retain'"):
        list(prune(tiny_subject(), tiny_data(), Run(), utility="retian"))
