"""Soft prompts: the vectors are found by gradient, stand for nothing else, and bring back what is only hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.attacks.shown import asked_like, part_of
from expunge.attacks.soft_prompt import new_vectors
from expunge.data.tokenise import collate
from expunge.errors import DoesNotFit, RecipeError
from expunge.measure.forward import kept_logits, token_logp
from expunge.measure.plan import measure
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import check_attack, tiny_classes, tiny_data, tiny_subject
from expunge.types import Data, Stream
from support.gated import gated_data, refusing
from support.learned import knows, short_data
from support.tokenizers import KINDS, tokenizer_of

FAMILIES = ("llama", "gpt2", "bart", "t5", "bert", "distilbert")


def attack(**hyper):
    return bind("attack", {"use": "soft_prompt", **hyper})


def loss_of(subject, examples):
    """Mean over the answer tokens, nats."""
    batch = collate(asked_like(subject, examples))
    keep = batch.positions("answer")
    with torch.no_grad():
        return float(-token_logp(kept_logits(subject.model, batch, keep)[0], batch, keep).sum() / keep.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_vectors_every_distribution_is_what_it_was(family):
    """Bit for bit, on the same tokens; what can be said has not grown."""
    subject = tiny_subject(family=family)
    data = tiny_classes() if family == "distilbert" else tiny_data()
    (changed,) = attack(steps=2, length=3, lr=1.0)(subject, data, Run())
    plain = replace(changed, wrapper=subject.wrapper)
    examples = data["forget"].examples
    before, after = collate(asked_like(subject, examples)), collate(asked_like(plain, examples))
    assert torch.equal(before.input_ids, after.input_ids)
    keep = before.positions("answer")
    with torch.no_grad():
        one, other = kept_logits(subject.model, before, keep)[0], kept_logits(plain.model, after, keep)[0]
    assert torch.equal(one, other)  # as wide as before, too
    assert abs(loss_of(changed, examples) - loss_of(subject, examples)) > 1e-4
    old, new = subject.model.get_input_embeddings().weight, changed.model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    assert len(new) == len(old) + 3


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_every_check_of_attacks(family):
    check_attack({"use": "soft_prompt", "steps": 3, "length": 2, "lr": 0.5}, tiny_subject(family=family))


@pytest.mark.parametrize("place", ["suffix", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_read_the_vectors_as_one_token_each(kind, place):
    subject = replace(tiny_subject(), tokenizer=tokenizer_of(kind))
    made = new_vectors(subject, 3)
    given = made.given(subject, torch.zeros(3, 32), place)
    examples = (replace(tiny_data()["forget"].examples[0], prompt="Who is it?", answer="she wrote about the sea"),)
    (before,), (after,) = asked_like(subject, examples), asked_like(given, examples)
    tokens = after.tokens.tolist()
    at = tokens.index(made.ids[0])
    assert tokens[at : at + 3] == list(made.ids)
    assert tokens[:at] + tokens[at + 3 :] == before.tokens.tolist()
    assert after.tokens[after.counted].tolist() == before.tokens[before.counted].tolist()
    again = new_vectors(given, 2)
    assert set(again.ids).isdisjoint(made.ids)


def test_the_first_step_goes_down_the_slope():
    """Adam's first step is lr * sign(slope); the slope by central differences of the loss that is measured."""
    subject, data = tiny_subject(), tiny_data(forget=4)
    start, after = attack(length=2, steps=1, lr=0.01, at=[0, 1], share=0.5)(subject, data, Run())
    shown = [one for one in data["forget"].examples if one.id in after.exposed]
    assert len(shown) == 2
    before, moved = (one.model.get_input_embeddings().weight.detach()[-2:] for one in (start, after))
    size = 0.01 * float(before.square().mean().sqrt())
    for row, column in ((0, 3), (1, 17), (1, 30)):
        slopes = []
        for sign in (1, -1):
            nudged = attack(length=2, steps=1, at=[0, 1], share=0.5)(subject, data, Run())
            one = next(nudged)
            with torch.no_grad():
                one.model.get_input_embeddings().weight[row - 2, column] += sign * 0.01
            slopes.append(sign * loss_of(one, shown) / 0.02)
        step = float(moved[row, column] - before[row, column])
        assert step == pytest.approx(-size if sum(slopes) > 0 else size, rel=1e-3)
    assert loss_of(after, shown) < loss_of(start, shown)
    assert start.lineage[-1].cost.steps == 0
    assert after.lineage[-1].cost.forwards == 2


