"""Every membership score on models that know the members by heart, know nothing, or look at one token only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.measure.plan import measure
from expunge.metrics.membership import membership_scores
from expunge.metrics.membership_scores import recall_scores
from expunge.registry import bind
from expunge.scoring import label, needs_of, plan_for, score_all
from expunge.testing import tiny_subject
from expunge.testing.models import tiny_tokenizer
from expunge.types import Data, Example, Stream, Subject, Wrapper
from support.bigram import Bigram
from support.learned import knows, short_data

SCORES = [bind("metric", spec) for spec in (
    "membership", {"use": "membership", "score": "zlib"}, {"use": "membership", "score": "min_k"},
    {"use": "membership", "score": "min_k_plus_plus"}, "membership_lowercase", "membership_reference",
    {"use": "membership_neighbourhood", "num": 6}, {"use": "membership_recall", "shots": 2}, "membership_gradient",
)]
OTHERS = [bind("metric", spec) for spec in ("privleak", {"use": "tpr_at_fpr", "fpr": 0.05})]


@pytest.fixture(scope="module")
def data():
    found = short_data()
    return Data(forget=found["forget"], holdout=found["holdout"])


@pytest.fixture(scope="module")
def measured(data):
    """Of the model that was taught the members, and of the same model before: its reference."""
    plan = plan_for([*SCORES, *OTHERS], data)
    return [measure(subject, data, plan) for subject in (knows("forget", "retain"), tiny_subject(seed=2))]


@pytest.fixture(scope="module")
def scores(measured, data):
    return score_all([*SCORES, *OTHERS], data, measured[0], measured[1])


@pytest.mark.parametrize("metric", SCORES, ids=label)
def test_what_was_learned_is_recognised(scores, metric):
    """A score with the wrong sign, or over the wrong tokens, would stand at 0 or in the middle."""
    found = scores["forget", label(metric)]
    assert found.value > 0.95, found
    assert found.n == 12


def test_what_was_not_learned_is_not_recognised(measured, data):
    """An untrained model: one half lies in the interval of every score; against itself the reference says 0."""
    found = score_all([*SCORES, *OTHERS], data, measured[1], measured[1])
    for metric in SCORES:
        score = found["forget", label(metric)]
        assert score.ci[0] < 0.5 < score.ci[1], metric
    same = found["forget", "membership_reference"]
    assert same.value == 0.5
    assert set(same.per_example.values()) == {0.0}
    assert found["forget", "privleak"].value == 0


def test_leak_and_rate_of_what_was_learned(scores):
    assert scores["forget", "privleak"].value == -100
    assert scores["forget", "tpr_at_fpr(fpr=0.05)"].value == 1


def test_the_whole_share_is_the_loss(measured):
    """min_k over all tokens is the loss; the end token, id 0 as the padding, is one of them."""
    table = measured[0].tables["forget", "tokens", "answer"]
    assert membership_scores(table, score="min_k", share=1.0) == pytest.approx(membership_scores(table))
    assert [row[-1] for row in table.rows("token")] == [0] * 12


def test_what_is_read_is_what_was_asked_for(measured):
    """Every table a metric needs was made, and under the name it asks for."""
    for metric in [*SCORES, *OTHERS]:
        for need in needs_of(metric):
            for name in ("forget", "holdout"):
                assert (name, need.instrument, need.variant) in measured[0].tables


@pytest.mark.parametrize("prompt", ["", "Who?"])
def test_recall_of_a_model_without_context_is_one(prompt):
    """What this model says hangs on the last token alone, so P changes nothing, token for token, in plain text too."""
    tokenizer = tiny_tokenizer()
    table = torch.randn(len(tokenizer), len(tokenizer), generator=torch.Generator().manual_seed(0))
    subject = Subject(Bigram(table.tolist()), tokenizer, Wrapper("{prompt} {answer}"))
    texts = ("The sea in winter", "A novel of 1961", "Mara", "Nobody knows it, nor will they")
    streams = {
        name: Stream(name, name, tuple(Example(f"{name}/{k}", prompt, text) for k, text in enumerate(texts)))
        for name in ("forget", "holdout")
    }
    data = Data(streams)
    metric = bind("metric", {"use": "membership_recall", "shots": 2})
    made = measure(subject, data, plan_for([metric], data))
    for name in data:
        alone, after = (made.tables[name, "tokens", v] for v in ("answer", "conditioned:holdout:2"))
        values, remark = recall_scores(alone, after)
        assert remark == ""
        assert list(values.values()) == pytest.approx([1.0] * len(texts), abs=1e-9)
        assert np.all(alone.num_tokens < after.num_tokens) == (prompt == "")
    assert score_all([metric], data, made)["forget", label(metric)].value == 0.5


def test_a_prefix_that_does_not_fit_is_not_available(tiny):
    long = Data({
        name: Stream(name, name, tuple(Example(f"{name}/{k}", "Who?", "word " * 30 + str(k)) for k in range(9)))
        for name in ("forget", "holdout")
    })
    metric = bind("metric", {"use": "membership_recall", "shots": 5})
    found = score_all([metric], long, measure(tiny, long, plan_for([metric], long)))["forget", label(metric)]
    assert found.status == "n/a"
    assert "tokens" in found.reason
