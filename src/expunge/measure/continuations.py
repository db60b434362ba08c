"""The continuation instrument: what the model says after every start of a text, greedily.

One exact saving makes this bearable. Where teacher forcing found token t to be the greedy choice, what is said after
x_<t is x_t and then what is said after x_<t+1. So only starts after which the model is wrong are run, and their first
token is known as well. What a metric wants is put together from the table, without a model.

Columns of a table, one row per example: id, item, and ragged
    token, span     every counted token that is predicted (all but a text's first); codes as in the token table
    stop            whether the token ends a generation: nothing is said after it, even where the text goes on
    start           which of these tokens the runs begin at, ascending
    length, made    tokens of each run, and the runs end to end (a token that ends a generation is included)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data.tokenise import Encoded
from expunge.measure.desk import NOT_FINITE, Desk, Job
from expunge.measure.samples import continue_greedily, said_to_each, stop_tokens
from expunge.measure.spans import span_codes, spans_of
from expunge.measure.tables import NotMeasured, Table
from expunge.measure.tokens import measure_each
from expunge.registry import instrument
from expunge.types import Subject

SPANS = "span_anchored"  # alone among the columns: spans only; otherwise every start
BATCH_TOKENS = 16384  # padded tokens whose keys and values are held at once


@dataclass(frozen=True, eq=False)
class _Run:
    """A generation to be made: in which row it begins at which counted token, what stands before, how far it goes."""

    row: int
    index: int
    prefix: np.ndarray
    first: int  # the greedy choice after the prefix, known from teacher forcing
    limit: int

    def open(self, stops: frozenset[int]) -> bool:
        """Whether the model has to be run for it."""
        return self.limit > 1 and self.first not in stops


@instrument("continuations", tasks=("causal",), after=(("tokens", "answer"),))
def continuations(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Continuation tables of all jobs; see `measure_continuations`."""
    tables = []
    for job in jobs:
        columns, greedy = sorted(job.columns), _choices(subject, job, desk)
        found, ran = measure_continuations(subject, job.encoded, greedy, columns, device=desk.device)
        desk.count(forwards=ran)
        tables.append(Table.of(found))
    return tables


def _choices(subject: Subject, job: Job, desk: Desk) -> list[np.ndarray]:
    """The greedy choices of all texts; those of which the token table tells nothing are run.

    Raises: NotMeasured where the logits are not finite.
    """
    told = desk.greedy(subject, job)
    lacking = [one for one, known in zip(job.encoded, told, strict=True) if known is None]
    if not lacking:
        return [known for known in told if known is not None]
    made = measure_each(subject, lacking, [frozenset()] * len(lacking), device=desk.device, desk=desk)
    if any(np.isnan(row["logp"]).any() for row in made):
        raise NotMeasured(NOT_FINITE)
    rows = iter(made)
    return [next(rows)["greedy"] if known is None else known for known in told]


def measure_continuations(
    subject: Subject, encoded: Sequence[Encoded], greedy: Sequence[np.ndarray], columns: Sequence[str],
    *, device: str = "cpu",
) -> tuple[dict[str, Any], int]:
    """Greedy continuations of the starts of texts, each at most as long as what is left of its text.

    Args:
        greedy: per text the greedy choice at each counted position (token instrument).
        columns: only "span_anchored": where annotated spans begin, and as long as the span; otherwise everywhere.
    Returns: the columns of a table, and how many generations a model had to make.
    Cost: one generation per start after which the model is wrong, in batches of similar length.
    """
    stops = stop_tokens(subject, encoded)
    whole = set(columns) != {SPANS}
    rows = [_row(one, stops) for one in encoded]
    runs = [run for i, one in enumerate(encoded) for run in _runs(i, one, rows[i], greedy[i], whole)]
    for run, tokens in zip(runs, _generate(subject, runs, stops, device), strict=True):
        rows[run.row]["start"].append(run.index)
        rows[run.row]["length"].append(len(tokens))
        rows[run.row]["made"].extend(tokens)
    types = {"token": np.int32, "span": np.int8, "stop": np.bool_, "start": np.int32, "length": np.int32}
    table: dict[str, Any] = {"id": [one.id for one in encoded], "item": [one.item for one in encoded]}
    for name, dtype in (types | {"made": np.int32}).items():
        table[name] = [np.asarray(row[name], dtype=dtype) for row in rows]
    return table, sum(run.open(stops) for run in runs)


def _row(one: Encoded, stops: frozenset[int]) -> dict[str, Any]:
    tokens = one.tokens[1:][one.counted[1:]]
    ends = np.isin(tokens, list(stops))
    return {"token": tokens, "span": span_codes(one), "stop": ends, "start": [], "length": [], "made": []}


def _runs(number: int, one: Encoded, row: dict[str, Any], greedy: np.ndarray, whole: bool) -> Iterator[_Run]:
    """The generations that cannot be read off the text itself, by ascending start."""
    places = np.flatnonzero(one.counted[1:]) + 1  # in the text, of every counted token
    # Where the token after next does not count (layout inside an answer), teacher forcing tells nothing of it.
    broken = np.append(np.diff(places) != 1, False) & ~row["stop"]
    wrong = (greedy != row["token"]) | broken
    starts = [(int(k), len(places)) for k in np.flatnonzero(wrong)]
    if not whole:
        starts = []
        for begin, end in spans_of(row["span"]):
            decided = np.flatnonzero((wrong | row["stop"])[begin:end])
            if len(decided) and wrong[begin + decided[0]]:
                starts.append((begin + int(decided[0]), end))
    for index, end in starts:
        yield _Run(number, index, one.tokens[: places[index]], int(greedy[index]), end - index)


def _generate(subject: Subject, runs: Sequence[_Run], stops: frozenset[int], device: str) -> list[list[int]]:
    """Tokens of every run, the one that ends it included."""
    # Generation leaves out the token that ended it. With one such token there is no doubt which it was; with several
    # nothing ends a generation and what follows is cut off here.
    known = stops if len(stops) == 1 else frozenset()
    todo = [i for i, run in enumerate(runs) if run.open(stops)]
    todo.sort(key=lambda i: (runs[i].limit, len(runs[i].prefix)))

    def say(group: Sequence[int]) -> list[list[int]]:
        prefixes = [np.append(runs[i].prefix, runs[i].first) for i in group]
        limits = [runs[i].limit - 1 for i in group]
        more = continue_greedily(subject, prefixes, limits, known, device=device)
        return [_closed(tokens, limit, stops) for tokens, limit in zip(more, limits, strict=True)]

    produced = said_to_each(_batches(runs, todo), say)
    return [[run.first, *produced.get(i, [])] for i, run in enumerate(runs)]


def _closed(tokens: list[int], limit: int, stops: frozenset[int]) -> list[int]:
    """A generation up to the token that ended it."""
    for k, token in enumerate(tokens):
        if token in stops:
            return tokens[: k + 1]
    return tokens if len(tokens) == limit else [*tokens, *stops]


def _batches(runs: Sequence[_Run], order: Sequence[int]) -> list[list[int]]:
    """Runs in order, in batches whose padded size stays under a bound."""
    batches: list[list[int]] = []
    width = longest = 0
    for i in order:
        width, longest = max(width, len(runs[i].prefix) + 1), max(longest, runs[i].limit)
        if not batches or (width + longest) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
            width, longest = len(runs[i].prefix) + 1, runs[i].limit
        batches[-1].append(i)
    return batches
