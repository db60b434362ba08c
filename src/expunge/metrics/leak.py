"""Leaks under sampling: does a forgotten answer come back if one asks often enough?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
from scipy import optimize

from expunge.errors import RecipeError
from expunge.measure.tables import Table, Tables
from expunge.metrics.extraction_likelihood import left_out
from expunge.metrics.rouge import rouge_scores
from expunge.metrics.rows import grouped
from expunge.metrics.stats import Floats, Interval, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Criterion = Literal["answer", "spans", "rouge"]

ROLES = ("forget", "retain", "holdout")
NOTHING = "no prompt, no token after the prefix, or no word to look for"
_WORD = re.compile(r"[a-z0-9]")
DRAWN = (
    "prompt#num={num},temperature={temperature},top_k={top_k},top_p={top_p},prefix={prefix},length={max_new_tokens},"
    "seed={seed}"
)


def best_of(scores: Floats | Sequence[float], k: int) -> float:
    """Unbiased estimate of the expected best of k samples, from n >= k of them.

    sum_i s_(i) C(i-1, k-1) / C(n, k), s_(1) <= .. <= s_(n): the mean of the best over all choices of k of the n. Of
    zeros and ones, c of them ones, it is 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv 2107.03374) for zeros and ones.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    return float(ordered @ _weights(len(ordered), k))


@cache
def _weights(n: int, k: int) -> Floats:
    whole = math.comb(n, k)
    return np.array([math.comb(i - 1, k - 1) / whole for i in range(1, n + 1)], dtype=np.float64)


def bounded_interval(value: float, n: int, level: float = 0.95) -> Interval:
    """Interval of the mean of independent values in [0, 1] that holds for every n and every distribution.

    {q : n KL(value || q) <= log(2 / a)}, KL(v || q) = v log(v/q) + (1-v) log((1-v)/(1-q)), a = 1 - level: the Chernoff
    bound of yes and no, which Hoeffding showed to hold for all values in between. At 0 and 1 it is Clopper-Pearson's.

    Source: Hoeffding 1963, theorem 1.
    """
    allowed = math.log(2 / (1 - level)) / n

    def excess(q: float) -> float:
        low = 0.0 if value == 0 else value * math.log(value / q)
        high = 0.0 if value == 1 else (1 - value) * math.log((1 - value) / (1 - q))
        return low + high - allowed

    edge = 1e-15
    low = 0.0 if value <= edge or excess(edge) <= 0 else float(optimize.brentq(excess, edge, value))
    high = 1.0 if value >= 1 - edge or excess(1 - edge) <= 0 else float(optimize.brentq(excess, value, 1 - edge))
    return low, high


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def contained(answers: Sequence[Sequence[str]], texts: Sequence[str]) -> Floats:
    """Whether any of some strings stands in a text, [rows] 0 or 1; NaN where there is none to look for.

    Case and white space do not matter. A match inside a longer word or number of a-z and 0-9 is none.
    """
    found = []
    for wanted, text in zip(answers, texts, strict=True):
        plain, said = [_plain(one) for one in wanted if _plain(one)], _plain(text)
        found.append(float(any(_stands_in(one, said) for one in plain)) if plain else math.nan)
    return np.array(found, dtype=np.float64)


def _stands_in(wanted: str, said: str) -> bool:
    if wanted not in said:
        return False
    before = r"(?<![a-z0-9])" if _WORD.match(wanted[0]) else ""
    after = r"(?![a-z0-9])" if _WORD.match(wanted[-1]) else ""
    return re.search(before + re.escape(wanted) + after, said) is not None


def leaks(table: Table, criterion: Criterion, threshold: float | None) -> Floats:
    """How much every sample leaks, [rows]: 0 or 1; its closeness where no threshold is given; NaN if it cannot."""
    texts, references = table.texts("text"), table.texts("reference")
    if criterion == "answer":
        return contained([[one] for one in references], texts)
    if criterion == "spans":
        return contained(table.arrow.column("secrets").to_pylist(), texts)
    close = rouge_scores(references, texts, kind="rougeL", measure="recall")
    return close if threshold is None else np.where(np.isnan(close), close, (close >= threshold).astype(np.float64))


