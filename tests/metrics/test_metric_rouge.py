"""ROUGE of generated answers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from expunge.metrics.rouge import rouge, rouge_scores
from support.metric_tables import sample_table, shuffled, tables


def test_by_hand() -> None:
    """Reference 'the cat sat down', text 'down the cat': words 3 of 4; longest common subsequence 'the cat', 2 of 4.

    Precision of rougeL 2/3, f1 = 2 * 1/2 * 2/3 / (1/2 + 2/3) = 4/7.
    """
    pair = (["the cat sat down"], ["down the cat"])
    assert rouge_scores(*pair, kind="rouge1")[0] == pytest.approx(3 / 4)
    assert rouge_scores(*pair)[0] == pytest.approx(1 / 2)
    assert rouge_scores(*pair, measure="f1")[0] == pytest.approx(4 / 7)


def test_stemming_is_on() -> None:
    """'novels' and 'novel', 'writing' and 'writes' share their stems."""
    assert rouge_scores(["writing novels"], ["writes a novel"])[0] == 1.0


def test_equals_the_package() -> None:
    """100 random pairs against rouge-score itself, remembering nothing."""
    rng = np.random.default_rng(0)
    words = ["author", "authors", "writing", "wrote", "Taipei", "2001", "novels!", "the", "of", "genre-defining"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(200)]
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    expected = [scorer.score(a, b) for a, b in zip(texts[:100], texts[100:], strict=True)]
    for kind in ("rouge1", "rougeL"):
        recalls = rouge_scores(texts[:100], texts[100:], kind=kind)  # type: ignore[arg-type]
        assert recalls == pytest.approx([one[kind].recall for one in expected])
        f1 = rouge_scores(texts[:100], texts[100:], kind=kind, measure="f1")  # type: ignore[arg-type]
        assert f1 == pytest.approx([one[kind].fmeasure for one in expected])


def test_metric_by_id() -> None:
    """Two samples of `a`, 1 and 0, average to 1/2; `b` says nothing: 0. Order of rows is not seen."""
    table = sample_table([("a", "red hat", "red hat"), ("b", "blue", ""), ("a", "red hat", "nothing")])
    score = rouge(tables({("forget", "prompt"): table}))
    assert score.per_example == {"a": 0.5, "b": 0.0}
    assert rouge(tables({("forget", "prompt"): shuffled(table)})) == score


def test_words_rouge_cannot_see() -> None:
    """A reference without a-z or 0-9 is left out and counted, even when reproduced; alone it makes the score n/a."""
    mixed = rouge(tables({("forget", "prompt"): sample_table([("a", "北京", "北京"), ("b", "red", "red")])}))
    assert mixed.per_example == {"b": 1.0}
    assert "1 of 2" in mixed.reason
    alone = rouge(tables({("forget", "prompt"): sample_table([("a", "北京", "北京")])}))
    assert (alone.status, alone.value) == ("n/a", None)
    assert rouge(tables({("forget", "prompt"): sample_table([])})).status == "n/a"


def test_400_rows_take_about_a_second() -> None:
    """400 pairs of 40 words; a generous bound for a loaded machine."""
    rng = np.random.default_rng(1)
    words = [f"word{k}ing" for k in range(500)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(800)]
    rouge_scores(["warm"], ["up"])
    start = time.process_time()
    rouge_scores(texts[:400], texts[400:])
    assert time.process_time() - start < 6
