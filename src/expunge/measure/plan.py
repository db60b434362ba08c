"""Measure once, derive many: the union of what metrics need, one pass per instrument, tables kept as Parquet."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge import dist
from expunge.data.texts import asked_of
from expunge.data.tokenise import Encoded, Text, encode, texts_of
from expunge.errors import DataError
from expunge.measure.desk import Asked, Desk, Job, Partner
from expunge.measure.tables import NotMeasured, Table
from expunge.measure.tokens import BATCH_TOKENS
from expunge.models import context_length, is_adapter, weights_hash
from expunge.registry import Entry, entries, find
from expunge.types import Data, Decoding, Needs, Subject, Wrapper

VERSION = 3  # of the instruments: stored tables of another version are not read back
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
    """Tables by (stream, instrument, variant), and why others could not be had. Sequences run forward, for the bill.

    files: where the tables are kept.
    """

    tables: Mapping[Asked, Table]
    missing: Mapping[Asked, str]
    forwards: int
    tokens: int
    backwards: int = 0
    files: Mapping[Asked, Path] = field(default_factory=dict)


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
    data = asked_of(data, subject.wrapper)
    desk = Desk(device, data, second=partner)
    missing: dict[Asked, str] = {}
    files: dict[Asked, Path] = {}
    keys = _Keys(subject, cache, partner)
    guide = subject.helpers.get(subject.decoding.guide)
    with evaluating(subject.model), nullcontext() if guide is None else evaluating(guide.model):
        for instrument, wanted in _in_order(plan):
            prepared: list[_Prepared] = []
            for asked, columns in wanted:
                try:
                    job = _job(subject, data, asked, frozenset(columns), instrument)
                    prepared.append(_Prepared(job, keys.path(job, instrument)))
                except NotMeasured as reason:
                    missing[asked] = str(reason)
            files |= {one.job.asked: one.path for one in prepared if one.path is not None}
            todo = []
            for one, table in zip(prepared, _stored(prepared), strict=True):
                if table is None:
                    todo.append(one)
                else:
                    desk.tables[one.job.asked] = table
            _run(subject, instrument, todo, desk, missing)
    kept = {asked: path for asked, path in files.items() if asked in desk.tables}
    return Measured(desk.tables, missing, desk.forwards, desk.tokens, desk.backwards, kept)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """While active the model evaluates: no dropout, and no checkpointing, which keeps no keys and values."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _stored(prepared: list[_Prepared]) -> list[Table | None]:
    """The tables that every rank can read, and None for those that have to be made."""
    found = [None if one.path is None else Table.stored(one.path) for one in prepared]
    have = zip(*dist.gather([[table is not None for table in found]]), strict=True)
    return [table if all(ranks) else None for table, ranks in zip(found, have, strict=True)]


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
        if len(ready) > 1:  # what one table lacks is no reason for the others
            for one in ready:
                _run(subject, instrument, [one], desk, missing)
        else:
            missing[ready[0].job.asked] = str(reason)
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
        plain = replace(subject.wrapper, template="") == Wrapper("")  # as they were given, not as an attack puts them
        if plain and spec.partition("@")[0] in OWN:  # the user's own texts: an error to be told
            raise
        raise NotMeasured(f"{spec}: {error.found}") from error
    return Job(asked, texts, encoded, columns, {one.id: one for one in data[stream].examples})


OWN = ("answer", "prompt")
REFUSALS = {"samples": "cannot be asked for a text", "continuations": "does not continue a text"}


def _encode(subject: Subject, texts: list[Text], stream: str) -> list[Encoded]:
    """The texts as tokens, from memory where the same texts were tokenised the same way before."""
    limit = context_length(subject)
    rows = subject.model.get_input_embeddings().weight.shape[0]  # a text may hold tokens that this model lacks
    key = f"{_digest(_voice(subject), _written(texts))}.{limit}.{rows}"
    if key not in _encoded:
        _encoded[key] = encode(subject, texts, limit=limit, where=stream)
        while len(_encoded) > REMEMBERED:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


