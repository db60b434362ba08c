"""Guessing the erased items from two models: by hand, what it must not see, and on models that learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from expunge.errors import RecipeError
from expunge.forget import forget
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table
from expunge.metrics.model_diff import changes, model_diff
from expunge.models import clone
from expunge.registry import bind, term
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import check_metric
from support.learned import knows, short_data
from support.membership_tables import keyed, text_rows, token_rows

CLASSIFIER = {"guess": "classifier"}


def rows(name, values, means=None, tokens=None):
    """A token table: one text per row of log-probabilities, ids NAME/0, NAME/1, ..."""
    values = [list(map(float, row)) for row in values]
    tokens = tokens or [list(range(len(row))) for row in values]
    table = token_rows([(f"{name}/{k}", ids, row) for k, (ids, row) in enumerate(zip(tokens, values, strict=True))])
    means = [[-1.0] * len(row) for row in values] if means is None else [list(map(float, row)) for row in means]
    return Table(table.arrow.append_column("mean", pa.array(means, type=pa.list_(pa.float64()))))


def given(now, before, about=None, kept="retain"):
    """Tables of (erased, kept) texts by this model and by the one before. about: subjects by id."""
    found = {}
    for name, this, other in zip(("forget", kept), now, before, strict=True):
        found[f"{name}/tokens/answer"], found[f"original/{name}/tokens/answer"] = this, other
        found[f"{name}/texts/answer"] = text_rows({key: f"text {key}" for key in this.ids}, about)
    return keyed(found)


def from_changes(erased, kept, **more):
    """Texts of which the model before thought nothing special, and each token changed by so much."""
    now = rows("forget", np.asarray(erased) - 2.0), rows("retain", np.asarray(kept) - 2.0)
    before = rows("forget", np.zeros_like(erased) - 2.0), rows("retain", np.zeros_like(kept) - 2.0)
    return given(now, before, **more)


def test_changes_by_hand():
    """d = (-3, 0, 1, -1, 0): mean -0.6; two of five: -2 and 0.5; |d|: 1; entropy 2 less on one of five tokens."""
    now = rows("a", [[-4, -1, -1, -3, -1]], [[-1, -1, -1, -1, -3]])
    before = rows("a", [[-1, -1, -2, -2, -1]])
    assert changes(now, before, 0.4)["a/0"].tolist() == pytest.approx([-0.6, -2.0, 0.5, 1.0, -0.4])
    assert changes(now, before, 0.1)["a/0"].tolist() == pytest.approx([-0.6, -3.0, 1.0, 1.0, -0.4])  # one token
    assert changes(now, now, 0.4)["a/0"].tolist() == [0.0] * 5


def test_drop_by_hand():
    """Drops 3, 1 of the erased and 2, 0 of the kept: three of four pairs are right."""
    found = model_diff(from_changes([[-3.0], [-1.0]], [[-2.0], [0.0]]))
    assert found.value == 0.75
    assert found.per_example == {"forget/0": 3.0, "forget/1": 1.0}
    assert model_diff(from_changes([[-3.0], [-1.0]], [[0.0], [0.0]])).value == 1.0
    assert model_diff(from_changes([[3.0], [1.0]], [[0.0], [0.0]])).value == 0.0


@pytest.mark.parametrize("hyper", [{}, CLASSIFIER, CLASSIFIER | {"against": "holdout"}])
def test_an_unchanged_model_shows_nothing(hyper):
    """Exactly one half, however well it knew one side and not the other."""
    random = np.random.default_rng(0)
    tables = [rows(name, -random.exponential(size, (15, 4))) for name, size in (("forget", 0.1), ("kept", 3.0))]
    found = model_diff(given(tables, tables, kept=hyper.get("against", "retain")), **hyper)
    assert found.value == 0.5
    assert found.ci[0] < 0.5 < found.ci[1]


def test_a_classifier_sees_what_leaves_the_likelihood_where_it_was():
    """The texts are as likely as before, but the model is unsure beside them."""
    random = np.random.default_rng(1)
    values = [random.normal(-2, 0.3, (30, 4)) for _ in range(2)]
    means = [random.normal(-1 - gap, 0.2, (30, 4)) for gap in (0.5, 0.0)]
    names = ("forget", "retain")
    before = [rows(name, v) for name, v in zip(names, values, strict=True)]
    moved = [v + random.normal(0, 0.3, v.shape) for v in values]
    now = [rows(name, v, mean) for name, v, mean in zip(names, moved, means, strict=True)]
    assert abs(model_diff(given(now, before)).value - 0.5) < 0.2
    found = model_diff(given(now, before), **CLASSIFIER)
    assert found.value > 0.9
    assert found.ci[0] > 0.7
    assert found.reason.startswith("30 erased, 30 kept")
    assert set(found.per_example) == {f"forget/{k}" for k in range(30)}
    assert all(0 <= value <= 1 for value in found.per_example.values())


def test_nothing_to_see_is_not_seen():
    """The same changes on both sides: within its interval in all of 12 draws but one at most."""
    right = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        found = model_diff(from_changes(random.normal(-1, 1, (25, 6)), random.normal(-1, 1, (25, 6))), **CLASSIFIER)
        right += found.ci[0] <= 0.5 <= found.ci[1]
    assert right >= 11


def test_items_about_one_subject_are_not_learned_from_each_other():
    """Ten subjects a side, each changed its own way by chance: known one by one, they say nothing of others."""
    random = np.random.default_rng(3)
    sides = [np.repeat(random.normal(0, 2, (5, 1)), 8, axis=0) + random.normal(0, 0.01, (40, 6)) for _ in range(2)]
    names = {f"{side}/{k}": f"{side} {k // 8}" for side in ("forget", "retain") for k in range(40)}
    grouped = model_diff(from_changes(*sides, about=names), **CLASSIFIER)
    alone = model_diff(from_changes(*sides), **CLASSIFIER)
    assert grouped.groups == 5
    assert alone.groups is None
    assert grouped.ci[1] - grouped.ci[0] > 1.5 * (alone.ci[1] - alone.ci[0])


def test_only_what_both_models_were_asked_in_the_same_tokens():
    """forget/0 was shown to this model, forget/1 is asked otherwise under an attack."""
    now = rows("forget", [[-5], [-5], [-5]], tokens=[[9], [1], [2]]), rows("retain", [[-1], [-1]])
    before = rows("forget", [[-1], [-1], [-1]], tokens=[[0], [8], [2]]), rows("retain", [[-1], [-1]])
    now = Table(now[0].arrow.slice(1)), now[1]
    found = model_diff(given(now, before))
    assert found.per_example == {"forget/2": 4.0}
    assert "1 of 4 texts were not asked of both models in the same tokens" in found.reason
    other = rows("forget", [[-1], [-1]], tokens=[[7], [7]])
    lost = model_diff(given((other, now[1]), before))
    assert (lost.status, lost.value) == ("n/a", None)
    assert "2 of 4 texts were not asked" in lost.reason


def test_what_cannot_be_had_says_why():
    tables = from_changes([[-3.0], [-1.0]], [[-2.0], [0.0]])
    alone = {key: table for key, table in tables.tables.items() if key[0] == "this"}
    with pytest.raises(NotMeasured, match="no original was given"):
        model_diff(replace(tables, tables=alone))
    with pytest.raises(NotMeasured, match="holdout"):
        model_diff(tables, against="holdout")
    with pytest.raises(RecipeError, match=r"model_diff\.share: got 0"):
        model_diff(tables, share=0)
    few = model_diff(from_changes([[-3.0]], [[-2.0], [0.0]]), **CLASSIFIER)
    assert few.status == "n/a"
    assert "fewer than two subjects on one side (1 erased, 2 kept)" in few.reason


@pytest.mark.parametrize("hyper", [CLASSIFIER, {"against": "holdout", "share": 0.5}])
def test_every_check_of_metrics(hyper):
    check_metric({"use": "model_diff", **hyper})


def test_on_models_that_learned():
    """The original shows nothing of itself; the oracle shows what it lacks; ascent shows more; so does each guess."""
    data = short_data()
    before, oracle = knows("forget", "retain"), knows("retain")
    stage = forget(terms=[term("ascent", on="forget"), term("nll", on="retain")], steps=6, lr=3e-3, batch_size=12)
    pushed = stage(clone(before), data, Run())
    metrics = [bind("metric", {"use": "model_diff", **hyper}) for hyper in ({}, CLASSIFIER)]
    known = measure(before, data, plan_for(metrics, data))
    found = {}
    for name, subject in (("before", before), ("oracle", oracle), ("pushed", pushed)):
        scores = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)), None, known)
        found[name] = [score.value for (stream, _), score in scores.items() if stream == "forget"]
    assert found["before"] == [0.5, 0.5]
    assert min(found["oracle"]) > 0.8
    assert min(found["pushed"]) > 0.95
