"""Reading at inner blocks: the lens is the model's own, in every family, and opens what hides behind the last block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from expunge.attacks.logit_lens import logit_lens, pick, readable
from expunge.attacks.parts import shallow
from expunge.attacks.shown import asked_like
from expunge.attacks.tuned_lens import tuned_lens
from expunge.data.tokenise import prompt_tokens
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.forget import forget
from expunge.measure.hidden import read_out
from expunge.measure.plan import measure
from expunge.measure.samples import continue_greedily
from expunge.models import blocks, clone, weights_hash
from expunge.registry import bind, term
from expunge.run import Run
from expunge.scopes.weights import lora
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Cost, Data, Stream, Subject
from support.hidden import behind, deep
from support.learned import knows, short_data

SIZES = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
GROUPED = {**SMALL, "num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "GPT2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "GPTNeoX": SMALL,
    "GPTNeo": {
        "hidden_size": 16, "num_layers": 3, "num_heads": 2, "max_position_embeddings": 64,
        "attention_types": [[["local"], 1], [["global"], 2]],
    },
    "OPT": {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 8,
        "max_position_embeddings": 64,
    },
    "Gemma2": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 3},
}
IDS = torch.arange(12).reshape(2, 6)


def of_family(name: str) -> Subject:
    import transformers as hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = getattr(hf, f"{name}Config")(**SIZES, **FAMILIES[name])
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return replace(tiny_subject(), model=model)


@torch.no_grad()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(input_ids=IDS, use_cache=False).logits


def lenses(subject: Subject, layers: Any) -> list[Subject]:
    return list(logit_lens(subject, short_data(), Run(), layers=layers))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lens_of_every_family(name):
    """After block l it is head(norm(h_l)), after the last the model itself; answers need no more blocks than that."""
    subject = of_family(name)
    inside, _ = readable(subject, [0], "layers", 1)
    before = subject.model.config.to_dict()
    made = lenses(subject, [0, 1, -1])
    for layer, lens in enumerate(made):
        assert len(blocks(lens.model)) == lens.model.config.num_hidden_layers == layer + 1
        with torch.no_grad():
            hidden = lens.model(input_ids=IDS[:, :4], use_cache=False).logits[0]
            expected = read_out(inside.anatomy, inside.states[layer])
        torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
        starts = prompt_tokens(subject, ["Who is it?", "It"])
        said = continue_greedily(lens, starts, [6, 6], frozenset())
        row = torch.tensor([[*starts[0].tolist(), *said[0]]])  # all at once, without a cache
        with torch.no_grad():
            chosen = lens.model(input_ids=row, use_cache=False).logits[0].argmax(-1)
        assert said[0] == chosen[len(starts[0]) - 1 : -1].tolist()
    assert torch.equal(logits(made[-1]), logits(subject))
    assert not torch.allclose(logits(made[0]), logits(subject))
    assert subject.model.config.to_dict() == before
    assert weights_hash(made[-1]) == weights_hash(subject)


def test_nothing_is_copied():
    subject = tiny_subject()
    (lens,) = lenses(subject, None)
    own = {tensor.data_ptr() for tensor in subject.model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in lens.model.state_dict().values()} <= own
    assert lens.lineage[-1].cost == Cost(queries=12)
    assert dict(lens.lineage[-1].hyper) == {"layer": 0}


@pytest.mark.parametrize(("num", "most", "expected"), [
    (2, 3, [0]), (3, 3, [0, 1]), (4, 3, [0, 1, 2]), (12, 3, [3, 6, 10]), (32, 4, [7, 15, 22, 30]), (32, 1, [30]),
])
def test_blocks_are_spread_evenly_and_end_before_the_last(num, most, expected):
    assert pick(None, num, "layers", most) == expected
    assert pick("all", num, "layers", most) == list(range(num - 1))
    assert pick([-1, num - 1, 0], num, "layers", most) == [num - 1, 0]


def test_wrong_numbers_and_models_that_do_not_fit():
    with pytest.raises(RecipeError, match=r"logit_lens\.layers: block 2; this model has blocks 0\.\.1"):
        lenses(tiny_subject(), [2])
    with pytest.raises(RecipeError, match="an empty list"):
        lenses(tiny_subject(), [])
    with pytest.raises(DoesNotFit, match="a single block"):
        lenses(lenses(tiny_subject(), [0])[0], "all")
    for family in ("bert", "bart", "distilbert"):
        with pytest.raises(DoesNotFit, match="for causal models"):
            lenses(tiny_subject(family=family), None)
    added = clone(tiny_subject())
    added.model.lm_head.register_forward_hook(lambda _, __, out: out * out.shape[-2])
    with pytest.raises(DoesNotFit, match="not made from its last block's output alone"):
        lenses(added, None)


def test_an_adapter_is_read_with_its_base():
    subject = tiny_subject()
    movable = lora(clone(subject).model, rank=2)
    with torch.no_grad():
        for parameter in movable.parameters.values():
            parameter.add_(0.05)
    adapted = replace(subject, model=movable.model)
    flags, before = [p.requires_grad for p in adapted.model.parameters()], weights_hash(adapted)
    inner, whole = lenses(adapted, [0, -1])
    torch.testing.assert_close(logits(whole), logits(adapted), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(inner), logits(lenses(subject, [0])[0]), atol=1e-3)
    assert [p.requires_grad for p in adapted.model.parameters()] == flags
    assert weights_hash(adapted) == before


# -- the tuned lens --------------------------------------------------------------------------------------------
def tuned(subject: Subject, run: Run | None = None, **hyper: Any) -> Subject:
    (made,) = tuned_lens(subject, short_data(), run or Run(), **{"layers": [0], "steps": 2, **hyper})
    return made


def test_a_translator_that_learns_nothing_is_the_logit_lens():
    """Bit for bit: h + A h / D + s b with A and b still 0."""
    subject = tiny_subject()
    assert torch.equal(logits(tuned(subject, lr=0.0)), logits(lenses(subject, [0])[0]))


def test_a_translator_moves_alone_and_is_part_of_the_state():
    subject = tiny_subject()
    flags = [p.requires_grad for p in subject.model.parameters()]
    made, lens = tuned(subject), lenses(subject, [0])[0]
    new, old = made.model.state_dict(), lens.model.state_dict()
    assert {name.rsplit(".", 1)[1] for name in new.keys() - old.keys()} == {"matrix", "offset", "size"}
    assert all(new[name].data_ptr() == tensor.data_ptr() for name, tensor in old.items())
    assert weights_hash(made) != weights_hash(lens)
    assert not any(p.requires_grad for p in made.model.parameters())
    assert [p.requires_grad for p in subject.model.parameters()] == flags
    assert all(p.grad is None for p in subject.model.parameters())
    copied = clone(made)  # its hook reads the copy's own translator
    with torch.no_grad():
        next(p for name, p in copied.model.named_parameters() if name.endswith("offset")).add_(1.0)
    assert not torch.allclose(logits(copied), logits(made))


def test_what_a_tuned_lens_costs():
    """12 retain texts read once by the whole model; 3 steps of 4 texts each by the short one."""
    cost = tuned(tiny_subject(), steps=3, batch_size=4).lineage[-1].cost
    assert (cost.steps, cost.forwards, cost.backwards, cost.queries) == (3, 12 + 12, 12, 0)
    read = asked_like(tiny_subject(), short_data()["retain"].examples)
    assert cost.tokens == 2 * sum(len(one) for one in read)  # three steps of four: once here, once by the target
    assert cost.seconds == 0


@torch.no_grad()
def divergence(now: Subject, ref: Subject) -> float:
    """On questions that no lens was trained on."""
    texts = prompt_tokens(ref, [one.prompt for one in short_data()["holdout"].examples])
    gaps = []
    for text in texts:
        ids = torch.from_numpy(text).unsqueeze(0)
        p, q = (one.model(input_ids=ids, use_cache=False).logits.log_softmax(-1) for one in (ref, now))
        gaps.append((p.exp() * (p - q)).sum(-1).mean())
    return float(torch.stack(gaps).mean())


def test_a_tuned_lens_says_what_its_target_says():
    """Nearer to the model itself, or to the original, than the logit lens is, on texts it was not trained on."""
    original = tiny_subject(seed=5)
    subject = replace(tiny_subject(), helpers={"original": original})
    lens = lenses(subject, [0])[0]
    for target, whole in (("own", subject), ("original", original)):
        made = tuned(subject, steps=30, target=target)
        assert divergence(made, whole) < 0.8 * divergence(lens, whole), target
        assert made.helpers == subject.helpers


def test_what_a_tuned_lens_learns_on():
    data, subject = short_data(), tiny_subject()
    with pytest.raises(RecipeError, match=r"tuned_lens\.on: the stream 'forget' is to be forgotten"):
        tuned(subject, on="forget")
    with pytest.raises(DataError, match="did you mean 'retain'"):
        tuned(subject, on="retian")
    with pytest.raises(DoesNotFit, match="no text that is not to be forgotten"):
        list(tuned_lens(subject, Data(forget=data["forget"]), Run()))
    with pytest.raises(DoesNotFit, match="before the removal was not given"):
        tuned(subject, target="original")
    anchor = Data(forget=data["forget"], generic=Stream("generic", "anchor", data["holdout"].examples))
    (made,) = tuned_lens(subject, anchor, Run(), steps=1)
    assert made.lineage[-1].hyper["on"] == "generic"
    assert not made.exposed


def test_a_tuned_lens_goes_on_from_its_state(tmp_path):
    whole = tuned(tiny_subject(), Run(tmp_path, save_every=1), steps=4)
    assert (tmp_path / "state" / "stage00.00-step0000004").is_dir()
    again = tuned(tiny_subject(), Run(tmp_path, resume=True), steps=4)
    assert weights_hash(again) == weights_hash(whole)


def test_translators_stand_on_each_other():
    first = tuned(tiny_subject())
    second = tuned(first)
    names = {name.split(".")[-2] for name, _ in second.model.named_parameters() if "translator" in name}
    assert names == {"translator_0", "translator_1"}
    assert torch.equal(logits(tuned(first, lr=0.0)), logits(first))
    assert torch.equal(logits(shallow(second)), logits(second))


# -- what hides behind the last block ----------------------------------------------------------------------------
def scores(subject: Subject, on: str = "forget") -> dict[str, float]:
    names = ("exact_memorization", "probability", "rouge")
    metrics, data = [bind("metric", name) for name in names], Data({on: short_data()[on]})
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    return {name: float(found[on, name].value or 0) for name in names}


def test_both_lenses_open_what_a_last_block_hides():
    """Two blocks know every answer and a third garbles all that is said, retain answers too.

    Not one metric tells the logit lens from the model that knew. A tuned lens that learns to say what the garbled model
    says opens nothing; one that learns what the original says of the retain texts opens the forget answers.
    """
    original = knows("forget", "retain")
    hidden, twin = (replace(behind(one), helpers={"original": original}) for one in (original, knows("retain")))
    said = scores(hidden)
    assert said["exact_memorization"] == said["rouge"] == 0.0
    assert said["probability"] < 0.05
    assert scores(lenses(hidden, [1])[0]) == pytest.approx(scores(original))
    assert scores(lenses(twin, [1])[0]) == pytest.approx(scores(knows("retain")))
    assert scores(tuned(hidden, layers=[1], steps=30))["exact_memorization"] == 0.0
    opened, control = (scores(tuned(one, layers=[1], steps=30, target="original")) for one in (hidden, twin))
    assert opened["exact_memorization"] > 0.9
    assert control["exact_memorization"] == 0.0
    assert opened["probability"] > 2 * control["probability"]


@pytest.mark.slow
def test_the_lenses_open_an_unlearning_of_the_last_block():
    """NPO that moves the last of four blocks alone: forget answers gone, retain answers kept, and read one block below.

    Measured: 1.00 of the answers come back under both lenses (probability 0.15 -> 0.98), 0 from the twin (0.27).
    """
    original, twin = deep("forget", "retain"), deep("retain")
    terms = [term("npo", on="forget", beta=0.5), term("nll", on="retain", weight=3.0)]
    stage = forget(
        terms=terms, scope={"use": "layers", "layers": [-1]}, steps=100, lr=3e-3, batch_size=12,
        optimizer={"use": "adamw", "weight_decay": 0.0},
    )
    after = replace(stage(clone(original), short_data(), Run()), lineage=())
    assert scores(after)["exact_memorization"] == 0.0
    assert scores(after)["probability"] < scores(twin)["probability"]
    assert scores(after, "retain")["exact_memorization"] > 0.9
    for attack in (lambda one: lenses(one, [-2])[0], lambda one: tuned(one, layers=None, steps=100)):
        opened, control = scores(attack(after)), scores(attack(twin))
        assert opened["exact_memorization"] > 0.9
        assert control["exact_memorization"] < 0.1
        assert opened["probability"] > 0.9 > 0.4 > control["probability"]
