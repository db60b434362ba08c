"""The token table against a slow obvious loop: one example at a time, the whole softmax, no packing."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

import expunge.measure.tables as tables_module
import expunge.measure.tokens as instrument
from expunge.data.tokenise import encode, texts_of
from expunge.measure.packed import families
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import Table
from expunge.measure.tokens import COLUMNS, measure_tokens
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Needs
from support.streams import small_data


def obvious(subject, encoded):
    """Every column of one text, position by position, in float64."""
    with torch.no_grad():
        logits = subject.model(torch.from_numpy(encoded.tokens).unsqueeze(0)).logits[0].double()
    rows = {name: [] for name in COLUMNS}
    for t in range(1, len(encoded)):
        if not encoded.counted[t]:
            continue
        p = torch.softmax(logits[t - 1], -1)
        token = int(encoded.tokens[t])
        rows["token"].append(token)
        rows["logp"].append(float(p[token].log()))
        rows["greedy"].append(int(p.argmax()))
        rows["argmax"].append(int(p.argmax()) == token)
        rows["rank"].append(int((p > p[token]).sum()))
        mean = float((p * p.log()).sum())
        rows["mean"].append(mean)
        rows["var"].append(float((p * (p.log() - mean) ** 2).sum()))
    return rows


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def subject(request):
    return tiny_subject(seed=1, family=request.param)


@pytest.fixture
def encoded(subject):
    data = small_data()
    plain = texts_of(data["forget"])[:2]
    return encode(subject, [*texts_of(data["retain"]), *texts_of(data["forget"], "perturbed"), *plain])


def test_the_table_equals_the_obvious_loop(subject, encoded):
    rows = measure_tokens(subject, encoded, COLUMNS)
    assert len(rows) == len(encoded)
    for one, row in zip(encoded, rows, strict=True):
        wanted = obvious(subject, one)
        for name in ("token", "greedy", "argmax", "rank"):
            assert row[name].tolist() == wanted[name], name
        for name in ("logp", "mean", "var"):
            np.testing.assert_allclose(row[name], wanted[name], rtol=2e-5, atol=2e-5, err_msg=name)
        assert row["argmax"].tolist() == (row["rank"] == 0).tolist()


def test_the_batch_size_does_not_matter(subject, encoded, monkeypatch):
    whole = measure_tokens(subject, encoded, COLUMNS)
    monkeypatch.setattr(instrument, "BATCH_TOKENS", 1)  # every row alone
    alone = measure_tokens(subject, encoded, COLUMNS)
    for one, other in zip(whole, alone, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_pieces_of_the_vocabulary_pass_do_not_matter(subject, encoded, monkeypatch):
    whole = measure_tokens(subject, encoded, ("mean", "var"))
    monkeypatch.setattr(instrument, "CHUNK", 3)
    for one, other in zip(whole, measure_tokens(subject, encoded, ("mean", "var")), strict=True):
        np.testing.assert_allclose(one["var"], other["var"], rtol=1e-6)


def test_only_what_is_asked_is_measured(subject, encoded):
    assert set(measure_tokens(subject, encoded, ())[0]) == {"token", "logp", "argmax", "greedy"}
    assert "rank" in measure_tokens(subject, encoded, ("rank",))[0]
    assert measure_tokens(subject, [], COLUMNS) == []


def test_a_uniform_model_is_known_in_closed_form():
    """All weights 0: every token has p = 1/V, so logp = -log V, mean = -log V, variance 0, and no token is likelier."""
    subject = tiny_subject()
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.zero_()
    size = subject.model.config.vocab_size
    row = measure_tokens(subject, encode(subject, texts_of(small_data()["forget"])[:1]), COLUMNS)[0]
    np.testing.assert_allclose(row["logp"], -np.log(size), rtol=1e-6)
    np.testing.assert_allclose(row["mean"], -np.log(size), rtol=1e-6)
    np.testing.assert_allclose(row["var"], 0, atol=1e-9)
    assert row["rank"].tolist() == [0] * len(row["rank"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_column_is_made_a_few_rows_at_a_time(encoded, monkeypatch, dtype):
    """No copy of logits has more rows than a chunk, whichever columns are asked for and whoever else asks."""
    subject = tiny_subject(seed=1)
    subject.model.to(dtype)
    columns = (*COLUMNS, "scheme:0.7:5:0.9", "scheme:0:0:1")
    wanted = [frozenset(columns), *[frozenset({"rank"})] * (len(encoded) - 1)]
    whole = instrument.measure_each(subject, encoded, wanted)
    sizes, made = [], instrument._few
    monkeypatch.setattr(instrument, "_few", lambda logits, *rest: sizes.append(len(logits)) or made(logits, *rest))
    monkeypatch.setattr(instrument, "_most_counted", lambda _: 10**6)
    monkeypatch.setattr(instrument, "MOST_LOGITS", 4 * 3 * subject.model.config.vocab_size)
    pieces = instrument.measure_each(subject, encoded, wanted)
    assert max(sizes) == 3
    for one, other in zip(whole, pieces, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_batches_hold_so_many_counted_tokens_as_their_logits_may(encoded):
    units = families(encoded, range(len(encoded)))
    most = 100
    groups = list(instrument._batches(units, encoded, most))
    assert sorted(unit.members for group in groups for unit in group) == sorted(unit.members for unit in units)
    counted = [sum(int(encoded[i].counted.sum()) for unit in group for i in unit.members) for group in groups]
    assert all(size <= most or len(group) == 1 for size, group in zip(counted, groups, strict=True))
    assert max(len(group) for group in groups) > 1
    assert len(groups) > len(list(instrument._batches(units, encoded, 10**6)))


def test_a_large_vocabulary_makes_small_batches(monkeypatch):
    """2**28 bytes hold 2**28 / (4 V) logits of float32, twice as many of a half type, and 256 positions always fit."""
    model = tiny_subject().model
    size = model.get_input_embeddings().weight.shape[0]
    assert instrument._most_counted(model) == 2**28 // (4 * size)
    assert instrument._most_counted(model.to(torch.bfloat16)) == 2**28 // (2 * size)
    monkeypatch.setattr(instrument, "MOST_LOGITS", 1)
    assert instrument._most_counted(model) == 256


@pytest.mark.parametrize("ruin", [float("nan"), float("inf")])
def test_a_ruined_model_has_not_forgotten(ruin):
    """Logits that are not finite say nothing: no metric reads them as probability 0."""
    subject, data = tiny_subject(), small_data()
    with torch.no_grad():
        subject.model.model.norm.weight[0] = ruin
    metrics = [bind("metric", name) for name in ("probability", "memorization_accuracy", "rouge", "truth_ratio")]
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    assert {(one.status, one.reason) for one in found.values()} == {("n/a", "the model's logits are not finite")}


def test_a_probability_of_zero_elsewhere_is_no_ruin():
    """A model may rule out tokens that nobody asks for (logit -inf)."""
    subject, data = tiny_subject(), small_data()
    asked = {int(i) for one in encode(subject, texts_of(data["forget"])) for i in one.tokens}
    never = next(i for i in range(subject.model.config.vocab_size) if i not in asked)

    def rule_out(_, __, output):
        output[..., never] = -torch.inf
        return output

    subject.model.get_output_embeddings().register_forward_hook(rule_out)
    plan = Plan()
    plan.add("forget", [Needs("tokens")])
    measured = measure(subject, data, plan)
    assert not measured.missing
    assert np.isfinite(measured.tables["forget", "tokens", "answer"].ragged("logp")[0]).all()


# -- how tables are kept ------------------------------------------------------------------------------------------
def test_two_writers_of_one_table_do_not_meet(tmp_path, monkeypatch):
    """While the first writes, another process writes the same table and is done."""
    table, path, write = Table.of({"id": ["a"], "item": [0], "logp": [[1.0]]}), tmp_path / "t.parquet", []
    real = tables_module.pq.write_table

    def slow(arrow, aside):
        real(arrow, aside)
        if not write:
            write.append(aside)
            table.write(path)

    monkeypatch.setattr(tables_module.pq, "write_table", slow)
    table.write(path)
    assert [one.name for one in tmp_path.iterdir()] == ["t.parquet"]
    assert Table.read(path).arrow.equals(table.arrow)


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    old, new = tmp_path / "t.1.aa.partial", tmp_path / "t.2.bb.partial"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Table.of({"id": ["a"], "item": [0]}).write(tmp_path / "t.parquet")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["t.2.bb.partial", "t.parquet"]
