"""Overlap of what the model generates with the reference answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

RougeKind = Literal["rouge1", "rougeL"]
RougeMeasure = Literal["recall", "f1"]


@lru_cache(maxsize=1)
def _stem() -> Callable[[str], str]:
    """The Porter stemmer of rouge-score, remembering words: stemming is most of the work."""
    from nltk.stem import porter  # type: ignore[import-untyped]

    return lru_cache(maxsize=100_000)(porter.PorterStemmer().stem)


class _Tokenizer:
    """rouge-score's own tokenisation with the remembering stemmer; every text is split once."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.stem = _stem()  # rouge-score calls `stemmer.stem(word)`: this object is the stemmer too

    def tokenize(self, text: str) -> list[str]:
        from rouge_score import tokenize

        if text not in self.known:
            self.known[text] = list(tokenize.tokenize(text, self))
        return self.known[text]


def rouge_scores(
    references: Sequence[str], texts: Sequence[str], *, kind: RougeKind = "rougeL", measure: RougeMeasure = "recall"
) -> Floats:
    """ROUGE of each text against its reference, stemming on.

    Args:
        references, texts: [rows], reference first as in rouge-score.
        kind: "rouge1" counts words, "rougeL" the longest common subsequence.
        measure: "recall" divides by the reference's length, "f1" is the harmonic mean with precision.
    Returns: [rows] in [0, 1]; NaN where the reference has no word of a-z or 0-9, which is all that ROUGE can see.
    Cost: one comparison per distinct pair; equal strings are 1 without one.
    """
    from rouge_score import rouge_scorer

    tokenizer = _Tokenizer()
    scorer: Any = rouge_scorer.RougeScorer([kind], tokenizer=tokenizer)
    known: dict[tuple[str, str], float] = {}
    for pair in zip(references, texts, strict=True):
        if pair in known:
            continue
        if not tokenizer.tokenize(pair[0]):
            known[pair] = float("nan")
        elif pair[0] == pair[1]:
            known[pair] = 1.0
        else:
            found = scorer.score(*pair)[kind]
            known[pair] = float(found.recall if measure == "recall" else found.fmeasure)
    return np.array([known[pair] for pair in zip(references, texts, strict=True)], dtype=np.float64)


def rouge_by_id(
    tables: Tables, *, set: str = "stream", kind: RougeKind = "rougeL", measure: RougeMeasure = "recall",
    asked: str = "prompt",
) -> tuple[dict[str, float], str]:
    """ROUGE per example id, and a remark on rows left out because their reference has no word ROUGE can see."""
    table = tables.get("samples", asked, set)
    if len(table) == 0:
        return {}, "no generated text"
    scores = rouge_scores(table.texts("reference"), table.texts("text"), kind=kind, measure=measure)
    seen = ~np.isnan(scores)
    left_out = int((~seen).sum())
    remark = f"{left_out} of {len(scores)} references have no word of a-z or 0-9 and were left out" if left_out else ""
    return by_id([name for name, keep in zip(table.ids, seen, strict=True) if keep], scores[seen]), remark


@metric(
    "rouge", Needs("samples", variant="{asked}", columns=("text",)), unit="share", better="lower",
    roles=("forget", "retain", "holdout", "probe"),
)
def rouge(
    tables: Tables, *, kind: RougeKind = "rougeL", measure: RougeMeasure = "recall", asked: str = "prompt"
) -> Score:
    """ROUGE of the generated answer against the reference answer.

    recall = (matched words) / (words of the reference); f1 = 2 P R / (P + R). Matched: clipped word counts for rouge1,
    longest common subsequence for rougeL. Words are stemmed.

    Args:
        tables: sample table of the prompts with columns `text` and `reference`.
        kind: "rouge1" or "rougeL". measure: "recall" or "f1".
        asked: what is asked, and for how long: "prompt#max_new_tokens=200" lets every answer go on for 200 tokens, as
            OpenUnlearning does, instead of half as many again as the true one has and 8.
    Returns: mean over examples, in [0, 1]; several samples of one example are averaged first.
    Fooled by: short references (one word right is half the score); refusals score 0 whatever is known; wording that
        differs.
    Cost: one generation per example, shared; milliseconds per comparison.
    Source: Lin 2004, package rouge-score; ROUGE-L recall is TOFU's (Maini et al. 2024, arXiv 2401.06121).
    """
    found, remark = rouge_by_id(tables, kind=kind, measure=measure, asked=asked)
    return mean_score(found, "share", "lower", reason=remark)
