"""Keys and values that many sequences share: kept once, looked at through expanded views."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from expunge.models import blocks

Past = Sequence[tuple[Tensor, Tensor]]  # keys and values [1, H, T, D] of each layer


def keeps_keys(model: Any) -> bool:
    """Whether the architecture can be given keys and values."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside an adapter
    return "past_key_values" in inspect.signature(base.forward).parameters


def kept(out: Any, length: int) -> Past | None:
    """The keys and values of a forward over one sequence; None where they are not one per token in every layer.

    So it is with recurrent layers, with layers that look through a window shorter than the text, and with layers that
    borrow the keys of others.
    """
    layers = getattr(getattr(out, "past_key_values", None), "layers", None)
    if not layers:
        return None
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    whole = [
        (keys.detach(), values.detach()) for keys, values in pairs
        if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.ndim == 4 and keys.shape[-2] == length
    ]
    return whole if len(whole) == len(pairs) else None


def shortened(past: Past, length: int) -> Past:
    """The first `length` tokens of it, as views."""
    return [(keys[..., :length, :], values[..., :length, :]) for keys, values in past]


def cache_of(model: Any, past: Past, rows: int) -> Any:
    """A cache of its own for one forward (a forward appends to the cache it is given), each layer seen `rows` times.

    Nothing is copied: `DynamicCache.update` would write all rows out before the forward does so again.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in zip(cache.layers, past, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = keys.shape[-2]
    return cache


@contextmanager
def listening(model: Any, layers: Sequence[int], last: int) -> Iterator[dict[int, Tensor]]:
    """While active, the outputs of some blocks at the last places of the sequence are written down, [N, last, D]."""
    heard: dict[int, Tensor] = {}

    def listen(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            heard[layer] = (output[0] if isinstance(output, tuple) else output)[:, -last:]

        return hook

    found = blocks(model) if layers else []
    handles = [found[layer][1].register_forward_hook(listen(layer)) for layer in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
