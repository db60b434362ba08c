"""How a gradient becomes a step: optimiser, rate over time, clipping. `optimizer:` of a forget stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.errors import NonFinite
from expunge.optim import build_optimizer
from expunge.registry import register
from expunge.types import Movable

Decay = Literal["linear", "constant"]


@dataclass(frozen=True, eq=False)
class Updater:
    """An optimiser on what may move, with its rate schedule and gradient clipping.

    warmup: share of the steps over which the rate rises linearly from 0. decay: "linear" falls to 0 at the end.
    clip: largest gradient norm; None = no clipping.
    """

    optimizer: torch.optim.Optimizer
    movable: Movable
    warmup: float = 0.0
    decay: Decay = "linear"
    clip: float | None = 1.0

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step (from 0), in (0, 1]."""
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / rise
        return 1.0 if self.decay == "constant" else (steps - step) / max(1, steps - rise)

    @torch.no_grad()
    def step(self, step: int, steps: int) -> float:
        """Mask, clip and apply the gradients; returns the gradient norm before clipping.

        Raises: NonFinite before anything moves.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step, steps)
        parameters = self.movable.parameters
        masked = {name: (parameters[name], mask, parameters[name].clone()) for name, mask in self.movable.masks.items()}
        for parameter, mask, _ in masked.values():
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        limit = float("inf") if self.clip is None else self.clip
        norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), limit))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFinite(
                f"step {step}",
                f"the gradient norm is {norm:g}",
                "finite gradients; the weights were not moved by this step",
                "Lower lr, or bound the forget term",
            )
        self.optimizer.step()
        for parameter, mask, before in masked.values():  # decay and momentum must not reach outside the mask either
            parameter.copy_(torch.where(mask.bool(), parameter, before))
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides the weights, as tensors."""
        flat = {}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                flat[f"optimizer.{index}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return flat

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


@register("optimizer", "adamw")
def adamw(
    movable: Movable, lr: float, *, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.0, decay: Decay = "linear", clip: float | None = 1.0,
) -> Updater:
    """AdamW with decoupled weight decay on matrices (fused kernel).

    Args:
        weight_decay: per unit of rate. betas: decay of the two averages.
        warmup: share of the steps, in [0, 1). decay: "linear" to 0, or "constant". clip: gradient norm.
    """
    made = build_optimizer(movable.parameters, name="adamw", lr=lr, weight_decay=weight_decay, betas=betas)
    return Updater(made, movable, warmup, decay, clip)


@register("optimizer", "muon")
def muon(
    movable: Movable, lr: float, *, weight_decay: float = 0.01, momentum: float = 0.95, warmup: float = 0.05,
    decay: Decay = "linear", clip: float | None = 1.0,
) -> Updater:
    """Muon in fp32 for block matrices, AdamW for the rest: half the tokens of AdamW when training from scratch.

    Args:
        weight_decay, warmup, decay, clip: as for adamw. momentum: Nesterov.
    Source: Jordan et al. 2024.
    """
    made = build_optimizer(movable.parameters, name="muon", lr=lr, weight_decay=weight_decay, momentum=momentum)
    return Updater(made, movable, warmup, decay, clip)


@register("optimizer", "sgd")
def sgd(
    movable: Movable, lr: float, *, momentum: float = 0.0, warmup: float = 0.0, decay: Decay = "constant",
    clip: float | None = None,
) -> Updater:
    """Plain gradient descent.

    Args:
        momentum: 0 for none. warmup, decay, clip: as for adamw.
    """
    made = build_optimizer(movable.parameters, name="sgd", lr=lr, weight_decay=0.0, momentum=momentum)
    return Updater(made, movable, warmup, decay, clip)
