"""Quantisation: rounding the weights can bring back what a small change of them had hidden."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.attacks.parts import check_plain, matrices, settle
from expunge.errors import DoesNotFit, MissingExtra, RecipeError
from expunge.models import is_adapter
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject

Levels = Literal["int", "nf4"]
Backend = Literal["simulated", "torchao", "bitsandbytes"]

CAN: dict[Backend, tuple[tuple[Levels, int], ...]] = {  # what each can round to
    "simulated": (("int", 8), ("int", 4), ("nf4", 4)),
    "torchao": (("int", 8), ("int", 4)),
    "bitsandbytes": (("int", 8), ("nf4", 4)),
}
GROUP, SCALES = 64, 256  # weights that share a scale; scales that share one, where they are rounded too


# -- copies ----------------------------------------------------------------------------------------------------------
def apart(subject: Subject) -> Subject:
    """The subject on modules and parameters of its own: flags and hooks may be set, parameters exchanged.

    The numbers are shared until a parameter is exchanged, so none may be written in place. An adapter is folded into
    a full copy.

    Raises: DoesNotFit for a model whose weights are stored quantised.
    """
    check_plain(subject)
    model = subject.model
    if is_adapter(model):
        return settle(subject)
    memo: dict[int, Any] = {id(one): nn.Parameter(one.detach(), one.requires_grad) for one in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return replace(subject, model=copy.deepcopy(model, memo))


@torch.no_grad()
def exchange(model: Any, change: Callable[[str, Tensor], Tensor]) -> None:
    """Every matrix W [out, in] inside the blocks becomes change(name, W), in the type and layout it is stored in."""
    for name, module, transposed in list(matrices(model)):
        old = module.weight
        assert isinstance(old, Tensor)
        new = change(name, old.T if transposed else old)
        made = (new.T if transposed else new).to(old.dtype).contiguous()
        module.weight = nn.Parameter(made, old.requires_grad)


# -- rounding --------------------------------------------------------------------------------------------------------
def round_weights(weight: Tensor, bits: int, group: int) -> Tensor:
    """Symmetric round-to-nearest with one scale per group of inputs.

    w' = s * clamp(round(w / s), -(2^(bits-1) - 1), 2^(bits-1) - 1),  s = max|w| / (2^(bits-1) - 1) per group.

    Args:
        weight: [out, in]. bits: >= 2. group: inputs that share a scale; 0 = the whole row.
    Returns: the rounded weights in the dtype of `weight`; at most s/2 away from it.
    """
    out, width = weight.shape
    size = group if group and width % group == 0 else width
    parts = weight.float().reshape(out, width // size, size)
    top = 2 ** (bits - 1) - 1
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    rounded: Tensor = (parts / scale).round().clamp(-top, top) * scale
    return rounded.reshape(out, width).to(weight.dtype)


@cache
def nf4_levels() -> Tensor:
    """The 16 levels of NF4: quantiles of a normal distribution, 8 of them above 0 and 7 below, scaled to [-1, 1].

    Source: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), appendix E.
    """
    tail = 1 - 0.5 * (1 / 32 + 1 / 30)  # probability at the outermost level
    above, below = (torch.special.ndtri(torch.linspace(tail, 0.5, num + 1, dtype=torch.float64)[:-1]) for num in (8, 7))
    levels: Tensor = torch.cat([above, above.new_zeros(1), -below]).sort().values / above.max()
    return levels.float()


@cache
def scale_levels() -> Tensor:
    """256 levels in (-1, 1] that are dense around 0: for each e = 0..6 the middles of 2^e pieces of [0.1, 1], times
    10^(e - 6), of both signs; and 0 and 1.

    Source: Dettmers 2015 (arXiv 1511.04561), as used for the scales of QLoRA.
    """
    found = [0.0, 1.0]
    for e in range(7):
        ends = torch.linspace(0.1, 1.0, 2**e + 1, dtype=torch.float64)
        middles = (ends[:-1] + ends[1:]) / 2 * 10.0 ** (e - 6)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found), dtype=torch.float32)


def to_levels(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The nearest of some levels in [-1, 1], times the largest magnitude of each block of consecutive values.

    Returns: which level [num blocks, block] (the last block filled up with zeros), and the scales [num blocks, 1].
    """
    flat = values.reshape(-1)
    filled = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).reshape(-1, block)
    scales = filled.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    between = (levels[1:] + levels[:-1]).to(flat.device) / 2
    return torch.bucketize(filled / scales, between, out_int32=True), scales


