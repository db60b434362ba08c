"""What the layers still hold, for the report: heat maps as tables, and the gap to the yardstick by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expunge.report import lines, numbers, view
from expunge.report.chapters import Chart, Line
from expunge.report.schema import Evidence, ResidueGrid, ResidueMap

MOST = 32  # layers shown of a model
LOWEST = -14.0  # nats at which the scale ends at the latest


@dataclass(frozen=True)
class Heat:
    """One cell: what is printed in it, and its place on the scale, 0 (least likely) to 1."""

    text: str
    share: float | None


@dataclass(frozen=True)
class Grid:
    kind: str
    title: str
    rows: tuple[tuple[int, tuple[Heat, ...]], ...]  # number of a layer and its cells, the last layer first


@dataclass(frozen=True)
class Layers:
    """The maps of one stream on one scale."""

    stream: str
    size: str
    head: str
    counts: tuple[int, ...]
    grids: tuple[Grid, ...]
    low: str  # the probability at the lower end of the scale
    skipped: int  # layers of a deep model that are not shown
    gap: str  # the drawing
    gap_title: str


def layers(evidence: Evidence) -> list[Layers]:
    """One for every stream whose layers were read."""
    return [_layers(evidence, one) for one in evidence.residue if one.grids and one.counts]


def _layers(evidence: Evidence, found: ResidueMap) -> Layers:
    known = [cell for grid in found.grids for row in grid.logp for cell in row if cell is not None]
    low = max(LOWEST, min([*known, -1.0]))
    depth = max(len(grid.logp) for grid in found.grids)
    stride = -(-depth // MOST)
    shown = sorted(range(depth - 1, -1, -stride), reverse=True)
    size = f"{found.n:,} examples" + (f" of {found.groups:,} subjects" if found.groups else "")
    return Layers(
        found.stream, size, found.head, found.counts,
        tuple(_grid(evidence, grid, shown, low) for grid in found.grids), likely(low), depth - len(shown),
        _gap(evidence, found), "How much more the layers hold of the answers than "
        f"{'those of the oracle' if found.against == 'oracle' else 'before the removal'}",
    )


def _grid(evidence: Evidence, grid: ResidueGrid, shown: list[int], low: float) -> Grid:
    condition = evidence.condition(grid.condition)
    rows = tuple((layer, tuple(_heat(cell, low) for cell in grid.logp[layer])) for layer in shown
                 if layer < len(grid.logp))
    return Grid(condition.kind if condition else "after", view.label(evidence, grid.condition), rows)


def _heat(cell: float | None, low: float) -> Heat:
    return Heat("n/a", None) if cell is None else Heat(likely(cell), round(1 - max(low, min(0.0, cell)) / low, 3))


def likely(logp: float) -> str:
    """The probability behind a mean log-probability, in percent and short: "98", "3", ".4", "<.1"."""
    hundred = 100 * math.exp(logp)
    if hundred >= 0.95:
        return f"{hundred:.0f}"
    return f"{hundred:.1f}".removeprefix("0") if hundred >= 0.1 else "<.1"


def _gap(evidence: Evidence, found: ResidueMap) -> str:
    points = tuple((float(gap.layer), gap.difference) for gap in found.gaps if math.isfinite(gap.difference))
    spans = tuple((float(gap.layer), *gap.ci) for gap in found.gaps if gap.ci is not None)
    whose = "oracle" if found.against == "oracle" else "before"
    zero = Line(whose, ((points[0][0], 0.0), (points[-1][0], 0.0)), (), found.against) if len(points) > 1 else None
    mine = Line("unlearned", points, spans, "after")
    drawn = tuple(line for line in (mine, zero) if line is not None and line.points)
    if not points:
        return ""
    level = numbers.percent(evidence.confidence, whole=True)
    return lines.draw(Chart("Difference of log-probabilities by layer", "layer", drawn,
                            f"Nats per word piece with {level} intervals.", "",
                            ticks=tuple(float(gap.layer) for gap in found.gaps)))
