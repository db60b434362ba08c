"""The stage that makes a stream of other answers to the same prompts: refusals, or unrelated answers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from expunge.errors import DataError, RecipeError, close_to
from expunge.registry import bind, stage
from expunge.run import Run
from expunge.types import Bound, Data, Event, Example, Stream, Subject


@stage("relabel")
def run_relabel(
    subject: Subject, data: Data, run: Run, *, source: str = "refusals", name: str = "refusals", on: str = "forget"
) -> Subject:
    """Add a stream that answers the prompts of another one differently, row by row.

    Args:
        source: "refusals" (our own list of refusal sentences), "alternative" (the examples' own field), the name of
            a stream (answers drawn from it at random: mismatch), or a text file with one answer a line.
        name: of the new stream. on: the stream whose prompts are asked; draws are shared with it.
    Returns: the subject as it was; `data` holds the new stream.
    Raises: DataError for a file that is missing or empty, or a field the examples lack.
    Source: TOFU (arXiv 2401.06121) for refusals, LLMU (arXiv 2310.10683) for random answers.
    """
    if on not in data:
        raise DataError(f"relabel.on: '{on}'", "no such stream", close_to(on, data), "Name a stream of the recipe")
    asked = data[on]
    picks = np.random.default_rng([run.seed, len(asked)])
    answers = [_alternative(one) for one in asked.examples] if source == "alternative" else _pool(source, data)
    rows = range(len(asked)) if source == "alternative" else picks.integers(len(answers), size=len(asked))
    examples = tuple(
        Example(one.id, one.prompt, answers[int(row)], subject=one.subject)
        for one, row in zip(asked.examples, rows, strict=True)
    )
    data[name] = Stream(name, "anchor", examples, follows=on)
    return subject.after(Event("stage", "relabel", {"source": source, "name": name, "on": on}))


def _alternative(example: Example) -> str:
    if not example.alternative:
        raise DataError(
            f"forget[{example.id}]", "no 'alternative'", "an alternative answer for every row", "Add the field"
        )
    return example.alternative


def _pool(source: str, data: Data) -> list[str]:
    if source == "refusals":
        text = resources.files("expunge.data").joinpath("refusals.txt").read_text(encoding="utf-8")
        return text.splitlines()
    if source in data:
        return [one.answer for one in data[source].examples]
    path = Path(source)
    if not path.is_file():
        accepted = close_to(source, ["refusals", "alternative", *data])
        raise RecipeError("relabel.source", f"'{source}' is no stream and no file", accepted, "Correct the source")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(str(path), "an empty file", "one answer a line", "Fill the file")
    return lines


def relabel(**hyper: str) -> Bound:
    """The stage as a value, for methods and recipes in Python."""
    return bind("stage", {"use": "relabel", **hyper}, "relabel")
