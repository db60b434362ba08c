"""Measure once, derive many: the union of what metrics need, one pass per instrument, tables kept as Parquet."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge import dist
from expunge.data.tokenise import Encoded, Text, encode, texts_of
from expunge.errors import DataError
from expunge.measure.desk import Asked, Desk, Job, Partner
from expunge.measure.tables import NotMeasured, Table
from expunge.measure.tokens import BATCH_TOKENS
from expunge.models import context_length, weights_hash
from expunge.registry import Entry, entries, find
from expunge.types import Data, Needs, Subject

VERSION = 2  # of the instruments: stored tables of another version are not read back
REMEMBERED = 64
_encoded: OrderedDict[str, list[Encoded]] = OrderedDict()  # conditions of one audit ask the same texts again and again


@dataclass
class Plan:
    """What is to be measured on a subject: (stream, instrument, variant) -> columns."""

    wanted: dict[Asked, set[str]] = field(default_factory=dict)

    def add(self, stream: str, needs: Iterable[Needs]) -> None:
        """Add what a metric needs when it scores `stream`, and what those instruments need themselves."""
        for need in needs:
            for name in need.sets:
                where = stream if name == "stream" else name
                self.wanted.setdefault((where, need.instrument, need.variant), set()).update(need.columns)
                for instrument, variant in find("instrument", need.instrument, "instrument").meta["after"]:
                    self.wanted.setdefault((where, instrument, variant), set())


@dataclass(frozen=True)
class Measured:
    """Tables by (stream, instrument, variant), and why others could not be had. Sequences run forward, for the bill."""

    tables: Mapping[Asked, Table]
    missing: Mapping[Asked, str]
    forwards: int
    tokens: int
    backwards: int = 0


@dataclass(frozen=True, eq=False)
class _Prepared:
    job: Job
    path: Path | None


def measure(
    subject: Subject, data: Data, plan: Plan, *, cache: Path | None = None, device: str = "cpu",
    partner: Partner | None = None,
) -> Measured:
    """Run every instrument once over the union of what was asked.

    Examples an attack has shown to the model (`subject.exposed`) are left out.

    Args:
        cache: folder of Parquet tables; a table with the same weights, texts, columns and batch size is read back.
        partner: the model before the removal, for instruments that run it as well.
    Returns: tables and reasons.
    Cost: 1 forward per text for tokens; generations only where the greedy choice leaves the answer.
    """
    desk = Desk(device, data, second=partner)
    missing: dict[Asked, str] = {}
    keys = _Keys(subject, cache, partner)
    for instrument, wanted in _in_order(plan):
        prepared: list[_Prepared] = []
        for asked, columns in wanted:
            try:
                job = _job(subject, data, asked, frozenset(columns), instrument)
                prepared.append(_Prepared(job, keys.path(job, instrument)))
            except NotMeasured as reason:
                missing[asked] = str(reason)
        stored = dist.agree([one.path is not None and one.path.exists() for one in prepared])
        for one, ready in zip(prepared, stored, strict=True):
            if ready and one.path:
                desk.tables[one.job.asked] = Table.read(one.path)
        todo = [one for one, ready in zip(prepared, stored, strict=True) if not ready]
        _run(subject, instrument, todo, desk, missing)
    return Measured(desk.tables, missing, desk.forwards, desk.tokens, desk.backwards)


def _in_order(plan: Plan) -> Iterator[tuple[Entry, list[tuple[Asked, set[str]]]]]:
    """What is wanted of each instrument, those that others build upon first."""
    known = entries("instrument")
    left = sorted({asked[1] for asked in plan.wanted})
    while left:
        ready = [name for name in left if not {other for other, _ in known[name].meta["after"]} & set(left) - {name}]
        for name in ready:
            yield known[name], sorted((asked, columns) for asked, columns in plan.wanted.items() if asked[1] == name)
        left = [name for name in left if name not in ready]


def _run(
    subject: Subject, instrument: Entry, todo: list[_Prepared], desk: Desk, missing: dict[Asked, str]
) -> None:
    """Tables of one instrument, written where they are kept. What it needs and cannot have is a reason."""
    ready = []
    for one in todo:
        before = [(one.job.stream, *needed) for needed in instrument.meta["after"]]
        lacking = [missing.get(asked, "not measured") for asked in before if asked not in desk.tables]
        if lacking:
            missing[one.job.asked] = lacking[0]
        else:
            ready.append(one)
    if not ready:
        return
    try:
        made = instrument.fn(subject, [one.job for one in ready], desk)
    except NotMeasured as reason:
        missing.update({one.job.asked: str(reason) for one in ready})
        return
    for one, table in zip(ready, made, strict=True):
        desk.tables[one.job.asked] = table
        if one.path is not None and dist.rank() == 0:
            table.write(one.path)


def _job(subject: Subject, data: Data, asked: Asked, columns: frozenset[str], instrument: Entry) -> Job:
    """The texts of a table.

    Raises: NotMeasured with the reason why there are none.
    """
    stream, name, variant = asked
    if stream not in data:
        raise NotMeasured(f"no stream '{stream}' was given")
    if subject.task not in instrument.meta["tasks"]:
        raise NotMeasured(f"a {subject.task} model {REFUSALS.get(name, f'has no {name}')}")
    spec = variant.partition("#")[0]
    try:
        texts = texts_of(data[stream], spec, subject.wrapper.ask, data)
    except LookupError as error:
        raise NotMeasured(str(error)) from error
    if data[stream].role == "forget":  # ids are unique within a stream only; attacks show forget examples
        texts = [text for text in texts if text.id not in subject.exposed]
    if not texts:
        raise NotMeasured("every example was shown to the model by the attack")
    if instrument.meta["asks"]:
        texts = [text for text in texts if text.prompt]
    if not texts:
        raise NotMeasured(f"stream '{stream}' has no prompts to ask")
    try:
        encoded = _encode(subject, texts, stream)
    except DataError as error:
        if spec.partition("@")[0] in OWN:  # the user's own texts: an error to be told
            raise
        raise NotMeasured(f"{spec}: {error.found}") from error
    return Job(asked, texts, encoded, columns, {one.id: one for one in data[stream].examples})


OWN = ("answer", "prompt")
REFUSALS = {"samples": "cannot be asked for a text", "continuations": "does not continue a text"}


def _encode(subject: Subject, texts: list[Text], stream: str) -> list[Encoded]:
    """The texts as tokens, from memory where the same texts were tokenised the same way before."""
    limit = context_length(subject)
    key = f"{_digest(_voice(subject), _written(texts))}.{limit}"
    if key not in _encoded:
        _encoded[key] = encode(subject, texts, limit=limit, where=stream)
        while len(_encoded) > REMEMBERED:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


class _Keys:
    """Names of stored tables: weights, texts and voice, columns, dtype and batch size; anything else cannot matter."""

    def __init__(self, subject: Subject, cache: Path | None, partner: Partner | None) -> None:
        self.cache, self.subject, self.partner = cache, subject, partner
        self.weights = weights_hash(subject) if cache is not None else ""
        self.voice = _voice(subject)
        self.dtype = str(next(subject.model.parameters()).dtype)

    def path(self, job: Job, instrument: Entry) -> Path | None:
        if self.cache is None:
            return None
        other = self.partner.key if instrument.meta["partner"] and self.partner is not None else ""
        fields = [job.asked[1], job.asked[2], sorted(job.columns), self.dtype, BATCH_TOKENS, VERSION, other]
        if instrument.name != "tokens":  # what is generated is told together with what the examples say of it
            fields += [[one.choices, one.alternative, one.subject] for one in map(job.examples.__getitem__, _ids(job))]
        key = _digest(self.voice, _written(job.texts), self.weights, *fields)
        readable = re.sub(r"[^\w.-]+", "_", ".".join((job.stream, job.asked[2], job.asked[1])))
        return self.cache / f"{readable}.{key}.parquet"


def _written(texts: list[Text]) -> list[Any]:
    return [[text.id, text.item, text.prompt, text.answer, text.spans] for text in texts]


def _ids(job: Job) -> list[str]:
    return list(dict.fromkeys(text.id for text in job.texts))


def _voice(subject: Subject) -> str:
    """What decides how a text becomes tokens: tokenizer, template, task and what the model's settings say of it."""
    tokenizer, config = subject.tokenizer, subject.model.config
    inner = tokenizer.backend_tokenizer.to_str()
    settings = ("decoder_start_token_id", "label2id", "problem_type", "pad_token_id")
    read = [] if subject.task == "causal" else [subject.task, *(getattr(config, name, None) for name in settings)]
    return _digest(inner, tokenizer.chat_template, tokenizer.eos_token_id, subject.wrapper.template, read)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
