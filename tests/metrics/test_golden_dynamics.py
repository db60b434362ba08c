"""Golden values of memorization dynamics and of exposure: formulas, and metrics on tables made of them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from expunge.data.tokenise import Encoded
from expunge.measure.tables import Table, Tables
from expunge.measure.tokens import measure_tokens, token_columns
from expunge.metrics.discoverable import (
    GREEDY,
    common_prefix,
    discoverable_extraction,
    log10_samples_needed,
    np_extraction,
    prob_within,
    samples_needed,
    token_match,
)
from expunge.metrics.exposure import exposure_of, rank_of
from expunge.metrics.memorization import counterfactual_memorization, memorization_accuracy
from support import golden
from support.bigram import bigram
from support.metric_tables import tables, token_table

CLOSE = {"abs": 1e-8}


def case(name: str, file: str = "dynamics"):
    found = {one["id"]: one for one in golden.load(file)["cases"]}[name]
    return found["inputs"], found["expected"]


def test_extraction_within_some_samples():
    given, expected = case("np_extraction")
    logp = math.fsum(given["suffix_logprobs"])
    assert math.exp(logp) == pytest.approx(expected["p_z"], **CLOSE)
    within = [float(prob_within([logp], num)[0]) for num in given["n"]]
    assert within == pytest.approx(expected["prob_within_n"], **CLOSE)
    assert [float(samples_needed([logp], prob)[0]) for prob in given["p"]] == expected["n_needed"]
    tiny = expected["log10_n_for_tiny"]
    assert log10_samples_needed([tiny["log_pz"]], tiny["p"])[0] == pytest.approx(tiny["log10_n"], **CLOSE)
    column = pa.array([given["suffix_logprobs"]], type=pa.list_(pa.float64()))
    plain = token_table("logp", [("a", given["suffix_logprobs"])])
    table = tables(Table(plain.arrow.append_column("scheme:1.0:0:1.0", column)))
    for prob, needed in zip(given["p"], expected["n_needed"], strict=True):
        for num in (needed - 1, needed):
            if num:
                found = np_extraction(table, num=num, prob=prob, prefix=0, suffix=4, top_k=0)
                assert found.value == float(num == needed)


def test_the_scheme_of_the_token_table():
    """The table model says the golden logits after token 0; tokens 0 and 1 lie in the top 2, 2 and 3 outside."""
    given, expected = case("decoding_scheme")
    column = f"scheme:{given['temperature']}:{given['k']}:1.0"
    texts = [Encoded(str(t), 0, np.array([0, t]), np.array([False, True]), np.zeros(2, dtype=bool)) for t in range(4)]
    rows = measure_tokens(bigram([given["logits"]] * 4), texts, (column,))
    probs = [math.exp(float(row[column][0])) for row in rows]
    assert probs == pytest.approx([expected["probs"].get(str(t), 0.0) for t in range(4)], abs=1e-6)  # float32
    assert int(rows[0]["greedy"][0]) == expected["greedy_token"]


def test_discoverable():
    given, expected = case("discoverable")
    pairs = list(zip(given["generated"], given["truth"], strict=True))
    hits = [(str(i), [a == b for a, b in zip(*pair, strict=True)]) for i, pair in enumerate(pairs)]
    found = discoverable_extraction(tables(token_table("argmax", hits)), prefix=0, suffix=4)
    assert found.value == pytest.approx(expected["rate"], **CLOSE)
    begun = common_prefix(tables(token_table("argmax", hits)), prefix=0, suffix=4)
    assert list(begun.per_example.values()) == pytest.approx(expected["lcp"], **CLOSE)
    matches = [np.array(row) for _, row in hits]
    said = Table.of({"id": [key for key, _ in hits], "item": [0] * len(hits), "match": matches})
    where = ("this", "forget", "sampled", GREEDY.format(prefix=0, suffix=4))
    met = token_match(Tables({where: said}, "forget", {}), prefix=0, suffix=4)
    assert list(met.per_example.values()) == pytest.approx(expected["hamming"], **CLOSE)


def test_exact_memorization_of_a_corpus():
    """Ratio of sums over tokens, mean of ratios over examples: the golden file has both."""
    given, expected = case("exact_memorization")
    logits = torch.tensor(given["logits"], dtype=torch.float64)
    rows = []
    for i, (ids, mask) in enumerate(zip(given["input_ids"], given["attention_mask"], strict=True)):
        length = sum(mask)
        rows.append((str(i), [int(logits[i, t].argmax()) == ids[t + 1] for t in range(length - 1)]))
    table = tables(token_table("argmax", rows))
    found = memorization_accuracy(table, over="tokens")
    assert found.value == pytest.approx(expected["M"], **CLOSE)
    assert found.ci is not None
    assert found.ci[0] <= found.value <= found.ci[1]
    assert memorization_accuracy(table).value == pytest.approx(expected["mean_of_row_ratios"], **CLOSE)


def test_counterfactual():
    given, expected = case("counterfactual")
    memory, error = counterfactual_memorization(given["accuracy_model_by_example"], given["member"])
    assert memory.tolist() == pytest.approx(expected["mem"], **CLOSE)
    assert (error > 0).all()


def test_exposure():
    given, expected = case("exposure", "privacy_survey")
    others = [value for value in given["log_perplexities"] if value != given["canary"]]
    assert rank_of(given["canary"], others) == expected["rank"]
    assert exposure_of(given["canary"], others) == pytest.approx(expected["exposure"], **CLOSE)
    assert 1 / rank_of(given["canary"], others) == pytest.approx(expected["reciprocal_rank"], **CLOSE)
    assert exposure_of(min(others) - 1, others) == pytest.approx(expected["max_exposure"], **CLOSE)


def test_a_corpus_of_bigrams():
    """Closed form: of the model that always says the most frequent follower, M = sum_v max_w count(v, w) / all."""
    texts = [[0, 1, 2, 0, 1, 0], [0, 1, 0, 2], [2, 0, 2, 0, 1]]
    counts = np.zeros((3, 3))
    for text in texts:
        np.add.at(counts, (text[:-1], text[1:]), 1)
    encoded = [
        Encoded(str(i), 0, np.array(text), np.ones(len(text), dtype=bool), np.zeros(len(text), dtype=bool))
        for i, text in enumerate(texts)
    ]
    rows = measure_tokens(bigram(np.log(counts + 1e-9).tolist()), encoded, ())
    table = Table.of(token_columns(encoded, rows, [1] * 3))
    found = memorization_accuracy(Tables({("this", "forget", "tokens", "answer"): table}, "forget", {}), over="tokens")
    assert found.value == pytest.approx(counts.max(1).sum() / counts.sum())
    assert found.n == 3
