"""Is the split itself to blame? A classifier without any model, trained to tell members from non-members by words.

Where it succeeds the two sets differ in topic, date or form, and every membership score between them measures that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.stats import Floats, Indices, Interval, bootstrap_of, constant_interval
from expunge.registry import metric
from expunge.types import Needs, Score

NEEDS_TEXTS = Needs("texts", columns=("prompt", "answer", "subject"), sets=("stream", "{against}"))
NUM_FOLDS = 5
MOST_TEXTS = 2000  # of each side; more would cost minutes and tell nothing new


class Shift(NamedTuple):
    """AUC of the classifier, its interval, and the chance of being a member it gives each member (None: not asked).

    grouped: every text names its subject, so that no classifier was tested on a subject it had learned.
    """

    auc: float
    ci: Interval
    scores: tuple[float | None, ...]
    grouped: bool

    @property
    def finding(self) -> str:
        """What the interval says of the split; nothing where it reaches down to one half."""
        if self.ci[0] <= 0.5:
            return ""
        return "the split is shifted" + ("" if self.grouped else " (or texts about one subject do not name it)")


@dataclass(frozen=True)
class Written:
    """The texts of one side: ids in order, and of each the text and the group that must stay together."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    groups: tuple[str, ...]


def written(table: Table) -> Written:
    """The texts of a `texts` table as the model reads them, one an example, ids sorted."""
    rows = zip(
        table.ids, table.items, table.texts("prompt"), table.texts("answer"), table.texts("subject"), strict=True
    )
    found: dict[str, tuple[str, str]] = {}
    for key, item, prompt, answer, subject in rows:
        text = f"{prompt}\n{answer}" if prompt else answer
        if item == 0:
            found[key] = (text, subject or text)
    ids = tuple(sorted(found))
    return Written(ids, tuple(found[key][0] for key in ids), tuple(found[key][1] for key in ids))


@lru_cache(maxsize=64)
def blind_shift(members: Written, outside: Written) -> Shift | str:
    """How well the texts alone tell the two sides apart; or why that cannot be said.

    Logistic regression on a bag of words (cased, there or not, in two texts at least) and three lengths (log
    characters, log words, share of digits). Texts of one subject, and equal texts, share a fold, so none is scored by a
    classifier that saw it or its like. AUC over the pairs within a fold: scores of two classifiers have no common
    scale. Interval: bootstrap over groups, widened by sqrt(1 + folds / (folds - 1)) because folds share what they were
    trained on (Nadeau and Bengio 2003).
    """
    sides = [_thinned(members), _thinned(outside)]
    texts = [text for side in sides for text in side.texts]
    groups = [group for side in sides for group in side.groups]
    is_member = np.array([True] * len(sides[0].ids) + [False] * len(sides[1].ids))
    folds = folds_of(groups, is_member)
    if folds is None:
        return f"fewer than two groups of texts on one side ({len(members.ids)} members, {len(outside.ids)} others)"
    scores = _scores(texts, is_member, folds)
    area, ci = area_within(scores, is_member, folds, groups)
    known = dict(zip(sides[0].ids, map(float, scores[is_member]), strict=True))
    grouped = all(group != text for group, text in zip(groups, texts, strict=True))
    return Shift(area, ci, tuple(known.get(key) for key in members.ids), grouped)


def _thinned(side: Written) -> Written:
    """At most `MOST_TEXTS` of a side, evenly over its ids."""
    n = len(side.ids)
    if n <= MOST_TEXTS:
        return side
    kept = np.arange(MOST_TEXTS) * n // MOST_TEXTS
    return Written(*(tuple(np.asarray(row, dtype=object)[kept]) for row in (side.ids, side.texts, side.groups)))


def folds_of(groups: Sequence[str], is_member: np.ndarray) -> Indices | None:
    """The fold of every text, [texts]: whole groups, those of each side dealt out in turn; None when too few."""
    kinds: dict[str, set[bool]] = {}
    for group, member in zip(groups, is_member.tolist(), strict=True):
        kinds.setdefault(group, set()).add(member)
    sides = [sum(member in found for found in kinds.values()) for member in (True, False)]
    num = min(NUM_FOLDS, *sides)
    if num < 2:
        return None
    fold: dict[str, int] = {}
    for kind in ({True}, {False}, {True, False}):
        names = sorted((name for name, found in kinds.items() if found == kind), key=_shuffled)
        fold |= {name: i % num for i, name in enumerate(names)}
    return np.array([fold[group] for group in groups])


def _shuffled(name: str) -> bytes:
    """A key that puts names in an order that has nothing to do with them, the same everywhere."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _scores(texts: Sequence[str], is_member: np.ndarray, folds: Indices) -> Floats:
    """Chance of being a member by a classifier trained on the other folds, [texts]; 0.5 where one side is absent."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    lengths = np.array([_lengths(text) for text in texts])
    try:
        words = CountVectorizer(lowercase=False, token_pattern=r"(?u)\b\w+\b", binary=True).fit_transform(texts)
    except ValueError:  # not one word
        words = csr_matrix((len(texts), 0))
    scores = np.full(len(texts), 0.5)
    for fold in np.unique(folds):
        train = folds != fold
        if len(np.unique(is_member[train])) < 2:
            continue
        common = np.asarray(words[train].sum(0)).ravel() >= 2  # seen once, a word tells who, not which side
        centre, spread = lengths[train].mean(0), lengths[train].std(0)
        standard = (lengths - centre) / np.where(spread > 0, spread, 1.0)
        features = hstack([words[:, common], csr_matrix(standard)]).tocsr()
        model = LogisticRegression(solver="liblinear", class_weight="balanced", max_iter=1000)
        scores[~train] = model.fit(features[train], is_member[train]).predict_proba(features[~train])[:, 1]
    return scores


