"""PrivLeak: sign, ends and interval."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.measure.tables import NotMeasured
from expunge.metrics.privleak import privleak, privleak_of
from support.membership_tables import keyed, token_rows


def given(this, oracle):
    """Tables of (members, non-members) of this model and of the oracle, one token a text."""
    found = {}
    for subject, sides in (("this", this), ("oracle", oracle)):
        for name, values in zip(("forget", "holdout"), sides, strict=True):
            rows = [(f"{name}/{k}", [1], [float(value)]) for k, value in enumerate(values)]
            found[f"{subject}/{name}/tokens/answer"] = token_rows(rows)
    return keyed(found)


def test_ends_by_hand():
    """The oracle cannot tell (R = 1/2). All recognised: -100; as the oracle: 0; all look less familiar: +100."""
    blind = ([-1.0, -4.0], [-2.0, -3.0])
    known, over = ([-1.0, -2.0], [-3.0, -4.0]), ([-3.0, -4.0], [-1.0, -2.0])
    assert privleak(given(known, blind)).value == -100
    assert privleak(given(blind, blind)).value == 0
    assert privleak(given(over, blind)).value == 100


def test_the_unseen_texts_are_the_positive_class():
    """Membership AUC 3/4 against the oracle's 1/4: U = 1/4, R = 3/4, 100 (1/4 - 3/4) / (3/4) = -200/3.

    With the members as the positive class it would be +200.
    """
    found = privleak(given(([-1.0, -3.0], [-2.0, -4.0]), ([-2.0, -4.0], [-1.0, -3.0])))
    assert found.value == pytest.approx(-200 / 3)
    assert "membership AUC 0.750, of the oracle 0.250" in found.reason
    assert found.per_example == {"forget/0": 1.0, "forget/1": 1.0}


def test_the_ratio_and_its_missing_denominator():
    assert privleak_of(0.62, 0.5) == pytest.approx(24)
    apart = ([-1.0, -2.0], [-3.0, -4.0])
    found = privleak(given(apart, apart))
    assert found.status == "n/a"
    assert "nothing to divide by" in found.reason


def test_without_an_oracle_it_is_not_measured():
    tables = keyed({f"{name}/tokens/answer": token_rows([("a", [1], [-1.0])]) for name in ("forget", "holdout")})
    with pytest.raises(NotMeasured, match="no oracle was given"):
        privleak(tables)


def test_only_examples_that_both_models_have():
    """An attack showed forget/0 to this model: it is out on both sides."""
    tables = given(([-1.0, -4.0], [-2.0]), ([-1.0, -3.0], [-2.0]))
    cut = dict(tables.tables)
    first = cut["this", "forget", "tokens", "answer"]
    cut["this", "forget", "tokens", "answer"] = first.select(np.array([False, True]))
    found = privleak(type(tables)(cut, "forget", {}))
    assert (found.value, found.per_example) == (0.0, {"forget/1": -1.0})


def test_the_same_examples_are_redrawn_in_both_models():
    """A model that is its oracle: every draw gives 0, though either AUC alone is uncertain by tens of percent."""
    random = np.random.default_rng(0)
    side = (random.normal(0.5, 1, 25), random.normal(0, 1, 25))
    same = privleak(given(side, side), score="loss")
    assert same.value == 0
    shifted = privleak(given((side[0] + 0.3, side[1]), side), score="loss")
    assert shifted.value < 0
    assert shifted.ci[0] <= shifted.value <= shifted.ci[1]
    other = privleak(given((random.normal(0.8, 1, 25), random.normal(0, 1, 25)), side), score="loss")
    assert shifted.ci[1] - shifted.ci[0] < 0.7 * (other.ci[1] - other.ci[0])


def test_perfect_separation_is_not_a_point():
    """Ten members all above ten others, oracle at 1/2: the rule for constant rates, 100 (0.308 - 0.5) / 0.5."""
    blind = np.arange(20.0)
    found = privleak(given((np.arange(10) + 50.0, np.arange(10.0)), (blind[::2], blind[::2])))
    assert found.ci[0] == -100
    assert found.ci[1] == pytest.approx(100 * (0.3085 - 0.5) / 0.5, abs=0.1)
