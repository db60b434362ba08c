"""Direction ablation: what a removal wrote into the states of forget texts is taken out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expunge.attacks.directions import (
    Moments,
    ablate,
    beginning,
    main_axis,
    original_of,
    project_writes,
    read,
    strange_tokens,
)
from expunge.attacks.logit_lens import Layers, pick
from expunge.attacks.parts import check_causal, check_plain, settle, shallow
from expunge.data.examples import stream_of
from expunge.data.texts import Encoded, asked_of, texts_of
from expunge.data.tokenise import encode
from expunge.errors import DoesNotFit, ModelError
from expunge.models import blocks, context_length, is_adapter
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Stream, Subject

Source = Literal["original", "retain", "anchor", "pca", "random"]
MOST_TEXTS = 1000
SAME = 1e-5  # of the states' length: a difference below it is rounding
Found = dict[int, tuple[Tensor, float]]  # block -> unit vector [D], float64, and how long it was beside the states


@attack(
    "orthogonalize", changes="weights", says="a direction per block taken out of its states", helpers=("original",),
    judged="oracle",
)
def orthogonalize(
    subject: Subject, data: Data, run: Run, *, layers: Layers = None, source: Source = "original",
    form: Literal["hooks", "weights"] = "hooks", on: str = "forget", answers: bool = False, seed: int = 0,
) -> Iterator[Subject]:
    """Take the direction in which the removal moved the states of forget texts out of the states, block by block.

    v_l = mean h_l(this model) - mean h_l(the original) over tokens of forget prompts, u_l = v_l / ||v_l||;
    from then on h_l <- h_l - (h_l . u_l) u_l at every place, in generations too.

    Args:
        layers: blocks that lose their direction, from 0; negative ones count from the end. None, "all": all.
        source: "original": as above. "retain", "anchor": minus the mean of this model on as many texts of that role
            instead; no other model is needed. "pca": the direction in which the states of both models vary most, every
            entry scaled to variance 1 before. "random": the control, by `seed`.
        form: "hooks": as above. "weights": one direction, the longest beside its block's states, is taken out of every
            matrix that writes into the stream, so nothing has to run beside the model.
        on: the stream that was to be forgotten. answers: read the answers too, not the prompts alone; texts without a
            prompt are always read. Answers that are to be scored: those of half of the examples, drawn with `seed`.
    Returns: one subject; the examples whose answers were read of a stream to be forgotten are in `exposed` and are not
        scored.
    Raises: DoesNotFit without the original where it is needed; where the two models do not differ; for models that are
        not causal; with "weights" for quantised ones, and for those that write through a norm or a scale.
    Cost: one forward of each model per text, at most 1,000 texts, and up to 1,000 tokens twice; "pca" keeps D x D
        numbers a block.
    Judged: beside an oracle only. Its direction comes from a model that knows the answers, or from forget texts.
    Source: Łucki et al. 2024 (arXiv 2409.18025), 3c. Differences: all forget prompts, not those that were unlearned
        alone; the common beginning is found (there: 40 tokens); tokens are left out per block where most of their
        states are outliers (there: every token that is one once); running means in float64.
    """
    check_causal(subject)
    try:
        num = len(blocks(subject.model))
    except ModelError as reason:
        raise DoesNotFit(str(reason)) from reason
    every = layers is None or layers == "all"
    chosen = list(range(num)) if every else pick(layers, num, "attacks.orthogonalize.layers", num)
    stream = stream_of(data, on, "attacks.orthogonalize.on")
    part, exposed = (stream, frozenset()) if source == "random" else _readable(stream, answers, seed)
    found, cost = _directions(subject, data, part, chosen, source, answers, seed)
    if form == "weights":
        check_plain(subject)
        changed = settle(subject) if is_adapter(subject.model) else shallow(subject)
        layer = max(found, key=lambda one: found[one][1])
        project_writes(changed.model, found[layer][0])
    else:
        changed = shallow(subject)
        for layer, (direction, _) in found.items():
            ablate(blocks(changed.model)[layer][1], direction)
    told = {"source": source, "form": form, "layers": sorted(found) if form == "hooks" else [layer]}
    yield changed.after(Event("attack", "orthogonalize", told, cost, exposed))


def _readable(stream: Stream, answers: bool, seed: int) -> tuple[Stream, frozenset[str]]:
    """What of a stream may be read, and of which examples the answers: all prompts, but half of the forgotten answers.

    Raises: DoesNotFit where none would be left to score.
    """
    told = [example for example in stream.examples if answers or not example.prompt]
    if stream.role != "forget" or not told:
        return stream, frozenset()
    if len(told) < 2:
        raise DoesNotFit(f"'{stream.name}' holds a single text to read whole; one is needed to read and one to score")
    rows = np.random.default_rng(seed).permutation(len(told))
    ids = [frozenset(told[row].id for row in half) for half in np.array_split(rows, [len(told) // 2])]
    left = tuple(example for example in stream.examples if example.id not in ids[1])
    return replace(stream, examples=left), ids[0]


def _directions(
    subject: Subject, data: Data, stream: Stream, layers: Sequence[int], source: Source, answers: bool, seed: int
) -> tuple[Found, Cost]:
    """The direction of every block that has one.

    Raises: DoesNotFit when no block has.
    """
    original = _original(subject) if source in ("original", "pca") else None
    texts = _texts(subject, stream, answers)[: 1 if source == "random" else MOST_TEXTS]
    skip, pairs = beginning(texts), source == "pca"
    left_out, cost = strange_tokens((original or subject).model, texts, skip, layers)
    here, there = Moments(left_out, pairs), Moments(left_out, pairs)
    cost += read(subject.model, texts, skip, layers, here)
    if source == "random":
        made = torch.Generator().manual_seed(seed)
        drawn = {layer: torch.randn(len(here.mean(layer)), generator=made, dtype=torch.float64) for layer in layers}
        return {layer: (vector / vector.norm(), 1.0) for layer, vector in drawn.items()}, cost
    if original is not None:
        cost += read(original.model, texts, skip, layers, there)
    else:
        others = _texts(subject, _of_role(data, source), answers)[: len(texts)]
        cost += read(subject.model, others, beginning(others), layers, there)
    found = {}
    for layer in layers:
        gap = here.mean(layer) - there.mean(layer)
        size = float(gap.norm()) / max(here.length(layer), 1e-12)
        vector = main_axis(here, there, layer) if pairs else gap
        if size > SAME:
            found[layer] = (vector / vector.norm(), size)
    if not found:
        raise DoesNotFit("the two models do not differ there")
    return found, cost


def _texts(subject: Subject, stream: Stream, answers: bool) -> list[Encoded]:
    """A stream as the subject is asked it, up to the answers where there are prompts and answers are not to be read.

    Raises: DoesNotFit where nothing of it can be asked like that.
    """
    try:
        asked = asked_of(Data({stream.name: stream}), subject.wrapper)[stream.name]
        texts = texts_of(asked, "answer", subject.wrapper.ask)
    except LookupError as reason:
        raise DoesNotFit(str(reason)) from reason
    encoded = encode(subject, texts, limit=context_length(subject), where=stream.name)
    read_to = [
        one.prompt_length if text.prompt and not answers else len(one)
        for text, one in zip(texts, encoded, strict=True)
    ]
    return [
        replace(one, tokens=one.tokens[:end], counted=one.counted[:end], spanned=one.spanned[:end])
        for one, end in zip(encoded, read_to, strict=True)
    ]


def _of_role(data: Data, role: Source) -> Stream:
    found = [stream for stream in data.values() if stream.role == role]
    if not found:
        raise DoesNotFit(f"there is no stream of the role {role} to compare with")
    return found[0]


def _original(subject: Subject) -> Subject:
    """The model before the removal.

    Raises: DoesNotFit when its states cannot be compared with those of this one.
    """
    original = original_of(subject)
    built = [(len(blocks(one.model)), one.model.get_input_embeddings().weight.shape[1]) for one in (original, subject)]
    if built[0] != built[1]:
        told = "the model before the removal has {} blocks of width {}, this one {} of width {}"
        raise DoesNotFit(told.format(*built[0], *built[1]))
    return original
