"""`unlearn` and `audit` in Python: what the commands of the same names do. Each writes a recipe and carries it out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import machine
from expunge.errors import ModelError
from expunge.models import load
from expunge.recipe import Recipe
from expunge.registry import takes
from expunge.report.schema import Evidence, Outcome
from expunge.run import write_text
from expunge.types import Example, Subject
from expunge.workflow import Workflow, default_folder

Given = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Sequence[Example]


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, and what the audit found (None when nothing was audited)."""

    folder: Path
    evidence: Evidence | None

    @property
    def verdict(self) -> Outcome | None:
        """PASS, FAIL or INCONCLUSIVE: the worst over all claims."""
        return None if self.evidence is None else self.evidence.verdict

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def model(self) -> Path:
        """The folder of the unlearned weights: `model`, or `adapter` after a LoRA scope.

        Raises: ModelError when the run changed no model (an audit).
        """
        for name in ("model", "adapter"):
            if (self.folder / name).is_dir():
                return self.folder / name
        raise ModelError(str(self.folder), "holds no model", "the folder of a removal", "Load the audited model itself")

    def load(self, **hyper: Any) -> Subject:
        """The unlearned model as a Subject; arguments as in `expunge.load`."""
        return load(str(self.model), **hyper)


def unlearn(
    model: str | Path,
    *,
    forget: Given,
    retain: Given | None = None,
    holdout: Given | None = None,
    oracle: str | Path | None = None,
    method: str | Mapping[str, Any] = "npo",
    attacks: str | Sequence[Any] = "default",
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    **hyper: Any,
) -> Result:
    """Remove a forget set from a model and audit the result; `expunge unlearn` in Python.

    Args:
        model: folder or hub name of the model before the removal.
        forget, retain, holdout: a file (.jsonl, .json, .csv, .parquet), a reader as in a recipe
            (`{"use": "hf", "path": ...}`), or a list of dicts or of `Example`. Lists are written to OUT/data.
        oracle: a twin that never saw the forget data.
        method: a registered name, or a mapping as in a recipe: `{"use": "npo", "retain": "kl"}`.
        attacks: "default", "thorough", "none", or names and mappings as in a recipe.
        out: a new folder; None: one under runs/.
        hyper: the method's own arguments: `lr=1e-4, epochs=5`.
    Returns: Result with the folder, the evidence and the verdict.
    Raises: ExpungeError for whatever a recipe would be refused for; Interrupted when stopped, with the state saved
        (go on with `expunge run OUT/recipe.resolved.yaml --out OUT --resume`).
    Cost: the training, plus one measurement per condition: before, after, oracle, each attack.
    """
    folder = _folder(out, f"unlearn-{Path(model).name}")
    chosen = {"use": method} if isinstance(method, str) else dict(method)
    if retain is None and takes("method", str(chosen.get("use")), "retain"):
        chosen.setdefault("retain", "none")
    plain = {
        "model": {"from": str(model)},
        "method": chosen | hyper,
        "audit": {
            "attacks": attacks if isinstance(attacks, str) else list(attacks),
            "against": None if oracle is None else str(oracle),
        },
        "seed": seed,
        "device": device,
    }
    return _carry_out(plain, {"forget": forget, "retain": retain, "holdout": holdout}, folder)


def audit(
    model: str | Path,
    *,
    forget: Given,
    retain: Given | None = None,
    original: str | Path | None = None,
    oracle: str | Path | None = None,
    holdout: Given | None = None,
    metrics: str | Sequence[Any] = "default",
    attacks: str | Sequence[Any] = "default",
    out: str | Path | None = None,
    device: str = "cpu",
) -> Result:
    """Audit any claimed unlearning, ours or somebody else's; `expunge audit` in Python.

    Args:
        model: folder or hub name of the model that is claimed to have forgotten.
        forget, retain, holdout, attacks, out: as in `unlearn`.
        original: the model before the removal. oracle: a twin that never saw the forget data.
        metrics: "default", or a list of names or mappings as in a recipe.
    Returns: Result; its folder holds scores.json and report.html.
    Raises: ExpungeError for whatever a recipe would be refused for.
    Cost: one measurement per condition, one copy of the model at a time.
    """
    folder = _folder(out, f"audit-{Path(model).name}")
    plain = {
        "title": f"Audit of {Path(model).name}",
        "model": {"from": str(model)},
        "audit": {
            "metrics": metrics if isinstance(metrics, str) else list(metrics),
            "attacks": attacks if isinstance(attacks, str) else list(attacks),
            "against": None if oracle is None else str(oracle),
            "original": None if original is None else str(original),
        },
        "device": device,
    }
    return _carry_out(plain, {"forget": forget, "retain": retain, "holdout": holdout}, folder)


def _carry_out(plain: Mapping[str, Any], given: Mapping[str, Given | None], folder: Path) -> Result:
    """Validate, then write what was held in memory, then run: a mistake leaves nothing behind."""
    sources = {role: source for role, source in given.items() if source is not None}
    specs = {role: _spec(role, source, folder) for role, source in sources.items()}
    recipe = Recipe.of({**plain, "data": specs})
    machine.prepare()
    if not (folder / "recipe.resolved.yaml").exists():  # an older run keeps its data; the workflow refuses the folder
        for role, source in sources.items():
            if not isinstance(source, (str, Path, Mapping)):
                lines = [json.dumps(_row(row), ensure_ascii=False) + "\n" for row in source]
                write_text(_file(role, folder), "".join(lines))
    return Result(folder, Workflow(recipe, folder).execute())


def _folder(out: str | Path | None, name: str) -> Path:
    return Path(out) if out is not None else default_folder(name)


def _spec(role: str, source: Given, folder: Path) -> Any:
    """A reader spec. Texts held in memory go into a file, so that none stands in recipe, scores or report."""
    if isinstance(source, (str, Path)):
        return str(source)
    return dict(source) if isinstance(source, Mapping) else {"use": "jsonl", "path": str(_file(role, folder))}


def _file(role: str, folder: Path) -> Path:
    return folder / "data" / f"{role}.jsonl"


def _row(row: Mapping[str, Any] | Example) -> dict[str, Any]:
    if isinstance(row, Example):
        return {key: value for key, value in dataclasses.asdict(row).items() if value not in (None, ())}
    return dict(row)
