"""Objectives over the whole next-token distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.registry import objective
from expunge.types import View

CHUNK = 512  # positions whose [chunk, V] temporaries live at once


class _ForwardKL(torch.autograd.Function):
    """KL(p || q) per position from two sets of logits; keeps one [K, V] tensor, q - p, for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        gap = torch.empty_like(logits)
        value = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
        for rows in torch.arange(len(logits)).split(CHUNK):
            a, b = int(rows[0]), int(rows[-1]) + 1
            logp, logq = (one[a:b].to(value.dtype).log_softmax(-1) for one in (reference, logits))
            p = logp.exp()
            value[a:b] = (p * (logp - logq)).sum(-1)
            gap[a:b] = logq.exp_().sub_(p)
        ctx.save_for_backward(gap)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gap,) = ctx.saved_tensors
        return gap * grads[0].unsqueeze(-1).to(gap.dtype), None


@objective("kl", mean="tokens", tokens="text", needs={"ref", "vocab", "ref_vocab"})
def kl(stream: View) -> Tensor:
    """Forward KL to the reference: keep the whole next-token distribution where it was.

    sum_t KL(p_ref(. | x_<t) || p(. | x_<t)) over the term's positions (default: all real text), in nats.

    Returns: loss per example [B], >= 0; 0 with zero gradient at the reference.
    Cost: 1 forward+backward; the reference costs its head alone (its last hidden states are stored).
    Source: TOFU (arXiv 2401.06121), LLMU (arXiv 2310.10683). Differences: OpenUnlearning averages over prompt and
        padding positions too, MUSE's release takes the divergence of raw logits; here real text only (or `tokens:
        answer`), log-softmax on both sides.
    """
    now, ref = stream.now, stream.reference
    if now.kept_logits is None or ref.kept_logits is None:
        raise ValueError("kl needs the logits of both passes")
    per_position: Tensor = _ForwardKL.apply(now.kept_logits, ref.kept_logits)  # type: ignore[no-untyped-call]
    return now.total(per_position)
