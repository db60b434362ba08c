"""Lists that go by a name: `metrics: default`, `attacks: thorough`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

METRICS: Mapping[str, Sequence[Any]] = MappingProxyType({
    "default": (
        "probability",
        "perplexity",
        "rouge",
        "memorization_accuracy",
        "exact_memorization",
        "extraction_strength",
        "truth_ratio",
        "truth_ratio_utility",
        "forget_quality",
        "model_utility",
        "membership",
        {"use": "membership", "score": "min_k"},
        {"use": "membership", "score": "zlib"},
    ),
})

ATTACKS: Mapping[str, Sequence[Any]] = MappingProxyType({
    "default": ("quantize", "relearn", "paraphrase"),
    "thorough": (  # the cheap ones first; what does not fit a model says so
        {"use": "quantize", "bits": 8},
        {"use": "quantize", "bits": 4},
        {"use": "quantize", "kind": "nf4"},
        "paraphrase",
        "perturb_prompt",
        "jailbreak",
        "prefill",
        "few_shot",
        "multi_turn",
        "sampling",
        "beam",
        "contrastive",
        "logit_lens",
        "tuned_lens",
        {"use": "tuned_lens", "target": "original"},
        "probe",
        "noise",
        "interpolate",
        "orthogonalize",
        {"use": "prune", "kind": "magnitude"},
        {"use": "prune", "kind": "wanda"},
        {"use": "prune", "kind": "set_difference"},
        {"use": "relearn", "at": (5, 10, 20)},
        {"use": "relearn", "on": "retain"},
        {"use": "chain", "attacks": ({"use": "relearn"}, {"use": "quantize"})},
        "soft_prompt",
        "gcg",
        {"use": "dua", "generalisation": "cross query", "steps": 50, "width": 64},
    ),
    "none": (),
})
