"""The sampling instrument: what the model says at random, several times for every text, or once greedily.

How they are drawn is told by the metric that asks; a subject's `decoding` speaks of the sample instrument alone.

Every sample has random numbers of its own, made from the seed, the example's id and the sample's number. So a sample
does not depend on which others are drawn beside it, on the order of the examples or on the number of ranks (but for
the rounding of a batch, where a number falls exactly between two tokens).

A variant says after '#' how to draw, all of it optional, for example "prompt#num=8,temperature=0.7,top_p=0.9":
    num           samples of every text (1)
    temperature, top_k, top_p, seed    how they are drawn (1, 0 = all tokens, 1 = all, 0); temperature 0 is greedy
    prefix        counted tokens of the text that are given away (0: the prompt alone)
    length        most tokens of a sample (0: half as many again as the rest of the text has, and 8, at most 200)

Columns of a table, one row per sample: id, item (its number within the example), text (what was said), reference
(what should be said, as far as a sample may go), secrets (the annotated spans in it), num_tokens, and ragged
    tokens        what was said, without the token that ends it
    match         for every true token of the reference whether it stands at its place in the sample; an ending counts
                  as a token
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expunge.data.tokenise import Text, prompt_tokens
from expunge.errors import RecipeError
from expunge.measure.desk import Desk, Job
from expunge.measure.samples import (
    BATCH_ROWS,
    Guide,
    cap,
    continue_greedily,
    continue_with,
    retraced,
    said_to_each,
    stop_tokens,
)
from expunge.measure.tables import Table
from expunge.models import context_length
from expunge.registry import instrument
from expunge.types import Subject


@dataclass(frozen=True)
class Taste:
    """How a token is drawn from a distribution, and how many at most. where: named in an error."""

    temperature: float = 1.0
    top_p: float = 1.0
    most: int = 64
    top_k: int = 0
    where: str = "sample"

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 < self.temperature < float("inf"), "more than 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more"),
            ("max_new_tokens", self.most, self.most >= 1, "1 or more"),
        )
        for name, value, fits, accepted in checks:
            if not fits:
                where = f"{self.where}.{name}"
                raise RecipeError(where, f"got {value!r}", f"accepted: {accepted}", "Correct the value")

    def pick(self, logits: Tensor, chance: Tensor) -> Tensor:
        """Tokens [R] from logits [R, V] and one number of [0, 1) each [R]: the inverse of the cumulated distribution.

        Temperature first; then top_k keeps so many of the likeliest tokens (and those as likely as the last of them:
        nothing tells them apart), and top_p of those the likeliest up to the one with which their share reaches it.
        It is the distribution of the token table's column scheme:T:K:P.
        """
        scores = logits.float() / self.temperature
        order: Tensor | None = None
        some = 0 < self.top_k < scores.shape[-1]
        if some or self.top_p < 1:
            scores, order = scores.sort(stable=True, descending=True)
        if some:
            scores = scores.masked_fill(scores < scores[:, self.top_k - 1 : self.top_k], -torch.inf)
        p = scores.softmax(-1)
        if self.top_p < 1:
            p = p * (p.cumsum(-1) - p < self.top_p)
        edges = p.cumsum(-1)
        whole = edges[:, -1:]
        spot = (edges <= chance.unsqueeze(-1) * whole).sum(-1, keepdim=True)
        spot = torch.minimum(spot, (edges < whole).sum(-1, keepdim=True))  # rounding must not reach impossible tokens
        return (spot if order is None else order.gather(-1, spot)).squeeze(-1)


def draw_of(seed: int, name: str, number: int, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one sample alone: the number-th of an example, drawn for the attempt-th time."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number, attempt])


def continue_randomly(
    subject: Subject, starts: Sequence[np.ndarray], chances: Sequence[np.ndarray], stops: frozenset[int], taste: Taste,
    *, guide: Guide | None = None, device: str = "cpu",
) -> list[list[int]]:
    """Random continuations of token prefixes, each up to a stop token (not included) or the end of its numbers.

    Args:
        chances: per prefix the numbers of [0, 1) that decide its tokens, one each.
    """
    limits = [len(one) for one in chances]
    numbers = torch.zeros(len(starts), max(limits) + 1, device=device)
    for i, one in enumerate(chances):
        numbers[i, : len(one)] = torch.from_numpy(one)
        numbers[i, len(one)] = float(one[0])  # for one token more where a language code came first and needed none

    def choose(logits: Tensor, rows: list[int], said: int) -> Tensor:
        return taste.pick(logits, numbers[rows, said])

    return continue_with(subject, starts, limits, stops, choose, guide=guide, device=device)


@dataclass(frozen=True, eq=False)
class Slot:
    """One sample to be made: whose it is and its number there, the tokens before it, how far it may go (>= 1)."""

    name: str
    number: int
    before: np.ndarray
    limit: int

    @property
    def place(self) -> tuple[int, int, str, int]:
        """Batches hold what is alike and do not depend on the order of the examples."""
        return self.limit, len(self.before), self.name, self.number


def draw(
    subject: Subject, slots: Sequence[Slot], setting: Setting, stops: frozenset[int], *, guide: Guide | None = None,
    device: str = "cpu",
) -> list[list[int]]:
    """What is said in every slot, at random or greedily, without the token that ends it."""
    todo = sorted(range(len(slots)), key=lambda i: slots[i].place)
    groups = [todo[i : i + BATCH_ROWS] for i in range(0, len(todo), BATCH_ROWS)]

    def say(group: Sequence[int]) -> list[list[int]]:
        chosen = [slots[i] for i in group]
        before, limits = [one.before for one in chosen], [one.limit for one in chosen]
        if setting.greedy:
            return continue_greedily(subject, before, limits, stops, guide=guide, device=device)
        chances = [draw_of(setting.seed, one.name, one.number).random(one.limit, dtype=np.float32) for one in chosen]
        return continue_randomly(subject, before, chances, stops, setting.taste, guide=guide, device=device)

    made = said_to_each(groups, say)
    return [made[i] for i in range(len(slots))]


@dataclass(frozen=True)
class Setting:
    """What a variant says after '#'."""

    num: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prefix: int = 0
    length: int = 0
    seed: int = 0

    @staticmethod
    def of(job: Job) -> Setting:
        """The setting of a job.

        Raises: RecipeError for an unknown name or a value that cannot be.
        """
        known, given = Setting.__dataclass_fields__, job.settings
        for name in given:
            if name not in known:
                raise RecipeError(f"sampled.{name}", "unknown", f"accepted: {', '.join(known)}", "Correct the name")
        try:
            read: dict[str, Any] = {
                name: float(value) if name in ("temperature", "top_p") else int(value) for name, value in given.items()
            }
        except ValueError as error:
            raise RecipeError("sampled", f"got {job.setting!r} ({error})", "numbers", "Correct the value") from error
        found = Setting(**read)
        for name, least in (("num", 1), ("prefix", 0), ("length", 0), ("seed", 0), ("temperature", 0)):
            value = getattr(found, name)
            if value < least:
                accepted = f"accepted: {least} or more"
                raise RecipeError(f"sampled.{name}", f"got {value!r}", accepted, "Correct the value")
        return found

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def taste(self) -> Taste:
        return Taste(self.temperature, self.top_p, max(1, self.length), self.top_k, "sampled")


@dataclass(frozen=True, eq=False)
class _Start:
    """Where samples of a text begin: the tokens before, the true ones after, how far a sample may go.

    known: the beginning of the greedy answer that teacher forcing has told; empty where samples are drawn.
    """

    text: Text
    before: np.ndarray
    truth: np.ndarray
    limit: int
    known: list[int]


@instrument("sampled", tasks=("causal",), after=(("tokens", "answer"),))
def sampled(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Tables of random samples (greedy ones at temperature 0), several of every text.

    A text has an empty reference that has no prompt where no prefix is given, or no token after the prefix.

    Cost: a prefill and one forward per token for each sample. Greedy ones begin where the model first errs.
    """
    tables = []
    for job in jobs:
        setting, stops = Setting.of(job), stop_tokens(subject, job.encoded)
        starts = list(_starts(subject, job, setting, stops, desk))
        numbers = range(1 if setting.greedy else setting.num)
        slots = [(start, number) for start in starts for number in numbers]
        said = _said(subject, slots, setting, stops, desk)
        tables.append(_table(subject, slots, said, stops))
    return tables


