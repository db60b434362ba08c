"""Directions in a model's states: what tells two models, or two kinds of texts, apart; and taking one away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from expunge.attacks.parts import after_block
from expunge.data.tokenise import Encoded, by_length, collate
from expunge.errors import DoesNotFit
from expunge.measure.forward import run_model
from expunge.measure.plan import evaluating
from expunge.models import blocks
from expunge.types import Cost, Subject

BATCH_TOKENS = 4096
SAMPLE = 1000  # vectors among which outliers are looked for
OUTLYING = 3.0  # standard deviations
States = Mapping[int, Tensor]  # block -> its output at the places that count [N, D]


def original_of(subject: Subject) -> Subject:
    """The model before the removal.

    Raises: DoesNotFit when there is none, or when it does not speak in the same tokens.
    """
    original = subject.helpers.get("original")
    if original is None:
        raise DoesNotFit("the model before the removal was not given")
    rows = [one.model.get_input_embeddings().weight.shape[0] for one in (original, subject)]
    if rows[0] != rows[1]:
        raise DoesNotFit(f"the model before the removal knows {rows[0]} tokens, this one {rows[1]}")
    return original


def free_name(module: nn.Module, name: str) -> str:
    """A name no attribute of the module has yet: attacks may follow each other on one block."""
    number = 0
    while hasattr(module, f"{name}_{number}"):
        number += 1
    return f"{name}_{number}"


# -- finding ---------------------------------------------------------------------------------------------------
def beginning(texts: Sequence[Encoded]) -> int:
    """With how many tokens all texts begin alike; at least one, where attention goes that has nowhere else to go."""
    num = 0
    if len(texts) > 1:
        shortest = min(len(one) for one in texts)
        while num < shortest and len({int(one.tokens[num]) for one in texts}) == 1:
            num += 1
    return max(num, 1)


def read(
    model: Any, texts: Sequence[Encoded], skip: int, layers: Sequence[int], see: Callable[[Tensor, States], None]
) -> Cost:
    """Show `see` the tokens and what some blocks put out there, a batch at a time.

    skip: tokens at the beginning of every text that do not count; a text's last one always does.
    """
    with torch.no_grad(), evaluating(model):
        for group in by_length([len(one) for one in texts], BATCH_TOKENS):
            batch = collate([texts[i] for i in group], device=str(model.device))
            length = batch.attention_mask.sum(-1, keepdim=True)
            place = torch.arange(batch.input_ids.shape[1], device=length.device)
            counted = (place < length) & (place >= (length - 1).clamp(max=skip))  # [B, T]
            ran = run_model(model, batch, batch.positions("text"), layers=layers, stop=True)
            see(batch.input_ids[counted], {layer: ran.hidden[layer][counted] for layer in layers})
    return Cost(forwards=len(texts), tokens=sum(len(one) for one in texts))


def apartness(states: Tensor) -> Tensor:
    """How far each vector [N, D] stands from the others, mean L1 distance, in deviations from the mean of all, [N]."""
    if len(states) < 2:
        return states.new_zeros(len(states))
    far = torch.cdist(states, states, p=1).sum(-1) / (len(states) - 1)
    deviations: Tensor = (far - far.mean()) / far.std().clamp(min=1e-12)
    return deviations


def strange_tokens(
    model: Any, texts: Sequence[Encoded], skip: int, layers: Sequence[int]
) -> tuple[dict[int, Tensor], Cost]:
    """Per block the tokens most of whose states stand apart from all others (line breaks, the start of a text)."""
    needed, seen = 0, 0
    while needed < len(texts) and seen < SAMPLE:
        seen += max(1, len(texts[needed]) - skip)
        needed += 1
    tokens: list[Tensor] = []
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(ids: Tensor, found: States) -> None:
        tokens.append(ids)
        for layer in layers:
            states[layer].append(found[layer].float())

    cost = read(model, texts[:needed], skip, layers, keep)
    kinds, which = torch.cat(tokens)[:SAMPLE].unique(return_inverse=True)
    strange = {}
    for layer in layers:
        apart = apartness(torch.cat(states[layer])[:SAMPLE]) > OUTLYING
        votes = torch.zeros(len(kinds), device=kinds.device).index_add(0, which, 2.0 * apart - 1)
        strange[layer] = kinds[votes > 0]
    return strange, cost


@dataclass
class Moments:
    """Running sums over the states of every block, in float64, without those of tokens that are left out.

    pairs: whether the products of all pairs of entries are summed too, D x D numbers a block.
    """

    left_out: Mapping[int, Tensor] = field(default_factory=dict)
    pairs: bool = False
    num: dict[int, int] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)  # [D]
    squares: dict[int, Tensor] = field(default_factory=dict)  # [], of the norms
    products: dict[int, Tensor] = field(default_factory=dict)  # [D, D]

    def __call__(self, tokens: Tensor, states: States) -> None:
        for layer, found in states.items():
            here = found.double()  # [N, D]
            if layer in self.left_out:
                here = here[~torch.isin(tokens, self.left_out[layer])]
            self.num[layer] = self.num.get(layer, 0) + len(here)
            made = [(self.sums, here.sum(0)), (self.squares, here.pow(2).sum())]
            made += [(self.products, here.T @ here)] if self.pairs else []
            for totals, value in made:
                totals[layer] = totals[layer] + value if layer in totals else value

    def mean(self, layer: int) -> Tensor:
        """[D]."""
        return self.sums[layer] / max(1, self.num[layer])

    def length(self, layer: int) -> float:
        """Root mean square of the states' norms."""
        return float((self.squares[layer] / max(1, self.num[layer])).sqrt())


