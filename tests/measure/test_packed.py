"""Answers that share their question score what they score alone, whatever the model; where they cannot, they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import expunge.measure.tokens as instrument
from expunge.data.tokenise import Encoded, encode, texts_of
from expunge.measure.desk import Desk
from expunge.measure.packed import can_share, families, run_families, sliding_window
from expunge.measure.tokens import COLUMNS, measure_each, measure_tokens
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream, Subject, Wrapper

SMALL = {
    "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "head_dim": 8, "max_position_embeddings": 64,
}
GPT = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
MODELS = {
    "Llama": SMALL, "Qwen2": SMALL, "Qwen3": SMALL, "Mistral": SMALL | {"sliding_window": 12},
    "Gemma2": SMALL | {"sliding_window": 12, "query_pre_attn_scalar": 8}, "GPT2": GPT,
    "GPTNeoX": {**SMALL, "num_key_value_heads": 2}, "OPT": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16},
}


def made(name: str, **changes):
    config = getattr(transformers, name + "Config")(**{**MODELS.get(name, {}), **changes})
    torch.manual_seed(3)
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, name + "ForCausalLM")
    return getattr(transformers, kind)(config).eval()


def text(number: int, prompt: list[int], answer: list[int]) -> Encoded:
    counted = np.array([False] * len(prompt) + [True] * len(answer))
    return Encoded(f"x/{number}", 0, np.array(prompt + answer), counted, np.zeros_like(counted))


def texts() -> list[Encoded]:
    """Two questions with several answers of 1 to 9 tokens, one with a single answer, a text without a question."""
    random = np.random.default_rng(4)
    rows = []
    for size, answers in ((7, (4, 1, 9)), (12, (3, 3)), (5, (6,)), (0, (8,))):
        prompt = random.integers(0, 61, size).tolist()
        rows += [text(len(rows) + i, prompt, random.integers(0, 61, n).tolist()) for i, n in enumerate(answers)]
    return rows


def subject_of(model) -> Subject:
    return Subject(model, tiny_subject().tokenizer)


def alone(subject, encoded, columns):
    return [measure_tokens(subject, [one], columns)[0] for one in encoded]


@pytest.mark.parametrize("name", MODELS)
def test_sharing_the_question_changes_no_column(name):
    subject = subject_of(made(name))
    assert can_share(subject.model, "cpu")
    together = measure_tokens(subject, texts(), COLUMNS)
    for one, row, other in zip(texts(), together, alone(subject, texts(), COLUMNS), strict=True):
        assert row.keys() == other.keys()
        assert len(row["logp"]) == one.counted[1:].sum()
        for column in row:
            np.testing.assert_allclose(row[column], other[column], rtol=2e-4, atol=2e-5, err_msg=f"{name} {column}")


def test_texts_longer_than_a_window_are_run_alone():
    model = made("Mistral")
    assert sliding_window(model) == 12
    groups = families(texts(), range(len(texts())), sliding_window(model))
    assert [one.members for one in groups if len(one.members) > 1] == [(0, 1)]  # 7 + 9 and 12 + 3 are too long


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Mamba", {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
        ("Bloom", {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    ],
)
def test_models_that_cannot_share_are_found_out_and_measured_one_by_one(name, config):
    subject = subject_of(made(name, **config))
    assert not can_share(subject.model, "cpu")
    together = measure_tokens(subject, texts(), ())
    for row, other in zip(together, alone(subject, texts(), ()), strict=True):
        np.testing.assert_allclose(row["logp"], other["logp"], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1, 20])
def test_a_model_that_cannot_share_is_found_out_in_half_precision(dtype, scale):
    """ALiBi counts places by the order in the sequence. The second answer is off by 0.015 nats where logits stay
    below 1, by 0.02 to 0.06 where they reach 15: less than 3 % of the largest logit.
    """
    model = made("Mpt", vocab_size=61, d_model=32, n_layers=1, n_heads=4, max_seq_len=64)
    with torch.no_grad():
        model.transformer.wte.weight *= scale
    assert not can_share(model.to(dtype), "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_can_share_do_so_in_half_precision(name, dtype):
    assert can_share(made(name).to(dtype), "cpu")


@pytest.mark.parametrize("ruin", [float("nan"), float("inf")])
def test_a_ruined_model_shares_nothing(ruin):
    model = made("Llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(ruin)
    assert not can_share(model, "cpu")


def test_the_bill_has_what_the_trial_runs():
    model, rows, tokens = made("Llama"), 0, 0

    def count(_, args, kwargs):
        nonlocal rows, tokens
        ids = kwargs["input_ids"]
        rows, tokens = rows + len(ids), tokens + ids.numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    assert can_share(model, "cpu")
    assert (rows, tokens - 2) == instrument.TRIAL  # less the padding of the shorter answer


def test_an_answer_does_not_see_its_neighbours():
    """Changing the first answer moves nothing of the second."""
    model, (first, _, third) = made("Llama"), texts()[:3]
    tokens = np.concatenate([first.tokens[:7], (first.tokens[7:] + 1) % 61])
    other = Encoded(first.id, 0, tokens, first.counted, first.counted)
    found = []
    for pair in ([first, third], [other, third]):
        with torch.no_grad():
            logits, _, owners = run_families(model, pair, families(pair, range(2)), "cpu")
        assert owners == [(0, 4), (1, 9)]
        found.append(logits[4:])
    assert torch.equal(*found)


def test_texts_that_stand_twice_are_run_once():
    subject = subject_of(made("Llama"))
    desk = Desk("cpu", Data())
    one = texts()[5]  # one answer of a question of its own
    rows = measure_each(subject, [one, one, one], [frozenset()] * 3, desk=desk)
    assert desk.forwards == 1
    assert all(np.array_equal(row["logp"], rows[0]["logp"]) for row in rows)


def test_costly_columns_are_made_for_those_who_asked():
    subject = subject_of(made("Llama"))
    wanted = [frozenset({"rank"}), frozenset(), frozenset({"mean", "var"}), *[frozenset()] * 4]
    rows = measure_each(subject, texts(), wanted)
    assert [row.keys() - {"token", "logp", "argmax", "greedy"} for row in rows] == [set(one) for one in wanted]
    whole = measure_tokens(subject, texts(), ("rank", "mean", "var"))
    assert rows[0]["rank"].tolist() == whole[0]["rank"].tolist()
    np.testing.assert_allclose(rows[2]["mean"], whole[2]["mean"], rtol=1e-5)


def test_the_order_of_texts_does_not_matter(monkeypatch):
    subject = subject_of(made("Llama"))
    monkeypatch.setattr(instrument, "BATCH_TOKENS", 20)
    forward, backward = measure_tokens(subject, texts(), ()), measure_tokens(subject, texts()[::-1], ())[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_allclose(one["logp"], other["logp"], rtol=1e-5, atol=1e-6)


# -- decoding schemes ----------------------------------------------------------------------------------------------
def test_a_scheme_is_temperature_then_top_k_then_nucleus():
    """logits 2, 1, 0, -1 at temperature 0.5: of the two most likely e^4 / (e^4 + e^2) = 0.880797, the third has 0."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]] * 4)
    targets = torch.tensor([0, 1, 2, 0])
    p = instrument._scheme(logits, targets, "scheme:0.5:2:1").exp().tolist()
    assert p == pytest.approx([0.880797077978, 0.119202922022, 0.0, 0.880797077978])
    shares = logits[0].softmax(-1)  # 0.644, 0.237, 0.087, 0.032
    nucleus = instrument._scheme(logits, targets, "scheme:1:0:0.7").exp().tolist()
    assert nucleus[:3] == pytest.approx([float(shares[0] / shares[:2].sum()), float(shares[1] / shares[:2].sum()), 0.0])
    assert instrument._scheme(logits, targets, "scheme:0:0:1").exp().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert instrument._scheme(logits, targets, "scheme:1:0:1").tolist() == pytest.approx(
        logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].tolist()
    )


def test_a_question_in_a_template_is_shared_by_its_answers():
    subject = tiny_subject(seed=1)
    stream = Stream("q", "forget", (Example("a", "Who wrote it?", "Ada.", perturbed=("Bo.", "Cy Dee.")),))
    asked = Subject(subject.model, subject.tokenizer, Wrapper("Question: {prompt}\nAnswer: {answer}"))
    encoded = encode(asked, [*texts_of(stream), *texts_of(stream, "perturbed")])
    assert [one.members for one in families(encoded, range(3))] == [(0, 1, 2)]
