"""What is left inside: worked by hand, and on small models that learned, hide, or never knew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.errors import RecipeError
from expunge.measure.desk import Partner
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.depth import depth_of, unlearning_depth, unlearning_depth_reference_free
from expunge.metrics.residue import best_place, halves, lens_by_layer, lens_shares, logit_lens_extraction
from expunge.models import clone
from expunge.registry import bind
from expunge.scoring import plan_for, score
from expunge.types import Data, Subject
from support.learned import knows, short_data

OWN = ("this", "forget", "lens", "answer#head=own")


def lens_table(rows: dict[str, list[list[bool]]], **more: dict[str, list[list[bool]]]) -> Table:
    """Per example, its layers; per layer, whether each token is the greedy one. `more`: other points."""
    points = {"block": rows, **more}
    last = [np.array(layers[-1]) for layers in rows.values()]
    return Table.of({
        "id": list(rows), "item": [0] * len(rows), "logp": [np.zeros(len(row), np.float32) for row in last],
        "argmax": last,
        **{f"argmax:{name}": [np.array(one).T.reshape(-1) for one in found.values()] for name, found in points.items()},
    })


# Suffixes right: a: 0/2, 2/2, 0/2; b: 1/4, 2/4, 4/4.
ROWS = {
    "a": [[True, False], [True, True], [True, False]],
    "b": [[False, False, False, True], [False, False, True, True], [True, True, True, True]],
}


def test_extraction_of_every_layer_by_hand():
    given = Tables({OWN: lens_table(ROWS)}, "forget", {})
    shares = lens_shares(given.tables[OWN], ["block"])
    assert shares == {
        ("block", 0): {"a": 0.0, "b": 0.25}, ("block", 1): {"a": 1.0, "b": 0.5}, ("block", 2): {"a": 0.0, "b": 1.0},
    }
    assert [lens_by_layer(given, layer=layer).value for layer in (0, 1, 2, -1, -3)] == [0.125, 0.75, 0.5, 0.5, 0.125]
    with pytest.raises(NotMeasured, match="no layer 3: this model has blocks 0 to 2"):
        lens_by_layer(given, layer=3)
    with pytest.raises(NotMeasured, match="no 'mlp' to read"):
        lens_by_layer(given, point="mlp")


def test_no_example_has_a_part_in_choosing_its_layer():
    """a is best at layer 1, b at layer 2: each is scored where the other is best, not where itself is."""
    found = logit_lens_extraction(Tables({OWN: lens_table(ROWS)}, "forget", {}))
    assert found.per_example == {"a": 0.0, "b": 0.5}
    assert "block 1" in found.reason
    assert "block 2" in found.reason
    assert "the model's own output 0.500" in found.reason


def test_halves_depend_on_ids_alone():
    ids = [f"forget/{i}" for i in range(21)]
    one, other = halves(ids)
    assert (one, other) == halves(reversed(ids))
    assert sorted(one + other) == sorted(ids)
    assert len(one) - len(other) == 1
    found = {("block", 0): {"x": 0.5}, ("block", 1): {"x": 0.5}, ("mlp", 1): {"x": 0.1}}
    assert best_place(found, ["x"]) == ("block", 1)


def test_guessing_layers_are_not_believed():
    """16 layers of 4 points that guess: the best of 64 looks well above chance, chosen and scored apart it does not."""
    random = np.random.default_rng(1)
    guesses = {
        point: {f"x/{i}": [[bool(random.random() < 0.25)] for _ in range(16)] for i in range(100)}
        for point in ("block", "attention", "middle", "mlp")
    }
    blocks = guesses.pop("block")
    table = lens_table(blocks, **guesses)
    means = [np.mean(list(one.values())) for one in lens_shares(table, ["block", *guesses]).values()]
    found = logit_lens_extraction(Tables({OWN: table}, "forget", {}), point="all")
    assert max(means) >= 0.33
    assert found.value == pytest.approx(0.25, abs=0.06)


def test_one_example_has_no_half_to_choose_on():
    found = logit_lens_extraction(Tables({OWN: lens_table({"a": ROWS["a"]})}, "forget", {}))
    assert found.status == "n/a"
    assert "one example" in found.reason


@pytest.mark.parametrize(("first", "second", "expected"), [
    ([1.0, 3.0], [0.0, 0.0], 0.0),  # the original
    ([1.0, 3.0], [1.0, 3.0], 1.0),  # the oracle
    ([1.0, 3.0], [0.5, 3.0], 3.5 / 4),
    ([1.0, 3.0], [9.0, -2.0], 1.0 / 4),  # cut at both ends, layer by layer
    ([0.04, 3.0], [0.0, 1.5], 0.5),  # the first layer does not hold it
    ([0.05, 0.01], [9.0, 9.0], None),  # more than tau, not as much
])
def test_depth_by_hand(first, second, expected):
    found = depth_of(np.array(first), np.array(second), 0.05)
    assert found == (None if expected is None else pytest.approx(expected))


def patched(rows: dict[str, tuple[list[float], list[float]]]) -> Table:
    """Per example what is lost with this model's states and with the windows'; clean is -1."""
    columns = {name: [-1 - np.array(row[k]) for row in rows.values()] for k, name in enumerate(("patched", "window:2"))}
    return Table.of({"id": list(rows), "item": [0] * len(rows), "clean": [-1.0] * len(rows), **columns})


def both(this: Table, oracle: Table) -> Tables:
    keyed = {(who, "forget", "patched", "answer"): table for who, table in (("this", this), ("oracle", oracle))}
    return Tables(keyed, "forget", {})


def test_depth_over_examples_counts_who_is_left_out():
    this = patched({"a": ([1.0, 1.0], [4.0, 4.0]), "b": ([1.0, 1.0], [0.0, 0.0]), "c": ([0.0, 2.0], [1.0, 1.0])})
    oracle = patched({"a": ([2.0, 2.0], [0.0, 0.0]), "b": ([1.0, 4.0], [0.0, 0.0]), "c": ([0.0, 0.01], [0.0, 0.0])})
    found = unlearning_depth(both(this, oracle))
    assert found.per_example == pytest.approx({"a": 0.5, "b": 2 / 5})
    assert found.reason.startswith("1 of 3 texts left out")
    free = unlearning_depth_reference_free(both(this, oracle))
    assert free.per_example == pytest.approx({"a": 0.25, "c": 0.5})
    with pytest.raises(NotMeasured, match="window:3"):
        unlearning_depth_reference_free(both(this, oracle), window=3)
    nothing = unlearning_depth(both(this, patched({"c": ([0.0, 0.0], [0.0, 0.0])})))
    assert nothing.status == "n/a"
    assert "1 of 1 texts left out" in nothing.reason
    with pytest.raises(RecipeError, match="tau"):
        unlearning_depth(both(this, oracle), tau=-1)
    shallow = unlearning_depth(both(this, patched({"a": ([1.0], [1.0])})))
    assert shallow.reason == "the oracle has another number of layers"


# -- models that learned -----------------------------------------------------------------------------------------
METRICS = [bind("metric", spec) for spec in (
    "unlearning_depth", "unlearning_depth_reference_free", "logit_lens_extraction", "extraction_strength",
    {"use": "logit_lens_extraction", "head": "original"}, {"use": "lens_by_layer", "layer": 1},
)]


def forget_data() -> Data:
    return Data(forget=replace(short_data()["forget"], examples=tuple(
        replace(one, spans=()) for one in short_data()["forget"].examples
    )))


def scored(subject: Subject, original: Subject, oracle: Subject) -> list[float]:
    """The metrics above, in their order."""
    data = forget_data()
    partner = Partner(lambda: original)
    this, twin, before = (
        measure(one, data, plan_for(METRICS, data), partner=partner) for one in (subject, oracle, original)
    )
    found = [score(metric, "forget", this, twin, before) for metric in METRICS]
    assert all(one.status == "ok" and np.isfinite(one.value) for one in found), [one.reason for one in found]
    return [float(one.value) for one in found if one.value is not None]


def deeper(subject: Subject, noise: float) -> Subject:
    """The same with one more block: one that writes nothing, or noise in place of what there was to say."""
    from transformers import LlamaForCausalLM

    config = clone(subject).model.config
    config.num_hidden_layers = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        model.load_state_dict(subject.model.state_dict(), strict=False)
        block = model.model.layers[2]
        for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            torch.nn.init.normal_(matrix, std=noise) if noise else torch.nn.init.zeros_(matrix)
    return replace(subject, model=model)


def test_the_original_is_at_zero_and_the_oracle_at_one():
    original, oracle = knows("forget", "retain"), knows("retain")
    depth, free, lens, said, _, _ = scored(original, original, oracle)
    assert (depth, free) == (0.0, 0.0)
    assert lens == said == 1.0
    depth, free, lens, said, _, _ = scored(oracle, original, oracle)
    assert depth == 1.0
    assert 0.3 < free < 1  # it knows the form of the answers, which two tokens do not tell
    assert lens < 0.6  # the end of a text is easy


def test_a_broken_head_hides_and_removes_nothing():
    """Nothing inside has changed: depth 0; with its own head the model is mute, with the original's it says all."""
    original, oracle = knows("forget", "retain"), knows("retain")
    broken = clone(original)
    with torch.no_grad():
        broken.model.lm_head.weight = torch.nn.Parameter(original.model.lm_head.weight.roll(7, 0))
    depth, free, lens, said, theirs, _ = scored(broken, original, oracle)
    assert abs(depth) < 1e-6
    assert abs(free) < 1e-6
    assert said < 0.1
    assert lens < 0.1
    assert theirs == 1.0


def test_a_last_block_that_talks_over_the_answer_removes_one_layer_of_three():
    """Block 1 still says everything, block 2 drowns it: read from inside it is all there, and depth is a third."""
    original, oracle = deeper(knows("forget", "retain"), 0.0), deeper(knows("retain"), 0.0)
    hidden = deeper(knows("forget", "retain"), 3.0)
    depth, free, lens, said, _, first = scored(hidden, original, oracle)
    assert said < 0.1
    assert lens == first == 1.0
    assert depth == pytest.approx(1 / 3, abs=0.1)
    assert free == pytest.approx(1 / 3, abs=0.1)


def test_without_an_original_the_reason_is_given():
    data = forget_data()
    measured = measure(knows("retain"), data, plan_for(METRICS[:2], data))
    for metric in METRICS[:2]:
        found = score(metric, "forget", measured, measured)
        assert found.reason == "the model before the removal was not given"
