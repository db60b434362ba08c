"""LoRA unlearning of Llamas with random weights, in the shapes of 1 and 8 billion parameters: what it costs.

Part of `gpu_study.py`. Random weights cost what trained ones do: every number here is time, memory or a count.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.data.synthetic import synthetic
from expunge.data.synthetic_base import build_tokenizer
from expunge.registry import bind
from expunge.run import Run
from expunge.types import Data, Stream, Subject, Wrapper

if TYPE_CHECKING:
    from gpu_study import Sizes

EPOCHS = 10  # passes over the forgotten facts that a removal is reckoned with


def shaped(sizes: Sizes, device: str, rate: float, until: float) -> list[str]:
    """A table with one row per shape.

    rate: TFLOP/s of matrix products. until: no shape is begun after this time.
    """
    head = "| shape | parameters | tokens/s | peak GiB | GPU-seconds per fact | of the products' rate |"
    rows = [head, "|---" * 6 + "|"]
    for shape in sizes.shapes:
        if time.perf_counter() > until:
            rows.append(f"| {shape} | not reached in time | | | | |")
            continue
        rows.append(_row(shape, sizes, device, rate))
    return rows


def _row(shape: str, sizes: Sizes, device: str, rate: float) -> str:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    subject, data = _subject(shape, device), _data(sizes)
    number = sum(parameter.numel() for parameter in subject.model.parameters())
    method = {"use": "npo", "batch_size": sizes.shape_batch, "epochs": 1, "lr": 1e-4}
    (stage,) = bind("method", method)()
    lora = {"use": "lora", "rank": 16}
    stage = bind("stage", {"use": "forget", **stage.hyper, "steps": sizes.shape_steps, "scope": lora})
    times: list[float] = []

    def tick(what: str, done: int, total: int, note: str) -> None:
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    after = stage(subject, data, Run(device=device, progress=tick))
    cost = after.lineage[-1].cost
    per_step = float(np.median(np.diff(times))) if len(times) > 1 else float("nan")
    tokens = cost.tokens / sizes.shape_steps
    # a LoRA step: forward 2 P and the gradient of the activations 2 P for each token that is trained on, as counted
    trained = cost.backwards / max(1, cost.forwards)
    flops = tokens * number * (2 + 2 * trained)
    per_fact = per_step * EPOCHS / sizes.shape_batch
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "-"
    return (
        f"| {shape} | {number / 1e9:.2f} B | {tokens / per_step:,.0f} | {peak} | {per_fact:.3f} | "
        f"{flops / per_step / 1e12 / rate:.0%} |"
    )


def _subject(shape: str, device: str) -> Subject:
    from gpu_study import SHAPES
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, shared, inner, vocabulary = SHAPES[shape]
    tokenizer: Any = build_tokenizer(synthetic(part="forget", num_people=20), size=400)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        tie_word_embeddings=shape == "1B",
    )
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(kept)
    return Subject(model.eval(), tokenizer, Wrapper("chat"), name=shape)


def _data(sizes: Sizes) -> Data:
    """As many invented people as two batches need of each stream."""
    people = max(2, sizes.shape_batch // 2)
    parts = {role: tuple(synthetic(part=role, num_people=people)) for role in ("forget", "retain")}
    return Data({role: Stream(role, role, examples) for role, examples in parts.items()})
