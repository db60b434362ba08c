"""Model utility: one number for what must survive unlearning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from expunge.measure.tables import NotMeasured, Tables
from expunge.metrics.likelihood import probabilities
from expunge.metrics.rouge import rouge_by_id
from expunge.metrics.stats import Floats, Indices, Interval, bootstrap_of, constant_interval
from expunge.metrics.truth import Wrong, truth_by_id
from expunge.registry import metric
from expunge.types import Needs, Score

STREAMS = ("retain", "real_authors", "world_facts")


def harmonic_mean(components: Floats) -> Floats:
    """n / sum(1 / component) over the last axis, [..., components] -> [...]; 0 when any component is 0."""
    zero = (components <= 0).any(-1)
    inverse = 1 / np.where(components <= 0, 1.0, components)
    return np.asarray(np.where(zero, 0.0, components.shape[-1] / inverse.sum(-1)))


def utility_interval(
    groups: Sequence[Floats], *, num: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Stratified bootstrap of the harmonic mean of all rows' means; examples of a group are redrawn together.

    Args:
        groups: per stream the values of its components, [components, examples].
    """

    def utilities(indices: list[Indices]) -> Floats:
        means = [group[:, chosen].mean(-1) for group, chosen in zip(groups, indices, strict=True)]
        return harmonic_mean(np.concatenate(means).T)

    found = bootstrap_of(utilities, [group.shape[1] for group in groups], num=num, level=level, seed=seed)
    if found is not None and found[1] - found[0] <= 1e-12:
        return constant_interval(found[0], min(group.shape[1] for group in groups), level=level)
    return found


def _components(
    tables: Tables, stream: str, wrong: Wrong, epsilon: float, asked: str
) -> tuple[dict[str, Mapping[str, float]], list[str]]:
    """The measured components of a stream by name, and why others are missing."""
    make: dict[str, Callable[[], Mapping[str, float]]] = {
        "probability": lambda: probabilities(
            tables, set=stream, against_perturbed=stream != "retain", epsilon=epsilon
        ),
        "rouge": lambda: rouge_by_id(tables, set=stream, asked=asked)[0],
        "truth ratio": lambda: truth_by_id(tables, "utility", set=stream, wrong=wrong, epsilon=epsilon)[0],
    }
    found: dict[str, Mapping[str, float]] = {}
    missing = []
    for name, compute in make.items():
        try:
            values = compute()
        except NotMeasured as reason:
            missing.append(f"{stream} {name}: {reason}")
            continue
        if values:
            found[name] = values
        else:
            missing.append(f"{stream} {name}: no example")
    return found, missing


@metric(
    "model_utility",
    *(Needs("tokens", variant=variant, sets=STREAMS) for variant in ("answer", "paraphrased_answer", "perturbed")),
    Needs("samples", variant="{asked}", columns=("text",), sets=STREAMS),
    unit="utility", better="higher", roles=("retain",),
)
def model_utility(
    tables: Tables, *, streams: tuple[str, ...] = STREAMS, wrong: Wrong = "geometric", epsilon: float = 0.0,
    asked: str = "prompt",
) -> Score:
    """Model utility: harmonic mean of probability, ROUGE-L recall and truth ratio over the streams to be kept.

    n / sum(1 / m_j) over the n = 3 * streams means m_j. On every stream but `retain` probability is relative to the
    false answers, as in TOFU.

    Args:
        tables: token tables of answers, paraphrased and false answers, and sample tables, of the streams.
        streams: names of the streams; those not measured are left out and `reason` says so.
        wrong, epsilon: as `truth_ratio`, and epsilon as `probability`. asked: as `rouge`.
    Returns: in [0, 1]; 0 as soon as one component is 0. Interval: stratified bootstrap over the examples of each
        stream. No value per example: a harmonic mean of means has none.
    Fooled by: easy questions on all three streams; refusing everything is seen, subtle damage to reasoning is not.
    Cost: no forward of its own.
    Source: Maini et al. 2024 (TOFU, arXiv 2401.06121).
    """
    groups, used, missing, total = [], [], [], 0
    for stream in streams:
        found, why = _components(tables, stream, wrong, epsilon, asked)
        missing += why
        ids = sorted(set.intersection(*(set(values) for values in found.values()))) if found else []
        if not ids:
            continue
        groups.append(np.array([[values[key] for key in ids] for values in found.values()]))
        used.append(f"{stream} ({', '.join(found)})")
        total += len(ids)
    reason = "; ".join(filter(None, [f"over {', '.join(used)}" if used else "", *(f"without {m}" for m in missing)]))
    if not groups:
        return Score.missing(reason or "no stream was asked for", "utility", "higher")
    if not all(np.isfinite(group).all() for group in groups):
        return Score.missing("a component is not finite", "utility", "higher")
    value = float(harmonic_mean(np.concatenate([group.mean(-1) for group in groups])))
    return Score(value, utility_interval(groups), {}, total, "utility", "higher", "ok", reason)
