"""Tables for membership metrics: rows given in the open, keys with their instrument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from expunge.measure.tables import Table, Tables


def token_rows(rows: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> Table:
    """Rows of (id, tokens, log-probabilities); rows of one id are numbered."""
    ids = [name for name, _, _ in rows]
    return Table(pa.table({
        "id": pa.array(ids, type=pa.string()),
        "item": pa.array([ids[:k].count(name) for k, name in enumerate(ids)], type=pa.int64()),
        "token": pa.array([list(tokens) for _, tokens, _ in rows], type=pa.list_(pa.int32())),
        "logp": pa.array([list(logp) for _, _, logp in rows], type=pa.list_(pa.float64())),
    }))


def text_rows(texts: Mapping[str, str], subjects: Mapping[str, str] | None = None) -> Table:
    """A table of the `texts` instrument: answers by id, what they are about by id."""
    plain = {"id": list(texts), "item": [0] * len(texts), "prompt": [""] * len(texts), "answer": list(texts.values())}
    about = [(subjects or {}).get(name, "") for name in texts]
    return Table.of(plain | {"zlib": [9] * len(texts), "subject": about})


def norm_rows(norms: Mapping[str, float]) -> Table:
    return Table.of({"id": list(norms), "item": [0] * len(norms), "norm": np.array(list(norms.values()))})


def keyed(found: Mapping[str, Table]) -> Tables:
    """Tables seen from the stream `forget`; keys "[SUBJECT/]STREAM/INSTRUMENT/VARIANT"."""
    made = {}
    for key, table in found.items():
        parts = tuple(key.split("/"))
        made[parts if len(parts) == 4 else ("this", *parts)] = table
    return Tables(made, "forget", {})
