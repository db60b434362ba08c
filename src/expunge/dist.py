"""Ranks: who am I, how many are we, and how rows and gradients come together.

Started by `accelerate launch` or `torchrun`; with one process every function is the identity.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from expunge.errors import RecipeError


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def setup(device: str = "cpu") -> str:
    """Join the other ranks and choose this rank's device.

    Raises: RecipeError when the launcher asked for a parallelism that is not on (FSDP, or a launch that did not
        start the processes it announced): a request that silently becomes something else is worse than a stop.
    """
    import torch
    from accelerate import PartialState

    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true"}:
        raise RecipeError(
            "launch",
            "FSDP was asked for",
            "what can be on: data parallelism (every rank holds the model)",
            "Launch without FSDP, or use scope: {use: lora}",
        )
    if world_size() > 1 and not torch.distributed.is_initialized():
        PartialState(cpu=device == "cpu")
        atexit.register(_leave)
    actual = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if actual != world_size():
        raise RecipeError(
            "launch",
            f"{world_size()} processes announced, {actual} joined",
            "both numbers equal",
            "Start with torchrun --nproc-per-node N, or accelerate launch --num-processes N",
        )
    if device == "cuda" and world_size() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def _leave() -> None:
    """Let go of the other ranks before the interpreter goes: threads that still listen would abort the process."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(code: int = 0) -> None:
    """End this process, where it is one of several ranks: the last thing a program does.

    Threads of the transport may still be there when the interpreter takes its libraries down, which now and then aborts
    a process whose work is done. Written files are whole (they are flushed when written). A single process goes on.
    """
    if world_size() == 1:
        return
    _leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe() -> dict[str, Any]:
    """What parallelism is really on, for env.json and the run header."""
    return {
        "ranks": world_size(),
        "strategy": "single process" if world_size() == 1 else "data parallel (gradients summed)",
    }


def shard(rows: Sequence[Any]) -> Sequence[Any]:
    """This rank's share of a list: every world_size-th row."""
    return rows[rank() :: world_size()]


def gather(rows: list[Any]) -> list[Any]:
    """All ranks' rows, rank by rank. Callers sort by example id."""
    if world_size() == 1:
        return rows
    import torch

    parts: list[list[Any]] = [[] for _ in range(world_size())]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def agree(value: Any) -> Any:
    """Rank 0's value, on every rank: for decisions read from a disk that another rank may be writing to."""
    return gather([value])[0]


def sum_gradients(parameters: Iterable[Any]) -> None:
    """Add the gradients of all ranks, in place. Missing gradients count as zero."""
    if world_size() == 1:
        return
    import torch

    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    torch.distributed.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def sum_number(value: float) -> float:
    """The sum of a number over all ranks."""
    if world_size() == 1:
        return value
    import torch

    where = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"  # nccl moves nothing that is on the CPU
    total = torch.tensor([value], dtype=torch.float64, device=where)
    torch.distributed.all_reduce(total)
    return float(total)
