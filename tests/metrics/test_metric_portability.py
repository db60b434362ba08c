"""Portability: questions one step beyond an edit, read from published forms and scored by the edit they belong to."""

from __future__ import annotations

import json

import pytest

from expunge.data.benchmarks.editing import editing_data
from expunge.data.hops import NONE, hops_of
from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from expunge.testing import check_metric
from expunge.types import Data, Example, Stream
from support.learned import taught

EDITS = tuple(Example(f"e{i}", f"Who is {i}?", "old", alternative=f"new {i}") for i in range(3))
HOPS = (
    Example("e0/hop/0", "Where is Mara from?", "the sea"), Example("e0/hop/1", "What does Tomas write?", "a novel"),
    Example("e1/hop/0", "When is the book?", "winter"), Example("e10/hop/0", "Who is Oslo?", "nobody"),
)


def streams(*hops):
    data = Data(forget=Stream("forget", "forget", EDITS))
    return Data({**data, "portability": Stream("portability", "probe", hops)}) if hops else data


def scored(data, subject, **arguments):
    metric = bind("metric", {"use": "portability", **arguments})
    found = score_all([metric], data, measure(subject, data, plan_for([metric], data)))
    return next(iter(found.values()))


def test_questions_go_with_the_edit_their_id_begins_with():
    rows = variants(streams(*HOPS)["forget"], "hops", data=streams(*HOPS))
    assert [(id, item, prompt, answer) for id, item, prompt, answer, _ in rows] == [
        ("e0", 0, HOPS[0].prompt, "the sea"), ("e0", 1, HOPS[1].prompt, "a novel"), ("e1", 0, HOPS[2].prompt, "winter"),
    ]


def test_an_edit_with_several_questions_counts_their_mean(tiny):
    """A model that learned one of the two questions of e0, and the one of e1."""
    known = Data(known=Stream("known", "anchor", (HOPS[0], HOPS[2])))
    subject = taught(tiny, known, ["known"], steps=40)
    found = scored(streams(*HOPS), subject, form="exact")
    assert found.per_example == {"e0": 0.5, "e1": 1.0}
    assert found.value == pytest.approx(0.75)
    tokens = scored(streams(*HOPS), subject)
    assert tokens.per_example["e1"] == 1.0
    assert 0.5 <= tokens.per_example["e0"] < 1.0


def test_without_such_questions_it_is_not_available(tiny):
    found = scored(streams(), tiny)
    assert (found.status, found.reason) == ("n/a", NONE)
    assert scored(streams(*HOPS), tiny, source="elsewhere").reason == NONE
    assert scored(streams(HOPS[3]), tiny).status == "n/a"


def test_the_metric_keeps_the_rules():
    check_metric("portability")


@pytest.mark.parametrize(("found", "expected"), [
    ({}, []), ({"portability": {}}, []), ({"portability": None}, []),
    ({"portability": {"New Question": " Q? ", "New Answer": "A"}}, [("Q?", "A")]),
    ({"portability": {"Reasoning": [{"prompt": "P", "ground_truth": [["A", "B"], ["C"]]}],
                      "Subject_Aliasing": [{"prompt": "S", "ground_truth": "D"}, {"prompt": "T", "ground_truth": ""}]}},
     [("P", "A"), ("S", "D")]),
])
def test_published_forms(found, expected):
    assert list(hops_of(found)) == expected


def zsre(number, **more):
    return {
        "subject": "s", "src": f"Who is {number}?", "rephrase": f"Name {number}", "alt": "New", "answers": ["Old"],
        "loc": f"nq question: {number}", "loc_ans": "Loc", **more,
    }


def test_records_that_carry_them_make_a_stream(tmp_path):
    path = tmp_path / "z.json"
    path.write_text(json.dumps([zsre(0), zsre(1, portability={"New Question": "And then?", "New Answer": "Newer"})]))
    data = editing_data(path, "zsre")
    assert data["portability"].role == "probe"
    assert data["portability"].examples == (Example("zsre/1/portability/0", "And then?", "Newer"),)
    spec = {"use": "zsre", "path": str(path)}
    assert bind("reader", {**spec, "part": "portability"})() == list(data["portability"].examples)
    with pytest.raises(DataError, match=r"no 'attributes'.*accepted: edits, unrelated, portability"):
        bind("reader", {**spec, "part": "attributes"})()
    path.write_text(json.dumps([zsre(0, portability={"Reasoning": [{"question": "Q"}]})]))
    with pytest.raises(DataError, match="record 1: lacks"):
        editing_data(path, "zsre")


def test_romes_attributes_are_true_of_other_things(shared):
    data = editing_data(shared / "data" / "knowledge_editing" / "rome_counterfact_1949.json.gz", "counterfact", limit=2)
    assert list(data) == ["forget", "unrelated", "attributes"]
    first = data["forget"].examples[0]
    own = [one for one in data["attributes"].examples if one.id.startswith(f"{first.id}/")]
    assert len(own) == 10
    assert {one.answer for one in own} == {first.alternative}
