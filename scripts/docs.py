"""Write the generated parts of the documentation: tables of arguments, defaults, expansions, costs, and help texts.

    python scripts/docs.py            writes them between `<!-- generated: WHAT -->` and `<!-- end -->`
    python scripts/docs.py --check    ends 1 when a file differs from the code

The words around the markers are written by hand. `tests/test_docs.py` runs the check and wants a heading for every
registered part.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from expunge import yaml12
from expunge.cli import app
from expunge.cli.show import shown_type
from expunge.errors import RecipeError, close_to
from expunge.models import load
from expunge.passes import passes_of, trainings
from expunge.presets import METRICS
from expunge.recipe import AuditSpec
from expunge.registry import Entry, bind, entries, parameters, spec_of
from expunge.types import Bound, Example, Term

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- generated: (?P<what>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The documents that may hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """A document with every generated part written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{generated(found['what'])}\n{found[3]}", text)


def generated(what: str) -> str:
    """The content of one marker: `objective npo`, `table metric`, `command run`, ..."""
    kind, _, name = what.partition(" ")
    if kind not in MAKERS:
        raise RecipeError(f"<!-- generated: {what} -->", f"'{kind}'", close_to(kind, MAKERS), "Correct the marker")
    return MAKERS[kind](name).rstrip()


# -- parts -----------------------------------------------------------------------------------------------------
def part(kind: str) -> Callable[[str], str]:
    """What is generated for one registered part: its docstring, its arguments, what is declared beside it."""

    def make(name: str) -> str:
        found = entries(kind)
        if name not in found:
            raise RecipeError(f"<!-- generated: {kind} {name} -->", "no such part", close_to(name, found), "Correct it")
        entry = found[name]
        pieces = [docstring(entry.fn), arguments(parameters(entry.fn)), "\n".join(f"- {line}" for line in told(entry))]
        if kind == "method":
            pieces.append(expansion(entry))
        return "\n\n".join(piece for piece in pieces if piece)

    return make


def docstring(fn: Any) -> str:
    """First line as prose, the rest as it stands in the code."""
    first, _, rest = (inspect.getdoc(fn) or "").partition("\n")
    return first + (f"\n\n```text\n{rest.strip()}\n```" if rest.strip() else "")


def arguments(known: Mapping[str, inspect.Parameter]) -> str:
    if not known:
        return "No arguments."
    rows = [(f"`{name}`", shown_default(one), f"`{shown_type(one.annotation)}`") for name, one in known.items()]
    return table(("argument", "default", "type"), rows)


def shown_default(one: inspect.Parameter) -> str:
    return "needed" if one.default is inspect.Parameter.empty else f"`{plain(one.default)}`"


