"""The stage that lets a model answer the prompts of a stream in its own words: alternatives to what it should forget.

Every draw has random numbers of its own, made from the run's seed, the example's id and the number of the draw. What
is said does not depend on which prompts are answered together, nor on how many ranks share the work.
"""

from __future__ import annotations

import json
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from expunge import dist
from expunge.data.examples import stream_of
from expunge.data.tokenise import encode, prompt_tokens, texts_of
from expunge.errors import DataError, ModelError, RecipeError, close_to
from expunge.measure.desk import needed
from expunge.measure.sampled import Taste, continue_randomly, draw_of
from expunge.measure.samples import BATCH_ROWS, stop_tokens
from expunge.models import context_length
from expunge.registry import bind, stage
from expunge.relabel import refusals
from expunge.run import Run, write_text
from expunge.types import Bound, Cost, Data, Event, Example, Stream, Subject

TRIES = 5  # draws for one answer before a refusal takes its place


@stage("sample")
def run_sample(
    subject: Subject, data: Data, run: Run, *, on: str = "forget", name: str = "alternatives", per_prompt: int = 5,
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int = 64, template: str | None = None,
    source: str = "self", distinct: bool = True,
) -> Subject:
    """Add a stream of answers that a model makes up for the prompts of another stream, several for each.

    Two streams are made whose rows pair: `name` with the new answers and `name`_asked with the old ones, repeated
    (ids "x#0", "x#1", ...); with one answer a prompt, both keep the ids and the draws of `on`.

    Args:
        on: the stream whose prompts are answered. name: of the new stream.
        per_prompt: answers for each prompt.
        temperature, top_p, max_new_tokens: how they are drawn.
        template: what the model is asked instead of the prompt, with {prompt} and, to be told what to avoid, {answer}.
        source: who answers: "self" (the subject as it is now) or the name of a helper.
        distinct: draw again what repeats the old answer (compared without case and spacing).
    Returns: the subject as it was; `data` holds the new streams. Draws that are empty (or not distinct) are drawn
        again, four times at most; then one of our refusal sentences takes their place, and the lineage says how many.
    Raises: DataError for prompts that cannot be asked; RecipeError; ModelError for models that do not generate.
    Cost: one generation per answer and renewed draw. A resumed run reads what was made from its folder.
    Source: AltPO, Mekala et al. 2024 (arXiv 2409.13474). Difference: the release keeps whatever came; here see above.
    """
    asked, taste = stream_of(data, on, "sample.on"), Taste(temperature, top_p, max_new_tokens)
    if per_prompt < 1:
        raise RecipeError("sample.per_prompt", f"got {per_prompt}", "accepted: 1 or more", "Correct the value")
    speaker = _speaker(subject, source)
    slots = [Slot(one, k) for one in asked.examples for k in range(per_prompt)]
    file, begun = _file(run, name), time.perf_counter()
    answers, cost = _kept(file, slots, run), Cost()
    if answers is None:
        questions = _questions(speaker, asked, template, taste.most)
        answers, cost = Sampler(speaker, taste, questions, run, distinct).fill(slots)
        cost = replace(cost, seconds=time.perf_counter() - begun)
        if file is not None and dist.rank() == 0:
            rows = [{"id": slot.id, "answer": answers[slot.id]} for slot in slots if slot.id in answers]
            write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    pool, said, old = refusals(), [], []
    for slot in slots:
        one, mark = slot.example, slot.id if per_prompt > 1 else slot.example.id
        text = answers.get(slot.id) or pool[slot.seed(run.seed, TRIES).integers(len(pool))]
        said.append(Example(mark, one.prompt, text, subject=one.subject))
        old.append(replace(one, id=mark))
    shared = (asked.follows or on) if per_prompt == 1 else f"{name}_asked"
    data[name] = Stream(name, "anchor", tuple(said), follows=shared)
    data[f"{name}_asked"] = Stream(f"{name}_asked", "anchor", tuple(old), follows=shared)
    hyper = {"on": on, "name": name, "per_prompt": per_prompt, "source": source, "refusals": len(slots) - len(answers)}
    hyper["same"] = sum(new.answer.strip() == one.answer.strip() for new, one in zip(said, old, strict=True)) / len(old)
    return subject.after(Event("stage", "sample", hyper, cost))


@dataclass(frozen=True)
class Slot:
    """The number-th answer to an example's prompt."""

    example: Example
    number: int

    @property
    def id(self) -> str:
        return f"{self.example.id}#{self.number}"

    def seed(self, seed: int, attempt: int) -> np.random.Generator:
        """Random numbers of this slot alone."""
        return draw_of(seed, self.example.id, self.number, attempt)

    def fits(self, text: str, *, distinct: bool) -> bool:
        return bool(text) and not (distinct and _plain(text) == _plain(self.example.answer))


@dataclass(frozen=True)
class Question:
    """What is asked for an example, and how many tokens may follow."""

    tokens: np.ndarray
    limit: int


