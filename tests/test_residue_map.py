"""What the layers still hold: cells are means of what the lens wrote down, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.measure.plan import Measured, Plan, measure
from expunge.measure.tables import Table
from expunge.registry import bind
from expunge.report import schema
from expunge.residue_map import FEWEST, POSITIONS, add_lens, residue_maps
from expunge.scoring import plan_for
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Needs, Stream
from support.learned import knows, short_data

KEY = ("forget", "lens", "answer#head=own")


def measured(rows: dict[str, np.ndarray]) -> Measured:
    """A lens table by hand: id -> log-probabilities [tokens, layers]."""
    columns = {
        "id": list(rows), "item": [0] * len(rows), "logp": [row[:, -1] for row in rows.values()],
        "logp:block": [row.reshape(-1) for row in rows.values()],
    }
    return Measured({KEY: Table.of(columns)}, {}, 0, 0)


def stream(num: int, subjects: int = 0) -> Data:
    made = tuple(Example(f"e{i}", "?", "!", subject=f"s{i % subjects}" if subjects else None) for i in range(num))
    return Data(forget=Stream("forget", "forget", made))


def filled(value: float, lengths: list[int], layers: int = 2) -> Measured:
    return measured({f"e{i}": np.full((n, layers), value) for i, n in enumerate(lengths)})


def only(found: list[schema.ResidueMap]) -> schema.ResidueMap:
    (one,) = found
    return one


def test_cells_are_means_by_layer_and_place_without_the_end() -> None:
    """Token t of example i at layer l holds -(10 l + t + i); the last token of each is its end."""
    rows = {f"e{i}": np.array([[-(10.0 * layer + t + i) for layer in (0, 1)] for t in range(4)]) for i in range(3)}
    found = only(residue_maps({"after": measured(rows), "oracle": measured(rows)}, stream(3)))
    assert found.counts == (3, 3, 3)
    (after, oracle) = found.grids
    assert [grid.condition for grid in (after, oracle)] == ["after", "oracle"]
    assert after.logp == ((-1.0, -2.0, -3.0), (-11.0, -12.0, -13.0))
    assert [gap.difference for gap in found.gaps] == [0.0, 0.0]
    assert (found.against, found.n, found.groups, found.head) == ("oracle", 3, None, "own")


def test_places_that_few_examples_have_are_left_out() -> None:
    lengths = [20, 20, 20, 5, 5, 3]
    found = only(residue_maps({"after": filled(-1.0, lengths), "original": filled(-2.0, lengths)}, stream(6)))
    assert found.counts == (6, 6, 5, 5, *[3] * 8)
    assert len(found.counts) == POSITIONS
    assert found.against == "original"
    assert [gap.difference for gap in found.gaps] == [1.0, 1.0]
    few = filled(-1.0, [4] * (FEWEST - 1))
    assert residue_maps({"after": few, "oracle": few}, stream(2)) == []


def test_gaps_are_over_subjects_and_paired() -> None:
    """Examples of one subject differ alike: an interval over 12 examples would be narrower than one over 4 subjects."""
    data = stream(12, subjects=6)
    base = {f"e{i}": np.full((3, 1), -float(i)) for i in range(12)}
    moved = {name: row + (i % 6) for i, (name, row) in enumerate(base.items())}
    found = only(residue_maps({"after": measured(moved), "oracle": measured(base)}, data))
    assert found.groups == 6
    (gap,) = found.gaps
    assert gap.difference == pytest.approx(2.5)  # whatever the examples themselves are like: it is paired
    assert gap.ci is not None
    alone = only(residue_maps({"after": measured(moved), "oracle": measured(base)}, stream(12))).gaps[0].ci
    assert alone is not None
    assert gap.ci[1] - gap.ci[0] > 1.2 * (alone[1] - alone[0])


def test_only_texts_that_all_conditions_have_count() -> None:
    after = filled(-1.0, [4, 4, 4, 4])
    oracle = measured({f"e{i}": np.full((4 if i else 5, 2), -3.0) for i in range(4)})  # cut otherwise: another text
    found = only(residue_maps({"after": after, "oracle": oracle}, stream(4)))
    assert (found.n, found.counts) == (3, (3, 3, 3))


def test_a_value_that_is_not_finite_is_no_value() -> None:
    broken = {f"e{i}": np.array([[-np.inf if i == 0 else -1.0, -1.0]] * 3) for i in range(4)}
    found = only(residue_maps({"after": measured(broken), "oracle": filled(-1.0, [3] * 4)}, stream(4)))
    assert found.grids[0].logp == ((None, None), (-1.0, -1.0))
    assert [gap.layer for gap in found.gaps] == [1]


def test_nothing_without_the_model_after_or_something_to_compare_with() -> None:
    table = filled(-1.0, [3] * 4)
    assert residue_maps({"after": table}, stream(4)) == []
    assert residue_maps({"oracle": table, "original": table}, stream(4)) == []
    assert residue_maps({"after": table, "after+relearn": table}, stream(4)) == []
    assert residue_maps({"after": Measured({}, {KEY: "no blocks"}, 0, 0), "oracle": table}, stream(4)) == []


# -- what is measured for it -----------------------------------------------------------------------------------
def test_the_lens_is_extended_where_it_is_read_anyway_and_only_there() -> None:
    data = short_data()
    plan = plan_for([bind("metric", "lens_by_layer")], data)
    before = {asked: set(columns) for asked, columns in plan.wanted.items()}
    assert add_lens(plan, data) is plan
    assert plan.wanted[KEY] == before[KEY] | {"logp:block"}
    assert {asked for asked in plan.wanted if plan.wanted[asked] != before[asked]} == {KEY}
    silent = plan_for([bind("metric", "probability")], data)
    assert not any(asked[1] == "lens" for asked in add_lens(silent, data).wanted)
    assert add_lens(silent, data, asked=True).wanted[KEY] == {"logp:block"}


def test_a_lens_through_the_original_head_is_extended_as_it_is() -> None:
    data, plan = short_data(), Plan()
    plan.add("forget", [Needs("lens", "answer#head=original", ("argmax:block",))])
    add_lens(plan, data, asked=True)
    assert {asked[2] for asked in plan.wanted} == {"answer#head=original"}


def test_the_last_layer_is_what_the_model_says() -> None:
    """On a model that learned and one that did not: the top row is what the token table holds, place by place."""
    data = short_data()
    plan = add_lens(plan_for([bind("metric", "probability")], data), data, asked=True)
    tables = {name: measure(subject, data, plan) for name, subject in (
        ("original", knows("forget", "retain")), ("after", tiny_subject(seed=2)),
    )}
    found = only(residue_maps(tables, data))
    assert [grid.condition for grid in found.grids] == ["original", "after"]
    for grid in found.grids:
        said = [row[:-1] for row in tables[grid.condition].tables["forget", "tokens", "answer"].rows("logp")]
        for place, count in enumerate(found.counts):
            here = [row[place] for row in said if len(row) > place]
            assert len(here) == count
            assert grid.logp[-1][place] == pytest.approx(float(np.mean(here)), abs=1e-4)
    original, after = (grid.logp[-1] for grid in found.grids)
    assert min(original) > -0.2  # it knows every answer by heart
    assert max(after) < -3.0  # the other never saw them
    assert found.gaps[-1].difference < -3.0
    assert found.gaps[-1].ci is not None
    assert found.gaps[-1].ci[1] < -3.0


def test_two_streams_give_two_maps() -> None:
    data = stream(4)
    data["more"] = Stream("more", "forget", data["forget"].examples)
    table = filled(-1.0, [3] * 4)
    both = Measured({KEY: table.tables[KEY], ("more", *KEY[1:]): table.tables[KEY]}, {}, 0, 0)
    found = residue_maps({"after": both, "oracle": both}, data)
    assert [one.stream for one in found] == ["forget", "more"]