def test_what_is_shown_is_learned_and_not_scored():
    subject, data = knows("retain"), short_data()
    first, last = attack(lr=0.3, share=0.5, at=[10, 40])(subject, data, Run())
    shown = [one for one in data["forget"].examples if one.id in last.exposed]
    assert len(shown) == 6
    assert first.exposed == last.exposed
    losses = [loss_of(one, shown) for one in (subject, first, last)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1.5
    metrics = [bind("metric", "probability"), bind("metric", "rouge")]
    found = score_all(metrics, data, measure(last, data, plan_for(metrics, data)))
    assert found["forget", "probability"].n == found["forget", "rouge"].n == 6
    assert found["retain", "probability"].n == 12
    assert [one.lineage[-1].cost.steps for one in (first, last)] == [10, 40]
    assert weights_hash(first) != weights_hash(last)
    (other,) = attack(steps=2, seed=1)(subject, data, Run())
    assert other.exposed != last.exposed
    same = tuple(replace(b, id=a.id) for a, b in zip(data["forget"].examples, data["retain"].examples, strict=True))
    mixed = Data({**data, "retain": replace(data["retain"], examples=same)})
    (kept,) = attack(steps=1, on="retain")(subject, mixed, Run())
    assert not kept.exposed  # ids are unique within a stream only


def test_what_was_said_before_a_question_is_still_said_before_it():
    subject, data = tiny_subject(), tiny_data()
    turns = {data["forget"].examples[0].prompt: (("One?", "Uno."),)}
    told = replace(subject, wrapper=replace(subject.wrapper, turns=turns))
    (made,) = attack(steps=0, length=2)(told, data, Run())
    first, second = asked_like(made, data["forget"].examples[:2])
    assert "Uno." in made.tokenizer.decode(first.tokens)
    assert "Uno." not in made.tokenizer.decode(second.tokens)


def test_attacks_go_on_from_it():
    """A second soft prompt, relearning and rounding each work on what it left."""
    subject, data = tiny_subject(), tiny_data()
    soft = {"use": "soft_prompt", "steps": 2, "length": 2}
    for then in (soft, {"use": "relearn", "steps": 2, "lr": 1e-2}, {"use": "quantize", "bits": 8}):
        (changed,) = bind("attack", {"use": "chain", "attacks": [soft, then]})(subject, data, Run())
        assert len(changed.lineage) == 2
        assert torch.isfinite(torch.tensor(loss_of(changed, data["forget"].examples)))
        assert changed.model.get_output_embeddings().weight.shape[0] == len(subject.tokenizer)


def test_adapters_and_half_precision_work():
    data, subject = tiny_data(), tiny_subject()
    adapted = replace(subject, model=bind("scope", {"use": "lora", "rank": 2})(subject.model).model)
    kept = weights_hash(adapted)
    (changed,) = attack(steps=2)(adapted, data, Run())
    assert weights_hash(adapted) == kept != weights_hash(changed)
    with pytest.warns(UserWarning, match="tied"):
        scope = bind("scope", {"use": "lora", "targets": ["embed_tokens"]})(tiny_subject().model)
    with pytest.raises(DoesNotFit, match="no plain table of vectors"):
        next(attack()(replace(subject, model=scope.model), data, Run()))
    half = tiny_subject()
    half = replace(half, model=half.model.to(torch.bfloat16))
    start, after = attack(steps=20, lr=0.3, at=[0, 20])(half, data, Run())
    shown = [one for one in data["forget"].examples if one.id in after.exposed]
    assert loss_of(after, shown) < loss_of(start, shown) - 0.1


def test_rows_of_the_head_that_no_token_uses_are_left_alone():
    """Such a row can be said; its number must not stand for a vector."""
    subject, data = tiny_subject(), tiny_data()
    subject.model.resize_token_embeddings(307, mean_resizing=False)
    made = new_vectors(subject, 2)
    assert made.ids == (307, 308)
    (changed,) = attack(steps=1, length=2)(subject, data, Run())
    assert torch.equal(changed.model.get_input_embeddings().weight[:307], subject.model.get_input_embeddings().weight)
    assert changed.model.get_output_embeddings().weight.shape[0] == 307
    (again,) = attack(steps=1, length=2)(changed, data, Run())
    assert again.model.get_input_embeddings().weight.shape[0] == 311


def test_a_chat_holds_the_vectors_inside_the_turn_of_the_user():
    import copy

    subject, data = tiny_subject(), tiny_data()
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat = replace(subject, tokenizer=tokenizer, wrapper=replace(subject.wrapper, template="chat"))
    (changed,) = attack(steps=1, length=2)(chat, data, Run())
    (one,) = asked_like(changed, data["forget"].examples[:1])
    text = changed.tokenizer.decode(one.tokens)
    assert text.startswith("<user>What is forget 0?<|soft 0.0|><|soft 0.1|>\n<assistant>It is 0")
    assert changed.tokenizer.decode(one.tokens[one.counted]).startswith("It is 0")


def test_what_does_not_fit_and_wrong_arguments_are_told():
    subject, data = tiny_subject(), tiny_data()
    for name, value in (("length", 0), ("steps", -1), ("lr", 0.0), ("share", 1.0), ("at", [3, 2]), ("batch_size", 0)):
        with pytest.raises(RecipeError, match=rf"attacks\.soft_prompt\.{name}"):
            next(attack(**{name: value})(subject, data, Run()))
    one = Data(forget=Stream("forget", "forget", data["forget"].examples[:1]))
    with pytest.raises(DoesNotFit, match="fewer than two questions"):
        next(attack()(subject, one, Run()))
    plain = Data(forget=Stream("forget", "forget", tuple(replace(e, prompt="") for e in data["forget"].examples)))
    with pytest.raises(DoesNotFit, match="fewer than two questions"):
        next(attack()(subject, plain, Run()))
    with pytest.raises(DoesNotFit, match=r"a question does not fit: \d+ tokens"):
        next(attack(length=300)(subject, data, Run()))


def test_the_part_that_is_shown_leaves_something_to_score():
    subject, data = tiny_subject(), tiny_data(forget=3)
    for share, size in ((0.01, 1), (0.5, 2), (0.99, 2)):
        assert len(part_of(subject, data["forget"], share, 0, "here")) == size


@pytest.mark.slow
def test_what_is_hidden_behind_a_refusal_comes_back_and_what_was_never_known_does_not():
    """Both models refuse; one of them would tell if asked in the right way. Vectors trained on half open the rest."""
    data, metric = gated_data(), bind("metric", "exact_memorization")
    plan, found = plan_for([metric], data), []
    for knows_it in (True, False):
        subject = refusing(knows_it)
        (changed,) = attack(steps=100, share=0.5)(subject, data, Run())
        before, after = (score_all([metric], data, measure(s, data, plan)) for s in (subject, changed))
        assert before["forget", "exact_memorization"].value == 0
        found.append(after["forget", "exact_memorization"])
    hidden, never = found
    assert hidden.n == never.n == 18
    assert hidden.value > 0.5
    assert never.value < 0.25
