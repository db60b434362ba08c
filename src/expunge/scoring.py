"""From measured tables to scores: which metric goes with which stream, and what it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from expunge.measure.plan import Measured, Plan
from expunge.measure.tables import Key, NotMeasured, Table, Tables
from expunge.metrics.clusters import Clusters, clusters_of, over_clusters
from expunge.registry import parameters
from expunge.types import Bound, Data, Needs, Score


def label(bound: Bound) -> str:
    """A name that tells variants apart: arguments that differ from their defaults in brackets."""
    known = parameters(bound.fn)
    told = [f"{key}={value}" for key, value in bound.hyper.items() if key in known and value != known[key].default]
    return bound.name + (f"({','.join(told)})" if told else "")


def applies(metric: Bound, data: Data) -> list[str]:
    """Names of the streams a metric scores by default: those whose role it names, sharing draws with no other."""
    roles = metric.meta["roles"]
    return [name for name, stream in data.items() if stream.role in roles and stream.follows is None]


def needs_of(metric: Bound) -> list[Needs]:
    """What a metric reads, its own arguments filled in: "{num}" in variant, columns and sets is the hyper-parameter.

    A hyper-parameter `streams` replaces the sets the registration names.
    """
    streams, found = metric.hyper.get("streams"), []
    for need in metric.meta["needs"]:
        filled = {
            "columns": tuple(column.format(**metric.hyper) for column in need.columns),
            "sets": tuple(streams) if streams else tuple(name.format(**metric.hyper) for name in need.sets),
            "instrument": need.instrument.format(**metric.hyper),
            "variant": need.variant.format(**metric.hyper).removesuffix("#"),
        }
        found.append(replace(need, **filled))
    return found


def plan_for(metrics: Iterable[Bound], data: Data) -> Plan:
    """The union of what these metrics need on this data."""
    plan = Plan()
    for metric in metrics:
        for stream in applies(metric, data):
            plan.add(stream, needs_of(metric))
    return plan


def score(
    metric: Bound,
    stream: str,
    this: Measured,
    oracle: Measured | None = None,
    original: Measured | None = None,
    *,
    clusters: Clusters | None = None,
) -> Score:
    """One metric on one stream; what cannot be computed is n/a with its reason.

    Args:
        this: of the model that is scored. oracle, original: of its twin that never saw the data, and of the model
            before the change, for metrics that compare with them.
        clusters: group by example id (`clusters_of` the stream): a mean over examples gets its interval over groups.
    """
    tables: dict[Key, Table] = {}
    missing: dict[Key, str] = {}
    for subject, measured in (("this", this), ("oracle", oracle), ("original", original)):
        if measured is not None:
            tables |= {(subject, *asked): table for asked, table in measured.tables.items()}
            missing |= {(subject, *asked): reason for asked, reason in measured.missing.items()}
    better = metric.meta["better"]
    try:
        found: Score = metric(Tables(tables, stream, missing))
    except NotMeasured as reason:
        return Score.missing(str(reason), metric.meta["unit"], better)
    return over_clusters(replace(found, better=better), clusters)


def score_all(
    metrics: Sequence[Bound],
    data: Data,
    this: Measured,
    oracle: Measured | None = None,
    original: Measured | None = None,
) -> dict[tuple[str, str], Score]:
    """Every metric on every stream it applies to: (stream, label) -> Score.

    Examples of one subject are a group, and the intervals of means are over groups.
    """
    clusters = {name: clusters_of(stream) for name, stream in data.items()}
    return {
        (stream, label(metric)): score(metric, stream, this, oracle, original, clusters=clusters[stream])
        for metric in metrics
        for stream in applies(metric, data)
    }
