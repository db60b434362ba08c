"""What an instrument works on: jobs with their texts, and a desk with what is there already and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from expunge.data.texts import Encoded, Text, texts_of
from expunge.errors import ModelError
from expunge.measure.tables import NotMeasured, Table
from expunge.models import weights_hash
from expunge.types import Data, Example, Subject

Asked = tuple[str, str, str]  # stream, instrument, variant
NOT_FINITE = "the model's logits are not finite"


@contextmanager
def needed(model: str) -> Iterator[None]:
    """Where an answer is no measurement but needed to go on: what cannot be had is an error of the user's.

    Raises: ModelError.
    """
    try:
        yield
    except NotMeasured as reason:
        raise ModelError(
            model, str(reason), "a model with finite logits that keeps keys and values", "Name another model"
        ) from reason


@dataclass(frozen=True, eq=False)
class Job:
    """One table to be made. The variant is NAME[:ARGS][@ASK][#SETTING]; the setting is the instrument's own."""

    asked: Asked
    texts: list[Text]
    encoded: list[Encoded]  # of the same texts, in the same order
    columns: frozenset[str]
    examples: Mapping[str, Example] = field(default_factory=dict)  # where the texts come from, by id

    @property
    def stream(self) -> str:
        return self.asked[0]

    @property
    def setting(self) -> str:
        return self.asked[2].partition("#")[2]

    @cached_property
    def settings(self) -> dict[str, str]:
        """A setting such as "num=8,temperature=0.7" as a mapping."""
        parts = (part.partition("=") for part in self.setting.split(",") if part)
        return {name: value for name, _, value in parts}


class Partner:
    """The model before the removal, loaded when somebody needs it and kept for those who follow."""

    def __init__(self, load: Callable[[], Subject]) -> None:
        self._load = load

    @cached_property
    def subject(self) -> Subject:
        return self._load()

    @cached_property
    def key(self) -> str:
        """Its weights, for the names of stored tables."""
        return weights_hash(self.subject)


@dataclass
class Desk:
    """tables: made so far for this subject. forwards, backwards, tokens: the bill, in sequences and real tokens."""

    device: str
    data: Data
    tables: dict[Asked, Table] = field(default_factory=dict)
    second: Partner | None = None
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0

    def count(self, forwards: int = 0, backwards: int = 0, tokens: int = 0) -> None:
        self.forwards += forwards
        self.backwards += backwards
        self.tokens += tokens

    def partner(self) -> Subject:
        """The model before the removal.

        Raises: NotMeasured when none was given.
        """
        if self.second is None:
            raise NotMeasured("the model before the removal was not given")
        return self.second.subject

    def greedy(self, subject: Subject, job: Job) -> list[np.ndarray | None]:
        """The greedy choices at the counted tokens of the job's texts, as far as the stream's token table holds them.

        None for a text with another prompt or answer than those of the table: it tells nothing of that one.
        """
        table = self.tables[job.stream, "tokens", "answer"]
        rows = dict(zip(zip(table.ids, table.items.tolist(), strict=True), table.rows("greedy"), strict=True))
        texts = texts_of(self.data[job.stream], "answer", subject.wrapper.ask, self.data)
        known = {(text.prompt, text.answer): rows.get((text.id, text.item)) for text in texts}
        return [known.get((text.prompt, text.answer)) for text in job.texts]
