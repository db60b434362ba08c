"""expunge unlearn MODEL --forget F --retain R"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.run import AsJson, Out, Resume
from expunge.errors import RecipeError

Forget = Annotated[
    str, typer.Option("--forget", help="What must go: a .jsonl/.json/.csv/.parquet file, or READER:PATH.")
]
Retain = Annotated[str | None, typer.Option("--retain", help="What must stay, in the same form.")]
Holdout = Annotated[str | None, typer.Option("--holdout", help="Text of the same kind the model never saw.")]
Oracle = Annotated[str | None, typer.Option("--oracle", help="A twin that never saw the forget data.")]
Fields = Annotated[list[str] | None, typer.Option("--field", help="Column names: prompt=question, answer=reply, ...")]
Attacks = Annotated[str, typer.Option("--attacks", help="Comma-separated attacks, or 'default', 'thorough', 'none'.")]
Metrics = Annotated[str, typer.Option("--metrics", help="Comma-separated metrics, or 'default'.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]


def streams(fields: list[str] | None, **sources: str | None) -> dict[str, Any]:
    """The data section of a recipe from what was given for each role."""
    return {role: stream(text, fields) for role, text in sources.items() if text}


def stream(text: str, fields: list[str] | None) -> dict[str, Any]:
    """A reader spec from `file.jsonl` or `reader:path`."""
    from expunge.recipe import reader_of

    use, colon, path = text.partition(":")
    given = colon and len(use) > 1 and "/" not in use
    named: dict[str, Any] = {"use": use, "path": path} if given else reader_of(text)
    own = {"prompt", "answer", "id"}
    pairs = {}
    for pair in fields or []:
        key, sign, column = pair.partition("=")
        if not sign:
            raise RecipeError(f"--field {pair}", "no '='", "FIELD=COLUMN, e.g. prompt=question", "Correct the option")
        pairs[key] = column
    extra = {key: value for key, value in pairs.items() if key not in own}
    return named | {key: value for key, value in pairs.items() if key in own} | ({"fields": extra} if extra else {})


def names(text: str) -> list[Any]:
    """`quantize,relearn` -> specs; a part may carry arguments as `relearn:steps=20:lr=1e-4`."""
    from expunge.recipe import read_value

    specs: list[Any] = []
    for part in [piece.strip() for piece in text.split(",") if piece.strip() and piece.strip() != "none"]:
        use, *rest = part.split(":")
        specs.append(
            {"use": use} | {key: read_value(value, part) for key, _, value in (piece.partition("=") for piece in rest)}
        )
    return specs


def listed(text: str, known: Container[str]) -> str | list[Any]:
    """A list that goes by a name, or the parts that are written out."""
    return text if text in known else names(text)


def pairs(text: str | None) -> dict[str, Any]:
    """`steps=20,seconds=60` -> a mapping."""
    from expunge.recipe import read_value

    parts = (piece.strip().partition("=") for piece in (text or "").split(",") if piece.strip())
    return {key: read_value(value, f"{key}={value}") for key, _, value in parts}


def unlearn(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    forget: Forget,
    retain: Retain = None,
    holdout: Holdout = None,
    oracle: Oracle = None,
    method: Annotated[str, typer.Option("--method", help="See: expunge list methods")] = "npo",
    changes: Annotated[list[str] | None, typer.Option("--set", help="path=value; method arguments as lr=1e-4.")] = None,
    fields: Fields = None,
    attacks: Attacks = "default",
    out: Out = None,
    resume: Resume = False,
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    as_json: AsJson = False,
) -> int:
    """Remove a forget set from a model and audit the result. Writes a recipe and runs it."""
    from expunge.cli.screen import carry_out, start
    from expunge.presets import ATTACKS
    from expunge.recipe import Recipe, set_path
    from expunge.registry import takes

    start()
    plain: dict[str, Any] = {
        "expunge": 1,
        "model": {"from": model, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code},
        "data": streams(fields, forget=forget, retain=retain, holdout=holdout),
        "method": {"use": method} | ({} if retain or not takes("method", method, "retain") else {"retain": "none"}),
        "audit": {"attacks": listed(attacks, ATTACKS), "against": oracle},
        "device": device,
    }
    for change in changes or []:
        top = change.split("=", 1)[0].split(".")[0].split("[")[0]
        set_path(plain, change if top in plain or top in ("seed", "title") else f"method.{change}")
    made = Recipe.of(plain)
    return carry_out(made, out, f"unlearn-{Path(model).name}", resume=resume, as_json=as_json)

