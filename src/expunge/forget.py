"""The stage that trains: terms, scope, optimiser, perturbation and schedule become runs of the one loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from expunge import dist
from expunge.errors import RecipeError
from expunge.loop import Forget, copies_of
from expunge.models import ExpungeWarning
from expunge.registry import Kind, bind, stage
from expunge.run import Run
from expunge.types import Bound, Cost, Data, Event, Movable, Subject, Term
from expunge.until import Predicate
from expunge.watch import Course, Watcher


@stage("forget")
def run_forget(
    subject: Subject,
    data: Data,
    run: Run,
    *,
    terms: Annotated[Any, Kind("objective", many=True)],
    scope: Annotated[Any, Kind("scope")] = "all",
    optimizer: Annotated[Any, Kind("optimizer")] = "adamw",
    lr: float = 1e-5,
    steps: int | None = None,
    epochs: float = 10.0,
    batch_size: int = 32,
    until: str | None = None,
    perturb: Annotated[Any, Kind("perturb")] = "none",
    schedule: Annotated[Any, Kind("schedule")] = "once",
) -> Subject:
    """Train the subject's weights (in place) on a weighted sum of objectives.

    Args:
        terms: objectives with `on` (stream names), `weight`, `mean`, `tokens`, `reference`, `link` and their own
            arguments.
        scope: what may move. optimizer: adamw, muon or sgd with its schedule and clipping.
        lr: peak rate.
        steps: number of steps; None: `epochs` passes over the first term's first stream.
        batch_size: examples a step from each stream (the whole stream when it is smaller).
        until: stop early when metrics fall under bounds: "extraction_strength<holdout & memorization_accuracy<0.3".
        perturb: what is done around the gradient (latent adversary, SAM, ...). schedule: once, chunked, iterate.
    Returns: the subject with its lineage extended.
    Raises: NonFinite before a bad step; Interrupted with the state saved; DataError, RecipeError.
    Cost: 1 forward+backward per stream and step; references once per distinct example; a perturbation's on top.
    """
    _check_numbers(lr, steps, epochs, batch_size)
    _check_labels(terms)
    stop = Predicate.parse(until, subject, data, batch_size=batch_size) if until else None  # bounds: the start model's
    training = Training(terms, scope, optimizer, perturb, lr, steps, epochs, batch_size, stop)
    trained: Subject = schedule(subject, data, run, training)
    return trained


@dataclass(frozen=True)
class Training:
    """One training as a function of subject, data and run: what a schedule calls once or several times."""

    terms: Sequence[Term]
    scope: Bound
    optimizer: Bound
    perturb: Bound
    lr: float
    steps: int | None
    epochs: float
    batch_size: int
    stop: Predicate | None = None

    def __call__(self, subject: Subject, data: Data, run: Run) -> Subject:
        movable: Movable = self.scope(subject.model)
        if movable.model is not None and movable.model is not subject.model:
            kind = "adapter" if movable.adapter else "merge"
            subject = subject.after(Event(kind, self.scope.name, self.scope.hyper), model=movable.model)
        _warn_half(movable)
        total = self._num_steps(data)
        loop = Forget(
            subject, data, self.terms, movable, self.optimizer(movable, self.lr), total, self.batch_size, run.seed,
            run.device, self.perturb(),
        )
        final, verdict = self._train(loop, run, self.stop.on(data) if self.stop else None)
        hyper = {"terms": [term.label for term in self.terms], "scope": self.scope.name, "steps": final, "lr": self.lr}
        if self.perturb.name != "none":
            hyper["perturb"] = self.perturb.name
        ways = {made.way for made in loop.references.values() if made.hidden or made.head or made.way != "stored"}
        hyper |= {"reference": ", ".join(sorted(ways))} if ways else {}
        hyper |= {"stopped": verdict} if verdict != "go" else {}
        return subject.after(Event("stage", "forget", hyper, loop.cost))

    def _train(self, loop: Forget, run: Run, stop: Predicate | None) -> tuple[int, str]:
        """Run the loop to its end, a stop rule or a signal; returns steps made and why it ended."""
        saved = Saved(loop, stop)
        final, verdict = saved.resume(run)
        total = loop.steps
        watcher = self._watcher(loop, run)
        if final == 0:
            loop.cost += watcher.after(0) if watcher else Cost()
        with run.stoppable():
            for record in [] if verdict else loop.run(final):
                final = record["step"] + 1
                verdict = stop.verdict(loop.subject, loop.data, final) if stop else "go"
                run.log(record | ({"until": stop.values} if stop and stop.values else {}))
                run.stopped = dist.sum_number(float(run.stopped)) > 0  # a signal may reach the ranks in different steps
                run.progress("forget", final, total, f"loss {record['loss']:.3f}")
                if stop is not None:
                    saved.keep_or_restore(verdict, checked=bool(stop.values))
                ended = verdict != "go" or final == total
                loop.cost += watcher.after(final, last=ended) if watcher else Cost()
                if ended or run.stopped or final % run.save_every == 0:
                    meta = {"finished": ended, "verdict": verdict, "cost": asdict(loop.cost)}
                    run.save_state(final, saved.tensors(), meta)
                run.check_stop()
                if ended:
                    break
        return final, verdict or "go"

    def _watcher(self, loop: Forget, run: Run) -> Watcher | None:
        if run.watch is None:
            return None
        visit = next((stream.visit for stream in loop.data.values() if stream.visit), None)
        made: Watcher = run.watch(loop.subject, loop.data, run, Course(loop.steps, self._per_epoch(loop.data), visit))
        return made

    def _num_steps(self, data: Data) -> int:
        return self.steps if self.steps is not None else max(1, round(self.epochs * self._per_epoch(data)))

    def _per_epoch(self, data: Data) -> float:
        """Steps of a pass over the first term's first stream."""
        first = data.get(self.terms[0].on[0].partition(":")[0])
        size = len(first) // copies_of(first, data) if first else 1
        return max(1.0, size / self.batch_size)