def round_nf4(weight: Tensor, *, block: int = GROUP, double: bool = False) -> Tensor:
    """NF4: w' = s * (the nearest of 16 levels to w / s), s = max|w| of each block of consecutive weights, row by row.

    Args:
        weight: [out, in]. double: round the scales too, less their mean, to 8 bits in blocks of 256.
    Returns: the rounded weights in the dtype of `weight`.
    """
    which, scales = to_levels(weight.float(), nf4_levels(), block)
    if double:
        mean = scales.mean()
        own, over = to_levels(scales - mean, scale_levels(), SCALES)
        rest = scale_levels().to(weight.device)[own] * over
        scales = (rest.reshape(-1)[: len(scales)] + mean).unsqueeze(1)
    rounded = nf4_levels().to(weight.device)[which] * scales
    return rounded.reshape(-1)[: weight.numel()].reshape(weight.shape).to(weight.dtype)


# -- the attack ------------------------------------------------------------------------------------------------------
@attack("quantize", changes="precision", says="rounding to {bits} bits")
@torch.no_grad()
def quantize(
    subject: Subject, data: Data, run: Run, *, bits: int = 4, group: int = 0, kind: Levels = "int",
    double: bool = False, backend: Backend = "simulated",
) -> Iterator[Subject]:
    """Round the linear layers to few bits (weights only); embeddings and head stay.

    int: w' = s round(w / s), s = max|w| / (2^(bits-1) - 1) per group of inputs. nf4: w' = s * (the nearest of 16
    levels to w / s), s = max|w| per block of weights.

    Args:
        bits: 8, or 4. group: weights sharing a scale; 0 = the output row for 8 bits, 64 for 4 bits. A row that is no
            multiple of it has one scale (int); blocks of nf4 run on from row to row.
        kind: "int" are equally spaced levels, "nf4" (4 bits) those of a normal distribution.
        double: round the scales of nf4 too, to 8 bits.
        backend: "simulated" computes with the rounded weights as they are; "torchao" (int) and "bitsandbytes" (nf4;
            8 bits: LLM.int8(), whose inputs are rounded too) store and run them packed.
    Returns: one subject.
    Raises: RecipeError for a combination that a backend lacks; MissingExtra where it is not installed; DoesNotFit for
        a model that is quantised already, or a device that the backend cannot use.
    Cost: one copy of the rounded matrices; no forward.
    Source: Zhang et al. 2024 (arXiv 2410.16454), quantisation restores unlearned knowledge; Dettmers et al. 2023
        (QLoRA, arXiv 2305.14314) for nf4; Dettmers et al. 2022 (arXiv 2208.07339) for LLM.int8(). Difference: their
        GPTQ and AWQ are not here; scales are not clipped.
    """
    _check(bits, group, kind, double, backend)
    size = group or (GROUP if bits == 4 else 0)
    begun = time.perf_counter()
    changed = apart(subject)

    def rounded(weight: Tensor) -> Tensor:
        return round_nf4(weight, block=size, double=double) if kind == "nf4" else round_weights(weight, bits, size)

    if backend == "simulated":
        exchange(changed.model, lambda _, weight: rounded(weight))
    else:
        pack = partial(_torchao, bits, size) if backend == "torchao" else partial(_bitsandbytes, bits, size, double)
        _pack(changed.model, rounded, pack, backend)
    how = [kind] * (kind != "int") + ["double"] * double + [backend] * (backend != "simulated")
    hyper = {"bits": f"{bits} ({', '.join(how)})" if how else bits, "group": size}
    yield changed.after(Event("attack", "quantize", hyper, Cost(seconds=time.perf_counter() - begun)))


