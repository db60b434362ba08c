"""The stream inside a model: every point reads what the model itself works with, in every family."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.errors import RecipeError
from expunge.measure.desk import Partner
from expunge.measure.hidden import POINTS, anatomy, entering, listening, read_out
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import NotMeasured
from expunge.models import clone
from expunge.scopes.weights import lora
from expunge.testing import tiny_subject
from expunge.types import Data, Needs
from support import golden, toys
from support.streams import small_data

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SMALL, "num_key_value_heads": 1}
ALL = {"block", "attention", "middle", "mlp"}
FAMILIES = {  # config class, its arguments, the points its blocks have
    "llama": ("LlamaConfig", GROUPED, ALL),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}, ALL),
    "gpt_neo, tuples": ("GPTNeoConfig", {
        "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
    }, ALL),
    "gemma2, norms after and a soft cap": (
        "Gemma2Config", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0}, ALL,
    ),
    "olmo2, norms after": ("Olmo2Config", SMALL, ALL),
    "opt, projected": ("OPTConfig", {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 8,
        "max_position_embeddings": 32,
    }, ALL),
    "granite, scaled": ("GraniteConfig", {**GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5}, {"block"}),
    "gpt_neox, side by side": ("GPTNeoXConfig", SMALL, {"block"}),
}
IDS = torch.arange(10).reshape(2, 5)


def family(name: str):
    import transformers as hf

    config, arguments, points = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = hf.AutoModelForCausalLM.from_config(getattr(hf, config)(**SIZES, **arguments)).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model, points


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_points_of_every_family(name):
    """The last block read out is the model; a block is its input and what attention and MLP wrote, nothing else."""
    model, points = family(name)
    inside = anatomy(model)
    assert set(inside.points) == points
    everywhere = torch.ones_like(IDS, dtype=torch.bool)
    start: list[torch.Tensor] = []
    handle = inside.blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: start.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with listening(inside, inside.points, everywhere) as heard:
        logits = model(input_ids=IDS, use_cache=False).logits
    handle.remove()
    torch.testing.assert_close(read_out(inside, heard["block", 1]), logits.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(heard["block", 0], start[0].flatten(0, 1))
    if points == ALL:
        torch.testing.assert_close(heard["block", 0] + heard["attention", 1], heard["middle", 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(heard["middle", 1] + heard["mlp", 1], heard["block", 1], rtol=1e-5, atol=1e-5)
    with entering(inside, 0, heard["block", 0].view(2, 5, -1)):  # from the first block on: the same model
        torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, logits, rtol=0, atol=0)  # left as it was


def test_blocks_are_given_back_after_an_error():
    model, _ = family("llama")
    inside = anatomy(model)
    with pytest.raises(RuntimeError), entering(inside, 1, torch.zeros(1, 1, 3)):  # width 3: no such stream
        model(input_ids=IDS[:1, :1], use_cache=False)
    assert all("forward" not in block.__dict__ for block in inside.blocks)


def test_a_model_that_adds_something_after_its_last_block_is_not_read():
    model, _ = family("llama")
    extra = torch.nn.Parameter(torch.randn(5, 61))
    model.lm_head.register_forward_hook(lambda _, args, out: out + extra[: out.shape[-2]] * out.shape[-2])
    with pytest.raises(NotMeasured, match="LlamaForCausalLM are not made from its last block"):
        anatomy(model)


@torch.no_grad()
def toy_streams():
    model, ids = toys.llama(), torch.tensor([toys.X[0]])
    inside = anatomy(model)
    with listening(inside, POINTS, torch.ones_like(ids, dtype=torch.bool)) as heard:
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    return inside, heard, out


@torch.no_grad()
def test_golden_lens_and_the_norm_that_must_not_be_taken_twice():
    """hidden_states[-1] of Hugging Face has been through the final norm; ours has not, and reads as the logits."""
    expected = golden.load("interp")
    inside, heard, out = toy_streams()
    final = out.logits[0].log_softmax(-1)
    streams = [out.hidden_states[0][0], *(heard["block", layer] for layer in range(3))]
    read = [read_out(inside, stream) for stream in streams]
    torch.testing.assert_close(read[-1], out.logits[0], rtol=1e-6, atol=1e-6)
    kl = [float((final.exp() * (final - one.log_softmax(-1))).sum(-1).mean()) for one in read]
    assert kl == pytest.approx(expected["logit_lens_KL_final_to_layer_mean_over_positions"], abs=2e-5)
    targets = torch.tensor(toys.X[0][1:])
    ranks = [(one[:-1] > one[:-1].gather(-1, targets[:, None])).sum(-1).double().mean().item() for one in read]
    assert [rank + 1 for rank in ranks] == pytest.approx(expected["mean_rank_of_next_token_per_layer"])  # from 1 there
    twice = read_out(inside, out.hidden_states[-1][0])
    error = float((twice - out.logits[0]).abs().max())
    assert error == pytest.approx(expected["double_norm_trap_max_abs_logit_error"], abs=2e-5)
    assert error > 0.1


def test_golden_readouts_of_all_four_points():
    expected = golden.load("adversarial_perspective")
    inside, heard, _ = toy_streams()
    names = {"block": "block", "attention": "attention", "middle": "inter_res", "mlp": "mlp"}
    for row in expected["logit_lens_logits_last_position"]:
        for point, name in names.items():
            with torch.no_grad():
                logits = read_out(inside, heard[point, row["layer"]])[-1]
            assert logits[expected["option_ids"]].tolist() == pytest.approx(row[name], **toys.NEAR)


def tables_of(subject, data, *needs, partner=None):
    plan = Plan()
    for stream in data:
        plan.add(stream, needs)
    return measure(subject, data, plan, partner=None if partner is None else Partner(lambda: partner))


LENS = Needs("lens", columns=("logp:block", "rank:block", "argmax:all"))


def test_the_lens_table_against_an_obvious_loop(tiny):
    """One text at a time, no padding, the library's own hidden states; the last layer is the token table."""
    data = small_data()
    found = tables_of(tiny, data, LENS, Needs("tokens", columns=("rank",)))
    lens, own = found.tables["forget", "lens", "answer"], found.tables["forget", "tokens", "answer"]
    assert lens.ids == own.ids
    norm, head = tiny.model.model.norm, tiny.model.lm_head
    logp, rank, argmax = (lens.wide(f"{kind}:block") for kind in ("logp", "rank", "argmax"))
    np.testing.assert_allclose(logp[:, -1], own.ragged("logp")[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rank[:, -1], own.ragged("rank")[0])
    np.testing.assert_array_equal(argmax[:, -1], own.ragged("argmax")[0])
    np.testing.assert_array_equal(lens.ragged("argmax")[0], own.ragged("argmax")[0])
    assert logp.dtype == np.float32
    at = 0
    for example, tokens in zip(data["forget"].examples, own.rows("token"), strict=True):
        text = f"{example.prompt} {example.answer}{tiny.tokenizer.eos_token}"
        ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            first = tiny.model(input_ids=ids, output_hidden_states=True).hidden_states[1]  # after the first of two
            expected = head(norm(first))[0].log_softmax(-1)
        for j, token in enumerate(tokens.tolist()):
            place = ids.shape[1] - len(tokens) + j - 1
            assert logp[at + j, 0] == pytest.approx(float(expected[place, token]), abs=1e-4)
            assert rank[at + j, 0] == int((expected[place] > expected[place, token]).sum())
            assert argmax[at + j, 0] == (rank[at + j, 0] == 0)
        at += len(tokens)
    assert {f"argmax:{point}" for point in POINTS} <= set(lens.arrow.column_names)


def test_a_head_that_says_nothing_is_uniform_at_every_layer(tiny):
    with torch.no_grad():
        tiny.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(tiny.model.lm_head.weight))
    table = tables_of(tiny, small_data(), LENS).tables["forget", "lens", "answer"]
    np.testing.assert_allclose(table.wide("logp:block"), -math.log(tiny.model.config.vocab_size), rtol=1e-6)


