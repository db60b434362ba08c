"""Errors a user can act on: where, what was found, what is accepted, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """Base of every error Expunge raises on purpose.

    Args:
        where: the place, in the user's terms: a path in the recipe, a file and line, a flag.
        found: what stood there.
        accepted: what would have been accepted, or what is close to what was found.
        do: the next action.
    """

    exit_code = 2

    def __init__(self, where: str, found: str, accepted: str, do: str) -> None:
        super().__init__(where, found, accepted, do)
        self.where, self.found, self.accepted, self.do = where, found, accepted, do

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.accepted}. {self.do}"


class RecipeError(ExpungeError):
    """A recipe, or an argument of a registered function, is not what the signature says."""


class DataError(ExpungeError):
    """A stream cannot be read, or its examples cannot be used as asked."""


class ModelError(ExpungeError):
    """A model or tokenizer cannot be loaded, or cannot do what was asked of it."""


class UnsafeArtefact(ExpungeError):
    """A model folder would run code on loading: a pickle, or a module of its own."""


class MissingExtra(ExpungeError):
    """An optional dependency is not installed; names the extra that brings it."""

    def __init__(self, where: str, package: str, extra: str) -> None:
        super().__init__(
            where,
            f"the package '{package}' is not installed",
            f"it comes with the extra '{extra}'",
            f"Run: pip install 'expunge[{extra}]'",
        )


class NonFinite(ExpungeError):
    """A loss became NaN or infinite; raised before the optimiser moved."""


class StorageError(ExpungeError):
    """A file could not be written whole (disk full, permissions); earlier files are untouched."""


class Interrupted(ExpungeError):
    """The run was stopped from outside and can be resumed."""

    exit_code = 3


class DoesNotFit(Exception):
    """Not an error: an attack cannot be tried on this model or data. The reason stands in the matrix as n/a."""


def brief(value: object) -> str:
    """A value as an error may show it: short, and never the contents of a list or mapping (they may be texts)."""
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:40]}... ({len(shown)} characters)"


def close_to(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` when something is close, otherwise the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return "accepted: " + (", ".join(names) if names else "nothing")
