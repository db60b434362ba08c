"""The sample instrument: what the model says when asked. Causal models and encoder-decoders can be asked.

Greedily, unless the subject's `decoding` says otherwise (decoding.py). Greedy answers have two exact savings. Where
teacher forcing found every answer token to be the greedy one, the generation is the answer and nothing is run. Where
the first wrong token is at position k, the first k tokens are known and the generation starts there. Both hold because
greedy decoding from a prompt retraces the answer as long as it agrees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expunge import dist
from expunge.data.tasks import start_token
from expunge.data.tokenise import Encoded, prompt_tokens
from expunge.errors import RecipeError
from expunge.measure.desk import Desk, Job
from expunge.measure.forward import packed_head
from expunge.measure.generation import Choose, check_finite, ended, generate, padded
from expunge.measure.tables import NotMeasured, Table
from expunge.models import context_length
from expunge.registry import instrument
from expunge.types import Decoding, Subject

BATCH_ROWS = 64
MOST_TOKENS = 200


@dataclass(frozen=True)
class Generation:
    """Generated token ids (without the end-of-sequence token) and how many of them a model had to produce."""

    tokens: list[int]
    produced: int


@instrument("samples", tasks=("causal", "seq2seq"), asks=True, after=(("tokens", "answer"),))
def samples(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Sample tables: what the model answers, beside the reference, the choices and the alternative.

    Greedily; where the subject's `decoding` draws several answers to a question, the one closest to the reference.
    """
    return [_table(subject, job, desk) for job in jobs]


def _table(subject: Subject, job: Job, desk: Desk) -> Table:
    prompts = [text.prompt for text in job.texts]
    if subject.decoding == Decoding():
        greedy = desk.greedy(subject, job)
        made = measure_samples(subject, prompts, job.encoded, greedy, device=desk.device, most=_most(job))
        desk.count(forwards=sum(one.produced > 0 for one in made))
    else:
        from expunge.measure.decoding import answers  # it builds upon this module

        made = answers(subject, job, desk, _most(job))
    decoded = subject.tokenizer.batch_decode([one.tokens for one in made], skip_special_tokens=True)
    asked = [job.examples[text.id] for text in job.texts]
    columns: dict[str, Any] = {
        "id": [text.id for text in job.texts],
        "item": [text.item for text in job.texts],
        "prompt": prompts,
        "text": [text.strip() for text in decoded],
        "reference": [text.answer for text in job.texts],
        "choices": pa.array([list(one.choices) for one in asked], type=pa.list_(pa.string())),
        "num_tokens": [len(one.tokens) for one in made],
        "produced": [one.produced for one in made],
        "tokens": [one.tokens for one in made],
    }
    if "alternative" in job.columns:
        columns["alternative"] = [one.alternative or "" for one in asked]
    return Table.of(columns)


def _most(job: Job) -> int | None:
    """The setting "max_new_tokens=N", if there is one."""
    unknown = job.settings.keys() - {"max_new_tokens"}
    value = job.settings.get("max_new_tokens", "1")
    if unknown or not value.isdecimal() or int(value) < 1:
        raise RecipeError("samples", f"got '#{job.setting}'", "accepted: #max_new_tokens=N, N >= 1", "Correct it")
    return int(value) if "max_new_tokens" in job.settings else None


