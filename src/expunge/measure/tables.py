"""Measured tables: Arrow columns keyed by example id, token columns ragged. Imports no torch."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.run import storage

ABANDONED = 3600.0  # seconds after which a half-written table has no writer any more
MOST_LETTERS = 60  # of a table's name in that of its half-written file: names of files have a limit

# Token tables, one row per (example, item); `item` numbers the texts of a variant (false answer 0, 1, ...):
#   id, item, zlib (bytes of the compressed text), and per counted token:
#   token, logp (nats), rank (0 = most likely), argmax (bool: the greedy token is this one),
#   mean and var of log p(v) under v ~ p.
#   vocab_ids and vocab_logp hold k values per counted token (`wide`), vocab_rest the probability outside them.
# Sample tables, one row per (example, item): id, item, prompt, text (generated), reference, num_tokens.


class NotMeasured(Exception):
    """A metric asked for a table that could not be had; the message is the reason shown as n/a."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one instrument on one stream variant of one subject."""

    arrow: pa.Table

    @staticmethod
    def of(columns: Mapping[str, Sequence[Any]]) -> Table:
        return Table(pa.table(dict(columns)))

    @cached_property
    def ids(self) -> list[str]:
        return [str(i) for i in self.arrow.column("id").to_pylist()]

    @cached_property
    def items(self) -> np.ndarray:
        return self.column("item")

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def column(self, name: str) -> np.ndarray:
        """A column with one value per row."""
        values: np.ndarray = np.asarray(self.arrow.column(name).to_numpy(zero_copy_only=False))
        return values

    def texts(self, name: str) -> list[str]:
        return [str(text) for text in self.arrow.column(name).to_pylist()]

    def ragged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A token column as (values of all rows end to end, offsets [rows + 1])."""
        if name not in self.arrow.column_names:
            raise NotMeasured(f"the token table has no column '{name}'")
        column = self.arrow.column(name).combine_chunks()
        offsets = column.offsets.to_numpy()
        values = column.values.to_numpy(zero_copy_only=False)
        return values[offsets[0] : offsets[-1]], offsets - offsets[0]

    def rows(self, name: str) -> list[np.ndarray]:
        """A token column as one array per row."""
        values, offsets = self.ragged(name)
        return [values[a:b] for a, b in pairwise(offsets)]

    def wide(self, name: str) -> np.ndarray:
        """A token column with k values per counted token, end to end, as [tokens, k]."""
        values, _ = self.ragged(name)
        tokens = int(self.num_tokens.sum())
        return values.reshape(tokens, len(values) // max(1, tokens))

    def row_sum(self, name: str) -> np.ndarray:
        """Sum of a token column per row, float64; an empty row sums to 0."""
        values, offsets = self.ragged(name)
        summed = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        per_row: np.ndarray = summed[offsets[1:]] - summed[offsets[:-1]]
        return per_row

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Counted tokens per row."""
        return np.diff(self.ragged("logp")[1])

    def select(self, keep: np.ndarray) -> Table:
        """The rows where `keep` is true."""
        return Table(self.arrow.filter(pa.array(keep)))

    def write(self, path: Path) -> None:
        """Write as Parquet, whole or not at all.

        Raises: StorageError.
        """
        start = path.stem[-MOST_LETTERS:]
        aside = path.with_name(f"{start}.{os.getpid()}.{secrets.token_hex(4)}.partial")  # others may write it as well
        with storage(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _sweep(path.parent, start)
                pq.write_table(self.arrow, aside)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> Table:
        return Table(pq.read_table(path))

    @staticmethod
    def stored(path: Path) -> Table | None:
        """The table that is kept there; None where there is none or it cannot be read."""
        try:
            return Table.read(path)
        except (OSError, pa.ArrowException):  # not there, cut off, or no Parquet at all
            return None


def _sweep(folder: Path, start: str) -> None:
    """Remove what writers of the same table left behind that were killed."""
    for left in folder.glob(f"{glob.escape(start)}.*.partial"):
        with contextlib.suppress(OSError):  # another writer may have removed it
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


Key = tuple[str, str, str, str]  # subject, stream, instrument, variant


@dataclass(frozen=True, eq=False)
class Tables:
    """What a metric is given: tables of the subject being scored, and of the oracle, seen from one stream."""

    tables: Mapping[Key, Table]
    stream: str
    missing: Mapping[Key, str]  # why a table could not be had

    def get(self, instrument: str, variant: str = "answer", set: str = "stream", subject: str = "this") -> Table:
        """A table; raises NotMeasured with the reason when there is none."""
        name = self.stream if set == "stream" else set
        key = (subject, name, instrument, variant)
        if key in self.tables:
            return self.tables[key]
        whose = (
            f"no {subject} was given"
            if subject != "this" and not self._has(subject)
            else f"stream '{name}' has no {variant}"
        )
        raise NotMeasured(self.missing.get(key, whose))

    def _has(self, subject: str) -> bool:
        return any(key[0] == subject for key in self.tables)