def test_a_foreign_head_reads_the_same_stream(tiny):
    """With the original's head a model whose head alone differs reads as the original does."""
    broken = clone(tiny)
    with torch.no_grad():
        broken.model.lm_head.weight = torch.nn.Parameter(tiny.model.lm_head.weight.flip(0))
    need = replace(LENS, variant="answer#head=original")
    key = ("forget", "lens", "answer#head=original")
    mine, theirs = (tables_of(one, small_data(), need, partner=tiny).tables[key] for one in (broken, tiny))
    np.testing.assert_allclose(mine.wide("logp:block"), theirs.wide("logp:block"), rtol=1e-6)
    assert not np.allclose(mine.ragged("logp")[0], theirs.ragged("logp")[0])
    missing = tables_of(broken, small_data(), need).missing[key]
    assert missing == "the model before the removal was not given"
    other = tiny_subject(family="gpt2")
    reason = tables_of(broken, small_data(), need, partner=other).missing[key]
    assert "built differently: 2 blocks" in reason
    assert "(gpt2); this one: 2 blocks" in reason


@pytest.mark.parametrize(("instrument", "setting"), [("lens", "head=mine"), ("states", "at=first")])
def test_a_setting_nobody_knows_is_an_error(tiny, instrument, setting):
    with pytest.raises(RecipeError, match=setting.partition("=")[2]):
        tables_of(tiny, small_data(), Needs(instrument, variant=f"answer#{setting}", columns=()))