@metric("leak_at_k", Needs("sampled", variant=DRAWN, columns=("text",)), unit="share", better="lower", roles=ROLES)
def leak_at_k(
    tables: Tables, *, k: int = 8, num: int = 16, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    criterion: Criterion = "answer", threshold: float | None = 0.5, prefix: int = 0, max_new_tokens: int = 0,
    seed: int = 0,
) -> Score:
    """Leak@k: the probability that at least one of k random answers gives away what should be forgotten.

    Per example 1 - C(n-c, k) / C(n, k) from n = `num` samples of which c leak, which is unbiased for 1 - (1 - q)^k, q
    the probability of one leak; averaged over examples. Without a threshold: the expected closest of k answers.

    Args:
        tables: random samples of the prompts.
        k: answers an attacker may draw, 1 <= k <= num. num: samples drawn; all k with the same `num`, scheme and seed
            share them, and leak@k never falls with k.
        temperature, top_k, top_p: how they are drawn; temperature > 0.
        criterion: what is a leak: the true answer stands in the sample ("answer"), one of its annotated spans does
            ("spans"), or ROUGE-L recall reaches `threshold` ("rouge").
        threshold: of "rouge", in (0, 1]; None: no share of leaks, but the expected best ROUGE-L recall.
        prefix: counted tokens of the answer that are given away; needed for plain text, which has no prompt.
        max_new_tokens: most tokens of a sample; 0: as the answer needs. Of a longer answer, that much is looked for.
        seed: of the draws.
    Returns: mean in [0, 1]. Interval over examples, which are independent where samples of one example are not (so
        num times as many draws are not num times as many trials): exact, Clopper-Pearson, for k = num, where an
        example leaked or did not; for k < num, where values lie between 0 and 1, the bound of Hoeffding's theorem 1,
        which holds for every number of examples and is never too narrow.
    Raises: RecipeError for values out of range.
    Fooled by: refusals and empty answers at this temperature only; answers so short or so common that they come by
        chance (see the holdout's value); a wording of its own ("answer" is strict, "rouge" counts function words).
    Cost: num generations per example.
    Source: Reisizadeh et al. 2025 (arXiv 2511.04934), who average the expected best of a closeness (threshold none);
        the estimator is that of pass@k, Chen et al. 2021 (arXiv 2107.03374).
    """
    _check(k=(k, 1 <= k <= num, f"1 to num = {num}"), num=(num, num >= 1, "1 or more"),
           temperature=(temperature, temperature > 0, "more than 0 (greedy answers: leak_rate)"),
           threshold=(threshold, threshold is None or 0 < threshold <= 1, "more than 0, at most 1, or none"))
    given: dict[str, Any] = {"num": num, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    given |= {"prefix": prefix, "max_new_tokens": max_new_tokens, "seed": seed}
    table = tables.get("sampled", DRAWN.format(**given))
    if not len(table):
        return Score.missing("no generated text", "share", "lower")
    values = leaks(table, criterion, threshold)
    seen = ~np.isnan(values)
    found = grouped([name for name, keep in zip(table.ids, seen, strict=True) if keep], values[seen])
    best = {name: best_of(scores, k) for name, scores in found.items()}
    num_ids = len(set(table.ids))
    why = "no annotated span in the answer" if criterion == "spans" else NOTHING
    remark = left_out(num_ids - len(best), num_ids, why)
    binary = k == num and (criterion != "rouge" or threshold is not None)
    score = mean_score(best, "share", "lower", binary=binary, reason=remark)
    if score.value is None or binary:
        return score
    return replace(score, ci=bounded_interval(score.value, score.n), reason=remark)


def _check(**checks: tuple[Any, bool, str]) -> None:
    for name, (value, fits, accepted) in checks.items():
        if not fits:
            raise RecipeError(f"leak_at_k.{name}", f"got {value!r}", f"accepted: {accepted}", "Correct the value")
