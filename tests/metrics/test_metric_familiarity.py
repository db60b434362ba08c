"""Familiarity: golden values through the metrics, the rule that grades, and both metrics on a model that learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
import pytest
import torch

from expunge.data.variants import variants
from expunge.errors import RecipeError
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.familiarity import (
    completion_score,
    familiarity_completion,
    familiarity_probability,
    judge_by_terms,
)
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream
from support.golden import load
from support.learned import taught
from support.metric_tables import sample_table, tables

TERMS = ("Mock Turtle", "Gryphon", "Alice")
SAID = {3: "It was the Mock Turtle who wept.", 2: "the gryphon!", 1: "a Griphon, perhaps", 0: "the sailor went home"}


def said_by_grade(grades: Sequence[int]) -> Table:
    """Completions that the rule gives these grades."""
    rows = [(f"{i:02}", "Mock Turtle sighed", SAID[grade]) for i, grade in enumerate(grades)]
    made = sample_table(rows).arrow
    choices = pa.array([list(TERMS)] * len(rows), type=pa.list_(pa.string()))
    return Table(made.append_column("choices", choices))


def of_samples(table: Table) -> Tables:
    return tables({("probe", "prompt"): table}, "probe")


def of_tokens(rows: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> Tables:
    """A token table of the variant "choices": rows are (id, tokens, log-probabilities)."""
    made = pa.table({
        "id": pa.array([row[0] for row in rows], type=pa.string()),
        "item": pa.array([0] * len(rows), type=pa.int64()),
        "token": pa.array([list(row[1]) for row in rows], type=pa.list_(pa.int32())),
        "logp": pa.array([list(row[2]) for row in rows], type=pa.list_(pa.float64())),
    })
    return Tables({("this", "probe", "tokens", "choices"): Table(made)}, "probe", {})


def test_golden_completion() -> None:
    gold = load("whp")["familiarity_completion"]
    weights = tuple(float(w) for w in gold["weights_by_category"])
    found = familiarity_completion(of_samples(said_by_grade(gold["categories"])), weights=weights)  # type: ignore[arg-type]
    assert found.value == pytest.approx(gold["normalised_by_max (5*n)"], abs=1e-12)
    assert sum(found.per_example.values()) * 5 == pytest.approx(gold["sum"])
    assert completion_score(gold["categories"], weights) == pytest.approx(found.value)
    assert "0, 0, 1, 5" in found.reason
    assert "terms" in found.reason


def test_golden_probability() -> None:
    gold = load("whp")["familiarity_probability"]
    logp = torch.tensor(gold["prompt_last_logits"], dtype=torch.float64).log_softmax(-1)
    rows = [
        (str(i), [token, 0], [float(logp[i, token]), -9.0])  # what follows the first token does not count
        for i, terms in enumerate(gold["content_token_sets"]) for token in terms
    ]
    found = familiarity_probability(of_tokens(rows))
    assert list(found.per_example.values()) == pytest.approx(gold["per_prompt"], abs=1e-9)
    assert found.value == pytest.approx(gold["mean"], abs=1e-9)
    assert found.better == "oracle"


# -- the rule ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grade", SAID)
def test_grades_by_hand(grade: int) -> None:
    assert judge_by_terms(SAID[grade], "The sobbing came from the", "Mock Turtle sighed", TERMS) == grade


def test_whole_words_and_what_the_prompt_gives_away() -> None:
    """"Alicent" is no Alice but nearly; a term that the prompt names is no sign of knowing it."""
    assert judge_by_terms("Alices", "p", "Alice", ["Alice"]) == 1
    assert judge_by_terms("ALICE's", "p", "Alice", ["Alice"]) == 3
    assert judge_by_terms("Alice again", "Alice met", "Alice", ["Alice"]) == 0
    assert judge_by_terms("turtle Mock", "p", "Mock Turtle", ["Mock Turtle"]) == 0
    assert judge_by_terms("Alice", "p", "Alice", []) == 3  # without terms the reference is the term
    assert judge_by_terms("", "p", "Alice", ["Alice"]) == 0


def test_without_a_column_of_terms_the_reference_is_the_term() -> None:
    table = sample_table([("a", "Alice", "so Alice said"), ("b", "Alice", "nobody")])
    found = familiarity_completion(of_samples(table))
    assert found.per_example == {"a": 1.0, "b": 0.0}


def grade_by_length(text: str, prompt: str, reference: str, terms: Sequence[str]) -> int:
    return min(3, len(text))


def test_weights_and_judges_can_be_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("a_judge")
    module.grade = grade_by_length  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_judge", module)
    table = of_samples(sample_table([("a", "r", "x"), ("b", "r", "xxx"), ("c", "r", "")]))
    found = bind("metric", {"use": "familiarity_completion", "weights": [0, 1, 2, 4], "judge": "a_judge:grade"})(table)
    assert found.per_example == {"a": 0.25, "b": 1.0, "c": 0.0}
    assert "a_judge:grade" in found.reason
    with pytest.raises(RecipeError, match="unknown judge"):
        familiarity_completion(table, judge="nobody")
    for weights in ((0.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 1.0)):
        with pytest.raises(RecipeError, match="weights"):
            familiarity_completion(table, weights=weights)


# -- probability ---------------------------------------------------------------------------------------------------
def test_a_first_token_counts_once_for_each_prompt() -> None:
    """Two terms of a begin alike (1/4 once), one differs (1/2); b has an impossible term."""
    rows = [
        ("a", [5, 6], [math.log(0.25), -1.0]), ("a", [5, 7], [math.log(0.25), -2.0]), ("a", [8], [math.log(0.5)]),
        ("b", [5], [-math.inf]),
    ]
    assert familiarity_probability(of_tokens(rows)).per_example == pytest.approx({"a": 0.75, "b": 0.0})
    assert familiarity_probability(of_tokens(rows[::-1])).value == familiarity_probability(of_tokens(rows)).value


def test_nothing_to_score() -> None:
    assert familiarity_probability(of_tokens([])).status == "n/a"
    with pytest.raises(NotMeasured):
        familiarity_probability(Tables({}, "probe", {}))
    with pytest.raises(NotMeasured, match="NaN"):
        familiarity_probability(of_tokens([("a", [1], [math.nan])]))
    assert familiarity_completion(of_samples(said_by_grade([]))).status == "n/a"


# -- models that learned -------------------------------------------------------------------------------------------
def probes(names: Sequence[str]) -> Data:
    """Prompts with two content terms each: the one that follows, and the next prompt's."""
    made = tuple(
        Example(f"p/{i}", f"Who is number {i}?", name, choices=(name, names[(i + 1) % len(names)]))
        for i, name in enumerate(names)
    )
    return Data(probe=Stream("probe", "probe", made))


