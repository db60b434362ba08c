"""Golden values of the membership scores: explicit logits, one text of seven predictions."""

from __future__ import annotations

import zlib

import pytest
import torch

from expunge.metrics.membership_scores import (
    membership_scores,
    neighbourhood_scores,
    recall_scores,
    reference_scores,
)
from expunge.metrics.privleak import privleak_of
from expunge.metrics.separation import auc, tpr_at_fpr
from support.golden import load
from support.membership_tables import token_rows
from support.metric_tables import token_table


@pytest.fixture(scope="module")
def cases():
    return {case["id"]: case for case in load("privacy_survey")["cases"]}


@pytest.fixture(scope="module")
def given(cases):
    return cases["scores"]["inputs"]


@pytest.fixture(scope="module")
def expected(cases):
    return cases["scores"]["expected"]


@pytest.fixture(scope="module")
def table(given):
    """The token table of the text; one of its tokens has id 0, which is no padding."""
    logp = torch.tensor(given["logits"], dtype=torch.float64).log_softmax(-1)
    p, target = logp.exp(), torch.tensor(given["tokens"][1:])
    mean = (p * logp).sum(-1)
    var = (p * (logp - mean.unsqueeze(-1)).square()).sum(-1)
    own = logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    size = len(zlib.compress(given["text"].encode()))
    return token_table("logp", [("a", own.tolist())], zlib=[size], mean=[mean.tolist()], var=[var.tolist()])


def of(values) -> float:
    return pytest.approx(values, abs=1e-8)


def test_scores_of_one_table(table, expected):
    assert 0 < expected["zlib_bytes"] == int(table.column("zlib")[0])
    assert membership_scores(table)["a"] == of(expected["loss"])
    assert membership_scores(table, score="zlib")["a"] == of(expected["zlib"])
    for share, value in expected["min_k"].items():
        assert membership_scores(table, score="min_k", share=float(share))["a"] == of(value)
    for share, value in expected["min_k_pp"].items():
        assert membership_scores(table, score="min_k_plus_plus", share=float(share))["a"] == of(value)


def test_min_k_is_not_the_inverted_one(table, expected):
    """Sorting losses upwards takes the most likely tokens: Max-K, on the other side of the mean."""
    found = membership_scores(table, score="min_k", share=0.4)["a"]
    assert found < expected["loss"] < expected["WRONG_max_k_0_4"]
    assert found == of(expected["min_k"]["0.4"])


def test_scores_of_two_tables(given, expected):
    logp, tokens = expected["token_logp"], given["tokens"][1:]
    own = token_rows([("a", tokens, logp)])
    assert reference_scores(own, token_rows([("a", tokens, given["ref_logprobs"])])).values["a"] == of(expected["ref"])
    neighbours = token_rows([("a", [1, 2, 3], [-nll] * 3) for nll in given["neighbour_mean_nll"]])
    assert neighbourhood_scores(own, neighbours).values["a"] == of(expected["neighbourhood"])
    after = token_rows([("a", [7, *tokens], [-9.0, *[given["cond_mean_ll_given_prefix"]] * len(logp)])])
    assert recall_scores(own, after).values["a"] == of(expected["recall"])


def test_separation(cases):
    given, expected = cases["auc"]["inputs"], cases["auc"]["expected"]
    assert auc(given["member"], given["non"]) == of(expected["auc"])
    found = [tpr_at_fpr(given["member"], given["non"], fpr)[0] for fpr in given["fprs"]]
    assert found == of(expected["tpr_at_fpr"])


def test_privleak(cases):
    given = cases["privleak"]["inputs"]
    assert privleak_of(given["auc_unlearn"], given["auc_retrain"]) == of(cases["privleak"]["expected"]["privleak"])