def test_a_column_nobody_knows_is_an_error(tiny):
    with pytest.raises(RecipeError, match="entropy"):
        tables_of(tiny, small_data(), Needs("lens", columns=("entropy:block",)))


STATES = [Needs("states", variant=f"answer#at={at}", columns=("states",)) for at in ("last", "prompt", "mean")]


def test_states_against_the_library(tiny):
    """Two layers: the embedding aside, hidden_states[1] is after the first block; the second is before the norm."""
    data = small_data()
    found = tables_of(tiny, data, *STATES, Needs("tokens"))
    own = found.tables["forget", "tokens", "answer"]
    last, prompt, mean = (found.tables["forget", "states", need.variant] for need in STATES)
    for i, example in enumerate(data["forget"].examples):
        text = f"{example.prompt} {example.answer}{tiny.tokenizer.eos_token}"
        ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = tiny.model(input_ids=ids, output_hidden_states=True).hidden_states
        n = len(own.rows("token")[i])
        for table, expected in (
            (last, [one[0, -1] for one in hidden]), (prompt, [one[0, -n - 1] for one in hidden]),
            (mean, [one[0, -n:].mean(0) for one in hidden]),
        ):
            stream = torch.from_numpy(table.rows("states")[i].copy()).view(2, -1)
            torch.testing.assert_close(stream[0], expected[1], rtol=1e-4, atol=1e-5)
            if table is not mean:
                torch.testing.assert_close(tiny.model.model.norm(stream[1]), expected[2], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(last.rows("token")[i], own.rows("token")[i])
    assert last.column("num_layers").tolist() == [2] * len(last)
    assert last.texts("subject")[0] == f"forget: {last.ids[0]}"


def test_company_and_padding_do_not_matter(tiny):
    """The shortest text alone is what it is beside longer ones, at every layer and place."""
    data = small_data()
    texts = data["forget"].examples
    short = min(texts, key=lambda example: len(example.prompt + example.answer))
    alone = Data(forget=replace(data["forget"], examples=(short,)))
    for need, columns in ((LENS, ["logp:block", "rank:block", "argmax:mlp"]), *((one, ["states"]) for one in STATES)):
        key = ("forget", need.instrument, need.variant)
        one, all_ = (tables_of(tiny, given, need).tables[key] for given in (alone, data))
        for column in columns:
            np.testing.assert_allclose(one.rows(column)[0], all_.rows(column)[all_.ids.index(short.id)], atol=1e-5)


def test_an_adapter_is_read_as_the_model_it_is(tiny):
    """LoRA starts as the model without it: the same table, by the blocks inside the wrapper."""
    wrapped = replace(tiny, model=lora(clone(tiny).model, rank=2).model)
    key = ("forget", "lens", "answer")
    mine, plain = (tables_of(one, small_data(), LENS).tables[key] for one in (wrapped, tiny))
    np.testing.assert_allclose(mine.wide("logp:block"), plain.wide("logp:block"), rtol=1e-5)
    assert set(mine.arrow.column_names) == set(plain.arrow.column_names)
