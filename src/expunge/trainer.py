"""An objective as the loss of `transformers.Trainer`, and a watch as its callback, for those who have a loop already.

The Trainer shows a loss function logits and labels of one batch and nothing else. So one objective on one stream
can be used, without a reference; for more (NPO, KL, two streams, stop rules, resume to the bit) use a forget stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from expunge.data.tokenise import Encoded, collate
from expunge.dynamics import Curve, curves_of
from expunge.errors import RecipeError
from expunge.measure.forward import make_pass
from expunge.registry import bind
from expunge.run import Run
from expunge.types import Batch, Data, Subject, View
from expunge.watch import Course, Dynamics, dynamics


def collator(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """`data_collator` of a Trainer whose data set is what `expunge.data.tokenise.encode` returns.

    Returns: input_ids, attention_mask, labels, each [B, T], padded on the right; labels are -100 outside the answer.
    """
    batch = collate(rows)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def view_of(logits: Tensor, labels: Tensor, *, with_logits: bool = False) -> View:
    """What an objective sees of a batch: log-probabilities of the labelled tokens, and no reference.

    Args:
        logits: [B, T, V]. labels: [B, T], -100 = not counted; entry t is the token at position t, not the next one.
        with_logits: keep the logits of the counted positions.
    """
    batch = Batch(labels.clamp(min=0), labels != -100, labels, tuple(map(str, range(len(labels)))))
    keep = batch.positions("answer")
    return View(make_pass(logits[:, :-1][keep], batch, keep, with_logits=with_logits), None, batch)


def trainer_loss(objective: Any, *, examples_per_step: int | None = None) -> Callable[..., Tensor]:
    """A registered objective as `compute_loss_func`; its value is the one a forget stage would log.

    loss = sum over the batch of the objective / divisor, the divisor being that of the whole optimiser step, so that
    gradient accumulation changes nothing: the counted tokens of the step, or its examples.

    Args:
        objective: a name or `{"use": name, **hyper}`.
        examples_per_step: per_device_train_batch_size * gradient_accumulation_steps * processes; needed by objectives
            whose mean is over examples. Set `dataloader_drop_last`, or the last step of an epoch is weighed too low.
    Raises: RecipeError for an objective that needs a reference or two streams, or without examples_per_step.
    Cost: 1 forward+backward with logits at all positions; a forget stage computes them at counted positions only.
    """
    bound = bind("objective", objective, "trainer_loss")
    needs = set(bound.meta.get("needs", ()))
    lacks = "a reference" if needs & {"ref", "ref_vocab"} else "two streams" if bound.meta.get("views", 1) > 1 else ""
    if lacks:
        raise RecipeError(
            f"trainer_loss: {bound.name}", f"needs {lacks}, which a Trainer does not show to its loss",
            "accepted: objectives on one stream without a reference", "Use a forget stage for this one",
        )
    by_tokens = bound.meta.get("mean") == "tokens"
    if not by_tokens and examples_per_step is None:
        raise RecipeError(
            "trainer_loss.examples_per_step", "missing", f"'{bound.name}' is a mean over examples",
            "Give batch size * accumulation steps * processes",
        )

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        view = view_of(outputs.logits, labels, with_logits="vocab" in needs)
        divisor: Any = examples_per_step
        if by_tokens:
            divisor = view.now.mask.sum() if num_items_in_batch is None else num_items_in_batch
        total: Tensor = bound(view).sum() / divisor
        return total

    return loss


class DynamicsCallback(TrainerCallback):  # type: ignore[misc]
    """What the model of a Trainer predicts exactly, by stream, part of speech and example, while it is trained.

    `Trainer(model=subject.model, ..., callbacks=[DynamicsCallback(subject, data)])`; afterwards `curves()`.

    Args:
        subject: the model the Trainer trains, with its tokenizer. data: streams to look at.
        folder: where `dynamics.jsonl` is written; None: nowhere.
        hyper: arguments of the watch `dynamics`: every, tagger, most, ...
    Raises: RecipeError when the Trainer trains another model; what the watch raises.
    Cost: 1 forward per example and look.
    """

    def __init__(self, subject: Subject, data: Data, *, folder: Path | str | None = None, **hyper: Any) -> None:
        self.subject, self.data, self.hyper = subject, data, hyper
        self.folder = None if folder is None else Path(folder)
        self.watcher: Dynamics | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if given.get("model") is not self.subject.model:
            raise RecipeError(
                "DynamicsCallback.subject", "another model than the Trainer's", "subject.model is what is trained",
                "Give Trainer(model=subject.model, ...)",
            )
        batches = len(given["train_dataloader"])
        course = Course(state.max_steps, max(1, math.ceil(batches / args.gradient_accumulation_steps)))
        run = Run(self.folder, device=str(given["model"].device))
        hyper = bind("watch", {"use": "dynamics", **self.hyper}, "DynamicsCallback").hyper
        self.watcher = dynamics(self.subject, self.data, run, course, **hyper)
        self.watcher.after(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.watcher is not None:
            self.watcher.after(state.global_step, last=state.global_step >= state.max_steps)

    def curves(self) -> dict[str, Curve]:
        """Stream -> curve so far."""
        found = curves_of(self.watcher.records if self.watcher is not None else ())
        return next(iter(found.values()), {})
