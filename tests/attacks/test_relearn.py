"""Relearning: what is shown, growing budgets out of one training, and that it opens what was only hidden."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

from expunge.attacks.relearn import chosen, relearn
from expunge.errors import DataError, DoesNotFit, Interrupted, RecipeError
from expunge.forget import forget
from expunge.measure.plan import measure
from expunge.models import ExpungeWarning, clone, is_adapter, weights_hash
from expunge.registry import bind, term
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Cost, Data, Example, Stream, Subject
from support.learned import knows, short_data
from support.streams import records

FAST = {"lr": 1e-2, "batch_size": 6}
LORA = {"use": "lora", "rank": 2}
STILL = "ignore:attacks.relearn.lr"  # a training that is about something else than how far it gets


def people(num: int, facts: int, role: str = "forget") -> Stream:
    rows = [Example(f"{p}/{f}", f"What is {f} of {p}?", f"{p * f}", subject=f"p{p}") for p in range(num)
            for f in range(facts)]
    return Stream("forget", role, tuple(rows))


# -- what is shown ---------------------------------------------------------------------------------------------------
def test_siblings_are_facts_of_every_subject_and_one_of_each_is_never_shown():
    stream = people(5, 4)
    half = chosen(stream, 10, "siblings", seed=0)
    assert Counter(one.subject for one in half) == dict.fromkeys(("p0", "p1", "p2", "p3", "p4"), 2)
    assert [one.id for one in half] == sorted(one.id for one in half)  # in their order
    most = chosen(stream, 19, "siblings", seed=0)
    assert Counter(one.subject for one in most) == dict.fromkeys(("p0", "p1", "p2", "p3", "p4"), 3)
    assert chosen(stream, 10, "siblings", seed=1) != half


def test_of_other_subjects_nothing_is_shown():
    stream = people(6, 3)
    half = chosen(stream, 9, "subjects", seed=0)
    shown = {one.subject for one in half}
    assert len(shown) == 3
    assert len(half) == 9
    assert len(chosen(stream, 10, "subjects", seed=0)) == 12  # subjects are shown whole
    assert len(chosen(stream, 17, "subjects", seed=0)) == 15  # one of them is left to ask
    assert chosen(stream, 0, "subjects", seed=0) == chosen(stream, 0, "siblings", seed=0) == ()


def test_examples_that_name_no_subject_cannot_be_parted_by_it():
    for split, told in (("siblings", "about one subject"), ("subjects", "name 0 subject")):
        with pytest.raises(DoesNotFit, match=told):
            list(relearn(tiny_subject(), short_data(), Run(), split=split))
    with pytest.raises(DoesNotFit, match="holds one example"):
        list(relearn(tiny_subject(), short_data(forget=1), Run()))
    with pytest.raises(DoesNotFit, match="about one subject"):
        chosen(people(5, 1), 2, "siblings", seed=0)


@pytest.mark.parametrize(("hyper", "told"), [
    ({"share": 0.0}, r"share: got 0\.0; a number between 0 and 1"), ({"share": 1.0}, r"share: got 1\.0"),
    ({"num": 12}, "num: got 12; accepted: 0 to 11"), ({"num": -1}, "num: got -1"),
    ({"steps": -1}, "steps: got .-1.; growing numbers, 0 or more"), ({"at": (2, 2)}, "at: got .2, 2.; growing"),
    ({"at": (-1, 2)}, "at: got"), ({"on": "retain", "share": 1.1}, r"share: got 1\.1; more than 0, up to 1"),
])
def test_wrong_numbers_are_told(hyper, told):
    with pytest.raises(RecipeError, match=rf"attacks\.relearn\.{told}"):
        list(relearn(tiny_subject(), short_data(), Run(), **hyper))


def test_a_stream_that_is_not_there_is_told():
    with pytest.raises(DataError, match=r"attacks\.relearn\.on: no stream 'forgt'; did you mean 'forget'"):
        list(relearn(tiny_subject(), short_data(), Run(), on="forgt"))


def test_a_stream_that_is_kept_may_be_shown_whole():
    (changed,) = relearn(tiny_subject(), short_data(), Run(), on="retain", share=1.0, steps=1)
    assert not changed.exposed  # nothing of it was to be forgotten
    assert changed.lineage[-1].hyper["num"] == 12
    (few,) = relearn(tiny_subject(), short_data(), Run(), num=5, steps=1)
    assert len(few.exposed) == 5
    assert few.lineage[-1].hyper["share"] == pytest.approx(5 / 12)


# -- the training ----------------------------------------------------------------------------------------------------
def test_it_is_the_forget_stage_on_what_is_shown():
    """AdamW, constant rate, no decay, answers alone."""
    subject, data = tiny_subject(), short_data()
    (changed,) = relearn(subject, data, Run(seed=7), steps=4, share=0.5, seed=3, **FAST)
    shown = tuple(one for one in data["forget"].examples if one.id in changed.exposed)
    stage = forget(
        terms=[term("nll", on="shown")], steps=4, optimizer={"use": "adamw", "decay": "constant", "weight_decay": 0.0},
        **FAST,
    )
    other = stage(clone(subject), Data(shown=Stream("shown", "forget", shown)), Run(seed=3))
    assert weights_hash(changed) == weights_hash(other)
    (event,) = changed.lineage
    assert event.cost == replace(other.lineage[-1].cost, seconds=0.0)
    assert (event.cost.steps, event.cost.forwards, event.cost.backwards) == (4, 24, 24)


@pytest.mark.filterwarnings(STILL)
@pytest.mark.parametrize("scope", ["all", LORA])
def test_growing_budgets_are_one_training(scope, tmp_path):
    """What is measured on the way is what as many steps alone would have made, the optimiser's state included."""
    subject, data = tiny_subject(), short_data()
    before = weights_hash(subject)
    made = list(relearn(subject, data, Run(tmp_path), at=(0, 2, 5), scope=scope, **FAST))
    assert made[0].model is subject.model
    for budget, one in zip((2, 5), made[1:], strict=True):
        (alone,) = relearn(subject, data, Run(), steps=budget, scope=scope, **FAST)
        assert weights_hash(one) == weights_hash(alone)
        assert one.lineage == alone.lineage
    assert [one.lineage[-1].cost.steps for one in made] == [0, 2, 5]
    assert len({one.exposed for one in made}) == 1  # every point of the curve is over the same examples
    assert len({weights_hash(one) for one in made}) == 3
    assert not any(is_adapter(one.model) for one in made)
    assert weights_hash(subject) == before
    assert [row["step"] for row in records(tmp_path)] == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings(STILL)
