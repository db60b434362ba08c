"""Quantisation: rounding the weights can bring back what a small change of them had hidden."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from expunge.errors import RecipeError
from expunge.models import clone
from expunge.registry import attack
from expunge.types import Cost, Data, Event, Subject


def round_weights(weight: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric round-to-nearest with one scale per group of inputs.

    w' = s * clamp(round(w / s), -(2^(bits-1) - 1), 2^(bits-1) - 1),  s = max|w| / (2^(bits-1) - 1) per group.

    Args:
        weight: [out, in]. bits: >= 2. group: inputs that share a scale; 0 = the whole row.
    Returns: the rounded weights in the dtype of `weight`; at most s/2 away from it.
    """
    out, width = weight.shape
    size = group if group and width % group == 0 else width
    parts = weight.float().reshape(out, width // size, size)
    top = 2 ** (bits - 1) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    rounded: Tensor = (parts / scale).round().clamp(-top, top) * scale
    return rounded.reshape(out, width).to(weight.dtype)


@attack("quantize", changes="precision")
@torch.no_grad()
def quantize(subject: Subject, data: Data, *, bits: int = 4, group: int = 0) -> Iterator[Subject]:
    """Round the linear layers of a copy to int8 or int4 (weights only, simulated); embeddings and head stay.

    Args:
        bits: 4 or 8. group: inputs sharing a scale; 0 = per output row for 8 bits, 64 for 4 bits.
    Returns: one subject.
    Cost: one copy of the model.
    Source: Zhang et al. 2024 (arXiv 2410.16454), quantisation restores unlearned knowledge; rounding to nearest.
    """
    if bits not in (4, 8):
        raise RecipeError("attacks.quantize.bits", f"got {bits}", "accepted: 4, 8", "Choose one")
    begun = time.perf_counter()
    changed = clone(subject)
    model = changed.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    head = model.get_output_embeddings()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if linear and module is not head and isinstance(weight, Tensor) and weight.ndim == 2:
            transposed = type(module).__name__ == "Conv1D"  # GPT-2 stores [in, out]
            rounded = round_weights(weight.T if transposed else weight, bits, group or (64 if bits == 4 else 0))
            weight.copy_(rounded.T if transposed else rounded)
    event = Event("attack", "quantize", {"bits": bits}, Cost(seconds=time.perf_counter() - begun))
    yield changed.after(event, model=model)
