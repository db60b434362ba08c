"""Activation patching: one layer's stream of one model in another, against obvious hooks; and who can be patched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.tokenise import encode, texts_of
from expunge.errors import RecipeError
from expunge.measure.desk import Partner
from expunge.measure.plan import Plan, measure
from expunge.models import clone
from expunge.scopes.weights import lora
from expunge.testing import tiny_subject
from expunge.types import Data, Needs, Stream
from support.learned import short_data
from support.tokenizers import tokenizer_of

KEY = ("forget", "patched", "answer")
NEED = Needs("patched", columns=("patched", "window:1", "window:3"))


def data(num: int = 4, spans: bool = True) -> Data:
    """Short questions; every second one without spans."""
    examples = short_data(forget=num)["forget"].examples
    kept = tuple(one if spans and i % 2 == 0 else replace(one, spans=()) for i, one in enumerate(examples))
    return Data(forget=Stream("forget", "forget", kept))


def run(subject, given: Data, partner=None, need: Needs = NEED):
    plan = Plan()
    plan.add("forget", [need])
    return measure(subject, given, plan, partner=None if partner is None else Partner(lambda: partner))


def other_model(seed: int = 5):
    return tiny_subject(seed=seed)


def places(one) -> list[int]:
    """Tokens that count: those of spans where there are any."""
    marked = one.spanned if one.spanned[1:].any() else one.counted
    return [t for t in range(1, len(one)) if marked[t]]


@torch.no_grad()
def obvious(original, one, layer: int, replacement: torch.Tensor) -> float:
    """One text, a hook that writes the replacement [T, D] where a counted token is predicted."""
    at = [t - 1 for t in places(one)]

    def write(_, __, output):
        changed = output.clone()
        changed[0, at] = replacement[at]
        return changed

    handle = original.model.model.layers[layer].register_forward_hook(write)
    logp = original.model(input_ids=torch.from_numpy(one.tokens)[None]).logits[0].log_softmax(-1)
    handle.remove()
    return float(np.mean([float(logp[t - 1, one.tokens[t]]) for t in places(one)]))


@torch.no_grad()
def streams(subject, tokens) -> list[torch.Tensor]:
    """After each of two blocks, before the final norm."""
    found: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, output: found.append(output[0].clone()))
        for block in subject.model.model.layers
    ]
    subject.model(input_ids=torch.as_tensor(tokens)[None])
    for handle in handles:
        handle.remove()
    return found


def test_against_obvious_hooks():
    """Another model's stream, and the original's own after one and after three tokens."""
    original, donor, given = other_model(2), other_model(5), data()
    table = run(donor, given, original).tables[KEY]
    for i, one in enumerate(encode(original, texts_of(given["forget"]))):
        assert table.column("counted")[i] == len(places(one))
        mine = streams(donor, one.tokens)
        assert table.column("clean")[i] == pytest.approx(
            obvious(original, one, 1, streams(original, one.tokens)[1]), abs=1e-5
        )
        for layer in range(2):
            found = table.rows("patched")[i][layer]
            assert found == pytest.approx(obvious(original, one, layer, mine[layer]), abs=1e-5)
            for size in (1, 3):
                seen = torch.zeros(len(one), 32)
                for t in [place - 1 for place in places(one)]:
                    read = [one.tokens[0], *one.tokens[max(1, t + 1 - size) : t + 1]]
                    seen[t] = streams(original, np.array(read))[layer][-1]
                assert table.rows(f"window:{size}")[i][layer] == pytest.approx(
                    obvious(original, one, layer, seen), abs=1e-5
                )
    assert table.column("clean").dtype == np.float32


def test_spans_narrow_what_is_counted():
    given = data(2)
    marked, whole = run(other_model(), given, other_model()).tables[KEY].column("counted")
    full = run(other_model(), data(2, spans=False), other_model()).tables[KEY].column("counted")
    assert marked < full[0]
    assert whole == full[1]


def test_a_model_in_its_own_place_changes_nothing():
    """Nor does one that differs in what comes after the stream alone: its head; nor an adapter that does nothing."""
    original = other_model()
    broken = clone(original)
    with torch.no_grad():
        broken.model.lm_head.weight = torch.nn.Parameter(original.model.lm_head.weight.flip(0))
    wrapped = replace(original, model=lora(clone(original).model, rank=2).model)
    for donor in (original, broken, wrapped):
        table = run(donor, data(), original).tables[KEY]
        clean = np.repeat(table.column("clean")[:, None], 2, axis=1)
        np.testing.assert_allclose(np.stack(table.rows("patched")), clean, atol=1e-5)


def test_company_does_not_matter():
    given = data(6)
    table = run(other_model(2), given, other_model()).tables[KEY]
    for i, example in enumerate(given["forget"].examples[:3]):
        alone = Data(forget=replace(given["forget"], examples=(example,)))
        one = run(other_model(2), alone, other_model()).tables[KEY]
        for column in ("patched", "window:1"):
            np.testing.assert_allclose(one.rows(column)[0], table.rows(column)[i], atol=1e-5)


def test_who_cannot_be_patched_is_told_why():
    donor = other_model()
    assert run(donor, data()).missing[KEY] == "the model before the removal was not given"
    assert "built differently" in run(donor, data(), tiny_subject(family="gpt2")).missing[KEY]
    renamed = replace(donor, tokenizer=tokenizer_of("metaspace"))
    assert run(donor, data(), renamed).missing[KEY] == "the model before the removal has another tokenizer"
    assert "masked" in run(tiny_subject(family="bert"), data(), donor).missing[KEY]


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_window_without_a_token_is_an_error(size):
    with pytest.raises(RecipeError, match="whole number of tokens"):
        run(other_model(), data(), other_model(), Needs("patched", columns=(f"window:{size}",)))


def test_a_window_longer_than_a_batch_is_read_alone(monkeypatch):
    """Equal windows are read together where a batch has room; where one alone has too many tokens, one by one."""
    need = Needs("patched", columns=("window:9",))
    whole = run(other_model(2), data(), other_model(), need).tables[KEY]
    monkeypatch.setattr("expunge.measure.patched.PATCH_TOKENS", 2)
    alone = run(other_model(2), data(), other_model(), need).tables[KEY]
    for one, other in zip(whole.rows("window:9"), alone.rows("window:9"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
