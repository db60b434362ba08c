"""Pruning: taking away the weights that hide something may bring it back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.parts import matrices
from expunge.attacks.quantize import apart, exchange
from expunge.attacks.shown import asked_like
from expunge.data.examples import stream_of
from expunge.data.texts import Encoded
from expunge.data.tokenise import collate
from expunge.errors import DoesNotFit, RecipeError
from expunge.measure.forward import kept_logits, token_logp
from expunge.measure.plan import evaluating
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject

By = Literal["magnitude", "wanda", "set_difference"]
Per = Literal["auto", "row", "matrix", "model"]
Found = dict[str, Tensor]  # matrix -> [out, in]
WHERE = "attacks.prune"


@attack("prune", changes="weights", says="setting {share:.2%} of the weights to zero (by {kind})")
def prune(
    subject: Subject, data: Data, run: Run, *, kind: By = "set_difference", share: float = 0.05, keep: float = 0.05,
    per: Per = "auto", on: str = "forget", utility: str = "retain", num: int = 128, seed: int = 0,
) -> Iterator[Subject]:
    """Set weights of the blocks to zero: the smallest, the least used, or those that matter for one thing alone.

    magnitude: the lowest |W|. wanda: the lowest |W_ij| ||x_j||, ||x_j|| the norm of input j over all tokens of some
    texts. set_difference: S = |W| sum over texts of |dL/dW|, L the mean loss on the answer's tokens; of every matrix
    those that are in the top `share` for `on` and not in the top `keep` for `utility`.

    Args:
        share: of the weights, in [0, 1] (q of the paper). keep: p of the paper, of set_difference alone.
        per: within what the lowest are sought: "row" (of outputs), "matrix", "model"; "auto": row for wanda, matrix
            for the others. For set_difference it is always the matrix.
        on: stream whose texts the weights are sought for. utility: stream of what the model is good for.
        num: texts of each, drawn with `seed`; of a stream that is to be forgotten at most half.
    Returns: one subject; the texts used of a stream to be forgotten are in `exposed` and are not scored. Several
        shares are several attacks in a recipe.
    Raises: RecipeError for numbers out of range; DoesNotFit for a quantised base, or a single text to forget.
    Cost: one copy of the matrices, and in float32 one number per weight. magnitude: no forward. wanda: a forward per
        text. set_difference: a forward and a backward per text.
    Source: Lucki et al. 2024 (arXiv 2409.18025), 3e, after Wei et al. 2024 (arXiv 2402.05162): share and keep in .005
        to .2, keep >= share, 512 texts; Sun et al. 2023 (Wanda, arXiv 2306.11695): share .5. Differences: the answers
        of `on` are the true ones, where for models taught to refuse they take what the model says itself; one choice
        of shares, so that none is picked by its result.
    """
    _check(kind, share, keep, per, num)
    begun = time.perf_counter()
    changed = apart(subject)
    texts = _Texts(subject, data, num, seed)
    if kind == "set_difference":
        sought = {name: top(flat, share) for name, flat in _flat(snip(changed.model, texts.of(on, "on")))}
        spared = {name: top(flat, keep) for name, flat in _flat(snip(changed.model, texts.of(utility, "utility")))}
        gone = {name: mask & ~spared[name] for name, mask in sought.items()}
    elif kind == "wanda":
        gone = lowest(wanda(changed.model, texts.of(utility, "utility")), share, "row" if per == "auto" else per)
    else:
        magnitudes = {name: weight.abs() for name, _, weight in oriented(changed.model)}
        gone = lowest(magnitudes, share, "matrix" if per == "auto" else per)
    exchange(changed.model, lambda name, weight: weight.masked_fill(gone[name].reshape(weight.shape), 0.0))
    removed = sum(int(mask.sum()) for mask in gone.values()) / sum(mask.numel() for mask in gone.values())
    cost = Cost(
        forwards=texts.read, backwards=texts.read if kind == "set_difference" else 0, tokens=texts.tokens,
        seconds=time.perf_counter() - begun,
    )
    hyper = {"kind": kind, "share": removed, "q": share} | ({"p": keep} if kind == "set_difference" else {})
    yield changed.after(Event("attack", "prune", hyper, cost, frozenset(texts.shown)))


def _check(kind: By, share: float, keep: float, per: Per, num: int) -> None:
    for name, value in (("share", share), ("keep", keep)):
        if not 0 <= value <= 1:
            raise RecipeError(f"{WHERE}.{name}", f"got {value}", "accepted: 0 to 1", "Correct the value")
    if num < 1:
        raise RecipeError(f"{WHERE}.num", f"got {num}", "accepted: 1 or more", "Correct the value")
    if kind == "set_difference" and per not in ("auto", "matrix"):
        raise RecipeError(f"{WHERE}.per", f"'{per}' with {kind}", "accepted: matrix", "Leave it out")


@dataclass
class _Texts:
    """Texts drawn from streams, and what of them was used."""

    subject: Subject
    data: Data
    num: int
    seed: int
    read: int = 0
    tokens: int = 0
    shown: set[str] = field(default_factory=set)

    def of(self, name: str, argument: str) -> list[Encoded]:
        """Up to `num` texts of a stream, in their order."""
        stream = stream_of(self.data, name, f"{WHERE}.{argument}")
        most = len(stream)
        if stream.role == "forget":
            most //= 2
            if most < 1:
                raise DoesNotFit(f"'{name}' holds a single text; one is needed to look at and one to score")
        rows = np.random.default_rng(self.seed).permutation(len(stream))[: min(self.num, most)]
        examples = [stream.examples[row] for row in sorted(rows)]
        found = asked_like(self.subject, examples)
        if not found:
            raise DoesNotFit(f"no text of '{name}' can be asked")
        self.read += len(found)
        self.tokens += sum(one.size for one in found)
        if stream.role == "forget":
            self.shown |= {example.id for example in examples}
        return found


# -- which weights ---------------------------------------------------------------------------------------------------
def oriented(model: Any) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """The matrices inside the blocks: name, module, and its weight as [out, in]."""
    for name, module, transposed in matrices(model):
        weight = module.weight
        assert isinstance(weight, Tensor)
        yield name, module, (weight.T if transposed else weight).detach()


def top(scores: Tensor, share: float) -> Tensor:
    """The largest floor(share * n) of each row, of equal ones the first: a smaller share lies inside a larger one.

    Args:
        scores: [rows, n]. share: in [0, 1].
    Returns: [rows, n] bool.
    """
    width = scores.shape[-1]
    count = int(share * width + 1e-9)  # 0.15 * 20 is just under 3
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(width - count + 1, dim=-1, keepdim=True).values
    above, level = scores > least, scores == least
    missing = count - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= missing))


def lowest(scores: Mapping[str, Tensor], share: float, per: Per) -> Found:
    """The smallest share of the scores, sought in every row, every matrix, or all of them together."""
    if per == "row":
        return {name: top(-score, share) for name, score in scores.items()}
    if per == "matrix":
        return {name: top(-flat, share) for name, flat in _flat(scores)}
    whole = torch.cat([flat[0].to("cpu") for _, flat in _flat(scores)])
    parts = top(-whole.unsqueeze(0), share)[0].split([score.numel() for score in scores.values()])
    return {name: part.to(score.device) for part, (name, score) in zip(parts, scores.items(), strict=True)}


def _flat(scores: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every matrix as one row, [1, n]."""
    return ((name, score.reshape(1, -1)) for name, score in scores.items())