def main_axis(one: Moments, other: Moments, layer: int) -> Tensor:
    """The direction in which the states of both vary most, every entry scaled to variance 1 before, [D]."""
    num = one.num[layer] + other.num[layer]
    mean = (one.sums[layer] + other.sums[layer]) / num
    covariance = (one.products[layer] + other.products[layer]) / num - mean.outer(mean)
    scale = covariance.diagonal().clamp(min=1e-12).sqrt()
    axis: Tensor = torch.linalg.eigh(covariance / scale.outer(scale)).eigenvectors[:, -1]
    return axis * scale


# -- taking away -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Without:
    """What a block's states become: h - (h . u) u, with the unit vector u that the block holds under a name."""

    name: str

    def __call__(self, block: nn.Module, states: Tensor) -> Tensor:
        direction: Tensor = getattr(block, self.name)
        wide = states.to(direction.dtype)
        return (wide - (wide @ direction).unsqueeze(-1) * direction).to(states.dtype)


def ablate(block: nn.Module, direction: Tensor) -> None:
    """From now on the block's output has nothing along a unit vector [D]."""
    parameter = next(block.parameters())
    kept = direction.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
    name = free_name(block, "direction")
    after_block(block, Without(name), **{name: kept})


@torch.no_grad()
def project_writes(model: Any, direction: Tensor) -> None:
    """Take a unit vector [D] out of every matrix that writes into the stream: embeddings, attention, MLP.

    W <- (I - u u^T) W, biases likewise. Parameters are replaced, not written.

    Raises: DoesNotFit where what a block adds is not the plain sum of two matrices' outputs (a norm or a scale after
        them, experts).
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for module, outputs_first in list(_writers(model)):
        for name in ("weight", "bias"):
            old = getattr(module, name, None)
            if old is None:
                continue
            u, wide = direction.to(old.device), old.double()
            along = u.unsqueeze(-1) * (u @ wide) if outputs_first and wide.ndim == 2 else (wide @ u).unsqueeze(-1) * u
            setattr(module, name, nn.Parameter((wide - along).to(old.dtype), requires_grad=old.requires_grad))
    if tied:  # the head reads with what the embedding was
        model.config.get_text_config(decoder=True).tie_word_embeddings = model.config.tie_word_embeddings = False


def _writers(model: Any) -> Iterator[tuple[nn.Module, bool]]:
    """The modules whose outputs add up to the stream, and whether their weight is [out, in]."""
    found = [block for _, block in blocks(model)]
    inner = {module for block in found for module in block.modules()}
    linear = {module for module in inner if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"}
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module not in inner]
    made = _said(model, [*found, *linear, *tables])
    after = [made[block] for block in found]
    tables = [table for table in tables if table in made and made[table].shape == after[0].shape]
    before = sum(made[table] for table in tables)
    rounding = torch.finfo(next(model.parameters()).dtype).eps
    yield from ((table, False) for table in tables)
    for block, stream in zip(found, after, strict=True):
        added = stream - before
        mine = [m for m in block.modules() if m in linear and m in made and made[m].shape == added.shape]
        gaps = {pair: float((added - made[pair[0]] - made[pair[1]]).norm()) for pair in combinations(mine, 2)}
        pair = min(gaps, key=lambda one: gaps[one], default=None)
        if pair is None or gaps[pair] > 1e-3 * float(added.norm()) + 8 * rounding * float(stream.norm()):
            raise DoesNotFit("what this model's blocks write is no plain sum of two matrices: use the form 'hooks'")
        yield from ((module, isinstance(module, nn.Linear)) for module in pair)
        before = stream


def _said(model: Any, modules: Sequence[nn.Module]) -> dict[nn.Module, Tensor]:
    """What modules put out while the model reads four tokens, [4, D]."""
    made: dict[nn.Module, Tensor] = {}

    def listen(module: nn.Module, _: Any, output: Any) -> None:
        said = output[0] if isinstance(output, tuple) else output
        made[module] = said.double().reshape(-1, said.shape[-1])  # some families put a batch into one row

    handles = [module.register_forward_hook(listen) for module in modules]
    try:
        with evaluating(model):
            model(input_ids=torch.arange(4, device=model.device).unsqueeze(0), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return made

