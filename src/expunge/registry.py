"""One registry for every kind of part: `use: name` in a recipe finds it here.

A registered function takes what the engine gives it as positional arguments and its hyper-parameters as
keyword-only arguments; those stand nowhere else. Validation, defaults, `expunge show` and the resume digest
are read from the signature.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from expunge.errors import ExpungeError, RecipeError, brief, close_to
from expunge.types import Bound, Needs, Term

F = TypeVar("F", bound=Callable[..., Any])

# Where the built-in parts of a kind live. A file put into such a folder is found without being named anywhere.
HOMES: dict[str, tuple[str, ...]] = {
    "objective": ("expunge.objectives",),
    "method": ("expunge.methods",),
    "metric": ("expunge.metrics",),
    "attack": ("expunge.attacks",),
    "scope": ("expunge.scopes",),
    "optimizer": ("expunge.updates",),
    "perturb": ("expunge.perturb",),
    "schedule": ("expunge.schedules",),
    "link": ("expunge.links",),
    "annotator": ("expunge.annotators",),
    "dictionary": ("expunge.anchors",),
    "judge": ("expunge.metrics.familiarity",),
    "benchmark": ("expunge.benches",),
    "stage": (
        "expunge.forget", "expunge.relabel", "expunge.branch", "expunge.sample", "expunge.annotate",
        "expunge.translate", "expunge.edits",
    ),
    "reader": ("expunge.data.readers", "expunge.data.benchmarks", "expunge.data.synthetic"),
    "variant": (
        "expunge.data.variants", "expunge.data.neighbours", "expunge.data.pairs", "expunge.data.questions",
        "expunge.data.hops", "expunge.data.identifiers",
    ),
    "instrument": ("expunge.measure",),
    "scorer": ("expunge.metrics.scorers",),
    "watch": ("expunge.watch",),
}


def plural(kind: str) -> str:
    """A kind in the plural, as `expunge list` takes it."""
    return kind[:-1] + "ies" if kind.endswith("y") else kind + ("es" if kind.endswith("ch") else "s")


@dataclass(frozen=True)
class Kind:
    """Annotation of an argument that is itself a registered part (or a list of them)."""

    name: str
    many: bool = False


@dataclass(frozen=True)
class Entry:
    """A registered part."""

    kind: str
    name: str
    fn: Callable[..., Any]
    meta: Mapping[str, Any]

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.fn) or "").split("\n", 1)[0]


_entries: dict[tuple[str, str], Entry] = {}


def register(kind: str, name: str, **meta: Any) -> Callable[[F], F]:
    """Register a function under `kind` and `name`; the same name twice is an error."""

    def wrap(fn: F) -> F:
        known = _entries.get((kind, name))
        if known is not None and known.fn.__module__ != fn.__module__:
            raise RecipeError(
                f"{kind} '{name}'",
                f"registered by {known.fn.__module__} and again by {fn.__module__}",
                "a name stands for one part",
                "Rename one of the two",
            )
        _entries[kind, name] = Entry(kind, name, fn, types.MappingProxyType(meta))
        return fn

    return wrap


def objective(
    name: str, *, mean: str = "examples", tokens: str = "answer", needs: Iterable[str] = (), views: int = 1
) -> Callable[[F], F]:
    """Register an objective: `(*views, **hyper) -> Tensor[B]`.

    needs: "ref" (stored reference log-probabilities), "vocab" (full distributions now), "ref_vocab" (both),
        "hidden:{layer}" and "ref_hidden:{layer}" (outputs of the block named by the argument `layer`), "no_logp"
        (hidden states alone: the forward ends at that block).
    mean, tokens: the divisor and the positions of a term that does not say otherwise.
    """
    return register("objective", name, mean=mean, tokens=tokens, needs=frozenset(needs), views=views)


def method(name: str, *, paper: str, differs: str = "") -> Callable[[F], F]:
    """Register a method: hyper-parameters -> list of stages. `differs`: where we differ from the paper."""
    return register("method", name, paper=paper, differs=differs)


def metric(
    name: str, *needs: Needs, unit: str, better: str = "lower", roles: Iterable[str] = ("forget", "retain", "holdout")
) -> Callable[[F], F]:
    """Register a metric: `(tables, **hyper) -> Score`. `better` is for the forget stream; `roles` it applies to."""
    return register("metric", name, needs=needs, unit=unit, better=better, roles=frozenset(roles))


CHANGES = ("prompt", "decoding", "reading", "weights", "precision")


JUDGED = ("always", "oracle", "never")


def attack(
    name: str, *, changes: str, says: str = "", helpers: Iterable[str] = (), judged: str = "always"
) -> Callable[[F], F]:
    """Register an attack: `(subject, data, run, **hyper) -> Iterator[Subject]`.

    changes: prompt, decoding, reading (from where in the model an answer is read), weights or precision.
    says: what it does, for people, formatted with its arguments: "{steps} steps of relearning".
    helpers: companions it reads from `subject.helpers` where they could be had: "original".
    judged: whether what comes back speaks of this model's knowledge: "always"; only beside an "oracle" under the same
        attack, because it is told the answers; or "never", because it may bring them along itself.
    """
    for key, value, known in (("changes", changes, CHANGES), ("judged", judged, JUDGED)):
        if value not in known:
            raise RecipeError(f"attack '{name}'", f"{key}={value!r}", close_to(value, known), "Correct it")
    return register("attack", name, changes=changes, says=says, helpers=frozenset(helpers), judged=judged)


def scope(name: str) -> Callable[[F], F]:
    """Register a scope: `(model, **hyper) -> Movable`."""
    return register("scope", name)


def stage(name: str) -> Callable[[F], F]:
    """Register a stage: `(subject, data, run, **hyper) -> Subject`."""
    return register("stage", name)


def reader(name: str) -> Callable[[F], F]:
    """Register a reader: `(**hyper) -> list[Example]`."""
    return register("reader", name)


def variant(name: str) -> Callable[[F], F]:
    """Register a text variant: `(example, prompt, data, *args) -> Iterator[(prompt, answer, spans)]`."""
    return register("variant", name)


def instrument(
    name: str, *, tasks: Iterable[str] = ("causal", "masked", "seq2seq", "classification"), asks: bool = False,
    after: Iterable[tuple[str, str]] = (), partner: bool = False,
) -> Callable[[F], F]:
    """Register an instrument: `(subject, jobs, desk) -> list[Table]`, one table per job.

    tasks: of the models it can measure. asks: texts without a prompt are left out. after: (instrument, variant) of
    tables of the same stream that must be there first. partner: it runs the model before the removal as well.
    """
    return register(
        "instrument", name, tasks=frozenset(tasks), asks=asks, after=tuple(after), partner=partner
    )


@cache
def _load(kind: str) -> None:
    """Import the homes of a kind, then third parties' entry points (group `expunge.KIND`)."""
    for home in HOMES.get(kind, ()):
        package = importlib.import_module(home)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{home}.{module.name}")
    for point in entry_points(group=f"expunge.{kind}"):
        try:
            point.load()
        except Exception as error:  # a stranger's broken plugin must not stop everybody
            warnings.warn(f"plugin {point.name} ({point.value}) did not load: {error}", stacklevel=2)


