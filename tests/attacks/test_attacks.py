"""What each attack does, beyond what every attack must (tests/objectives/test_checks.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.attacks.quantize import round_weights
from expunge.errors import DataError, RecipeError
from expunge.measure.plan import measure
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Stream
from support.learned import knows, short_data


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


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantisation_rounds_the_blocks_and_leaves_embedding_and_head(family):
    subject = tiny_subject(family=family)
    (rounded,) = bind("attack", {"use": "quantize", "bits": 4})(subject, Data())
    before, after = dict(subject.model.named_parameters()), dict(rounded.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = {name for name, p in before.items() if p.ndim == 2 and (".layers." in name or ".h." in name)}
    assert moved == matrices
    assert torch.equal(rounded.model.get_output_embeddings().weight, subject.model.get_output_embeddings().weight)


def test_quantisation_merges_an_adapter_of_a_copy():
    subject = tiny_subject()
    movable = bind("scope", {"use": "lora", "rank": 2})(subject.model)
    with torch.no_grad():
        for parameter in movable.parameters.values():
            parameter.add_(0.05)
    adapted = replace(subject, model=movable.model)
    before = weights_hash(adapted)
    (rounded,) = bind("attack", {"use": "quantize", "bits": 8})(adapted, Data())
    assert not hasattr(rounded.model, "peft_config")
    assert weights_hash(adapted) == before
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        one, other = adapted.model(input_ids=ids).logits, rounded.model(input_ids=ids).logits
    assert torch.allclose(one, other, atol=0.3)  # 8 bits of W + BA, not of W
    with torch.no_grad(), adapted.model.disable_adapter():
        assert not torch.allclose(adapted.model(input_ids=ids).logits, other, atol=0.3)


def test_wrong_arguments_are_told():
    with pytest.raises(RecipeError, match=r"attacks\.quantize\.bits: got 3; accepted: 4, 8"):
        list(bind("attack", {"use": "quantize", "bits": 3})(tiny_subject(), Data()))
    for share in (0.0, 1.0):
        with pytest.raises(RecipeError, match=r"attacks\.relearn\.share"):
            list(bind("attack", {"use": "relearn", "share": share})(tiny_subject(), short_data()))
    for name in ("relearn", "paraphrase"):
        with pytest.raises(DataError, match=rf"attacks\.{name}\.on: no stream 'forgt'; did you mean 'forget'"):
            list(bind("attack", {"use": name, "on": "forgt"})(tiny_subject(), short_data()))


def test_relearning_brings_back_what_it_shows_and_its_choice_is_seeded():
    """Half of the answers shown for 40 steps to a model that knows none: those are known, and only those exposed."""
    subject, data = knows("retain"), short_data()
    attack = bind("attack", {"use": "relearn", "share": 0.5, "steps": 40, "lr": 1e-2, "batch_size": 6})
    (relearned,) = attack(subject, data)
    assert len(relearned.exposed) == 6
    shown = Stream("shown", "probe", tuple(e for e in data["forget"].examples if e.id in relearned.exposed))
    metrics = [bind("metric", "exact_memorization")]
    asked = Data(forget=data["forget"], shown=replace(shown, role="retain"))
    found = score_all(metrics, asked, measure(relearned, asked, plan_for(metrics, asked)))
    assert found["shown", "exact_memorization"].value == 1.0
    assert found["forget", "exact_memorization"].n == 6
    other = bind("attack", {"use": "relearn", "share": 0.5, "steps": 1, "seed": 1})
    assert next(iter(other(subject, data))).exposed != relearned.exposed


def test_paraphrases_are_asked_one_by_one():
    data = short_data()
    twice = tuple(replace(e, paraphrases=(*e.paraphrases, "And?")) for e in data["forget"].examples[:5])
    data["forget"] = Stream("forget", "forget", (*twice, *data["forget"].examples[5:]))
    made = list(bind("attack", {"use": "paraphrase", "number": 9})(knows("forget"), data))
    assert [subject.wrapper.ask for subject in made] == ["paraphrase:0", "paraphrase:1"]
    metrics = [bind("metric", "rouge"), bind("metric", "exact_memorization")]
    sizes = [
        score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))["forget", "exact_memorization"].n
        for subject in made
    ]
    assert sizes == [12, 5]  # seven examples have no second paraphrase
    assert made[0].lineage[-1].cost.queries == 12
