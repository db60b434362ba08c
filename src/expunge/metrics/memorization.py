"""Memorization of the taught answer, teacher-forced: is the next true token the greedy one?"""

from __future__ import annotations

from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id, ragged
from expunge.metrics.stats import mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

ROLES = ("forget", "retain", "holdout")


@metric(
    "memorization_accuracy", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES
)
def memorization_accuracy(tables: Tables) -> Score:
    """Memorization accuracy: the share of the answer's tokens that greedy decoding would pick, given the true ones.

    MA(x) = 1/n sum_t [argmax_v p(v | x_<t) = x_t], averaged over examples.

    Args:
        tables: token table of the answers with column `argmax`.
    Returns: mean of MA in [0, 1]; 1 = every token is the greedy one.
    Cost: 1 forward per example, shared with every teacher-forced metric.
    Source: Tirumala et al. 2022 (arXiv 2205.10770); Jang et al. 2022 (arXiv 2210.01504). The mean is over examples,
        not over tokens.
    """
    column = ragged(tables.get("tokens"), "argmax")
    return mean_score(by_id(column.ids, column.means()), "share", "lower")


@metric("exact_memorization", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES)
def exact_memorization(tables: Tables) -> Score:
    """Exact memorization: the share of examples whose whole answer greedy decoding reproduces.

    EM(x) = [every counted token is the greedy one], which is the same as greedy generation from the prompt being
    exactly the answer. An example with several texts counts when all of them are reproduced.

    Args:
        tables: token table of the answers with column `argmax`.
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1.
    Cost: 1 forward per example, shared; no generation.
    Source: Carlini et al. 2021 (arXiv 2012.07805), by the greedy identity.
    """
    column = ragged(tables.get("tokens"), "argmax")
    shares = by_id(column.ids, (column.sums() == column.n).astype(float))
    return mean_score({key: float(share == 1.0) for key, share in shares.items()}, "share", "lower", binary=True)