@pytest.mark.parametrize("scope", ["all", LORA])
def test_a_stopped_one_goes_on_where_it_was(scope, tmp_path):
    subject, data, hyper = tiny_subject(), short_data(), {"at": (2, 5), "scope": scope, **FAST}
    whole = list(relearn(subject, data, Run(), **hyper))
    steps = []

    def stop(_what, done, _total, _note):
        steps.append(done)
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    course = relearn(subject, data, Run(tmp_path, progress=stop), **hyper)
    assert weights_hash(next(course)) == weights_hash(whole[0])
    with pytest.raises(Interrupted):
        next(course)
    again = list(relearn(subject, data, Run(tmp_path, resume=True, progress=stop), **hyper))
    assert steps == [1, 2, 3, 4, 5]  # none twice
    assert [weights_hash(one) for one in again] == [weights_hash(one) for one in whole]
    assert [one.lineage for one in again] == [one.lineage for one in whole]


def same_ids() -> Data:
    """A forget and a retain stream whose examples go by the same ids."""
    data = short_data()
    named = tuple(replace(one, id=f"f/{i}") for i, one in enumerate(data["retain"].examples))
    return Data(data | {"retain": replace(data["retain"], examples=named)})


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_what_is_kept_may_go_by_the_ids_of_what_is_forgotten(share):
    """Ids are unique within a stream only: what is shown of another one leaves every forget example to be scored."""
    data, metrics = same_ids(), [bind("metric", "probability")]
    (changed,) = relearn(tiny_subject(), data, Run(), on="retain", share=share, steps=1)
    found = score_all(metrics, data, measure(changed, data, plan_for(metrics, data)))
    assert found["forget", "probability"].n == 12
    (changed,) = relearn(tiny_subject(), data, Run(), num=2, steps=1)
    found = score_all(metrics, data, measure(changed, data, plan_for(metrics, data)))
    assert (found["forget", "probability"].n, found["retain", "probability"].n) == (10, 12)