class Saved:
    """All that a checkpoint holds: weights, optimiser, links, patience, and the weights a guard goes back to."""

    def __init__(self, loop: Forget, stop: Predicate | None) -> None:
        self.loop, self.stop = loop, stop
        guarded = stop is not None and stop.guards
        self.good = self._copy() if guarded else {}  # the last checked weights for which the guard did not hold

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.loop.movable.parameters.items()}

    def keep_or_restore(self, verdict: str, *, checked: bool) -> None:
        if not self.good or not checked:
            return
        if verdict != "guard":
            self.good = self._copy()
            return
        with torch.no_grad():
            for name, parameter in self.loop.movable.parameters.items():
                parameter.copy_(self.good[name])

    def tensors(self) -> dict[str, Tensor]:
        weights = self.loop.movable.parameters
        found: dict[str, Tensor] = {f"weight.{name}": parameter for name, parameter in weights.items()}
        found |= {f"good.{name}": value for name, value in self.good.items()}
        if self.stop is not None:
            found["until"] = torch.tensor(self.stop.state(), dtype=torch.float64)
        return found | self.loop.updater.state() | self.loop.state()

    def resume(self, run: Run) -> tuple[int, str]:
        """Load the newest state of this training; returns the step to go on from and, where it had ended, why."""
        found = run.load_state()
        if found is None:
            run.trim_log(0)
            return 0, ""
        step, tensors, meta = found
        with torch.no_grad():
            for name, parameter in self.loop.movable.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
        self.good = {name: tensors[f"good.{name}"].to(value.device) for name, value in self.good.items()}
        if self.stop is not None:
            self.stop.load([float(number) for number in tensors["until"]])
        self.loop.updater.load(tensors)
        self.loop.load(tensors)
        self.loop.cost = Cost(**meta["cost"])
        run.trim_log(step, later=not meta["finished"])
        return step, str(meta["verdict"]) if meta["finished"] else ""


def _warn_half(movable: Movable) -> None:
    half = {str(p.dtype) for p in movable.parameters.values() if p.dtype.itemsize < 4}
    if half and not movable.adapter:
        told = ExpungeWarning(
            "forget.scope",
            f"the weights that move are {', '.join(sorted(half))}",
            "float32, or scope: {use: lora}",
            "Small steps round to nothing in half precision: load with dtype float32",
        )
        warnings.warn(told, stacklevel=4)


def _check_numbers(lr: float, steps: int | None, epochs: float, batch_size: int) -> None:
    checks = (
        ("lr", lr, 0 <= lr < float("inf"), "0 or more"),
        ("steps", steps, steps is None or steps >= 1, "1 or more, or null for 'epochs' passes"),
        ("epochs", epochs, 0 < epochs < float("inf"), "more than 0"),
        ("batch_size", batch_size, batch_size >= 1, "1 or more"),
    )
    for name, value, fits, accepted in checks:
        if not fits:
            raise RecipeError(f"forget.{name}", f"got {value!r}", f"accepted: {accepted}", "Correct the value")


def _check_labels(terms: Sequence[Term]) -> None:
    if not terms:
        raise RecipeError("terms", "an empty list", "at least one objective", "Add a term")
    labels = [term.label for term in terms]
    if len(set(labels)) < len(labels):
        raise RecipeError(
            "terms", f"the same objective on the same streams twice: {', '.join(labels)}", "one term each", "Merge them"
        )


def forget(**hyper: Any) -> Bound:
    """The stage as a value, for methods and recipes in Python: `forget(terms=[...], lr=1e-5)`."""
    return bind("stage", {"use": "forget", **hyper}, "forget")