def entries(kind: str) -> dict[str, Entry]:
    """All parts of a kind by name."""
    _load(kind)
    return {name: entry for (k, name), entry in sorted(_entries.items()) if k == kind}


def find(kind: str, name: str, where: str) -> Entry:
    """The part `name`, or `module:attr`; the error names the closest one."""
    if ":" in name:
        return _from_path(kind, name, where)
    known = entries(kind)
    if name not in known:
        raise RecipeError(where, f"unknown {kind} '{name}'", close_to(name, known), f"See: expunge list {plural(kind)}")
    return known[name]


def _from_path(kind: str, path: str, where: str) -> Entry:
    module_name, attr = path.split(":", 1)
    try:
        fn = getattr(importlib.import_module(module_name), attr)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            where,
            f"cannot import '{path}' ({error})",
            "accepted: a registered name or module:attr",
            "Check that the module is on PYTHONPATH and has that attribute",
        ) from error
    registered = [entry for entry in _entries.values() if entry.fn is fn]
    for entry in registered:
        if entry.kind == kind:  # a stranger's part keeps its path: elsewhere nobody may have imported that module yet
            return entry if module_name.startswith(HOMES.get(kind, ())) else replace(entry, name=path)
    if registered or not inspect.isroutine(fn) or kind == "metric":
        found = f"a registered {registered[0].kind}" if registered else f"a {type(fn).__name__} without its declaration"
        raise RecipeError(where, f"'{path}' is {found}", f"a {kind}", f"Decorate a function with registry.{kind}(...)")
    return Entry(kind, path, fn, types.MappingProxyType({}))


def parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a registered function, annotations evaluated."""
    signature = inspect.signature(fn)
    hints = typing.get_type_hints(fn, include_extras=True)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in signature.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def takes(kind: str, name: str, argument: str) -> bool:
    """Whether a registered part has a hyper-parameter of that name."""
    return argument in parameters(find(kind, name, kind).fn)


def bind(kind: str, spec: Any, where: str | None = None, also: Iterable[str] = ()) -> Bound:
    """Turn a spec (a name, `{use: name, **hyper}`, or a Bound) into a Bound with every default filled.

    also: keys the caller reads from the same mapping, to be told with the closest name when mistyped.

    Raises: RecipeError with the path in the recipe and the closest name.
    """
    if isinstance(spec, Bound):
        return spec
    where = where or kind
    if isinstance(spec, str):
        spec = {"use": spec}
    if not isinstance(spec, Mapping) or "use" not in spec:
        raise RecipeError(
            where, f"got {brief(spec)}", f"a {kind} is a name or a mapping with 'use'", "Write: {use: NAME, ...}"
        )
    entry = find(kind, str(spec["use"]), f"{where}.use")
    given = {key: value for key, value in spec.items() if key != "use"}
    return Bound(kind, entry.name, entry.fn, _fill(entry, given, where, also), entry.meta)


def bind_call(kind: str, path: str, given: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> Bound:
    """Bind a function that is not chosen by name, only configured (`module:attr`)."""
    module_name, attr = path.split(":")
    fn = getattr(importlib.import_module(module_name), attr)
    entry = Entry(kind, kind, fn, types.MappingProxyType({}))
    return Bound(kind, kind, fn, _fill(entry, given, where, also))


def _fill(entry: Entry, given: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> dict[str, Any]:
    known = parameters(entry.fn)
    for key, value in given.items():
        if key not in known:
            takes = ", ".join(known) or "no arguments"
            raise RecipeError(
                f"{where}.{key}",
                f"unknown argument (got {brief(value)})",
                close_to(str(key), [*known, *also]),
                f"{entry.name} takes: {takes}",
            )
    filled = {}
    for name, parameter in known.items():
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise RecipeError(
                f"{where}.{name}", "missing", f"{entry.kind} '{entry.name}' needs it", f"Add '{name}: ...'"
            )
        value = given.get(name, parameter.default)
        filled[name] = _convert(value, parameter, f"{where}.{name}")
    return filled


def _convert(value: Any, parameter: inspect.Parameter, where: str) -> Any:
    kind = next((m for m in getattr(parameter.annotation, "__metadata__", ()) if isinstance(m, Kind)), None)
    if kind is not None:
        if value is None:
            return None
        make = bind_term if kind.name == "objective" else lambda spec, where: bind(kind.name, spec, where)
        if kind.many and not isinstance(value, (list, tuple)):
            raise RecipeError(
                where, f"got {brief(value)}", f"a list of {kind.name}s", "Write each after '- ', or in [ ]"
            )
        if kind.many:
            return [make(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return make(value, where)
    if parameter.annotation is Any:
        return value
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        config = ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(parameter.annotation, config=config).validate_python(value)
    except ValidationError as error:
        wanted = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
        raise RecipeError(
            where, f"got {brief(value)} ({error.errors()[0]['msg']})", f"accepted: {wanted}", "Correct the value"
        ) from error


def bind_term(spec: Any, where: str = "term") -> Term:
    """Turn `{use: npo, on: forget, weight: 1, mean: ..., tokens: ..., **hyper}` into a Term."""
    if isinstance(spec, Term):
        return spec
    if not isinstance(spec, Mapping):
        raise RecipeError(
            where, f"got {brief(spec)}", "a term is a mapping with 'use' and 'on'", "Write: {use: npo, on: forget}"
        )
    own = {"on", "weight", "mean", "tokens", "reference", "link"}
    bound = bind("objective", {k: v for k, v in spec.items() if k not in own}, where, own)
    if "on" not in spec:
        raise RecipeError(f"{where}.on", "missing", "a stream name, or one per view", "Add 'on: forget'")
    on = (spec["on"],) if isinstance(spec["on"], str) else spec["on"]
    if not isinstance(on, (list, tuple)) or not all(isinstance(name, str) for name in on):
        raise RecipeError(f"{where}.on", f"got {brief(on)}", "a stream name, or a list of them", "Correct 'on'")
    on = tuple(on)
    views = bound.meta.get("views", len(on))
    if len(on) != views:
        raise RecipeError(
            f"{where}.on",
            f"{len(on)} stream(s): {', '.join(on)}",
            f"'{bound.name}' looks at {views}",
            "Name as many streams",
        )
    mean, tokens = (
        spec.get("mean") or bound.meta.get("mean", "examples"),
        spec.get("tokens") or bound.meta.get("tokens", "answer"),
    )
    for key, value, accepted in (
        ("mean", mean, ("examples", "tokens")),
        ("tokens", tokens, ("answer", "text", "spans", "context")),
    ):
        if value not in accepted:
            raise RecipeError(
                f"{where}.{key}", f"got {brief(value)}", close_to(str(value), accepted), "Correct the value"
            )
    try:
        weight = float(spec.get("weight", 1.0))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{where}.weight", f"got {brief(spec['weight'])}", "accepted: a number", "Correct the value"
        ) from error
    link = bind("link", spec["link"], f"{where}.link") if spec.get("link") is not None else None
    return Term(bound, on, weight, mean, tokens, str(spec.get("reference", "start")), link)


def term(use: str, on: str | tuple[str, ...], *, weight: float = 1.0, **rest: Any) -> Term:
    """A Term in Python: `term("npo", on="forget", beta=0.1)`."""
    return bind_term({"use": use, "on": on, "weight": weight, **rest})


def spec_of(value: Any) -> Any:
    """The inverse of `bind`: plain values that YAML can hold and `bind` reads back."""
    if isinstance(value, Term):
        own = {"on": list(value.on), "weight": value.weight, "mean": value.mean, "tokens": value.tokens}
        rare = {"reference": value.reference} if value.reference != "start" else {}
        return {**spec_of(value.objective), **own, **rare, **({"link": spec_of(value.link)} if value.link else {})}
    if isinstance(value, Bound):
        return {"use": value.name, **{key: spec_of(item) for key, item in value.hyper.items()}}
    if isinstance(value, Mapping):
        return {key: spec_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec_of(item) for item in value]
    if isinstance(value, ExpungeError):
        return str(value)
    return value
