"""Examples of one subject (a person with ten questions) are one cluster: what is true of one tends to be of all.

An interval that takes them one by one is too narrow. Here examples get their groups, and scores their interval over
groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from expunge.metrics.stats import Interval, bootstrap_ci
from expunge.types import Score, Stream

Clusters = Mapping[str, str]  # example id -> its group


def clusters_of(stream: Stream | None) -> dict[str, str]:
    """The group of every example that shares its subject with another; empty when none does."""
    seen: dict[str, list[str]] = {}
    for example in stream.examples if stream is not None else ():
        if example.subject is not None:
            seen.setdefault(example.subject, []).append(example.id)
    return {key: subject for subject, ids in seen.items() if len(ids) > 1 for key in ids}


def labels_of(ids: Iterable[str], clusters: Clusters | None) -> list[tuple[str, str]] | None:
    """The group of each example, one without a subject being its own; None when there is nothing to group.

    That is: no two of them share a group, or all of them do. Of a single subject nothing can be learned about
    others; then the examples are what is drawn.
    """
    if not clusters:
        return None
    found = [("group", clusters[key]) if key in clusters else ("alone", key) for key in ids]
    return found if 1 < len(set(found)) < len(found) else None


def codes_of(ids: Iterable[str], clusters: Clusters | None) -> np.ndarray | None:
    """The same as numbers from 0, [examples]."""
    labels = labels_of(ids, clusters)
    if labels is None:
        return None
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.array([numbers[label] for label in labels])


def is_mean(score: Score) -> bool:
    """Whether the value is the mean of the values per example: an AUC or a perplexity is not."""
    if score.value is None or not score.per_example or score.n != len(score.per_example):
        return False
    values = np.fromiter(score.per_example.values(), dtype=np.float64)
    if not np.isfinite(values).all():
        return False
    return bool(abs(score.value - values.mean()) <= 1e-9 * max(1e-300, float(np.abs(values).max())))


def over_clusters(score: Score, clusters: Clusters | None) -> Score:
    """A score that is a mean over examples, with its interval over groups of them; any other score as it is.

    The groups are redrawn with all their examples (`bootstrap_ci` with groups; its coverage is told there). A rate is
    treated like every mean: Clopper-Pearson holds for examples that stand alone.

    Args:
        clusters: group by example id, of `clusters_of`.
    """
    if score.groups is not None or not clusters or not is_mean(score):
        return score
    ids = sorted(score.per_example)
    codes = codes_of(ids, clusters)
    if codes is None:
        return score
    ci: Interval | None = bootstrap_ci([score.per_example[key] for key in ids], groups=codes, bounds=score.bounds)
    num, reason = int(codes.max()) + 1, score.reason
    if ci is None and score.ci is not None:
        reason = "; ".join(filter(None, [reason, f"no interval: the {num} groups of examples do not differ"]))
    return replace(score, ci=ci, groups=num, reason=reason)
