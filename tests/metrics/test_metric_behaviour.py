"""Behaviour of generated text: toxicity, sentiment, repetition, distinct-n, refusals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from expunge.errors import RecipeError
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.behaviour import (
    REFUSALS,
    distinct_n,
    distinct_of,
    opening,
    refusal_rate,
    refused,
    repeated,
    repetition,
    said_before,
    sentiment,
    token_repetition,
    toxicity,
)
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.relabel import refusals
from expunge.scoring import plan_for, score_all
from support import golden
from support.learned import knows, short_data
from support.metric_tables import sample_table, tables


def case(name, file="quark"):
    return next(one for one in golden.load(file)["cases"] if one["id"] == name)


def said(*texts, per_prompt=1):
    """Tables of what was generated, `per_prompt` texts for each prompt."""
    rows = [(f"p/{i // per_prompt}", "", text) for i, text in enumerate(texts)]
    return tables({("forget", "prompt"): sample_table(rows)})


def spoken(*rows):
    """Tables of generated tokens, one row per prompt."""
    ids = [f"p/{i}" for i in range(len(rows))]
    tokens = pa.array(rows, type=pa.list_(pa.int64()))
    table = Table(pa.table({"id": ids, "item": [0] * len(ids), "text": ["x"] * len(ids), "tokens": tokens}))
    return Tables({("this", "forget", "samples", "prompt"): table}, "forget", {})


# -- toxicity and sentiment ------------------------------------------------------------------------------------
def test_golden_toxicity():
    """Three prompts, the third with one text that could not be scored."""
    given = case("toxicity")
    texts = ["?" if score is None else str(score) for row in given["inputs"]["scores"] for score in row]
    found = said(*texts, per_prompt=4)
    worst = toxicity(found, scorer="support.spoken:numbers", over="max")
    assert worst.value == pytest.approx(given["expected"]["avg_max_toxicity"])
    assert list(worst.per_example.values()) == pytest.approx(given["expected"]["per_prompt_max"])
    share = toxicity(found, scorer="support.spoken:numbers", over="any")
    assert share.value == pytest.approx(given["expected"]["toxicity_prob"])
    assert share.ci == pytest.approx(clopper_pearson(2, 3))
    assert "1 of 12 texts could not be scored" in share.reason


def test_the_threshold_is_strict_and_the_scorer_is_named():
    found = toxicity(said("0.5", "0.51", "0.1"), scorer="support.spoken:numbers", over="any")
    assert found.value == pytest.approx(1 / 3)
    assert "scorer support.spoken:numbers" in found.reason
    assert toxicity(said("0.5", "0.51"), scorer="support.spoken:numbers", over="any", threshold=0.4).value == 1.0
    assert toxicity(said("0.2", "0.4"), scorer="support.spoken:numbers").value == pytest.approx(0.3)


@pytest.mark.parametrize(("name", "why"), [("too_few", "1 numbers for 2 texts"), ("outside", "a number outside")])
def test_a_scorer_that_is_wrong_is_told(name, why):
    with pytest.raises(RecipeError, match=why):
        toxicity(said("a", "b"), scorer=f"support.spoken:{name}")


def test_nothing_could_be_scored():
    with pytest.raises(NotMeasured, match="2 of 2 texts"):
        toxicity(said("?", "?"), scorer="support.spoken:numbers")


def test_the_built_in_scorers_tell_rude_from_kind():
    rude, kind = said("You are a stupid idiot!", "Shut up."), said("What a lovely day.", "Thank you, friend.")
    assert toxicity(rude).value > 0.5 > toxicity(kind).value == 0.0
    assert sentiment(rude).value < 0.5 < sentiment(kind).value


# -- repetition ------------------------------------------------------------------------------------------------
def test_golden_repetition():
    given = case("repetition")
    inputs, expected = given["inputs"], given["expected"]
    for n in (2, 3, 4):
        assert 100 * repeated(inputs["generated"], (n,)) == pytest.approx(expected[f"rep{n}"])
        assert 100 * repetition(spoken(inputs["generated"]), orders=(n,)).value == pytest.approx(expected[f"rep{n}"])
    assert repetition(spoken(inputs["generated"])).value == pytest.approx(1 - expected["diversity"])
    again = said_before(inputs["generated"], inputs["argmax_predictions"], inputs["l"])
    wrong = np.array(inputs["argmax_predictions"]) != np.array(inputs["gold_next"])
    assert 100 * again.mean() == pytest.approx(expected["rep_l"])
    assert 100 * (again & wrong).mean() == pytest.approx(expected["wrep_l"])


def test_repetition_by_hand():
    """a b a b: bigrams ab ba ab, a third repeated. Shorter than the largest n: left out."""
    found = repetition(spoken([1, 2, 1, 2], [1]), orders=(2,))
    assert found.value == pytest.approx(1 / 3)
    assert found.reason == "1 of 2 texts have fewer than 2 tokens and were left out"
    assert repetition(spoken([7] * 50)).value == pytest.approx(1 - 1 / (49 * 48 * 47))
    assert repetition(spoken(list(range(9)))).value == 0.0
    with pytest.raises(RecipeError, match="1 or more"):
        repetition(spoken([1, 2]), orders=(0,))


def greedy_tables(token, greedy):
    columns = {name: pa.array([row], type=pa.list_(pa.int64())) for name, row in (("token", token), ("greedy", greedy))}
    columns["logp"] = pa.array([[-1.0] * len(token)], type=pa.list_(pa.float64()))
    table = Table(pa.table({"id": ["a"], "item": [0], **columns}))
    return Tables({("this", "forget", "tokens", "answer"): table}, "forget", {})


def test_token_repetition_by_hand():
    """True text 5 6 5 8; choices 5, 5, 6, 7: the second is read (and wrong), the third is read (and wrong)."""
    found = greedy_tables([5, 6, 5, 8], [5, 5, 6, 7])
    assert token_repetition(found).value == 0.5
    assert token_repetition(found, wrong=True).value == 0.5
    assert token_repetition(found, window=1).value == 0.5
    right = greedy_tables([5, 6, 5, 8], [5, 6, 5, 8])
    assert token_repetition(right).value == 0.25  # the second 5 stands there already
    assert token_repetition(right, window=1).value == 0.0
    assert token_repetition(right, wrong=True).value == 0.0


# -- distinct-n ------------------------------------------------------------------------------------------------
def test_golden_distinct_n():
    given = case("dist_n")
    texts = [text for row in given["inputs"]["generations"] for text in row]
    for n, (mean, pooled) in enumerate(zip(given["expected"]["per_prompt_mean"], given["expected"]["pooled"],
                                           strict=True), 1):
        assert distinct_n(said(*texts, per_prompt=2), n=n).value == pytest.approx(mean)
        one = distinct_n(said(*texts, per_prompt=2), n=n, pooled=True)
        assert one.value == pytest.approx(pooled)
        assert one.ci is None
        assert "no interval" in one.reason


def test_distinct_n_by_hand():
    """"the cat the cat": two bigrams of four words, "the cat" and "cat the"."""
    assert distinct_of(["the cat the cat"], 2) == 0.5
    found = distinct_n(said("the cat the cat", "", "a b"), n=2)
    assert found.per_example == {"p/0": 0.5, "p/2": 0.5}
    assert found.reason == "1 of 3 texts are empty and were left out"
    same = said(*["one good answer"] * 8)
    assert distinct_n(same, n=1).value == 1.0
    assert distinct_n(same, n=1, pooled=True).value == 0.125
    with pytest.raises(NotMeasured):
        distinct_n(said("", ""), pooled=True)


# -- refusals --------------------------------------------------------------------------------------------------
def test_golden_compliance_accounting():
    """Harmful: broken when any sample is no refusal. Harmless: refused when any sample is one."""
    given = case("compliance_rate", "dro")
    inputs, expected = given["inputs"], given["expected"]

    def answers(rows):
        return said(*("Sure, here it is." if one else "I cannot help." for row in rows for one in row), per_prompt=4)

    harmful, harmless = answers(inputs["harmful_sample_compliance"]), answers(inputs["harmless_sample_nonrefusal"])
    assert 100 * (1 - refusal_rate(harmful, over="all").value) == pytest.approx(expected["harmful_broken_pct"])
    assert 100 * refusal_rate(harmless, over="any").value == pytest.approx(expected["harmless_refused_pct"])
    means = [1 - value for value in refusal_rate(harmful).per_example.values()]
    assert means == pytest.approx(expected["query_scores_harmful"])


def test_refusals_of_our_own_are_all_seen():
    lines = [line for line in refusals() if line.strip()]
    assert len(lines) >= 20
    assert [line for line in lines if not refused(line)] == []


def test_published_refusals_and_answers(shared):
    """Of TOFU's hundred refusals 93 are seen, of its four thousand answers none is taken for one."""
    import json

    folder = shared / "data" / "tofu"
    told = [line for line in (folder / "idontknow.jsonl").read_text().splitlines() if line.strip()]
    assert sum(map(refused, told)) >= 0.9 * len(told)
    answers = [json.loads(line)["answer"] for line in (folder / "forget10.json").read_text().splitlines()]
    assert sum(map(refused, answers)) <= 0.005 * len(answers)


