"""A calibration as a table on a terminal and in markdown: which metric may be believed here, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.report.numbers import significant

STYLES = {"believe": "bold green", "with care": "bold yellow", "do not believe": "bold red"}
ORDER = (*STYLES, "n/a")
IN_FILES = ("p", "overall")  # columns for which a terminal has no room

Row = Mapping[str, Any]  # of calibration.json


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The believed first, within a verdict by what counts overall, then by name."""
    return sorted(rows, key=lambda row: (
        ORDER.index(row["verdict"]), -(row.get("overall") or 0.0), -row.get("faithfulness", {}).get("auc", 0.0),
        row["metric"],
    ))


def print_calibration(found: Mapping[str, Any], console: Console) -> None:
    """Pools, a line per metric, what could not be measured, and how to read it."""
    rows = ordered(found["rows"])
    console.print(Text("Which metric may be believed on this data", style="bold"))
    console.print(Text(summary(found), style="dim"))
    measured = [row for row in rows if "faithfulness" in row]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    titles = [title for title in heads(measured) if title not in IN_FILES]
    for index, title in enumerate(titles):
        inner = 0 < index < len(titles) - 1
        table.add_column(Text(title), justify="right" if inner else "left", no_wrap=index > 0, overflow="fold")
    for row in measured:
        cells = [Text(cell) for title, cell in zip(heads(measured), line(row), strict=True) if title not in IN_FILES]
        cells[-1].stylize(STYLES[row["verdict"]])
        table.add_row(*cells)
    console.print(table)
    console.print(Text(LEGEND, style="dim"))
    for row in measured:
        if row["why"]:
            console.print(Text(f"{row['metric']}: {row['why']}"), soft_wrap=True)
    for name, reason in missing(found).items():
        console.print(Text(f"Not measured: {name}: {reason}", style="dim"), soft_wrap=True)


def to_markdown(found: Mapping[str, Any]) -> str:
    """The same as a markdown page."""
    rows = ordered(found["rows"])
    measured = [row for row in rows if "faithfulness" in row]
    titles = [*heads(measured), "why"]
    marks = ["---:" if 0 < index < len(titles) - 2 else "---" for index in range(len(titles))]
    lines = [[_escape(cell) for cell in (*line(row), row["why"])] for row in measured]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, marks, *lines))
    absent = "".join(f"- {name}: {_escape(reason)}\n" for name, reason in missing(found).items())
    page = f"# Which metric may be believed on this data\n\n{summary(found)}\n\n{table}\n\n{LEGEND}\n"
    return page + (f"\nNot measured:\n\n{absent}" if absent else "")


LEGEND = (
    "AUC: of metric values between models that know and models that do not, with its 95 % interval; p: how often a "
    "chance split of these models does as well. An attack's number: 1 = what the metric says of unlearned models "
    "stands, 0 = it is undone. More is: more or less knowledge; * a direction found on these models."
)


def summary(found: Mapping[str, Any]) -> str:
    """How many models of each kind the table rests on."""
    pools = [record["pool"] for record in found["models"]]
    kinds = sorted({record["variant"] for record in found["models"] if record["pool"] != "unlearned"})
    return (
        f"{pools.count('present')} models that know, {pools.count('absent')} that do not ({', '.join(kinds)}), "
        f"{pools.count('unlearned')} unlearned; {found['streams']['forget']} forget and "
        f"{found['streams']['retain']} retain examples."
    )


def heads(rows: Sequence[Row]) -> list[str]:
    attacks = list(rows[0]["attacks"]) if rows else []
    return ["metric", "AUC", "interval", "p", "more is", *attacks, "robust", "overall", "verdict"]


def line(row: Row) -> list[str]:
    """One metric's cells."""
    told = row["faithfulness"]
    higher = ("more" if told["sign"] > 0 else "less") + ("*" if told["found"] else "")
    tried = [_share(attack["robustness"]) for attack in row["attacks"].values()]
    return [
        row["metric"], _share(told["auc"]), "–".join(map(_share, told["ci"])), significant(told["p"], 2), higher,
        *tried, _share(row["robustness"]), _share(row["overall"]), row["verdict"],
    ]


def missing(found: Mapping[str, Any]) -> dict[str, str]:
    """Metrics without a line, and models that failed, with their reasons."""
    return {
        **{row["metric"]: row["why"] for row in found["rows"] if "faithfulness" not in row},
        **found.get("refused", {}), **found["failures"],
    }


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
