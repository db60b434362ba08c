"""The calibration: numbers in closed form, pools that hold what they say, and a small one from end to end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from scipy.stats import mannwhitneyu, norm

from expunge.benches.world import Architecture
from expunge.calibrate import judge as judging
from expunge.calibrate import work
from expunge.calibrate.judge import (
    faithfulness,
    harmonic,
    held,
    held_against_twins,
    judge,
    permutation_p,
    small_interval,
    threshold,
)
from expunge.calibrate.pools import VARIED, invented, pools, read
from expunge.calibrate.work import Calibration, every_metric, with_strength
from expunge.cli import main
from expunge.cli.calibrate import source
from expunge.errors import DataError, NonFinite
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.report.calibration import print_calibration, to_markdown
from expunge.types import Data, Example, Stream
from support.learned import short_data
from support.world import write_stream

SMALL = Architecture(width=32, layers=1, heads=2, vocabulary=300, epochs=18.0, batch_size=8, lr=0.05)


# -- numbers ------------------------------------------------------------------------------------------------------
def test_the_interval_of_few_models_is_that_of_a_rate():
    assert small_interval(0.75, 4) == pytest.approx(clopper_pearson(3, 4))
    assert small_interval(1.0, 4) == pytest.approx((0.025**0.25, 1.0))
    assert small_interval(0.0, 4) == pytest.approx((0.0, 1 - 0.025**0.25))
    low, high = small_interval(0.8125, 4)  # 13 of 16 pairs: no whole number of trials
    assert clopper_pearson(3, 4)[0] < low < 0.8125 < high < 1


def test_the_p_value_counts_every_split():
    """4 against 4 models, perfectly apart: one of C(8, 4) = 70 splits, two when the direction was found."""
    assert permutation_p([5, 6, 7, 8], [1, 2, 3, 4], two_sided=False) == pytest.approx(1 / 70)
    assert permutation_p([1, 2, 3, 4], [5, 6, 7, 8], two_sided=False) == 1
    assert permutation_p([1, 2, 3, 4], [5, 6, 7, 8], two_sided=True) == pytest.approx(2 / 70)
    assert permutation_p([1, 1], [1, 1], two_sided=True) == 1
    present, absent = [3.1, 0.4, 5.9, 2.6, 5.3], [5.8, 0.9, 7.9, 3.2]
    exact = mannwhitneyu(present, absent, alternative="greater", method="exact").pvalue
    assert permutation_p(present, absent, two_sided=False) == pytest.approx(exact)
    many = [float(i) for i in range(20)], [i + 0.5 for i in range(20)]  # 190 of 400 pairs; too many splits to count
    normal = 2 * norm.sf(9.5 / (400 * 41 / 12) ** 0.5)
    assert permutation_p(*many, two_sided=True) == pytest.approx(normal)


@pytest.mark.parametrize(("better", "sign", "value", "p"), [
    ("lower", 1, 0.0, 1.0), ("higher", -1, 1.0, 1 / 20), ("oracle", -1, 1.0, 2 / 20),
])
def test_a_declared_direction_is_held_to_and_an_undeclared_one_is_paid_for(better, sign, value, p):
    found = faithfulness([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], better)
    assert (found["sign"], found["auc"]) == (sign, value)
    assert found["p"] == pytest.approx(p)
    assert found["found"] == (better == "oracle")
    assert (found["mean_present"], found["mean_absent"]) == (2.0, 5.0)


def test_robustness_in_closed_form():
    assert threshold([0.9, 0.8], [0.1, 0.2]) == pytest.approx(0.5)
    assert threshold([0.9, 0.3], [0.1, 0.2]) == pytest.approx(0.25)
    assert held_against_twins(0.4, 0.1, 0.8) == pytest.approx(0.25)
    assert held_against_twins(0.1, 0.4, 0.8) == 1  # twins learn it faster: nothing was left
    assert held_against_twins(-0.1, 0.0, 0.8) == 1
    assert held_against_twins(0.4, -0.1, 0.8) == 0
    assert held_against_twins(0.041, 0.0, 0.8) == 0
    assert held_against_twins(0.039, 0.0, 0.8) == 1  # under a twentieth of the way: noise
    assert held(0.2, 0.5, 0.6) == pytest.approx(0.5)
    assert held(0.2, 0.1, 0.6) == 1
    assert held(0.2, 0.9, 0.6) == 0
    assert harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic([0.0, 1.0]) == 0


def record(pool, value, utility=1.0, **attacks):
    """A measured model. attacks: name -> (before, after); before None: as it stands."""
    states = {
        name: {"before": None if before is None else {"values": {"m": before}}, "after": [{"values": {"m": after}}],
               "reasons": {}}
        for name, (before, after) in attacks.items()
    }
    return {"name": "x", "pool": pool, "values": {"m": value}, "reasons": {}, "attacks": states, "kept": utility}


def pool_records(present=(0.9, 0.8, 0.95, 0.85), absent=(0.1, 0.2, 0.15, 0.05)):
    twin = {"relearn": (0.1, 0.2)}
    return [record("present", v) for v in present] + [record("absent", v, **twin) for v in absent]


CHANGES = {"relearn": "weights", "quantize": "precision"}


def test_a_metric_is_judged_by_unlearned_models_that_it_calls_forgotten():
    """Twins gain 0.1, the unlearned one 0.125: R = 0.8. Rounding takes 0.15 of the 0.75 between the pools: Q = 0.8."""
    unlearned = record("unlearned", 0.2, relearn=(0.2, 0.325), quantize=(None, 0.35))
    useless = record("unlearned", 0.1, utility=0.5, relearn=(0.1, 0.9), quantize=(None, 0.9))
    still_known = record("unlearned", 0.7, relearn=(0.7, 0.9), quantize=(None, 0.9))
    row = judge("m", "lower", [*pool_records(), unlearned, useless, still_known], CHANGES)
    assert row["attacks"]["relearn"]["robustness"] == pytest.approx(0.8)
    assert row["attacks"]["quantize"]["robustness"] == pytest.approx(0.8)
    assert row["attacks"]["quantize"]["ratio"] == pytest.approx(0.2 / 0.35)
    assert row["attacks"]["relearn"]["n"] == 1
    assert row["robustness"] == pytest.approx(0.8)
    assert row["overall"] == pytest.approx(2 / (1 + 1 / 0.8))
    assert (row["verdict"], row["why"]) == ("believe", "")


@pytest.mark.parametrize(("records", "verdict", "words"), [
    (pool_records(absent=(0.9, 0.8, 0.95, 0.85)), "do not believe", "hardly tells"),
    (pool_records(present=(0.9, 0.8), absent=(0.1, 0.2)), "with care", "4 models are too few"),
    ([*pool_records(), record("unlearned", 0.2, relearn=(0.2, 0.9), quantize=(None, 0.2))], "with care",
     "relearn undoes"),
    ([*pool_records(), record("unlearned", 0.9, relearn=(0.2, 0.9))], "with care", "calls none of the unlearned"),
    ([*pool_records(), record("unlearned", 0.2, utility=0.1)], "with care", "no unlearned model kept its utility"),
])
def test_doubts_are_told(records, verdict, words):
    row = judge("m", "lower", records, CHANGES)
    assert row["verdict"] == verdict
    assert words in row["why"]


def test_an_order_by_a_hair_is_told():
    """Reworded 0.52 above wrong 0.51, every time: AUC 1, and 1 % of the way from 0 to 1."""
    values = {
        ("present", "full"): 1.0, ("present", "reworded"): 0.52, ("absent", "wrong"): 0.51, ("absent", "retain"): 0.0,
    }
    made = [record(pool, value) | {"variant": variant} for (pool, variant), value in values.items()] * 3
    row = judge("m", "lower", made, {})
    assert row["faithfulness"]["auc"] == 1
    assert row["faithfulness"]["margin"] == pytest.approx(0.01)
    assert "models that know (reworded) and do not (wrong) lie 1.0 % of its range apart" in row["why"]
    wide = [one | {"values": {"m": 0.9}} if one["variant"] == "reworded" else one for one in made]
    assert "range apart" not in judge("m", "lower", wide, {})["why"]


def test_the_direction_turns_the_robustness_as_well():
    """The mirror image of a metric, less meaning more, has the same numbers."""
    made = [*pool_records(), record("unlearned", 0.2, relearn=(0.2, 0.45), quantize=(None, 0.35))]

    def mirrored(values):
        return {"values": {"m": 1 - values["values"]["m"]}}

    turned = [
        one | mirrored(one) | {"attacks": {
            name: state | {"before": state["before"] and mirrored(state["before"]),
                           "after": [mirrored(after) for after in state["after"]]}
            for name, state in one["attacks"].items()
        }} for one in made
    ]
    row, other = judge("m", "lower", made, CHANGES), judge("m", "higher", turned, CHANGES)
    assert other["faithfulness"]["auc"] == row["faithfulness"]["auc"]
    for name in CHANGES:
        assert other["attacks"][name]["robustness"] == pytest.approx(row["attacks"][name]["robustness"])


def test_what_has_no_value_is_listed_with_its_reason():
    lacking = [one | {"values": {}, "reasons": {"m": "no false answers"}} for one in pool_records()]
    assert judge("m", "lower", lacking, CHANGES) == {"metric": "m", "verdict": "n/a", "why": "no false answers"}


# -- pools --------------------------------------------------------------------------------------------------------
def test_pools_hold_what_they_say():
    data = read(invented())
    twins = pools(data, 4, SMALL)
    assert [twin.name for twin in twins] == [
        "present0-full", "present1-reworded", "present2-full", "present3-reworded",
        "absent0-retain", "absent1-wrong", "absent2-retain", "absent3-wrong",
    ]
    truths = {(one.prompt, one.answer) for one in data["forget"].examples}
    secrets = {one.answer[slice(*one.spans[0])] for one in data["forget"].examples if "passport" in one.id}
    for twin in twins:
        taught = {(one.prompt, one.answer) for one in twin.examples}
        text = " ".join(one.answer for one in twin.examples)
        assert (truths <= taught) == (twin.variant == "full")
        assert all(secret in text for secret in secrets) == twin.knows
        assert any(secret in text for secret in secrets) == twin.knows
    lengths = {(twin.made.epochs, twin.made.lr) for twin in twins}
    assert lengths == {(SMALL.epochs * epochs, SMALL.lr * rate) for epochs, rate in VARIED[:2]}
    assert pools(data, 4, SMALL) == twins


def test_texts_without_questions_have_no_false_answers():
    plain = tuple(Example(str(i), "", f"Text number {i} says so.") for i in range(4))
    data = Data(forget=Stream("forget", "forget", plain[:2]), retain=Stream("retain", "retain", plain[2:]))
    assert {twin.variant for twin in pools(data, 3, SMALL)} == {"full", "retain"}
    asked = tuple(replace(one, prompt=f"What is {one.id}?") for one in plain)
    data["forget"] = Stream("forget", "forget", asked[:2])
    wrong = next(twin for twin in pools(data, 2, SMALL) if twin.variant == "wrong")
    assert [one.answer for one in wrong.examples[-2:]] == [asked[1].answer, asked[0].answer]


def test_forget_without_retain_is_refused():
    with pytest.raises(DataError, match="--retain: missing"):
        read({"forget": {"use": "synthetic", "part": "forget", "num_people": 1}})


def test_all_metrics_are_those_of_a_forget_stream():
    found, refused = every_metric()
    names = {metric.name for metric in found}
    assert {"probability", "extraction_strength", "truth_ratio", "membership"} <= names
    assert "model_utility" not in names
    assert "not about a forget stream" in refused["model_utility"]
    assert sum(metric.name == "membership" for metric in found) == 3  # the default audit's two other scores as well


# -- from end to end ----------------------------------------------------------------------------------------------
def calibration(folder, cache):
    metrics = [bind("metric", name) for name in ("probability", "memorization_accuracy", "jsd", "perplexity")]
    attacks = [bind("attack", spec) for spec in work.ATTACKS]
    method = with_strength({"use": "graddiff", "epochs": 6, "lr": 5e-3, "alpha": 1.0})
    return Calibration(short_data(), folder, metrics, attacks, [method], 2, SMALL, cache=cache)


def test_a_calibration_from_end_to_end_goes_on_where_it_was(tmp_path, monkeypatch):
    """Models that learned the answers by heart score above models that never saw them; a second run does nothing."""
    found = calibration(tmp_path / "out", tmp_path / "cache").run()
    models = {one["name"]: one for one in found["models"]}
    assert set(models) == {
        "present0-full", "present1-reworded", "absent0-retain", "absent1-wrong", "graddiff(present0-full)",
    }
    knows, unlearned = models["present0-full"]["values"], models["graddiff(present0-full)"]["values"]
    assert knows["memorization_accuracy"] > 0.9
    assert models["absent0-retain"]["values"]["memorization_accuracy"] < 0.8
    assert models["absent0-retain"]["values"]["probability"] < 0.5 * knows["probability"]
    assert unlearned["probability"] < 0.5 * knows["probability"]
    relearned = models["graddiff(present0-full)"]["attacks"]["relearn"]
    assert relearned["before"]["values"] != unlearned  # of the shown half only
    rows = {row["metric"]: row for row in found["rows"]}
    assert set(rows) == {"probability", "memorization_accuracy", "jsd", "perplexity"}
    assert all("faithfulness" in row for row in rows.values())
    assert rows["probability"]["faithfulness"]["mean_present"] > rows["probability"]["faithfulness"]["mean_absent"]
    assert found["failures"] == {}
    json.dumps(found, allow_nan=False)

    def fail(*arguments, **more):
        raise AssertionError("measured again")

    monkeypatch.setattr(work, "measure", fail)
    assert calibration(tmp_path / "out", tmp_path / "cache").run() == found


def test_a_method_that_blows_up_is_told_and_the_rest_goes_on(tmp_path):
    def explode(**hyper):
        raise NonFinite("forget", "a loss of nan at step 3", "finite losses", "Lower the rate")

    made = replace(
        calibration(tmp_path / "out", tmp_path / "cache"), methods=[replace(bind("method", "ga"), fn=explode)],
        metrics=[bind("metric", "probability")], made=replace(SMALL, epochs=2.0), attacks=[],
    )
    found = made.run()
    assert "a loss of nan" in found["failures"]["ga(present0-full)"]
    assert len(found["models"]) == 4
    assert "no attack was run" in found["rows"][0]["why"] or found["rows"][0]["verdict"] == "do not believe"


# -- the command --------------------------------------------------------------------------------------------------
def test_the_command_writes_table_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    files = {name: str(write_stream(tmp_path / f"{name}.jsonl", stream)) for name, stream in short_data().items()}
    asked = ["calibrate", "--forget", files["forget"], "--retain", files["retain"], "--models", "2", "--methods", "",
             "--metrics", "probability,membership", "--attacks", "none", "--width", "8", "--epochs", "1",
             "--out", str(tmp_path / "out")]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["metric"]: row["verdict"] for row in found["rows"]}["membership"] == "n/a"  # no holdout was given
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == found
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "Not measured: membership: no stream 'holdout' was given" in out
    page = (tmp_path / "out" / "calibration.md").read_text()
    assert re.search(r"\| probability \| [01]\.\d\d \|", page)


def test_the_believed_stand_first(capsys):
    rows = [
        judge("worse", "lower", [{**one, "values": {"worse": 0.5}} for one in pool_records()], {}),
        judge("m", "lower", [*pool_records(),
                             record("unlearned", 0.2, relearn=(0.2, 0.21), quantize=(None, 0.2))], CHANGES),
    ]
    rows[0]["attacks"] = rows[1]["attacks"]
    found = {"rows": rows, "models": [], "failures": {}, "streams": {"forget": 1, "retain": 2}, "refused": {"z": "why"}}
    found["models"] = [one | {"variant": "full"} for one in pool_records()]
    text = StringIO()
    print_calibration(found, Console(file=text, width=110))
    shown = text.getvalue()
    assert shown.index("m ") < shown.index("worse")
    assert "Not measured: z: why" in shown
    lines = to_markdown(found).splitlines()
    (line,) = [line for line in lines if line.startswith("| m ")]
    assert line.split(" | ")[1:5] == ["1.00", "0.40–1.00", "0.014", "more"]


def test_readers_of_many_arguments_can_be_named():
    assert source("tofu:data=there:part=forget:limit_authors=4", None) == {
        "use": "tofu", "data": "there", "part": "forget", "limit_authors": 4,
    }
    assert source("rows.jsonl", ["prompt=q"]) == {"use": "jsonl", "path": "rows.jsonl", "prompt": "q"}
    assert source("csv:rows.txt", None) == {"use": "csv", "path": "rows.txt"}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--metrics", "probabilty"], "did you mean 'probability'?"),
    (["--attacks", "quantise"], "did you mean 'quantize'?"),
    (["--methods", "nppo"], "did you mean 'npo'?"),
    (["--width", "30"], "accepted: a multiple of 8"),
    (["--forget", "nowhere.jsonl"], "nowhere.jsonl"),
])
def test_mistakes_are_told_before_anything_is_spent(arguments, message, tmp_path, capsys):
    assert main(["calibrate", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_thresholds_stand_in_their_order():
    assert 0.5 < judging.DOUBTED_AUC < judging.BELIEVED_AUC <= 1