@pytest.mark.parametrize("text", [
    "I can't help with that.", "I’m sorry, but I cannot do this.", "As an AI, I must decline to answer.",
    "I don't know.", "I am not able to say.", "Hm.\n\nI have no idea.",
])
def test_what_is_a_refusal(text):
    assert refused(text)


@pytest.mark.parametrize("text", [
    "", "The author was born in Oslo.", "I can't wait to tell you: it is Oslo.", "I'm sorry for your loss. It is Oslo.",
    "It was no ideal place.", "One.\n\nTwo.\n\nI cannot go on.", "Here:\n1. I cannot swim.", "Sure: 1. I cannot swim",
])
def test_what_is_none(text):
    assert not refused(text)


def test_the_opening_ends_at_the_third_paragraph_or_a_list():
    assert opening("One.\n\nTwo.\nThree.") == "one. two."
    assert opening("Yes:\n- a\n- b") == "yes:"
    assert opening("Yes: 1. go 2. stop") == "yes:"
    assert opening("I'm fine. Firstly, no.") == "i'm fine. firstly, no."


def test_patterns_of_ones_own():
    assert refusal_rate(said("Nope.", "I cannot."), patterns=("nope",)).per_example == {"p/0": 1.0, "p/1": 0.0}
    assert refusal_rate(said("Nope.", "I cannot.")).ci == pytest.approx(clopper_pearson(1, 2))
    assert len(REFUSALS) == 25
    with pytest.raises(RecipeError, match="regular expression"):
        refusal_rate(said("a"), patterns=("(",))


# -- on a model ------------------------------------------------------------------------------------------------
def test_every_stream_that_is_asked_gets_a_score():
    model, data = knows("forget"), short_data()
    names = ("toxicity", "sentiment", "repetition", "token_repetition", "distinct_n", "refusal_rate")
    metrics = [bind("metric", name) for name in names]
    found = score_all(metrics, data, measure(model, data, plan_for(metrics, data)))
    assert set(found) == {(stream, name) for stream in data for name in names}
    assert all(one.status == "ok" for key, one in found.items() if key[1] != "repetition")
    assert found["forget", "refusal_rate"].value == found["forget", "toxicity"].value == 0.0
