"""Relearning: a few steps on a part of what was forgotten, or on something else; the rest is measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, zip_longest
from typing import Any, Literal

import numpy as np

from expunge import dist
from expunge.attacks.parts import check_plain, settle
from expunge.attacks.shown import exposed_of, growing
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.forget import Saved
from expunge.loop import Forget
from expunge.models import ExpungeWarning
from expunge.registry import attack, bind, term
from expunge.run import Run
from expunge.scopes.weights import merged
from expunge.types import Cost, Data, Event, Example, Movable, Stream, Subject

Split = Literal["examples", "siblings", "subjects"]
LEAST_FALL = 0.05  # of the loss on what is shown: below it nothing was relearned
KNOWN = 0.1  # nats a token: below it there was nothing to relearn


@attack("relearn", changes="weights", says="{steps} steps of relearning on {share:.0%} of {on}", judged="oracle")
def relearn(
    subject: Subject, data: Data, run: Run, *, steps: int = 20, at: tuple[int, ...] = (), share: float = 0.2,
    num: int | None = None, lr: float = 1e-5, batch_size: int = 8, scope: Any = "all", on: str = "forget",
    split: Split = "examples", seed: int = 0,
) -> Iterator[Subject]:
    """Fine-tune a copy on a part of the forget set or on another stream; what comes back is measured on the rest.

    AdamW at a constant rate, no weight decay, on the answers alone (prompts are read, not trained).

    Args:
        steps: optimiser steps. at: growing numbers of steps at which the model is measured, in place of `steps`; one
            training makes them all, and each costs what the steps up to it cost.
        share: part of the stream shown, in (0, 1); up to 1 for a stream that is not to be forgotten. num: that many
            examples instead.
        lr, batch_size, scope: as in a forget stage ({use: lora, rank: 128} is the paper's way).
        on: the stream to learn from: "forget", "retain", an anchor or any other.
        split: what is shown of it. "examples": any. "siblings": of every subject some facts, and others of the same
            subject are asked. "subjects": all facts of some subjects, and nothing about those that are asked.
        seed: of the choice and of the order.
    Returns: one subject per budget; the examples of a stream to be forgotten that were set aside for training are in
        `exposed` and are not scored. With 0 steps or examples it is the model itself. The event tells the losses of the
        first and the last step; a warning tells where, on a forget stream, the loss did not fall by 5 %.
    Raises: RecipeError for numbers out of range; DoesNotFit for examples that name no subjects where `split` asks
        for them, and for a quantised base.
    Cost: one copy of the model (weights in half precision move in float32, unless the scope is an adapter), one more
        while a budget that is not the last is measured; a forward and a backward per example and step.
    Judged: beside an oracle only. It is told forget answers, and teaches them to a model that never knew as well.
    Source: Lucki et al. 2024 (arXiv 2409.18025), 3b: LoRA of rank 128, rate 2e-4, 3 epochs, 5 to 1000 samples; Guo et
        al. 2024 (arXiv 2410.12949): halves of the forget set. Differences: full weights by default, answers only,
        constant rate, and the scored examples are never the ones trained on.
    """
    budgets = growing(tuple(at) or (steps,), "attacks.relearn")
    stream = stream_of(data, on, "attacks.relearn.on")
    shown = chosen(stream, _size(stream, share, num), split, seed)
    exposed = exposed_of(stream, shown)
    told = {"on": on, "num": len(shown), "share": len(shown) / len(stream), "split": split, "lr": lr}
    for budget, cost, model, losses in _course(subject, shown, run, scope, lr, batch_size, seed, budgets):
        seen = dict(zip(("loss_before", "loss_after"), losses, strict=False))
        if budget == budgets[-1] and stream.role == "forget":
            _warn_still(budget, lr, losses)
        event = Event("attack", "relearn", {"steps": budget} | told | seen, cost, exposed)
        yield subject.after(event, model=model)


def _warn_still(steps: int, lr: float, losses: Sequence[float]) -> None:
    """Tell where a training taught nothing: then it is no attack."""
    if steps > 1 and losses and losses[0] > KNOWN and losses[1] > (1 - LEAST_FALL) * losses[0]:
        told = ExpungeWarning(
            "attacks.relearn.lr", f"{steps} steps at {lr:g} moved the loss on what was shown from {losses[0]:.4g} to "
            f"{losses[1]:.4g}", f"a relearning lowers it by {LEAST_FALL:.0%} at least",
            "Raise lr or steps: nothing was relearned, so what is measured after it says little",
        )
        warnings.warn(told, stacklevel=3)


# -- what is shown ---------------------------------------------------------------------------------------------------
def _size(stream: Stream, share: float, num: int | None) -> int:
    """How many examples are shown; of a stream that is to be forgotten at least one is left to score."""
    scored = stream.role == "forget"
    if scored and len(stream) < 2:
        raise DoesNotFit(f"'{stream.name}' holds one example; one is needed to show and one to score")
    if num is not None:
        most = len(stream) - scored
        if not 0 <= num <= most:
            raise RecipeError(
                "attacks.relearn.num", f"got {num}", f"accepted: 0 to {most}", "Leave some examples to score"
            )
        return num
    if not (0 < share < 1 or (share == 1 and not scored)):
        accepted = "a number between 0 and 1" if scored else "more than 0, up to 1"
        raise RecipeError("attacks.relearn.share", f"got {share}", accepted, "Leave some examples to score")
    return min(max(1, round(share * len(stream))), len(stream) - scored)


def chosen(stream: Stream, size: int, split: Split, seed: int) -> tuple[Example, ...]:
    """The examples that are shown, in their order.

    Args:
        size: how many. With "subjects" whole subjects are shown until it is reached, with "siblings" one fact of every
            subject, then a second of every one, ...; either may end earlier: of all subjects, or of each one's facts,
            one is never shown.
    Raises: DoesNotFit where the subjects are not told, or are too few.
    """
    if size == 0:
        return ()
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(stream))]
    rows = order[:size] if split == "examples" else _by_subject(stream, order, size, split)
    return tuple(stream.examples[row] for row in sorted(rows))


def _by_subject(stream: Stream, order: Sequence[int], size: int, split: Split) -> list[int]:
    groups: dict[str, list[int]] = {}
    for row in order:
        name = stream.examples[row].subject
        if name is not None:
            groups.setdefault(name, []).append(row)
    if split == "siblings":
        rounds = zip_longest(*(rows[:-1] for rows in groups.values()))
        found = [row for row in chain.from_iterable(rounds) if row is not None]
        if not found:
            raise DoesNotFit(f"no two examples of '{stream.name}' are about one subject")
        return found[:size]
    if len(groups) < 2:
        raise DoesNotFit(f"the examples of '{stream.name}' name {len(groups)} subject(s); two are needed to part them")
    found = []
    for rows in list(groups.values())[:-1]:
        if len(found) < size:
            found += rows
    return found


# -- one training, measured on the way -------------------------------------------------------------------------------
def _course(
    subject: Subject, shown: Sequence[Example], run: Run, scope: Any, lr: float, batch_size: int, seed: int,
    budgets: Sequence[int],
) -> Iterator[tuple[int, Cost, Any, tuple[float, ...]]]:
    """The model after each budget, what it took to get there, and the losses of the first and the last step."""
    check_plain(subject)
    loop, kind = None, next(subject.model.parameters()).dtype
    losses: list[float] = []
    for index, budget in enumerate(budgets):
        if not (budget and shown):
            yield budget, Cost(), subject.model, ()
            continue
        loop = loop or _loop(settle(subject), shown, scope, lr, batch_size, seed, budgets[-1])
        _train(loop, replace(run.at(index), seed=seed), budget, losses)
        last, cost = budget == budgets[-1], replace(loop.cost, seconds=0.0)
        made = merged(loop.subject.model) if last else settle(loop.subject).model
        if last:
            loop = None  # the optimiser's numbers need not wait for the measurement
        yield budget, cost, made.to(kind) if kind.itemsize < 4 else made, tuple(float(f"{one:.4g}") for one in losses)


def _loop(
    subject: Subject, shown: Sequence[Example], scope: Any, lr: float, batch_size: int, seed: int, steps: int
) -> Forget:
    movable: Movable = bind("scope", scope, "attacks.relearn.scope")(subject.model)
    model = subject.model if movable.model is None else movable.model
    if not movable.adapter and any(one.dtype.itemsize < 4 for one in movable.parameters.values()):
        model.float()  # small steps on half-precision weights round to nothing: it would seem that nothing comes back
    updater = bind("optimizer", {"use": "adamw", "decay": "constant", "weight_decay": 0.0})(movable, lr)
    return Forget(
        replace(subject, model=model), Data(shown=Stream("shown", "forget", tuple(shown))), [term("nll", on="shown")],
        movable, updater, steps, batch_size, seed, str(model.device),
    )


def _train(loop: Forget, run: Run, budget: int, losses: list[float]) -> None:
    """Go on to `budget` steps in all: from the state kept for this budget, or from where the loop stands.

    Args:
        losses: of the first and the last step so far; kept up to date.
    Raises: Interrupted with the state saved; NonFinite before a bad step.
    """
    saved, kept = Saved(loop, None), run.load_state()
    if kept is not None:
        losses[:] = kept[2].get("losses", losses)
    done = max(loop.cost.steps, saved.resume(run)[0])
    with run.stoppable():
        for record in loop.run(done) if done < budget else ():
            done = record["step"] + 1
            losses[:] = [*losses[:1], record["loss"]] if losses else [record["loss"]] * 2
            run.log(record)
            run.stopped = dist.sum_number(float(run.stopped)) > 0
            run.progress("relearn", done, loop.steps, f"loss {record['loss']:.3f}")
            ended = done == budget
            if ended or run.stopped or done % run.save_every == 0:
                meta = {"finished": ended, "verdict": "go", "cost": asdict(loop.cost), "losses": losses}
                run.save_state(done, saved.tensors(), meta)
            run.check_stop()
            if ended:
                break
