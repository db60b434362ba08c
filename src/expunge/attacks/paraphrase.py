"""Paraphrase: ask the same thing in other words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from expunge.data.examples import stream_of
from expunge.registry import attack
from expunge.types import Cost, Data, Event, Subject


@attack("paraphrase", changes="prompt")
def paraphrase(subject: Subject, data: Data, *, number: int = 1, on: str = "forget") -> Iterator[Subject]:
    """Ask the stored paraphrases instead of the prompts; nothing is trained.

    Args:
        number: how many of the stored paraphrases to try, each as a subject of its own.
        on: the stream that must hold them.
    Returns: one subject per paraphrase that at least one example has; none when there are none.
    Cost: the measurement alone; one query per example.
    Source: ours; TOFU (arXiv 2401.06121) stores one paraphrase per question.
    """
    asked = stream_of(data, on, "attacks.paraphrase.on")
    most = max((len(example.paraphrases) for example in asked.examples), default=0)
    for index in range(min(number, most)):
        event = Event("attack", "paraphrase", {"index": index}, Cost(queries=len(asked)))
        yield subject.after(event, wrapper=replace(subject.wrapper, ask=f"paraphrase:{index}"))
