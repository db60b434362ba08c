"""What the layers still hold: how likely the true answer is to each, position by position, in three models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.measure.plan import Measured, Plan
from expunge.measure.tables import Table
from expunge.metrics.clusters import Clusters, clusters_of, codes_of
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, bootstrap_ci
from expunge.report import schema
from expunge.types import Data, Needs

CONDITIONS = ("original", "after", "oracle")
POSITIONS = 12
FEWEST = 3  # examples behind a cell: what fewer show would speak of single texts
COLUMN = "logp:block"
HEADS = ("own", "original")
Row = tuple[str, int]  # id, item


def add_lens(plan: Plan, data: Data, *, asked: bool = False) -> Plan:
    """Have the lens write down what `residue_maps` needs, in place. For "original", "oracle" and "after" only.

    Args:
        plan: what a condition is measured with. asked: measure the lens for this alone; else only where a metric
            reads it anyway, which costs a column and no forward.
    Returns: the same plan.
    """
    for stream in data.of_role("forget"):
        known = [head for head in HEADS if (stream.name, "lens", _variant(head)) in plan.wanted]
        if known or (asked and stream.follows is None):
            plan.add(stream.name, [Needs("lens", _variant(known[0] if known else "own"), (COLUMN,))])
    return plan


def residue_maps(measured: Mapping[str, Measured], data: Data) -> list[schema.ResidueMap]:
    """One map per forget stream whose lens was measured on "after" and on "original" or "oracle".

    A cell is the mean over examples of log p_l(x_t | x_<t), nats, of the true token at position t of the answer read
    from layer l (see the instrument `lens`), the end of the answer left out. Cells of fewer than 3 examples are left
    out, and positions from 12 on.
    The gap of a layer is the mean over examples of the difference of their means over these positions.

    Args:
        measured: tables by condition; attacks among them are passed over.
    Cost: 3 ms per layer.
    """
    found = []
    for stream in data.of_role("forget"):
        for head in HEADS:
            asked = (stream.name, "lens", _variant(head))
            rows = {
                name: _rows(measured[name].tables[asked]) for name in CONDITIONS
                if name in measured and asked in measured[name].tables
                and COLUMN in measured[name].tables[asked].arrow.column_names
            }
            if "after" in rows and len(rows) > 1 and rows["after"]:
                made = _map(stream.name, head, rows, clusters_of(stream))
                found += [made] if made is not None else []
                break
    return found


def _variant(head: str) -> str:
    return f"answer#head={head}"


def _rows(table: Table) -> dict[Row, Floats]:
    """Log-probabilities of every text without its last token: (id, item) -> [first positions, layers]."""
    flat, ends = table.wide(COLUMN).astype(np.float64), np.cumsum(table.num_tokens)
    names = zip(table.ids, table.items.tolist(), strict=True)
    pieces = zip(names, np.split(flat, ends[:-1]), strict=True)
    return {row: piece[: min(POSITIONS, len(piece) - 1)] for row, piece in pieces if len(piece) > 1}


def _map(
    stream: str, head: str, rows: Mapping[str, Mapping[Row, Floats]], clusters: Clusters
) -> schema.ResidueMap | None:
    """The map over the texts that all conditions have, of equal length in all."""
    shared = sorted(set.intersection(*(set(one) for one in rows.values())))
    shared = [row for row in shared if len({len(one[row]) for one in rows.values()}) == 1]
    lengths = np.array([len(rows["after"][row]) for row in shared])
    counts = [count for place in range(POSITIONS) if (count := int((lengths > place).sum())) >= FEWEST]
    if not counts:
        return None
    grids = [schema.ResidueGrid(name, _grid([one[row] for row in shared], len(counts))) for name, one in rows.items()]
    against = "oracle" if "oracle" in rows else "original"
    ids = [row[0] for row in shared]
    after, other = (_means(ids, [rows[name][row][: len(counts)] for row in shared]) for name in ("after", against))
    gaps: tuple[schema.ResidueGap, ...] = ()
    codes = codes_of(sorted(set(ids)), clusters)
    if after.shape == other.shape:
        columns = enumerate((after - other).T)
        gaps = tuple(_gap(layer, column, codes) for layer, column in columns if np.isfinite(column).all())
    groups = None if codes is None else int(codes.max()) + 1
    return schema.ResidueMap(stream, tuple(counts), tuple(grids), against, gaps, len(set(ids)), groups, head)


def _grid(texts: list[Floats], positions: int) -> tuple[tuple[float | None, ...], ...]:
    """[layers][positions]; None where a value is not finite."""
    cells = np.stack([np.mean([text[place] for text in texts if len(text) > place], axis=0)
                      for place in range(positions)], axis=1)
    return tuple(tuple(float(cell) if np.isfinite(cell) else None for cell in line) for line in cells)


def _means(ids: list[str], texts: list[Floats]) -> Floats:
    """Mean over the positions of every example, [examples, layers], examples sorted by id."""
    means = np.stack([text.mean(axis=0) for text in texts])
    return np.stack([list(by_id(ids, column).values()) for column in means.T], axis=1)


def _gap(layer: int, differences: Floats, codes: np.ndarray | None) -> schema.ResidueGap:
    return schema.ResidueGap(layer, float(differences.mean()), bootstrap_ci(differences, groups=codes))
