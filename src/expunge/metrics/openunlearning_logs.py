"""Scores an evaluation log of OpenUnlearning again: the file's own numbers, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from expunge.data.benchmarks.openunlearning_logs import MEMBERSHIP, SIDES, EvalLog, Logged, is_eval, read_eval
from expunge.metrics import tofu_logs
from expunge.metrics.privleak import leak_interval, leak_of
from expunge.metrics.separation import auc, auc_interval, kolmogorov_smirnov, ks_intervals
from expunge.metrics.stats import Floats, mean_score
from expunge.metrics.truth import Aggregate, describe_ks, truth_values
from expunge.metrics.utility import harmonic_mean, utility_interval
from expunge.types import Better, Score

SAME = 1e-6  # a larger difference from the file's own value is told
ASSUMED = 0.5  # the AUC that OpenUnlearning takes for a retrained model it has no log of
UTILITY = tuple(
    tuple(f"{part}_{name}" for name in (chance, "Q_A_ROUGE", "Truth_Ratio"))
    for part, chance in (("retain", "Q_A_Prob"), ("ra", "Q_A_Prob_normalised"), ("wf", "Q_A_Prob_normalised"))
)
ROUGE = ("rougeL_recall", "rougeL_f1", "rouge1_recall")


def log_scores(path: Path | str, reference: Path | str | None = None, last: int | None = None) -> dict[str, Score]:
    """Scores of an evaluation log, of TOFU's own layout or OpenUnlearning's; see the two `score_log`.

    Args:
        reference: log of the retrained model in the same layout. last: compare the last so many forget rows only.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a gzipped log, or an error that is told when it is read
        whole = None
    if is_eval(whole):
        return score_log(path, reference, last=last)
    return tofu_logs.score_log(path, reference, last_n=last)


def score_log(
    path: Path | str, reference: Path | str | None = None, *, last: int | None = None
) -> dict[str, Score]:
    """Every metric of a TOFU_EVAL.json or MUSE_EVAL.json from its rows.

    Means over rows get the bootstrap interval over rows, membership attacks that of an AUC, model utility the
    stratified one. Where a value differs from the file's own by more than 1e-6, `reason` says so.

    Args:
        path: the log. reference: that of the retrained model, for forget quality (`forget_quality`, and its
            statistic under `ks_statistic`) and PrivLeak. last: compare the last so many forget rows only.
    Returns: scores under the names of the file. Numbers of which the file holds no rows (gibberish of another run,
        lm-evaluation-harness) stay as they are, without an interval.
    Raises: DataError for a file that cannot be read or is no such log.
    Cost: a second per log, mostly for intervals.
    Source: Dorna et al. 2025 (OpenUnlearning, arXiv 2506.12618).
    """
    log = read_eval(path)
    other = read_eval(reference) if reference is not None else None
    scores = {name: _told(_score(name, logged), logged) for name, logged in log.metrics.items()}
    whole = _utility(scores)
    if whole is not None:
        scores["model_utility"] = _told(whole, log.metrics.get("model_utility", Logged(None)))
    if "privleak" in scores or MEMBERSHIP in scores:
        scores["privleak"] = _privleak(log, other)
    if "forget_quality" in scores or "forget_Truth_Ratio" in scores:
        scores |= _forget_quality(log, other, last)
    return scores


def _score(name: str, logged: Logged) -> Score:
    """One metric by itself."""
    better = _better(name)
    if all(side in logged.columns for side in SIDES):
        inside, outside = (-np.array(list(logged.columns[side].values())) for side in SIDES)
        each = {row: -value for row, value in logged.columns["forget"].items()}
        return Score(auc(inside, outside), auc_interval(inside, outside), each, len(each), "AUC", "oracle")
    found = list(_candidates(name, logged))
    if not found:
        if logged.value is None:
            return Score.missing("the file has no value", better=better)
        return Score(logged.value, None, {}, 0, better=better, reason="as the file says: it holds no rows")
    return next((one for one in found if _same(one, logged)), found[0])


def _same(score: Score, logged: Logged) -> bool:
    """Whether the file says the same, or nothing."""
    return score.value is None or logged.value is None or abs(score.value - logged.value) <= SAME


