"""House rules that no linter knows: caps, layers, light imports. `python scripts/checks.py` ends 1 when one is broken.

Imports go downwards only (docs/design): a module may import its own layer and those below, wherever in the file the
import stands. Imports for type checkers alone are free.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "expunge"
CAPPED = ("src", "tests", "scripts", "benchmarks", "examples")
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_INHERITANCE = 400, 60, 10, 1

# From the ground floor up; a module or folder of the package stands in exactly one layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errors", "types", "registry", "recipe", "run", "dist", "machine", "artefacts", "optim", "yaml12", "passes",
        "presets",
    ),
    ("report",),
    ("evidence",),
    ("models",),
    ("data",),
    ("measure",),
    ("metrics",),
    ("scoring", "dynamics", "tagging"),
    ("objectives", "scopes", "perturb", "links", "language", "annotators", "anchors"),
    ("reference", "until", "updates", "schedules", "watch"),
    ("loop",),
    ("forget", "branch", "relabel", "sample", "annotate", "translate", "edits", "trainer"),
    ("locate",),
    ("attacks",),
    ("methods",),
    ("attacked", "audit", "verdicts", "recovery", "residue_map"),
    ("workflow",),
    ("pretrain", "demo", "api"),
    ("benches", "compat"),
    ("bench", "calibrate", "harness"),
    ("cli", "serve", "__main__"),
)
ANYWHERE = frozenset({"testing", "__init__"})  # they serve all floors
# Start-up: these answer before torch is there (`expunge --help`, the report, every user error).
LIGHT = frozenset({
    "cli", "report", "errors", "types", "registry", "recipe", "run", "machine", "artefacts", "passes", "presets",
    "evidence",
})
HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "datasets"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, where, and whether it is imported when the file is."""

    module: str
    line: int
    at_start: bool


class Source:
    """One Python file: its text and syntax tree, read once."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text  # name: relative to the root, with slashes

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def part(self) -> str:
        """The module or folder of the package this file belongs to; empty outside the package."""
        prefix = "src/expunge/"
        return self.name.removeprefix(prefix).split("/")[0].removesuffix(".py") if self.name.startswith(prefix) else ""


def sources(root: Path = ROOT) -> list[Source]:
    """Every Python file that the rules are for."""
    found = [path for folder in CAPPED for path in sorted((root / folder).rglob("*.py"))]
    return [Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in found]


def imports(tree: ast.AST, at_start: bool = True) -> Iterator[Import]:
    """All imports of a tree except those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "expunge":
                yield from (Import(f"expunge.{alias.name}", node.lineno, at_start) for alias in node.names)
            else:
                yield Import("." * node.level + module, node.lineno, at_start)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from (found for other in node.orelse for found in imports(other, at_start))
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, at_start and not inside)


def check_caps(files: Iterable[Source]) -> Iterator[str]:
    """Lines of a file, lines of a function, parameters of a function (without self and cls)."""
    for file in files:
        lines = file.text.count("\n")
        if lines > MAX_FILE:
            yield f"{file.name}: {lines} lines; at most {MAX_FILE}. Split it"
        for node in ast.walk(file.tree):
            if not isinstance(node, Function):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield f"{file.name}:{node.lineno}: {node.name} has {length} lines; at most {MAX_FUNCTION}. Split it"
            if file.part == "cli":  # a command's parameters are its options; a test freezes their list
                continue
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            if _registered(node):  # what the engine passes is the protocol; hyper-parameters are what counts
                given = node.args.kwonlyargs
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            if count > MAX_PARAMETERS:
                where = f"{file.name}:{node.lineno}: {node.name}"
                yield f"{where} takes {count} arguments; at most {MAX_PARAMETERS}. Group them"


def _registered(node: Function) -> bool:
    """Whether a function is a part that recipes can use: decorated by one of the registry's decorators."""
    kinds = {"objective", "method", "metric", "attack", "scope", "stage", "reader", "register"}
    called = (d.func for d in node.decorator_list if isinstance(d, ast.Call))
    return any(isinstance(f, ast.Name) and f.id in kinds for f in called)


def check_inheritance(files: Iterable[Source]) -> Iterator[str]:
    """Classes of the package that inherit from a class of the package that inherits from a class of the package."""
    classes = {
        node.name: (file.name, node)
        for file in files if file.part
        for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)
    }

    def depth(name: str) -> int:
        bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in classes[name][1].bases]
        return max((1 + depth(base) for base in bases if base in classes and base != name), default=0)

    for name, (file, node) in classes.items():
        if depth(name) > MAX_INHERITANCE:
            yield f"{file}:{node.lineno}: {name} inherits over {depth(name)} levels; at most {MAX_INHERITANCE}. Compose"


def check_layers(files: Iterable[Source]) -> Iterator[str]:
    """Imports that go upwards, and modules that stand in no layer."""
    floor = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    for file in files:
        if not file.part or file.part in ANYWHERE:
            continue
        if file.part not in floor:
            yield f"{file.name}: '{file.part}' stands in no layer; add it to LAYERS in scripts/checks.py"
            continue
        for found in imports(file.tree):
            names = found.module.split(".")
            if found.module.startswith("."):
                yield f"{file.name}:{found.line}: relative import; write the whole name"
            if names[0] != "expunge" or len(names) < 2:
                continue
            if floor.get(names[1], -1) > floor[file.part] or names[1] in ANYWHERE:
                where = f"{file.name}:{found.line}: {file.part}"
                yield f"{where} imports {found.module}, which stands above it. Turn it round"


def check_light(files: Iterable[Source]) -> Iterator[str]:
    """Heavy imports at the start of modules that must answer at once; torch anywhere in the report."""
    for file in files:
        if file.part not in LIGHT:
            continue
        for found in imports(file.tree):
            heavy = found.module.split(".")[0]
            if heavy in HEAVY and found.at_start:
                yield f"{file.name}:{found.line}: imports {heavy} at its start. Import it inside the function"
            elif heavy == "torch" and file.part == "report":
                yield f"{file.name}:{found.line}: the report imports torch. Give it plain numbers"


def violations(files: Iterable[Source]) -> list[str]:
    """Every broken rule, one line each."""
    files = list(files)
    return [line for check in (check_caps, check_inheritance, check_layers, check_light) for line in check(files)]


def main() -> int:
    found = violations(sources())
    for line in found:
        print(line)
    print(f"house rules: {len(found)} broken" if found else "house rules: all kept")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