def _lengths(text: str) -> tuple[float, float, float]:
    digits = sum(character.isdigit() for character in text)
    return float(np.log1p(len(text))), float(np.log1p(len(text.split()))), digits / max(1, len(text))


def area_within(
    scores: Floats, is_member: np.ndarray, folds: Indices, groups: Sequence[str]
) -> tuple[float, Interval]:
    """AUC over the pairs of a member and a non-member in one fold, and its interval over redrawn groups."""
    names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    own = [np.unique(codes[is_member == side]) for side in (True, False)]  # groups of each side
    parts = []
    for fold in np.unique(folds):
        rows = [np.flatnonzero((folds == fold) & (is_member == side)) for side in (True, False)]
        a, b = scores[rows[0]][:, None], scores[rows[1]][None]
        parts.append(((a > b) + (a == b) / 2, codes[rows[0]], codes[rows[1]]))

    def areas(weights: tuple[Floats, Floats]) -> Floats:  # of every group, per draw: [draws, groups]
        won = pairs = np.zeros(len(weights[0]))
        for wins, first, second in parts:
            a, b = weights[0][:, first], weights[1][:, second]
            won = won + ((a @ wins) * b).sum(1)
            pairs = pairs + a.sum(1) * b.sum(1)
        return np.where(pairs > 0, won / np.maximum(pairs, 1), 0.5)  # no pair in any fold: nothing to tell apart

    def drawn(indices: list[Indices]) -> Floats:
        return areas((_weights(own[0][indices[0]], len(names)), _weights(own[1][indices[1]], len(names))))

    ones = np.ones((1, len(names)))
    area = float(areas((ones, ones))[0])
    found = bootstrap_of(drawn, [len(own[0]), len(own[1])])
    if found is None or found[1] - found[0] <= 1e-12:
        return area, constant_interval(area, min(map(len, own)))
    wider = math.sqrt(1 + len(parts) / (len(parts) - 1))  # the classifiers of the folds were trained on shared texts
    low, high = (area + wider * (end - area) for end in (min(found[0], area), max(found[1], area)))
    return area, (max(0.0, low), min(1.0, high))


def _weights(drawn: Indices, size: int) -> Floats:
    """How often every group was drawn: [draws, n] -> [draws, size]."""
    flat = (drawn + size * np.arange(len(drawn))[:, None]).reshape(-1)
    return np.bincount(flat, minlength=len(drawn) * size).reshape(len(drawn), size).astype(np.float64)


def shift_of(tables: Tables, against: str) -> tuple[Written, Written, Shift | str]:
    """The classifier on this stream's texts and on those of `against`.

    Raises: NotMeasured where the texts are not there.
    """
    members = written(tables.get("texts"))
    outside = written(tables.get("texts", set=against))
    return members, outside, blind_shift(members, outside)


def shift_remark(tables: Tables, against: str) -> str:
    """What to say beside a membership score: a sentence where the split is shifted, nothing where it is not known."""
    try:
        _, _, found = shift_of(tables, against)
    except NotMeasured:
        return ""
    if isinstance(found, str) or not found.finding:
        return ""
    reached = f"AUC {found.auc:.3f} [{found.ci[0]:.3f}, {found.ci[1]:.3f}]"
    return f"a classifier without any model reaches {reached}: {found.finding}, and this says little about memory"


@metric("membership_without_model", NEEDS_TEXTS, unit="AUC", better="oracle", roles=("forget",))
def membership_without_model(tables: Tables, *, against: str = "holdout") -> Score:
    """Can members be told from non-members by their words alone? Then a membership score between them means nothing.

    AUC = P(member > non-member) + ties / 2 of a logistic regression on words and lengths, cross-validated.

    Args:
        tables: texts of this stream and of `against`; no model is asked.
        against: the stream of non-members.
    Returns: AUC in [0, 1], the same for every model; 0.5 = the split is clean. An interval above 0.5: the two sets
        differ in topic, date or form, and every `membership` AUC against the same stream measures that as well.
        Below 0.5 there is nothing to find. Interval: bootstrap over subjects. Per example of this stream the chance
        of being a member that the classifier gives it.
    Fooled by: texts about one subject that do not name it in `subject`: what the classifier learned of the one helps
        it with the other, as if the split were shifted. Languages without spaces, whose sentences are one word. Only
        what words and lengths show is found: 0.5 does not prove the split clean.
    Cost: no forward; five regressions on at most 2000 texts a side, once for all models.
    Source: Das, Zhang and Tramer 2024 (arXiv 2406.16201); Meeus et al. 2024 (arXiv 2406.17975). Ours: a fixed
        classifier, folds by subject, an interval.
    """
    members, outside, found = shift_of(tables, against)
    if not members.ids or not outside.ids:
        where = against if members.ids else tables.stream
        return Score.missing(f"stream '{where}' has no text", "AUC", "oracle")
    if isinstance(found, str):
        return Score.missing(found, "AUC", "oracle")
    values = {key: score for key, score in zip(members.ids, found.scores, strict=True) if score is not None}
    reason = f"{len(members.ids)} members, {len(outside.ids)} non-members, no model"
    if found.finding:
        reason += f"; {found.finding}: a membership score between these streams says little about memory"
    return Score(found.auc, found.ci, values, len(values), "AUC", "oracle", "ok", reason)
