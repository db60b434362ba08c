"""What a search makes small: how well the target is said, and terms of the string itself or of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.attacks.suffix.problem import Problem


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model said about N strings in one problem. Logits and log-probabilities are float32 or better.

    ids: the strings, [N, n]. logits: at the places that predict the target, [N, m, V]. target: [m].
    string_logp: log-probability of each of the string's tokens given what stands before it, nats, [N, n] (0 for the
    first where nothing stands before); only for terms with `string`.
    hidden: block -> its output at the places that predict the target, [N, m, D]; only for terms with `layers`.
    """

    problem: Problem
    ids: Tensor
    logits: Tensor
    target: Tensor
    string_logp: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


Value = Callable[[Seen], Tensor]  # one number per string, [N]; differentiable where it is to guide the search


@dataclass(frozen=True)
class Term:
    """Something to be made small beside the target loss: weight * value(seen).

    string: it reads `string_logp`. layers: numbers of the blocks it reads from `hidden`.
    """

    value: Value
    weight: float = 1.0
    string: bool = False
    layers: tuple[int, ...] = ()


def token_losses(seen: Seen) -> Tensor:
    """-log p of each target token, nats, [N, m]."""
    targets = seen.target.repeat(len(seen.logits))
    return F.cross_entropy(seen.logits.flatten(0, 1), targets, reduction="none").view(len(seen.logits), -1)


def cross_entropy(seen: Seen) -> Tensor:
    """Mean -log p of the target tokens, nats, [N]."""
    return token_losses(seen).mean(-1)


def soft_maximum(values: Tensor, alpha: float) -> Tensor:
    """Mellowmax over the last axis, (logsumexp(alpha t) - ln m) / alpha: the mean for alpha -> 0, the largest for inf.

    Source: Asadi and Littman 2017 (arXiv 1612.05628).
    """
    return (torch.logsumexp(alpha * values, -1) - math.log(values.shape[-1])) / alpha


def mellowmax(alpha: float) -> Value:
    """Soft maximum of the target tokens' negated raw logits: the worst token counts most."""

    def value(seen: Seen) -> Tensor:
        chosen = seen.logits.gather(-1, seen.target.expand(len(seen.logits), -1).unsqueeze(-1)).squeeze(-1)
        return soft_maximum(-chosen, alpha)

    return value


def flrt(force: int = 10, teacher: Callable[[Problem], Tensor] | None = None, threshold: float | None = 0.6) -> Value:
    """Attack loss of FLRT: tokens forced, then matched; the first and the forced ones weigh more.

    Args:
        force: the first so many target tokens are forced (cross-entropy), the rest matched.
        teacher: log-probabilities [m, V] the matched ones are compared with (cross-entropy of distributions); None:
            the target tokens themselves. threshold: a token said with this probability is left alone; None: never.
    Source: Thompson and Sklar 2024 (arXiv 2407.17447).
    """

    def value(seen: Seen) -> Tensor:
        losses = token_losses(seen)
        if teacher is not None and losses.shape[1] > force:
            told = teacher(seen.problem)[force:].exp()
            matched = -(told * seen.logits[:, force:].log_softmax(-1)).sum(-1)
            losses = torch.cat([losses[:, :force], matched], dim=1)
        return weighted(losses, force, threshold)

    return value


def weighted(losses: Tensor, force: int, threshold: float | None) -> Tensor:
    """FLRT's weighted mean of token losses [.., m]; what is said with probability `threshold` is left alone."""
    kept = losses if threshold is None else losses.clamp(min=-math.log(threshold))
    return (kept * token_weights(losses.shape[-1], force).to(losses)).mean(-1)


def token_weights(num: int, force: int) -> Tensor:
    """FLRT's weights of `num` target tokens: 4.5 (first), 3 (forced), 1 (matched), scaled to mean 1."""
    weights = torch.ones(num, dtype=torch.float64)
    weights[:force], weights[0] = 3.0, 4.5
    return weights / weights.mean()


def fluency(seen: Seen) -> Tensor:
    """Mean -log p of the string's own tokens, nats, [N]."""
    if seen.string_logp is None:
        raise ValueError("fluency reads the string's own log-probabilities: Term(fluency, string=True)")
    return -seen.string_logp.mean(-1)


def repeated(ids: Tensor, exponent: float = 1.5) -> Tensor:
    """Penalty of tokens that stand several times: sum over them of (count - 1) ** exponent, per token, [N].

    Source: FLRT, see `flrt`.
    """
    ordered = ids.sort(-1).values
    same = F.pad((ordered[:, 1:] == ordered[:, :-1]).long(), (1, 0))  # [N, n]
    total = same.cumsum(-1)
    before = torch.where(same == 0, total, 0).cummax(-1).values  # repeats counted before this run of equal tokens
    rank = (total - before).double()  # 0, 1, 2, ... inside a run
    step = rank**exponent - (rank - 1).clamp(min=0) ** exponent
    return (step.sum(-1) / ids.shape[1]).float()


def repetition(seen: Seen) -> Tensor:
    """`repeated` as the value of a term; it has no gradient."""
    return repeated(seen.ids)