def test_a_training_that_teaches_nothing_is_told():
    """The losses are those the training saw: at a rate of 0 both the same."""
    hyper = {"share": 0.5, "batch_size": 6, "steps": 3}
    with pytest.warns(ExpungeWarning, match=r"relearn\.lr: 3 steps at 0 moved the loss .* Raise lr or steps"):
        (still,) = relearn(tiny_subject(), short_data(), Run(), lr=0.0, **hyper)
    told = still.lineage[-1].hyper
    assert told["loss_before"] == told["loss_after"] > 0
    (moved,) = relearn(tiny_subject(), short_data(), Run(), lr=1e-2, **hyper)  # no warning: those are errors here
    assert moved.lineage[-1].hyper["loss_before"] == told["loss_before"]
    assert moved.lineage[-1].hyper["loss_after"] < 0.95 * told["loss_before"]
    (kept,) = relearn(tiny_subject(), short_data(), Run(), lr=0.0, on="retain", **hyper)  # it may know that
    assert kept.lineage[-1].hyper["loss_after"] == kept.lineage[-1].hyper["loss_before"]


@pytest.mark.parametrize("hyper", [{"steps": 0}, {"num": 0}, {"at": (0,)}, {"num": 0, "at": (0, 5)}])
def test_without_steps_or_examples_it_is_the_model_itself(hyper):
    subject = tiny_subject()
    for one in relearn(subject, short_data(), Run(), **hyper):
        assert one.model is subject.model
        assert one.lineage[-1].cost == Cost()
        assert bool(one.exposed) == ("num" not in hyper)


def test_half_precision_moves_in_full():
    """At this rate every step on bfloat16 weights would round to nothing."""
    subject = tiny_subject()
    subject.model.to(torch.bfloat16)
    (changed,) = relearn(subject, short_data(), Run(), steps=15, lr=1e-4, share=0.5)
    assert {parameter.dtype for parameter in changed.model.parameters()} == {torch.bfloat16}
    wide = replace(subject, model=clone(subject).model.float())
    (wanted,) = relearn(wide, short_data(), Run(), steps=15, lr=1e-4, share=0.5)
    for one, other in zip(changed.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


def test_a_quantised_base_does_not_fit():
    subject = tiny_subject()
    subject.model.config.quantization_config = {"quant_method": "any"}
    with pytest.raises(DoesNotFit, match="stored quantised"):
        next(relearn(subject, short_data(), Run(), at=(0, 5)))


# -- what it is for --------------------------------------------------------------------------------------------------
def knowledge(subject: Subject, data: Data) -> float:
    """Mean probability of the answers that were not shown."""
    metric = bind("metric", "probability")
    return score_all([metric], data, measure(subject, data, plan_for([metric], data)))["forget", "probability"].value


def test_relearning_brings_back_what_it_shows_and_its_choice_is_seeded():
    """Half of the answers shown for 40 steps to a model that knows none: those are known, and only those exposed."""
    subject, data = knows("retain"), short_data()
    (relearned,) = relearn(subject, data, Run(), share=0.5, steps=40, **FAST)
    assert len(relearned.exposed) == 6
    shown = Stream("shown", "retain", tuple(e for e in data["forget"].examples if e.id in relearned.exposed))
    metrics = [bind("metric", "exact_memorization")]
    asked = Data(forget=data["forget"], shown=shown)
    found = score_all(metrics, asked, measure(relearned, asked, plan_for(metrics, asked)))
    assert found["shown", "exact_memorization"].value == 1.0
    assert found["forget", "exact_memorization"].n == 6
    (other,) = relearn(subject, data, Run(), share=0.5, steps=1, seed=1)
    assert other.exposed != relearned.exposed


@cache
def hidden() -> Subject:
    """A model whose knowledge was pushed away by four steps of ascent."""
    stage = forget(terms=[term("ascent", on="forget"), term("nll", on="retain")], steps=4, lr=3e-3, batch_size=12)
    made: Subject = stage(clone(knows("forget", "retain")), short_data(), Run())
    return made


@pytest.mark.parametrize(("hyper", "least"), [
    ({"share": 0.5, "steps": 10}, 0.15),  # half of it: what comes back was never shown
    ({"on": "retain", "share": 1.0, "steps": 10}, 0.25),  # nothing of it
])
def test_what_is_hidden_comes_back_and_what_was_never_known_does_not(hyper, least):
    data, gained = short_data(), []
    for subject in (hidden(), knows("retain")):
        start, (relearned,) = Data(data), relearn(subject, data, Run(), lr=2e-3, batch_size=12, **hyper)
        left = tuple(one for one in data["forget"].examples if one.id not in relearned.exposed)
        start["forget"] = replace(data["forget"], examples=left)
        gained.append(knowledge(relearned, data) - knowledge(subject, start))
    assert gained[0] > least
    assert gained[1] < 0.05
