"""Edited knowledge: is the new answer given, also in other words, and is everything else as it was?

The new answer is the examples' `alternative`, the old one their `answer`. Every text ends with a token that closes
it; published scores do not count that one, so neither is it here unless `ending` asks for it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from expunge.data.hops import NONE, SOURCE
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Form = Literal["tokens", "exact"]
COLUMNS = ("token", "argmax")
UNRELATED = ("retain", "anchor", "probe")


@metric("reliability", Needs("tokens", "alternative", COLUMNS), unit="share", better="higher", roles=("forget",))
def reliability(tables: Tables, *, form: Form = "tokens", ending: bool = False) -> Score:
    """Reliability of an edit: does the model give the new answer to the edited prompt?

    "tokens": mean over edits of the share of the new answer's tokens that are the greedy ones, given the true ones
    before them. "exact": share of edits where all are, which is: greedy decoding says the new answer.

    Args:
        tables: token table of the new answers (variant "alternative").
        form: which of the two. ending: count the token that closes the text as well.
    Returns: in [0, 1].
    Fooled by: a model that gives the new answer to every question.
    Cost: 1 forward per edit, shared.
    Source: Ni et al. 2023 (arXiv 2311.08011) name it; "tokens" is EasyEdit's computation (arXiv 2308.07269).
        Difference: the answer's tokens are known from offsets, not from counting the prompt's tokens.
    """
    return _accuracy(tables.get("tokens", "alternative"), form, ending)


@metric(
    "generality", Needs("tokens", "alternative@paraphrases", COLUMNS), unit="share", better="higher", roles=("forget",)
)
def generality(tables: Tables, *, form: Form = "tokens", ending: bool = False) -> Score:
    """Generality of an edit: does the model give the new answer when asked in other words?

    As `reliability`, on every stored paraphrase of the prompt; an edit with several counts their mean.

    Args:
        tables: token table of the new answers under the paraphrases (variant "alternative@paraphrases").
        form, ending: as for reliability.
    Returns: in [0, 1].
    Fooled by: paraphrases that share the words of the prompt; an edit that answers everything alike scores 1.
    Cost: 1 forward per paraphrase, shared.
    Source: as reliability; with CounterFact's two paraphrases this is ROME's paraphrase accuracy (arXiv 2202.05262).
    """
    return _accuracy(tables.get("tokens", "alternative@paraphrases"), form, ending)


@metric("portability", Needs("tokens", "hops:{source}", COLUMNS), unit="share", better="higher", roles=("forget",))
def portability(tables: Tables, *, form: Form = "tokens", ending: bool = False, source: str = SOURCE) -> Score:
    """Portability of an edit: does the model reason with the new answer in questions that go one step further?

    As `reliability`, on the questions that follow from the edit, with the answers that are right after it; an edit
    with several counts their mean.

    Args:
        tables: token table of the answers one step further (variant "hops").
        form, ending: as for reliability.
        source: the stream of those questions; one belongs to the edit whose id its own id begins with, up to a slash.
    Returns: in [0, 1]. n/a where the data holds no such questions: the published ZsRE and CounterFact records have
        none, those of EasyEdit and KnowEdit that carry a field "portability" have.
    Fooled by: answers that were right before the edit as well, or that any model would guess (yes, English); compare
        with the original's.
    Cost: 1 forward per question, shared.
    Source: Yao et al. 2023 (arXiv 2305.13172); "tokens" is EasyEdit's computation (arXiv 2308.07269).
    """
    table = tables.get("tokens", f"hops:{source}")
    if not len(table):
        raise NotMeasured(NONE)
    return _accuracy(table, form, ending)


@metric(
    "locality", Needs("tokens", "answer", ("token", "greedy"), subjects=("this", "original")), unit="share",
    better="higher", roles=UNRELATED,
)
def locality(tables: Tables, *, form: Form = "tokens", ending: bool = False) -> Score:
    """Locality of an edit: does the model still choose on unrelated prompts what it chose before the edit?

    "tokens": mean over prompts of the share of the answer's places where the greedy tokens of both models are the
    same; "exact": share of prompts where all are. Whether the answer is right does not matter.

    Args:
        tables: token tables of the answers, of this model and of the original.
        form, ending: as for reliability.
    Returns: in [0, 1]; 1 for a model that was not changed. n/a without an original.
    Fooled by: unrelated prompts the model had no opinion about: any noise flips their choice.
    Cost: 1 forward per prompt and model, shared.
    Source: as reliability.
    """
    now = tables.get("tokens", "answer")
    if not any(key[0] == "original" for key in tables.tables):
        raise NotMeasured("no original was given")
    before = tables.get("tokens", "answer", subject="original")
    found = dict(zip(_keys(before), zip(before.rows("token"), before.rows("greedy"), strict=True), strict=True))
    same = np.zeros(len(now.ragged("token")[0]))
    offsets = now.ragged("token")[1]
    for row, (key, tokens, greedy) in enumerate(zip(_keys(now), now.rows("token"), now.rows("greedy"), strict=True)):
        if key not in found or not np.array_equal(found[key][0], tokens):
            raise NotMeasured(f"the original reads the answer of '{key[0]}' as other tokens")
        same[offsets[row] : offsets[row + 1]] = found[key][1] == greedy
    return _mean(now, same, form, ending)


@metric(
    "edit_success", Needs("tokens", "alternative", ("token", "logp")), Needs("tokens", "answer", ("token", "logp")),
    unit="share", better="higher", roles=("forget",),
)
def edit_success(tables: Tables, *, normalise: bool = True, ending: bool = False) -> Score:
    """Edit success: is the new answer more probable than the old one?

    Mean over edits of [P(new | prompt) > P(old | prompt)]; a tie is no success.

    Args:
        tables: token tables of the new and the old answers.
        normalise: compare probabilities per token (geometric means); False: of the whole answers.
        ending: count the token that closes the text as well.
    Returns: share in [0, 1] with its Clopper-Pearson interval, over the edits that have both answers.
    Fooled by: a small change of odds between two unlikely answers: neither need be what the model would say.
    Cost: 2 forwards per edit, shared.
    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), whose code normalises.
    """
    new, old = (_log_probability(tables.get("tokens", which), normalise, ending) for which in ("alternative", "answer"))
    wins = {name: float(new[name] > old[name]) for name in new if name in old}
    return mean_score(wins, "share", "higher", binary=True)


def _accuracy(table: Table, form: Form, ending: bool) -> Score:
    return _mean(table, table.ragged("argmax")[0].astype(np.float64), form, ending)


def _mean(table: Table, right: Floats, form: Form, ending: bool) -> Score:
    """Mean over examples of the share of right tokens, or of whether all are."""
    owner, counted = _places(table, ending)
    n = np.bincount(owner[counted], minlength=len(table))
    hits = np.bincount(owner[counted], weights=right[counted], minlength=len(table))
    values = (hits == n).astype(np.float64) if form == "exact" else hits / np.maximum(n, 1)
    return mean_score(_by_id(table, values, n > 0), "share", "higher")


def _log_probability(table: Table, normalise: bool, ending: bool) -> dict[str, float]:
    owner, counted = _places(table, ending)
    n = np.bincount(owner[counted], minlength=len(table))
    total = np.bincount(owner[counted], weights=table.ragged("logp")[0][counted], minlength=len(table))
    return _by_id(table, total / (np.maximum(n, 1) if normalise else 1), n > 0)


def _by_id(table: Table, values: Floats, kept: np.ndarray) -> dict[str, float]:
    return by_id([name for name, keep in zip(table.ids, kept, strict=True) if keep], values[kept])


def _places(table: Table, ending: bool) -> tuple[np.ndarray, np.ndarray]:
    """The row of every token, and which tokens count: without `ending`, not those that close a text.

    A tokenizer that closes texts closes all with one token; where the last tokens differ, nothing closes them.
    """
    tokens, offsets = table.ragged("token")
    n = np.diff(offsets)
    counted = np.ones(len(tokens), dtype=bool)
    last = offsets[1:][n > 0] - 1
    if not ending and len(np.unique(tokens[last])) == 1:
        counted[offsets[1:][n > 1] - 1] = False
    return np.repeat(np.arange(len(n)), n), counted


def _keys(table: Table) -> list[tuple[str, int]]:
    return [(name, int(item)) for name, item in zip(table.ids, table.items, strict=True)]
