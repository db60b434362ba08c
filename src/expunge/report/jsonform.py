"""Frozen dataclasses to plain JSON values and back, with the place of every misfit.

Unknown keys are passed over, so that a file of a later release with more keys still opens; a missing key names
the closest unknown one. Non-finite numbers travel as the words "inf", "-inf" and "nan".
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class MisfitError(Exception):
    """A value that does not fit its type."""

    def __init__(self, place: str, found: str, accepted: str) -> None:
        super().__init__(f"{place}: {found}; {accepted}")
        self.place, self.found, self.accepted = place, found, accepted


def encode(value: Any) -> Any:
    """JSON-ready copy; the field order of the class is kept, fields that start with `_` are not written."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)  # numpy scalars too
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")


def decode(kind: Any, value: Any, place: str) -> Any:
    """The value as `kind`: a dataclass, a scalar, a Literal, a union with None, a tuple or a mapping."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast(type, kind), value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in arguments:
            raise MisfitError(place, f"found {value!r}", "accepted: " + ", ".join(str(item) for item in arguments))
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else decode(next(item for item in arguments if item is not type(None)), value,
                                                 place)
    if origin is tuple:
        return _tuple(arguments, value, place)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise MisfitError(place, f"found {_brief(value)}", "expected an object")
        return {key: decode(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    return _scalar(kind, value, place)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise MisfitError(place, f"found {_brief(value)}", "expected an object")
    fields = dataclasses.fields(kind)
    strange = sorted(set(value) - {field.name for field in fields})
    chosen: dict[str, Any] = {}
    for field in fields:
        here = f"{place}.{field.name}" if place else field.name
        if field.name in value:
            chosen[field.name] = decode(_hints(kind)[field.name], value[field.name], here)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            near = difflib.get_close_matches(field.name, strange, n=1)
            close = f"'{near[0]}' stands there and is not known" if near else f"'{field.name}' must be given"
            raise MisfitError(here, "missing", close)
    return kind(**chosen)


def _tuple(arguments: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise MisfitError(place, f"found {_brief(value)}", "expected a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(decode(arguments[0], item, f"{place}[{row}]") for row, item in enumerate(value))
    if len(value) != len(arguments):
        raise MisfitError(place, f"found {len(value)} entries", f"expected {len(arguments)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(decode(kind, item, f"{place}[{row}]") for row, (kind, item) in enumerate(pairs))


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is float:
        if isinstance(value, str) and value in _WORDS:
            return _WORDS[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise MisfitError(place, f"found {_brief(value)}", "expected a number")
    if kind is int:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value):
            return int(value)
        raise MisfitError(place, f"found {_brief(value)}", "expected a whole number")
    if not isinstance(value, kind):
        raise MisfitError(place, f"found {_brief(value)}", f"expected {kind.__name__}")
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
