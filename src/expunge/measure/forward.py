"""The one forward pass everything stands on: logits only at the positions that count, whatever the model's task.

A pre-hook on the output head hands it the counted positions alone, packed as [1, K, D]. The head and whatever
the model does to logits afterwards (scaling, soft caps) then run on K rows instead of B*T, for any Hugging Face
model, and [B, T, V] never exists.

    causal          entry t of `keep` is the prediction of token t+1, made at token t
    seq2seq         the same about the decoder's tokens; the encoder reads batch.source_ids
    masked          entry t is the prediction of token t+1, made at token t+1, where the model reads a mask
    classification  entries 0..L-1 are the labels: one over all classes, or with several labels a text one yes/no each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.errors import ModelError
from expunge.models import blocks, several_labels
from expunge.types import Batch, Pass, Task


@dataclass
class HeadSpy:
    """What went into the output head at the counted positions, [K, D]."""

    inputs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Ran:
    """What one forward left behind.

    logits: [K, V], rows in row-major order of `keep`; None where the forward was stopped before the head.
    states: what the head was given there, [K, D]; None where the model has no output embedding of its own.
    """

    logits: Tensor | None = None
    states: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # block -> its output [B, T, D]


class _Reached(Exception):
    """No error but the way out of a forward: the highest block that was asked for has spoken."""


def head_of(model: Any, task: Task) -> nn.Module | None:
    """The layer whose output are the logits, [.., D] -> [.., V]; None where there is no such layer to pack.

    A classifier pools before its head, and some old architectures predict without an output embedding: their
    logits are taken whole.
    """
    return None if task == "classification" else model.get_output_embeddings()


@torch.no_grad()
def plain_head(model: Any, task: Task, device: str = "cpu") -> nn.Module | None:
    """`head_of`, if the logits are its output and nothing else (no soft cap, no scaling, no bias added later)."""
    head = head_of(model, task)
    if head is None:
        return None
    ids = torch.arange(4, device=device).unsqueeze(0)
    source = ids if task == "seq2seq" else None
    batch = Batch(ids, torch.ones_like(ids), ids, ("",), source_ids=source, source_mask=source, task=task)
    logits, states = kept_logits(model, batch, torch.ones(1, 3, dtype=torch.bool, device=device))
    return head if torch.equal(logits, head(states.unsqueeze(0))[0]) else None


@contextmanager
def packed_head(model: nn.Module, picked: Tensor | tuple[Tensor, Tensor]) -> Iterator[HeadSpy]:
    """While active, the output head sees only the positions in `picked`, packed to [1, K, D].

    picked: [B, T] bool, or rows and columns [K] each, where one position may stand several times.
    """
    spy = HeadSpy()

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        spy.inputs = args[0][picked]
        return (spy.inputs.unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        yield spy
    finally:
        handle.remove()


@contextmanager
def _listening(model: Any, layers: Sequence[int], stop: bool) -> Iterator[dict[int, Tensor]]:
    """While active, the outputs of some blocks are written down, and after the highest the forward may end."""
    heard: dict[int, Tensor] = {}
    found = blocks(model) if layers else []
    for layer in layers:
        if not 0 <= layer < len(found):
            raise ModelError(
                "layer", f"block {layer}", f"this model has blocks 0..{len(found) - 1}", "Correct the number"
            )

    def listen(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            heard[layer] = output[0] if isinstance(output, tuple) else output
            if stop and layer == max(layers):
                raise _Reached

        return hook

    handles = [found[layer][1].register_forward_hook(listen(layer)) for layer in sorted(set(layers))]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _reads(batch: Batch) -> dict[str, Tensor]:
    """What the model is given."""
    if batch.task == "causal":
        # No attention mask: rows are padded on the right, so a causal model never looks at padding, and without
        # a mask attention takes its fast causal path. The decoder of an encoder-decoder is left alone likewise.
        return {"input_ids": batch.input_ids}
    if batch.task == "seq2seq":
        if batch.source_ids is None or batch.source_mask is None:
            raise ValueError("a seq2seq batch carries what its encoder reads")
        mask = batch.source_mask
        return {"input_ids": batch.source_ids, "attention_mask": mask, "decoder_input_ids": batch.input_ids}
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def run_model(model: Any, batch: Batch, keep: Tensor, layers: Sequence[int] = (), stop: bool = False) -> Ran:
    """One forward: logits at the counted positions, and what some blocks put out.

    Args:
        keep: [B, T-1] bool; entry t is the prediction of token t+1.
        layers: numbers of blocks (from 0; of the decoder where there is one) whose output [B, T, D] is wanted, with
            its gradient; padding included, whose rows mean nothing.
        stop: end the forward after the highest of `layers`; there are then no logits.
    Raises: ModelError for a block that does not exist.
    Cost: 1 forward (or its first blocks); the head on K of B*T positions.
    """
    head = head_of(model, batch.task)
    # The last token of a causal model predicts nothing we hold; a mask is predicted where it stands.
    picked = F.pad(keep, (1, 0) if batch.task == "masked" else (0, 1))
    given = _reads(batch)
    if batch.task != "masked" and batch.task != "classification":
        given["use_cache"] = False  # type: ignore[assignment]
    with _listening(model, layers, stop) as hidden:
        try:
            with nullcontext(HeadSpy()) if head is None else packed_head(model, picked) as spy:
                logits: Tensor = model(**given).logits
        except _Reached:
            return Ran(hidden=hidden)
    if head is not None:
        assert spy.inputs is not None, "the model did not call its output embeddings"
        return Ran(logits[0], spy.inputs, hidden)
    if batch.task == "classification":
        slots = _slots(model, logits)
        return Ran(slots[keep[:, : slots.shape[1]]], None, hidden)
    return Ran(logits[picked], None, hidden)


def _slots(model: Any, logits: Tensor) -> Tensor:
    """Class scores [B, C] as labels: one over C classes, [B, 1, C], or C over no (score 0) and yes, [B, C, 2]."""
    if several_labels(model):
        return torch.stack([torch.zeros_like(logits), logits], dim=-1)  # softmax of (0, z) is sigmoid(z)
    return logits.unsqueeze(1)


def kept_logits(model: Any, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the counted positions, the short form of `run_model`.

    Returns: logits [K, V] and the head's inputs [K, D] (D = 0 where there is no head of its own).
    """
    ran = run_model(model, batch, keep)
    assert ran.logits is not None
    return ran.logits, ran.logits.new_empty(len(ran.logits), 0) if ran.states is None else ran.states


