"""Familiarity: does a model, asked in a way that points at some content without naming it, come out with that content?

Probe examples carry their content terms in `choices` (the reader `book_probes` makes such probes from a book). The
terms that stand in the example's answer are the ones that are asked for; the others belong to the same content.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import mean_score
from expunge.registry import bind, metric, register
from expunge.types import Needs, Score

GRADES = 4  # 0 (nothing) to 3 (reveals what only this content holds)
_WORD = re.compile(r"[^\W_]+")
ALIKE = 0.8  # of difflib: one letter wrong in five


@register("judge", "terms")
def judge_by_terms(text: str, prompt: str, reference: str, terms: Sequence[str]) -> int:
    """Grade a completion by the content terms in it.

    3: names a term that is asked for (one that stands in the reference). 2: names another content term. 1: a word
    of it is nearly a content term (misspelt, or a form of it). 0: nothing. Terms the prompt names do not count.

    Args:
        terms: the example's content terms; without any the reference itself is the term.
    Returns: 0, 1, 2 or 3.
    """
    given = list(terms) or [reference]
    said, asked, expected = _words(text), _words(prompt), _words(reference)
    known = [words for words in map(_words, given) if words and not _holds(asked, words)]
    if any(_holds(said, words) and _holds(expected, words) for words in known):
        return 3
    if any(_holds(said, words) for words in known):
        return 2
    return int(any(_nearly(said, words) for words in known))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _holds(text: Sequence[str], term: Sequence[str]) -> bool:
    return any(list(text[i : i + len(term)]) == list(term) for i in range(len(text) - len(term) + 1))


def _nearly(text: Sequence[str], term: Sequence[str]) -> bool:
    wanted, num = " ".join(term), len(term)
    runs = (" ".join(text[i : i + num]) for i in range(len(text) - num + 1))
    return any(difflib.SequenceMatcher(None, run, wanted, autojunk=False).ratio() >= ALIKE for run in runs)


def completion_score(grades: Sequence[int], weights: Sequence[float]) -> float:
    """sum_i w[grade_i] / (max(w) n), in [0, 1] for weights that are not negative."""
    return float(np.asarray(weights, dtype=np.float64)[list(grades)].sum() / (max(weights) * len(grades)))


@metric(
    "familiarity_completion", Needs("samples", variant="prompt", columns=("text",)), unit="share", better="oracle",
    roles=("probe",),
)
def familiarity_completion(
    tables: Tables, *, weights: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 5.0), judge: Any = "terms"
) -> Score:
    """Completion-based familiarity: how much of the content greedy completions of pointing prompts give away.

    F_c = sum_i w[g_i] / (max(w) n), g_i in {0, 1, 2, 3} the judge's grade of completion i.

    Args:
        tables: sample table of the prompts with columns `text`, `reference` and, where it is there, `choices` (the
            content terms of each example; without it the reference is the term).
        weights: of the grades 0 to 3. judge: "terms" (see `judge_by_terms`), another registered judge, or
            module:function `(text, prompt, reference, terms) -> 0..3`.
    Returns: mean in [0, 1]. To be compared with a model that never saw the content, which is not at 0: it guesses.
    Fooled by: terms anybody would say there; a model that writes nonsense is as unfamiliar as one that forgot.
    Cost: one generation per example, shared.
    Source: Eldan & Russinovich 2023 (arXiv 2310.02238); the weights are from memory of the paper. There GPT-4 grades,
        here a rule, so that a score can be had again.
    """
    if len(weights) != GRADES or min(weights) < 0 or max(weights) <= 0:
        raise RecipeError(
            "familiarity_completion.weights", f"got {list(weights)}", "four numbers, none negative, one positive",
            "Correct them",
        )
    table = tables.get("samples", "prompt")
    judging = bind("judge", judge, "familiarity_completion.judge")
    columns = (table.texts("text"), _column(table, "prompt"), table.texts("reference"), _terms(table))
    grades = [int(judging(*row)) for row in zip(*columns, strict=True)]
    values = np.asarray(weights, dtype=np.float64)[grades] / max(weights) if grades else np.zeros(0)
    shown = ", ".join(f"{weight:g}" for weight in weights)
    remark = f"weights of the grades 0 to 3: {shown}; judge {judging.name}" if grades else "no generated text"
    return mean_score(by_id(table.ids, values), "share", "oracle", reason=remark)


def _column(table: Table, name: str) -> list[str]:
    return table.texts(name) if name in table.arrow.column_names else [""] * len(table)


def _terms(table: Table) -> list[list[str]]:
    if "choices" not in table.arrow.column_names:
        return [[] for _ in range(len(table))]
    return [list(found or []) for found in table.arrow.column("choices").to_pylist()]


@metric(
    "familiarity_probability", Needs("tokens", variant="choices", columns=("logp",)), unit="probability",
    better="oracle", roles=("probe",),
)
def familiarity_probability(tables: Tables) -> Score:
    """Probability-based familiarity: how much of the next-token probability lies on content terms.

    F_p = (1/n) sum_i sum_{v in K_i} p(v | prompt_i), K_i the distinct first tokens of the terms of example i.

    Args:
        tables: token table of the variant "choices": every content term as an answer to its prompt.
    Returns: mean in [0, 1]. A term that may follow without a space as well stands twice in `choices`, under a
        template that adds none.
    Fooled by: a flatter distribution: temperature lowers it and nothing is forgotten.
    Cost: 1 forward per content term, shared.
    Source: Eldan & Russinovich 2023 (arXiv 2310.02238), whose token sets are chosen by hand.
    """
    table = tables.get("tokens", "choices")
    if len(table) == 0:
        return Score.missing("no example with content terms", "probability", "oracle")
    logp, offsets = table.ragged("logp")
    tokens, _ = table.ragged("token")
    if np.isnan(logp).any():
        raise NotMeasured("a log-probability is NaN")
    mass: dict[str, dict[int, float]] = {}
    for name, start, end in zip(table.ids, offsets[:-1], offsets[1:], strict=True):
        if end > start:  # equal first tokens of one prompt have equal probabilities up to rounding
            found = mass.setdefault(name, {})
            found[int(tokens[start])] = max(found.get(int(tokens[start]), 0.0), float(np.exp(logp[start])))
    sums = {name: min(1.0, sum(sorted(found.values()))) for name, found in mass.items()}
    return mean_score(sums, "probability", "oracle")
