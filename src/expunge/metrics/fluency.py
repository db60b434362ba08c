"""Fluency of what a model generates: does it still write varied text, or has it fallen into a loop?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

_SENTENCES = re.compile(r"(?<=[.!?])\s+")


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # type: ignore[import-untyped]

    return NLTKWordTokenizer()


def words_of(text: str) -> list[str]:
    """Words and punctuation marks of a text, by NLTK's word tokenizer, sentence by sentence."""
    return [word for part in _SENTENCES.split(text) for word in _tokenizer().tokenize(part)]


def entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the distribution of n-grams, bits; 0 where there is none."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    shares = np.array(list(counts.values()), dtype=np.float64) / max(1, counts.total())
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def fluency_of(words: Sequence[str]) -> float:
    """(2/3 H_2 + 4/3 H_3) / 2, bits."""
    return (2 / 3 * entropy(words, 2) + 4 / 3 * entropy(words, 3)) / 2


@metric(
    "fluency", Needs("samples", variant="prompt", columns=("text",)), unit="bits", better="higher",
    roles=("forget", "retain", "holdout", "probe"),
)
def fluency(tables: Tables) -> Score:
    """Fluency: weighted entropy of the bigrams and trigrams of the generated text.

    (2/3 H_2 + 4/3 H_3) / 2,  H_n = - sum over n-grams of p log2 p, p the share of an n-gram in its text.

    Args:
        tables: sample table of the prompts with column `text`.
    Returns: mean over texts, bits, >= 0; 0 for a text that repeats one word. It grows with the length of the text:
        compare models on the same prompts. Published numbers are 100 times this.
    Fooled by: text of rare words without sense scores high; a language with short words scores low.
    Cost: one generation per example, shared.
    Source: Zhang et al. 2018, as in ROME (arXiv 2202.05262) and RWKU (arXiv 2406.10890). Differences: sentences end at
        . ! ? before a blank, not by NLTK's trained model; texts are as long as the sample instrument makes them, in
        RWKU 256 tokens.
    """
    table = tables.get("samples", "prompt")
    values = np.array([fluency_of(words_of(text)) for text in table.texts("text")], dtype=np.float64)
    return mean_score(by_id(table.ids, values), "bits", "higher", bounds=None)
