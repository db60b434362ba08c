"""ROUGE-L as RWKU counts it, which is not ROUGE-L as anybody else does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

NOTHING = "NOANSWER"  # what an empty answer counts as


def sentences_of(text: str) -> list[list[str]]:
    """Words of each sentence. Sentences end at every full stop; a blank one counts as the empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def common_words(reference: Sequence[str], text: Sequence[str]) -> set[str]:
    """The distinct words of one longest common subsequence; of several, the one that ends earliest in `text`."""
    table = np.zeros((len(reference) + 1, len(text) + 1), dtype=np.int64)
    for i, word in enumerate(reference, 1):
        for j, other in enumerate(text, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if word == other else max(table[i - 1, j], table[i, j - 1])
    i, j, found = len(reference), len(text), set()
    while i and j:
        if reference[i - 1] == text[j - 1]:
            found.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found


@lru_cache(maxsize=100_000)
def rwku_recall(reference: str, text: str) -> float:
    """|union over sentence pairs of their common subsequences' words| / |distinct words of the reference|.

    Returns: in [0, 1]; NaN for a reference without a word.
    """
    wanted, said = sentences_of(reference), sentences_of(text) if text.strip(" .\n\t") else [[NOTHING]]
    words = {word for sentence in wanted for word in sentence}
    if not words - {""}:
        return float("nan")
    shared = set().union(*(common_words(a, b) for a in wanted for b in said))
    return len(shared) / len(words)


@metric(
    "rouge_rwku", Needs("samples", variant="prompt", columns=("text",)), unit="share", better="lower",
    roles=("forget", "retain", "holdout", "probe"),
)
def rouge_rwku(tables: Tables) -> Score:
    """ROUGE-L recall of the generated answer, in the variant of RWKU: case counts, words do not repeat.

    Recall of the package `rouge` 1.0.1: sentences split at full stops, words at blanks, no stemming; distinct words
    of the union of the sentences' longest common subsequences, over distinct words of the reference. An empty answer
    counts as NOANSWER. Not comparable with `rouge`, which stems, lowers case and counts repetitions.

    Args:
        tables: sample table of the prompts with columns `text` and `reference`.
    Returns: mean over examples, in [0, 1].
    Fooled by: long answers that name everything: only recall counts.
    Cost: one generation per example, shared.
    Source: Jin et al. 2024 (RWKU, arXiv 2406.10890); also the numbers of Yuan et al. 2024 (arXiv 2408.10682).
    """
    table = tables.get("samples", "prompt")
    pairs = zip(table.texts("reference"), table.texts("text"), strict=True)
    scores = np.array([rwku_recall(*pair) for pair in pairs], dtype=np.float64)
    seen = ~np.isnan(scores)
    left_out = int((~seen).sum())
    remark = f"{left_out} of {len(scores)} references have no word and were left out" if left_out else ""
    ids = [name for name, keep in zip(table.ids, seen, strict=True) if keep]
    return mean_score(by_id(ids, scores[seen]), "share", "lower", reason=remark)
