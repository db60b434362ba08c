"""Optimisers of the one training loop: AdamW, SGD, and Muon in fp32.

Every parameter group keeps `base_lr`; a schedule with factor f sets `group["lr"] = group["base_lr"] * f`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon", "sgd"]

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose iteration pulls singular values into [0.7, 1.2]
MUON_ADAMW_SHARE = 0.2  # Muon at 0.05 goes with AdamW at 1e-2
MUON_ADAMW_BETAS = (0.9, 0.99)
NOT_BLOCKS = ("embed", "lm_head", "wte", "wpe")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of each matrix by about 1, keeping its singular vectors.

    Newton-Schulz: X <- a X + b (X X^T) X + c (X X^T)^2 X, from X = G / ||G||_F.

    Args:
        matrices: [..., n, m], any float dtype; computed and returned in fp32.
        steps: iterations; 5 brings singular values above 0.001 of the largest into [0.7, 1.2].

    Returns: [..., n, m] fp32. A zero matrix stays zero.
    Cost: steps * (4 k^2 l + 2 k^3) flops a matrix, k = min(n, m), l = max(n, m).
    Source: Jordan et al. 2024 (Muon); theirs runs in bf16, which is slow on CPUs.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.mT  # [..., k, k]
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon for matrices of the blocks, AdamW for everything else, in one optimiser.

    Groups carry `kind`: "muon" or "adamw". Muon: m <- mu m + g; step along orthogonalize(g + mu m), scaled by
    sqrt(max(1, rows / columns)); weight decay is decoupled in both kinds.

    Args:
        groups: dicts with `params`, `kind`, `lr`, `weight_decay`.
        momentum: mu, in [0, 1).
        betas: decay of AdamW's two averages.
        eps: AdamW's denominator floor.
        newton_schulz_steps: see `orthogonalize`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = MUON_ADAMW_BETAS,
        eps: float = 1e-8,
        newton_schulz_steps: int = 5,
    ) -> None:
        defaults = {
            "kind": "adamw", "lr": 0.01, "weight_decay": 0.0, "momentum": momentum, "betas": betas, "eps": eps,
            "newton_schulz_steps": newton_schulz_steps,
        }
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. The gradients must be there; a closure, if given, is run first to make them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._step_muon if group["kind"] == "muon" else self._step_adamw)(moving, group)
        return loss

    def _step_muon(self, moving: list[Tensor], group: dict[str, Any]) -> None:
        same_shape: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in moving:
            same_shape[tuple(parameter.shape)].append(parameter)
        for (rows, columns), parameters in same_shape.items():
            directions = torch.stack([self._nesterov(p, group["momentum"]) for p in parameters])  # [P, rows, columns]
            directions = orthogonalize(directions, group["newton_schulz_steps"])
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.to(parameter.dtype), alpha=rate)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        if grad is None:
            raise ValueError("a parameter without gradient reached the Muon step")
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(momentum).add_(grad)
        return grad.add(state["momentum"], alpha=momentum)

    def _step_adamw(self, moving: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in moving:
            state, grad = self.state[parameter], parameter.grad
            if grad is None:
                continue
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] = int(state["step"]) + 1  # a checkpoint may bring it back as a tensor
            state["mean"].lerp_(grad, 1 - beta1)
            state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            scale = (1 - beta2 ** state["step"]) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(
                state["mean"],
                state["square"].sqrt().div_(scale).add_(group["eps"]),
                value=-group["lr"] / (1 - beta1 ** state["step"]),
            )


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    name: OptimizerName = "adamw",
    lr: float = 1e-5,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.95,
) -> torch.optim.Optimizer:
    """An optimiser over named parameters; vectors (norms, biases) are never decayed.

    Args:
        parameters: what may move, by full name; names tell embeddings and heads from block matrices.
        name: "adamw" (fused), "muon", or "sgd".
        lr: peak rate, > 0. For "muon" that of the matrices; embeddings and vectors take 0.2 of it with AdamW.
        weight_decay: decoupled for adamw and muon, L2 for sgd.
        betas: of "adamw"; the AdamW inside "muon" uses (0.9, 0.99).
        momentum: of "muon" (Nesterov) and "sgd".

    Returns: an optimiser whose groups carry `base_lr`; its state_dict resumes bit-exactly.
    """
    if name == "muon":
        return _with_base_lr(Muon(_muon_groups(parameters, lr, weight_decay), momentum=momentum))
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, weight_decay), (vectors, 0.0))
        if params
    ]
    if name == "sgd":
        return _with_base_lr(torch.optim.SGD(groups, lr=lr, momentum=momentum))
    return _with_base_lr(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))


def _muon_groups(parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    blocks, tables, vectors = [], [], []
    for name, parameter in parameters.items():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim > 2 or any(word in name for word in NOT_BLOCKS):
            tables.append(parameter)
        else:
            blocks.append(parameter)
    slow = lr * MUON_ADAMW_SHARE
    groups = [
        {"params": blocks, "kind": "muon", "lr": lr, "weight_decay": weight_decay},
        {"params": tables, "kind": "adamw", "lr": slow, "weight_decay": weight_decay},
        {"params": vectors, "kind": "adamw", "lr": slow, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _with_base_lr(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer
