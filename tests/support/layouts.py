"""The two layouts a matrix is stored in: [out, in], and GPT-2's [in, out]."""

from __future__ import annotations

import torch
from torch import nn

from expunge.attacks.parts import matrices
from expunge.models import clone
from expunge.types import Subject


def in_linears(subject: Subject) -> Subject:
    """The same model with every transposed layer as a Linear of the same name."""
    changed = clone(subject)
    for name, module, transposed in list(matrices(changed.model)):
        if transposed:
            made = nn.Linear(*module.weight.shape)  # type: ignore[arg-type]
            made.weight, made.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias  # type: ignore
            changed.model.set_submodule(name, made)
    return changed


def oriented(subject: Subject) -> dict[str, torch.Tensor]:
    """The matrices inside the blocks by name, [out, in]."""
    return {
        name: module.weight.detach().T if transposed else module.weight.detach()  # type: ignore[operator]
        for name, module, transposed in matrices(subject.model)
    }
