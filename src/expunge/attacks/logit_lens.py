"""Logit lens: the answer is read at an inner block, so that every metric says what the model knows there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.attacks.parts import check_causal, settle, shallow
from expunge.errors import DoesNotFit, ModelError, RecipeError
from expunge.measure.hidden import Anatomy, anatomy, listening, read_out
from expunge.measure.plan import evaluating
from expunge.measure.tables import NotMeasured
from expunge.models import blocks, is_adapter
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject

Layers = list[int] | Literal["all"] | None
DEPTHS = 3  # blocks the logit lens reads unless told


@attack("logit_lens", changes="reading", says="read behind inner block {layer}")
def logit_lens(subject: Subject, data: Data, run: Run, *, layers: Layers = None) -> Iterator[Subject]:
    """Read the answer at inner blocks, through the model's own final norm and output head.

    p_l(. | x_<t) = softmax(head(norm(h_l,t))): the model that ends after block l. It is a whole model: probabilities,
    exact matches, generations and membership are all measured on it.

    Args:
        layers: blocks to read, from 0; negative ones count from the end, -1 is the model itself. "all": every block
            but the last. None: three of them, evenly spaced, the last but one among them.
    Returns: one subject per block, the first block first.
    Raises: RecipeError for a block that does not exist; DoesNotFit for a model that is not causal, has a single
        block, or whose logits are not made of its last block's output alone.
    Cost: the measurement alone, which is cheaper than the model's own: blocks above the one that is read do not run.
    Source: Łucki et al. 2024 (arXiv 2409.18025), 3a: multiple-choice accuracy read at attention, MLP, their sum and
        the block. Here blocks, under every metric; the metric `lens_by_layer` reads the other three places. No layer
        is chosen on the questions it is scored on: every one is a condition of its own.
    """
    inside, chosen = readable(subject, layers, "attacks.logit_lens.layers", DEPTHS)
    asked = sum(len(stream) for stream in data.of_role("forget"))
    for layer in chosen:
        yield ending(inside, layer).after(Event("attack", "logit_lens", {"layer": layer}, Cost(queries=asked)))


@dataclass(frozen=True, eq=False)
class Inside:
    """A model that can be read at its blocks: the subject with an adapter folded in, and what it says there.

    states: of four tokens after every block, [4, D].
    """

    subject: Subject
    anatomy: Anatomy
    states: tuple[Tensor, ...]


def readable(subject: Subject, layers: Layers, where: str, most: int) -> tuple[Inside, list[int]]:
    """The subject's inside, and the numbers of the blocks to be read.

    most: how many where the user names none.
    Raises: RecipeError, DoesNotFit.
    """
    check_causal(subject)
    whole = settle(subject) if is_adapter(subject.model) else subject
    device = str(whole.model.device)
    try:
        inner = anatomy(whole.model, device)
    except (NotMeasured, ModelError) as reason:
        raise DoesNotFit(str(reason)) from reason
    chosen = pick(layers, len(inner.blocks), where, most)
    ids = _four(device)
    every = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), evaluating(whole.model), listening(inner, ["block"], every) as heard:
        whole.model(input_ids=ids, use_cache=False)
    return Inside(whole, inner, tuple(heard["block", layer] for layer in range(len(inner.blocks)))), chosen


def pick(layers: Layers, num: int, where: str, most: int) -> list[int]:
    """Numbers of blocks, from 0: those named, all but the last, or at most `most` of these, evenly spaced."""
    if layers is None or layers == "all":
        if num < 2:
            raise DoesNotFit("the model has a single block: there is no inner one to read")
        some = min(most, num - 1) if layers is None else num - 1
        return [round((k + 1) * (num - 1) / some) - 1 for k in range(some)]
    for layer in layers:
        if not -num <= layer < num:
            raise RecipeError(where, f"block {layer}", f"this model has blocks 0..{num - 1}", "Correct the number")
    if not layers:
        raise RecipeError(where, "an empty list", f"blocks 0..{num - 1}", "Name one, or leave it out")
    return list(dict.fromkeys(layer % num for layer in layers))


@torch.no_grad()
def ending(inside: Inside, layer: int) -> Subject:
    """The subject whose model ends after a block; it shares every tensor with the whole one.

    Raises: DoesNotFit where the shorter model computes something else than the lens says.
    """
    made = shallow(inside.subject)
    model = made.model
    found = blocks(model)
    model.set_submodule(found[0][0].rpartition(".")[0], nn.ModuleList(block for _, block in found[: layer + 1]))
    _shorten(model.config.get_text_config(decoder=True), len(found), layer + 1)
    with evaluating(inside.subject.model), evaluating(model):
        expected = read_out(inside.anatomy, inside.states[layer])
        logits = model(input_ids=_four(expected.device), use_cache=False).logits[0]
    allowed = 1e-3 if logits.dtype.itemsize >= 4 else 5e-2
    same = (logits - expected).float().norm() <= allowed * expected.float().norm()
    if not same or [block for _, block in blocks(model)] != [block for _, block in found[: layer + 1]]:
        raise DoesNotFit(f"a {type(model).__name__} does not work with its first {layer + 1} blocks alone")
    return made


def _four(device: Any) -> Tensor:
    return torch.arange(4, device=device).unsqueeze(0)


def _shorten(config: Any, num: int, kept: int) -> None:
    """Tell the settings that there are fewer blocks: caches of keys and values are built from them."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == num:  # one kind of attention for every block
            setattr(config, name, value[:kept])
    config.num_hidden_layers = kept
