"""A small certified folder and packs of it, made without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from expunge.evidence import keys
from expunge.evidence.files import certified, file_of
from expunge.evidence.form import Folder, Opened, Settings, Statement, opened
from expunge.evidence.statement import pack_of, signer_of, statement_of
from expunge.report.schema import Condition, Evidence, Measured, Untested, Verdict

FILES = {
    "config.json": b'{"hidden_size": 32}\n', "model.safetensors": bytes(range(256)), "tokenizer.json": b"{}",
    "empty.txt": b"", "code/module.py": b"pass\n", "chat_template.jinja": "{{ m\u00e9ssages }}".encode(),
}


@cache
def key(number: int = 1) -> Ed25519PrivateKey:
    """The same key for the same number."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def fingerprint(number: int = 1) -> str:
    return keys.fingerprint(key(number).public_key())


def model_folder(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def evidence(**changes: Any) -> Evidence:
    made = Evidence(
        title="Removal of 3 Caf\u00e9s", subject="small", created="2026-08-01T14:05:00+00:00", digest="3f9a0c17be42",
        conditions=(Condition("after", "after", label="After the removal"),),
        scores=(Measured("after", "forget", "probability", 0.1, (1e-05, 0.25), 12, "prob"),),
        verdicts=(Verdict("forgotten", "probability", "forget", "FAIL", "after", reason="knows clearly more"),),
        verdict="FAIL", untested=(Untested("relearn", "available, not asked for"),),
    )
    return replace(made, **changes)


def run_files(**changes: Any) -> dict[str, bytes]:
    """The files of a finished run."""
    found = evidence(**changes)
    lineage = {
        "recipe": found.digest, "model": {"source": "small", "weights": "00"}, "data": {"forget": "ab" * 8},
        "stages": [], "result": {"weights": "61bd4c5089a5449c"},
    }
    return {
        "scores.json": found.to_json().encode(), "lineage.json": (json.dumps(lineage, indent=1) + "\n").encode(),
        "env.json": b'{\n "python": "3.11.9"\n}\n', "recipe.resolved.yaml": b"expunge: 1\n", "report.html": b"<html>",
    }


def statement(model: Path, base: Path | None = None, before: bytes | None = None, by: int | None = 1,
              **changes: Any) -> Statement:
    return statement_of(
        run_files(**changes), model=Folder(model.name, certified(model)),
        base=Folder(base.name, certified(base)) if base is not None else None,
        settings=Settings("{prompt} {answer}", "causal", "float32", {"num": 1, "temperature": 0.0}),
        recipe={"expunge": 1, "seed": 0}, made_by="expunge 0", created="2026-08-02T10:00:00+00:00",
        signer=signer_of(None if by is None else key(by)), before=_before(before),
    )


def pack(model: Path, base: Path | None = None, before: bytes | None = None, by: int | None = 1,
         **changes: Any) -> bytes:
    """A pack signed by the key of that number; None: unsigned."""
    return pack_of(statement(model, base, before, by, **changes), None if by is None else key(by))


def _before(raw: bytes | None) -> tuple[Opened, str] | None:
    return None if raw is None else (opened(raw), file_of(raw).sha256)
