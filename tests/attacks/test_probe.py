"""A probe learns some answers at an inner block and is asked the others: what it reads was there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from expunge.attacks.logit_lens import logit_lens
from expunge.attacks.probe import probe
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.plan import measure
from expunge.models import weights_hash
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Score, Stream, Subject
from support.hidden import behind
from support.learned import knows, short_data


def probed(subject: Subject, data: Data | None = None, **hyper: Any) -> Subject:
    (made,) = probe(subject, data or short_data(), Run(), **{"layers": [0], "steps": 2, **hyper})
    return made


def score(subject: Subject, name: str = "probability") -> Score:
    metrics, data = [bind("metric", name)], Data(forget=short_data()["forget"])
    return score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))["forget", name]


@torch.no_grad()
def logits(subject: Subject) -> torch.Tensor:
    return subject.model(input_ids=torch.arange(12).reshape(2, 6), use_cache=False).logits


def test_what_was_shown_is_not_scored():
    made = probed(tiny_subject(), share=0.25, steps=3, batch_size=2)
    event = made.lineage[-1]
    assert len(made.exposed) == 3
    assert score(made).n == 9
    assert not made.exposed & score(made).per_example.keys()
    assert (event.cost.steps, event.cost.forwards, event.cost.backwards) == (3, 6, 6)
    assert dict(event.hyper) == {"layer": 0, "steps": 3, "lr": 0.03, "share": 0.25}
    assert probed(tiny_subject(), share=0.3).lineage[-1].hyper["share"] == pytest.approx(4 / 12)  # what was shown
    assert probed(tiny_subject(), seed=1).exposed != probed(tiny_subject()).exposed
    assert weights_hash(probed(tiny_subject())) == weights_hash(probed(tiny_subject()))


def test_a_probe_that_learns_nothing_is_the_logit_lens():
    subject = tiny_subject()
    (lens,) = logit_lens(subject, short_data(), Run(), layers=[0])
    assert torch.equal(logits(probed(subject, lr=0.0)), logits(lens))
    assert not torch.allclose(logits(probed(subject)), logits(lens))


def about(num: int) -> Data:
    """Twelve facts about `num` people."""
    stream = short_data()["forget"]
    told = tuple(replace(one, subject=f"person {i % num}") for i, one in enumerate(stream.examples))
    return Data(forget=replace(stream, examples=told))


def test_examples_about_one_subject_are_shown_together():
    data = about(4)
    shown = probed(tiny_subject(), data, share=0.5).exposed
    people = {one.subject for one in data["forget"].examples if one.id in shown}
    assert len(shown) == 6
    assert shown == {one.id for one in data["forget"].examples if one.subject in people}
    assert len(people) == 2


def test_retain_answers_can_be_learned_beside_them():
    one, both = probed(tiny_subject()), probed(tiny_subject(), also="retain")
    assert both.exposed == one.exposed
    assert both.lineage[-1].cost.forwards > one.lineage[-1].cost.forwards
    assert weights_hash(both) != weights_hash(one)


def test_ids_of_another_stream_are_not_exposed():
    """Ids are unique within a stream only: a probe of the retain stream leaves all forget examples to be scored."""
    data = short_data()
    named = tuple(replace(one, id=f"f/{i}") for i, one in enumerate(data["retain"].examples))
    data["retain"] = replace(data["retain"], examples=named)
    made = probed(tiny_subject(), data, on="retain")
    assert not made.exposed
    assert score(made).n == 12
    assert score(probed(tiny_subject(), data)).n == 6


def test_wrong_arguments_are_told():
    subject, data = tiny_subject(), short_data()
    for share in (0.0, 1.0):
        with pytest.raises(RecipeError, match=r"attacks\.probe\.share"):
            probed(subject, share=share)
    with pytest.raises(RecipeError, match=r"probe\.layers: block -3"):
        probed(subject, layers=[-3])
    for name in ("on", "also"):
        with pytest.raises(DataError, match=rf"attacks\.probe\.{name}: no stream 'retian'"):
            probed(subject, **{name: "retian"})
    with pytest.raises(RecipeError, match=r"attacks\.probe\.also: the stream 'forget' is to be forgotten"):
        probed(subject, also="forget")  # it would be shown all that is scored
    lonely = Data(forget=Stream("forget", "forget", data["forget"].examples[:1]))
    with pytest.raises(DoesNotFit, match="holds one example"):
        probed(subject, lonely)
    with pytest.raises(DoesNotFit, match="for causal models"):
        probed(tiny_subject(family="bert"))


def test_a_probe_opens_what_a_last_block_hides():
    """It learns six answers where the first two blocks end and says the other six; of the twin's it says none."""
    hidden, twin = behind(knows("forget", "retain")), behind(knows("retain"))
    assert float(score(hidden).value or 0) < 0.05
    opened, control = (probed(one, layers=[1], steps=30) for one in (hidden, twin))
    assert opened.exposed == control.exposed
    assert float(score(opened, "exact_memorization").value or 0) > 0.8
    assert score(control, "exact_memorization").value == 0.0
    assert float(score(opened).value or 0) > 2 * float(score(control).value or 0)
