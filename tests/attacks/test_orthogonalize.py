"""Directions: found exactly, taken out exactly, and enough to open what RMU has closed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from expunge.attacks.directions import (
    Moments,
    ablate,
    beginning,
    main_axis,
    project_writes,
    read,
    strange_tokens,
)
from expunge.attacks.orthogonalize import orthogonalize
from expunge.attacks.parts import shallow
from expunge.data.texts import Encoded
from expunge.data.tokenise import prompt_tokens
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.plan import measure
from expunge.measure.samples import continue_greedily
from expunge.models import blocks, clone, weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.scopes.weights import lora
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Stream, Subject
from support.learned import knows, short_data

IDS = torch.arange(12).reshape(2, 6)


def attacked(subject: Subject, data: Data | None = None, **hyper: Any) -> Subject:
    (made,) = orthogonalize(subject, data or short_data(), Run(), **hyper)
    return made


def changed_pair(**more: Any) -> Subject:
    """A tiny model with a bent second block; the original beside it."""
    subject = tiny_subject(**more)
    bent = clone(subject)
    with torch.no_grad():
        next(p for name, p in blocks(bent.model)[1][1].named_parameters() if "mlp" in name and p.ndim == 2).mul_(3.0)
    return replace(bent, helpers={"original": subject})


@torch.no_grad()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def output(subject: Subject, layer: int) -> torch.Tensor:
    """What a block puts out, every place in a row, [N, D] in float64."""
    heard: list[torch.Tensor] = []
    block = blocks(subject.model)[layer][1]
    handle = block.register_forward_hook(lambda _, __, out: heard.append(out[0] if isinstance(out, tuple) else out))
    subject.model(input_ids=IDS, use_cache=False)
    handle.remove()
    return heard[0].flatten(0, -2).double()


def along(states: torch.Tensor, direction: torch.Tensor) -> float:
    """The longest projection of states on a direction, beside the longest of the states."""
    return float((states @ direction.double()).abs().max() / states.norm(dim=-1).max())


def row(*tokens: int) -> Encoded:
    return Encoded("x", 0, np.array(tokens), np.ones(len(tokens), bool), np.zeros(len(tokens), bool))


# -- finding -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "expected"), [
    ([(1, 2, 3), (1, 2, 4)], 2), ([(1, 2, 3), (4, 2, 3)], 1), ([(1, 2)], 1), ([(1, 2), (1, 2, 3)], 2),
])
def test_how_far_all_texts_begin_alike(rows, expected):
    assert beginning([row(*one) for one in rows]) == expected


def test_means_are_those_of_an_obvious_loop():
    """In batches, without padding, the common beginning, and the tokens that are left out; the last token counts."""
    subject = tiny_subject()
    texts = [row(1, 2, 7, 8, 9), row(1, 2, 9), row(1, 2), row(1, 2, 8, 8)]
    found = Moments({1: torch.tensor([8])}, pairs=True)
    cost = read(subject.model, texts, 2, [1], found)
    assert (cost.forwards, cost.tokens) == (4, 14)
    states = []
    for one in texts:
        heard: list[torch.Tensor] = []
        handle = blocks(subject.model)[1][1].register_forward_hook(lambda _, __, out, to=heard: to.append(out[0]))
        with torch.no_grad():
            subject.model(input_ids=torch.from_numpy(one.tokens)[None], use_cache=False)
        handle.remove()
        counted = [t for t in range(len(one)) if (t >= 2 or t == len(one) - 1) and one.tokens[t] != 8]
        states += [heard[0][t].double() for t in counted]
    every = torch.stack(states)
    assert found.num[1] == len(every) == 4
    torch.testing.assert_close(found.mean(1), every.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.products[1], every.T @ every, rtol=1e-5, atol=1e-5)
    assert found.length(1) == pytest.approx(float(every.norm(dim=-1).pow(2).mean().sqrt()), rel=1e-5)


def moments(states: torch.Tensor) -> Moments:
    found = Moments(pairs=True)
    found(torch.zeros(len(states), dtype=torch.long), {0: states})
    return found


def test_the_main_axis_of_two_clouds():
    """Two clouds that lie apart along (1, -2, 0), with noise that is small beside it: that is the axis."""
    made = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(2, 200, 3, generator=made, dtype=torch.float64)
    apart = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    axis = main_axis(moments(noise[0] + apart), moments(noise[1] - apart), 0)
    cosine = (axis @ apart) / (axis.norm() * apart.norm())
    assert abs(float(cosine)) > 0.9999


def test_a_strange_token_is_left_out_of_the_means():
    """One token of the vocabulary has a huge embedding: its states stand apart, and it alone is found."""
    subject = tiny_subject()
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[8].mul_(1000.0)
    others = range(10, 60)
    texts = [row(1, *others[i : i + 10], *([8] if i % 20 == 0 else [])) for i in range(0, 40, 5)]
    strange, _ = strange_tokens(subject.model, texts, 1, [0])
    assert strange[0].tolist() == [8]


# -- taking away ---------------------------------------------------------------------------------------------------
def test_an_ablated_block_has_nothing_along_the_direction():
    """Once, twice, or with the sign turned: the same; and no state grows."""
    subject = changed_pair()
    made = attacked(subject)
    direction = blocks(made.model)[1][1].direction_0
    assert float(direction.norm()) == pytest.approx(1.0, rel=1e-6)
    before, after = output(subject, 1), output(made, 1)
    assert along(before, direction) > 0.1
    assert along(after, direction) < 1e-6
    assert (after.norm(dim=-1) <= before.norm(dim=-1) * (1 + 1e-6)).all()
    for sign in (1, -1):
        twice = shallow(made)
        ablate(blocks(twice.model)[1][1], sign * direction)
        torch.testing.assert_close(logits(twice), logits(made), rtol=1e-5, atol=1e-5)


def test_only_blocks_in_which_the_models_differ_lose_a_direction():
    subject = changed_pair()
    made = attacked(subject)
    assert dict(made.lineage[-1].hyper) == {"source": "original", "form": "hooks", "layers": [1]}
    assert made.lineage[-1].cost.forwards == 12 + 12 + 12
    assert "direction_0" in {name.rsplit(".", 1)[-1] for name in made.model.state_dict()}
    with pytest.raises(DoesNotFit, match="the two models do not differ there"):
        attacked(subject, layers=[0])
    for source in ("original", "pca"):
        with pytest.raises(DoesNotFit, match="the two models do not differ there"):
            attacked(replace(tiny_subject(), helpers={"original": tiny_subject()}), source=source)


def test_the_first_of_two_ablations_stays():
    """A second direction on a block stands beside the first: both are gone."""
    subject = changed_pair()
    twice = attacked(attacked(subject), source="random", layers=[1])
    block = blocks(twice.model)[1][1]
    assert abs(float(block.direction_0 @ block.direction_1)) < 0.9
    assert along(output(twice, 1), block.direction_1) < 1e-6
    assert torch.equal(block.direction_0, blocks(attacked(subject).model)[1][1].direction_0)
    assert not torch.allclose(logits(attacked(subject)), logits(twice), atol=1e-4)


def test_generations_go_without_the_direction_too():
    made = attacked(changed_pair())
    (start,) = prompt_tokens(made, ["Who is it?"])
    (said,) = continue_greedily(made, [start], [8], frozenset())
    with torch.no_grad():
        whole = made.model(input_ids=torch.tensor([[*start.tolist(), *said]]), use_cache=False).logits[0].argmax(-1)
    assert said == whole[len(start) - 1 : -1].tolist()


def test_prompts_alone_are_read_unless_answers_are_asked_for():
    """Other answers to the same prompts give the same model; with answers=True they do not."""
    subject, data = changed_pair(), short_data()
    told = tuple(replace(one, answer="Something else", spans=()) for one in data["forget"].examples)
    other = Data(data | {"forget": replace(data["forget"], examples=told)})
    for answers, same in ((False, True), (True, False)):
        found = [weights_hash(attacked(subject, one, answers=answers)) for one in (data, other)]
        assert (found[0] == found[1]) == same
    plain = Data(forget=Stream("forget", "forget", tuple(replace(one, prompt="") for one in data["forget"].examples)))
    assert attacked(subject, plain).lineage[-1].cost.tokens > 0  # texts without a prompt are read whole
    assert not attacked(subject).exposed


def test_answers_that_were_read_are_not_scored():
    """Half of them are read; the others may say what they like, and the direction stays the same."""
    subject, data = changed_pair(), short_data()
    plain = Data(forget=replace(data["forget"], examples=tuple(replace(e, prompt="") for e in data["forget"].examples)))
    mixed = tuple(replace(one, prompt="") if i < 4 else one for i, one in enumerate(data["forget"].examples))
    for given, hyper, shown in (
        (data, {"answers": True}, 6), (plain, {}, 6), (Data(forget=replace(data["forget"], examples=mixed)), {}, 2),
    ):
        made = attacked(subject, given, **hyper)
        assert len(made.exposed) == shown
        assert made.exposed == attacked(subject, given, **hyper).exposed
        told = tuple(
            one if one.id in made.exposed else replace(one, answer="Something else", spans=())
            for one in given["forget"].examples
        )
        other = Data(given | {"forget": replace(given["forget"], examples=told)})
        assert weights_hash(attacked(subject, other, **hyper)) == weights_hash(made)
    assert attacked(subject, data, answers=True, seed=1).exposed != attacked(subject, data, answers=True).exposed
    assert not attacked(subject, data, answers=True, on="retain").exposed
    assert not attacked(subject, data, answers=True, source="random").exposed
    lonely = Data(forget=replace(plain["forget"], examples=plain["forget"].examples[:1]))
    with pytest.raises(DoesNotFit, match="single text to read whole"):
        attacked(subject, lonely)


def test_states_are_read_without_dropout():
    """A model that was left in training mode gives the same direction, and is left as it was."""
    subject = changed_pair(family="gpt2")
    for one in (subject, subject.helpers["original"]):
        for module in one.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
    for form in ("hooks", "weights"):
        quiet = attacked(subject, form=form)
        subject.model.train()
        subject.helpers["original"].model.train()
        assert weights_hash(attacked(subject, form=form)) == weights_hash(quiet)
        assert subject.model.training
        assert subject.helpers["original"].model.training
        subject.model.eval()
        subject.helpers["original"].model.eval()


def test_prompts_are_read_as_they_are_asked():
    """Paraphrases where those are asked; a stream without any cannot be compared with."""
    subject, data = changed_pair(), short_data()
    asked = replace(subject, wrapper=replace(subject.wrapper, ask="paraphrase:0"))
    assert weights_hash(attacked(asked)) != weights_hash(attacked(subject))
    assert attacked(asked).wrapper.ask == "paraphrase:0"
    bare = tuple(replace(one, paraphrases=()) for one in data["retain"].examples)
    with pytest.raises(DoesNotFit, match="has paraphrase 0"):
        attacked(asked, Data(data | {"retain": replace(data["retain"], examples=bare)}), source="retain")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_direction_out_of_the_weights(family):
    """Nothing that is written has anything along it, the tied head stays what it was, and the given model too."""
    subject = changed_pair(family=family)
    before = weights_hash(subject)
    made = attacked(subject, form="weights")
    assert made.lineage[-1].hyper["layers"] == [1]
    assert weights_hash(subject) == before != weights_hash(made)
    head = made.model.get_output_embeddings().weight
    assert torch.equal(head, subject.model.get_output_embeddings().weight)
    assert head is not made.model.get_input_embeddings().weight
    tables = [m.weight.detach() for m in made.model.modules() if isinstance(m, torch.nn.Embedding)]
    matrix = torch.cat(tables).double()
    direction = torch.linalg.svd(matrix).Vh[-1]  # the one that no embedding has
    assert along(matrix, direction) < 1e-6
    assert all(along(output(made, layer), direction) < 1e-6 for layer in (0, 1))
    assert along(output(subject, 1), direction) > 0.01


@pytest.mark.parametrize(("name", "fits"), [("GPTNeoX", True), ("OPT", True), ("Olmo2", False)])
def test_models_that_write_through_a_norm_have_no_exact_weights(name, fits):
    import transformers as hf

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 61}
    sizes |= {"ffn_dim": 24} if name == "OPT" else {"intermediate_size": 24}
    config = getattr(hf, f"{name}Config")(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    subject = replace(tiny_subject(), model=hf.AutoModelForCausalLM.from_config(config).eval())
    direction = torch.nn.functional.normalize(torch.arange(16.0).double(), dim=0)
    if not fits:
        with pytest.raises(DoesNotFit, match="no plain sum of two matrices"):
            project_writes(subject.model, direction)
        return
    assert along(output(subject, 1), direction) > 0.01
    project_writes(subject.model, direction)
    assert along(output(subject, 1), direction) < 1e-6


def test_an_adapter_loses_its_direction_too():
    subject = tiny_subject()
    movable = lora(clone(subject).model, rank=2)
    with torch.no_grad():
        for parameter in movable.parameters.values():
            parameter.add_(0.05)
    adapted = replace(subject, model=movable.model, helpers={"original": subject})
    before = weights_hash(adapted)
    hooked, written = attacked(adapted), attacked(adapted, form="weights")
    assert weights_hash(adapted) == before
    assert hooked.lineage[-1].hyper["layers"] == [0, 1]
    assert not torch.allclose(logits(hooked), logits(adapted), atol=1e-4)
    assert not hasattr(written.model, "peft_config")


def test_what_cannot_be_compared_does_not_fit():
    subject, data = tiny_subject(), short_data()
    with pytest.raises(DoesNotFit, match="before the removal was not given"):
        attacked(subject)
    with pytest.raises(DoesNotFit, match="no stream of the role anchor"):
        attacked(subject, source="anchor")
    with pytest.raises(DoesNotFit, match="has 1 blocks of width 32, this one 2 of"):
        attacked(replace(subject, helpers={"original": _shorter(subject)}))
    with pytest.raises(DoesNotFit, match="for causal models"):
        attacked(tiny_subject(family="bert"))
    with pytest.raises(RecipeError, match=r"orthogonalize\.layers: block 9"):
        attacked(subject, layers=[9])
    with pytest.raises(DataError, match="did you mean 'forget'"):
        attacked(subject, on="forgt")
    assert attacked(subject, source="retain").lineage[-1].hyper["layers"] == [0, 1]
    assert attacked(subject, Data(data | {"anchor": replace(data["holdout"], role="anchor")}), source="anchor")


def _shorter(subject: Subject) -> Subject:
    made = clone(subject)
    made.model.model.layers = made.model.model.layers[:1]
    return made


# -- what RMU has closed -------------------------------------------------------------------------------------------
def probability(subject: Subject) -> float:
    metrics, data = [bind("metric", "probability")], Data(forget=short_data()["forget"])
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    return float(found["forget", "probability"].value or 0)


@cache
def steered() -> Subject:
    """A model that knew every answer after RMU at its first block; the original beside it."""
    original = knows("forget", "retain")
    made = clone(original)
    settings = {"use": "rmu", "batch_size": 12, "layer": 0, "scale": 20.0, "alpha": 1.0, "steps": 40, "lr": 5e-3}
    for stage in bind("method", settings)():
        made = stage(made, short_data(), Run())
    return replace(made, lineage=(), helpers={"original": original})


def test_rmu_is_opened_by_its_direction_and_by_no_random_one():
    """Measured: 0.96 before, 0.08 after RMU, 0.85 without its direction; 20 random ones give at most 0.09. The twin
    that never knew stays at 0.3."""
    after, twin = steered(), replace(knows("retain"), helpers={"original": knows("forget", "retain")})
    closed, opened = probability(after), probability(attacked(after))
    random = [probability(attacked(after, source="random", seed=seed)) for seed in range(20)]
    assert closed < 0.2
    assert opened > 0.6
    assert max(random) < closed + 0.3 * (opened - closed)
    assert probability(attacked(twin)) < probability(twin) + 0.1
    assert probability(attacked(after, form="weights")) > 0.5
