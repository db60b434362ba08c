"""Recovery curves and savings: closed forms, what cannot be told, and a real relearning."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from expunge.metrics.stats import mean_score
from expunge.recovery import budget_for, recoveries
from expunge.report import schema
from expunge.types import Better, Data, Example, Score, Stream

METRIC = "probability"
KEY = ("forget", METRIC)


def data(num: int = 20, subjects: int = 0) -> Data:
    made = tuple(Example(f"e{i}", "?", "!", subject=f"s{i % subjects}" if subjects else None) for i in range(num))
    return Data(forget=Stream("forget", "forget", made))


def scored(values: np.ndarray, *, left_out: int = 0, better: Better = "lower") -> Score:
    """A mean over examples; the first `left_out` were shown to the model and are not scored."""
    return mean_score({f"e{i}": float(v) for i, v in enumerate(values) if i >= left_out}, "share", better, bounds=None)


def condition(of: str, steps: int, attack: str = "relearn") -> schema.Condition:
    name = f"{of}+{attack}(steps={steps})"
    return schema.Condition(name, "attack", of, attack, "", schema.ConditionCost(steps=steps))  # type: ignore[arg-type]


def curves(after: Mapping[int, Score], oracle: Mapping[int, Score], of: Data, **more: Score) -> list[schema.Recovery]:
    """The recoveries of relearning with these scores by steps; 0 is the model itself."""
    known = [condition(name, steps) for name, line in (("after", after), ("oracle", oracle)) for steps in line if steps]
    scores = {name: {KEY: score} for name, score in more.items()}
    for name, line in (("after", after), ("oracle", oracle)):
        scores |= {f"{name}+relearn(steps={steps})" if steps else name: {KEY: one} for steps, one in line.items()}
    return recoveries(known, scores, of)


def straight(speed: float, steps: tuple[int, ...] = (0, 5, 10, 20), spread: float = 0.0, start: float = 0.1,
             num: int = 20, **how: object) -> dict[int, Score]:
    """Every example gains `speed` a step; they differ by `spread`, evenly."""
    base = start + spread * np.linspace(-1, 1, num)
    return {step: scored(base + speed * step, **how) for step in steps}  # type: ignore[arg-type]


def only(found: list[schema.Recovery]) -> schema.Recovery:
    (one,) = found
    return one


def test_four_times_as_fast_saves_four_and_more_cannot_be_told() -> None:
    """After gains 0.04 a step, the oracle 0.01: 5 steps against 20. What 10 and 20 steps give it never reaches."""
    found = only(curves(straight(0.04), straight(0.01), data()))
    assert (found.attack, found.stream, found.metric, found.budget) == ("relearn", "forget", METRIC, "steps")
    assert [point.budget for point in found.after] == [0, 5, 10, 20]
    assert [point.value for point in found.after] == pytest.approx([0.1, 0.3, 0.5, 0.9])
    assert [point.condition for point in found.oracle][:2] == ["oracle", "oracle+relearn(steps=5)"]
    assert [one.ratio for one in found.savings] == pytest.approx([4.0, 2.0, 1.0])
    assert [one.censored for one in found.savings] == [False, True, True]
    assert found.savings[0].ci == pytest.approx((4.0, 4.0))  # all examples alike: nothing to be unsure of
    assert found.savings[1].ci == (pytest.approx(2.0), math.inf)
    assert (found.n, found.groups, found.note) == (20, None, "")


def test_the_same_speed_saves_nothing() -> None:
    found = only(curves(straight(0.02), straight(0.02), data()))
    assert [one.ratio for one in found.savings] == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_where_nothing_came_back_nothing_was_saved(better: Better, sign: int) -> None:
    """Down, back to the start, then up: only the last has a price, although the oracle reaches none of the levels."""
    levels = {0: 0.5, 5: 0.5 - sign * 0.1, 10: 0.5, 20: 0.5 + sign * 0.2}
    after = {step: scored(np.full(20, level), better=better) for step, level in levels.items()}
    oracle = straight(sign * 0.001, (0, 20, 80), start=0.5 - sign * 0.4, better=better)
    found = only(curves(after, oracle, data()))
    assert [one.budget for one in found.savings] == [20]
    assert "no savings at 5, 10 steps: nothing had come back" in found.note


def test_between_points_it_is_straight() -> None:
    """The oracle has 0.2 at 10 steps and 0.6 at 20; 0.3 is a quarter of the way: 12.5 steps."""
    oracle = {0: scored(np.full(20, 0.1)), 10: scored(np.full(20, 0.2)), 20: scored(np.full(20, 0.6))}
    found = only(curves(straight(0.04, (0, 5, 10)), oracle, data()))
    assert found.savings[0].ratio == pytest.approx(12.5 / 5)


def test_what_the_oracle_has_without_any_budget_saves_nothing() -> None:
    found = only(curves(straight(0.001), straight(0.01, start=0.5), data()))
    assert [one.ratio for one in found.savings] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("better", "sign", "wanted"), [("lower", 1, 4.0), ("higher", -1, 4.0)])
def test_more_knowledge_may_be_a_smaller_number(better: Better, sign: int, wanted: float) -> None:
    found = only(curves(straight(sign * 0.04, better=better), straight(sign * 0.01, better=better), data()))
    assert found.savings[0].ratio == pytest.approx(wanted)


def test_the_original_says_which_way_is_more_where_the_metric_does_not() -> None:
    lines = [straight(-speed, better="oracle", start=0.9) for speed in (0.04, 0.01)]
    blind = only(curves(*lines, data()))
    assert blind.savings == ()
    assert "which way" in blind.note
    told = only(curves(*lines, data(), original=scored(np.full(20, 0.2))))
    assert told.savings[0].ratio == pytest.approx(4.0)


def test_points_are_over_the_examples_that_no_condition_was_shown() -> None:
    """Five examples are relearned: the model itself is scored on the other fifteen as well."""
    after = straight(0.04, spread=0.05, left_out=5) | {0: straight(0.04, (0,), spread=0.05)[0]}
    found = only(curves(after, straight(0.01, spread=0.05), data()))
    assert found.n == 15
    kept = 0.1 + 0.05 * np.linspace(-1, 1, 20)[5:]
    assert found.after[0].value == pytest.approx(kept.mean())
    assert found.oracle[1].value == pytest.approx(kept.mean() + 0.05)
    assert found.after[0].ci is not None
    assert found.after[0].ci[0] > kept.min()
    assert found.savings[0].ratio == pytest.approx(4.0)


def test_intervals_are_of_paired_models_and_over_subjects() -> None:
    """Examples that all start elsewhere but learn alike leave the savings sure; those that learn differently do not."""
    paired = only(curves(straight(0.04, spread=0.3), straight(0.01, spread=0.3), data()))
    assert paired.savings[0].ci == pytest.approx((4.0, 4.0))
    rng = np.random.default_rng(0)
    speeds = np.repeat(rng.uniform(0.0, 0.03, 8), 5)  # eight subjects of five examples that learn alike
    oracle = {step: scored(0.1 + speeds * step) for step in (0, 5, 10, 20, 40)}
    after = straight(0.04, num=40)
    grouped = Data(forget=Stream("forget", "forget", tuple(
        Example(f"e{i}", "?", "!", subject=f"s{i // 5}") for i in range(40)
    )))
    over_subjects, over_examples = (only(curves(after, oracle, of)) for of in (grouped, data(40)))
    assert (over_subjects.groups, over_examples.groups) == (8, None)
    widths = []
    for found in (over_subjects, over_examples):
        ci = found.savings[0].ci
        assert ci is not None
        assert ci[0] < found.savings[0].ratio < ci[1]
        widths.append(math.inf if math.isinf(ci[1]) else ci[1] - ci[0])
    assert widths[0] > 1.3 * widths[1]


def test_an_oracle_that_says_nothing_at_all_is_not_known_to_stay_silent() -> None:
    """None of 20 examples said by the oracle at any budget: up to 17 % of others may be (the rule of three), and then
    the first step up of the unlearned model, to 10 %, is nothing that the oracle could not have without any."""
    def rates(*counts: int) -> dict[int, Score]:
        return {step: mean_score({f"e{i}": float(i < k) for i in range(20)}, "share", "lower", binary=True)
                for step, k in zip((0, 5, 10, 20), counts, strict=True)}

    found = only(curves(rates(0, 2, 10, 18), rates(0, 0, 0, 0), data()))
    assert [one.censored for one in found.savings] == [True, True, True]
    small, middle, large = (one.ci for one in found.savings)
    assert small == (0.0, math.inf)
    assert middle == (2.0, math.inf)  # 50 % is beyond what chance can hide
    assert large == (1.0, math.inf)


def test_too_few_groups_and_scores_that_are_no_means_have_no_interval() -> None:
    few = only(curves(straight(0.04), straight(0.01), data(20, subjects=4)))
    assert few.savings[0].ci is None
    assert few.savings[0].ratio == pytest.approx(4.0)
    assert few.note == "savings without an interval: under 5 groups of examples"

    def auc(value: float) -> Score:
        return Score(value, (value - 0.1, value + 0.1), {"e0": 3.0}, 20, "AUC", "lower")

    after = {0: auc(0.5), 5: auc(0.7), 10: auc(0.9)}
    oracle = {0: auc(0.5), 5: auc(0.6), 10: auc(0.7)}
    found = only(curves(after, oracle, data()))
    assert (found.n, found.savings[0].ratio, found.savings[0].ci) == (0, pytest.approx(2.0), None)
    assert found.note == "savings without an interval: this measure is no mean over examples"
    assert found.after[1].ci == (pytest.approx(0.6), pytest.approx(0.8))


def test_a_model_that_starts_above_what_the_oracle_ever_reaches_is_told() -> None:
    """Then savings at small budgets are large for what was never removed, not for what came back."""
    found = only(curves(straight(0.01, start=0.5), straight(0.01), data()))
    assert found.note == "not attacked at all, the unlearned model has more than 20 steps give the oracle"
    assert [one.censored for one in found.savings] == [True, True, True]


def test_without_the_attack_on_an_oracle_there_is_a_curve_and_no_savings() -> None:
    alone = only(curves(straight(0.04), {}, data()))
    assert (alone.oracle, alone.savings) == ((), ())
    assert alone.note == "no savings: this attack was not measured on a model that never saw the data"


def test_one_budget_is_no_curve_and_other_attacks_are_other_curves() -> None:
    assert curves(straight(0.04, (0, 5)), straight(0.01), data()) == []
    known = [condition("after", steps, attack) for attack in ("relearn", "noise") for steps in (5, 10)]
    scores = {row.name: {KEY: scored(np.full(20, 0.2))} for row in known} | {"after": {KEY: scored(np.full(20, 0.1))}}
    assert [one.attack for one in recoveries(known, scores, data())] == ["relearn", "noise"]


def test_points_without_a_value_are_left_out_and_those_that_did_not_fit_too() -> None:
    after = straight(0.04, (0, 5, 10, 20)) | {10: Score.missing("broken")}
    found = only(curves(after, straight(0.01), data()))
    assert [point.budget for point in found.after] == [0, 5, 20]
    known = [condition("after", steps) for steps in (5, 10, 20)]
    assert only(recoveries(known, {row.name: {KEY: after[row.cost.steps]} for row in known} | {
        "after": {KEY: after[0]}}, data())).after[-1].budget == 20
    assert recoveries(known, {"after": {KEY: after[0]}}, data()) == []


def test_judged_metrics_only_where_there_are_any() -> None:
    scores = {name: {("forget", metric): one for metric in ("rouge", "own_metric")} for name, one in (
        ("after", scored(np.full(20, 0.1))), ("after+relearn(steps=5)", scored(np.full(20, 0.2))),
        ("after+relearn(steps=10)", scored(np.full(20, 0.3))),
    )}
    known = [condition("after", steps) for steps in (5, 10)]
    assert [one.metric for one in recoveries(known, scores, data())] == ["rouge"]
    unjudged = {name: {("forget", "own_metric"): found["forget", "own_metric"]} for name, found in scores.items()}
    assert [one.metric for one in recoveries(known, unjudged, data())] == ["own_metric"]


def test_budget_for_the_first_crossing_counts() -> None:
    budgets = np.array([0.0, 10.0, 20.0, 30.0])
    curves_of = np.array([[0.0, 0.4, 0.2, 0.8], [0.5, 0.6, 0.7, 0.8], [0.0, 0.1, 0.2, 0.3]])
    found = budget_for(budgets, curves_of, np.array([0.3, 0.5, 0.9]))
    assert found == pytest.approx([7.5, 0.0, math.inf])
    assert budget_for(budgets, curves_of, np.array([0.5, 0.8, 0.3])) == pytest.approx([25.0, 30.0, 30.0])
    flat = budget_for(budgets, np.zeros((1, 4)), np.array([0.0]))
    assert flat == pytest.approx([0.0])


def test_the_interval_covers() -> None:
    """Simulated: per-example speeds around 0.04 and 0.01 a step; the true savings of 4 lie inside 9 times out of 10."""
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fast, slow = (speed * rng.gamma(4.0, 0.25, 40) for speed in (0.02, 0.005))
        after = {step: scored(fast * step) for step in (0, 5, 10)}
        oracle = {step: scored(slow * step) for step in (0, 10, 20, 40)}
        ci = only(curves(after, oracle, data(40))).savings[0].ci
        assert ci is not None
        inside += ci[0] <= 4.0 <= ci[1]
    assert inside >= 52
