"""From the rows of a token table to values per example: sums and means of ragged columns, keyed by example id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expunge.measure.tables import NotMeasured, Table
from expunge.metrics.stats import Floats, Indices


@dataclass(frozen=True, eq=False)
class Ragged:
    """A token column: `values` of all rows end to end, the row each belongs to, and the rows' lengths and ids."""

    values: Floats  # [tokens]
    owner: Indices  # [tokens]
    n: Indices  # [rows]
    ids: tuple[str, ...]  # [rows]

    @property
    def position(self) -> Indices:
        """Index of every token within its row, [tokens]."""
        starts = np.cumsum(self.n) - self.n
        return np.arange(len(self.values)) - starts[self.owner]

    def sums(self) -> Floats:
        """Sum per row, [rows]; adds within a row only, so one infinite token spoils no other row."""
        return np.bincount(self.owner, weights=self.values, minlength=len(self.n)).astype(np.float64)

    def means(self) -> Floats:
        """Mean per row, [rows]; no row is empty."""
        return np.asarray(self.sums() / self.n)


def ragged(table: Table, column: str, *, ending: bool = True) -> Ragged:
    """A token column without the rows that have no counted token.

    ending: False leaves out the last counted token of every row, which after an answer is the end of sequence.
    """
    if len(table) == 0:
        return Ragged(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), ())
    flat, offsets = table.ragged(column)
    lengths = np.diff(offsets).astype(np.int64)
    if not ending:
        flat = np.delete(flat, offsets[1:][lengths > 0] - 1)
        lengths = np.maximum(lengths - 1, 0)
    kept = lengths > 0
    n = lengths[kept]
    ids = tuple(name for name, keep in zip(table.ids, kept, strict=True) if keep)
    return Ragged(flat.astype(np.float64), np.repeat(np.arange(len(n)), n), n, ids)


def row_column(table: Table, column: str, like: Ragged, *, ending: bool = True) -> Floats:
    """A column with one value per row, for the rows that `like` kept; ending: as it was made with."""
    if column not in table.arrow.column_names:
        raise NotMeasured(f"the token table has no column '{column}'")
    if len(like.ids) == 0:
        return np.zeros(0)
    lengths = np.diff(table.ragged("logp")[1])
    return np.asarray(table.column(column)[lengths > (0 if ending else 1)], dtype=np.float64)


def by_id(ids: Sequence[str], values: Floats) -> dict[str, float]:
    """The mean of the values of every id, ids sorted."""
    if len(ids) == 0:
        return {}
    names, inverse = np.unique(np.asarray(ids, dtype=str), return_inverse=True)
    codes = inverse.reshape(-1)
    means = np.bincount(codes, weights=values) / np.bincount(codes)
    return {str(name): float(value) for name, value in zip(names, means, strict=True)}


def grouped(ids: Sequence[str], values: Floats) -> dict[str, Floats]:
    """All values of every id, sorted by size (so the order of rows does not matter), ids sorted."""
    found: dict[str, list[float]] = {}
    for name, value in zip(ids, values, strict=True):
        found.setdefault(name, []).append(float(value))
    return {name: np.sort(np.array(found[name])) for name in sorted(found)}


def losses(table: Table) -> dict[str, float]:
    """Mean negative log-likelihood per counted token of every example, nats."""
    column = ragged(table, "logp")
    return by_id(column.ids, -column.means())
