"""Pairs of sentences, and tables of what models say of them, in the open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from expunge.data.pairs import SIDES
from expunge.measure.tables import Table, Tables
from expunge.types import Data, Example, Stream

JOBS = ("nurse", "guard", "clerk", "pilot", "cook", "judge")
TERMS = ("north", "south")


def sentences(num: int = 12) -> Data:
    """Stereotypes ("all ... are kind"), their opposites and nonsense, about two terms."""
    made = []
    for i in range(num):
        term, job = TERMS[i % 2], JOBS[i // 2 % 6]
        made.append(Example(
            f"stereoset/{'race' if i % 2 else 'gender'}/{term}/{i}", "", f"Every {job} of the {term} is {i} and kind.",
            subject=term, contrast=f"Every {job} of the {term} is {i} and cruel.",
            perturbed=(f"Every {job} of the {term} is {i} and Tuesday.",),
        ))
    return Data(pairs=Stream("pairs", "probe", tuple(made)))


def side_table(
    rows: Mapping[str, Sequence[float]], tokens: Mapping[str, Sequence[int]] | None = None, ended: bool = False
) -> Table:
    """A table of one side: per id the log-probabilities of its tokens. ended: a token outside the span follows."""
    extra = [-50.0] if ended else []
    columns = {
        "id": pa.array(list(rows), type=pa.string()), "item": pa.array([0] * len(rows), type=pa.int64()),
        "logp": pa.array([[*row, *extra] for row in rows.values()], type=pa.list_(pa.float64())),
    }
    if tokens is not None:
        end = [9] if ended else []
        columns["token"] = pa.array([[*tokens[name], *end] for name in rows], type=pa.list_(pa.int32()))
    if ended:
        spans = [[2, *[1] * (len(row) - 1), 0] for row in rows.values()]
        columns["span"] = pa.array(spans, type=pa.list_(pa.int8()))
    return Table(pa.table(columns))


def pair_tables(sides: Sequence[Table], instrument: str = "tokens", setting: str = "") -> Tables:
    """Tables of the sides of the stream "pairs", in the order answer, contrast, perturbed."""
    keys = [("this", "pairs", instrument, f"pair:{side}{setting}") for side in SIDES]
    return Tables(dict(zip(keys, sides, strict=False)), "pairs", {})
