"""Attacks: generators of changed subjects. They do not measure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# What an auditor would also try and this version cannot; the report lists them as not tested.
NOT_YET = {
    "prompt-suffix search": "an optimised prompt (GCG and relatives) was not searched for",
    "prefill and role-play prompts": "no jailbreak prompt was tried",
    "sampling": "only the greedy answer was read, not many sampled ones",
    "read-out from inner layers": "no probe or logit lens was applied",
    "pruning and direction ablation": "no weights were removed or projected",
}

# Metrics that look at it without being an attack: asked for, it is not untested any more.
LOOKED_AT: Mapping[str, frozenset[str]] = MappingProxyType({
    "sampling": frozenset({"leak_at_k", "np_extraction"}),
    "read-out from inner layers": frozenset({
        "logit_lens_extraction", "lens_by_layer", "linear_probe", "unlearning_depth", "unlearning_depth_reference_free",
    }),
})
