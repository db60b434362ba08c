"""Models that know and do not say: what they learned stands behind a block that garbles it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import torch
from transformers import AutoModelForCausalLM

from expunge.testing import tiny_subject
from expunge.types import Subject
from support.learned import short_data, taught


@torch.no_grad()
def behind(subject: Subject, seed: int = 7, size: float = 0.5) -> Subject:
    """A Llama with one more block of large random weights on top; the blocks below are those of the subject."""
    model = copy.deepcopy(subject.model)
    made = torch.Generator().manual_seed(seed)
    block = copy.deepcopy(model.model.layers[-1])
    block.self_attn.layer_idx = len(model.model.layers)
    for parameter in block.parameters():
        parameter.copy_(size * torch.randn(parameter.shape, generator=made))
    model.model.layers.append(block)
    model.config.num_hidden_layers += 1
    return replace(subject, model=model)


@cache
def deep(*streams: str, blocks: int = 4, steps: int = 100) -> Subject:
    """A tiny Llama of more blocks that was taught streams of `short_data()`; do not change it."""
    subject = tiny_subject(seed=2)
    config = copy.deepcopy(subject.model.config)
    config.num_hidden_layers = blocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return taught(replace(subject, model=model), short_data(), streams, steps=steps)