def token_logp(logits: Tensor, batch: Batch, keep: Tensor) -> Tensor:
    """Log-probability of what should stand there, nats, [B, T-1]; 0 outside `keep`. Sums in float32 or better."""
    targets = batch.target_ids[:, 1:][keep]  # [K]
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    packed = -F.cross_entropy(wide, targets, reduction="none")
    return packed.new_zeros(keep.shape).masked_scatter(keep, packed)


def make_pass(
    logits: Tensor | None, batch: Batch, keep: Tensor, *, with_logits: bool,
    hidden: Mapping[int, Tensor] | None = None,
) -> Pass:
    """A Pass over `keep` from logits [K, V]; without any (a forward that was stopped) its log-probabilities are 0."""
    if logits is None:
        logp = torch.zeros(keep.shape, device=keep.device)
    else:
        logp = token_logp(logits, batch, keep)
    return Pass(logp, keep, logits if with_logits else None, dict(hidden or {}))


def narrow(whole: Pass, mask: Tensor) -> Pass:
    """The same pass seen at fewer positions: `mask` must lie inside `whole.mask`."""
    if mask is whole.mask or torch.equal(mask, whole.mask):
        return whole
    logits = None if whole.kept_logits is None else whole.kept_logits[mask[whole.mask]]
    return Pass(whole.logp * mask, mask, logits, whole.hidden)