class _Keys:
    """Names of stored tables: weights and settings, texts and voice, columns and batch size; no more can matter."""

    def __init__(self, subject: Subject, cache: Path | None, partner: Partner | None) -> None:
        self.cache, self.partner = cache, partner
        self.model = "" if cache is None else _digest(weights_hash(subject), _settings(subject))
        self.voice = _voice(subject)
        self.decoding = _decoding(subject) if cache is not None else []

    @cached_property
    def other(self) -> str:
        """The model before the removal, loaded for the instruments that run it."""
        return "" if self.partner is None else _digest(self.partner.key, _settings(self.partner.subject))

    def path(self, job: Job, instrument: Entry) -> Path | None:
        if self.cache is None:
            return None
        other = self.other if instrument.meta["partner"] else ""
        fields = [job.asked[1], job.asked[2], sorted(job.columns), BATCH_TOKENS, VERSION, other]
        if instrument.name != "tokens":  # what is generated is told together with what the examples say of it
            fields += [[one.choices, one.alternative, one.subject] for one in map(job.examples.__getitem__, _ids(job))]
        if instrument.name == "samples":  # the others say themselves how they draw, or draw nothing
            fields += self.decoding
        key = _digest(self.voice, _written(job.texts), self.model, *fields)
        readable = re.sub(r"[^\w.-]+", "_", ".".join((job.stream, job.asked[2], job.asked[1])))
        return self.cache / f"{readable}.{key}.parquet"


# Of a model's settings: where it came from, what its files say beside the model, and what a pass is told anyway.
UNREAD = frozenset({
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "return_dict",
    "output_attentions", "output_hidden_states",
})


def _settings(subject: Subject) -> list[Any]:
    """What besides its weights decides what a model says, the same for every copy of it."""
    model, tokenizer = subject.model, subject.tokenizer
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [
        str(next(model.parameters()).dtype), _read(model.config.to_dict()), context_length(subject),
        ends if isinstance(ends, list | tuple) else [ends], sorted(tokenizer.all_special_ids), _adapters(model),
    ]


def _read(value: Any) -> Any:
    """A setting as JSON, without those that change nothing, in an order that is the same in every process."""
    if isinstance(value, Mapping):
        return {str(name): _read(value[name]) for name in sorted(value, key=str) if name not in UNREAD}
    if isinstance(value, set | frozenset):
        return sorted(str(one) for one in value)
    if isinstance(value, list | tuple):
        return [_read(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _adapters(model: Any) -> list[Any]:
    """Of a PEFT model: which adapters are on, in every layer, and how strongly they count."""
    if not is_adapter(model):
        return []
    states = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
    layers = [
        [name, type(module).__name__, *(_read(getattr(module, state, None)) for state in states)]
        for name, module in model.named_modules() if hasattr(module, "adapter_layer_names")
    ]
    return [_read(model.active_adapters), bool(getattr(model, "_adapters_disabled", False)), sorted(layers, key=str)]


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
    wrapper = subject.wrapper
    said = [] if not (wrapper.turns or wrapper.prefill) else [sorted(wrapper.turns.items()), wrapper.prefill]
    return _digest(inner, tokenizer.chat_template, tokenizer.eos_token_id, wrapper.template, read, *said)


def identity(subject: Subject) -> str:
    """All that decides what is measured of a subject: weights, settings, tokenizer, template, and the instruments'
    version."""
    return _digest(weights_hash(subject), _settings(subject), _voice(subject), VERSION)


def _decoding(subject: Subject) -> list[Any]:
    """How answers are chosen, and the weights of the helper that guides the choice; nothing for greedy ones."""
    decoding = subject.decoding
    if decoding == Decoding():
        return []
    guide = subject.helpers.get(decoding.guide)
    return [asdict(decoding), "" if guide is None else identity(guide)]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
