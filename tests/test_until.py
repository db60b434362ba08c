"""Stop predicates: what is accepted, what is told, and that bounds are those of the start model."""

from __future__ import annotations

import pytest

from expunge.errors import RecipeError
from expunge.registry import bind
from expunge.testing import tiny_subject
from expunge.types import Data
from expunge.until import Predicate
from support.learned import knows, short_data, taught


def test_clauses_with_numbers_and_streams():
    """The forget set is known by heart (MA 1), the holdout is not; the bound is the holdout's value now."""
    subject, data = knows("forget"), short_data()
    made = Predicate.parse("memorization_accuracy<holdout & perplexity > 1.5e0", subject, data, batch_size=5)
    (first, less, bound), (second, more, number) = made.clauses
    assert (first.name, less, second.name, more, number) == ("memorization_accuracy", "<", "perplexity", ">", 1.5)
    assert 0 < bound < 0.9
    assert made.every == 3  # 12 examples in steps of 5: once per pass


def test_all_clauses_must_hold_and_values_are_kept():
    subject, data = knows("forget"), short_data()
    for text, met in (
        ("exact_memorization>0.9", True), ("exact_memorization<0.9", False),
        ("exact_memorization>0.9 & perplexity>5", False), ("exact_memorization>0.9 & perplexity<5", True),
        ("exact_memorization>1", False),  # strictly
    ):
        made = Predicate.parse(text, subject, data, batch_size=12)
        assert made.met(subject, data, 1) is met, text
        assert made.values["exact_memorization"] == 1.0


def test_it_looks_once_per_pass():
    subject, data = knows("forget"), short_data()
    made = Predicate.parse("exact_memorization>0.9", subject, data, batch_size=4)
    assert [made.met(subject, data, step) for step in range(1, 7)] == [False, False, True, False, False, True]
    assert made.values
    made.met(subject, data, 7)
    assert made.values == {}


@pytest.mark.parametrize(("text", "message"), [
    ("extraction_strength", r"got 'extraction_strength'; clauses METRIC<BOUND"),
    ("extraction_strength<", "clauses METRIC<BOUND"),
    ("", "clauses METRIC<BOUND"),
    ("a<1 &", r"until\.use: unknown metric 'a'"),
    ("extraction_strenth<0.5", r"did you mean 'extraction_strength'"),
    ("extraction_strength<holdot", r"bound 'holdot'; .*did you mean 'holdout'"),
    ("forget_quality>0.5", r"'forget_quality' on 'forget' is n/a"),
])
def test_what_is_no_predicate_is_told(text, message):
    subject, data = knows("forget"), short_data()
    with pytest.raises(RecipeError, match=message):
        Predicate.parse(text, subject, data, batch_size=12).met(subject, data, 1)


def test_without_a_forget_stream_there_is_nothing_to_look_at():
    data = Data(retain=short_data()["retain"])
    with pytest.raises(RecipeError, match=r"n/a: no stream 'forget' was given"):
        Predicate.parse("perplexity<3", knows("forget"), data).met(knows("forget"), data, 1)


def test_the_bound_is_measured_before_training():
    """Training on everything makes the holdout known too: a bound read afterwards would be another."""
    start, data = tiny_subject(seed=2), short_data()
    made = Predicate.parse("memorization_accuracy<holdout", start, data)
    later = taught(start, data, ["forget", "holdout"], steps=40)
    again = Predicate.parse("memorization_accuracy<holdout", later, data)
    assert made.clauses[0][2] < again.clauses[0][2]
    assert bind("metric", "memorization_accuracy") == made.clauses[0][0]
