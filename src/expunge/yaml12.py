"""YAML as recipes use it: true and false are the only booleans, and 1e-4 is a number.

PyYAML follows YAML 1.1, where a bare `on` (the key of every term) is true and `1e-4` is text. Both surprise.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_BOOLEAN, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_NUMBER = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_BOOLEAN, _FLOAT)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, _NUMBER, list("-+0123456789."))  # after whole numbers, which match it too


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes texts which only YAML 1.2 takes for numbers ("1e5")."""


_Dumper.add_implicit_resolver(_FLOAT, _NUMBER, list("-+0123456789."))


def read(text: str) -> Any:
    """Plain values from YAML text. Raises: yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def write(value: Any) -> str:
    """YAML text of plain values, keys in their order; what any YAML program could misread is quoted."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))
