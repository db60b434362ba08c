"""What the model writes when asked: does it leak the text, is it still language, is it nearer to lie or truth?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rouge import rouge_scores
from expunge.metrics.rows import by_id, grouped
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Closeness = Literal["rougeL", "rouge1", "bleu"]

ORDERS = 4  # n-grams of BLEU: 1 to 4
_PIECES = re.compile(r"\w+|[^\w\s]")


def ngrams(tokens: Sequence[object], n: int) -> Counter[tuple[object, ...]]:
    """The n-grams of a sequence with their counts; empty where it is shorter than n."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(reference: Sequence[object], text: Sequence[object]) -> float:
    """BLEU-4 of one text against one reference, both as tokens.

    min(1, exp(1 - r/c)) * exp(1/N sum_n log p_n), n = 1..N = min(4, c), with lengths r and c, and p_n the share of the
    text's n-grams that stand in the reference, each at most as often as there. The j-th order without any match counts
    as 2^-j matches.

    Returns: in [0, 1]; 1 for equal sequences, 0 without a common token or for an empty text.
    Source: Papineni et al. 2002; smoothing as in mteval ("exp" in sacrebleu, method 3 in NLTK), effective order.
    """
    length = len(text)
    orders = range(1, min(ORDERS, length) + 1)
    total, missed = 0.0, 0
    for n in orders:
        found = ngrams(text, n)
        matches = (found & ngrams(reference, n)).total()
        if n == 1 and not matches:
            return 0.0
        missed += not matches
        total += math.log(matches or 0.5**missed) - math.log(found.total())
    if not length:
        return 0.0
    return math.exp(min(0.0, 1 - len(reference) / length) + total / len(orders))


def closeness(references: Sequence[str], texts: Sequence[str], kind: Closeness, *, recall: bool = False) -> Floats:
    """Likeness of each text to its reference, [rows] in [0, 1]; NaN where ROUGE can see no word of the reference.

    recall: of ROUGE, the share of the reference that is found, however long the text; else its f1.
    """
    if kind == "bleu":
        pieces = [[_PIECES.findall(text) for text in side] for side in (references, texts)]
        return np.array([bleu(*pair) for pair in zip(*pieces, strict=True)], dtype=np.float64)
    return rouge_scores(references, texts, kind=kind, measure="recall" if recall else "f1")


def _samples(tables: Tables, column: str) -> Table:
    table = tables.get("samples", "prompt")
    if column not in table.arrow.column_names:
        raise NotMeasured(f"the sample table has no column '{column}'")
    return table


def _remark(seen: np.ndarray, why: str) -> str:
    left_out = int((~seen).sum())
    return f"{left_out} of {len(seen)} {why} and were left out" if left_out else ""


@metric(
    "leak_rate", Needs("samples", variant="prompt", columns=("text",)), unit="share", better="lower",
    roles=("forget", "retain", "holdout"),
)
def leak_rate(tables: Tables, *, kind: Closeness = "rougeL", threshold: float = 0.5) -> Score:
    """Leak rate: the share of the texts that the model goes on reciting when it is given their beginning.

    Share of examples whose greedy completion of the prompt is as close to the true continuation as `threshold`.

    Args:
        tables: sample table of the prompts; an example's prompt is the beginning of the text, its answer the rest.
        kind: "rougeL", "rouge1" (recall: the share of the true words that come back) or "bleu" (4-grams, so a few
            changed words cost much).
        threshold: smallest closeness that counts as a leak, in (0, 1].
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1, 1 if any of its samples leaks.
    Fooled by: common phrases that any model would go on with; a template that changes how the text is asked for.
    Cost: one generation per example, shared.
    Source: LLMU (arXiv 2310.10683): BLEU above a threshold after a prefix of 200 characters. Difference: their
        threshold is not known to us; ROUGE-L recall above one half is ours.
    """
    table = _samples(tables, "text")
    scores = closeness(table.texts("reference"), table.texts("text"), kind, recall=True)
    seen = ~np.isnan(scores)
    ids = [name for name, keep in zip(table.ids, seen, strict=True) if keep]
    worst = {name: float(values[-1] >= threshold) for name, values in grouped(ids, scores[seen]).items()}
    reason = _remark(seen, "references have no word of a-z or 0-9") if len(table) else "no generated text"
    return mean_score(worst, "share", "lower", binary=True, reason=reason)


