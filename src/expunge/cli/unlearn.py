"""expunge unlearn MODEL --forget F --retain R"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
Original = Annotated[str | None, typer.Option("--original", help="The model before the removal.")]
Budget = Annotated[
    str | None, typer.Option("--budget", help="What each attack may spend: steps=100,seconds=60,queries=5000,...")
]
Fields = Annotated[list[str] | None, typer.Option("--field", help="Column names: prompt=question, answer=reply, ...")]
Attacks = Annotated[
    str, typer.Option("--attacks", help="Comma-separated attacks and lists: 'default', 'thorough'; or 'none'.")
]
Metrics = Annotated[str, typer.Option("--metrics", help="Comma-separated metrics; 'default' is a list of them.")]
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


def split(text: str, mark: str) -> list[str]:
    """The pieces between marks, but for marks inside brackets and quotes, which begin where a YAML value begins."""
    pieces, depth, quote, before = [""], 0, "", mark
    for char in text:
        if quote:
            quote = "" if char == quote and (before != "\\" or quote == "'") else quote
        elif char in "'\"" and (before in "=:,[{" or before == char):
            quote = char
        elif char in "[{" and (depth or before in "=:,"):
            depth += 1
        elif char in "]}" and depth:
            depth -= 1
        elif char == mark and not depth:
            pieces.append("")
            before = char
            continue
        pieces[-1] += char
        before = before if char == " " and not quote else char
    return [piece.strip() for piece in pieces]


def names(text: str) -> list[Any]:
    """`quantize,relearn` -> specs; a part may carry arguments as `relearn:at=[5,10]:lr=1e-4`."""
    from expunge.recipe import read_value

    specs: list[Any] = []
    for part in [piece for piece in split(text, ",") if piece and piece != "none"]:
        use, *rest = _pieces(part)
        given = (piece.partition("=") for piece in rest)
        specs.append({"use": use} | {key.strip(): read_value(value, part) for key, _, value in given})
    return specs


def _pieces(part: str) -> list[str]:
    """A name and its arguments; a colon that no `argument=` follows belongs to what stands before it."""
    pieces: list[str] = []
    for piece in split(part, ":"):
        if pieces and not re.match(r"\w+\s*=", piece):
            pieces[-1] += f":{piece}"
        else:
            pieces.append(piece)
    return pieces


def listed(kind: str, text: str, known: Mapping[str, Sequence[Any]]) -> str | list[Any]:
    """One list that goes by a name, or the parts that are written out, lists among them.

    Raises: RecipeError for a part that is neither, when the closest name is that of a list.
    """
    if text in known:
        return text
    specs: list[Any] = []
    for spec in names(text):
        if set(spec) != {"use"}:
            specs.append(spec)
            continue
        _check_list_name(kind, spec["use"], known)
        specs += [{"use": one} if isinstance(one, str) else dict(one) for one in known.get(spec["use"], [spec])]
    return [spec for place, spec in enumerate(specs) if spec not in specs[:place]]


def _check_list_name(kind: str, name: str, known: Mapping[str, Sequence[Any]]) -> None:
    import difflib

    from expunge.registry import entries

    parts = set(entries(kind))
    near = difflib.get_close_matches(name, [*known, *parts], n=1)
    if name not in parts and ":" not in name and near and near[0] in known and name not in known:
        raise RecipeError(
            f"--{kind}s", f"neither {kind} nor list '{name}'", f"did you mean '{near[0]}'?",
            f"Take a name of: expunge list {kind}s",
        )


def pairs(text: str | None) -> dict[str, Any]:
    """`steps=20,seconds=60` -> a mapping."""
    from expunge.recipe import read_value

    parts = (piece.partition("=") for piece in split(text or "", ",") if piece)
    return {key.strip(): read_value(value, f"{key}={value}") for key, _, value in parts}


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
        "audit": {"attacks": listed("attack", attacks, ATTACKS), "against": oracle},
        "device": device,
    }
    for change in changes or []:
        top = change.split("=", 1)[0].split(".")[0].split("[")[0]
        set_path(plain, change if top in plain or top in ("seed", "title") else f"method.{change}")
    made = Recipe.of(plain)
    return carry_out(made, out, f"unlearn-{Path(model).name}", resume=resume, as_json=as_json)

