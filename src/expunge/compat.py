"""The conventions of other tools: which options of our metrics give the numbers they print.

`expunge bench tofu --set tofu.compat=openunlearning` measures with these. docs/openunlearning.md says what differs
and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Compat = Literal["none", "openunlearning"]
Spec = Mapping[str, Any]

EPSILON = 1e-10  # added to what it divides by
TOKENS = "prompt#max_new_tokens=200"
_ROUGE: Spec = {"use": "rouge", "asked": TOKENS}
_AGAINST: Spec = {"use": "probability", "against_perturbed": True, "epsilon": EPSILON}
_MIN_K: Spec = {"use": "membership", "share": 0.4, "ending": False}
_KEPT: Spec = {"use": "truth_ratio_utility", "epsilon": EPSILON}


def _answers(which: str) -> Spec:
    return {"use": "probability", "answers": which}


# Its name of a metric: the stream and the metric that say the same here. The end of sequence is a token of the answer
# in probabilities and losses, and none in what looks at single tokens.
TOFU: Mapping[str, tuple[str, Spec]] = MappingProxyType({
    "forget_Q_A_Prob": ("forget", {"use": "probability"}),
    "forget_Q_A_PARA_Prob": ("forget", _answers("paraphrased_answer")),
    "forget_Q_A_PERT_Prob": ("forget", _answers("perturbed")),
    "forget_Q_A_ROUGE": ("forget", _ROUGE),
    "forget_Truth_Ratio": ("forget", {"use": "truth_ratio", "epsilon": EPSILON}),
    "forget_quality": ("forget", {"use": "forget_quality", "epsilon": EPSILON}),
    "retain_Q_A_Prob": ("retain", {"use": "probability"}),
    "retain_Q_A_ROUGE": ("retain", _ROUGE),
    "retain_Truth_Ratio": ("retain", _KEPT),
    "ra_Q_A_Prob_normalised": ("real_authors", _AGAINST),
    "ra_Q_A_ROUGE": ("real_authors", _ROUGE),
    "ra_Truth_Ratio": ("real_authors", _KEPT),
    "wf_Q_A_Prob_normalised": ("world_facts", _AGAINST),
    "wf_Q_A_ROUGE": ("world_facts", _ROUGE),
    "wf_Truth_Ratio": ("world_facts", _KEPT),
    "model_utility": ("retain", {"use": "model_utility", "epsilon": EPSILON, "asked": TOKENS}),
    "extraction_strength": ("forget", {"use": "extraction_strength", "ending": False, "floor": True}),
    "exact_memorization": ("forget", {"use": "memorization_accuracy", "ending": False}),
    "mia_loss": ("forget", {"use": "membership"}),
    "mia_zlib": ("forget", {"use": "membership", "score": "zlib"}),
    "mia_min_k": ("forget", {**_MIN_K, "score": "min_k"}),
    "mia_min_k_plus_plus": ("forget", {**_MIN_K, "score": "min_k_plus_plus", "least_sigma": 1e-3}),
    "mia_reference": ("forget", {"use": "membership_reference"}),
    "privleak": ("forget", {"use": "privleak", "ending": False}),
})
MUSE: Mapping[str, tuple[str, Spec]] = MappingProxyType({
    "forget_verbmem_ROUGE": ("verbmem", {"use": "verbmem", "stem": True}),
    "forget_knowmem_ROUGE": ("knowmem_forget", {"use": "knowmem", "stem": True}),
    "retain_knowmem_ROUGE": ("knowmem_retain", {"use": "knowmem", "stem": True}),
    "extraction_strength": ("verbmem", TOFU["extraction_strength"][1]),
    "exact_memorization": ("verbmem", TOFU["exact_memorization"][1]),
    **{name: TOFU[name] for name in TOFU if name.startswith("mia_") or name == "privleak"},
})
ASSUMED = 0.5  # the AUC of a retrained model that was not given


def metrics_of(table: Mapping[str, tuple[str, Spec]], *, oracle: bool) -> list[dict[str, Any]]:
    """The metrics of a table, each once.

    Args:
        oracle: whether a model that never saw the data is there; without one PrivLeak takes its AUC for 0.5.
    """
    found: list[dict[str, Any]] = []
    for name, (_, spec) in table.items():
        made = dict(spec) | ({"reference": ASSUMED} if name == "privleak" and not oracle else {})
        if made not in found:
            found.append(made)
    return found
