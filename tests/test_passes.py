"""What `expunge show` says a step costs is what a step costs: passes of every method, counted on the model itself."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from expunge.branch import branch
from expunge.forget import Saved, forget
from expunge.models import blocks, clone
from expunge.passes import passes_of, trainings
from expunge.registry import bind, entries, term
from expunge.run import Run
from expunge.types import Bound, Data, Stream, Subject
from support.learned import short_examples
from support.methods import SMALL, short


def data() -> Data:
    streams = {"forget": ("f", 0), "retain": ("r", 3), "holdout": ("h", 7)}
    return Data({n: Stream(n, n, short_examples(8, mark, shift)) for n, (mark, shift) in streams.items()})


class Counted:
    """Sequences that went through a model with gradients, forwards and backwards."""

    def __init__(self) -> None:
        self.forwards = 0
        self.by_block: Counter[int] = Counter()

    @property
    def backwards(self) -> int:
        return max(self.by_block.values(), default=0)


@contextmanager
def counting(model: torch.nn.Module) -> Iterator[Counted]:
    found = Counted()

    def enter(_, args, named) -> None:
        if torch.is_grad_enabled():
            found.forwards += len(named["input_ids"] if "input_ids" in named else args[0])

    def leave(number: int):
        def hook(_, __, output) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: found.by_block.update({number: len(grad)}))

        return hook

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    handles = [base.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave(i)) for i, (_, block) in enumerate(blocks(base))]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def expected(stage: Bound, streams: Data) -> tuple[int, int]:
    told = passes_of(stage)
    sizes = {}
    for name in told.forwards:
        stream = streams[name.partition(":")[0]]
        copies = len(stream) // len(streams.get(stream.follows or "", stream)) or 1  # rows that are drawn together
        sizes[name] = min(4 * copies, len(stream))
    return tuple(sum(told_one[name] * sizes[name] for name in sizes) for told_one in (told.forwards, told.backwards))


def count_branch(stage: Bound, subject: Subject, streams: Data, name: str) -> int:
    """Trainings inside a branch, counted on a copy of what the branch starts from."""
    copy = branch("copy", start=stage.hyper["start"])(clone(subject), streams, Run()).helpers["copy"]
    copy = clone(copy)
    for inner in stage.hyper["stages"]:
        with counting(copy.model) as found:
            copy = inner(copy, streams, Run())
        assert (found.forwards, found.backwards) == expected(inner, streams), (name, "branch", passes_of(inner))
    return len(stage.hyper["stages"])


@pytest.mark.parametrize("name", sorted(entries("method")))
def test_a_step_of_every_method_costs_what_is_said(tiny: Subject, name: str):
    streams, subject, checked = data(), clone(tiny), 0
    for stage in short(name, 1, 4):
        if stage.name == "branch" and stage.hyper["stages"]:
            checked += count_branch(stage, subject, streams, name)
        if "terms" not in stage.hyper:
            subject = stage(subject, streams, Run())
            continue
        if stage.hyper["scope"].name == "lora":  # counted inside the adapter's base
            subject = replace(subject, model=stage.hyper["scope"](subject.model).model)
            stage = replace(stage, hyper={**stage.hyper, "scope": bind("scope", "all")})
        with counting(subject.model) as found:
            subject = stage(subject, streams, Run())
        assert (found.forwards, found.backwards) == expected(stage, streams), (name, passes_of(stage))
        checked += 1
    assert checked


@pytest.mark.parametrize(("perturb", "more"), [
    ("none", (0, 0)), ({"use": "sam", "rho": 0.1}, (4, 4)),
    ({"use": "latent", "layer": 1, "steps": 3, "clean": 0.0}, (12, 12)),
    ({"use": "latent", "layer": 1, "steps": 3, "clean": 0.5}, (16, 16)),
])
def test_a_perturbation_adds_what_it_declares(tiny: Subject, perturb, more):
    terms = [term("npo", on="forget"), term("nll", on="retain")]
    stage = forget(terms=terms, perturb=perturb, steps=1, batch_size=4)
    with counting(tiny.model) as found:
        stage(tiny, data(), Run())
    assert (found.forwards, found.backwards) == (8 + more[0], 8 + more[1]) == expected(stage, data())


# -- memory --------------------------------------------------------------------------------------------------------
class Kept:
    """Sets of tensors of the size of the model that a training holds besides the model and its optimiser."""

    def __init__(self, subject: Subject, stage: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = sum(parameter.numel() for parameter in subject.model.parameters())
        self.models = 0
        whole = copy.deepcopy

        def counted(value, memo=None):
            if isinstance(value, torch.nn.Module) and sum(p.numel() for p in value.parameters()) >= self.size:
                self.models += 1
            return whole(value, memo)

        monkeypatch.setattr(copy, "deepcopy", counted)
        self.guard = 0
        copied = Saved._copy

        def noted(saved: Saved) -> dict[str, torch.Tensor]:
            self.guard = 1  # the newest copy replaces the one before
            return copied(saved)

        monkeypatch.setattr(Saved, "_copy", noted)


@pytest.mark.parametrize("name", ["npo", "graddiff", "kul", "rmu", "kga", "undial", "whp", "f_learning", "llmu"])
def test_no_method_keeps_more_models_than_it_says(tiny: Subject, monkeypatch: pytest.MonkeyPatch, name: str):
    """Copies made while the subject trains, helpers it carries, and the guard's: what `show` counts as memory."""
    stages = bind("method", {"use": name, **SMALL.get(name, {})})()
    told = [passes_of(stage, helpers) for where, stage, helpers in trainings(stages) if where == "the subject"][-1]
    named = sum("one more model" in line or "one copy of what may move" in line for line in told.memory)
    subject, streams = clone(tiny), data()
    *before, last = short(name, 1, 4)
    for stage in before:
        subject = stage(subject, streams, Run())
    until = bind("method", {"use": name, **SMALL.get(name, {})})()[-1].hyper["until"]
    last = replace(last, hyper={**last.hyper, "until": until})
    kept = Kept(subject, last, monkeypatch)
    last(subject, streams, Run())
    assert len(subject.helpers) + kept.models + kept.guard == named, told.memory
