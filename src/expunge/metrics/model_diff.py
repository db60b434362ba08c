"""Does the removal itself tell what was removed? Guessing the erased items from the model before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.membership import both_sides, separated
from expunge.metrics.membership_scores import check_share
from expunge.metrics.shift import NEEDS_TEXTS, area_within, folds_of, shift_remark, written
from expunge.metrics.stats import Floats, Indices
from expunge.registry import metric
from expunge.types import Needs, Score

Guess = Literal["drop", "classifier"]


def changes(now: Table, before: Table, share: float) -> dict[str, Floats]:
    """How the removal changed what the model thinks of each text, by example id, [5] in nats.

    With d_t the change of log p(x_t) and c_t that of the mean log-probability of a token drawn from the model (minus
    its entropy): mean d, mean of the smallest and of the largest share of d, mean |d|, mean c. All are 0 for a model
    that was not changed. Texts that the two models were not asked in the same tokens are left out.
    """
    first, second = _rows(now), _rows(before)
    found = {}
    for key in sorted(first.keys() & second.keys()):
        (tokens, logp, mean), (others, logp_before, mean_before) = first[key], second[key]
        if not np.array_equal(tokens, others) or not len(tokens):
            continue
        moved, surer = np.sort(logp - logp_before), mean - mean_before
        few = max(1, int(share * len(moved) + 1e-9))
        parts = (moved, moved[:few], moved[-few:], np.abs(moved), surer)
        found[key] = np.array([part.mean() for part in parts])
    return found


def _rows(table: Table) -> dict[str, tuple[np.ndarray, Floats, Floats]]:
    """Tokens, their log-probabilities, and the mean log-probability at each place, of the first text of an example."""
    if len(table) == 0:
        return {}
    columns = (table.rows(name) for name in ("token", "logp", "mean"))
    return {
        key: (token, np.asarray(logp, dtype=np.float64), np.asarray(mean, dtype=np.float64))
        for key, item, token, logp, mean in zip(table.ids, table.items.tolist(), *columns, strict=True) if item == 0
    }


def guesses(features: Floats, erased: np.ndarray, folds: Indices) -> Floats:
    """Chance of having been erased by a classifier trained on the other folds, [texts]; 0.5 where one side is absent.

    Logistic regression on standardised features, both sides weighing the same.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.full(len(features), 0.5)
    for fold in np.unique(folds):
        train = folds != fold
        centre, spread = features[train].mean(0), features[train].std(0)
        standard = (features - centre) / np.where(spread > 1e-12, spread, np.inf)  # what never differs says nothing
        if len(np.unique(erased[train])) == 2 and standard[train].any():
            model = LogisticRegression(solver="liblinear", class_weight="balanced", max_iter=1000)
            scores[~train] = model.fit(standard[train], erased[train]).predict_proba(standard[~train])[:, 1]
    return scores


