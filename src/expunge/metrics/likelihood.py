"""How probable the answers are: probability (alone or against false answers) and perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from expunge.measure.tables import Tables
from expunge.metrics.rows import Ragged, by_id, grouped, ragged
from expunge.metrics.stats import Floats, Indices, bootstrap_of, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Answers = Literal["answer", "paraphrased_answer", "perturbed"]

MAX_EXPONENT = 700.0  # exp(709.8) is the largest double: a ruined model has a huge perplexity, not an infinite one


def capped_exp(exponent: Floats) -> Floats:
    """exp, held to [e^-700, e^700]; NaN stays NaN."""
    return np.exp(np.clip(exponent, -MAX_EXPONENT, MAX_EXPONENT))


def against(logp: Floats, logp_perturbed: Sequence[Floats], *, epsilon: float = 0.0) -> Floats:
    """Probability of each answer among itself and its false answers.

    p / (p + sum_k p_k + epsilon), in log space.

    Args:
        logp: of the answers, nats, [examples].
        logp_perturbed: of the false answers of each example, nats, [examples][K].
    Returns: [examples] in [0, 1].
    """
    shares = np.empty(len(logp))
    for row, (answer, false) in enumerate(zip(logp, logp_perturbed, strict=True)):
        others = np.append(false, np.log(epsilon)) if epsilon else false
        top = max(answer, others.max())
        with np.errstate(invalid="ignore"):  # nothing possible at all: NaN, which the score reports
            shares[row] = np.exp(answer - top) / (np.exp(answer - top) + np.exp(others - top).sum())
    return shares


def _logp(column: Ragged, normalise: bool) -> Floats:
    return column.means() if normalise else column.sums()


def probabilities(
    tables: Tables, *, set: str = "stream", normalise: bool = True, against_perturbed: bool = False,
    answers: Answers = "answer", epsilon: float = 0.0,
) -> dict[str, float]:
    """Probability per example id, see `probability`; against_perturbed leaves out ids without a false answer."""
    column = ragged(tables.get("tokens", answers, set), "logp")
    logp = _logp(column, normalise)
    if not against_perturbed:
        return by_id(column.ids, np.exp(logp))
    false = ragged(tables.get("tokens", "perturbed", set), "logp")
    others = grouped(false.ids, _logp(false, normalise))
    rows = [row for row, name in enumerate(column.ids) if name in others]
    ids = [column.ids[row] for row in rows]
    return by_id(ids, against(logp[rows], [others[name] for name in ids], epsilon=epsilon))


@metric(
    "probability",
    Needs("tokens", variant="{answers}", columns=("logp",)),
    Needs("tokens", variant="perturbed", columns=("logp",)),
    unit="probability", better="lower", roles=("forget", "retain", "holdout", "probe"),
)
def probability(
    tables: Tables, *, normalise: bool = True, against_perturbed: bool = False, answers: Answers = "answer",
    epsilon: float = 0.0,
) -> Score:
    """Probability of the answer given its prompt.

    p = exp(1/n sum_t log p(x_t | x_<t)); with against_perturbed p / (p + sum over false answers of their p).

    Args:
        tables: token table of the answers; of the false answers only with against_perturbed.
        normalise: per token (geometric mean of the token probabilities); False: of the whole answer.
        against_perturbed: relative to the stored false answers, as TOFU does for real authors and world facts.
        answers: which ones: "answer", "paraphrased_answer" or "perturbed" (the mean over the false ones).
        epsilon: added to the divisor with against_perturbed; OpenUnlearning adds 1e-10.
    Returns: mean over examples, in [0, 1].
    Fooled by: a refusal in front: the answer becomes improbable and is still known. Longer answers are not less
        probable here, for the length is divided out.
    Cost: 1 forward per text, shared.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """
    found = probabilities(
        tables, normalise=normalise, against_perturbed=against_perturbed, answers=answers, epsilon=epsilon
    )
    return mean_score(found, "probability", "lower")


@metric(
    "perplexity", Needs("tokens", columns=("logp",)), unit="perplexity", better="higher",
    roles=("forget", "retain", "anchor", "holdout", "probe"),
)
def perplexity(tables: Tables) -> Score:
    """Perplexity of the counted tokens of a stream.

    exp(-sum of log p / number of tokens), over all tokens of all examples, held under e^700.

    Args:
        tables: token table of the answers (plain text: of the text).
    Returns: >= 1, unbounded; per example its own perplexity, whose mean is not the value. The interval resamples
        examples and takes the ratio of the resampled sums.
    Fooled by: one shift of all logits by a template or a refusal habit; a change of tokenizer makes values
        incomparable.
    Cost: 1 forward per example, shared.
    Source: Jelinek et al. 1977; exp of the mean negative log-likelihood over all counted tokens of the stream.
    """
    column = ragged(tables.get("tokens"), "logp")
    if not column.ids:
        return Score.missing("no example with a counted token", "perplexity", "higher")
    names, inverse = np.unique(np.asarray(column.ids, dtype=str), return_inverse=True)
    nll = np.bincount(inverse.reshape(-1), weights=-column.sums())  # [examples]
    num = np.bincount(inverse.reshape(-1), weights=column.n)
    if np.isnan(nll).any():
        return Score.missing("a log-probability is NaN", "perplexity", "higher")

    def ratios(indices: list[Indices]) -> Floats:
        return capped_exp(nll[indices[0]].sum(1) / num[indices[0]].sum(1))

    each = capped_exp(nll / num)
    value = float(capped_exp(np.asarray(nll.sum() / num.sum())))
    constant = np.ptp(each) <= 1e-12 * each.max()
    remarks = [f"no interval: all {len(names)} values are equal"] if constant else []
    if value >= np.exp(MAX_EXPONENT):
        remarks.append("held at e^700")
    return Score(
        value, None if constant else bootstrap_of(ratios, [len(names)]),
        {str(name): float(one) for name, one in zip(names, each, strict=True)},
        len(names), "perplexity", "higher", "ok", "; ".join(remarks),
    )
