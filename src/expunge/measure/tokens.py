"""The token instrument: one teacher-forced pass from which all likelihood metrics are derived.

Texts that stand twice are run once, answers of one question share it (`packed.py`), and every costly column is made
only for the texts it was asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import dist, machine
from expunge.data.tokenise import Encoded, by_length, collate
from expunge.errors import RecipeError
from expunge.measure.desk import NOT_FINITE, Desk, Job
from expunge.measure.forward import kept_logits
from expunge.measure.packed import TRIAL, Family, can_share, families, run_families, sliding_window
from expunge.measure.spans import span_codes
from expunge.measure.tables import NotMeasured, Table
from expunge.registry import instrument
from expunge.types import Subject

BATCH_TOKENS = 4096  # padded tokens of one forward without gradients: more falls out of the cache of a CPU
MOST_PADDING = 0.03  # of a batch of a quarter that size
TRIMMED = 16  # batches after which freed memory is given back: buffers of many sizes leave holes between the rows
CHUNK = 1024  # positions whose [chunk, V] temporaries live at once
MOST_LOGITS = 2**28  # bytes of the logits of a batch, and of one [chunk, V] temporary
MOST_VOCAB = 1024  # tokens of a stored distribution: all of them in small vocabularies
ALWAYS = ("token", "logp", "argmax", "greedy")  # cost nothing beyond the forward
VOCAB = ("vocab_ids", "vocab_logp", "vocab_rest")  # the whole next-token distribution
COLUMNS = (*ALWAYS, "rank", "margin", "mean", "var", "span", *VOCAB)  # and scheme:TEMPERATURE:TOP_K:TOP_P


@instrument("tokens")
def tokens(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Token tables of all jobs from one pooled pass; see `measure_tokens`.

    Raises: NotMeasured when a token's log-probability is not finite: a ruined model has not forgotten.
    """
    pooled = [one for job in jobs for one in job.encoded]
    wanted = [job.columns for job in jobs for _ in job.encoded]
    rows = measure_each(subject, pooled, wanted, device=desk.device, desk=desk)
    if not all(np.isfinite(row["logp"]).all() for row in rows):  # told here, where every rank sees the same rows
        raise NotMeasured(NOT_FINITE)
    tables, start = [], 0
    for job in jobs:
        mine = rows[start : start + len(job.encoded)]
        start += len(job.encoded)
        sizes = [len(zlib.compress(text.answer.encode("utf-8"))) for text in job.texts]
        tables.append(Table.of(token_columns(job.encoded, mine, sizes)))
    return tables


def measure_tokens(
    subject: Subject, encoded: Sequence[Encoded], columns: Sequence[str], *, device: str = "cpu"
) -> list[dict[str, np.ndarray]]:
    """Token columns of each text, at its counted positions.

    token: the id that should stand there. logp: its log-probability, nats. argmax: whether it is the greedy choice.
    greedy: the greedy choice. rank: tokens that are more likely, 0 = greedy. mean, var: of log p(v), v ~ p.
    margin: how far the best logit is above the second best.
    span: 0 outside the annotated spans, 2 on the first token of one, 1 on its others.
    scheme:T:K:P: logp after temperature T, the K most likely tokens (0: all) and the nucleus of mass P (1: all).
    vocab_ids, vocab_logp: the most likely tokens by id and their log-probabilities, end to end, min(V, 1024) a token;
    vocab_rest: the probability of all others, 0 where there are none.

    Args:
        columns: which of COLUMNS are wanted beyond those that cost nothing.
    Returns: one dict per text, in order; on several ranks every rank holds all rows.
    Cost: 1 forward per distinct question and its answers, the head on counted positions only; mean and var one more
        pass over [K, V]. The vocabulary columns hold 8 min(V, 1024) bytes a token.
    """
    return measure_each(subject, encoded, [frozenset(columns)] * len(encoded), device=device)


