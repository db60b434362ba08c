"""Discoverable and (n, p)-extraction, common prefix and token match: by hand, by loops, and on models that learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import RecipeError
from expunge.measure.plan import measure
from expunge.measure.tables import Table, Tables
from expunge.metrics.discoverable import (
    GREEDY,
    common_prefix,
    discoverable_extraction,
    log10_samples_needed,
    np_extraction,
    prob_within,
    samples_needed,
    token_match,
    verbatim_rouge,
)
from expunge.metrics.memorization import counterfactual_memorization, memorization_accuracy
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from support.learned import knows, short_data
from support.metric_tables import shuffled, tables, token_table

ROWS = [("a", [False, True, True, True]), ("b", [True, True, False, True]), ("c", [True, True])]


def test_by_hand():
    """After 1 token, 2 must come: a recites 2 of 2, b 1 of 2; c is too short."""
    given_rows = tables(token_table("argmax", ROWS))
    found = discoverable_extraction(given_rows, prefix=1, suffix=2)
    assert (found.value, found.per_example, found.ci) == (0.5, {"a": 1.0, "b": 0.0}, clopper_pearson(1, 2))
    assert found.reason == "1 of 3 examples left out: fewer than 1 + 2 counted tokens"
    assert common_prefix(given_rows, prefix=1, suffix=2).per_example == {"a": 1.0, "b": 0.5}
    assert common_prefix(given_rows, prefix=0, suffix=4).per_example == {"a": 0.0, "b": 0.5}
    nothing = discoverable_extraction(given_rows)
    assert (nothing.value, nothing.status) == (None, "n/a")
    assert nothing.reason == "3 of 3 examples left out: fewer than 50 + 50 counted tokens"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 3))
def test_against_obvious_loops(rows, prefix, suffix):
    table = token_table("argmax", [(f"id{k}", row) for k, row in enumerate(rows)])
    exact, shares = {}, {}
    for k, row in enumerate(rows):
        if len(row) >= prefix + suffix:
            part = row[prefix : prefix + suffix]
            exact[f"id{k}"] = float(all(part))
            shares[f"id{k}"] = next((j for j, right in enumerate(part) if not right), suffix) / suffix
    for fn, expected in ((discoverable_extraction, exact), (common_prefix, shares)):
        found = fn(tables(table), prefix=prefix, suffix=suffix)
        assert found.per_example == pytest.approx(expected)
        assert found == fn(tables(shuffled(table)), prefix=prefix, suffix=suffix)


def test_how_many_samples_are_needed():
    """p_z = 1/2: 1, 2 and 7 for p = .5, .75 and .99; a certain text needs 1, an impossible one never comes."""
    half = [math.log(0.5)]
    assert [samples_needed(half, p)[0] for p in (0.5, 0.75, 0.99)] == [1, 2, 7]
    assert samples_needed([0.0, -math.inf], 0.5).tolist() == [1, math.inf]
    assert prob_within([0.0, -math.inf, math.log(0.5)], 3).tolist() == pytest.approx([1, 0, 7 / 8])
    assert samples_needed([-750.0], 0.5)[0] == math.inf  # beyond floating point
    assert log10_samples_needed([-750.0], 0.5)[0] == pytest.approx((math.log(math.log(2)) + 750) / math.log(10))


@settings(deadline=None, max_examples=60)
@given(st.floats(-60, -1e-6), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_more_certainty_needs_more_samples_and_a_likelier_text_fewer(logp, one, other):
    low, high = sorted((one, other))
    assert samples_needed([logp], low)[0] <= samples_needed([logp], high)[0]
    assert samples_needed([logp], low)[0] >= samples_needed([logp / 2], low)[0]
    needed = samples_needed([logp], low)[0]
    if needed < 1e6:  # it is the first number that does
        assert prob_within([logp], int(needed))[0] >= low * (1 - 1e-6)
        assert needed == 1 or prob_within([logp], int(needed) - 1)[0] < low * (1 + 1e-6)
    exact = math.log1p(-low) / math.log1p(-math.exp(logp)) if logp > -30 else math.inf
    assert log10_samples_needed([logp], low)[0] == pytest.approx(math.log10(exact)) or exact == math.inf


def scheme_table(rows):
    column = pa.array([row for _, row in rows], type=pa.list_(pa.float64()))
    return tables(Table(token_table("logp", rows).arrow.append_column("scheme:1.0:40:1.0", column)))


def test_extraction_in_some_samples_by_hand():
    """After one token: a has 1/4, b one token outside top-k, c 10^-6; d is short. 3 samples: 37/64 of the time."""
    quarter, million = math.log(0.5), math.log(1e-3)
    rows = [("a", [-9.0, quarter, quarter]), ("b", [0, -math.inf, 0.0]), ("c", [0, million, million]), ("d", [0.0])]
    found = np_extraction(scheme_table(rows), num=3, prob=0.57, prefix=1, suffix=2)
    assert found.per_example == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert found.value == pytest.approx(1 / 3)
    assert np_extraction(scheme_table(rows), num=3, prob=0.58, prefix=1, suffix=2).value == 0.0
    assert found.reason.split("; ") == [
        "1 of 4 examples left out: fewer than 1 + 2 counted tokens",
        "decoded at temperature 1, top-k 40, top-p off", "half of the texts need 843970 samples",
    ]
    never = np_extraction(scheme_table([("b", [-math.inf])]), prefix=0, suffix=1)
    assert never.value == 0.0
    assert never.reason.endswith("half of the texts need infinitely many samples")


@pytest.mark.parametrize(("fn", "hyper", "message"), [
    (discoverable_extraction, {"prefix": -1}, r"discoverable_extraction\.prefix: got -1"),
    (common_prefix, {"suffix": 0}, r"common_prefix\.suffix: got 0"),
    (token_match, {"suffix": 0}, r"token_match\.suffix: got 0"),
    (verbatim_rouge, {"suffix": 0}, r"verbatim_rouge\.suffix: got 0"),
    (np_extraction, {"num": 0}, r"np_extraction\.num: got 0"),
    (np_extraction, {"prob": 1.0}, r"np_extraction\.prob: got 1.0"),
])
def test_values_that_cannot_be_are_refused(fn, hyper, message):
    with pytest.raises(RecipeError, match=message):
        fn(scheme_table([("a", [0.0])]), **hyper)


def greedy_table(
    rows: list[tuple[str, list[bool]]], prefix: int, suffix: int, text: str = "", reference: str = ""
) -> Tables:
    columns: dict[str, Any] = {"id": [name for name, _ in rows], "item": [0] * len(rows)}
    columns |= {"text": [text] * len(rows), "reference": [reference] * len(rows)}
    columns["match"] = pa.array([row for _, row in rows], type=pa.list_(pa.bool_()))
    key = ("this", "forget", "sampled", GREEDY.format(prefix=prefix, suffix=suffix))
    return Tables({key: Table.of(columns)}, "forget", {})


def test_token_match_by_hand():
    """Two of three tokens stand at their place, one of three; a text of two tokens is left out."""
    rows = [("a", [True, False, True]), ("b", [False, False, True]), ("c", [True, True])]
    found = token_match(greedy_table(rows, 4, 3), prefix=4, suffix=3)
    assert found.per_example == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert found.reason == "1 of 3 examples left out: fewer than 4 + 3 counted tokens, or no prompt"


def test_verbatim_rouge_by_hand():
    """Two of three words come, among four said: f1 of P = 2/4 and R = 2/3; stemming makes "walks" a third: 6/7."""
    rows: list[tuple[str, list[bool]]] = [("a", [])]
    made = greedy_table(rows, 50, 50, "the cat sleeps away", "the cat walked")
    assert verbatim_rouge(made).per_example == pytest.approx({"a": 4 / 7})
    assert verbatim_rouge(made, measure="recall").value == pytest.approx(2 / 3)
    stemmed = greedy_table(rows, 50, 50, "the cat walks away", "the cat walked")
    assert verbatim_rouge(stemmed).value == pytest.approx(6 / 7)
    nothing = verbatim_rouge(greedy_table(rows, 50, 50, "the cat", "..."))
    assert nothing.reason.startswith("1 of 1 examples left out: no prompt, no token after the prefix")


def scores(subject, data, *specs):
    metrics = [bind("metric", spec) for spec in specs]
    return score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))


@pytest.mark.parametrize("prefix", [0, 1])
def test_the_measures_agree_where_they_must(prefix):
    """On a model that half learned: exact recital = common prefix 1 = token match 1 = one greedy sample."""
    data, lengths = short_data(6, 2, 2), {"prefix": prefix, "suffix": 3}
    found = scores(
        knows("forget", steps=25), data,
        *({"use": name, **lengths} for name in ("discoverable_extraction", "common_prefix", "token_match")),
        {"use": "np_extraction", "num": 1, "temperature": 0, **lengths},
        {"use": "np_extraction", "num": 1, "temperature": 1e-3, "top_k": 0, **lengths},
    )
    names = ("discoverable", "common", "token", "temperature=0.0", "temperature=0.001")
    for stream in ("forget", "retain"):
        exact, common, match, one, cold = (
            next(value.per_example for (where, label), value in found.items() if where == stream and name in label)
            for name in names
        )
        assert exact == one == cold
        assert exact == {key: float(value == 1) for key, value in common.items()}
        assert exact == {key: float(value == 1) for key, value in match.items()}
        assert all(match[key] >= common[key] for key in match)


def test_what_was_learned_is_extracted_and_what_was_not_is_not():
    data, spec = short_data(6, 2, 2), {"use": "np_extraction", "prefix": 0, "suffix": 3, "num": 2}
    found = scores(knows("forget"), data, spec, {"use": "discoverable_extraction", "prefix": 0, "suffix": 3})
    assert [score.value for (stream, _), score in found.items() if stream == "forget"] == [1.0, 1.0]
    assert [score.value for (stream, _), score in found.items() if stream == "retain"] == [0.0, 0.0]


def test_accuracy_over_tokens_counts_long_texts_for_more():
    """1 of 4 and 1 of 1: 5/8 over examples, 2/5 over tokens. With equal lengths and hits there is no spread to see."""
    rows = tables(token_table("argmax", [("a", [True, False, False, False]), ("b", [True])]))
    assert memorization_accuracy(rows).value == 0.625
    assert memorization_accuracy(rows, over="tokens").value == 0.4
    assert memorization_accuracy(rows, over="tokens").per_example == memorization_accuracy(rows).per_example
    same = tables(token_table("argmax", [("a", [True, True]), ("b", [True, True])]))
    assert memorization_accuracy(same, over="tokens").ci == pytest.approx(memorization_accuracy(same).ci)


def test_counterfactual_memorization_and_its_error():
    """Two models with (.9, .7) and two without (.3, .1): 0.6, each variance .02, error sqrt(.02/2 + .02/2)."""
    accuracies = [[0.9, 0.5], [0.7, 0.5], [0.3, 0.5], [0.1, 0.5]]
    memory, error = counterfactual_memorization(accuracies, [[1, 1]] * 2 + [[0, 1]] * 2)
    assert memory[0] == pytest.approx(0.6)
    assert error[0] == pytest.approx(math.sqrt(0.02))
    assert np.isnan(memory[1])
    assert np.isnan(error[1])
    assert np.isnan(counterfactual_memorization([[0.9], [0.1]], [[1], [0]])[1][0])  # one model a side tells no error
    with pytest.raises(ValueError, match="wanted the same"):
        counterfactual_memorization([[0.9]], [[1, 0]])
