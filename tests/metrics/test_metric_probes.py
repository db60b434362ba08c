"""Linear probes: the closed form, what a probe may see, and what controls and words alone would tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import RecipeError
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.probes import (
    Candidates,
    candidates,
    choose,
    cross_probe,
    folds,
    learn,
    linear_probe,
    probe,
    rank_right,
    ridge,
    stream_states,
    words,
)
from expunge.registry import bind
from expunge.scoring import plan_for, score
from expunge.types import Data
from support import golden, toys
from support.learned import short_data

WIDTH, LAYERS = 6, 3


def test_golden_ridge():
    expected = golden.load("interp")["ridge_probe"]
    x = toys.fill((12, 3), 9101).numpy()
    y = np.sign(x @ np.array([1.0, -2.0, 0.5]))
    beta = ridge(x, y, expected["lambda"])
    assert beta == pytest.approx(expected["beta"], abs=1e-8)
    assert np.mean(np.sign(x @ beta) == y) == expected["train_acc"]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-3, 10), st.integers(0, 99))
def test_ridge_solves_its_equations_whichever_side_is_smaller(num, width, penalty, seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(num, width)), random.normal(size=num)
    beta = ridge(x, y, penalty)
    np.testing.assert_allclose((x.T @ x + penalty * np.eye(width)) @ beta, x.T @ y, atol=1e-8)


def state_table(rows: dict[str, list[np.ndarray]], subjects: dict[str, str], stream: str = "") -> Table:
    """Per example its texts, each [layers, width]."""
    flat = [(name, item, one) for name, texts in rows.items() for item, one in enumerate(texts)]
    return Table.of({
        "id": [name for name, _, _ in flat], "item": [item for _, item, _ in flat],
        "subject": [subjects[name] for name, _, _ in flat], "num_layers": [len(one) for _, _, one in flat],
        "states": [one.astype(np.float32).reshape(-1) for _, _, one in flat],
        "token": [np.array([3, 4], dtype=np.int32)] * len(flat),
    })


def world(stream: str, *, num: int = 30, size: float = 2.0, layer: int = 1, seed: int = 0) -> dict[str, Table]:
    """True answers lie `size` along the first axis, at one layer only; three questions an entity; questions differ."""
    random = np.random.default_rng(seed)
    true, false, subjects = {}, {}, {}
    for i in range(num):
        name = f"{stream}/{i}"
        subjects[name] = f"{stream} entity {i // 3}"
        question = 5 * random.normal(size=(LAYERS, WIDTH))
        texts = [question + random.normal(size=(LAYERS, WIDTH)) for _ in range(4)]
        texts[0][layer, 0] += size
        true[name], false[name] = texts[:1], texts[1:]
    return {"answer": state_table(true, subjects), "perturbed": state_table(false, subjects)}


def given_tables(stream: str = "forget", **streams: dict[str, Table]) -> Tables:
    return Tables({
        ("this", name, "states", f"{variant}#at=last"): table
        for name, found in streams.items() for variant, table in found.items()
    }, stream, {})


def of(stream: dict[str, Table]) -> Candidates:
    return candidates(stream["answer"], stream["perturbed"], stream_states)


def test_what_lies_there_is_found_at_its_layer():
    """A difference of 3 between unit normals is ordered right with chance Phi(3 / sqrt 2) = 0.983."""
    found = linear_probe(given_tables(forget=world("forget", size=3, seed=1), retain=world("retain", size=3)))
    right = float(found.reason.split("accuracy ")[1].split(",")[0])
    assert right == pytest.approx(0.983, abs=0.05)
    assert "block 1, learned on 'retain'" in found.reason
    assert "words alone 0.500" in found.reason  # every answer has the same words here
    assert found.value == pytest.approx(0.48, abs=0.2)
    assert found.better == "oracle"
    assert set(found.per_example) == {f"forget/{i}" for i in range(30)}


def test_nothing_is_found_where_nothing_is():
    """The direction is real on what is kept and absent here: a model that forgot, a metric that says so."""
    found = linear_probe(given_tables(forget=world("forget", size=0, seed=1), retain=world("retain", size=3)))
    assert abs(float(found.reason.split("accuracy ")[1].split(",")[0]) - 0.5) < 0.15


def test_within_a_stream_the_probe_never_saw_the_entity():
    """States that are nothing but the mark of their entity: trained on it a probe would be right, here it cannot."""
    random = np.random.default_rng(0)
    true, false, subjects = {}, {}, {}
    for entity in range(40):
        mark = 9 * random.normal(size=(1, 80))
        for i in range(2):
            name = f"x/{entity}.{i}"
            subjects[name] = str(entity)
            true[name], false[name] = [mark], [-mark]
    found = candidates(state_table(true, subjects), state_table(false, subjects), stream_states)
    seen = rank_right(found, 0, learn(found, 0, 1e-6))
    unseen = cross_probe(found, 1e-6)
    assert seen.mean() == 1.0
    assert np.mean(list(unseen.right.values())) == pytest.approx(0.5, abs=0.2)
    tables = given_tables(forget={"answer": state_table(true, subjects), "perturbed": state_table(false, subjects)})
    found = [linear_probe(tables, learn_on=name) for name in ("stream", "forget")]
    assert found[0] == found[1]
    assert found[0].reason.endswith("learned on 'forget' itself; no more than the words alone tell")


def test_entities_of_the_scored_stream_are_not_learned_from():
    """`retain` holds the forgotten entities as well: a probe trained on them alone cannot be made."""
    same = world("forget", num=9)
    with pytest.raises(NotMeasured, match="fewer than 2 entities"):
        linear_probe(given_tables(forget=same, retain=same))


def test_a_layer_is_chosen_without_the_scored_stream():
    """The scored stream is marked at layer 2, the other at layer 0: layer 0 is chosen and finds little."""
    train, test = of(world("retain", layer=0, size=4)), of(world("forget", layer=2, size=4, seed=1))
    assert choose(train, 1.0) == 0
    assert probe(train, test, 1.0).layers == (0,)
    assert np.mean(list(probe(train, test, 1.0).right.values())) < 0.75


def test_the_control_is_guessing():
    control = probe(of(world("retain", size=4)), of(world("forget", size=0, seed=3, num=90)), 1.0).control
    assert np.mean(list(control.values())) == pytest.approx(0.5, abs=0.12)


def test_permuted_candidates_are_the_same_candidates():
    found = of(world("forget", num=6))
    mixed = found.permuted(0)
    for i in range(6):
        one, other = (
            np.sort(np.concatenate([c.true[1, [i]], c.false[1, c.owner == i]])[:, 0]) for c in (found, mixed)
        )
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found.true, mixed.true)


def test_ties_are_half_and_shares_are_of_false_answers():
    table = state_table({"a": [np.array([[1.0]])]}, {"a": "a"})
    wrong = state_table({"a": [np.array([[v]]) for v in (0.0, 1.0, 2.0, 0.5)]}, {"a": "a"})
    assert rank_right(candidates(table, wrong, stream_states), 0, np.array([1.0])).tolist() == [2.5 / 4]


def test_words_count_tokens():
    table = Table.of({"id": ["a"], "item": [0], "token": [np.array([1, 2, 1, 2049], dtype=np.int32)]})
    assert words(table).shape == (1, 1, 2048)
    assert words(table)[0, 0, :3].tolist() == [0, 3, 1]  # 2049 falls together with 1


def test_folds_hold_every_entity_once():
    parts = folds([f"e{i % 7}" for i in range(30)])
    assert sorted(name for part in parts for name in part) == [f"e{i}" for i in range(7)]
    assert len(parts) == 5


def test_reasons():
    with pytest.raises(NotMeasured, match="stream 'retain' has no perturbed"):
        linear_probe(given_tables(forget=world("forget"), retain={"answer": world("retain")["answer"]}))
    two = world("forget", num=6)
    with pytest.raises(NotMeasured, match="fewer than 3 entities"):
        linear_probe(given_tables(forget=two), learn_on="stream")
    with pytest.raises(RecipeError, match="penalty"):
        linear_probe(given_tables(), penalty=0)


def test_measured_on_a_model(tiny):
    """The tables of the instrument are what the metric reads; without false answers the reason is told."""
    metric = bind("metric", "linear_probe")
    data = short_data()
    found = score(metric, "forget", measure(tiny, data, plan_for([metric], data)))
    assert found.status == "ok"
    assert found.n == 12
    assert "learned on 'retain'" in found.reason
    bare = Data({name: replace(stream, examples=tuple(
        replace(one, perturbed=()) for one in stream.examples
    )) for name, stream in data.items()})
    missing = score(metric, "forget", measure(tiny, bare, plan_for([metric], bare)))
    assert missing.reason == "no example of 'forget' has a field 'perturbed'"
