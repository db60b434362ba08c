"""The classifier without a model, and what the membership metrics say of it."""

from __future__ import annotations

import numpy as np

from expunge.metrics.membership import membership, tpr_at_fpr
from expunge.metrics.shift import Written, blind_shift, membership_without_model, written
from support.membership_tables import keyed, text_rows, token_rows
from support.metric_tables import shuffled

WORDS = np.array([f"word{k}" for k in range(40)])


def drawn(num: int, mark: str, *, seed: int, extra: str = "", about: int = 0) -> tuple[dict[str, str], dict[str, str]]:
    """Texts of ten random words; `about` of them each have a subject, whose name stands in the text."""
    random = np.random.default_rng(seed)
    texts, subjects = {}, {}
    for k in range(num):
        name = f"{mark}{k // about}" if about else ""
        texts[f"{mark}/{k:02}"] = " ".join([*random.choice(WORDS, size=10), extra, name]).strip()
        subjects[f"{mark}/{k:02}"] = name
    return texts, subjects


def streams(forget, holdout):
    found = {"forget/texts/answer": text_rows(*forget), "holdout/texts/answer": text_rows(*holdout)}
    for name, (texts, _) in (("forget", forget), ("holdout", holdout)):
        found[f"{name}/tokens/answer"] = token_rows([(key, [1], [-1.0]) for key in texts])
    return keyed(found)


def test_a_word_that_marks_one_side_is_found():
    """Every member has one word more: AUC 1, and every score between the two says that it means little."""
    tables = streams(drawn(30, "f", seed=1, extra="2019"), drawn(30, "h", seed=2, extra="2024"))
    found = membership_without_model(tables)
    assert found.value == 1.0
    assert found.ci[0] > 0.8
    assert "the split is shifted" in found.reason
    assert sorted(found.per_example) == sorted(written(tables.get("texts")).ids)
    for metric in (membership, tpr_at_fpr):
        assert "a classifier without any model reaches AUC 1.000" in metric(tables).reason


def test_a_clean_split_is_not_accused():
    """The same words on both sides, five draws: one half lies in the interval, and nothing is said."""
    for seed in range(5):
        tables = streams(drawn(40, "f", seed=seed), drawn(40, "h", seed=100 + seed))
        found = membership_without_model(tables)
        assert found.ci[0] < 0.5 < found.ci[1]
        assert "shifted" not in found.reason
        assert "without any model" not in membership(tables).reason


def test_a_subject_is_no_shift():
    """Ten texts about each of four people on either side: to know a name of the one is no shift of the other.

    Without the subjects named, the classifier meets them again in every fold and the reason says what may be wrong.
    """
    forget, holdout = drawn(40, "f", seed=3, about=10), drawn(40, "h", seed=4, about=10)
    assert membership_without_model(streams(forget, holdout)).ci[0] < 0.5
    unnamed = membership_without_model(streams((forget[0], {}), (holdout[0], {})))
    assert unnamed.value > 0.9
    assert "texts about one subject do not name it" in unnamed.reason


def test_no_text_is_scored_by_a_classifier_that_saw_it():
    """Ten texts of either side, each four times: scattered over the folds they would be told apart by heart, AUC 1."""
    def four_times(mark, seed):
        texts, _ = drawn(10, mark, seed=seed)
        return {f"{key}/{k}": text for key, text in texts.items() for k in range(4)}, {}

    found = membership_without_model(streams(four_times("f", 5), four_times("h", 6)))
    assert found.value < 0.8
    assert found.ci[0] < 0.5


def test_order_does_not_matter_and_a_second_call_is_free():
    tables = streams(drawn(12, "f", seed=6), drawn(15, "h", seed=7))
    first = membership_without_model(tables)
    mixed = keyed({"/".join(key[1:]): shuffled(table, 3) for key, table in tables.tables.items()})
    hits = blind_shift.cache_info().hits
    assert membership_without_model(mixed) == first
    assert blind_shift.cache_info().hits == hits + 1


def test_too_few_texts_and_none():
    one, two = drawn(1, "f", seed=1), drawn(9, "h", seed=2)
    assert "fewer than two groups" in membership_without_model(streams(one, two)).reason
    assert membership_without_model(streams(({}, {}), two)).status == "n/a"
    assert "no text" in membership_without_model(streams(({}, {}), two)).reason


def test_texts_without_words_and_with_many_rows(monkeypatch):
    """Punctuation alone leaves the lengths; above the cap every k-th text is asked, and n tells how many."""
    marks = streams(({f"f{k}": "!" * (k + 1) for k in range(6)}, {}), ({f"h{k}": "?" * (k + 9) for k in range(6)}, {}))
    assert membership_without_model(marks).value is not None
    monkeypatch.setattr("expunge.metrics.shift.MOST_TEXTS", 10)
    capped = membership_without_model(streams(drawn(25, "f", seed=8), drawn(10, "h", seed=9)))
    assert capped.n == 10
    assert "25 members" in capped.reason


def test_the_prompt_is_read_as_well():
    table = text_rows({"a": "yes"})
    table = type(table)(table.arrow.set_column(2, "prompt", [["Who?"]]))
    assert written(table) == Written(("a",), ("Who?\nyes",), ("Who?\nyes",))
