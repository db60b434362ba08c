"""Letters strewn into the question: the cheapest attack there is, and what a clever one must beat."""

from __future__ import annotations

import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from expunge.attacks.prompts import asked_as
from expunge.data.texts import reword, rewritten
from expunge.errors import RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Example, Subject


@dataclass(frozen=True)
class Strewn:
    """A letter after every `spacing`-th character of the question, or after each with probability `share`."""

    spacing: int
    share: float | None
    seed: int

    def __call__(self, example: Example) -> Example | None:
        return reword(example, self.put)

    def put(self, question: str) -> str:
        random = np.random.default_rng([self.seed, zlib.crc32(question.encode("utf-8", "surrogatepass"))])
        draws = random.random(len(question)) if self.share is not None else None
        letters = random.integers(len(string.ascii_lowercase), size=len(question))
        made = []
        for place, (character, letter) in enumerate(zip(question, letters, strict=True)):
            hit = draws[place] < self.share if draws is not None else (place + 1) % self.spacing == 0
            made.append(character + (string.ascii_lowercase[letter] if hit else ""))
        return "".join(made)


@attack("perturb_prompt", changes="prompt", says="letters strewn into the question")
def perturb_prompt(
    subject: Subject, data: Data, run: Run, *, spacing: int = 5, share: float | None = None, on: str = "forget",
    seed: int = 0,
) -> Iterator[Subject]:
    """Insert letters into every question: after each k-th character, or at random places.

    A refusal that hangs on the exact words of a question may give way; what is put in at random also makes questions
    harder, so the model that never saw the data is the one to compare with.

    Args:
        spacing: a random letter after every so many characters, 1 or more. share: instead of that, the probability of a
            letter after each character, in (0, 1].
        on: the stream whose questions count as queries. seed: of letters and places; equal questions get equal ones.
    Returns: one subject.
    Raises: RecipeError for arguments out of range; DoesNotFit where nothing is asked that the model can read.
    Cost: the measurement alone; one query per example.
    Source: the baselines of Lucki et al. 2024 (arXiv 2409.18025): every k-th place with k from 1 to 15, or a
        probability from 0.1 to 0.3. Letters instead of any character.
    """
    if spacing < 1:
        raise RecipeError("attacks.perturb_prompt.spacing", f"got {spacing}", "1 or more", "Correct it")
    if share is not None and not 0 < share <= 1:
        raise RecipeError("attacks.perturb_prompt.share", f"got {share}", "above 0, at most 1", "Correct it")
    told = {"spacing": spacing, "seed": seed} if share is None else {"share": share, "seed": seed}
    wrapper = rewritten(subject.wrapper, Strewn(spacing, share, seed))
    event = Event("attack", "perturb_prompt", told)
    yield asked_as(subject, data, wrapper, event, on=on, lacking=f"stream '{on}' asks nothing")
