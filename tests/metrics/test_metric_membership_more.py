"""Membership scores of more than one table, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured
from expunge.metrics.membership import membership, tpr_at_fpr
from expunge.metrics.membership_more import (
    membership_gradient,
    membership_lowercase,
    membership_neighbourhood,
    membership_recall,
    membership_reference,
)
from expunge.metrics.membership_scores import common_end, lowercase_scores, recall_scores, reference_scores
from expunge.metrics.separation import auc, named_at_fpr
from expunge.registry import bind
from expunge.scoring import needs_of
from support.membership_tables import keyed, norm_rows, text_rows, token_rows


def sides(instrument: str, forget, holdout, **more):
    """Tables of both streams, one token a text: {id: log-probability}."""
    found = {
        f"{name}/{instrument}": token_rows([(key, [5], [value]) for key, value in rows.items()])
        for name, rows in (("forget", forget), ("holdout", holdout))
    }
    return found | more


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_a_score_and_its_negation_are_one(a, b):
    assert auc(a, b) + auc([-x for x in a], [-x for x in b]) == pytest.approx(1)


def test_lowercase_by_hand():
    """NLL 1 against 4 in lower case: -1/4, a member; unchanged: -1. Known by heart (both 0): -1, no division by 0."""
    answer = token_rows([("a", [1, 2], [-0.5, -1.5]), ("b", [3], [-2.0]), ("c", [4], [0.0])])
    lowered = token_rows([("a", [7, 8, 9], [-4.0] * 3), ("b", [3], [-2.0]), ("c", [4], [0.0])])
    assert lowercase_scores(answer, lowered).values == {"a": -0.25, "b": -1.0, "c": -1.0}
    found = membership_lowercase(keyed({
        "forget/tokens/answer": answer, "forget/tokens/lowercase": lowered,
        "holdout/tokens/answer": token_rows([("n", [1], [-1.0])]),
        "holdout/tokens/lowercase": token_rows([("n", [1], [-2.0])]),
    }))
    assert found.value == pytest.approx(1 / 3)
    assert found.per_example["a"] == -0.25


def test_reference_by_hand():
    """Same tokens: -1 - (-3) = 2 per token. A model against itself: 0 for every text, AUC one half."""
    mine, other = token_rows([("a", [1, 2], [-1.0, -1.0])]), token_rows([("a", [1, 2], [-2.0, -4.0])])
    assert reference_scores(mine, other) == ({"a": 2.0}, "")
    assert reference_scores(mine, mine).values == {"a": 0.0}
    same = sides("tokens/answer", {"a": -1.0, "b": -3.0}, {"n": -2.0})
    same |= {f"oracle/{key}": table for key, table in same.items()}
    assert membership_reference(keyed(same)).value == 0.5


def test_reference_with_another_tokenizer_counts_bytes():
    """Sums -2 and -6 over the same 4 bytes: (-2 + 6) / 4 = 1, and the remark says so; without texts nothing is left."""
    mine, other = token_rows([("a", [1, 2], [-1.0, -1.0])]), token_rows([("a", [9], [-6.0])])
    values, remark = reference_scores(mine, other, {"a": 4})
    assert values == {"a": 1.0}
    assert "per byte" in remark
    assert reference_scores(mine, other).values == {}
    found = membership_reference(keyed({
        "forget/tokens/answer": mine, "oracle/forget/tokens/answer": other,
        "holdout/tokens/answer": mine, "oracle/holdout/tokens/answer": other,
        "forget/texts/answer": text_rows({"a": "four"}), "holdout/texts/answer": text_rows({"a": "seven b"}),
    }))
    assert (found.value, found.per_example) == (1.0, {"a": 1.0})
    assert found.reason.count("per byte") == 1


def test_reference_asks_for_the_subject_it_names():
    given = sides("tokens/answer", {"a": -1.0}, {"n": -1.0})
    given |= {f"original/{key}": table for key, table in sides("tokens/answer", {"a": 0.0}, {"n": -2.0}).items()}
    assert membership_reference(keyed(given), reference="original").value == 0.0
    with pytest.raises(NotMeasured, match="no oracle was given"):
        membership_reference(keyed(given))


def test_neighbourhood_by_hand():
    """-1 against the mean of -2 and -4 is 2; b has no neighbour, is left out and told."""
    found = membership_neighbourhood(keyed({
        "forget/tokens/answer": token_rows([("a", [1], [-1.0]), ("b", [1], [-9.0])]),
        "forget/tokens/neighbours:2:0.5": token_rows([("a", [2], [-2.0]), ("a", [3, 4], [-3.0, -5.0])]),
        "holdout/tokens/answer": token_rows([("n", [1], [-1.0])]),
        "holdout/tokens/neighbours:2:0.5": token_rows([("n", [2], [-2.0])]),
    }), num=2, replaced=0.5)
    assert (found.value, found.per_example) == (1.0, {"a": 2.0})
    assert "not a masked language model" in found.reason
    assert "1 of 2 examples have no word to replace" in found.reason


def test_recall_compares_the_same_tokens():
    """Plain text: alone it starts at its second token. P's tokens and the first token, -99 each, must not count.

    (-3 - 1) / (-1 - 1) = 2; over one token more it would be 35 / 2 or worse.
    """
    alone = token_rows([("a", [6, 7], [-1.0, -1.0])])
    after = token_rows([("a", [3, 4, 5, 6, 7], [-99.0, -99.0, -99.0, -3.0, -1.0])])
    assert recall_scores(alone, after) == ({"a": 2.0}, "")
    assert recall_scores(alone, alone).values == {"a": 1.0}


def test_recall_leaves_out_what_is_cut_otherwise():
    """A first token joined with what stands before it: the other two are compared, and the remark counts the text."""
    alone = token_rows([("a", [6, 7, 8], [-9.0, -1.0, -1.0])])
    after = token_rows([("a", [1, 2, 7, 8], [-9.0, -9.0, -2.0, -2.0])])
    values, remark = recall_scores(alone, after)
    assert values == {"a": 2.0}
    assert "1 of 1 examples" in remark
    assert recall_scores(alone, token_rows([("a", [9], [-1.0])])).values == {}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2), max_size=7), st.lists(st.integers(0, 2), max_size=7))
def test_common_end_against_a_loop(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    assert common_end(np.array(a), np.array(b)) == n


def test_recall_by_hand():
    """Ratio 3 of a member against 1 of a non-member; a text known by heart (0 alone, -1 after P) is a member too."""
    found = membership_recall(keyed({
        **sides("tokens/answer", {"a": -1.0, "b": 0.0}, {"n": -2.0}),
        **sides("tokens/conditioned:holdout:4", {"a": -3.0, "b": -1.0}, {"n": -2.0}),
    }), shots=4)
    assert found.value == 1.0
    assert found.per_example["a"] == 3.0
    assert found.per_example["b"] > 1e6


def test_gradient_by_hand():
    """A smaller norm is a member: -1 above -2, and another stream of non-members is taken where one is named."""
    own, other = "forget/grads/answer#p=inf", "news/grads/answer#p=inf"
    tables = keyed({own: norm_rows({"a": 1.0}), other: norm_rows({"n": 2.0})})
    found = membership_gradient(tables, p="inf", against="news")
    assert (found.value, found.per_example) == (1.0, {"a": -1.0})


def test_needs_are_filled_in():
    """What is asked for is what is fetched."""
    found = needs_of(bind("metric", {"use": "membership_neighbourhood", "num": 3, "replaced": 0.5, "against": "news"}))
    assert [need.variant for need in found] == ["answer", "neighbours:3:0.5", "answer"]
    assert {need.sets for need in found} == {("stream", "news")}
    found = needs_of(bind("metric", {"use": "membership_recall", "shots": 2, "against": "news"}))
    assert found[1].variant == "conditioned:news:2"
    assert needs_of(bind("metric", {"use": "membership_gradient", "p": 1}))[0].variant == "answer#p=1"


@pytest.mark.parametrize("spec", [
    {"use": "membership_neighbourhood", "num": 0}, {"use": "membership_neighbourhood", "replaced": 0.0},
    {"use": "membership_recall", "shots": 0}, {"use": "tpr_at_fpr", "fpr": 1.5}, {"use": "tpr_at_fpr", "share": 0},
    {"use": "privleak", "share": 2}, {"use": "membership_gradient", "p": 3},
])
def test_bad_arguments_are_refused(spec):
    name = next(key for key in spec if key != "use")
    with pytest.raises(RecipeError, match=name):
        bind("metric", spec)(keyed({}))


def test_tpr_at_fpr_by_hand():
    """Non-members 0..-9; at 10 % one of them may be named: members over -1 are, 2 of 3. At 1 % none: over 0, 1 of 3."""
    outside = {f"n{k}": -float(k) for k in range(10)}
    tables = keyed(sides("tokens/answer", {"a": -0.5, "b": -5.0, "c": 0.5}, outside))
    found = tpr_at_fpr(tables, fpr=0.1)
    assert found.value == pytest.approx(2 / 3)
    assert found.per_example == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert tpr_at_fpr(tables).per_example == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert "1/10" in found.reason
    assert named_at_fpr([-np.inf], [0.0], 1.0).tolist() == [True]  # everything may be named


def test_rates_are_told_with_their_intervals():
    """0.1, 1, 5 and 10 %: 20 non-members, one of whom may be named from 5 % on."""
    outside = {f"n{k}": -float(k) for k in range(20)}
    reason = membership(keyed(sides("tokens/answer", {"a": -0.5, "b": 1.0}, outside))).reason
    assert "TPR at 0.1 % FPR = 0.500 [0.013, 0.987]" in reason
    assert "TPR at 1 % FPR = 0.500" in reason
    assert "TPR at 5 % FPR = 1.000 [0.158, 1.000]" in reason
    assert "smallest meaningful FPR 1/20 = 0.05" in reason


def test_another_stream_of_non_members():
    given = sides("tokens/answer", {"a": -1.0}, {"n": -2.0})
    given["news/tokens/answer"] = token_rows([("x", [1], [0.0])])
    assert membership(keyed(given)).value == 1.0
    assert membership(keyed(given), against="news").value == 0.0
    with pytest.raises(NotMeasured, match="other"):
        membership(keyed(given), against="other")
