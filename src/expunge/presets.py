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
    "none": (),
})
