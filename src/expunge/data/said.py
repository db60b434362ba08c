"""What was said before one question, and how its answer was begun for the model, written into the prompt itself.

A prompt passes through rewrites, variants and tables as text, so that is how turns and beginnings of a single example
travel. Those that are the same for every example are the wrapper's (`turns`, `prefill`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

# Ends what one of the two says; begins what the model is made to have said. Code points that no text may hold.
TURN, SPEAKS = "\ufdd0", "\ufdd1"


@dataclass(frozen=True)
class Said:
    """A prompt in its parts: earlier (user, assistant) pairs, the question, and the beginning of the answer."""

    question: str
    turns: tuple[tuple[str, str], ...] = ()
    begun: str = ""

    @property
    def prompt(self) -> str:
        told = "".join(f"{asked}{TURN}{answered}{TURN}" for asked, answered in self.turns)
        return told + self.question + (SPEAKS + self.begun if self.begun else "")


def said_in(prompt: str) -> Said:
    """The parts of a prompt; one that holds no marks is a question and nothing else."""
    *told, last = prompt.split(TURN)
    question, _, begun = last.partition(SPEAKS)
    return Said(question, tuple(zip(told[::2], told[1::2], strict=False)), begun)


def in_question(put: Callable[[str], str]) -> Callable[[str], str]:
    """The same change of a prompt, made to its question alone."""

    def changed(prompt: str) -> str:
        said = said_in(prompt)
        return replace(said, question=put(said.question)).prompt

    return changed
