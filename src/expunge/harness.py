"""Tasks of lm-evaluation-harness on models of ours: its numbers as rows of `scores.json`, its samples as a table.

The harness comes with the extra `eval`. It asks in its own form (raw text, no chat template unless told) and reads
data sets of the hub, or those that a task file of yours names.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from expunge import machine
from expunge.errors import DataError, MissingExtra, RecipeError, close_to
from expunge.measure.tables import Table
from expunge.metrics.stats import UNIT, Interval, constant_interval
from expunge.models import load
from expunge.report import schema
from expunge.run import Progress, _silent
from expunge.types import Subject

WHERE = "bench harness"
NORMAL = 1.959964  # standard errors on either side of a 95 % interval
SHARES = ("acc", "exact_match", "f1", "pass@")  # how the names of metrics between 0 and 1 begin
TASK_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Asked:
    """What is put to every model. limit: documents of each task at most. chat: in the model's chat template."""

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    chat: bool = False


def run_harness(
    model_paths: Sequence[str], tasks: Sequence[str], limit: int | None = None, out: str | Path | None = None,
    num_fewshot: int | None = None, device: str = "cpu", *, batch_size: int = 8, chat: bool = False,
    progress: Progress = _silent,
) -> list[schema.Measured]:
    """Run tasks of lm-evaluation-harness on models and keep what they gave.

    Args:
        model_paths: folders or hub names: one model, or ORIGINAL, ORACLE and any more.
        tasks: names the harness knows, or task files of yours (.yaml).
        limit: documents of each task at most. num_fewshot: answered examples in front; None: as the task says.
        out: folder for `scores.json` and `tables/harness.MODEL.parquet`. Where a run's `scores.json` is there already,
            the rows are added to it; a model that lies in that folder is its condition "after".
        chat: ask in the model's chat template.
    Returns: one row per model, task and metric, named harness/TASK/METRIC, with 95 % intervals from the harness's
        standard errors.
    Raises: MissingExtra without lm-evaluation-harness; RecipeError for an unknown task; DataError where the harness
        fails, such as a data set that cannot be had.
    Cost: as the tasks have it: a forward per choice of every document, or a generation.
    """
    _require()
    if not model_paths or not tasks:
        raise RecipeError(WHERE, "no model or no task", "at least one of each", "Add --models and --tasks")
    asked = Asked(tuple(tasks), limit, num_fewshot, batch_size, chat)
    folder = None if out is None else Path(out)
    before = schema.load(folder) if folder is not None and (folder / schema.FILE).is_file() else None
    names = _names(model_paths, folder if before is not None else None)
    manager = _manager(asked)
    rows: list[schema.Measured] = []
    seconds: dict[str, float] = {}
    for number, (name, path) in enumerate(names.items()):
        progress("harness", number, len(names), name)
        begun = time.perf_counter()
        results = _evaluate(load(path, device=device), asked, manager)
        seconds[name] = time.perf_counter() - begun
        rows += rows_of(results, name)
        if folder is not None:
            samples_of(results).write(folder / "tables" / f"harness.{name}.parquet")
    progress("harness", len(names), len(names), "")
    if folder is not None:
        _evidence(before, rows, seconds).write(folder)
    return rows


def rows_of(results: Mapping[str, Any], condition: str) -> list[schema.Measured]:
    """The rows of one evaluation of the harness: every metric of every task and group."""
    found = []
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        counts = results.get("n-samples", {}).get(task) or {}
        n = int(counts.get("effective") or metrics.get("sample_len") or 0)
        higher = results.get("higher_is_better", {}).get(task) or {}
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            name = f"harness/{task}/{metric}" + ("" if chosen == "none" else f":{chosen}")
            better = "lower" if higher.get(metric) is False else "higher"
            error = metrics.get(f"{metric}_stderr,{chosen}")
            found.append(_row((condition, task, name), metric, value, error, n, better))
    return found


def _row(
    key: tuple[str, str, str], metric: str, value: Any, error: Any, n: int, better: Any
) -> schema.Measured:
    """One score. Without a standard error there is no interval; the reason says either."""
    unit = "share" if metric.startswith(SHARES) else "perplexity" if "perplexity" in metric else ""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return schema.Measured(*key, None, None, n, unit, better, "n/a", f"the harness gave {value!r}"[:80])
    if not _number(error):
        reason, interval = "the harness gave no standard error", None
    else:
        interval = _interval(float(value), float(error), n, unit)
        reason = f"standard error {error:.4g} of the harness"
    return schema.Measured(*key, float(value), interval, n, unit, better, "ok", reason)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _interval(value: float, error: float, n: int, unit: str) -> Interval | None:
    """value +- 1.96 standard errors, a share cut at 0 and 1; where all values are equal, what n of them allow."""
    if error == 0:
        return constant_interval(value, n) if unit == "share" and n and 0 <= value <= 1 else None
    low, high = value - NORMAL * error, value + NORMAL * error
    return (max(UNIT[0], low), min(UNIT[1], high)) if unit == "share" else (low, high)