def _better(name: str) -> Better:
    if name.startswith(("retain_", "ra_", "wf_")) or name in ("model_utility", "forget_quality"):
        return "higher"
    return "oracle" if "Truth_Ratio" in name or name.startswith("mia_") or name == "privleak" else "lower"


def _candidates(name: str, logged: Logged) -> Iterator[Score]:
    """What may have been averaged, the usual one first: a log does not name its ROUGE nor its aggregator."""
    columns, better = logged.columns, _better(name)
    if "Truth_Ratio" in name and "score" in columns:
        rows, values = list(columns["score"]), np.array(list(columns["score"].values()))
        ways: tuple[Aggregate, Aggregate] = ("forget", "utility")
        usual = ways if name.startswith("forget") else ways[::-1]
        with np.errstate(divide="ignore"):
            logs = np.log(values)
        for each in (*(truth_values(logs, which) for which in usual), values):  # the last: prob_mean
            yield mean_score(dict(zip(rows, map(float, each), strict=True)), "ratio", better)
        return
    named = [column for column in ("prob", "score", *ROUGE) if column in columns]
    for column in named:
        unit = "probability" if column == "prob" else "share"
        yield mean_score(columns[column], unit, better, bounds=(0.0, 1.0))


def _told(score: Score, logged: Logged) -> Score:
    """The same score, with what does not fit the file."""
    told = [score.reason]
    if logged.value is not None and not _same(score, logged):
        told.append(f"the file says {logged.value:.6g}")
    if logged.left_out:
        told.append(f"{logged.left_out} rows without a number were left out")
    return replace(score, reason="; ".join(filter(None, told)))


def _utility(scores: Mapping[str, Score]) -> Score | None:
    """Model utility of the nine parts, where all are there."""
    if not all(name in scores for part in UTILITY for name in part):
        return None
    groups = []
    for part in UTILITY:
        rows = sorted(set.intersection(*(set(scores[name].per_example) for name in part)))
        if not rows:
            return None
        groups.append(np.array([[scores[name].per_example[row] for row in rows] for name in part]))
    value = float(harmonic_mean(np.concatenate([group.mean(-1) for group in groups])))
    total = sum(group.shape[1] for group in groups)
    return Score(value, utility_interval(groups), {}, total, "utility", "higher")


def _privleak(log: EvalLog, other: EvalLog | None) -> Score:
    given = log.metrics.get("privleak", Logged(None))
    if MEMBERSHIP not in log.metrics:
        return _told(_score("privleak", given), given)
    sides = log.min_k()
    each = {row: -value for row, value in log.metrics[MEMBERSHIP].columns["forget"].items()}
    if other is not None:
        twin = other.min_k()
        found = leak_of(sides, auc(*twin), "", each)
        same = [side.shape for side in sides] == [side.shape for side in twin]
        if same and found.value is not None:  # the same rows in both: they are redrawn together
            found = replace(found, ci=leak_interval([sides[::-1], twin[::-1]], found.value))
        return _told(found, given)
    assumed = leak_of(sides, ASSUMED, "no reference log was given: 0.5 is assumed", each)
    return _told(assumed, given)


def _forget_quality(log: EvalLog, other: EvalLog | None, last: int | None) -> dict[str, Score]:
    given = log.metrics.get("forget_quality", Logged(None))
    if other is None:
        if given.value is None:
            missing = Score.missing("no reference log was given", "p-value", "higher")
            return {"forget_quality": missing}
        why = "as the file says: no reference log was given to compute it again"
        return {"forget_quality": Score(given.value, None, {}, 0, "p-value", "higher", reason=why)}
    a, b = log.log_ratios(last), other.log_ratios(last)
    return _compared(a, b, given)


def _compared(a: Floats, b: Floats, given: Logged) -> dict[str, Score]:
    test = kolmogorov_smirnov(a, b)
    statistic_ci, p_ci = ks_intervals(a, b)
    reason = describe_ks(test)
    quality = Score(test.p, p_ci, {}, len(a), "p-value", "higher", "ok", reason)
    statistic = Score(test.statistic, statistic_ci, {}, len(a), "statistic", "lower", "ok", reason)
    return {"forget_quality": _told(quality, given), "ks_statistic": statistic}
