"""expunge report RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.run import AsJson


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")], as_json: AsJson = False
) -> int:
    """Render the report of a run again from its scores.json."""
    from expunge.cli.screen import conclude
    from expunge.report import html, schema
    from expunge.run import write_text

    evidence = schema.load(folder)
    write_text(folder / "report.html", html.render(evidence))
    conclude(evidence, folder, as_json=as_json)
    return 0
