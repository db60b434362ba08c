"""expunge calibrate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson
from expunge.cli.unlearn import Fields


def calibrate(
    forget: Annotated[
        str | None, typer.Option("--forget", help="What must go: a file, READER:PATH, or READER:argument=value:...")
    ] = None,
    retain: Annotated[str | None, typer.Option("--retain", help="What must stay, in the same form.")] = None,
    holdout: Annotated[str | None, typer.Option("--holdout", help="Text of the same kind no model is taught.")] = None,
    fields: Fields = None,
    models: Annotated[int, typer.Option("--models", min=2, help="Twins in each pool: with knowledge, without.")] = 4,
    metrics: Annotated[str, typer.Option("--metrics", help="Comma-separated, or 'all'.")] = "all",
    attacks: Annotated[
        str, typer.Option("--attacks", help="Comma-separated, with arguments where wanted, or 'none'.")
    ] = "relearn,quantize",
    methods: Annotated[str, typer.Option("--methods", help="What unlearned models are made with.")] = "npo,graddiff",
    width: Annotated[int, typer.Option("--width", help="Of the twins; divisible by 4 heads.")] = 96,
    epochs: Annotated[float, typer.Option("--epochs", help="Of their training; varied between them.")] = 10.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; the same one again goes on.")
    ] = None,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    as_json: AsJson = False,
) -> int:
    """Which metric may be believed here: small twins with and without the knowledge, in your data's style.

    Without --forget and --retain: the embedded people. Models are trained once and kept; a calibration that was
    stopped goes on where it was with the same --out.
    """
    from expunge.cli.screen import bars, start

    start()
    from expunge.calibrate.pools import SMALL, invented, read
    from expunge.calibrate.work import Calibration
    from expunge.errors import RecipeError
    from expunge.workflow import collect_warnings, default_folder, warn_on_screen

    if width < 8 or width % 8:
        raise RecipeError("--width", f"got {width}", "accepted: a multiple of 8", "Choose another")
    given = {"forget": forget, "retain": retain, "holdout": holdout}
    sources = {role: source(text, fields) for role, text in given.items() if text}
    chosen, refused = _metrics(metrics)
    with collect_warnings(warn_on_screen), bars(quiet=as_json) as progress:
        data = read(sources or invented())
        made = type(SMALL)(**{**vars(SMALL), "width": width, "epochs": epochs})
        folder = out or default_folder("calibrate")
        found = Calibration(
            data, folder, chosen, _attacks(attacks), _methods(methods), models, made, device, progress
        ).run()
    return _tell({**found, "refused": refused}, folder, as_json)


def source(text: str, fields: list[str] | None) -> dict[str, Any]:
    """A reader spec from `file.jsonl`, `reader:path`, or `reader:argument=value:...` for readers of many arguments."""
    from expunge.cli.unlearn import names, stream

    if "=" in text.partition(":")[2].partition(":")[0]:
        spec: dict[str, Any] = names(text)[0]
        return spec
    return stream(text, fields)


def _metrics(text: str) -> tuple[list[Any], dict[str, str]]:
    from expunge.calibrate.work import every_metric
    from expunge.cli.unlearn import names
    from expunge.registry import bind

    return every_metric() if text == "all" else ([bind("metric", spec, "--metrics") for spec in names(text)], {})


def _attacks(text: str) -> list[Any]:
    """The attacks asked for, with the arguments of a calibration where none are given."""
    from expunge.calibrate.work import ATTACKS
    from expunge.cli.unlearn import names
    from expunge.registry import bind

    usual = {spec["use"]: spec for spec in ATTACKS}
    return [bind("attack", {**usual.get(spec["use"], {}), **spec}, "--attacks") for spec in names(text)]


def _methods(text: str) -> list[Any]:
    from expunge.calibrate.work import with_strength
    from expunge.cli.unlearn import names

    return [with_strength(spec) for spec in names(text)]


def _tell(found: dict[str, Any], folder: Path, as_json: bool) -> int:
    import json

    from expunge.cli.screen import console
    from expunge.report.calibration import print_calibration, to_markdown
    from expunge.run import write_json, write_text

    write_json(folder / "calibration.json", found)
    write_text(folder / "calibration.md", to_markdown(found))
    if as_json:
        print(json.dumps(found))
    else:
        screen = console()
        print_calibration(found, screen)
        screen.print(f"Table: {folder / 'calibration.md'}", soft_wrap=True)
    return 0
