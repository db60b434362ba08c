"""The house rules hold, and the check of them sees what it should."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house_checks", ROOT / "scripts" / "checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


checks = _checks()


def test_the_house_rules_hold() -> None:
    files = checks.sources()
    assert len([file for file in files if file.part]) > 30  # the whole package was walked
    assert checks.violations(files) == []


LONG = "def f():\n" + "    pass\n" * 60
MANY = "def f(self, a, b, c, d, e, *, f, g, h, i, j, k): ...\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tests/test_x.py", "x = 1\n" * 401, "401 lines"),
        ("src/expunge/forget.py", LONG, "f has 61 lines"),
        ("src/expunge/forget.py", MANY, "f takes 11 arguments"),
        ("src/expunge/types.py", "class A: ...\nclass B(A): ...\nclass C(B): ...\n", "C inherits over 2 levels"),
        ("src/expunge/models.py", "def f():\n    from expunge.data.readers import x\n", "models imports expunge.data"),
        ("src/expunge/models.py", "from expunge import audit\n", "models imports expunge.audit"),
        ("src/expunge/data/readers.py", "from .rows import x\n", "relative import"),
        ("src/expunge/stray.py", "", "stands in no layer"),
        ("src/expunge/cli/run.py", "import torch\n", "imports torch at its start"),
        ("src/expunge/cli/run.py", "try:\n    from torch import nn\nexcept ImportError: ...\n", "imports torch"),
        ("src/expunge/report/html.py", "def f():\n    import torch.nn\n", "the report imports torch"),
    ],
)
def test_a_broken_rule_is_seen(name: str, text: str, words: str) -> None:
    found = checks.violations([checks.Source(name, text)])
    assert len(found) == 1
    assert words in found[0]
    assert found[0].startswith(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("src/expunge/types.py", "if TYPE_CHECKING:\n    from torch import Tensor\n    import expunge.audit\n"),
        ("src/expunge/cli/run.py", "def run():\n    import torch\n    from expunge.audit import audit\n"),
        ("src/expunge/testing.py", "from expunge.audit import audit\n"),
        ("src/expunge/errors.py", "class A(Exception): ...\nclass B(A): ...\n"),
        ("src/expunge/forget.py", "def f(self, a, b, c, d, e, *, f, g, h, i, j): ...\n"),
    ],
)
def test_what_is_allowed_is_not_reported(name: str, text: str) -> None:
    assert checks.violations([checks.Source(name, text)]) == []


def test_front_door_and_report_start_without_torch() -> None:
    modules = ["expunge.cli", "expunge.registry", "expunge.recipe", "expunge.run", "expunge.machine"]
    modules += [f"expunge.report.{path.stem}" for path in (ROOT / "src/expunge/report").glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