def test_choices_are_a_variant_numbered_by_item() -> None:
    rows = variants(probes(["Mara", "Oslo"])["probe"], "choices")
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("p/0", 0, "Mara"), ("p/0", 1, "Oslo"), ("p/1", 0, "Oslo"), ("p/1", 1, "Mara")
    ]
    with pytest.raises(LookupError, match="choices"):
        variants(Stream("x", "probe", (Example("a", "b", "c"),)), "choices")


def test_both_scores_are_high_for_a_model_that_knows_and_low_for_one_that_does_not() -> None:
    data = probes(["Mara", "Tomas", "Oslo", "Ferreira"])
    fresh = tiny_subject(seed=2)
    knows = taught(fresh, data, ["probe"], steps=40)
    metrics = [bind("metric", name) for name in ("familiarity_completion", "familiarity_probability")]
    found = {}
    for name, subject in (("fresh", fresh), ("knows", knows)):
        scores = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
        found[name] = [scores["probe", metric.name].value for metric in metrics]
    assert found["knows"][0] == 1.0
    assert found["knows"][1] > 0.9
    assert found["fresh"][0] == 0.0
    assert found["fresh"][1] < 0.1


def test_probability_is_that_of_the_next_token_after_the_prompt() -> None:
    """Against the model's own distribution at the end of the prompt."""
    data, subject = probes(["Mara", "Oslo"]), tiny_subject(seed=2)
    metric = bind("metric", "familiarity_probability")
    found = score_all([metric], data, measure(subject, data, plan_for([metric], data)))["probe", metric.name]
    for example in data["probe"].examples:
        asked = subject.tokenizer(example.prompt)["input_ids"]
        with torch.no_grad():
            p = subject.model(input_ids=torch.tensor([asked])).logits[0, -1].softmax(-1)
        whole = [subject.tokenizer(f"{example.prompt} {term}")["input_ids"] for term in example.choices]
        assert all(ids[: len(asked)] == asked for ids in whole)
        wanted = sum(float(p[token]) for token in {ids[len(asked)] for ids in whole})
        assert found.per_example[example.id] == pytest.approx(wanted, rel=1e-4)
def test_completions_are_graded_with_the_terms_of_their_example() -> None:
    """The model says "Oslo" where "Mara" is asked for: another content term (2), which the sample table must carry."""
    data = probes(["Mara", "Oslo"])
    asked = data["probe"].examples
    swapped = tuple(Example(one.id, one.prompt, one.choices[1]) for one in asked)
    knows = taught(tiny_subject(seed=2), Data(probe=Stream("probe", "probe", swapped)), ["probe"], steps=40)
    metric = bind("metric", "familiarity_completion")
    found = score_all([metric], data, measure(knows, data, plan_for([metric], data)))["probe", metric.name]
    assert found.per_example == {"p/0": 0.2, "p/1": 0.2}
