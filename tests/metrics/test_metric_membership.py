"""Membership inference scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Table
from expunge.metrics.membership import membership, membership_scores
from support.metric_tables import shuffled, tables, token_table


def test_scores_by_hand() -> None:
    """l = -1, -2, -3, -6. loss -3; zlib with 12 bytes -1/4; the worse half -4.5; one token at 20 %: -6.

    min-k++ with mean -2 and variance 4: (l + 2) / 2 = 0.5, 0, -0.5, -2; its worse half -1.25.
    """
    table = token_table(
        "logp", [("a", [-1.0, -2.0, -3.0, -6.0])], zlib=[12], mean=[[-2.0] * 4], var=[[4.0] * 4]
    )
    assert membership_scores(table) == {"a": -3.0}
    assert membership_scores(table, score="zlib") == {"a": -0.25}
    assert membership_scores(table, score="min_k", share=0.5) == {"a": -4.5}
    assert membership_scores(table, score="min_k") == {"a": -6.0}
    assert membership_scores(table, score="min_k_plus_plus", share=0.5) == {"a": -1.25}


def test_a_certain_prediction_does_not_divide_by_zero() -> None:
    """Variance 0 (and -1e-12 by rounding): sigma is held at 1e-6, (0 - 0) / 1e-6 = 0."""
    table = token_table("logp", [("a", [0.0, 0.0])], mean=[[0.0, 0.0]], var=[[0.0, -1e-12]])
    assert membership_scores(table, score="min_k_plus_plus", share=1.0) == {"a": 0.0}


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(-9, 0).map(float), min_size=0, max_size=12), min_size=1, max_size=5),
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0]),
)
def test_min_k_against_an_obvious_loop(rows: list[list[float]], share: float) -> None:
    """Sort each row, average the first max(1, floor(share n)); empty rows do not exist."""
    table = token_table("logp", [(str(k), row) for k, row in enumerate(rows)])
    expected = {}
    for k, row in enumerate(rows):
        if row:
            count = max(1, round(share * 10) * len(row) // 10)
            expected[str(k)] = np.mean(sorted(row)[:count])
    assert membership_scores(table, score="min_k", share=share) == pytest.approx(expected)


def pair(members: list[float], outside: list[float]) -> dict[tuple[str, ...], Table]:
    return {
        ("forget", "answer"): token_table("logp", [(f"m{k}", [value]) for k, value in enumerate(members)]),
        ("holdout", "answer"): token_table("logp", [(f"n{k}", [value]) for k, value in enumerate(outside)]),
    }


def test_metric_by_hand() -> None:
    """Members -1, -2 against -2, -3: 3 pairs won, 1 tied, AUC 0.875. At 1 % no false positive: those above -2, 1/2."""
    given = pair([-1.0, -2.0], [-2.0, -3.0])
    score = membership(tables(given))
    assert score.value == 0.875
    assert score.per_example == {"m0": -1.0, "m1": -2.0}
    assert "TPR at 1 % FPR = 0.500" in score.reason
    assert "1/2" in score.reason
    assert score.ci is not None
    assert score.ci[0] < 0.875 <= score.ci[1]
    assert membership(tables({key: shuffled(table, 2) for key, table in given.items()})) == score


def test_zlib_and_min_k_plus_plus_through_the_metric() -> None:
    """Shorter compressed text makes the same loss more extreme: -1/5 against -1/10 loses every pair."""
    given = {
        ("forget", "answer"): token_table("logp", [("a", [-1.0])], zlib=[5]),
        ("holdout", "answer"): token_table("logp", [("b", []), ("c", [-1.0])], zlib=[1, 10]),
    }
    assert membership(tables(given), score="zlib").value == 0.0
    with pytest.raises(NotMeasured, match="mean"):
        membership(tables(given), score="min_k_plus_plus")


def test_degenerate() -> None:
    """Missing holdout is not measured, empty ones are n/a with the stream's name, NaN is said, a bad share refused."""
    with pytest.raises(NotMeasured, match="holdout"):
        membership(tables({("forget", "answer"): token_table("logp", [("a", [-1.0])])}))
    assert "'holdout'" in membership(tables(pair([-1.0], []))).reason
    assert "'forget'" in membership(tables(pair([], [-1.0]))).reason
    assert membership(tables(pair([math.nan], [-1.0]))).status == "n/a"
    with pytest.raises(RecipeError, match="share"):
        membership(tables(pair([-1.0], [-1.0])), share=0.0)
    one = membership(tables(pair([-1.0], [-2.0])))
    assert one.ci == pytest.approx((0.025, 1.0))
