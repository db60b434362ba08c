"""The gradient instrument: how hard each text pulls at the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge import dist
from expunge.data.tokenise import Encoded, collate
from expunge.errors import RecipeError
from expunge.measure.desk import Desk, Job
from expunge.measure.forward import kept_logits, token_logp
from expunge.measure.tables import NotMeasured, Table
from expunge.models import is_adapter
from expunge.registry import instrument
from expunge.types import Subject

NORMS: Mapping[str, float] = {"1": 1.0, "2": 2.0, "inf": float("inf")}


@instrument("grads")
def grads(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """The mean over weight tensors of the norm of the gradient of each text's loss.

    norm: mean over tensors W of ||d NLL / dW||_p, NLL = mean negative log-likelihood of the counted tokens, nats. The
    setting "p=P" says which norm, 1, 2 (default) or inf; a matrix counts as one long vector. Tensors the text does
    not reach are left out. An adapter is seen through: W are the weights of the base, where the gradient is that of
    the merged weights, and the adapter's own tensors do not count.

    Returns: one table per job, columns id, item, norm.
    Raises: NotMeasured when no weight is a floating-point number (a quantised base).
    Cost: 1 forward and 1 backward per text, one text at a time, and a copy of all weights for the gradients. The
        model's gradients, flags and mode are left as they were.
    """
    tables = []
    with _everything_moves(subject.model) as weights:
        for job in jobs:
            p = _norm(job)
            rows = [
                (int(i), _pull(subject.model, one, weights, p, desk.device))
                for i, one in dist.shard(list(enumerate(job.encoded)))
            ]
            found = sorted(dist.gather(rows))
            tables.append(Table.of({
                "id": [one.id for one in job.encoded], "item": [one.item for one in job.encoded],
                "norm": [norm for _, norm in found],
            }))
            number = len(job.encoded)
            desk.count(forwards=number, backwards=number, tokens=sum(one.size for one in job.encoded))
    return tables


def _norm(job: Job) -> float:
    p = job.settings.get("p", "2")
    if p not in NORMS:
        raise RecipeError("p", f"got '{p}'", "accepted: 1, 2 or inf", "Correct the value")
    return NORMS[p]


def _pull(model: Any, one: Encoded, weights: Sequence[nn.Parameter], p: float, device: str) -> float:
    """Mean over tensors of the norm of one text's gradient."""
    batch = collate([one], device=device)
    keep = batch.positions("answer")
    with torch.enable_grad():
        logits, _ = kept_logits(model, batch, keep)
        loss = -token_logp(logits, batch, keep)[keep].mean()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    norms = [torch.linalg.vector_norm(_wide(g).reshape(-1), p) for g in found if g is not None]
    return float(torch.stack(norms).double().mean())


def _wide(gradient: Tensor) -> Tensor:
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient


@contextmanager
def _everything_moves(model: Any) -> Iterator[list[nn.Parameter]]:
    """While active, all weights but an adapter's own take a gradient and the model evaluates; then all is as before."""
    modes = [(module, module.training) for module in model.modules()]
    own = _adapter_weights(model)
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    weights = [weight for weight, _ in flags if weight.is_floating_point() and id(weight) not in own]
    if not weights:
        raise NotMeasured("no weight of this model is a floating-point number: it has no gradient")
    try:
        model.eval()
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _adapter_weights(model: Any) -> set[int]:
    """The tensors that PEFT put beside the weights of the base."""
    if not is_adapter(model):
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                beside = getattr(module, name, None)
                found |= {id(weight) for weight in beside.parameters()} if isinstance(beside, nn.Module) else set()
    return found
