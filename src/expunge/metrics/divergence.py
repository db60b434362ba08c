"""Distance to another model on the same text: whole distributions (JSD), perplexities (LPD, PDLP)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.measure.tables import Table, Tables
from expunge.metrics.rows import by_id, losses, ragged
from expunge.metrics.stats import Floats, Indices, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Against = Literal["oracle", "original"]

ROLES = ("forget", "retain", "holdout", "probe")
VOCAB = ("vocab_ids", "vocab_logp", "vocab_rest")
EVERYBODY = ("this", "oracle", "original")
MOST = 200.0  # a ruined model has a huge distance, not an infinite one; its cube, for the interval, is a double too
LIMIT = math.log(2)  # of the Jensen-Shannon divergence, nats


def jensen_shannon(logp: Floats, logq: Floats) -> Floats:
    """Jensen-Shannon divergence of two distributions.

    1/2 KL(P || M) + 1/2 KL(Q || M), M = (P + Q) / 2.

    Args:
        logp, logq: log-probabilities, nats, [..., V]; -inf is a probability of 0.
    Returns: [...] in [0, log 2], nats; symmetric, 0 only for P = Q, log 2 for distributions that share nothing.
    Source: Lin 1991. KGA's release averages KL(M || P) and KL(M || Q) instead, which has no upper bound.
    """
    log_middle = np.logaddexp(logp, logq) - LIMIT
    total = np.zeros(np.broadcast_shapes(logp.shape, logq.shape)[:-1])
    with np.errstate(invalid="ignore"):  # -inf - -inf, where the weight is 0
        for one in (logp, logq):
            total += np.where(np.isneginf(one), 0.0, np.exp(one) * (one - log_middle)).sum(-1) / 2
    return np.clip(total, 0.0, LIMIT)


def lpd_values(nll: Floats, nll_base: Floats, *, relative: bool = True) -> Floats:
    """|PPL_base - PPL| / PPL_base per example, or the plain difference; PPL = exp(mean NLL per token), up to e^200."""
    if relative:
        return np.asarray(np.abs(np.expm1(np.minimum(nll - nll_base, MOST))))
    return np.asarray(np.abs(np.exp(np.minimum(nll, MOST)) - np.exp(np.minimum(nll_base, MOST))))


def pdlp_values(nll: Floats, nll_base: Floats) -> Floats:
    """1 where the example became less likely than under the base, strictly; else 0."""
    return (nll > nll_base).astype(np.float64)


@dataclass(frozen=True, eq=False)
class _Distributions:
    """Stored distributions of one subject: k tokens of the vocabulary at every counted token."""

    rows: dict[str, slice]  # the tokens of each example
    tokens: Floats  # [tokens]: what stood there
    vocab: Indices  # [tokens, k]
    logp: Floats  # [tokens, k]
    rest: Floats  # [tokens]

    @staticmethod
    def of(table: Table) -> _Distributions:
        found = ragged(table, "token")
        if not found.ids:
            return _Distributions({}, found.values, np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0)), found.values)
        ends = np.cumsum(found.n)
        rows = {name: slice(int(end - n), int(end)) for name, end, n in zip(found.ids, ends, found.n, strict=True)}
        rest = ragged(table, "vocab_rest").values
        return _Distributions(rows, found.values, table.wide("vocab_ids"), table.wide("vocab_logp"), rest)

    def over(self, at: int | slice, kept: Indices | slice) -> tuple[Floats, Floats]:
        """Log-probabilities of some of the stored tokens and, last, of all others together; and that mass."""
        stored = self.logp[at].astype(np.float64)
        outside = np.ones(stored.shape[-1], dtype=bool)
        outside[kept] = False
        mass = self.rest[at] + np.exp(stored[..., outside]).sum(-1)
        with np.errstate(divide="ignore"):
            return np.concatenate([stored[..., kept], np.log(mass)[..., None]], axis=-1), mass


def _row(one: _Distributions, here: slice, other: _Distributions, there: slice) -> tuple[float, float]:
    """Mean Jensen-Shannon divergence over the tokens of a row, and what it may be too small by.

    Compared are the tokens that both stored, and all others as one: merging outcomes never raises a divergence.
    """
    if np.array_equal(one.vocab[here], other.vocab[there]):
        pairs = [(one.over(here, slice(None)), other.over(there, slice(None)))]
    else:
        pairs = []
        for a, b in zip(range(here.start, here.stop), range(there.start, there.stop), strict=True):
            _, mine, theirs = np.intersect1d(one.vocab[a], other.vocab[b], assume_unique=True, return_indices=True)
            pairs.append((one.over(a, mine), other.over(b, theirs)))
    values = [jensen_shannon(logp, logq).mean() for (logp, _), (logq, _) in pairs]
    slacks = [LIMIT * np.mean(mass + their_mass) / 2 for (_, mass), (_, their_mass) in pairs]
    return float(np.mean(values)), float(np.mean(slacks))


@metric(
    "jsd", Needs("tokens", columns=VOCAB, subjects=EVERYBODY), unit="nats", better="lower", roles=ROLES,
)
def jsd(tables: Tables, *, against: Against = "oracle") -> Score:
    """Jensen-Shannon divergence of the next-token distributions of two models on the answer tokens.

    Mean over examples of 1/n sum_t JSD(p(. | x_<t), p_other(. | x_<t)), in nats; at most log 2 = 0.693.

    Args:
        tables: token tables of the answers with the stored distributions, of this subject and of the other.
        against: "oracle" (retrained: is it like a model that never saw the data?) or "original" (what has changed?).
    Returns: mean in [0, log 2]; 0 = the same distributions everywhere. For vocabularies of more than 1024 tokens a
        lower bound: tokens that are not among the 1024 most likely of both models are one; `reason` says by how much
        it can be too small.
    Fooled by: agreement on easy tokens (function words), which are most of the tokens.
    Cost: 1 forward per example, shared; 8 min(V, 1024) bytes per token are stored.
    Source: Wang et al. 2023 (KGA, arXiv 2305.06535), Lin 1991. Difference: the release computes another, unbounded
        quantity, see `jensen_shannon`.
    """
    one = _Distributions.of(tables.get("tokens"))
    other = _Distributions.of(tables.get("tokens", subject=against))
    values: dict[str, float] = {}
    slacks = []
    for name in sorted(one.rows.keys() & other.rows.keys()):
        here, there = one.rows[name], other.rows[name]
        if not np.array_equal(one.tokens[here], other.tokens[there]):
            return Score.missing(f"this subject and the {against} read '{name}' as different tokens", "nats", "lower")
        values[name], slack = _row(one, here, other, there)
        slacks.append(slack)
    slack = float(np.mean(slacks)) if slacks else 0.0
    reason = f"a lower bound, too small by at most {slack:.2g}" if slack > 1e-4 else ""
    return mean_score(values, "nats", "lower", bounds=(0.0, LIMIT), reason=reason or _nothing(values, against))


def _nothing(values: dict[str, float], against: str) -> str:
    return "" if values else f"no example was measured on both this subject and the {against}"


def _both(tables: Tables, against: Against) -> tuple[list[str], Floats, Floats]:
    """Ids that both models were measured on, and the mean NLL per token of each of them, nats."""
    mine, theirs = losses(tables.get("tokens")), losses(tables.get("tokens", subject=against))
    shared = sorted(mine.keys() & theirs.keys())
    return shared, np.array([mine[key] for key in shared]), np.array([theirs[key] for key in shared])


@metric("lpd", Needs("tokens", subjects=EVERYBODY), unit="relative", better="lower", roles=ROLES)
def lpd(tables: Tables, *, against: Against = "oracle", relative: bool = True) -> Score:
    """Language-model probability distance: how far the perplexities of two models lie apart, example by example.

    Mean over examples of |PPL_other - PPL| / PPL_other, PPL = exp(mean NLL per token).

    Args:
        tables: token tables of the answers, of this subject and of the other.
        against: "oracle" (retrained) or "original": the model whose perplexity is the yardstick.
        relative: divide by that perplexity; False: the plain difference ("Diff1" of the release), held under e^200.
    Returns: mean, >= 0, unbounded above; 0 = the same perplexity on every example.
    Fooled by: a few examples with huge perplexities decide it.
    Cost: 1 forward per example, shared.
    Source: Wang et al. 2023 (KGA, arXiv 2305.06535); "Diff2" of the release.
    """
    shared, nll, base = _both(tables, against)
    values = by_id(shared, lpd_values(nll, base, relative=relative))
    return mean_score(values, "relative", "lower", bounds=None, reason=_nothing(values, against))


@metric("pdlp", Needs("tokens", subjects=EVERYBODY), unit="share", better="higher", roles=ROLES)
def pdlp(tables: Tables, *, against: Against = "original") -> Score:
    """Proportion with decreased likelihood: the share of examples that became less likely than under another model.

    Share of examples with PPL > PPL_other, strictly.

    Args:
        tables: token tables of the answers, of this subject and of the other.
        against: "original" (did it forget? 1 is best on what was to be forgotten), or "oracle" (is it like a model
            that never saw the data? 0.5 is best: 1 means every example is less likely than without ever learning it).
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1.
    Fooled by: the direction alone counts: a millionth of a nat is as good as ten.
    Cost: 1 forward per example, shared.
    Source: Wang et al. 2023 (KGA, arXiv 2305.06535); "Diff3" of the release. That 0.5 is best against the oracle is
        ours.
    """
    shared, nll, base = _both(tables, against)
    if not np.isfinite([nll, base]).all():
        return Score.missing("a log-probability is not finite", "share", "higher")
    values = by_id(shared, pdlp_values(nll, base))
    return mean_score(values, "share", "higher", binary=True, reason=_nothing(values, against))
