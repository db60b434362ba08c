"""The token table against a slow obvious loop: one example at a time, the whole softmax, no packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import expunge.measure.tokens as instrument
from expunge.data.tokenise import encode, texts_of
from expunge.measure.tokens import COLUMNS, measure_tokens
from expunge.testing import tiny_subject
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