# -- how much they matter --------------------------------------------------------------------------------------------
def wanda(model: Any, texts: Sequence[Encoded]) -> Found:
    """|W_ij| ||x_j||: every weight by how large it is and what comes in through it, over all tokens of the texts.

    Args:
        model: on parameters of its own. texts: run one at a time, so that no padding is counted.
    Cost: 1 forward per text.
    """
    squares = {name: weight.new_zeros(weight.shape[1], dtype=_wide(weight)) for name, _, weight in oriented(model)}

    def listen(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[name] += inputs[0].detach().to(squares[name].dtype).square().reshape(-1, len(squares[name])).sum(0)

        return hook

    handles = [module.register_forward_pre_hook(listen(name)) for name, module, _ in oriented(model)]
    try:
        with torch.no_grad(), evaluating(model):
            for one in texts:
                batch = collate([one], device=str(model.device))
                kept_logits(model, batch, batch.positions("answer"))
    finally:
        for handle in handles:
            handle.remove()
    return {name: weight.abs() * squares[name].sqrt() for name, _, weight in oriented(model)}


def snip(model: Any, texts: Sequence[Encoded]) -> Found:
    """|W| * sum over texts of |dL/dW|, L the mean negative log-likelihood of a text's counted tokens, nats.

    The gradient of each text is its own (one text at a time), made absolute before it is added, and dropped as soon as
    it is: all of them together never exist.

    Args:
        model: on parameters of its own.
    Cost: 1 forward and 1 backward per text.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    sums: dict[int, Tensor] = {}

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        sums[id(weight)] += weight.grad.abs()
        weight.grad = None

    handles = []
    for _, module, _ in matrices(model):
        weight = module.weight
        assert isinstance(weight, Tensor)
        weight.requires_grad_(True)
        sums[id(weight)] = torch.zeros_like(weight, dtype=_wide(weight))
        handles.append(weight.register_post_accumulate_grad_hook(add))
    try:
        with torch.enable_grad(), evaluating(model):
            for one in texts:
                batch = collate([one], device=str(model.device))
                keep = batch.positions("answer")
                logits, _ = kept_logits(model, batch, keep)
                (-token_logp(logits, batch, keep)[keep].mean()).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    found = {}
    for name, module, transposed in matrices(model):
        score = module.weight.detach().abs() * sums[id(module.weight)]  # type: ignore[operator]
        found[name] = score.T if transposed else score
    return found


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
