"""Recovery curves: what an attack brings back as its budget grows, and how much cheaper that is than learning it anew.

Relearning teaches any model something. What tells hidden knowledge from lost knowledge is the price: savings are the
budget a model that never saw the data needs for the same level, over what the unlearned model needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from expunge.metrics.clusters import Clusters, clusters_of, codes_of, is_mean
from expunge.metrics.stats import FEW, Floats, Interval, _resampled_sums, bootstrap_ci
from expunge.report import schema
from expunge.report.families import family, growing
from expunge.types import Data, Score, Stream
from expunge.verdicts import FORGOTTEN, Scores

NUM, SEED, LEVEL = 2000, 0, 0.95
Places = list[tuple[float, str]]  # budget spent, name of the condition


def recoveries(
    conditions: Sequence[schema.Condition], scores: Mapping[str, Scores], data: Data
) -> list[schema.Recovery]:
    """A curve for every attack that was measured at two or more budgets, of every judged metric of a forget stream.

    savings(b) = B / b, where B is the budget at which the oracle's curve, straight between its points, first gets to
    the level that the unlearned model has at b. Points are over the examples that no condition of a curve was shown.
    The interval redraws these examples (or the subjects they belong to) for both models alike, percentiles of 2000,
    widened for few subjects.

    Args:
        conditions: of the audit, with the cost of each. scores: by condition; those that did not fit are left out.
    Returns: curves of the unlearned model and the oracle over steps, queries or tokens, from 0 (not attacked) on, with
        savings. Empty where no attack has a growing budget.
    Cost: 10 ms per curve.
    Source: Ebbinghaus 1885 (savings); as a ratio of budgets with an oracle ours.
    """
    found = []
    for attack, unit, after, oracle in _families(conditions, scores):
        for stream in data.of_role("forget"):
            for metric in _metrics(scores, stream):
                key = (stream.name, metric)
                curves = _Curves(_line(after, scores, key), _line(oracle, scores, key), clusters_of(stream))
                if len(curves.after) > 2:
                    original = scores.get("original", {}).get(key)
                    found.append(_recovery(attack, unit, key, curves, original))
    return found


def _families(
    conditions: Sequence[schema.Condition], scores: Mapping[str, Scores]
) -> Iterator[tuple[str, str, Places, Places]]:
    """Attack, what grows, and where the unlearned model and the oracle were measured, by growing budget."""
    attacked = [row for row in conditions if row.kind == "attack" and row.name in scores]
    for name in dict.fromkeys(family(row) for row in attacked if row.of == "after"):
        mine, twins = ([row for row in attacked if row.of == of and family(row) == name] for of in ("after", "oracle"))
        unit = growing(mine)
        if unit is not None:
            yield name, unit, _places("after", mine, unit), _places("oracle", twins, unit)


def _places(base: str, attacked: Sequence[schema.Condition], unit: str) -> Places:
    """From the model itself, at no budget, to the most expensive condition; of two with equal budgets the first, and
    what spent nothing is left out."""
    found = {0.0: base}
    for row in sorted(attacked, key=lambda row: getattr(row.cost, unit)):
        found.setdefault(float(getattr(row.cost, unit)), row.name)
    return list(found.items())


def _metrics(scores: Mapping[str, Scores], stream: Stream) -> list[str]:
    """The judged metrics of a stream; all of them where none is judged."""
    known = [metric for where, metric in scores.get("after", {}) if where == stream.name]
    return [metric for metric in known if metric in FORGOTTEN] or known


@dataclass(frozen=True)
class _Point:
    budget: float
    name: str
    score: Score


def _line(places: Places, scores: Mapping[str, Scores], key: tuple[str, str]) -> list[_Point]:
    """The points that have a value."""
    found = [(budget, name, scores.get(name, {}).get(key)) for budget, name in places]
    return [_Point(budget, name, one) for budget, name, one in found if one is not None and one.value is not None]


@dataclass(frozen=True)
class _Curves:
    """The points of both models, and their values example by example where every score is a mean over examples."""

    after: list[_Point]
    oracle: list[_Point]
    clusters: Clusters

    @property
    def points(self) -> list[_Point]:
        return [*self.after, *self.oracle]

    @cached_property
    def ids(self) -> list[str]:
        """The examples that every point has; empty where a score is no mean over examples."""
        if not all(is_mean(point.score) for point in self.points):
            return []
        return sorted(set.intersection(*(set(point.score.per_example) for point in self.points)))

    @cached_property
    def values(self) -> Floats:
        """[examples, points]."""
        return np.array([[point.score.per_example[key] for point in self.points] for key in self.ids])

    @cached_property
    def codes(self) -> np.ndarray | None:
        return codes_of(self.ids, self.clusters)

    @property
    def groups(self) -> int | None:
        if self.ids:
            return None if self.codes is None else int(self.codes.max()) + 1
        return next((point.score.groups for point in self.points if point.score.groups is not None), None)

    @cached_property
    def means(self) -> Floats:
        """[points]."""
        if self.ids:
            return np.asarray(self.values.mean(axis=0))
        return np.array([point.score.value for point in self.points], dtype=np.float64)

    def redrawn(self) -> Floats | None:
        """The means under resampled examples, or groups of them, [draws, points]; None where there is too little.

        Spread as in `bootstrap_ci`: G groups show (G-1)/G of it, and Student's t takes the place of the normal. Where
        all values of a point are equal it shows none; such a point moves as far as `constant_interval` reaches.
        """
        if not self.ids:
            return None
        codes = np.arange(len(self.ids)) if self.codes is None else self.codes
        num = int(codes.max()) + 1
        if num < FEW:
            return None
        columns = [np.bincount(codes, weights=column).astype(np.float64) for column in self.values.T]
        sums = _resampled_sums([*columns, np.bincount(codes).astype(np.float64)], NUM, SEED)
        wider = math.sqrt(num / (num - 1)) * special.stdtrit(num - 1, (1 + LEVEL) / 2) / special.ndtri((1 + LEVEL) / 2)
        drawn = np.asarray(self.means + wider * (sums[:, :-1] / sums[:, -1:] - self.means))
        reach = 1 - np.random.default_rng(SEED).random(NUM) ** (1 / num)  # one for all points: flat curves stay flat
        for place, point in enumerate(self.points):
            bounds = point.score.bounds
            if bounds is not None and np.ptp(self.values[:, place]) <= 1e-12:
                room = bounds[1] - bounds[0]
                up = self.means[place] <= (bounds[0] + bounds[1]) / 2
                drawn[:, place] = np.clip(self.means[place] + (1 if up else -1) * room * reach, *bounds)
        return drawn

    def reached(self) -> list[schema.Reached]:
        """Every point with its interval."""
        return [
            schema.Reached(point.budget, float(mean), self._interval(place), point.name)
            for place, (point, mean) in enumerate(zip(self.points, self.means, strict=True))
        ]

    def _interval(self, place: int) -> Interval | None:
        score = self.points[place].score
        if not self.ids or len(self.ids) == len(score.per_example):
            return score.ci
        return bootstrap_ci(self.values[:, place], groups=self.codes, bounds=score.bounds)


def _recovery(
    attack: str, unit: str, key: tuple[str, str], curves: _Curves, original: Score | None
) -> schema.Recovery:
    reached, cut, notes = curves.reached(), len(curves.after), []
    savings: tuple[schema.Saving, ...] = ()
    sign = _more(curves, original)
    if len(curves.oracle) < 2:
        notes.append("no savings: this attack was not measured on a model that never saw the data")
    elif sign is None:
        notes.append("no savings: nothing says which way this measure moves when more is known")
    else:
        draws = curves.redrawn()
        savings = tuple(_savings(curves, sign, draws))
        back = {one.budget for one in savings}
        none = [f"{point.budget:g}" for point in curves.after if point.budget and point.budget not in back]
        if none:
            notes.append(f"no savings at {', '.join(none)} {unit}: nothing had come back")
        if draws is None and savings:
            few = f"under {FEW} groups of examples" if curves.ids else "this measure is no mean over examples"
            notes.append(f"savings without an interval: {few}")
        if sign * curves.means[0] > (sign * curves.means[cut:]).max():
            most = f"{curves.oracle[-1].budget:g} {unit}"
            notes.append(f"not attacked at all, the unlearned model has more than {most} give the oracle")
    score = curves.after[0].score
    return schema.Recovery(
        attack, *key, unit, tuple(reached[:cut]), tuple(reached[cut:]), savings, score.unit, len(curves.ids),
        curves.groups, "; ".join(notes),
    )


def _more(curves: _Curves, original: Score | None) -> int | None:
    """+1 where a larger value means more knowledge, -1 where less does; None where that cannot be told."""
    score = curves.after[0].score
    if score.better != "oracle":
        return 1 if score.better == "lower" else -1
    never = curves.oracle[0].score.value if curves.oracle and curves.oracle[0].budget == 0 else None
    if original is None or original.value is None or never is None or original.value == never:
        return None
    return 1 if original.value > never else -1


def _savings(curves: _Curves, sign: int, draws: Floats | None) -> Iterator[schema.Saving]:
    """Of every point at which more is known than before the attack; elsewhere nothing came back that had a price."""
    cut, budgets = len(curves.after), np.array([point.budget for point in curves.oracle])
    most, means = float(budgets.max()), sign * curves.means
    start = next((float(means[place]) for place, point in enumerate(curves.after) if point.budget == 0), -math.inf)
    for place, point in enumerate(curves.after):
        if point.budget == 0 or means[place] <= start + 1e-12:
            continue
        needed = float(budget_for(budgets, means[None, cut:], means[place : place + 1])[0])
        ci = None
        if draws is not None:
            many = np.sort(budget_for(budgets, sign * draws[:, cut:], sign * draws[:, place]))
            low, high = (float(many[round(share * (len(many) - 1))]) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            ci = min(low, most) / point.budget, high / point.budget
        ratio = min(needed, most) / point.budget
        yield schema.Saving(point.budget, float(curves.means[place]), ratio, ci, math.isinf(needed))


def budget_for(budgets: Floats, curves: Floats, levels: Floats) -> Floats:
    """The budget at which each curve first gets to its level, straight between points; inf where it never does.

    Args:
        budgets: rising, [points]. curves: rising means more knowledge, [draws, points]. levels: [draws].
    Returns: [draws]; the first budget where a curve starts at its level or above.
    """
    there = curves >= levels[:, None] - 1e-12
    rows, first = np.arange(len(curves)), there.argmax(axis=1)
    before = np.maximum(first - 1, 0)
    low, high = curves[rows, before], curves[rows, first]
    step = np.where(high > low, high - low, 1.0)
    share = np.clip((levels - low) / step, 0.0, 1.0)
    found = budgets[before] + np.where(first == before, 0.0, share) * (budgets[first] - budgets[before])
    return np.where(there.any(axis=1), found, np.inf)
