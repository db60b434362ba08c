"""What attacks on a model's inside share: copies that cost little, the matrices inside the blocks, changed blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from expunge.errors import DoesNotFit
from expunge.models import blocks, clone, is_adapter
from expunge.scopes.weights import merged
from expunge.types import Subject


def shallow(subject: Subject) -> Subject:
    """The same subject on modules of its own that share every tensor: modules may be exchanged, tensors not written.

    Cost: the module tree, no weights.
    """
    model = subject.model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return replace(subject, model=copy.deepcopy(model, memo))


def settle(subject: Subject) -> Subject:
    """A full copy of the subject with an adapter folded into the weights.

    Raises: DoesNotFit for a base whose weights are packed into few bits: they cannot be changed one by one.
    """
    check_plain(subject)
    changed = clone(subject)
    return replace(changed, model=merged(changed.model)) if is_adapter(changed.model) else changed


def check_plain(subject: Subject) -> None:
    """Refuse a model whose weights are stored in a quantised form.

    Raises: DoesNotFit.
    """
    if getattr(subject.model.config, "quantization_config", None) is not None:
        raise DoesNotFit("the weights of this model are stored quantised; they cannot be changed one by one")
    if not all(parameter.is_floating_point() for parameter in subject.model.parameters()):
        raise DoesNotFit("some weights of this model are no floating-point numbers")


def check_causal(subject: Subject) -> None:
    """Refuse a model that does not go on with a text.

    Raises: DoesNotFit.
    """
    if subject.task != "causal":
        raise DoesNotFit(f"this attack is for causal models; this is a {subject.task} one")


def matrices(model: Any) -> Iterator[tuple[str, nn.Module, bool]]:
    """The linear layers inside the blocks: name, module, and whether its weight is stored as [in, out] (GPT-2).

    Embeddings and the head stand outside the blocks and are left out.
    """
    for prefix, block in blocks(model):
        for name, module in block.named_modules(prefix=prefix):
            weight = getattr(module, "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim != 2:
                continue
            transposed = type(module).__name__ == "Conv1D"
            if transposed or isinstance(module, nn.Linear):
                yield name, module, transposed


def after_block(block: nn.Module, change: Callable[[nn.Module, Tensor], Tensor], **buffers: Tensor) -> None:
    """From now on the block gives change(block, h) [B, T, D] instead of its hidden state h.

    The tensors `change` reads are buffers of the block: they are part of the model's state, so a changed model has
    another hash than the one it was made from, and a copy of it reads its own.
    """
    for name, tensor in buffers.items():
        block.register_buffer(name, tensor)

    def hook(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(module, output[0]), *output[1:])
        return change(module, output)

    block.register_forward_hook(hook)
