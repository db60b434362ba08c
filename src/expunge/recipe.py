"""The recipe: one YAML file, 1:1 with Python, with every default filled, printable and resumable.

`use:` is a registered name or `module:attr`; every other key is one of its keyword-only arguments. Nothing is
inherited from other files and nothing is interpolated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import yaml

from expunge import yaml12
from expunge.errors import RecipeError, brief, close_to
from expunge.presets import ATTACKS, METRICS
from expunge.registry import bind, bind_call, spec_of
from expunge.run import Run
from expunge.types import Bound, Data, Role, Subject

VERSION = 1
_TOP = ("expunge", "title", "model", "data", "stages", "method", "watch", "audit", "seed", "device")
NEW = "new"  # the source of a model that is made here
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # YAML 1.1 wants a dot and a sign
_PARTS = frozenset(":@#|")  # what divides NAME:ARG@ASK#SETTING, where a stream's name may be an argument
_MODEL = ("dtype", "template", "task", "trust_remote_code", "allow_pickle")  # device stands at the top of a recipe
_AUDIT = ("metrics", "attacks", "against", "original", "margin", "budget")
_BUDGET = ("queries", "steps", "forwards", "backwards", "tokens", "seconds")


@dataclass(frozen=True)
class Source:
    """Where a stream comes from: a reader and the role its examples play."""

    reader: Bound
    role: Role


@dataclass(frozen=True)
class AuditSpec:
    """What is measured and attacked. margin: a difference that does not matter, in the unit of each share metric.

    against: folder of the oracle (a twin that never saw the data). original: the model before; None = the start model.
    budget: what an attack may spend: "steps", "queries", "forwards", "backwards", "tokens", "seconds".
    """

    metrics: tuple[Bound, ...]
    attacks: tuple[Bound, ...] = ()
    against: str | None = None
    original: str | None = None
    margin: float = 0.1
    budget: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: what a YAML file becomes, or what Python builds with `Recipe.of`."""

    model: Bound  # expunge.models.load, without its source
    source: str  # folder or hub name of the model; NEW for one that is made here
    data: Mapping[str, Source]
    stages: tuple[Bound, ...] = ()
    method: Bound | None = None
    audit: AuditSpec | None = None
    seed: int = 0
    device: str = "cpu"
    title: str = ""
    new: Bound | None = None  # expunge.data.scratch.new_model: the model the recipe starts from, untrained
    watch: Bound | None = None  # over every stage that has none of its own

    @staticmethod
    def load(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
        """Read a recipe file and apply `path=value` changes.

        Raises: RecipeError for a file that is missing or no YAML mapping, and for whatever `of` refuses.
        """
        file = Path(path)
        try:
            plain = yaml12.read(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            near = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
            raise RecipeError(
                str(path), "no such file", close_to(file.name, near), "Give the path of a recipe"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(str(path), f"not YAML ({reason})", "a YAML mapping", "Correct the file") from error
        if not isinstance(plain, dict):
            raise RecipeError(
                str(path), f"a {type(plain).__name__}", "a YAML mapping with model, data, ...", "Correct the file"
            )
        for change in changes:
            set_path(plain, change)
        return Recipe.of(plain)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Recipe:
        """Validate a plain mapping: every key, every argument, every default.

        Raises: RecipeError with the path of the first thing that does not fit and the closest name.
        """
        if not isinstance(plain, Mapping):
            raise RecipeError("recipe", f"got {brief(plain)}", "a mapping with model, data, ...", "Correct the recipe")
        _check_keys(plain, _TOP, "")
        if plain.get("expunge", VERSION) != VERSION:
            raise RecipeError(
                "expunge", f"version {plain['expunge']!r}", f"this program reads version {VERSION}", "Set expunge: 1"
            )
        load, source, new = _model(_section(plain, "model"))
        if "stages" in plain and "method" in plain:
            raise RecipeError("method", "both 'method' and 'stages'", "one of the two", "Remove one")
        made = bind("method", plain["method"], "method") if "method" in plain else None
        stages = tuple(_stage(spec, f"stages[{i}]") for i, spec in enumerate(_list(plain, "stages")))
        return Recipe(
            model=load,
            source=source,
            data=_data(_section(plain, "data")),
            stages=tuple(made()) if made else stages,
            method=made,
            audit=_audit(plain["audit"]) if plain.get("audit") is not None else None,
            seed=_whole(plain.get("seed", 0), "seed"),
            device=str(plain.get("device", "cpu")),
            title=str(plain.get("title", "")),
            new=new,
            watch=bind("watch", plain["watch"], "watch") if plain.get("watch") is not None else None,
        )

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled; `Recipe.of` reads it back to the same recipe."""
        out: dict[str, Any] = {"expunge": VERSION}
        if self.title:
            out["title"] = self.title
        loaded = {"from": self.source, **{key: self.model.hyper[key] for key in _MODEL}}
        out["model"] = {"new": dict(self.new.hyper)} if self.new else loaded
        out["data"] = {name: {**spec_of(s.reader), "role": s.role} for name, s in self.data.items()}
        if self.method is not None:
            out["method"] = spec_of(self.method)
        elif self.stages:
            out["stages"] = [_spec(stage) for stage in self.stages]
        if self.watch is not None:
            out["watch"] = spec_of(self.watch)
        if self.audit is not None:
            audit = self.audit
            out["audit"] = {
                "metrics": [spec_of(m) for m in audit.metrics],
                "attacks": [spec_of(a) for a in audit.attacks],
                "against": audit.against,
                "original": audit.original,
                "margin": audit.margin,
            } | ({"budget": dict(audit.budget)} if audit.budget else {})
        return out | {"seed": self.seed, "device": self.device}

    def to_yaml(self, *, show_text: bool = True) -> str:
        """The resolved recipe as YAML; without texts, rows written into the recipe itself are only counted."""
        plain = self.resolved()
        for spec in plain["data"].values():
            if not show_text and isinstance(spec.get("rows"), list):
                spec["rows"] = f"{len(spec['rows'])} rows, not shown"
        return yaml12.write(plain)

    def digest(self) -> str:
        """Twelve hex digits of the resolved recipe."""
        text = json.dumps(self.resolved(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def set_path(plain: dict[str, Any], change: str) -> None:
    """Apply `stages[0].lr=1e-4` (or `stages.0.lr=...`) to a plain recipe; the value is YAML.

    Raises: RecipeError when the change is no `path=value` or the path leads through something that is no mapping.
    """
    path, sign, text = change.partition("=")
    if not sign or not path:
        raise RecipeError(f"--set {change}", "no 'path=value'", "such as method.lr=1e-4", "Correct the option")
    keys = [key for key in path.replace("[", ".").replace("]", "").split(".") if key]
    value = read_value(text, f"--set {change}")
    here: Any = plain
    for key in keys[:-1]:
        here = _step(here, key, change)
    if isinstance(here, str):  # `data: {forget: a.jsonl}` with --set data.forget.limit=1
        raise RecipeError(
            f"--set {change}", f"'{here}' is a plain name", "a mapping", f"Write it as {{use: {here}}} first"
        )
    try:
        here[int(keys[-1]) if isinstance(here, list) else keys[-1]] = value
    except (IndexError, TypeError, ValueError) as error:
        raise RecipeError(
            f"--set {change}", "no such place", "a path of the recipe", "See: expunge show RECIPE"
        ) from error


def read_value(text: str, where: str) -> Any:
    """A value as YAML reads it, and numbers as people write them: 1e-4, which YAML takes for text.

    Raises: RecipeError for text that is not YAML.
    """
    try:
        value = yaml12.read(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(where, f"not YAML ({reason})", "a YAML value", "Quote the value") from error
    return _number(value)


def _number(value: Any) -> Any:
    """`1e-4` as the number it is; everything else unchanged."""
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _step(here: Any, key: str, change: str) -> Any:
    try:
        if isinstance(here, list):
            return here[int(key)]
        if isinstance(here, dict):
            if isinstance(here.get(key), str) and key in ("method", "scope", "optimizer", "model", "watch"):
                here[key] = {"from" if key == "model" else "use": here[key]}
            return here.setdefault(key, {})
    except (ValueError, IndexError):
        pass
    raise RecipeError(f"--set {change}", f"'{key}' does not exist", "a path of the recipe", "See: expunge show RECIPE")


def _check_keys(plain: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in plain:
        if key not in known:
            path = f"{where}.{key}" if where else str(key)
            raise RecipeError(
                path, f"unknown key (got {brief(plain[key])})", close_to(str(key), known), "Correct the key"
            )


def _section(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = plain.get(name)
    if isinstance(section, str) and name == "model":
        return {"from": section}
    if not isinstance(section, Mapping):
        found = "missing" if section is None else f"got {brief(section)}"
        raise RecipeError(name, found, "a mapping", f"Add '{name}:'")
    return section


def _model(section: Mapping[str, Any]) -> tuple[Bound, str, Bound | None]:
    """How a model is loaded, its source, and where there is none how it is made."""
    if "new" in section:
        _check_keys(section, ("new",), "model")
        shape = section["new"] if section["new"] is not None else {}
        if not isinstance(shape, Mapping):
            raise RecipeError("model.new", f"got {brief(shape)}", "a mapping: width, layers, ...", "Correct it")
        new = bind_call("model.new", "expunge.data.scratch:new_model", shape, "model.new")
        return bind_call("model", "expunge.models:load", {}, "model"), NEW, new
    if "from" not in section:
        raise RecipeError("model.from", "missing", "a model folder or hub name (or new: {...})", "Add it")
    _check_keys(section, ("from", *_MODEL), "model")
    given = {key: value for key, value in section.items() if key != "from"}
    return bind_call("model", "expunge.models:load", given, "model"), str(section["from"]), None


def _stage(spec: Any, where: str) -> Bound:
    """A stage, with what watches it beside it."""
    if not isinstance(spec, Mapping):
        return bind("stage", spec, where)
    made = bind("stage", {key: value for key, value in spec.items() if key != "watch"}, where, ("watch",))
    if spec.get("watch") is None:
        return made
    return watched(made, bind("watch", spec["watch"], f"{where}.watch"))


def watched(stage: Bound, watch: Any = "dynamics") -> Bound:
    """The same stage under a watch; `watch:` beside a stage of a recipe.

    Args:
        watch: a registered watch: a name, a mapping with `use`, or a Bound.
    """
    made = bind("watch", watch, "watch")

    @wraps(stage.fn)
    def run_watched(subject: Subject, data: Data, run: Run, **hyper: Any) -> Any:
        return stage.fn(subject, data, replace(run, watch=made), **hyper)

    return replace(stage, fn=run_watched, meta={**stage.meta, "watch": made})


def _spec(stage: Bound) -> dict[str, Any]:
    """The inverse of `_stage`."""
    watch = stage.meta.get("watch")
    return {**spec_of(stage), **({"watch": spec_of(watch)} if watch is not None else {})}


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RecipeError(where, f"got {brief(value)}", "accepted: a whole number, 0 or more", "Correct the value")
    return value


def _list(section: Mapping[str, Any], key: str, where: str = "") -> Sequence[Any]:
    """A list of parts; nothing is an empty one."""
    value = section.get(key) or ()
    if not isinstance(value, (list, tuple)):
        raise RecipeError(where or key, f"got {brief(value)}", "a list", "Write each part after '- ', or in [ ]")
    return value


def reader_of(path: str) -> dict[str, Any]:
    """The reader spec of a bare path, by its ending (.gz is seen through); a name without ending is a hub data set."""
    name = Path(path.removesuffix(".gz")).name
    endings = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
    use = next(
        (reader for ending, reader in endings.items() if name.endswith(ending)), "jsonl" if "." in name else "hf"
    )
    return {"use": use, "path": path} | ({"delimiter": "\t"} if name.endswith(".tsv") else {})


def _data(section: Mapping[str, Any]) -> dict[str, Source]:
    streams = {}
    roles = get_args(Role)
    for name, spec in section.items():
        where = f"data.{name}"
        if wrong := sorted(set(str(name)) & _PARTS):
            raise RecipeError(
                where, f"a stream name with {' and '.join(repr(mark) for mark in wrong)}",
                f"a name without {' '.join(sorted(_PARTS))}, which divide the names of text variants",
                "Rename the stream",
            )
        if isinstance(spec, str):  # a bare path
            spec = reader_of(spec)
        if not isinstance(spec, Mapping):
            raise RecipeError(where, f"got {brief(spec)}", "a reader: {use: jsonl, path: ...}", "Correct the stream")
        role = spec.get("role", name if name in roles else None)
        if role not in roles:
            near = close_to(str(role or name), roles)
            raise RecipeError(
                f"{where}.role", "missing" if role is None else f"got {brief(role)}", near, "Add 'role: ...'"
            )
        reader = bind("reader", {key: value for key, value in spec.items() if key != "role"}, where, ("role",))
        streams[str(name)] = Source(reader, role)
    return streams


def _audit(section: Any) -> AuditSpec:
    if not isinstance(section, Mapping):
        raise RecipeError("audit", f"got {brief(section)}", "a mapping: metrics, attacks, against, ...", "Correct it")
    _check_keys(section, _AUDIT, "audit")
    asked = _named(section, "metrics", METRICS)
    metrics = tuple(bind("metric", spec, f"audit.metrics[{i}]") for i, spec in enumerate(asked or METRICS["default"]))
    tried = enumerate(_named(section, "attacks", ATTACKS))
    attacks = tuple(bind("attack", spec, f"audit.attacks[{i}]") for i, spec in tried)
    for key in ("against", "original"):
        if not isinstance(section.get(key), (str, type(None))):
            raise RecipeError(f"audit.{key}", f"got {brief(section[key])}", "a model folder or hub name", "Correct it")
    margin = _number(section.get("margin", 0.1))
    if not isinstance(margin, (int, float)) or not 0 < margin < 1:
        raise RecipeError("audit.margin", f"got {brief(margin)}", "a number between 0 and 1", "Correct the value")
    budget = _budget(section.get("budget") or {})
    return AuditSpec(metrics, attacks, section.get("against"), section.get("original"), float(margin), budget)


def _named(section: Mapping[str, Any], key: str, known: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """A list of parts, or the one that goes by a name."""
    given = section.get(key)
    if isinstance(given, str):
        if given not in known:
            raise RecipeError(f"audit.{key}", f"got '{given}'", close_to(given, known), "Name one of these, or a list")
        return known[given]
    return _list(section, key, f"audit.{key}")


def _budget(section: Any) -> dict[str, float]:
    if not isinstance(section, Mapping):
        raise RecipeError("audit.budget", f"got {brief(section)}", "a mapping: steps, queries, ...", "Correct it")
    _check_keys(section, _BUDGET, "audit.budget")
    for unit, most in section.items():
        if not isinstance(_number(most), int | float) or not _number(most) > 0:
            raise RecipeError(f"audit.budget.{unit}", f"got {brief(most)}", "a number above 0", "Correct the value")
    return {str(unit): _number(most) for unit, most in section.items()}
