"""Expunge: remove what a language model should not know, and audit the removal.

    from expunge import audit, load, unlearn, Recipe, Subject, Example

Names are imported when they are first used, so `import expunge` brings no torch and the command line starts at once.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType  # not `import types`: expunge.types would take the name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.api import Result as Result
    from expunge.api import audit as audit
    from expunge.api import unlearn as unlearn
    from expunge.errors import ExpungeError as ExpungeError
    from expunge.models import load as load
    from expunge.recipe import Recipe as Recipe
    from expunge.registry import attack as attack
    from expunge.registry import entries as entries
    from expunge.registry import method as method
    from expunge.registry import metric as metric
    from expunge.registry import objective as objective
    from expunge.registry import scope as scope
    from expunge.registry import term as term
    from expunge.types import Example as Example
    from expunge.types import Subject as Subject

    __version__: str

_HOMES = {
    "expunge.api": ("Result", "audit", "unlearn"),
    "expunge.errors": ("ExpungeError",),
    "expunge.models": ("load",),
    "expunge.recipe": ("Recipe",),
    "expunge.registry": ("attack", "entries", "method", "metric", "objective", "scope", "term"),
    "expunge.types": ("Example", "Subject"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_PUBLIC)]


class _Front(ModuleType):
    """This package. `audit` is a public function and a submodule; importing the latter must not hide the former."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("expunge")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
