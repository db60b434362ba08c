"""How right generated answers are by their words: worked out by hand, and against NLTK."""

from __future__ import annotations

import random

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from expunge.errors import RecipeError
from expunge.metrics.answers import answer_exact, answer_f1, bleu_score, f1_of
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from support.metric_tables import sample_table, shuffled, tables


def said(*rows):
    return tables({("forget", "prompt"): sample_table([(str(i), *row) for i, row in enumerate(rows)])})


@pytest.mark.parametrize(("reference", "text", "f1"), [
    ("The sea.", "sea", 1.0), ("the sea in winter", "A winter sea!", 2 * 2 / (3 + 2)),  # order does not count
    ("sea sea", "sea", 2 / 3), ("sea", "book", 0.0), ("sea", "", 0.0), ("The", "a", 1.0), ("The", "sea", 0.0),
    ("1984-12-31", "19841231", 1.0), ("theory", "ory", 0.0),
])
def test_f1(reference, text, f1):
    assert f1_of(reference, text) == pytest.approx(f1)
    assert answer_f1(said((reference, text), ("x", "y"))).value == pytest.approx(f1 / 2)


def test_exact_answers_by_text_and_by_words():
    tables = said(("Madera", " madera "), ("Madera", "Madera."), ("the sea", "sea"), ("a", "b"))
    plain, words = answer_exact(tables), answer_exact(tables, equal="words")
    assert plain.per_example == {"0": 1.0, "1": 0.0, "2": 0.0, "3": 0.0}
    assert words.per_example == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 0.0}
    assert words.ci == clopper_pearson(3, 4)


def test_bleu_of_equal_and_of_unlike_answers():
    same = said(*[(text, text) for text in ("it is the sea in winter", "so it is and no more")])
    assert bleu_score(same).value == pytest.approx(1.0)
    assert bleu_score(said(("it is the sea", "nobody knows who"))).value == 0.0
    half = said(("a b c d e f g h", "a b c d"))  # all precisions 1, half as long
    assert bleu_score(half).value == pytest.approx(np.exp(-1))
    assert bleu_score(said(("a b", "a b c")), num=1).value == pytest.approx(2 / 3)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_corpus_bleu_is_nltks(num):
    draw = random.Random(num)
    pairs = [(draw.choices("abcde", k=draw.randint(3, 12)), draw.choices("abcde", k=draw.randint(4, 12)))
             for _ in range(30)]
    found = bleu_score(said(*((" ".join(a), " ".join(b)) for a, b in pairs)), num=num)
    expected = corpus_bleu([[a] for a, _ in pairs], [b for _, b in pairs], weights=[1 / num] * num,
                           smoothing_function=SmoothingFunction().method3)
    assert found.value == pytest.approx(expected, rel=1e-9)
    low, high = found.ci
    assert low < found.value < high
    assert found.n == 30


def test_orders_without_a_match_count_by_halves():
    """One of three words, no pair: precisions 1/3, and 1/2 and 1/4 of a match among two pairs and one triple."""
    found = bleu_score(said(("a b c", "a x y")), num=3)
    assert found.value == pytest.approx((1 / 3 * (0.5 / 2) * (0.25 / 1)) ** (1 / 3))


def test_the_sentence_form_is_the_mean_over_examples():
    found = bleu_score(said(("the sea", "the sea"), ("the sea", "nobody")), form="sentence")
    assert found.value == pytest.approx(0.5)
    assert found.per_example == {"0": pytest.approx(1.0), "1": 0.0}
    assert bleu_score(said(("the sea", "the sea"), ("the sea", "nobody"))).per_example == found.per_example


def test_order_of_rows_and_wrong_arguments():
    table = sample_table([(str(i), "it is the sea in winter", "it is the " + "sea " * i) for i in range(6)])
    values = [bleu_score(tables({("forget", "prompt"): one})).value for one in (table, shuffled(table))]
    assert values[0] == values[1]
    with pytest.raises(RecipeError, match="1 to 4"):
        bind("metric", {"use": "bleu", "num": 5})(said(("a", "a")))
    empty = tables({("forget", "prompt"): sample_table([])})
    assert {metric(empty).status for metric in (answer_f1, answer_exact, bleu_score)} == {"n/a"}
