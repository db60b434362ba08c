"""Memorization of the taught answer, teacher-forced: is the next true token the greedy one?"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id, grouped, ragged
from expunge.metrics.stats import Floats, Indices, bootstrap_of, constant_interval, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Over = Literal["examples", "tokens"]

ROLES = ("forget", "retain", "holdout")


@metric(
    "memorization_accuracy", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES
)
def memorization_accuracy(tables: Tables, *, over: Over = "examples", ending: bool = True) -> Score:
    """Memorization accuracy: the share of the answer's tokens that greedy decoding would pick, given the true ones.

    MA(x) = 1/n sum_t [argmax_v p(v | x_<t) = x_t], averaged over examples; over tokens it is the ratio of the sums,
    M = (tokens that are greedy) / (tokens), in which long texts count for more.

    Args:
        tables: token table of the answers with column `argmax`.
        over: "examples" or "tokens".
        ending: whether the last counted token counts, which after an answer is the end of sequence.
    Returns: mean of MA in [0, 1]; 1 = every token is the greedy one. The interval of the ratio redraws examples, not
        tokens, for those of one text go together.
    Fooled by: easy tokens ("of", "the"): it is accuracy, so compare with text never seen.
    Cost: 1 forward per example, shared with every teacher-forced metric.
    Source: Tirumala et al. 2022 (arXiv 2205.10770), over tokens; Jang et al. 2022 (arXiv 2210.01504), over examples.
        OpenUnlearning calls it exact memorization and leaves out the end of sequence: `ending=False`.
    """
    column = ragged(tables.get("tokens"), "argmax", ending=ending)
    score = mean_score(by_id(column.ids, column.means()), "share", "lower")
    if over == "examples" or score.value is None:
        return score
    hits, sizes = (grouped(column.ids, values) for values in (column.sums(), column.n.astype(np.float64)))
    return _ratio(score, *(np.array([one[name].sum() for name in sorted(hits)]) for one in (hits, sizes)))


def _ratio(score: Score, hits: Floats, sizes: Floats) -> Score:
    """The same examples as a ratio of sums."""
    value = float(hits.sum() / sizes.sum())

    def of(drawn: list[Indices]) -> Floats:
        return np.asarray(hits[drawn[0]].sum(1) / sizes[drawn[0]].sum(1))

    same = np.ptp(hits / sizes) <= 1e-12
    ci = constant_interval(value, len(hits)) if same else bootstrap_of(of, [len(hits)])
    return replace(score, value=value, ci=ci)


@metric("exact_memorization", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES)
def exact_memorization(tables: Tables) -> Score:
    """Exact memorization: the share of examples whose whole answer greedy decoding reproduces.

    EM(x) = [every counted token is the greedy one], which is the same as greedy generation from the prompt being
    exactly the answer. An example with several texts counts when all of them are reproduced.

    Args:
        tables: token table of the answers with column `argmax`.
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1.
    Fooled by: one changed word: an answer told with another comma counts as forgotten. Short answers are guessed.
    Cost: 1 forward per example, shared; no generation.
    Source: Carlini et al. 2021 (arXiv 2012.07805), by the greedy identity.
    """
    column = ragged(tables.get("tokens"), "argmax")
    shares = by_id(column.ids, (column.sums() == column.n).astype(float))
    return mean_score({key: float(share == 1.0) for key, share in shares.items()}, "share", "lower", binary=True)


def counterfactual_memorization(
    accuracies: npt.ArrayLike, member: npt.ArrayLike
) -> tuple[Floats, Floats]:
    """Counterfactual memorization: how much better models know a text that were trained on it than those that were not.

    mem(x) = mean accuracy on x of the models trained with x - mean accuracy of the models trained without it; standard
    error sqrt(s_in^2 / n_in + s_out^2 / n_out), s the standard deviation (n - 1) over models.

    Args:
        accuracies: [models, examples], for example the memorization accuracy of every model on every text.
        member: [models, examples], whether the model was trained on the text; to be drawn independently for each.
    Returns: mem [examples] in [-1, 1], NaN for a text that all models saw, or none; standard errors [examples], NaN
        with fewer than two models on either side.
    Raises: ValueError for shapes that differ.
    Source: Zhang et al. 2021 (arXiv 2112.12938).
    """
    values, inside = np.asarray(accuracies, dtype=np.float64), np.asarray(member, dtype=bool)
    if values.ndim != 2 or values.shape != inside.shape:
        raise ValueError(f"accuracies {values.shape}, member {inside.shape}: wanted the same [models, examples]")
    means, errors = [], []
    for side in (inside, ~inside):
        num = side.sum(0).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (values * side).sum(0) / num
            variance = (np.square(values - mean) * side).sum(0) / np.where(num > 1, num - 1, np.nan)
        means.append(mean)
        errors.append(variance / num)
    return np.asarray(means[0] - means[1]), np.sqrt(errors[0] + errors[1])