def _check(bits: int, group: int, kind: Levels, double: bool, backend: Backend) -> None:
    where = "attacks.quantize"
    if bits not in (4, 8):
        raise RecipeError(f"{where}.bits", f"got {bits}", "accepted: 4, 8", "Choose one")
    if (kind, bits) not in CAN[backend]:
        known = ", ".join(f"{name} with {number} bits" for name, number in CAN[backend])
        raise RecipeError(f"{where}.kind", f"{kind} with {bits} bits by {backend}", f"accepted: {known}", "Choose one")
    if double and kind != "nf4":
        raise RecipeError(f"{where}.double", f"true with kind {kind}", "accepted: with kind nf4", "Leave it out")
    if group < 0:
        raise RecipeError(f"{where}.group", f"got {group}", "accepted: 0 or more", "Correct the value")
    if group and backend == "bitsandbytes" and bits == 8:
        raise RecipeError(f"{where}.group", f"got {group}", "accepted: 0 (a scale per row)", "Leave it out")
    if backend != "simulated" and importlib.util.find_spec(backend) is None:
        raise MissingExtra(f"{where}.backend", backend, "quant")


# -- really packed ---------------------------------------------------------------------------------------------------
ASTRAY = 0.3  # share of a layer's output by which a packed one may differ from the simulated one


def _pack(model: Any, rounded: Callable[[Tensor], Tensor], pack: Callable[[nn.Linear], nn.Module], name: str) -> None:
    """Exchange the matrices for packed layers; one of every shape is tried out against the simulation.

    Raises: DoesNotFit where the library lacks what it needs on this device, or unpacks something else.
    """
    tried = set()
    try:
        for place, module, transposed in list(matrices(model)):
            linear = _linear(module, transposed)
            weight, shape = linear.weight, linear.weight.shape
            packed = pack(linear)
            model.set_submodule(place, packed)
            if shape not in tried and not _agrees(packed, weight, rounded(weight)):
                raise RuntimeError(f"a layer of {shape[1]} inputs and {shape[0]} outputs computes something else")
            tried.add(shape)
    except (ImportError, RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        told = (str(error).strip() or type(error).__name__).split("\n", 1)[0][:200]
        raise DoesNotFit(f"{name} cannot do this on {model.device.type}: {told}") from error
    model.config.quantization_config = {"quant_method": name}


def _agrees(packed: Any, weight: Tensor, rounded: Tensor) -> bool:
    random = torch.randn(1, 8, weight.shape[1], generator=torch.Generator().manual_seed(0))
    given = random.to(weight.device, weight.dtype)
    bias = 0.0 if packed.bias is None else packed.bias
    wanted = given.float() @ rounded.float().T
    return bool((packed(given) - bias - wanted).norm() <= ASTRAY * wanted.norm())


def _linear(module: Any, transposed: bool) -> nn.Linear:
    """The same layer as a Linear of its own."""
    weight = module.weight.detach()
    out, width = reversed(weight.shape) if transposed else weight.shape
    made = nn.Linear(width, out, bias=module.bias is not None, device="meta")
    made.weight = nn.Parameter((weight.T if transposed else weight).contiguous(), False)
    made.bias = module.bias
    return made.train(module.training)


def _torchao(bits: int, group: int, linear: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_

    if bits == 8 and not group:
        config = Int8WeightOnlyConfig()
    else:
        grain = PerGroup(group) if group and linear.in_features % group == 0 else PerAxis(0)
        config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=grain)
    holder = nn.ModuleList([linear])  # what it exchanges are the modules inside the one it is given
    quantize_(holder, config, filter_fn=lambda module, _name: module is linear)
    return holder[0]


def _bitsandbytes(bits: int, group: int, double: bool, linear: nn.Linear) -> nn.Module:
    import bitsandbytes

    weight, sizes, bias = linear.weight, (linear.in_features, linear.out_features), linear.bias is not None
    if bits == 8:
        made = bitsandbytes.nn.Linear8bitLt(*sizes, bias, has_fp16_weights=False, threshold=6.0)
        made.weight = bitsandbytes.nn.Int8Params(weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        made = bitsandbytes.nn.Linear4bit(*sizes, bias, compute_dtype=weight.dtype, quant_type="nf4")
        made.weight = bitsandbytes.nn.Params4bit(
            weight.data.cpu(), requires_grad=False, quant_type="nf4", blocksize=group, compress_statistics=double,
            module=made,
        )
    made.bias = linear.bias
    packed: nn.Module = made.train(linear.training).to(weight.device)  # packed when it is moved
    return packed
