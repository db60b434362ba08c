"""Attacks: generators of changed subjects. They do not measure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Metrics that look at the same without being an attack: where one was asked for, the attack is not "untested".
LOOKED_AT: Mapping[str, frozenset[str]] = MappingProxyType({
    "sampling": frozenset({"leak_at_k", "np_extraction"}),
    "logit_lens": frozenset({"logit_lens_extraction", "lens_by_layer"}),
    "probe": frozenset({"linear_probe"}),
})
