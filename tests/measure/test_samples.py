"""Generation: with the greedy identity, without it, and as transformers does it, are one and the same."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

from expunge.data.tokenise import Encoded, Text, encode, prompt_tokens, texts_of
from expunge.measure.plan import Plan, measure
from expunge.measure.samples import cap, continue_greedily, measure_samples, retraced, stop_tokens
from expunge.measure.tables import NotMeasured
from expunge.measure.tokens import measure_tokens
from expunge.models import clone, quiet_libraries
from expunge.testing import tiny_subject
from expunge.types import Data, Needs, Stream
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


def asked_with(examples, instrument, *names, subject=None, ask="prompt"):
    """Tables of one instrument by variant, and the reasons, of a model that knows the forget stream by heart."""
    knower = subject if subject is not None else knows("forget")
    plan = Plan()
    plan.add("forget", [Needs(instrument, variant=name, columns=("all",)) for name in names])
    knower = replace(knower, wrapper=replace(knower.wrapper, ask=ask))
    found = measure(knower, Data(forget=Stream("forget", "forget", examples)), plan)
    reasons = {asked[2]: why for asked, why in found.missing.items() if asked[1] == instrument}
    return {name: found.tables.get(("forget", instrument, name)) for name in names}, reasons


OTHERS = ("prompt@paraphrases", "paraphrased_answer", "perturbed", "alternative", "prompt@prompt")


@pytest.mark.parametrize("ask", ["prompt", "paraphrase:0"])
def test_what_is_known_of_one_question_is_not_said_to_another(ask):
    """Other questions and other references: every generation is what transformers makes of that very prompt."""
    subject = knows("forget")
    examples = tuple(replace(one, paraphrased_answer="The winter") for one in short_data()["forget"].examples[:4])
    tables, reasons = asked_with(examples, "samples", *OTHERS, ask=ask)
    assert reasons == {}
    for name, table in tables.items():
        asked = zip(table.texts("prompt"), table.texts("reference"), strict=True)
        texts = [Text("x", 0, prompt, answer) for prompt, answer in asked]
        starts, encoded = prompt_tokens(subject, [text.prompt for text in texts]), encode(subject, texts)
        for start, one, tokens in zip(starts, encoded, table.arrow.column("tokens").to_pylist(), strict=True):
            assert tokens == generate(subject, start, cap(int(one.counted.sum()))), name
    # What was learned by heart does not come after a paraphrase.
    assert tables["prompt@paraphrases"].texts("text") != tables["prompt@prompt"].texts("text")
    assert (tables["prompt@prompt"].column("produced") == 0).all() is np.bool_(ask == "prompt")


@pytest.mark.parametrize("instrument", ["samples", "sampled", "continuations"])
def test_an_example_without_a_paraphrase_is_left_out_and_none_with_one_is_a_reason(instrument):
    first, *rest = short_data()["forget"].examples[:3]
    examples = (replace(first, paraphrases=()), *rest)
    tables, reasons = asked_with(examples, instrument, "prompt", "prompt@prompt", ask="paraphrase:0")
    assert reasons == {}
    assert [sorted(set(tables[name].ids)) for name in tables] == [["f/1", "f/2"], ["f/0", "f/1", "f/2"]]
    none = tuple(replace(one, paraphrases=()) for one in examples)
    tables, reasons = asked_with(none, instrument, "prompt", "prompt@prompt", ask="paraphrase:0")
    assert set(tables.values()) == {None}
    assert set(reasons.values()) == {"no example of 'forget' has paraphrase 0"}


def test_teacher_forcing_tells_as_far_as_it_was_asked():
    """The text 1 2 3 4 5, of which 2 3 and 5 count and the model says 2 7 at 2 3: from its start, from the middle."""
    text = Encoded("a", 0, np.arange(1, 6), np.array([False, True, True, False, True]), np.zeros(5, dtype=bool))
    right, wrong = np.array([2, 3, 5]), np.array([2, 7, 5])

    def told(greedy, *before, stops=()):
        return retraced(np.array(before), text, greedy, frozenset(stops))

    assert told(wrong, 1) == [2, 7]
    assert told(right, 1) == [2, 3]  # 4 does not count
    assert told(right, 1, stops=(2,)) == [2]
    assert told(wrong, 1, 2) == [7]
    assert told(right, 1, 2, 3, 4) == [5]
    assert told(right, 1, 2, 3) == told(None, 1) == told(right, 9) == told(right) == []


def ruined(family: str, value: float):
    """A tiny model whose logits are all `value`."""
    subject = clone(tiny_subject(family=family))
    head = subject.model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, logits: torch.full_like(logits, value))
    return subject


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_logits_that_are_not_finite_are_not_taken_for_silence(family, value):
    text = texts_of(short_data()["forget"])[0]
    subject = ruined(family, value)
    with pytest.raises(NotMeasured, match="logits are not finite"):
        measure_samples(subject, [text.prompt], encode(subject, [text]), None)


@pytest.mark.parametrize("instrument", ["samples", "sampled", "continuations"])
def test_a_ruined_model_is_no_model_that_forgot(instrument):
    """Its greedy choice would be the end of the text everywhere."""
    examples = short_data()["forget"].examples[:2]
    _, reasons = asked_with(examples, instrument, "prompt", subject=ruined("llama", math.nan))
    assert "not finite" in reasons["prompt"]


def test_impossible_tokens_are_no_ruin():
    subject = clone(tiny_subject())
    head = subject.model.get_output_embeddings()
    allowed = torch.arange(head.weight.shape[0]) % 2 == 0
    head.register_forward_hook(lambda _, __, logits: logits.masked_fill(~allowed, -torch.inf))
    (said,) = continue_greedily(subject, [np.array([5, 6])], [6], frozenset())
    assert len(said) == 6
    assert all(token % 2 == 0 for token in said)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_without_keys_and_values_says_so(adapter):
    """A Mamba would swallow them unread and answer to the last token alone."""
    config = MambaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, state_size=2)
    model = MambaForCausalLM(config).eval()
    if adapter:
        with quiet_libraries():
            model = get_peft_model(model, LoraConfig(r=1, target_modules=["in_proj"]))
    with pytest.raises(NotMeasured, match="keeps no keys and values"):
        continue_greedily(replace(tiny_subject(), model=model), [np.array([5, 6])], [2], frozenset())
