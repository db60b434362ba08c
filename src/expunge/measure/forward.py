"""The one forward pass everything stands on: logits only at the positions that count.

A pre-hook on the output head hands it the counted positions alone, packed as [1, K, D]. The head and whatever
the model does to logits afterwards (scaling, soft caps) then run on K rows instead of B*T, for any Hugging Face
model, and [B, T, V] never exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.types import Batch, Pass


@dataclass
class HeadSpy:
    """What went into the output head at the counted positions, [K, D]."""

    inputs: Tensor | None = None


@contextmanager
def packed_head(model: nn.Module, picked: Tensor) -> Iterator[HeadSpy]:
    """While active, the output head sees only the positions in `picked` [B, T] bool, packed to [1, K, D]."""
    spy = HeadSpy()

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        spy.inputs = args[0][picked]
        return (spy.inputs.unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        yield spy
    finally:
        handle.remove()


def kept_logits(model: nn.Module, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the counted positions.

    Args:
        keep: [B, T-1] bool; entry t is the prediction of token t+1.
    Returns: logits [K, V] and the head's inputs [K, D], rows in row-major order of `keep`.
    Cost: 1 forward; the head on K of B*T positions.
    """
    picked = F.pad(keep, (0, 1))  # the last position predicts nothing we hold
    with packed_head(model, picked) as spy:
        # No attention mask: rows are padded on the right, so a causal model never looks at padding, and without
        # a mask attention takes its fast causal path.
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    assert spy.inputs is not None, "the model did not call its output embeddings"
    return logits[0], spy.inputs


def token_logp(logits: Tensor, batch: Batch, keep: Tensor) -> Tensor:
    """Log-probability of the token that stands there, nats, [B, T-1]; 0 outside `keep`. Sums in float32 or better."""
    targets = batch.input_ids[:, 1:][keep]  # [K]
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    packed = -F.cross_entropy(wide, targets, reduction="none")
    return packed.new_zeros(keep.shape).masked_scatter(keep, packed)


def make_pass(logits: Tensor, batch: Batch, keep: Tensor, *, with_logits: bool) -> Pass:
    """A Pass over `keep` from logits [K, V]."""
    return Pass(token_logp(logits, batch, keep), keep, logits if with_logits else None)


def narrow(whole: Pass, mask: Tensor) -> Pass:
    """The same pass seen at fewer positions: `mask` must lie inside `whole.mask`."""
    if mask is whole.mask or torch.equal(mask, whole.mask):
        return whole
    logits = None if whole.kept_logits is None else whole.kept_logits[mask[whole.mask]]
    return Pass(whole.logp * mask, mask, logits, whole.hidden)
