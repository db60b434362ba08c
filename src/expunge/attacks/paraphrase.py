"""Paraphrase: ask the same thing in other words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from expunge.attacks.prompts import asked_as
from expunge.data.examples import stream_of
from expunge.data.texts import rewritten
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Example, Subject


@dataclass(frozen=True)
class Paraphrased:
    """The `index`-th stored paraphrase is asked, and the prompt takes its place among the paraphrases."""

    index: int

    def __call__(self, example: Example) -> Example | None:
        if self.index >= len(example.paraphrases):
            return None
        others = list(example.paraphrases)
        asked, others[self.index] = others[self.index], example.prompt
        return replace(example, prompt=asked, paraphrases=tuple(others))


@attack("paraphrase", changes="prompt", says="asked in other words")
def paraphrase(subject: Subject, data: Data, run: Run, *, number: int = 1, on: str = "forget") -> Iterator[Subject]:
    """Ask the stored paraphrases instead of the prompts; nothing is trained.

    Args:
        number: how many of the stored paraphrases to try, each as a subject of its own, 1 or more.
        on: the stream that must hold them. Examples of any stream that have no such paraphrase are not asked.
    Returns: one subject per paraphrase that at least one example has.
    Raises: DoesNotFit when no example has one; RecipeError for a number below 1.
    Cost: the measurement alone; one query per example that is asked.
    Source: ours; TOFU (arXiv 2401.06121) stores one paraphrase per question.
    """
    if number < 1:
        raise RecipeError("attacks.paraphrase.number", f"got {number}", "1 or more", "Correct it")
    known = stream_of(data, on, "attacks.paraphrase.on").examples
    most = max((len(example.paraphrases) for example in known), default=0)
    lacking = f"no example of '{on}' has a paraphrase"
    if not most:
        raise DoesNotFit(lacking)
    for index in range(min(number, most)):
        wrapper = rewritten(replace(subject.wrapper, ask="prompt"), Paraphrased(index))
        yield asked_as(subject, data, wrapper, Event("attack", "paraphrase", {"index": index}), on=on, lacking=lacking)
