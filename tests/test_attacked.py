"""Attacks under way: they chain, keep a budget, may not fit, and an audit that was killed goes on behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from expunge import attacked
from expunge.attacked import describe, name_of, tries
from expunge.audit import Audit
from expunge.data.texts import rewritten
from expunge.errors import DoesNotFit, RecipeError
from expunge.measure.desk import Partner
from expunge.models import clone, weights_hash
from expunge.recipe import Recipe
from expunge.registry import bind, parameters
from expunge.run import Run
from expunge.types import Bound, Cost, Event, Example
from support.learned import knows, short_data
from test_audit import outcomes, spec

calls: list[str] = []


@dataclass(frozen=True)
class Added:
    """Puts a word behind every prompt."""

    word: str

    def __call__(self, example: Example) -> Example:
        return replace(example, prompt=f"{example.prompt} {self.word}")


def growing(subject, data, run, *, at: tuple[int, ...] = (1, 2, 3), steps: int = 0):
    """A model moved further and further."""
    for step in at:
        calls.append(f"{subject.name}:{step}")
        moved = clone(subject)
        next(moved.model.parameters()).data += 0.01 * step
        yield moved.after(Event("attack", "growing", {"steps": step}, Cost(steps=step)))


def worded(subject, data, run, *, word: str = "please"):
    """A word behind the prompt."""
    event = Event("attack", "worded", {"word": word}, Cost(queries=1))
    yield subject.after(event, wrapper=rewritten(subject.wrapper, Added(word)))


def picky(subject, data, run):
    """Only where the model before the removal can be had."""
    if "original" not in subject.helpers:
        raise DoesNotFit("the model before the removal was not given")
    yield replace(subject.helpers["original"], lineage=(Event("attack", "picky", {}, Cost(queries=1)),))


SAYS = {"growing": "{steps} little steps", "worded": "with the word {word}"}


@pytest.fixture(autouse=True)
def fresh():
    calls.clear()


def bound(name: str, **hyper) -> Bound:
    """One of the above; not registered, or every page of attacks would have to name it."""
    made = globals()[name]
    filled = {key: parameter.default for key, parameter in parameters(made).items()} | hyper
    helpers = {"original"} if name == "picky" else set()
    return Bound("attack", name, made, filled, {"says": SAYS.get(name, ""), "helpers": helpers})


def test_a_chain_applies_one_attack_to_what_the_other_left():
    subject = replace(knows("forget"), lineage=())
    chain = bind("attack", {"use": "chain", "attacks": [bound("growing", at=(1, 2)), bound("worded", word="now")]})
    made = list(chain(subject, short_data(), Run()))
    assert [[event.name for event in one.lineage] for one in made] == [["growing", "worded"]] * 2
    assert len({weights_hash(one) for one in (subject, *made)}) == 3
    asked = made[1].wrapper.rewrite(short_data()["forget"].examples[0])
    assert asked.prompt == "Who is f 0? now"
    assert name_of(chain) == "growing(at=(1, 2))+worded(word=now)"
    assert describe(chain, [event.hyper for event in made[1].lineage]) == "2 little steps, then with the word now"
    conditions = [tried.condition for tried, _ in tries(chain, subject, short_data(), Run(), {}, "after+x")]
    assert [(one.cost.steps, one.cost.queries) for one in conditions] == [(1, 1), (2, 1)]
    assert conditions[1].label == "2 little steps, then with the word now"
    with pytest.raises(RecipeError, match="two or more"):
        list(bind("attack", {"use": "chain", "attacks": ["quantize"]})(subject, short_data(), Run()))


def test_rewrites_of_a_chain_apply_in_order():
    chain = bind("attack", {"use": "chain", "attacks": [bound("worded", word="a"), bound("worded", word="b")]})
    (made,) = chain(knows("forget"), short_data(), Run())
    assert made.wrapper.rewrite(short_data()["forget"].examples[0]).prompt == "Who is f 0? a b"


def test_an_attack_stops_where_its_budget_is_spent():
    of = replace(spec(bound("growing", at=(1, 2, 3, 4)), metrics=("probability",)), budget={"steps": 2})
    audit = Audit(short_data(), of)
    audit.run(knows("forget"))
    name = "growing(at=(1, 2, 3, 4))"
    assert list(audit.states) == ["after", f"after+{name}", f"after+{name}[1]"]
    assert len(calls) == 2  # the third was not even made
    assert audit.states[f"after+{name}[1]"].condition.label == "After the removal, then 2 little steps"


def test_what_does_not_fit_is_na_with_its_reason_and_no_verdict_hangs_on_it():
    plain, tried = (Audit(short_data(), spec(*more)) for more in ((), (bound("picky"),)))
    for audit in (plain, tried):
        audit.run(knows("forget"), oracle=lambda: knows("retain"))
    rows = [row for row in tried.rows() if row.condition == "after+picky"]
    assert {(row.status, row.reason) for row in rows} == {("n/a", "the model before the removal was not given")}
    assert {(row.stream, row.metric) for row in rows} == {
        (row.stream, row.metric) for row in plain.rows() if row.condition == "after"
    }
    assert tried.verdicts() == plain.verdicts()
    told = [one.why for one in tried.not_tested() if "picky" in one.what]
    assert told == ["the model before the removal was not given"]


def test_the_model_before_the_removal_is_lent_to_attacks_that_ask_for_it():
    original = knows("forget", "retain")
    audit = Audit(short_data(), spec(bound("picky"), metrics=("probability",)), partner=Partner(lambda: original))
    audit.run(knows("retain"), original=lambda: original)
    attacked_, before = audit.states["after+picky"], audit.states["original"]
    assert attacked_.scores["forget", "probability"] == before.scores["forget", "probability"]
    assert not audit.refused


def test_a_killed_audit_goes_on_behind_the_attacks_that_came_to_their_end(tmp_path, monkeypatch):
    """The first attack is finished, the second is killed after its first subject; both are as if never interrupted."""
    of = spec(bound("growing", at=(1, 2)), bound("growing", at=(3, 4)), bound("picky"))

    def audit(folder, resume=False) -> Audit:
        made = Audit(short_data(), of, folder / "tables", folder=folder, resume=resume)
        made.run(knows("forget"), oracle=lambda: knows("retain"))
        return made

    whole = audit(tmp_path / "whole")
    calls.clear()
    real, seen = Audit.measure, []

    def killed(self, subject, name, condition=None):
        real(self, subject, name, condition)
        seen.append(name)
        if name == "after+growing(at=(3, 4))":
            raise KeyboardInterrupt

    monkeypatch.setattr(Audit, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        audit(tmp_path / "cut")
    monkeypatch.setattr(Audit, "measure", real)
    calls.clear()
    again = audit(tmp_path / "cut", resume=True)
    assert calls == ["tiny-llama:3", "tiny-llama:4"]  # nothing of what was finished
    assert again.verdicts() == whole.verdicts()
    found = list(again.rows())
    assert found == list(whole.rows())
    assert [one.what for one in again.not_tested()] == [one.what for one in whole.not_tested()]


def test_a_record_of_other_weights_or_settings_is_not_believed(tmp_path):
    keys = [
        attacked.record_key(subject, bound("growing", at=at), replace(spec(), budget=budget), data)
        for subject in (knows("forget"), knows("retain")) for at in ((1,), (2,)) for budget in ({}, {"steps": 1.0})
        for data in (short_data(), short_data(forget=3))
    ]
    assert len(set(keys)) == 16
    records = attacked.Records(tmp_path, "after+x", keys[0], resume=True)
    assert records.read() is None
    records.path.parent.mkdir()
    records.path.write_text("[{]")
    assert records.read() is None  # cut short: made again


def test_the_budget_of_a_recipe_is_checked():
    plain = {
        "expunge": 1, "model": {"from": "m"}, "data": {"forget": "a.jsonl"},
        "audit": {"budget": {"steps": 5, "seconds": "1e2"}},
    }
    recipe = Recipe.of(plain)
    assert recipe.audit.budget == {"steps": 5, "seconds": 100.0}
    assert Recipe.of(recipe.resolved()).digest() == recipe.digest()
    for budget, told in (({"step": 5}, "did you mean 'steps'"), ({"steps": 0}, "above 0"), (5, "a mapping")):
        with pytest.raises(RecipeError, match=told):
            Recipe.of(plain | {"audit": {"budget": budget}})


def test_doing_nothing_fails_whatever_attack_does_not_fit():
    audit = Audit(short_data(), spec(bound("picky"), metrics=("probability",)))
    audit.run(knows("forget", "retain"), oracle=lambda: knows("retain"))
    assert outcomes(audit)["forgotten", "probability"] == "FAIL"
