"""Preference optimisation towards refusals."""

from __future__ import annotations

from typing import Any

from expunge.methods.common import Retain, retain_terms, train_on
from expunge.registry import method, term
from expunge.relabel import relabel
from expunge.types import Bound


@method(
    "idk_dpo", paper="Rafailov et al. 2023, arXiv 2305.18290, as in TOFU, arXiv 2401.06121",
    differs="One refusal per row, fixed for the run (so that its reference is stored); scaled by 2/beta.",
)
def idk_dpo(
    *, beta: float = 0.1, refusals: str = "refusals", retain: Retain = "nll", alpha: float = 1.0, gamma: float = 1.0,
    lr: float = 1e-5, epochs: float = 10, batch_size: int = 32, scope: Any = "all", optimizer: Any = None,
) -> list[Bound]:
    """DPO that prefers a refusal to the forget answer.

    L = gamma * -(2/beta) mean log sigmoid(beta [dlogp(refusal) - dlogp(forget)]) [+ alpha * retain term].
    """
    terms = [term("dpo", on=("refusals", "forget"), weight=gamma, beta=beta), *retain_terms(retain, alpha)]
    return [
        relabel(source=refusals, name="refusals"),
        train_on(terms, epochs=epochs, optimizer=optimizer, scope=scope, lr=lr, batch_size=batch_size),
    ]
