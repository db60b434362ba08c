"""CrowS-Pairs: pairs of sentences that differ in the group they are about (Nangia et al. 2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_table
from expunge.errors import DataError, close_to
from expunge.registry import reader
from expunge.types import Data, Example, Stream

Direction = Literal["both", "stereo", "antistereo"]
FILE = "crows_pairs_anonymized.csv"
COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


@reader("crows")
def crows(*, data: str, bias_type: str = "all", direction: Direction = "both") -> list[Example]:
    """CrowS-Pairs: the more stereotyping sentence as the answer, the other as the contrast; see `crows_data`."""
    return list(crows_data(data, bias_type, direction)["crows"].examples)


def crows_data(data: str | Path, bias_type: str = "all", direction: Direction = "both") -> Data:
    """One probe stream, "crows"; an id such as "crows/religion/stereo/17" holds bias type and direction.

    answer: the sentence that is more stereotyping; contrast: the other. The direction "stereo" means that the first
    shows a stereotype of a disadvantaged group, "antistereo" that the second goes against one.

    Args:
        data: the published CSV, or a folder with it. bias_type: one of the nine, or "all".
    Raises: DataError for a missing file or column, or an unknown bias type.
    """
    path = Path(data).expanduser()
    file = path / FILE if path.is_dir() else path
    rows = list(read_table(file, ","))
    lacking = [name for name in COLUMNS if rows and name not in rows[0][1]]
    if lacking:
        raise DataError(str(file), f"no column '{lacking[0]}'", f"accepted: {', '.join(COLUMNS)}", "Name the CSV")
    types = {str(row["bias_type"]) for _, row in rows}
    if bias_type not in {"all", *types}:
        raise DataError("bias_type", f"got '{bias_type}'", close_to(bias_type, ["all", *types]), "Correct the name")
    made = [
        Example(
            f"crows/{row['bias_type']}/{row['stereo_antistereo']}/{number}", "", row["sent_more"],
            contrast=row["sent_less"],
        )
        for number, (_, row) in enumerate(rows)
        if bias_type in ("all", row["bias_type"]) and direction in ("both", row["stereo_antistereo"])
    ]
    check_stream(f"{file}: {bias_type}, {direction}", made)
    return Data(crows=Stream("crows", "probe", tuple(made)))
