"""Truth ratio and forget quality: does the model still prefer the truth to false answers, and as the oracle does?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from expunge.data.benchmarks.openunlearning_logs import read_eval
from expunge.measure.tables import NotMeasured, Tables
from expunge.metrics.likelihood import MAX_EXPONENT, capped_exp
from expunge.metrics.rows import grouped, losses, ragged
from expunge.metrics.separation import KolmogorovSmirnov, kolmogorov_smirnov, ks_intervals
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Wrong = Literal["geometric", "arithmetic"]
Aggregate = Literal["forget", "utility", "share"]

NEEDS = tuple(Needs("tokens", variant=variant) for variant in ("paraphrased_answer", "answer", "perturbed"))


def log_truth_ratios(
    l_para: Floats, l_pert: Sequence[Floats], *, wrong: Wrong = "geometric", epsilon: float = 0.0
) -> Floats:
    """log of the truth ratio: how much more probable the false answers are than the true one, per token.

    geometric: L_para - mean_k L_pert_k;  arithmetic: L_para + log(1/K sum_k exp(-L_pert_k)).

    Args:
        l_para: mean negative log-likelihood per token of the (paraphrased) true answer, nats, [examples].
        l_pert: the same of the false answers, nats, [examples][K], K >= 1.
        wrong: mean of the false answers' probabilities.
        epsilon: added to the probability of the true answer, by which is divided.
    Returns: log R [examples], held to [-700, 700]; > 0: the model prefers the false answers.
    """
    with np.errstate(invalid="ignore"):  # impossible against impossible: NaN, which the score reports
        if wrong == "geometric":
            false = np.array([row.mean() for row in l_pert])
        else:
            false = np.array([row.min() - np.log(np.exp(row.min() - row).mean()) for row in l_pert])
        true = np.asarray(l_para, dtype=np.float64)
        difference: Floats = (-np.logaddexp(-true, np.log(epsilon)) if epsilon else true) - false.reshape(len(l_pert))
    return np.clip(difference, -MAX_EXPONENT, MAX_EXPONENT)


def truth_values(log_ratios: Floats, aggregate: Aggregate) -> Floats:
    """What is averaged: min(R, 1/R) for "forget", max(0, 1 - R) for "utility", 1 / (1 + R) for "share"; in [0, 1]."""
    if aggregate == "forget":
        return np.exp(-np.abs(log_ratios))
    if aggregate == "share":
        return np.asarray(1 / (1 + np.exp(log_ratios)))
    return np.maximum(0.0, -np.expm1(np.minimum(log_ratios, 1.0)))


def _log_ratios(
    tables: Tables, subject: str, set: str, wrong: Wrong, epsilon: float = 0.0
) -> tuple[dict[str, float], frozenset[str], str]:
    """log R by id, the ids measured on a paraphrase, and a remark."""
    answers = losses(tables.get("tokens", "answer", set, subject))
    remarks = []
    try:
        paraphrased = losses(tables.get("tokens", "paraphrased_answer", set, subject))
        missing = len(answers.keys() - paraphrased.keys())
        if missing:
            share = f"{missing} of {len(answers)}"
            remarks.append(f"{share} examples have no paraphrased answer: the answer itself stands in")
    except NotMeasured as reason:
        paraphrased = {}
        remarks.append(f"the answer itself stands in for its paraphrase ({reason})")
    column = ragged(tables.get("tokens", "perturbed", set, subject), "logp")
    false = grouped(column.ids, -column.means())
    true = {**answers, **paraphrased}
    ids = sorted(true.keys() & false.keys())
    if len(ids) < len(true):
        remarks.append(f"{len(true) - len(ids)} of {len(true)} examples have no false answer")
    trues, falses = np.array([true[key] for key in ids]), [false[key] for key in ids]
    found = log_truth_ratios(trues, falses, wrong=wrong, epsilon=epsilon)
    return dict(zip(ids, map(float, found), strict=True)), frozenset(paraphrased), "; ".join(remarks)


def ratios(
    tables: Tables, *, subject: str = "this", set: str = "stream", wrong: Wrong = "geometric"
) -> dict[str, float]:
    """Truth ratio R by example id.

    R = exp(L_para - mean_k L_pert_k), L = mean negative log-likelihood per token; see `log_truth_ratios`.

    Args:
        subject: "this" or "oracle". set: stream name. wrong: mean over the false answers.
    Returns: R > 0 by id, for the ids that have a false answer. Without a paraphrased answer the answer stands in.
    """
    found, _, _ = _log_ratios(tables, subject, set, wrong)
    return dict(zip(found, map(float, capped_exp(np.array(list(found.values())))), strict=True))


def truth_by_id(
    tables: Tables, aggregate: Aggregate, *, set: str = "stream", wrong: Wrong = "geometric", epsilon: float = 0.0
) -> tuple[dict[str, float], str]:
    """Aggregated truth value by id (see `truth_values`) and a remark."""
    found, _, remark = _log_ratios(tables, "this", set, wrong, epsilon)
    values = truth_values(np.array(list(found.values())), aggregate)
    return dict(zip(found, map(float, values), strict=True)), remark


@metric("truth_ratio", *NEEDS, unit="ratio", better="oracle", roles=("forget", "holdout"))
def truth_ratio(
    tables: Tables, *, wrong: Wrong = "geometric", aggregate: Literal["forget", "share"] = "forget",
    epsilon: float = 0.0,
) -> Score:
    """Truth ratio on what should be forgotten: 1 when truth and falsehood are equally probable.

    Mean of min(R, 1/R), R = exp(L_para - mean_k L_pert_k).

    Args:
        tables: token tables of the paraphrased (else the taught) and the false answers.
        wrong: mean of the false answers' probabilities: "geometric" (TOFU's published numbers) or "arithmetic"
            (locuslab/tofu `utils.py`).
        aggregate: what is averaged: "forget" min(R, 1/R); "share" 1 / (1 + R), the true answer's share of both.
        epsilon: added to the probability of the true answer in R; OpenUnlearning adds 1e-10.
    Returns: mean in [0, 1]; to be compared with the oracle's, for a model can be too ignorant as well.
    Fooled by: false answers of another length or style than the true one; flattening all probabilities moves it to 1
        without anything being forgotten, and a few steps of relearning move it back.
    Cost: 1 forward per answer, paraphrase and false answer, shared.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """
    found, remark = truth_by_id(tables, aggregate, wrong=wrong, epsilon=epsilon)
    return mean_score(found, "ratio", "oracle", reason=remark)


@metric("truth_ratio_utility", *NEEDS, unit="ratio", better="higher", roles=("retain", "probe"))
def truth_ratio_utility(tables: Tables, *, wrong: Wrong = "geometric", epsilon: float = 0.0) -> Score:
    """Truth ratio on what should be kept: near 1 when the truth is far more probable than falsehood.

    Mean of max(0, 1 - R), R = exp(L_para - mean_k L_pert_k).

    Args:
        tables: token tables of the paraphrased (else the taught) and the false answers.
        wrong, epsilon: as `truth_ratio`.
    Returns: mean in [0, 1].
    Fooled by: false answers that are easy to tell; it stays high while the model forgets how to say the truth.
    Cost: 1 forward per answer, paraphrase and false answer, shared.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """
    found, remark = truth_by_id(tables, "utility", wrong=wrong, epsilon=epsilon)
    return mean_score(found, "ratio", "higher", reason=remark)


def describe_ks(test: KolmogorovSmirnov) -> str:
    """The statistic and the direction in words."""
    meaning = {
        "above": "ratios lie above the oracle's: false answers are preferred more than by a model that never knew",
        "below": "ratios lie below the oracle's: the truth is still preferred more than by a model that never knew",
        "none": "the two distributions are the same",
    }[test.shift]
    how = "" if test.exact else " (asymptotic p-value)"
    return f"KS statistic {test.statistic:.4g}{how}; {meaning}"


@metric(
    "forget_quality",
    *(Needs("tokens", variant=need.variant, subjects=("this", "oracle")) for need in NEEDS),
    unit="p-value", better="higher", roles=("forget",),
)
def forget_quality(
    tables: Tables, *, wrong: Wrong = "geometric", epsilon: float = 0.0, reference: str | None = None
) -> Score:
    """Forget quality: can the truth ratios be told from those of a model that never saw the data?

    p-value of the two-sample Kolmogorov-Smirnov test between R of this subject and R of the oracle, on the ids both
    have. A large p is no proof of equality; the audit's verdict rests on an equivalence test of `truth_ratio`.

    Args:
        tables: as `truth_ratio`, of this subject and of the oracle.
        wrong, epsilon: as `truth_ratio`.
        reference: a TOFU_EVAL.json of OpenUnlearning, whose truth ratios then stand in for an oracle's; they hold
            epsilon = 1e-10, and there is no value per example.
    Returns: p in [0, 1], interval by bootstrap over the examples of both; per example log(R / R_oracle). `reason`
        tells the statistic and the sign: R above the oracle's is over-forgetting.
    Fooled by: few examples (nothing can be told apart then); a model ruined just so that its ratios spread like the
        oracle's; over-forgetting, which gives a small p-value as well: see the shift in `reason`.
    Cost: as `truth_ratio`, for two subjects.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """
    ours, ours_paraphrased, remark = _log_ratios(tables, "this", "stream", wrong, epsilon)
    if reference is not None:
        return _compared(np.array([ours[key] for key in sorted(ours)]), read_eval(reference).log_ratios(), {}, remark)
    theirs, theirs_paraphrased, _ = _log_ratios(tables, "oracle", "stream", wrong, epsilon)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return Score.missing("no example was measured on both this subject and the oracle", "p-value", "higher")
    if ours_paraphrased.symmetric_difference(theirs_paraphrased) & set(shared):
        return Score.missing(
            "paraphrased answers were measured on one of subject and oracle only", "p-value", "higher"
        )
    a, b = np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared])
    return _compared(a, b, dict(zip(shared, map(float, a - b), strict=True)), remark)


def _compared(a: Floats, b: Floats, each: dict[str, float], remark: str) -> Score:
    """The test of log R against that of the reference."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Score.missing("a truth ratio is not finite", "p-value", "higher")
    test = kolmogorov_smirnov(a, b)
    _, ci = ks_intervals(a, b)
    reason = "; ".join(filter(None, [describe_ks(test), remark]))
    return Score(test.p, ci, each, len(a), "p-value", "higher", "ok", reason)
