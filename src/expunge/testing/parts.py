"""What all checks share: find the part, say which part failed."""

from __future__ import annotations

from typing import Any

from expunge.types import Bound


def bound_of(kind: str, part: Any) -> Bound:
    """A part by name, spec, registry entry or as it is."""
    from expunge.registry import Entry, bind

    return bind(kind, part.name if isinstance(part, Entry) else part)


def require(holds: bool, part: Bound, what: str) -> None:
    if not holds:
        raise AssertionError(f"{part.kind} '{part.name}': {what}")