@torch.no_grad()
def measure_each(
    subject: Subject, encoded: Sequence[Encoded], wanted: Sequence[frozenset[str]], *, device: str = "cpu",
    desk: Desk | None = None,
) -> list[dict[str, np.ndarray]]:
    """`measure_tokens` with columns of its own for every text."""
    first = _first_of_each(encoded, wanted)
    window = sliding_window(subject.model)
    units = families(encoded, sorted(set(first)), window)
    tried = any(len(unit.members) > 1 for unit in units)
    if tried and not can_share(subject.model, device):
        units = [Family((i,), encoded[i].prompt_length, encoded[i].size) for i in sorted(set(first))]
    if desk is not None:
        trial = TRIAL if tried else (0, 0)
        desk.count(forwards=len(units) + trial[0], tokens=sum(unit.size for unit in units) + trial[1])
    rows: list[tuple[int, dict[str, np.ndarray]]] = []
    for done, group in enumerate(dist.shard(list(_batches(units, encoded, _most_counted(subject.model)))), 1):
        rows += _rows(subject, encoded, wanted, group, device)
        if done % TRIMMED == 0:
            machine.trim()
    found = dict(dist.gather(rows))
    return [
        {name: values for name, values in found[i].items() if _asked(name, columns)}
        | ({"span": span_codes(one)} if "span" in columns else {})
        for i, one, columns in zip(first, encoded, wanted, strict=True)
    ]


def _first_of_each(encoded: Sequence[Encoded], wanted: Sequence[frozenset[str]]) -> list[int]:
    """For every text the first one with the same tokens, the same counted ones and the same columns."""
    seen: dict[tuple[Any, ...], int] = {}
    found = []
    for i, (one, columns) in enumerate(zip(encoded, wanted, strict=True)):
        arrays = (one.tokens, one.counted, one.targets, one.source)
        key = (*(None if array is None else array.tobytes() for array in arrays), one.read, columns)
        found.append(seen.setdefault(key, i))
    return found


def _asked(name: str, columns: frozenset[str]) -> bool:
    return name in ALWAYS or name in columns or (name in VOCAB and not columns.isdisjoint(VOCAB))


