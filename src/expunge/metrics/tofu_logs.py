"""Scores a stored TOFU evaluation log: the published aggregates, by the very formulas of the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from expunge.data.benchmarks.tofu_logs import TofuSet, last_rows, read_log
from expunge.metrics.likelihood import against
from expunge.metrics.separation import kolmogorov_smirnov, ks_intervals
from expunge.metrics.stats import Floats, mean_score
from expunge.metrics.truth import Wrong, describe_ks, log_truth_ratios, truth_values
from expunge.metrics.utility import harmonic_mean, utility_interval
from expunge.types import Better, Score

TITLES = {"retain": "Retain", "forget": "Forget", "real_authors": "Real Authors", "world_facts": "Real World"}
COMPONENTS = {"Prob.": "probability", "ROUGE": "share", "Truth Ratio": "ratio"}  # with their units


def set_values(rows: TofuSet, name: str, wrong: Wrong) -> Floats:
    """Probability, ROUGE-L recall and truth value of every row, [3, rows]."""
    if name in ("retain", "forget"):
        probability = np.exp(-rows.l_gt)
    else:
        probability = against(-rows.l_gt, [-row for row in rows.l_pert])
    ratios = log_truth_ratios(rows.l_para, rows.l_pert, wrong=wrong)
    return np.stack([probability, rows.rouge, truth_values(ratios, "forget" if name == "forget" else "utility")])


def score_log(
    log_path: Path | str,
    reference_path: Path | str | None = None,
    *,
    last_n: int | None = None,
    wrong: Wrong = "geometric",
) -> dict[str, Score]:
    """Recompute the TOFU leaderboard numbers of one evaluation log.

    Args:
        log_path: json or json.gz, either layout (see `read_log`).
        reference_path: log of the model trained on the retain set only, for forget quality.
        last_n: compare the last n forget rows of both logs; None: all. The leaderboard compared the last 40, 200 or
            300, which are not the same questions for 40 and 200.
        wrong: mean of the false answers' probabilities: "geometric" is what was published.
    Returns: 13 aggregates under the leaderboard's names ("Prob. Retain", "ROUGE Forget", "Truth Ratio Real World",
        "Model Utility", ...), then "Forget Quality" and "KS Statistic", n/a without a reference. Rows are the ids.
    Raises: DataError for a file that cannot be read or is no such log.
    Cost: a second per log, mostly for intervals.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121); locuslab/open-unlearning leaderboards.
    """
    log = read_log(log_path)
    scores: dict[str, Score] = {}
    groups = {}
    for name, title in TITLES.items():
        rows = log[name]
        groups[name] = set_values(rows, name, wrong)
        better: Better = "lower" if name == "forget" else "higher"
        for (label, unit), values in zip(COMPONENTS.items(), groups[name], strict=True):
            direction: Better = "oracle" if (name, label) == ("forget", "Truth Ratio") else better
            scores[f"{label} {title}"] = mean_score(dict(zip(rows.ids, values, strict=True)), unit, direction)
    kept = [groups[name] for name in ("retain", "real_authors", "world_facts")]
    utility = float(harmonic_mean(np.concatenate([group.mean(-1) for group in kept])))
    total = sum(group.shape[1] for group in kept)
    scores["Model Utility"] = Score(utility, utility_interval(kept), {}, total, "utility", "higher")
    return scores | _forget_quality(log["forget"], log_path, reference_path, last_n, wrong)


def _forget_quality(
    forget: TofuSet, log_path: Path | str, reference_path: Path | str | None, last_n: int | None, wrong: Wrong
) -> dict[str, Score]:
    if reference_path is None:
        reason = "no reference log was given"
        return {
            "Forget Quality": Score.missing(reason, "p-value", "higher"),
            "KS Statistic": Score.missing(reason, "statistic", "lower"),
        }
    reference = read_log(reference_path)["forget"]
    ours, theirs = last_rows(forget, last_n, log_path), last_rows(reference, last_n, reference_path)
    a, b = (log_truth_ratios(rows.l_para, rows.l_pert, wrong=wrong) for rows in (ours, theirs))
    test = kolmogorov_smirnov(a, b)
    statistic_ci, p_ci = ks_intervals(a, b)
    reason = describe_ks(test)
    return {
        "Forget Quality": Score(test.p, p_ci, {}, len(a), "p-value", "higher", "ok", reason),
        "KS Statistic": Score(test.statistic, statistic_ci, {}, len(a), "statistic", "lower", "ok", reason),
    }
