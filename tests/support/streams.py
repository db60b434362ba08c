"""Small streams that a tiny tokenizer can write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.types import Data, Example, Stream


def examples(num: int, mark: str) -> tuple[Example, ...]:
    """Questions with answers of several lengths, paraphrases, false answers and a span."""
    made = []
    for i in range(num):
        answer = f"It is number {i * 7} of {mark}." + " And so on." * (i % 4)
        made.append(Example(
            f"{mark}/{i}", f"Who is {mark} {i}?", answer, spans=((3, 9),), paraphrases=(f"Tell me of {mark} {i}",),
            paraphrased_answer=f"Number {i * 7} it is.", perturbed=(f"It is number {i} of none.", "It is nobody."),
            alternative="No idea.",
        ))
    return tuple(made)


def small_data(forget: int = 12, retain: int = 15, holdout: int = 9) -> Data:
    return Data(
        forget=Stream("forget", "forget", examples(forget, "f")),
        retain=Stream("retain", "retain", examples(retain, "r")),
        holdout=Stream("holdout", "holdout", examples(holdout, "h")),
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