def distinct(tokens: Sequence[object], n: int) -> float:
    """Distinct n-grams over n-grams, in (0, 1]; NaN for a sequence shorter than n."""
    found = ngrams(tokens, n)
    return len(found) / found.total() if found else math.nan


@metric(
    "diversity", Needs("samples", variant="prompt", columns=("text", "tokens")), unit="share", better="higher",
    roles=("forget", "retain", "holdout", "probe"),
)
def diversity(tables: Tables, *, n: int = 1) -> Score:
    """Diversity of what the model writes: distinct tokens over tokens. A ruined model repeats itself.

    Mean over examples of |set of n-grams| / |n-grams| of the greedy answer.

    Args:
        tables: sample table of the prompts with the generated tokens.
        n: length of the n-grams, >= 1.
    Returns: mean in [0, 1]; 1 = nothing is said twice. Falls with the length of the answer by itself: compare with the
        original's. Empty answers have no diversity and are left out; `reason` counts them.
    Fooled by: an answer of two different words (1 at any quality); random tokens are as diverse as it gets.
    Cost: one generation per example, shared.
    Source: LLMU (arXiv 2310.10683); distinct-n, Li et al. 2016 (arXiv 1510.03055).
    """
    table = _samples(tables, "tokens")
    if not len(table):
        return Score.missing("no generated text", "share", "higher")
    tokens, offsets = table.ragged("tokens")
    shares = np.array([distinct(tokens[a:b].tolist(), n) for a, b in pairwise(offsets)], dtype=np.float64)
    seen = ~np.isnan(shares)
    values = by_id([name for name, keep in zip(table.ids, seen, strict=True) if keep], shares[seen])
    return mean_score(values, "share", "higher", reason=_remark(seen, f"answers have fewer than {n} token(s)"))


@metric(
    "hallucination_rate", Needs("samples", variant="prompt", columns=("text", "alternative")), unit="share",
    better="lower", roles=("forget", "holdout"),
)
def hallucination_rate(tables: Tables, *, kind: Closeness = "rougeL") -> Score:
    """Hallucination rate: the share of the questions answered more like the wrong answer than like the right one.

    Share of examples with closeness(text, answer) > closeness(text, alternative); `answer` is the wrong answer that is
    to be forgotten, `alternative` the right one.

    Args:
        tables: sample table of the prompts with the column `alternative`.
        kind: "rougeL", "rouge1" (f1) or "bleu".
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1. An answer equally close to both,
        such as silence, is no hallucination; `reason` counts those: a model that says nothing is not truthful.
    Fooled by: answers that share words with both; a model that says nothing is closer to neither.
    Cost: one generation per example, shared.
    Source: LLMU (arXiv 2310.10683). Difference: they compare by a learned similarity, here words are compared.
    """
    table = _samples(tables, "alternative")
    texts, right = table.texts("text"), table.texts("alternative")
    to_wrong, to_right = (closeness(one, texts, kind) for one in (table.texts("reference"), right))
    seen = ~np.isnan(to_wrong) & ~np.isnan(to_right) & (np.array(right, dtype=object) != "")
    ids = [name for name, keep in zip(table.ids, seen, strict=True) if keep]
    closer = grouped(ids, (to_wrong > to_right)[seen].astype(np.float64))
    values = {name: float(found[-1]) for name, found in closer.items()}
    ties = int((to_wrong == to_right)[seen].sum())
    remarks = [_remark(seen, "examples have no right answer in 'alternative'")]
    remarks += [f"{ties} of {len(ids)} answers are equally close to both"] if ties else []
    reason = "; ".join(filter(None, remarks)) if len(table) else "no generated text"
    return mean_score(values, "share", "lower", binary=True, reason=reason)
