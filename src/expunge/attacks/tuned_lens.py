"""Tuned lens: an affine map per block, learned on other texts, before the answer is read there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.attacks.directions import free_name, original_of
from expunge.attacks.logit_lens import Inside, Layers, ending, readable
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.forget import forget
from expunge.loop import make_feed
from expunge.models import blocks
from expunge.registry import attack, term
from expunge.run import Run
from expunge.types import Bound, Cost, Data, Event, Movable, Stream, Subject, Term

DEPTHS = 1  # blocks that are read unless told
WHOLE = "whole"  # the helper that a translator's targets come from


@attack(
    "tuned_lens", changes="reading", says="read behind inner block {layer}, after {steps} steps of learning how",
    helpers=("original",),
)
def tuned_lens(
    subject: Subject, data: Data, run: Run, *, layers: Layers = None, steps: int = 100, lr: float = 0.1,
    batch_size: int = 16, on: str | None = None, target: Literal["own", "original"] = "own",
) -> Iterator[Subject]:
    """Read the answer at inner blocks through a translator that learned, on other texts, what the model goes on to say.

    p_l(. | x_<t) = softmax(head(norm(h + A h / D + s b))), h = h_l,t; A = 0, b = 0 at the start (the logit lens), then
    trained with KL(p_target || p_l) on texts that are not to be forgotten. Nothing else moves. D is the width of the
    states and s the usual size of their entries.

    Args:
        layers: as for `logit_lens`; None: the last block but one.
        steps, lr, batch_size: of the training of A and b, AdamW with a rate that falls to 0. lr: about the share of
            its size by which a step can move an entry of a state.
        on: stream of the texts; None: a retain stream, else an anchor.
        target: whose distribution it learns to say: the model's "own", or that of the "original" before the removal,
            which the removal cannot have spoilt.
    Returns: one subject per block. A and b are part of its state.
    Raises: RecipeError for a forget stream: a lens that was trained on it would be a probe; DoesNotFit as for
        `logit_lens`, where there is no text to learn on, and where the original is asked for and not there.
    Cost: per block `steps` forwards of the blocks up to it, and the head's backward; one forward of the whole model per
        text.
    Source: Belrose et al. 2023 (arXiv 2303.08112). Differences: AdamW; trained on the attacked model, on its retain
        texts, where the audits we know train it on the model before the removal.
    """
    inside, chosen = readable(subject, layers, "attacks.tuned_lens.layers", DEPTHS)
    whole = inside.subject if target == "own" else original_of(subject)
    stream = _neutral(data, on)
    training = Training(steps, lr, batch_size)
    for index, layer in enumerate(chosen):
        made, cost = translated(
            inside, layer, Data({stream.name: stream}), [term("kl", on=stream.name, reference=WHOLE)], training,
            run.at(index), whole,
        )
        told = {"layer": layer, "steps": steps, "lr": lr, "on": stream.name, "target": target}
        yield made.after(Event("attack", "tuned_lens", told, cost))


def _neutral(data: Data, on: str | None) -> Stream:
    """A stream that is not to be forgotten."""
    if on is not None:
        stream = stream_of(data, on, "attacks.tuned_lens.on")
        if stream.role == "forget":
            told = f"the stream '{on}' is to be forgotten"
            raise RecipeError("attacks.tuned_lens.on", told, "one of another role", "Use the attack probe for that")
        return stream
    found = [*data.of_role("retain"), *data.of_role("anchor")]
    if not found:
        raise DoesNotFit("there is no text that is not to be forgotten: no stream of the role retain or anchor")
    return found[0]


@dataclass(frozen=True)
class Training:
    """How a translator is trained."""

    steps: int
    lr: float
    batch_size: int


class Translator(nn.Module):
    """h + A h / D + s b, in float32 or better, whatever the model's type. D is the width and s the usual size of a
    state's entries, so that a rate means the same in every model."""

    size: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        width, dtype = like.shape[-1], torch.promote_types(like.dtype, torch.float32)
        self.matrix = nn.Parameter(torch.zeros(width, width, dtype=dtype, device=like.device))
        self.offset = nn.Parameter(torch.zeros(width, dtype=dtype, device=like.device))
        self.register_buffer("size", like.to(dtype).norm(dim=-1).median() / width**0.5)

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(self.matrix.dtype)
        moved: Tensor = wide + wide @ self.matrix.T / states.shape[-1] + self.size * self.offset
        return moved.to(states.dtype)


def translated(
    inside: Inside, layer: int, data: Data, terms: Sequence[Term], training: Training, run: Run,
    whole: Subject | None = None,
) -> tuple[Subject, Cost]:
    """The subject that is read at a block through a translator, trained on some terms; and what that took.

    whole: what terms find under the helper name WHOLE.
    """
    made = ending(inside, layer)
    _own_parameters(made.model)
    attach(blocks(made.model)[-1][1], Translator(inside.states[layer]))
    stage = forget(
        terms=list(terms), scope=Bound("scope", "translator", _what_learns), lr=training.lr, steps=training.steps,
        batch_size=training.batch_size, optimizer={"use": "adamw", "weight_decay": 0.0},
    )
    helped = made if whole is None else replace(made, helpers={WHOLE: whole})
    trained: Subject = stage(helped, data, run)
    trained.model.requires_grad_(False)
    cost = replace(trained.lineage[-1].cost, seconds=0.0)
    if whole is not None:  # its forwards are counted already
        cost += Cost(tokens=sum(_tokens_drawn(whole, data, name, training, run.seed) for name in data))
    return made, cost


def _tokens_drawn(subject: Subject, data: Data, name: str, training: Training, seed: int) -> int:
    """Tokens of the distinct texts that a training draws from a stream."""
    feed = make_feed(subject, data, name)
    rows = {row for step in range(training.steps) for row in feed.rows(training.batch_size, seed, step)}
    return sum(len(feed.encoded[row]) for row in rows)


def attach(block: nn.Module, translator: Translator) -> None:
    """From now on the block itself puts out what a translator makes of its states.

    Not by a hook: whoever runs the model from this block's output on would have it translated again.
    """
    name = free_name(block, "translator")
    block.add_module(name, translator)
    block.forward = _Through(block, name, block.forward)


@dataclass(frozen=True, eq=False)
class _Through:
    """A block's forward, then its translator of that name. A copy of the block has a copy of this, about itself."""

    block: nn.Module
    name: str
    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        translator = getattr(self.block, self.name)
        return (translator(output[0]), *output[1:]) if isinstance(output, tuple) else translator(output)


def _own_parameters(model: Any) -> None:
    """Give every module frozen parameters of its own over the same memory.

    What a training says of them (frozen, gradients) then does not reach the model they are shared with.
    """
    own: dict[int, nn.Parameter] = {}
    for module in model.modules():
        held: Mapping[str, nn.Parameter | None] = module._parameters
        for name, parameter in list(held.items()):
            if parameter is not None and parameter.is_floating_point():
                twin = own.setdefault(id(parameter), nn.Parameter(parameter.detach(), requires_grad=False))
                module._parameters[name] = twin


def _what_learns(model: Any) -> Movable:
    """The scope of a translator: all that is not frozen."""
    return Movable({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