def cap(num_answer_tokens: int) -> int:
    """Longest generation for an answer of that many tokens: half as much again and 8, at most 200 (and the context)."""
    return min(MOST_TOKENS, num_answer_tokens * 3 // 2 + 8)


def measure_samples(
    subject: Subject, prompts: Sequence[str], encoded: Sequence[Encoded],
    greedy: Sequence[np.ndarray | None] | None, *, device: str = "cpu", most: int | None = None,
) -> list[Generation]:
    """Greedy generations for prompts.

    Args:
        prompts: what is asked. encoded: the same prompts with their true answers.
        greedy: per row the greedy choice at each counted position (token instrument), or None where nothing is known.
            None for all rows to use no saving; encoder-decoders use none.
        most: tokens of a generation at most; None: as the true answer says, see `cap`.
    Returns: one Generation per prompt, in order.
    Cost: prefill plus one forward per token produced, in batches of similar remaining length, finished rows dropped.
    """
    asked = prompt_tokens(subject, prompts)
    stops = stop_tokens(subject, encoded)
    limits = limits_of(subject, asked, encoded, most)
    if subject.task == "seq2seq":
        return _answered(subject, asked, limits, stops, device)
    greedy_rows: Sequence[np.ndarray | None] = greedy if greedy is not None else [None] * len(asked)
    told = [retraced(a, one, g, stops) for a, one, g in zip(asked, encoded, greedy_rows, strict=True)]
    ended = [not stops.isdisjoint(tokens[-1:]) for tokens in told]
    known = [tokens[:-1] if done else tokens for tokens, done in zip(told, ended, strict=True)]
    open_rows = [i for i, prefix in enumerate(known) if not ended[i] and len(prefix) < limits[i]]
    open_rows.sort(key=lambda i: limits[i] - len(known[i]))
    groups = [open_rows[i : i + BATCH_ROWS] for i in range(0, len(open_rows), BATCH_ROWS)]

    def say(group: Sequence[int]) -> list[list[int]]:
        starts = [np.concatenate([asked[i], np.asarray(known[i], dtype=np.int64)]) for i in group]
        return continue_greedily(subject, starts, [limits[i] - len(known[i]) for i in group], stops, device=device)

    produced = said_to_each(groups, say)
    return [
        Generation([*prefix, *produced.get(i, [])][: limits[i]], len(produced.get(i, [])))
        for i, prefix in enumerate(known)
    ]


def limits_of(
    subject: Subject, asked: Sequence[np.ndarray], encoded: Sequence[Encoded], most: int | None = None
) -> list[int]:
    """Most tokens of an answer to each prompt: `most`, or as the true answer says, and what the context leaves."""
    room = context_length(subject)
    taken = [1 if subject.task == "seq2seq" else len(one) for one in asked]  # a decoder reads its start token alone
    return [min(most or cap(int(one.counted.sum())), room - n) for n, one in zip(taken, encoded, strict=True)]


def _answered(
    subject: Subject, asked: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int], device: str
) -> list[Generation]:
    """What an encoder-decoder says to each source, each up to its limit."""
    order = sorted(range(len(asked)), key=lambda i: limits[i])
    groups = [order[i : i + BATCH_ROWS] for i in range(0, len(order), BATCH_ROWS)]

    def say(group: Sequence[int]) -> list[list[int]]:
        return translate_greedily(subject, [asked[i] for i in group], [limits[i] for i in group], stops, device=device)

    said_to = said_to_each(groups, say)
    return [Generation(said_to[i], len(said_to[i])) for i in range(len(asked))]


def said_to_each(
    groups: Sequence[Sequence[int]], say: Callable[[Sequence[int]], list[list[int]]]
) -> dict[int, list[int]]:
    """What `say` makes of each group, by the numbers in the groups, which the ranks share among them.

    Raises: NotMeasured on every rank if on one.
    """
    found: list[tuple[int, list[int]]] = []
    reasons: list[str] = []
    try:
        for group in dist.shard(groups):
            found += zip(group, say(group), strict=True)
    except NotMeasured as reason:  # raised at once, it would leave the other ranks waiting
        reasons.append(str(reason))
    for told in dist.gather(reasons):
        raise NotMeasured(told)
    return dict(dist.gather(found))


def translate_greedily(
    subject: Subject, asked: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int], *, device: str = "cpu"
) -> list[list[int]]:
    """Greedy answers of an encoder-decoder to its sources, without start and stop tokens."""
    return translate_with(subject, asked, limits, stops, None, device=device)


