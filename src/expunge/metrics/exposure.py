"""Exposure of canaries: how far up a planted secret stands among all the secrets that might have been planted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.extraction_likelihood import left_out
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

ROLES = ("forget", "retain", "holdout", "probe")
READS = (Needs("tokens", columns=("token",)), Needs("tokens", variant="choices", columns=("token", "logp")))
FEWEST = 20  # candidates from which a curve is fitted
STEEPEST = 1e3  # shape of a fitted curve beyond which it is cut off by an edge and has no tail


@dataclass(frozen=True, eq=False)
class Candidates:
    """A canary among its candidates, by log-perplexity in bits: -log2 p of the counted tokens, the lowest likeliest."""

    canary: float
    others: Floats  # distinct candidates without the canary

    @property
    def size(self) -> int:
        """Candidates with the canary."""
        return len(self.others) + 1


def rank_of(canary: float, others: Floats | Sequence[float]) -> float:
    """Rank of a canary among candidates by log-perplexity, 1 = likeliest; among equals it stands in the middle.

    The middle is where a random order would put it on average: a model that finds all candidates equally likely
    exposes about one bit, as rank |R| / 2 does.
    """
    values = np.asarray(others, dtype=np.float64)
    return 1.0 + float((values < canary).sum()) + float((values == canary).sum()) / 2


def exposure_of(canary: float, others: Floats | Sequence[float]) -> float:
    """Exposure in bits: log2 |R| - log2 rank, R = the canary and the others."""
    return math.log2(len(others) + 1) - math.log2(rank_of(canary, others))


def extrapolated_exposure(canary: float, others: Floats | Sequence[float]) -> float | None:
    """Exposure in bits from a curve through some candidates: -log2 P(X <= canary), X skew-normal.

    Returns: None where no curve fits: fewer than 20 candidates, all equal, or so lopsided that the fit ends in an edge.
    Source: Carlini et al. 2019, section 4.3.
    """
    from scipy import stats

    values = np.asarray(others, dtype=np.float64)
    if len(values) < FEWEST or not np.isfinite(values).all() or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return None
    shape, centre, scale = stats.skewnorm.fit(values)
    if abs(shape) > STEEPEST or not scale > 0:
        return None
    return max(0.0, -_log_tail((canary - centre) / scale, shape) / math.log(2))


def _log_tail(z: float, shape: float) -> float:
    """log P(X <= z) of a standard skew-normal, nats: log f(z) + log of the integral of f(z - s) / f(z) over s >= 0.

    The library's own logarithm is that of a number that underflows some six deviations out.
    """
    from scipy import integrate, special

    def log_density(at: float) -> float:
        return float(math.log(2 / math.sqrt(2 * math.pi)) - at * at / 2 + special.log_ndtr(shape * at))

    top = log_density(z)
    if z > 0:
        return math.log(min(1.0, integrate.quad(lambda at: math.exp(log_density(at)), -math.inf, z)[0]))
    ratio, _ = integrate.quad(lambda s: math.exp(log_density(z - s) - top), 0, math.inf)
    return min(0.0, top + math.log(ratio))


def candidates_of(answers: Table, choices: Table) -> tuple[dict[str, Candidates], int]:
    """Every canary that stands among its candidates, by id, and how many examples have candidates.

    The canary is the candidate with the tokens of the answer; a candidate that stands twice counts once.
    """
    truth = dict(zip(answers.ids, answers.rows("token"), strict=True))
    bits = -choices.row_sum("logp") / math.log(2)
    known: dict[str, dict[bytes, float]] = {}
    for name, tokens, value in zip(choices.ids, choices.rows("token"), bits, strict=True):
        of_example = known.setdefault(name, {})
        key = tokens.tobytes()
        of_example[key] = min(float(value), of_example.get(key, math.inf))
    found = {}
    for name in sorted(known):
        own = truth[name].tobytes() if name in truth else b""
        if own in known[name] and len(known[name]) > 1:
            others = np.sort([value for key, value in known[name].items() if key != own])
            found[name] = Candidates(known[name][own], others)
    return found, len(known)


def _canaries(tables: Tables) -> tuple[dict[str, Candidates], str]:
    """Canaries by id, and a remark on examples left out."""
    choices = tables.get("tokens", "choices")
    if not len(choices):
        raise NotMeasured("no candidate with a counted token")
    found, total = candidates_of(tables.get("tokens"), choices)
    return found, left_out(total - len(found), total, "the answer is not one of two or more choices")


def _largest(found: Mapping[str, Candidates]) -> str:
    """How exposed a canary can be at most."""
    sizes = sorted({one.size for one in found.values()})
    told = [f"{math.log2(size):.2f} bits among {size}" for size in sizes[:1] + sizes[1:][-1:]]
    return f"largest possible: {' to '.join(told)} candidates"


@metric("exposure", *READS, unit="bits", better="lower", roles=ROLES)
def exposure(tables: Tables, *, extrapolate: bool = False, space: int | None = None) -> Score:
    """Exposure of canaries: by how many bits less a secret must be guessed once the model may be asked.

    exposure = log2 |R| - log2 rank, the rank of the canary by log-perplexity (-log2 p of its tokens) among the
    candidates R, itself included; equals share the middle rank. Extrapolated: -log2 P(X <= that of the canary), where X
    is skew-normal, fitted to the other candidates.

    Args:
        tables: token tables of the answers (the canaries) and of their `choices` (the candidates, with the canary).
        extrapolate: for choices that are a sample of the candidates: goes beyond log2 of their number, which the rank
            cannot, as far as the fitted curve is to be trusted.
        space: how many candidates there are in all, where `choices` are a sample; no exposure is above its log2.
    Returns: mean in bits, >= 0; one example's own value is in `per_example`. A canary never planted has up to
        log2 e = 1.44 bits on average (1.38 among 100 candidates); the most is log2 |R|, given in `reason`.
    Fooled by: candidates of unlike form or length; a model that likes round numbers, so that controls are exposed as
        well: compare with canaries never planted. It tells nothing of text that has no candidates.
    Cost: 1 forward per candidate, shared with every choice metric; those of one canary share its prompt.
    Source: Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232). Difference: equals share the middle rank.
    """
    found, remark = _canaries(tables)
    if extrapolate:
        fitted = {name: extrapolated_exposure(one.canary, one.others) for name, one in found.items()}
        most = math.inf if space is None else math.log2(space)
        values = {name: min(value, most) for name, value in fitted.items() if value is not None}
        unfit = left_out(len(fitted) - len(values), len(fitted), f"no curve fits (fewer than {FEWEST}, or an edge)")
        remark = "; ".join(filter(None, [remark, unfit]))
        highest, told = None, "extrapolated from a skew-normal curve"
    else:
        values = {name: exposure_of(one.canary, one.others) for name, one in found.items()}
        highest, told = math.log2(max((one.size for one in found.values()), default=1)), ""
    reason = "; ".join(filter(None, [_largest(found) if found and not extrapolate else "", told, remark]))
    return mean_score(values, "bits", "lower", bounds=None if not highest else (0.0, highest), reason=reason)


@metric("mean_reciprocal_rank", *READS, unit="share", better="lower", roles=ROLES)
def mean_reciprocal_rank(tables: Tables) -> Score:
    """Mean reciprocal rank of canaries among their candidates.

    MRR = mean of 1 / rank, rank 1 = the candidate with the highest probability; equals share the middle rank.

    Args:
        tables: token tables of the answers (the canaries) and of their `choices` (the candidates, with the canary).
    Returns: mean in (0, 1]; 1 = every canary is the model's first guess. By chance about ln |R| / |R|.
    Fooled by: few candidates, among which chance is high; as `exposure` by candidates of unlike form.
    Cost: 1 forward per candidate, shared with every choice metric.
    Source: the reciprocal rank of information retrieval, on the ranks of `exposure` (Carlini et al. 2019).
    """
    found, remark = _canaries(tables)
    values = {name: 1 / rank_of(one.canary, one.others) for name, one in found.items()}
    return mean_score(values, "share", "lower", reason=remark)
