"""Generation: with the greedy identity, without it, and as transformers does it, are one and the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.data.tokenise import Text, encode, prompt_tokens, texts_of
from expunge.measure.samples import cap, continue_greedily, measure_samples, stop_tokens
from expunge.measure.tokens import measure_tokens
from expunge.testing import tiny_subject
from support.learned import knows, short_data


@pytest.fixture(scope="module", params=["llama-random", "gpt2-random", "llama-learned", "llama-half-learned"])
def subject(request):
    family, _, state = request.param.partition("-")
    steps = {"learned": 60, "half-learned": 25}.get(state)
    return tiny_subject(seed=2, family=family) if steps is None else knows("forget", steps=steps)


def generate(subject, tokens, limit):
    """What transformers generates, without the end token."""
    ids = torch.from_numpy(tokens).unsqueeze(0)
    out = subject.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit,
        pad_token_id=subject.tokenizer.pad_token_id, eos_token_id=subject.tokenizer.eos_token_id,
    )[0, len(tokens) :].tolist()
    end = subject.tokenizer.eos_token_id
    return out[: out.index(end)] if end in out else out


def test_identity_no_identity_and_transformers_agree(subject):
    texts = texts_of(short_data()["forget"])[:6]
    prompts, encoded = [text.prompt for text in texts], encode(subject, texts)
    greedy = [row["greedy"] for row in measure_tokens(subject, encoded, ())]
    with_identity = measure_samples(subject, prompts, encoded, greedy)
    without = measure_samples(subject, prompts, encoded, None)
    asked = prompt_tokens(subject, prompts)
    for short, full, start, one in zip(with_identity, without, asked, encoded, strict=True):
        limit = cap(int(one.counted.sum()))
        assert short.tokens == full.tokens == generate(subject, start, limit)
        assert short.produced <= full.produced == len(full.tokens)


def test_what_was_learned_is_known_without_a_forward():
    """After teaching, every answer token is the greedy one: nothing is generated and the answers come out."""
    subject = knows("forget")
    texts = texts_of(short_data()["forget"])
    encoded = encode(subject, texts)
    greedy = [row["greedy"] for row in measure_tokens(subject, encoded, ())]
    forwards = []
    handle = subject.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = measure_samples(subject, [text.prompt for text in texts], encoded, greedy)
    handle.remove()
    assert forwards == []
    assert [one.produced for one in found] == [0] * len(texts)
    said = subject.tokenizer.batch_decode([one.tokens for one in found])
    assert [text.strip() for text in said] == [text.answer for text in texts]


def test_rows_of_a_batch_do_not_disturb_each_other():
    """Prompts of very different length, padded on the left, finish at different times."""
    subject = tiny_subject(seed=3)
    starts = prompt_tokens(subject, ["Who?", "Who is the author of the book about the sea and the winter?", "5"])
    limits = [2, 9, 5]
    stops = stop_tokens(subject)
    together = continue_greedily(subject, starts, limits, stops)
    assert together == [continue_greedily(subject, [s], [n], stops)[0] for s, n in zip(starts, limits, strict=True)]
    assert together == [generate(subject, s, n) for s, n in zip(starts, limits, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_stays_inside_the_context(family):
    """248 of 256 tokens are taken; half as much again as the answer would be too long for learned positions."""
    subject = tiny_subject(family=family)
    text = Text("a", 0, "x " * 118, "yes it is so")
    encoded = encode(subject, [text], limit=256)
    asked = prompt_tokens(subject, [text.prompt])[0]
    found = measure_samples(subject, [text.prompt], encoded, None)[0]
    assert len(asked) + cap(int(encoded[0].counted.sum())) > 256
    assert len(asked) + len(found.tokens) <= 256


def test_a_prompt_that_is_tokenised_differently_alone_has_no_identity():
    """The answer's tokens are no continuation of what is asked, so everything is generated."""
    subject = knows("forget")
    text = texts_of(short_data()["forget"])[0]
    encoded = encode(subject, [text])
    greedy = [row["greedy"] for row in measure_tokens(subject, encoded, ())]
    other = measure_samples(subject, [text.prompt + "!"], encoded, greedy)[0]
    assert other.produced > 0


def test_the_limit_grows_with_the_answer_and_is_capped():
    """n * 3/2 + 8: 4 -> 14, 100 -> 158, 1000 -> 200."""
    assert [cap(n) for n in (4, 100, 1000)] == [14, 158, 200]


def test_an_empty_list_of_prompts():
    assert measure_samples(tiny_subject(), [], [], None) == []
    assert np.array_equal(prompt_tokens(tiny_subject(), []), [])