def samples_of(results: Mapping[str, Any]) -> Table:
    """The numbers of every document by task, metric and filter; no texts."""
    rows = [
        (f"{task}/{sample['doc_id']}", task, metric, str(sample.get("filter", "none")), float(sample[metric]))
        for task, samples in (results.get("samples") or {}).items()
        for sample in samples
        for metric in sample.get("metrics", ())
        if isinstance(sample.get(metric), (bool, int, float))
    ]
    names = ("id", "task", "metric", "filter", "value")
    columns: dict[str, Any] = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    return Table.of(columns | {"item": [0] * len(rows)})


# -- the harness itself ------------------------------------------------------------------------------------------
def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtra(WHERE, "lm-eval", "eval") from error


def _manager(asked: Asked) -> Any:
    """The harness's index of tasks, asked for what is wanted.

    Raises: RecipeError for a task it does not know or a task file that is not there.
    """
    from lm_eval.tasks import TaskManager

    files = [task for task in asked.tasks if task.endswith(TASK_FILES)]
    manager = TaskManager(include_defaults=len(files) < len(asked.tasks))
    for task in asked.tasks:
        if task in files and not Path(task).is_file():
            raise RecipeError(f"{WHERE}: --tasks", f"no file '{task}'", "a task file", "Correct the path")
        if task not in files and not manager.match_tasks([task]):
            raise RecipeError(
                f"{WHERE}: --tasks", f"no task '{task}'", close_to(task, manager.all_tasks)[:200],
                "See the tasks of lm-evaluation-harness: lm_eval ls tasks",
            )
    return manager


def _evaluate(subject: Subject, asked: Asked, manager: Any) -> Mapping[str, Any]:
    """What the harness says of a model, as it says it."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if subject.task not in ("causal", "seq2seq"):
        raise RecipeError(
            f"{WHERE}: --models", f"{subject.name} is a {subject.task} model", "causal models and encoder-decoders",
            "Leave it out",
        )
    with _undisturbed(subject):
        try:
            model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=asked.batch_size)
            found = simple_evaluate(
                model=model, tasks=list(asked.tasks), num_fewshot=asked.num_fewshot, limit=asked.limit,
                apply_chat_template=asked.chat, task_manager=manager,
            )
        except Exception as error:  # data sets, templates and task files fail in many ways
            reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
            raise DataError(
                f"{WHERE}: {', '.join(asked.tasks)}", f"the harness failed ({type(error).__name__}: {reason})",
                "tasks whose data can be had", "Check the network or the task file; a task file may name local data",
            ) from error
    if found is None:
        raise DataError(WHERE, "no result on this rank", "one process", "Run it without accelerate launch")
    results: Mapping[str, Any] = found
    return results


@contextlib.contextmanager
def _undisturbed(subject: Subject) -> Iterator[None]:
    """The harness seeds everything, logs much and may leave the model in another mode; this puts it back."""
    import torch

    logger = logging.getLogger("lm_eval")
    level, state, numbers, training = logger.level, random.getstate(), np.random.get_state(), subject.model.training
    logger.setLevel(logging.ERROR)
    devices = [subject.model.device] if subject.model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        np.random.set_state(numbers)
        subject.model.train(training)


# -- scores.json -------------------------------------------------------------------------------------------------
def _names(paths: Sequence[str], run: Path | None) -> dict[str, str]:
    """Condition names: the last part of each path, as much more of it as tells them apart; of a run's model "after"."""
    found: dict[str, str] = {}
    for path in paths:
        parts = Path(path).parts
        own = run is not None and Path(path).resolve().parent == run.resolve()
        options = ["after"] if own else ["_".join(parts[-k:]).strip("/") for k in range(1, len(parts) + 1)]
        name = next((option for option in options if option not in found), f"{options[-1]}_{len(found)}")
        found[name] = path
    return found


def _evidence(
    before: schema.Evidence | None, rows: Sequence[schema.Measured], seconds: Mapping[str, float]
) -> schema.Evidence:
    """The rows as evidence of their own, or added to that of a run; what was measured again is replaced."""
    kinds = ["after"] if len(seconds) == 1 or before is not None else ["original", "oracle"]
    kinds += ["after"] * len(seconds)
    made = tuple(
        schema.Condition(name, kind, label=name, cost=schema.ConditionCost(seconds=spent))  # type: ignore[arg-type]
        for kind, (name, spent) in zip(kinds, seconds.items(), strict=False)
    )
    streams = {row.stream: schema.StreamCount(row.stream, "probe", row.n) for row in rows}
    if before is None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return schema.Evidence(
            "Tasks of lm-evaluation-harness", ", ".join(seconds), now, "0" * 12, made, tuple(rows),
            streams=tuple(streams.values()), environment=machine.environment(),
        )
    new = {(row.condition, row.stream, row.metric) for row in rows}
    kept = tuple(row for row in before.scores if (row.condition, row.stream, row.metric) not in new)
    known = {one.name for one in before.conditions}
    return replace(
        before, scores=(*kept, *rows), conditions=(*before.conditions, *(one for one in made if one.name not in known)),
        streams=(*(one for one in before.streams if one.name not in streams), *streams.values()),
    )
