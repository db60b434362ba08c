"""The gradient instrument against an obvious loop, and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.errors import RecipeError
from expunge.measure.plan import Plan, measure
from expunge.models import clone
from expunge.registry import bind
from expunge.testing import tiny_classes, tiny_data, tiny_subject
from expunge.types import Data, Needs
from support.bigram import bigram, encoded
from support.ranks import run_ranks


def norms(subject, data, setting: str = "p=2", stream: str = "forget"):
    plan = Plan()
    plan.add(stream, [Needs("grads", variant=f"answer#{setting}", columns=("norm",))])
    found = measure(subject, data, plan)
    assert found.missing == {}
    table = found.tables[stream, "grads", f"answer#{setting}"]
    return dict(zip(table.ids, table.column("norm").tolist(), strict=True)), found


def data_of(num: int = 3) -> Data:
    return Data(forget=tiny_data(num)["forget"])


@pytest.mark.parametrize(("setting", "p"), [("p=1", 1.0), ("p=2", 2.0), ("p=inf", float("inf"))])
def test_against_the_library_s_own_loss(tiny, setting, p):
    """The model's own loss on the same labels, one text at a time, and the norms of `.grad`."""
    from expunge.data.tokenise import collate, encode, texts_of

    data = data_of()
    found, _ = norms(tiny, data, setting)
    for one in encode(tiny, texts_of(data["forget"])):
        model, batch = clone(tiny).model, collate([one])
        model(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        wanted = [weight.grad.norm(p) for weight in model.parameters()]
        assert found[one.id] == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-4)


def test_by_hand():
    """Table logits 0, two tokens: after 0 comes 1, p = 1/2, so d NLL / d row 0 = (1/2, -1/2): 1, 0.7071, 0.5.

    The identity head is reached as well, by table^T (p - onehot) = 0. The mean over the two tensors is half of that.
    """
    from expunge.measure.desk import Desk, Job
    from expunge.measure.grads import grads

    subject, rows = bigram([[0.0, 0.0], [0.0, 0.0]]), encoded([[0, 1]])
    for p, norm in (("1", 1.0), ("2", 0.5**0.5), ("inf", 0.5)):
        job = Job(("forget", "grads", f"answer#p={p}"), [], rows, frozenset({"norm"}))
        (table,) = grads(subject, [job], Desk("cpu", Data()))
        assert table.column("norm").tolist() == pytest.approx([norm / 2])
    assert subject.model.head.weight.requires_grad is False


def test_the_model_is_as_it_was(tiny):
    """Gradients under way, frozen weights and the training mode outlive the measurement, and no weight moves."""
    model = tiny.model
    model.train()
    model.lm_head.eval()
    first, second = list(model.parameters())[:2]
    first.grad, second.requires_grad = torch.full_like(first, 3.0), False
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen, _ = norms(tiny, data_of())
    assert torch.equal(first.grad, torch.full_like(first, 3.0))
    assert sum(weight.grad is not None for weight in model.parameters()) == 1
    assert [weight.requires_grad for weight in (first, second)] == [True, False]
    assert (model.training, model.model.training, model.lm_head.training) == (True, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    second.requires_grad = True
    assert norms(tiny, data_of())[0] == frozen  # frozen weights count as well


def test_an_adapter_is_seen_through(tiny):
    """With LoRA on (and B not 0) the norms are those of the merged model; its flags stay."""
    model = bind("scope", {"use": "lora", "rank": 2})(tiny.model).model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape))
    flags = [weight.requires_grad for weight in model.parameters()]
    found, _ = norms(replace(tiny, model=model), data_of())
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert any(flags)
    assert not all(flags)
    merged, _ = norms(replace(tiny, model=model.merge_and_unload()), data_of())
    assert found == pytest.approx(merged, rel=1e-4)


def test_one_text_at_a_time_whatever_stands_beside_it(tiny):
    """The norms of three texts are those of each alone; the bill counts one forward and one backward a text."""
    together, measured = norms(tiny, data_of(3))
    for example in data_of(3)["forget"].examples:
        alone = Data(forget=replace(data_of()["forget"], examples=(example,)))
        assert norms(tiny, alone)[0][example.id] == together[example.id]
    assert (measured.forwards, measured.backwards) == (3, 3)
    assert measured.tokens > 0


@pytest.mark.parametrize(("family", "data"), [
    ("t5", tiny_data(2)), ("bert", tiny_data(2)), ("distilbert", tiny_classes(2)),
])
def test_every_task(family, data):
    found, _ = norms(tiny_subject(seed=1, family=family), Data(forget=data["forget"]))
    assert len(found) == 2
    assert all(0 < norm < float("inf") for norm in found.values())


def test_dropout_is_off():
    """A model in training mode drops nothing while it is measured: the norms are those of the model at rest."""
    subject = tiny_subject(seed=1, family="bert")
    assert subject.model.config.hidden_dropout_prob > 0
    rest, _ = norms(subject, data_of())
    subject.model.train()
    assert norms(subject, data_of())[0] == rest


def test_a_wrong_norm_is_refused(tiny):
    with pytest.raises(RecipeError, match="got '3'"):
        norms(tiny, data_of(), "p=3")


def test_whole_numbers_have_no_gradient(tiny):
    for weight in tiny.model.parameters():
        weight.requires_grad_(False)
        weight.data = weight.data.to(torch.int8)
    plan = Plan()
    plan.add("forget", [Needs("grads", variant="answer#p=2", columns=("norm",))])
    assert "no gradient" in measure(tiny, data_of(), plan).missing["forget", "grads", "answer#p=2"]


PROGRAM = '''
import sys
from pathlib import Path
from expunge import dist
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.scoring import plan_for
from expunge.testing import tiny_data, tiny_subject

dist.setup("cpu")
import torch
torch.set_num_threads(1)
data = tiny_data(5, 3, 4)
names = ("membership_gradient", "membership_neighbourhood", "membership_without_model")
metrics = [bind("metric", spec) for spec in (*names, {"use": "membership_recall", "shots": 2})]
measured = measure(tiny_subject(seed=1), data, plan_for(metrics, data))
assert not measured.missing, measured.missing
for (stream, instrument, variant), table in measured.tables.items():
    table.write(Path(sys.argv[1]) / f"{stream}.{instrument}.{variant.replace(':', '_')}.{dist.rank()}.parquet")
'''


@pytest.mark.slow
def test_two_ranks_make_the_tables_of_one(tmp_path):
    from expunge.measure.tables import Table

    one, two = run_ranks(tmp_path / "one", PROGRAM, 1), run_ranks(tmp_path / "two", PROGRAM, 2)
    names = sorted(path.name for path in one.glob("*.parquet"))
    assert len(names) == 10
    for name in names:
        for rank in (0, 1):
            other = two / name.replace(".0.parquet", f".{rank}.parquet")
            assert Table.read(other).arrow.equals(Table.read(one / name).arrow), other.name
