"""The dynamic unlearning attack: what it learns from, what is scored, whose model is searched, and what it yields."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.attacked import describe
from expunge.attacks.dua import random_string
from expunge.attacks.shown import lesson
from expunge.attacks.suffix.problem import problems_of
from expunge.errors import DataError, DoesNotFit, Interrupted, RecipeError
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import check_attack, tiny_data, tiny_subject
from expunge.types import Data, Stream
from support.gated import gated_data, refusing

SMALL = {"steps": 2, "width": 8, "length": 3, "pairs": 2}


def attack(**hyper):
    return bind("attack", {"use": "dua", **SMALL, **hyper})


def about(data, each=2, **changes):
    """The data with subjects of so many questions each, the first ones about s0."""
    def put(stream):
        examples = tuple(replace(e, subject=f"s{i // each}", **changes) for i, e in enumerate(stream.examples))
        return replace(stream, examples=examples)

    return Data({name: put(stream) for name, stream in data.items()})


def asked(subject, data, name="probability"):
    metric = bind("metric", name)
    return score_all([metric], data, measure(subject, data, plan_for([metric], data)))["forget", name]


def test_every_check_of_attacks():
    check_attack({"use": "dua", "steps": 1, "width": 4, "length": 2, "pairs": 1})


# -- what is learned from, and what is scored --------------------------------------------------------------------------
def test_within_query_the_questions_searched_on_are_those_scored():
    subject, data = tiny_subject(), tiny_data()
    made = lesson(subject, data["forget"], "within query", 3, 0)
    ids = {one.id for one in made.examples}
    assert len(ids) == 3
    assert made.exposed == {one.id for one in data["forget"].examples} - ids
    whole = lesson(subject, data["forget"], "within query", 99, 0)
    assert whole.examples == data["forget"].examples
    assert not whole.exposed


def test_cross_query_takes_other_wordings_where_there_are_some():
    """Everything is scored, as it is asked; nothing that is asked was searched on."""
    subject, data = tiny_subject(), tiny_data()
    for ask, other in (("prompt", "Tell me forget 0"), ("paraphrase:0", "What is forget 0?")):
        asking = replace(subject, wrapper=replace(subject.wrapper, ask=ask))
        made = lesson(asking, data["forget"], "cross query", 99, 0)
        assert len(made.examples) == 8
        assert made.examples[0].prompt == other
        assert not made.exposed


def test_cross_query_takes_other_questions_of_the_same_subjects_where_there_are_none():
    subject, data = tiny_subject(), about(tiny_data(), each=4, paraphrases=())
    made = lesson(subject, data["forget"], "cross query", 99, 0)
    scored = [one for one in data["forget"].examples if one.id not in made.exposed]
    assert {one.id for one in made.examples} == made.exposed
    assert {one.subject for one in made.examples} == {one.subject for one in scored} == {"s0", "s1"}
    with pytest.raises(DoesNotFit, match="no two examples of 'forget' are about one subject"):
        lesson(subject, about(tiny_data(), each=1, paraphrases=())["forget"], "cross query", 9, 0)


def test_cross_target_scores_nothing_about_the_subjects_searched_on():
    subject, data = tiny_subject(), about(tiny_data())
    made = lesson(subject, data["forget"], "cross target", 3, 0)
    assert len(made.examples) == 3
    scored = [one for one in data["forget"].examples if one.id not in made.exposed]
    assert len(scored) == 4
    assert {one.subject for one in made.examples}.isdisjoint(one.subject for one in scored)
    with pytest.raises(DoesNotFit, match=r"name 1 subject\(s\)"):
        lesson(subject, about(tiny_data(), each=9)["forget"], "cross target", 9, 0)
    with pytest.raises(DoesNotFit, match=r"name 0 subject\(s\)"):
        lesson(subject, tiny_data()["forget"], "cross target", 9, 0)


def test_what_an_earlier_attack_has_shown_is_not_learned_from_again():
    subject, data = tiny_subject(), tiny_data()
    (shown,) = bind("attack", {"use": "relearn", "steps": 1, "share": 0.5})(subject, data, Run())
    made = lesson(shown, data["forget"], "within query", 99, 0)
    assert len(made.examples) == 4
    assert shown.exposed.isdisjoint(one.id for one in made.examples)


# -- what it yields ----------------------------------------------------------------------------------------------------
def test_a_random_string_first_then_one_string_per_budget():
    subject, data = tiny_subject(), tiny_data()
    how = {"generalisation": "within query", "pairs": 3, "width": 16}
    control, start, middle, end = attack(at=[0, 2, 4], **how)(subject, data, Run())
    events = [one.lineage[-1] for one in (control, start, middle, end)]
    assert [event.hyper["steps"] for event in events] == [0, 0, 2, 4]
    assert [event.cost.steps for event in events] == [0, 0, 2, 4]
    assert len({event.exposed for event in events}) == 1  # the same are scored
    assert events[0].cost.queries == 3
    assert events[1].cost.queries < events[2].cost.queries < events[3].cost.queries
    assert events[3].cost.queries <= 3 * (1 + 4 * 16)
    tokens = [len(subject.tokenizer(one.wrapper.rewrite.text)["input_ids"]) for one in (control, start, end)]
    assert len(set(tokens)) == 1
    scores = [asked(one, data).value for one in (start, middle, end)]
    assert scores[0] < scores[1] <= scores[2]  # of the questions it was searched on
    assert all(asked(one, data).n == 3 for one in (control, end))


def test_written_forms_come_first_and_are_scored_on_the_same_questions():
    pytest.importorskip("expunge.attacks.jailbreaks")
    data = tiny_data()
    made = list(attack(static=2, generalisation="within query")(tiny_subject(), data, Run()))
    events = [one.lineage for one in made]
    assert [len(lineage) for lineage in events] == [1] * 4
    assert len({one.exposed for one in made}) == 1
    assert [lineage[0].cost.queries for lineage in events[:3]] == [2, 2, 2]
    prompts = [one.wrapper.rewrite(data["forget"].examples[0]).prompt for one in made]
    assert len(set(prompts)) == 4
    assert all("What is forget 0?" in prompt for prompt in prompts)


def test_each_says_what_it_is():
    bound = attack(static=1, at=[0, 2])
    made = [describe(bound, [one.lineage[-1].hyper]) for one in bound(tiny_subject(), tiny_data(), Run())]
    assert describe(bound) == "words added to every question"
    assert made == [f"words added to every question ({what})" for what in (
        "the written form prefix injection", "a random string of 3 tokens",
        "cross query: 3 tokens searched for in 0 steps on the unlearned model",
        "cross query: 3 tokens searched for in 2 steps on the unlearned model",
    )]


@pytest.mark.parametrize("generalisation", ["within query", "cross query", "cross target"])
def test_nothing_of_another_stream_is_left_out(generalisation):
    """Ids are unique within a stream only, and those that are left out are looked up in what is to be forgotten."""
    data = about(tiny_data(), paraphrases=())
    kept = tuple(replace(b, id=a.id) for a, b in zip(data["forget"].examples, data["retain"].examples, strict=False))
    data = Data({**data, "retain": replace(data["retain"], examples=kept)})
    for on, some in (("retain", False), ("forget", True)):
        for made in attack(generalisation=generalisation, on=on, steps=1)(tiny_subject(), data, Run()):
            assert bool(made.exposed) is some


def test_as_many_subjects_when_the_search_ends_early(monkeypatch):
    """The oracle's are compared with the unlearned model's one by one."""
    from expunge.attacks.suffix import search as module

    whole = module.search
    monkeypatch.setattr(module, "search", lambda *given: (step for step in whole(*given) if step.number < 2))
    made = list(attack(at=[1, 5, 9])(tiny_subject(), tiny_data(), Run()))
    assert [one.lineage[-1].hyper["steps"] for one in made] == [0, 1, 1, 1]


def test_random_strings_are_read_back_and_drawn_by_seed():
    problems = problems_of(tiny_subject(), tiny_data()["forget"].examples, length=6)
    one, same, other = (random_string(problems, seed) for seed in (0, 0, 1))
    assert one == same != other
    ids = problems[0].subject.tokenizer(one.text.lstrip())["input_ids"]  # the space before it is not searched for
    assert len(ids) == len(problems[0].start)
    assert problems[0].put(ids) == one
    assert all(problem.exact(ids) for problem in problems)


def test_the_original_is_searched_and_its_suffix_carried_over():
    data, knowing, other = tiny_data(), tiny_subject(seed=1), tiny_subject()
    with pytest.raises(DoesNotFit, match="the model before the removal was not given"):
        next(attack(practicality="original")(other, data, Run()))
    texts = []
    for model in (knowing, other):
        helped = replace(model, helpers={"original": knowing})
        *_, found = attack(practicality="original")(helped, data, Run())
        assert found.model is model.model
        texts.append(found.wrapper.rewrite.text)
    *_, own = attack()(other, data, Run())
    assert texts[0] == texts[1] != own.wrapper.rewrite.text


def test_it_goes_on_from_earlier_rewrites_and_turns():
    subject, data = tiny_subject(), tiny_data()
    wrapper = replace(subject.wrapper, ask="paraphrase:0", turns={"": (("Hello.", "Hi."),)}, prefill="Sure: ")
    told = replace(subject, wrapper=wrapper)
    *_, twice = bind("attack", {"use": "chain", "attacks": [{"use": "dua", **SMALL}] * 2})(told, data, Run())
    assert len(twice.lineage) == 2
    assert twice.wrapper.turns == wrapper.turns
    assert twice.wrapper.ask == "paraphrase:0"
    put = twice.wrapper.rewrite(data["forget"].examples[0])
    assert put.paraphrases[0].startswith("Tell me forget 0")
    assert put.paraphrases[0].endswith(twice.wrapper.rewrite.then.text)


def test_a_killed_search_goes_on_and_yields_what_it_would_have(tmp_path, monkeypatch):
    data, subject, bound = tiny_data(), tiny_subject(), attack(at=[1, 3, 5])

    def told(run):
        return [(one.wrapper, one.lineage[-1].hyper, one.lineage[-1].cost) for one in bound(subject, data, run)]

    whole = told(Run())
    run = Run(tmp_path)
    inner = run.at(0)
    inner.progress = lambda what, done, total, note: setattr(inner, "stopped", done == 4)
    monkeypatch.setattr(run, "at", lambda index: inner)
    with pytest.raises(Interrupted):
        told(run)
    assert told(Run(tmp_path, resume=True)) == whole


def test_what_does_not_fit_and_wrong_arguments_are_told():
    data = tiny_data()
    for name, value in (("static", -1), ("length", 0), ("pairs", 0), ("at", [2, 1]), ("steps", -1)):
        with pytest.raises(RecipeError, match=rf"attacks\.dua\.{name}"):
            next(attack(**{name: value})(tiny_subject(), data, Run()))
    with pytest.raises(DataError, match="did you mean 'forget'"):
        next(attack(on="forgt")(tiny_subject(), data, Run()))
    for family, task in (("bart", "seq2seq"), ("bert", "masked")):
        with pytest.raises(DoesNotFit, match=task):
            next(attack()(tiny_subject(family=family), data, Run()))
    plain = Data(forget=Stream("forget", "forget", tuple(replace(e, prompt="") for e in data["forget"].examples)))
    with pytest.raises(DoesNotFit, match="no question"):
        next(attack()(tiny_subject(), plain, Run()))


@pytest.mark.slow
def test_a_suffix_found_on_some_subjects_opens_the_others_where_there_is_something_to_open():
    """Both models refuse; one would tell if asked in the right way. What falls to a random string is no memory."""
    data, found = gated_data(), []
    for knows_it in (True, False):
        subject = refusing(knows_it)
        made = attack(generalisation="cross target", steps=20, width=64, length=6, pairs=8)(subject, data, Run())
        found.append([asked(one, data) for one in (subject, *made)])
    (plain, control, hidden), (_, _, never) = found
    assert plain.n == 36
    assert control.n == hidden.n == never.n == 18
    assert hidden.value > control.value + 0.1  # 0.14 to 0.41 with five seeds
    assert hidden.value > never.value + 0.1  # 0.15 to 0.37