def _most_counted(model: Any) -> int:
    """Counted positions of one batch whose logits stay under a bound."""
    size, dtype = int(model.get_input_embeddings().weight.shape[0]), next(model.parameters()).dtype
    return max(256, MOST_LOGITS // (size * int(dtype.itemsize)))


def _batches(units: Sequence[Family], encoded: Sequence[Encoded], most: int) -> Iterator[list[Family]]:
    """Units of similar length, with at most that many counted tokens; families of several texts apart from others."""
    for alone in (True, False):
        chosen = [unit for unit in units if (len(unit.members) == 1) is alone]
        counted = [sum(int(encoded[i].counted.sum()) for i in unit.members) for unit in chosen]
        for group in _close([unit.size for unit in chosen]) if chosen else ():
            full = np.cumsum([counted[i] for i in group])
            start = 0
            while start < len(group):
                before = full[start] - counted[group[start]]
                end = max(start + 1, int(np.searchsorted(full, before + most, side="right")))
                yield [chosen[i] for i in group[start:end]]
                start = end


def _close(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Batches by length that end early where one more row would make too much padding of a batch that is worth it."""
    for group in by_length(sizes, BATCH_TOKENS):
        batch: list[int] = []
        real = 0
        for i in group.tolist():
            padded = sizes[batch[0]] * (len(batch) + 1) if batch else 0
            if batch and real >= BATCH_TOKENS // 4 and padded - real - sizes[i] > MOST_PADDING * padded:
                yield batch
                batch, real = [], 0
            batch.append(i)
            real += sizes[i]
        yield batch


def _rows(
    subject: Subject, encoded: Sequence[Encoded], wanted: Sequence[frozenset[str]], group: Sequence[Family], device: str
) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Columns of the texts of one batch."""
    if len(group[0].members) > 1:
        logits, targets, owners = run_families(subject.model, encoded, group, device)
    else:
        numbers = [unit.members[0] for unit in group]
        batch = collate([encoded[i] for i in numbers], device=device)
        keep = batch.positions("answer")
        logits, targets = kept_logits(subject.model, batch, keep)[0], batch.target_ids[:, 1:][keep]
        owners = list(zip(numbers, keep.sum(-1).tolist(), strict=True))
    rows = []
    sizes = np.array([size for _, size in owners])
    places = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    for columns in dict.fromkeys(wanted[i] for i, _ in owners):  # texts that want the same are worked on together
        mine = [j for j, (i, _) in enumerate(owners) if wanted[i] == columns]
        at = None
        if len(mine) < len(owners):
            at = torch.from_numpy(np.concatenate([places[j] for j in mine])).to(logits.device)
        packed = _columns(logits, targets, columns, at)
        ends = np.cumsum(sizes[mine])[:-1]
        pieces = {name: np.split(values.cpu().numpy(), ends) for name, values in packed.items()}
        rows += [
            (owners[j][0], {name: piece[k].reshape(-1) for name, piece in pieces.items()}) for k, j in enumerate(mine)
        ]
    return rows


def _columns(
    logits: Tensor, targets: Tensor, columns: frozenset[str], at: Tensor | None = None
) -> dict[str, Tensor]:
    """Columns of counted positions, [K] each (those of the vocabulary [K, k]), from logits [K, V].

    Args:
        at: which rows are meant; None: all. What is wider than a number per row is made of a few rows at a time.
    """
    rows = max(1, min(CHUNK, MOST_LOGITS // (4 * logits.shape[-1])))
    if at is None:
        pieces = zip(logits.split(rows), targets.split(rows), strict=True)
        found = [_few(part, right, columns) for part, right in pieces]
    else:
        found = [_few(logits[some], targets[some], columns) for some in at.split(rows)]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _few(logits: Tensor, targets: Tensor, columns: frozenset[str]) -> dict[str, Tensor]:
    """`_columns` of as many rows as may be copied whole."""
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    greedy = logits.argmax(-1)
    out = {
        "token": targets.int(),
        "logp": -torch.nn.functional.cross_entropy(wide, targets, reduction="none"),
        "argmax": greedy == targets,
        "greedy": greedy.int(),
    }
    if "rank" in columns:
        own = logits.gather(-1, targets.unsqueeze(-1))
        out["rank"] = (logits > own).sum(-1).int()
    if "margin" in columns:
        best = wide.topk(2).values
        out["margin"] = best[:, 0] - best[:, 1]
    if "mean" in columns or "var" in columns:
        out["mean"], out["var"] = _moments(wide)
    for name in columns:
        if name.startswith("scheme:"):
            out[name] = _scheme(wide, targets, name)
    if not columns.isdisjoint(VOCAB):
        out |= dict(zip(VOCAB, _distribution(wide), strict=True))
    return out


def _scheme(logits: Tensor, targets: Tensor, name: str) -> Tensor:
    """Log-probability of the targets under a decoding scheme "scheme:temperature:top_k:top_p", nats, [K].

    Temperature first, then the most likely tokens, then the smallest set of them that holds the mass top_p, then all
    divided by what is left. Temperature 0 is greedy. -inf outside.
    """
    try:
        temperature, top_k, top_p = (float(part) for part in name.split(":")[1:])
    except ValueError as error:
        raise RecipeError(name, "no decoding scheme", "scheme:TEMPERATURE:TOP_K:TOP_P", "Correct it") from error
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise RecipeError(name, "out of range", "temperature and top_k 0 or more, top_p in (0, 1]", "Correct it")
    if temperature == 0:
        return torch.where(logits.argmax(-1) == targets, 0.0, -torch.inf)
    scores = logits.float() / temperature
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(int(top_k)).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ordered, order = scores.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the mass of all that are more likely
        scores = scores.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return scores.log_softmax(-1).gather(-1, targets.unsqueeze(-1))[:, 0]


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p(v) under v ~ p, per position [K]."""
    logp = logits.float().log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    return mean, (p * (logp - mean.unsqueeze(-1)).square()).sum(-1)  # centred: no cancellation


def _distribution(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens in the order of their ids [K, k], their log-probabilities [K, k], what is left [K]."""
    size = min(logits.shape[-1], MOST_VOCAB)
    logp = logits.float().log_softmax(-1)
    if size == logits.shape[-1]:
        ids = torch.arange(size, dtype=torch.int32, device=logp.device).expand(len(logp), -1)
        return ids, logp, logp.new_zeros(len(logp))
    chosen = logp.topk(size, sorted=False).indices.sort(-1).values
    kept = logp.gather(-1, chosen)
    rest = 1 - kept.double().exp().sum(-1)
    return chosen.int(), kept, rest.clamp(min=0).float()


def token_columns(
    encoded: Sequence[Encoded], rows: Sequence[dict[str, np.ndarray]], sizes: Sequence[int]
) -> dict[str, Any]:
    """Columns of a token table: ids, items, compressed sizes and the ragged token columns."""
    columns: dict[str, Any] = {
        "id": [one.id for one in encoded],
        "item": [one.item for one in encoded],
        "zlib": list(sizes),
    }
    for name in rows[0] if rows else ALWAYS:
        columns[name] = [row[name] for row in rows]
    return columns