@metric(
    "model_diff",
    Needs("tokens", columns=("logp", "mean"), sets=("stream", "{against}"), subjects=("this", "original")),
    NEEDS_TEXTS, unit="AUC", better="oracle", roles=("forget",),
)
def model_diff(
    tables: Tables, *, guess: Guess = "drop", share: float = 0.2, against: str = "retain"
) -> Score:
    """Model difference: can the erased items be guessed from what the removal changed in the model?

    AUC = P(guess(erased) > guess(kept)) + ties / 2, from d_t, the change of log p(x_t | x_<t) by the removal. "drop":
    the guess is -mean d_t, with nothing to learn. "classifier": logistic regression on the mean of d_t, of its smallest
    and of its largest share, of |d_t|, and of the change of the entropy, cross-validated.

    Args:
        tables: token tables of this stream and of `against`, by this model and by the model before the removal.
        guess: "drop"; or "classifier", of somebody who has learned from other erased and kept items, and who sees also
            removals that leave the log-probability of the text where it was.
        share: of the tokens that the smallest and the largest changes are taken of, in (0, 1]; at least one token.
        against: the stream the erased items hide in: "retain", or "holdout" for text the model has never seen.
    Returns: AUC in [0, 1]; 0.5 = nothing tells the erased items from others, as for a model that was not changed at
        all. What counts is the oracle's value: true forgetting shows as well, for the old model knew the items and the
        new one does not. Above it, the removal marks its items. Far below 0.5 "drop" tells them as well, turned round;
        a classifier below 0.5 has found nothing. Interval: bootstrap over subjects. Per example of this stream the
        guess. n/a without the model before the removal.
    Raises: RecipeError for a share outside (0, 1].
    Fooled by: streams of different kinds or lengths: any change of a model moves them differently
        (`membership_without_model` tells; `reason` says so where it does). With few items a classifier learns little;
        with two sides that are alike by design it falls far below 0.5. Only log-probabilities of the true texts are
        looked at: 0.5 does not prove that weights or states show nothing.
    Cost: 1 forward per example and model, shared; five regressions.
    Source: Chen et al. 2021 (arXiv 2005.02205): the outputs of the two versions of a model tell a deleted sample.
        Differences: they train the guesser on shadow models and also on the outputs themselves; here it is
        cross-validated on the audited items and sees differences alone, so that an unchanged model gives 0.5. The
        question is that of FUMA (Deepak et al. 2025, EMNLP), of which we had the abstract alone.
    """
    check_share(share, "model_diff.share")
    sides = [
        changes(tables.get("tokens", set=name), tables.get("tokens", set=name, subject="original"), share)
        for name in ("stream", against)
    ]
    remark = _left_out(tables, sides, against)
    drops = [{key: -float(one[0]) for key, one in side.items()} for side in sides]
    if guess == "drop":
        return separated(tables, drops[0], drops[1], score=guess, against=against, remarks=remark)
    given = both_sides(tables, drops[0], drops[1], score=guess, against=against, remarks=remark)
    return given if isinstance(given, Score) else _classified(tables, sides, against, remark)


def _classified(
    tables: Tables, sides: Sequence[Mapping[str, Floats]], against: str, remark: Sequence[str]
) -> Score:
    """The cross-validated classifier's AUC, over the pairs within a fold."""
    ids = [sorted(side) for side in sides]
    features = np.array([side[key] for side, keys in zip(sides, ids, strict=True) for key in keys])
    erased = np.array([True] * len(ids[0]) + [False] * len(ids[1]))
    groups = [*_groups(tables, ids[0], "stream"), *_groups(tables, ids[1], against)]
    folds = folds_of(groups, erased)
    if folds is None:
        why = f"fewer than two subjects on one side ({len(ids[0])} erased, {len(ids[1])} kept): nothing to learn from"
        return Score.missing(why, "AUC", "oracle")
    scores = guesses(features, erased, folds)
    area, interval = area_within(scores, erased, folds, groups)
    told = [f"{len(ids[0])} erased, {len(ids[1])} kept", *remark, shift_remark(tables, against)]
    values = dict(zip(ids[0], map(float, scores[erased]), strict=True))
    num = len(set(groups[: len(values)]))
    reason = "; ".join(filter(None, told))
    return Score(
        area, interval, values, len(values), "AUC", "oracle", "ok", reason, groups=num if num < len(values) else None
    )


def _left_out(tables: Tables, sides: Sequence[Mapping[str, Floats]], against: str) -> list[str]:
    """What to say of texts of which the two models were not asked the same."""
    total = sum(len(set(tables.get("tokens", set=name).ids)) for name in ("stream", against))
    lost = total - sum(map(len, sides))
    return [f"{lost} of {total} texts were not asked of both models in the same tokens"] if lost else []


def _groups(tables: Tables, ids: Sequence[str], set: str) -> list[str]:
    """What each example is about: its subject, or its text where it names none."""
    try:
        known = written(tables.get("texts", set=set))
    except NotMeasured:
        return [f"{set} {key}" for key in ids]
    about = dict(zip(known.ids, known.groups, strict=True))
    return [about[key] for key in ids]
