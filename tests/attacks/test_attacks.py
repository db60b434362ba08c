"""What each attack does, beyond what every attack must (tests/objectives/test_checks.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.data.texts import asked_of
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Stream
from support.learned import knows, short_data


def test_a_stream_that_is_not_there_is_told():
    with pytest.raises(DataError, match=r"attacks\.paraphrase\.on: no stream 'forgt'; did you mean 'forget'"):
        list(bind("attack", {"use": "paraphrase", "on": "forgt"})(tiny_subject(), short_data(), Run()))


def test_paraphrases_are_asked_one_by_one():
    data = short_data()
    twice = tuple(replace(e, paraphrases=(*e.paraphrases, "And?")) for e in data["forget"].examples[:5])
    data["forget"] = Stream("forget", "forget", (*twice, *data["forget"].examples[5:]))
    made = list(bind("attack", {"use": "paraphrase", "number": 9})(knows("forget"), data, Run()))
    one, other = (asked_of(data, subject.wrapper)["forget"].examples[0] for subject in made)
    assert (one.prompt, other.prompt) == ("Tell me of f 0", "And?")
    assert other.paraphrases == ("Tell me of f 0", "Who is f 0?")  # what was asked is one of them now
    metrics = [bind("metric", "rouge"), bind("metric", "exact_memorization")]
    sizes = [
        score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))["forget", "exact_memorization"].n
        for subject in made
    ]
    assert sizes == [12, 5]  # seven examples have no second paraphrase
    assert [subject.lineage[-1].cost.queries for subject in made] == [12, 5]


def test_without_paraphrases_there_is_nothing_to_ask():
    data = short_data()
    bare = tuple(replace(e, paraphrases=()) for e in data["forget"].examples)
    with pytest.raises(DoesNotFit, match="no example of 'forget' has a paraphrase"):
        list(bind("attack", "paraphrase")(knows("forget"), Data(forget=Stream("forget", "forget", bare)), Run()))
    with pytest.raises(RecipeError, match=r"attacks\.paraphrase\.number: got 0; 1 or more"):
        list(bind("attack", {"use": "paraphrase", "number": 0})(knows("forget"), data, Run()))