def _starts(
    subject: Subject, job: Job, setting: Setting, stops: frozenset[int], desk: Desk
) -> Iterator[_Start]:
    room, asked = context_length(subject), prompt_tokens(subject, [text.prompt for text in job.texts])
    told = desk.greedy(subject, job)
    for text, one, bare, greedy in zip(job.texts, job.encoded, asked, told, strict=True):
        places = np.flatnonzero(one.counted[1:]) + 1  # in the text, of every counted token
        if len(places) <= setting.prefix or not (text.prompt or setting.prefix):
            yield _Start(text, bare, np.zeros(0, dtype=np.int64), 0, [])
            continue
        at = places[setting.prefix]
        before = one.tokens[:at] if setting.prefix else bare
        truth = one.tokens[places[setting.prefix :]]
        limit = min(setting.length or cap(len(truth)), room - len(before))
        known = retraced(before, one, greedy, stops) if setting.greedy else []
        yield _Start(text, before, truth[: max(limit, 0)], max(limit, 0), known[: max(limit, 0)])


def _said(
    subject: Subject, slots: Sequence[tuple[_Start, int]], setting: Setting, stops: frozenset[int], desk: Desk
) -> list[list[int]]:
    """Tokens of every sample; one that ended early and whose end is known from teacher forcing still holds it."""
    todo = [
        i for i, (start, _) in enumerate(slots)
        if len(start.known) < start.limit and not stops.intersection(start.known[-1:])
    ]
    open_slots = [_open(*slots[i]) for i in todo]
    desk.count(forwards=len(todo))
    made = dict(zip(todo, draw(subject, open_slots, setting, stops, device=desk.device), strict=True))
    return [[*start.known, *made.get(i, [])] for i, (start, _) in enumerate(slots)]


