"""Several runs of one recipe with different seeds as one finding: means, spread between seeds, both errors together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from expunge import yaml12
from expunge.errors import DataError
from expunge.metrics.stats import UNIT, Interval
from expunge.report import numbers
from expunge.report.schema import Evidence, Measured, Outcome
from expunge.report.several import Claim, Pooled, Several

ORDER: tuple[Outcome, ...] = ("PASS", "INCONCLUSIVE", "FAIL")
BOUNDED = numbers.SHARES | {"auc", "utility"}  # units of values between 0 and 1; a ratio may be above


def pool(runs: Sequence[tuple[str, Evidence]]) -> Several:
    """Every score and verdict of several runs together.

    mean +- t(K-1) sd / sqrt(K) is the interval over the K seeds, for the very examples that were measured. All seeds
    are measured on the same examples, so the error of having these and no others does not shrink with K: the total
    interval adds it in full, side by side, sqrt(reach over seeds ^ 2 + mean reach over examples ^ 2), after the law of
    total variance. The seeds' spread holds a part of the examples' error already, so this errs on the wide side.

    Args:
        runs: the name and the evidence of each.
    Returns: the table; a p-value has its median and no interval, for p-values are not averaged.
    Raises: DataError when two of them are the same run.
    Source: Zou and Donner 2008 (adding intervals side by side).
    """
    _refuse_copies(runs)
    found = [evidence for _, evidence in runs]
    keys = dict.fromkeys((row.condition, row.stream, row.metric) for one in found for row in one.scores)
    scores = tuple(_pooled(key, [row for one in found if (row := one.score(*key)) is not None]) for key in keys)
    recipes = [_recipe(one) for one in found]
    seeds = tuple(recipe.get("seed") for recipe in recipes)
    outcomes = [one.verdict for one in found if one.verdict is not None]
    return Several(
        found[0].title, tuple(name for name, _ in runs), seeds, scores, _claims(found),
        max(outcomes, key=ORDER.index, default=None), tuple(_warnings(recipes, found)),
    )


def over_seeds(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, Interval | None]:
    """Mean, standard deviation between seeds and Student's interval of the mean; None from a single value."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return float(sample[0]), None, None
    mean, sd = float(sample.mean()), float(sample.std(ddof=1))
    reach = float(special.stdtrit(len(sample) - 1, (1 + level) / 2)) * sd / math.sqrt(len(sample))
    return mean, sd, (mean - reach, mean + reach)


def with_examples(mean: float, over_runs: Interval, values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval over seeds widened by the mean reach of the intervals over examples, each side on its own."""
    pairs = list(zip(values, intervals, strict=True))
    down = float(np.mean([max(0.0, value - low) for value, (low, _) in pairs]))
    up = float(np.mean([max(0.0, high - value) for value, (_, high) in pairs]))
    return mean - math.hypot(mean - over_runs[0], down), mean + math.hypot(over_runs[1] - mean, up)


def _pooled(key: tuple[str, str, str], rows: list[Measured]) -> Pooled:
    first = rows[0]
    known = [(row.value, row) for row in rows if row.value is not None and math.isfinite(row.value)]
    if not known:
        reason = next((row.reason for row in rows if row.reason), "no finite value")
        return Pooled(*key, 0, unit=first.unit, better=first.better, reason=reason)
    values = [value for value, _ in known]
    groups = [row.groups for _, row in known]
    shared: dict[str, Any] = {
        "runs": len(known), "n": min(row.n for _, row in known), "unit": first.unit, "better": first.better,
        "groups": min((g for g in groups if g is not None), default=None),
    }
    if numbers.is_p(first.unit):
        return Pooled(*key, mean=float(np.median(values)), reason="median; p-values are not averaged", **shared)
    mean, sd, over_runs = over_seeds(values)
    intervals = [row.ci for _, row in known if row.ci is not None]
    total = None
    if over_runs is not None and len(intervals) == len(known):
        total = with_examples(mean, over_runs, values, intervals)
    if first.unit.lower() in BOUNDED:
        over_runs, total = _cut(over_runs), _cut(total)
    return Pooled(*key, mean=mean, sd=sd, over_runs=over_runs, total=total, **shared)


def _cut(interval: Interval | None) -> Interval | None:
    return None if interval is None else (max(UNIT[0], interval[0]), min(UNIT[1], interval[1]))


def _claims(found: Sequence[Evidence]) -> tuple[Claim, ...]:
    seen: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in found:
        for row in one.verdicts:
            seen.setdefault((row.claim, row.metric, row.stream), []).append(row.verdict)
    return tuple(
        Claim(*key, max(outcomes, key=ORDER.index), {name: outcomes.count(name) for name in ORDER})
        for key, outcomes in seen.items()
    )


def _recipe(one: Evidence) -> Mapping[str, Any]:
    text = one.method.recipe if one.method is not None else ""
    plain = yaml12.read(text) if text else {}
    return plain if isinstance(plain, dict) else {}


def _refuse_copies(runs: Sequence[tuple[str, Evidence]]) -> None:
    seen: dict[str, str] = {}
    for name, one in runs:
        if one.digest and one.digest in seen:
            raise DataError(
                name, f"the same recipe and seed as {seen[one.digest]} (digest {one.digest})",
                "runs of one recipe with different seeds: the same one twice shows no spread",
                "Run the recipe again with --set seed=NUMBER",
            )
        seen[one.digest] = name


def _warnings(recipes: Sequence[Mapping[str, Any]], found: Sequence[Evidence]) -> list[str]:
    told = []
    flat = [dict(_leaves(recipe)) for recipe in recipes if recipe]
    keys = {key for one in flat for key in one if key.rpartition(".")[2] != "seed"}
    differ = sorted(key for key in keys if len({repr(one.get(key)) for one in flat}) > 1)
    if differ:
        told.append(f"the recipes differ in more than the seed: {', '.join(differ[:8])}")
    if len({tuple(condition.name for condition in one.conditions) for one in found}) > 1:
        told.append("not every run measured the same conditions; the column `runs` counts those that did")
    if len({(s.name, s.n) for one in found for s in one.streams}) > len({s.name for one in found for s in one.streams}):
        told.append("the streams are not of the same size in all runs")
    return told


def _leaves(plain: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(plain, dict):
        return [leaf for key, value in plain.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(plain, list):
        return [leaf for index, value in enumerate(plain) for leaf in _leaves(value, f"{path}[{index}]")]
    return [(path, plain)]
