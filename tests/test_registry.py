"""The registry: names, paths, arguments read from signatures, and errors that name the closest thing."""

from __future__ import annotations

import sys
import types
import warnings
from importlib.metadata import EntryPoint

import pytest

from expunge import registry
from expunge.errors import RecipeError
from expunge.registry import HOMES, bind, bind_term, entries, find, parameters, register, spec_of, term
from expunge.types import Bound, Term


@pytest.fixture
def stranger(monkeypatch):
    """A module of a third party, importable as `stranger_parts`; the registry is restored afterwards."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    module = types.ModuleType("stranger_parts")
    source = '''
from expunge.registry import metric, objective
from expunge.types import Needs, Score

def plain(view, *, power: float = 1.0):
    "Not registered."
    return -view.now.sum_logp ** power

@objective("registered", mean="tokens", tokens="text")
def registered(view):
    "Registered by a decorator."
    return -view.now.sum_logp

@metric("theirs", Needs("tokens"), unit="share")
def theirs(tables):
    "A metric of theirs."
    return Score.missing("never")

number = 5
'''
    module.__dict__["__name__"] = "stranger_parts"
    monkeypatch.setitem(sys.modules, "stranger_parts", module)
    exec(source, module.__dict__)
    return module


@pytest.mark.parametrize("kind", HOMES)
def test_every_kind_has_parts_and_each_says_what_it_is(kind):
    found = entries(kind)
    assert found, f"no {kind}s: HOMES names the wrong place"
    assert all(entry.summary and entry.kind == kind for entry in found.values())
    assert list(found) == sorted(found)


def test_arguments_are_the_keyword_only_ones_with_their_defaults():
    found = parameters(entries("objective")["npo"].fn)
    assert {name: p.default for name, p in found.items()} == {"beta": 0.1, "length_norm": False}
    assert bind("objective", "npo").hyper == {"beta": 0.1, "length_norm": False}
    assert bind("objective", {"use": "npo", "beta": "1e-2"}).hyper["beta"] == 0.01


@pytest.mark.parametrize(("kind", "spec", "message"), [
    ("objective", "npoo", r"objective\.use: unknown objective 'npoo'; did you mean 'npo'\?\. See: expunge list"),
    ("objective", {"use": "npo", "betta": 1}, r"objective\.betta: unknown argument \(got 1\); did you mean 'beta'\?"),
    ("objective", {"beta": 1}, "a name or a mapping with 'use'"),
    ("objective", 5, "got 5; a objective is a name"),
    ("objective", {"use": "npo", "beta": "much"}, r"objective\.beta: got 'much' .*accepted: float"),
    ("objective", {"use": "npo", "length_norm": 7}, r"objective\.length_norm: got 7 .*accepted: bool"),
    ("reader", {"use": "jsonl"}, r"reader\.path: missing; reader 'jsonl' needs it\. Add 'path: \.\.\.'"),
    ("metric", {"use": "membership", "score": "zlip"}, r"metric\.score: got 'zlip' \(Input should be 'loss'"),
    ("stage", {"use": "forget", "terms": {"use": "npo", "on": "forget"}}, r"stage\.terms: got .*a list of objectives"),
    ("stage", {"use": "forget", "terms": [{"use": "npo"}]}, r"stage\.terms\[0\]\.on: missing"),
    ("stage", {"use": "forget", "terms": ["npo"]}, r"stage\.terms\[0\]: got 'npo'; a term is a mapping"),
    ("stage", {"use": "forget", "terms": [], "scope": "lorra"}, r"stage\.scope\.use: .*did you mean 'lora'"),
    ("objective", "no_such_module:thing", r"cannot import 'no_such_module:thing'"),
    ("objective", ":thing", r"cannot import ':thing'"),
    ("objective", "expunge.objectives.likelihood:nill", r"cannot import .*nill"),
    ("metric", "expunge.objectives.likelihood:nll", r"is a registered objective; a metric"),
])
def test_wrong_specs_are_told_in_four_parts(kind, spec, message):
    with pytest.raises(RecipeError, match=message) as caught:
        bind(kind, spec)
    assert all((caught.value.where, caught.value.found, caught.value.accepted, caught.value.do))


@pytest.mark.parametrize(("spec", "message"), [
    ({"use": "npo", "on": "forget", "wieght": 1}, "did you mean 'weight'"),
    ({"use": "npo", "on": "forget", "weight": "heavy"}, r"term\.weight: got 'heavy'"),
    ({"use": "npo", "on": "forget", "mean": "token"}, r"term\.mean: got 'token'; did you mean 'tokens'"),
    ({"use": "npo", "on": "forget", "tokens": "answers"}, r"term\.tokens: .*did you mean 'answer'"),
    ({"use": "npo", "on": 5}, r"term\.on: got 5; a stream name"),
    ({"use": "npo", "on": ["forget", 5]}, r"term\.on: got a list of 2"),
    ({"use": "dpo", "on": "forget"}, r"term\.on: 1 stream\(s\): forget; 'dpo' looks at 2"),
])
def test_wrong_terms_are_told(spec, message):
    with pytest.raises(RecipeError, match=message):
        bind_term(spec)


def test_a_term_takes_divisor_and_positions_from_its_objective_unless_told():
    assert term("kl", on="retain").mean == "tokens"
    assert term("kl", on="retain").tokens == "text"
    assert term("kl", on="retain", tokens="answer", mean="examples").tokens == "answer"
    assert term("npo", on="forget").mean == "examples"
    assert term("dpo", on=("a", "b")).label == "dpo(a,b)"


@pytest.mark.parametrize("spec", [
    {"use": "forget", "terms": [{"use": "dpo", "on": ["refusals", "forget"], "weight": 2, "beta": 0.5}],
     "scope": {"use": "lora", "rank": 3}, "optimizer": {"use": "adamw", "betas": [0.8, 0.9]}, "steps": 3},
    {"use": "relabel", "source": "alternative"},
])
def test_spec_of_is_the_inverse_of_bind(spec):
    made = bind("stage", spec)
    again = bind("stage", spec_of(made))
    assert spec_of(again) == spec_of(made)
    assert again.hyper == made.hyper


def test_what_is_bound_already_stays_as_it_is():
    made = bind("objective", "npo")
    assert bind("objective", made) is made
    one = Term(made, ("forget",))
    assert bind_term(one) is one


def test_an_unregistered_function_of_a_module_can_be_used(stranger):
    made = bind("objective", {"use": "stranger_parts:plain", "power": 2})
    assert made.hyper == {"power": 2.0}
    assert made.name == "stranger_parts:plain"
    with pytest.raises(RecipeError, match="is a int without its declaration"):
        bind("objective", "stranger_parts:number")
    with pytest.raises(RecipeError, match="without its declaration; a metric"):
        bind("metric", "stranger_parts:plain")


def test_a_registered_part_of_a_stranger_keeps_its_path_so_that_a_resolved_recipe_finds_it(stranger):
    """Elsewhere `use: registered` would be unknown, because nobody has imported the stranger's module."""
    made = bind("objective", "stranger_parts:registered")
    assert made.meta["mean"] == "tokens"
    assert spec_of(made)["use"] == "stranger_parts:registered"
    assert bind("metric", "stranger_parts:theirs").meta["unit"] == "share"
    ours = bind("objective", "expunge.objectives.preference:npo")
    assert ours == bind("objective", "npo")


def test_one_name_for_two_parts_is_an_error(stranger):
    with pytest.raises(RecipeError, match=r"objective 'registered': registered by stranger_parts and again by"):
        register("objective", "registered")(lambda view: view)


def test_a_broken_plugin_warns_and_stops_nobody(monkeypatch):
    broken = EntryPoint("broken", "no_such_module_at_all:part", "expunge.objective")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken] if group == "expunge.objective" else [])
    registry._load.cache_clear()
    with pytest.warns(UserWarning, match=r"plugin broken \(no_such_module_at_all:part\) did not load"):
        found = entries("objective")
    assert "npo" in found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find("objective", "npo", "here").name == "npo"


def test_a_bound_calls_its_function_with_its_arguments():
    made = Bound("objective", "double", lambda x, *, by: x * by, {"by": 2})
    assert made(21) == 42