def plain(value: Any) -> str:
    """A value as YAML would have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value).replace("\n", "\\n") or '""'


def told(entry: Entry) -> Iterator[str]:
    """What a registration declares beside the function."""
    meta = entry.meta
    if entry.kind == "objective":
        streams = f"{meta['views']} stream(s)"
        yield f"looks at {streams}; a term's `mean` is `{meta['mean']}` and its `tokens` `{meta['tokens']}` by default"
        if meta["needs"]:
            yield "needs: " + ", ".join(f"`{need}`" for need in sorted(meta["needs"]))
    if entry.kind == "metric":
        yield f"unit: {meta['unit']}; better for a forget stream: {meta['better']}"
        yield "streams by role: " + ", ".join(sorted(meta["roles"]))
        reads = {(need.instrument, need.variant) for need in meta["needs"]}
        yield "reads: " + "; ".join(f"{instrument} of {variant}" for instrument, variant in sorted(reads))
    if entry.kind == "attack":
        yield f"changes: {meta['changes']}"
    if entry.kind == "instrument":
        yield "measures: " + ", ".join(f"{task} models" for task in sorted(meta["tasks"]))
        if meta["after"]:
            yield "builds upon: " + "; ".join(f"{instrument} of {variant}" for instrument, variant in meta["after"])
        if meta["partner"]:
            yield "runs the model before the removal as well"
    for key, word in (("paper", "Paper"), ("differs", "Where we differ")):
        if meta.get(key):
            yield f"{word}: {meta[key]}"


def expansion(entry: Entry) -> str:
    """The stages a method becomes with its defaults, and what a step of them costs."""
    stages = bind("method", entry.name)()
    text = yaml12.write([brief_spec(stage) for stage in stages])
    costs = [
        f"Cost of training {number}, {where}:\n\n"
        + "\n".join(f"- {line}" for line in str(passes_of(stage, helpers)).splitlines())
        for number, (where, stage, helpers) in enumerate(trainings(stages), 1)
    ]
    return "\n\n".join(["Expands to (defaults left out):", f"```yaml\n{text.rstrip()}\n```", *costs])


def brief_spec(value: Any) -> Any:
    """`spec_of` without what is a default anyway."""
    if isinstance(value, Term):
        rest = {key: brief_spec(item) for key, item in spec_of(value).items() if key in ("mean", "tokens", "reference")}
        meta = value.objective.meta
        usual = {"mean": meta.get("mean"), "tokens": meta.get("tokens"), "reference": "start"}
        told = {key: item for key, item in rest.items() if item != usual[key]}
        on = value.on[0] if len(value.on) == 1 else list(value.on)
        weight = {} if value.weight == 1 else {"weight": value.weight}
        link = {} if value.link is None else {"link": brief_spec(value.link)}
        own = brief_spec(value.objective)
        named = own if isinstance(own, dict) else {"use": own}
        return {"use": named.pop("use"), "on": on, **named, **weight, **told, **link}
    if isinstance(value, Bound):
        known = parameters(value.fn)
        told = {key: brief_spec(item) for key, item in value.hyper.items() if not _usual(item, known[key].default)}
        return {"use": value.name, **told} if told or value.kind == "stage" else value.name
    if isinstance(value, (list, tuple)):
        return [brief_spec(item) for item in value]
    return spec_of(value)


def _usual(value: Any, default: Any) -> bool:
    if isinstance(value, Bound):
        return bool(brief_spec(value) == default)
    return bool(value == default or (isinstance(value, list) and not value and default == ()))


# -- tables ----------------------------------------------------------------------------------------------------
def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def overview(kind: str) -> str:
    """All parts of a kind with their first lines."""
    ours = {name: entry for name, entry in entries(kind).items() if entry.fn.__module__.startswith("expunge.")}
    rows = [(f"[`{name}`](#{name})", entry.summary) for name, entry in ours.items()]
    return table((kind, "what it does"), rows)


def reader_table(_: str) -> str:
    rows = []
    for name, entry in entries("reader").items():
        known = [f"`{key}`" + ("" if one.default is inspect.Parameter.empty else f" = {plain(one.default)}")
                 for key, one in parameters(entry.fn).items()]
        rows.append((f"`{name}`", entry.summary, ", ".join(known)))
    return table(("reader", "reads", "arguments"), rows)


def model_table(_: str) -> str:
    return arguments(parameters(load))


def audit_table(_: str) -> str:
    shown = {"metrics": "`default`", "attacks": "none", "budget": "none"}
    rows = [(f"`{one.name}`", shown.get(one.name, f"`{plain(one.default)}`")) for one in fields(AuditSpec)]
    return table(("key", "default"), rows)


def default_metrics(_: str) -> str:
    names = [one if isinstance(one, str) else "{" + ", ".join(f"{key}: {value}" for key, value in one.items()) + "}"
             for one in METRICS["default"]]
    return "`metrics: default` stands for: " + ", ".join(f"`{name}`" for name in names) + "."


def example_fields(_: str) -> str:
    return ", ".join(f"`{one.name}`" for one in fields(Example))


def example(name: str) -> str:
    """A marked region of an example: `example new_method method` is what stands between # [method] and # [/method]."""
    file, region = name.split()
    text = (ROOT / "examples" / f"{file}.py").read_text(encoding="utf-8")
    inside = text.split(f"# [{region}]")[1].split(f"# [/{region}]")[0]
    return f"```python\n{inside.strip()}\n```"


# -- command line ----------------------------------------------------------------------------------------------
def command(name: str) -> str:
    """Usage, options and their help of one command."""
    import typer

    group = typer.main.get_command(app)
    found = group.commands[name]  # type: ignore[attr-defined]
    words, rows = [], []
    for one in found.params:
        if one.name == "help":
            continue
        needed = one.param_type_name == "argument"
        shown = (one.metavar or str(one.name).upper()) if needed else one.opts[0]
        if needed:
            words.append(shown if one.required else f"[{shown}]")
        default = "needed" if one.required else "" if one.default in (None, False) else f"`{plain(one.default)}`"
        rows.append((f"`{shown}`", default, one.help or ""))
    usage = " ".join(["expunge", name, *words, "[OPTIONS]"])
    summary = inspect.cleandoc(found.help or "")
    return f"```text\n{usage}\n```\n\n{summary}\n\n" + table(("argument", "default", "meaning"), rows)


def commands(_: str) -> str:
    import typer

    group = typer.main.get_command(app)
    rows = [(f"[`expunge {name}`](#{name})", one.get_short_help_str(120)) for name, one in group.commands.items()]  # type: ignore[attr-defined]
    return table(("command", "does"), rows)


KINDS = (
    "objective", "method", "metric", "attack", "scope", "optimizer", "stage", "perturb", "schedule", "link",
    "annotator", "dictionary", "benchmark", "judge", "variant", "instrument", "scorer", "watch",
)
MAKERS: Mapping[str, Callable[[str], str]] = {
    **{kind: part(kind) for kind in KINDS},
    "table": overview,
    "readers": reader_table,
    "model": model_table,
    "audit": audit_table,
    "default-metrics": default_metrics,
    "example-fields": example_fields,
    "example": example,
    "command": command,
    "commands": commands,
}


def main(arguments: list[str]) -> int:
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        now = filled(text)
        if now != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                page.write_text(now, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'differs from the code' if '--check' in arguments else 'written'}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