@dataclass(frozen=True, eq=False)
class Sampler:
    """A model that answers; questions by example id."""

    speaker: Subject
    taste: Taste
    questions: Mapping[str, Question]
    run: Run
    distinct: bool = True

    def fill(self, slots: Sequence[Slot]) -> tuple[dict[str, str], Cost]:
        """Answers by slot id, drawn until they fit; slots that never got one are left out."""
        stops = stop_tokens(self.speaker, self._closings(slots))
        answers: dict[str, str] = {}
        cost = Cost()
        for attempt in range(TRIES):
            todo = sorted((slot for slot in slots if slot.id not in answers), key=lambda slot: self._room(slot))
            groups = [todo[i : i + BATCH_ROWS] for i in range(0, len(todo), BATCH_ROWS)]
            found: list[tuple[str, str, int]] = []
            for number, group in enumerate(dist.shard(groups)):
                found += self._answer(group, attempt, stops)
                self.run.progress("sample", number + 1, len(groups), f"draw {attempt + 1}")
            said = {mark: (text, tokens) for mark, text, tokens in dist.gather(found)}
            spent = sum(tokens for _, tokens in said.values())
            cost += Cost(queries=len(said), forwards=len(said), tokens=spent)
            answers |= {
                slot.id: said[slot.id][0] for slot in todo if slot.fits(said[slot.id][0], distinct=self.distinct)
            }
        return answers, cost

    def _closings(self, slots: Sequence[Slot]) -> list[Any]:
        """An encoded answer shows which token the template ends a turn with."""
        first = Stream("first", "anchor", tuple(slot.example for slot in slots[:1]))
        return encode(self.speaker, texts_of(first))

    def _room(self, slot: Slot) -> tuple[int, int]:
        question = self.questions[slot.example.id]
        return question.limit, len(question.tokens)

    def _answer(self, group: Sequence[Slot], attempt: int, stops: frozenset[int]) -> list[tuple[str, str, int]]:
        """Slot id, text and tokens read and made, for slots asked together."""
        asked = [self.questions[slot.example.id] for slot in group]
        chances = [
            slot.seed(self.run.seed, attempt).random(question.limit, dtype=np.float32)
            for slot, question in zip(group, asked, strict=True)
        ]
        with needed(self.speaker.name):
            said = continue_randomly(
                self.speaker, [one.tokens for one in asked], chances, stops, self.taste, device=self.run.device
            )
        texts = self.speaker.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            (slot.id, text.replace("\ufffd", "").strip(), len(question.tokens) + len(tokens))  # no halves of characters
            for slot, text, question, tokens in zip(group, texts, asked, said, strict=True)
        ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _speaker(subject: Subject, source: str) -> Subject:
    speaker = subject if source == "self" else subject.helpers.get(source)
    if speaker is None:
        raise RecipeError(
            "sample.source", f"no helper '{source}'", close_to(source, ["self", *subject.helpers]),
            "Make it with the stage branch, or correct the name",
        )
    if speaker.task != "causal":
        raise ModelError(
            "sample.source", f"a model for the task '{speaker.task}'", "causal language models", "Name another source"
        )
    return speaker


def _questions(speaker: Subject, asked: Stream, template: str | None, most: int) -> dict[str, Question]:
    """Every example's question in tokens.

    Raises: RecipeError for a template without {prompt}; DataError for a question that is empty or leaves no room.
    """
    texts = [_asking(template, one) for one in asked.examples]
    room, plain = context_length(speaker), prompt_tokens(speaker, [one.prompt for one in asked.examples])
    found = {}
    for one, tokens, bare in zip(asked.examples, prompt_tokens(speaker, texts), plain, strict=True):
        where = f"{asked.name}[{one.id}]"
        left = room - max(len(tokens), len(bare)) - 1  # the answer will stand after the bare prompt, and be closed
        if not len(tokens):
            raise DataError(where, "no prompt to answer", "examples with a prompt", "Give 'template', or add prompts")
        if left < 1:
            raise DataError(
                where, f"{len(tokens)} tokens are asked", f"the model reads at most {room} with its answer",
                "Shorten the prompt or the template",
            )
        found[one.id] = Question(tokens, min(left, most))
    return found


def _asking(template: str | None, example: Example) -> str:
    if template is None:
        return example.prompt
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        fields = {str(error)}
    if not {"prompt"} <= fields <= {"prompt", "answer"}:
        raise RecipeError(
            "sample.template", f"got {template!r}", "a string with {prompt}, and {answer} if wanted",
            "Write for example: 'Answer differently: {prompt}'",
        )
    return template.format(prompt=example.prompt, answer=example.answer)


def _file(run: Run, name: str) -> Path | None:
    """Where the answers of this stage are kept."""
    if run.folder is None:
        return None
    return run.folder / "streams" / f"{'.'.join(str(n) for n in (run.stage, *run.part))}-{name}.jsonl"


def _kept(file: Path | None, slots: Sequence[Slot], run: Run) -> dict[str, str] | None:
    """The answers an interrupted run made, if they are those of these slots."""
    if file is None or not run.resume or not dist.agree(file.is_file()):
        return None
    lines = file.read_text(encoding="utf-8").splitlines() if dist.rank() == 0 else []
    found = {row["id"]: row["answer"] for row in map(json.loads, dist.agree(lines))}
    return found if set(found) <= {slot.id for slot in slots} else None


def sample(**hyper: Any) -> Bound:
    """The stage as a value, for methods and recipes in Python."""
    return bind("stage", {"use": "sample", **hyper}, "sample")
