"""Small tables for metric tests: rows are given in the open, so expected values can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from expunge.measure.tables import Table, Tables

Row = tuple[str, Sequence[Any]]
TYPES = {"argmax": pa.bool_(), "logp": pa.float64(), "mean": pa.float64(), "var": pa.float64()}


def token_table(column: str, rows: Sequence[Row], zlib: Sequence[int] = (), **more: Sequence[Sequence[float]]) -> Table:
    """A token table with one ragged column (and more): rows are (id, values)."""
    lists = {column: [list(values) for _, values in rows]}
    lists |= {name: [list(row) for row in found] for name, found in more.items()}
    lists.setdefault("logp", [[-1.0] * len(values) for _, values in rows])
    ragged = {name: pa.array(found, type=pa.list_(TYPES[name])) for name, found in lists.items()}
    items = pa.array([0] * len(rows), type=pa.int64())
    plain = {"id": pa.array([name for name, _ in rows], type=pa.string()), "item": items}
    sizes = pa.array(list(zlib) or [10] * len(rows), type=pa.int64())
    return Table(pa.table({**plain, "zlib": sizes, **ragged}))


def sample_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """A sample table: rows are (id, reference, text)."""
    names = ("id", "reference", "text")
    columns = {name: pa.array([row[k] for row in rows], type=pa.string()) for k, name in enumerate(names)}
    return Table(pa.table({**columns, "item": pa.array([0] * len(rows), type=pa.int64())}))


def tables(found: Mapping[tuple[str, ...], Table] | Table, stream: str = "forget") -> Tables:
    """Tables of one answer table, or of tables keyed by (stream, variant) or (subject, stream, variant)."""
    if isinstance(found, Table):
        found = {(stream, "answer"): found}
    keyed = {}
    for key, table in found.items():
        subject, name, variant = key if len(key) == 3 else ("this", *key)
        keyed[subject, name, "samples" if variant == "prompt" else "tokens", variant] = table
    return Tables(keyed, stream, {})


def loss_rows(losses: Mapping[str, float | Sequence[float]], num_tokens: int = 3) -> Table:
    """A logp table whose rows have the given mean losses; a list of losses gives several rows (false answers)."""
    rows: list[Row] = []
    for name, loss in losses.items():
        rows += [(name, [-float(one)] * num_tokens) for one in np.atleast_1d(np.asarray(loss, dtype=float))]
    return token_table("logp", rows)


def shuffled(table: Table, seed: int = 0) -> Table:
    return Table(table.arrow.take(np.random.default_rng(seed).permutation(len(table))))