@torch.no_grad()
def translate_with(
    subject: Subject, asked: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int],
    choose: Choose | None, *, beams: int = 1, num: int = 1, device: str = "cpu",
) -> list[list[int]]:
    """Answers of an encoder-decoder by whatever `choose` chooses (None: the argmax), or the likeliest by beam search.

    Nothing else decides: of the model's generation settings only the language code that must come first and the tokens
    that may never come are kept, no penalties, no forced end.

    Args:
        num: answers to each source, the likeliest of the beams; those of a source follow each other.
    Raises: NotMeasured for logits that are not finite.
    """
    ids, mask = padded(asked, device=device)
    start = start_token(subject.model)
    opening = set(subject.tokenizer.all_special_ids) - stops  # a language code or start token that comes first
    out = generate(
        subject, ids, mask, stops, max(limits) + 1, choose=choose, num_beams=beams, num_return_sequences=num,
        decoder_start_token_id=start,
    )
    answers = []
    for i, row in enumerate(out[:, 1:].tolist()):
        said = row[1:] if row[:1] and row[0] in opening else row
        answers.append(ended(said, limits[i // num], stops))
    return answers


def stop_tokens(subject: Subject, encoded: Sequence[Encoded] = ()) -> frozenset[int]:
    """Tokens that end a generation: end of sequence, those of the model's generation settings, and the end of turn
    that the chat template puts after the encoded answers."""
    settings = getattr(subject.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = {subject.tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])}
    special = set(subject.tokenizer.all_special_ids)
    found |= {int(one.tokens[-1]) for one in encoded} & special
    return frozenset(int(token) for token in found if token is not None)


def retraced(before: np.ndarray, one: Encoded, greedy: np.ndarray | None, stops: frozenset[int]) -> list[int]:
    """What is said greedily after `before`, as far as teacher forcing already tells it.

    Those are the true tokens up to the first wrong one or one that ends the generation, both of them included. Nothing
    where the text does not begin with `before` (a prompt may be tokenised differently alone), and nothing beyond a
    place that does not count.

    Args:
        greedy: the greedy choice at each counted token of `one` but its first; None: teacher forcing tells nothing.
    """
    at = len(before)
    if greedy is None or not at or not np.array_equal(before, one.tokens[:at]):
        return []
    counted = np.append(one.counted[at:], False)
    length, skipped = int(counted.argmin()), int(one.counted[1:at].sum())
    chosen = greedy[skipped : skipped + length]
    wrong = np.flatnonzero(chosen != one.tokens[at : at + length])
    tokens: list[int] = (chosen[: wrong[0] + 1] if len(wrong) else chosen).tolist()
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


def check_memory(model: Any) -> None:
    """Recurrent models swallow keys and values unread and would see the last token alone.

    Raises: NotMeasured.
    """
    from transformers import PreTrainedModel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside an adapter
    if isinstance(base, PreTrainedModel) and "past_key_values" not in inspect.signature(base.forward).parameters:
        raise NotMeasured("this model's architecture keeps no keys and values: it cannot be asked here")


@dataclass(frozen=True, eq=False)
class Guide:
    """A model of the same tokens that reads along, and what becomes of what both say of the next one.

    steer: logits [R, V] of the model and of this one -> scores [R, V].
    """

    subject: Subject
    steer: Callable[[Tensor, Tensor], Tensor]


def continue_greedily(
    subject: Subject, starts: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int], *,
    guide: Guide | None = None, device: str = "cpu",
) -> list[list[int]]:
    """Greedy continuations of token prefixes, each up to its limit or a stop token (not included)."""

    def choose(logits: Tensor, rows: list[int], said: int) -> Tensor:
        return logits.argmax(-1)

    return continue_with(subject, starts, limits, stops, choose, guide=guide, device=device)


@torch.no_grad()
def continue_with(
    subject: Subject, starts: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int], choose: Choose,
    *, guide: Guide | None = None, device: str = "cpu",
) -> list[list[int]]:
    """Continuations of token prefixes by whatever `choose` chooses, each up to its limit or a stop token.

    A prefix that stands several times is read once. An encoder-decoder answers the prefixes.

    Raises: NotMeasured for logits that are not finite, and for a model that keeps no keys and values.
    """
    from transformers import DynamicCache

    if subject.task == "seq2seq":
        return translate_with(subject, starts, limits, stops, choose, device=device)

    models = [subject.model] if guide is None else [subject.model, guide.subject.model]
    for model in models:
        check_memory(model)
    first: dict[bytes, int] = {}
    which = [first.setdefault(start.tobytes(), len(first)) for start in starts]  # of the distinct ones, for every row
    distinct = [starts[which.index(number)] for number in range(len(first))]
    ids, mask = padded(distinct, left=True, device=device)
    rows, out = list(range(len(starts))), [[] for _ in starts]  # type: list[int], list[list[int]]
    caches = [DynamicCache(config=model.config) for model in models]
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    while rows:
        told = [_next_logits(*one, ids, mask, position) for one in zip(models, caches, strict=True)]
        logits = told[0] if guide is None else guide.steer(told[0], told[1])
        if len(logits) < len(rows):
            of_row = torch.tensor(which, dtype=torch.long, device=device)
            for cache in caches:
                cache.batch_select_indices(of_row)
            logits, mask, position = logits[of_row], mask[of_row], position[of_row]
        chosen = choose(logits, rows, len(out[rows[0]]))  # [rows]; all have said as much so far
        going = []
        for j, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token not in stops:
                out[row].append(token)
                if len(out[row]) < limits[row]:
                    going.append(j)
        if len(going) < len(rows):
            keep = torch.tensor(going, dtype=torch.long, device=device)
            rows = [rows[j] for j in going]
            if not rows:
                break
            for cache in caches:
                cache.batch_select_indices(keep)
            chosen, mask, position = chosen[keep], mask[keep], position[keep]
        ids = chosen.unsqueeze(-1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        position = position[:, -1:] + 1
    return out


def _next_logits(model: Any, cache: Any, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
    """Logits of what follows the last token of every row, [R, V]; the cache then holds the tokens read."""
    last = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    last[:, -1] = True
    with packed_head(model, last):
        logits: Tensor = model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        ).logits[0]
    check_finite(logits)
    return logits
