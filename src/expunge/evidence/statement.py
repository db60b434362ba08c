"""From a finished run and the files of its model to what is signed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import DataError
from expunge.evidence import keys
from expunge.evidence.files import file_of, hashes, reading
from expunge.evidence.form import (
    Folder,
    Opened,
    Resolved,
    Settings,
    Signer,
    Statement,
    as_written,
    line_of,
    sealed,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CONTENTS = {"scores.json": "scores", "lineage.json": "lineage", "env.json": "environment"}  # file -> field
RUN_FILES = (*CONTENTS, "recipe.resolved.yaml", "report.html")


def read_run(folder: Path) -> dict[str, bytes]:
    """The files of a finished, audited run.

    Raises: DataError when one is missing, or they are not of one run.
    """
    found = {}
    for name in RUN_FILES:
        try:
            with reading(folder / name) as file:
                found[name] = file.readall()
        except OSError as error:
            raise DataError(
                str(folder / name), f"cannot be read ({error.strerror or error})",
                "a run that was audited to its end holds " + ", ".join(RUN_FILES), "Name the folder of such a run",
            ) from error
    plain = {name: content_of(folder, name, found) for name in CONTENTS}
    if "result" not in plain["lineage.json"]:
        raise DataError(
            str(folder / "lineage.json"), "holds no result", "a run that was audited to its end", "Finish it: --resume"
        )
    if plain["lineage.json"].get("recipe") != plain["scores.json"].get("digest"):
        raise DataError(
            str(folder), f"scores of the recipe {plain['scores.json'].get('digest')!r} beside a lineage of "
            f"{plain['lineage.json'].get('recipe')!r}", "all files of one run", "Run the audit again",
        )
    return found


def content_of(folder: Path, name: str, run: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of a JSON file of a run. Raises: DataError unless it is as the run wrote it."""
    try:
        plain = json.loads(run[name])
        same = isinstance(plain, dict) and as_written(plain) == run[name]
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise DataError(
            str(folder / name), "was written to after the run", "the file as the run left it", "Run the audit again"
        )
    return dict(plain)


def audited(lineage: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The files a run says it audited: of the model and, below an adapter, of its base. None: it does not say."""
    files = lineage.get("files")
    if not isinstance(files, dict) or not isinstance(files.get("model"), dict) or not files["model"]:
        return None
    return files


def not_audited(lineage: Mapping[str, Any], model: Folder, base: Folder | None) -> Iterator[tuple[str, str]]:
    """Each file that is not as it was audited, and what is wrong with it; nothing when the run does not say."""
    said = audited(lineage)
    if said is None:
        return
    for part, folder, before in (("model", model, ""), ("base", base, "base: ")):
        wanted = said.get(part)
        wanted = wanted if isinstance(wanted, dict) else {}
        found = hashes(folder.files) if folder is not None else {}
        for name in sorted({*wanted, *found}):
            if name not in found:
                yield before + name, "missing"
            elif name not in wanted:
                yield before + name, "was not there when it was audited"
            elif wanted[name] != found[name]:
                yield before + name, "another one was audited"


def signer_of(key: Ed25519PrivateKey | None) -> Signer | None:
    """What a pack says about its signer."""
    if key is None:
        return None
    public = key.public_key()
    return Signer(keys.ALGORITHM, keys.fingerprint(public), keys.pem_of(public))


def statement_of(
    run: Mapping[str, bytes], *, model: Folder, base: Folder | None, settings: Settings, recipe: Mapping[str, Any],
    made_by: str, created: str, signer: Signer | None, before: tuple[Opened, str] | None = None,
) -> Statement:
    """Put together what is signed.

    Args:
        run: what `read_run` gave. recipe: resolved, without rows.
        before: the previous pack of the chain and the SHA-256 of its file.
    """
    contents = {field: json.loads(run[name]) for name, field in CONTENTS.items()}
    return Statement(
        made_by=made_by, created=created,
        number=before[0].statement.number + 1 if before else 1, previous=before[1] if before else None,
        signer=signer, model=model, base=base, weights=contents["lineage"]["result"]["weights"], settings=settings,
        recipe=Resolved(contents["lineage"]["recipe"], recipe),
        run={name: file_of(content) for name, content in run.items()}, **contents,
    )


def pack_of(statement: Statement, key: Ed25519PrivateKey | None) -> bytes:
    """The file of a pack, signed unless there is no key."""
    line = line_of(statement)
    return sealed(line, None if key is None else key.sign(line))