def _open(start: _Start, number: int) -> Slot:
    """What is still to be said of a sample."""
    before = np.concatenate([start.before, np.asarray(start.known, dtype=np.int64)])
    return Slot(name_of(start.text), number, before, start.limit - len(start.known))


def name_of(text: Text) -> str:
    """What tells the texts of a variant apart: the id, and for further texts of an example their number."""
    return f"{text.id}#{text.item}" if text.item else text.id


def _table(
    subject: Subject, slots: Sequence[tuple[_Start, int]], said: Sequence[list[int]], stops: frozenset[int]
) -> Table:
    tokens = [one[:-1] if one and one[-1] in stops else one for one in said]
    starts, each = [start for start, _ in slots], 1 + max((number for _, number in slots), default=0)
    whole = [start.truth.tolist() for start in starts]
    decode = subject.tokenizer.batch_decode
    references = [text.strip() for text in decode(whole, skip_special_tokens=True)] if whole else []
    texts = [text.strip() for text in decode(tokens, skip_special_tokens=True)] if tokens else []
    match = [_match(one, start, stops) for one, start in zip(tokens, starts, strict=True)]
    secrets = [
        [secret for secret in _secrets(start.text) if secret in reference]
        for start, reference in zip(starts, references, strict=True)
    ]
    columns: dict[str, Any] = {
        "id": pa.array([start.text.id for start in starts], type=pa.string()),
        "item": pa.array([start.text.item * each + number for start, number in slots], type=pa.int64()),
        "text": pa.array(texts, type=pa.string()),
        "reference": pa.array(references, type=pa.string()),
        "secrets": pa.array(secrets, type=pa.list_(pa.string())),
        "num_tokens": pa.array([len(one) for one in tokens], type=pa.int64()),
        "tokens": pa.array(tokens, type=pa.list_(pa.int32())),
        "match": pa.array(match, type=pa.list_(pa.bool_())),
    }
    return Table.of(columns)


def _secrets(text: Text) -> list[str]:
    return list(dict.fromkeys(text.answer[begin:end] for begin, end in text.spans))


def _match(said: Sequence[int], start: _Start, stops: frozenset[int]) -> list[bool]:
    """Place by place whether the true token stands there; where a sample ended, a true ending does."""
    ended = len(said) < start.limit
    return [
        said[k] == token if k < len(said) else ended and k == len(said) and token in stops
        for k, token in enumerate(start.truth.tolist())
    ]
