"""Does a pack hold? Its bytes, its signature, its signer, the pack before it, and the files of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from expunge.evidence import keys
from expunge.evidence.files import File, Listing, base_of, file_of, read_folder
from expunge.evidence.form import Broken, Folder, Opened, Statement, as_written, opened
from expunge.evidence.statement import CONTENTS, not_audited
from expunge.run import Progress, _silent


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold."""

    where: str
    certified: str  # what should be
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.certified}; {self.found}"


@dataclass(frozen=True)
class Result:
    """What came out. `findings` is empty exactly when everything that was looked at holds.

    opened: the pack, unless it could not be read. intact: bytes and signature fit. trusted: the signer is one that was
    named. model, previous: whether these were given to compare with.
    """

    findings: tuple[Finding, ...]
    opened: Opened | None = None
    intact: bool = False
    trusted: bool = False
    model: bool = False
    previous: bool = False

    @property
    def holds(self) -> bool:
        return not self.findings


def check(
    raw: bytes, *, trust: Collection[str] | None = (), model: Path | None = None, base: Path | None = None,
    previous: bytes | None = None, progress: Progress = _silent,
) -> Result:
    """Check a pack.

    Args:
        raw: the bytes of its file. trust: fingerprints of the keys that are believed; None: any key will do.
        model: the folder to compare; None: the pack alone. base: of an adapter; None: where the adapter says.
        previous: the bytes of the pack before it.
    Cost: a millisecond, and reading the model's files once.
    """
    try:
        pack = opened(raw)
    except Broken as error:
        return Result((Finding("pack", "every byte of a pack counts", str(error)),))
    wrong = list(_signature(pack))
    if wrong and pack.signature is not None:  # whatever else it says is not what was signed
        return Result(tuple(wrong), pack)
    statement = pack.statement
    wrong += _consistent(statement)
    intact = not wrong
    trusted = statement.signer is not None and trust is not None and statement.signer.fingerprint in trust
    if statement.signer is not None and trust is not None and not trusted:
        wrong.append(_distrust(statement.signer.fingerprint, trust))
    if previous is not None:
        wrong += _chain(statement, previous, trust)
    if model is not None:
        wrong += _folders(statement, model, base, progress)
    return Result(tuple(wrong), pack, intact, trusted and intact, model is not None, previous is not None)


def _signature(pack: Opened) -> Iterator[Finding]:
    signer = pack.statement.signer
    if (signer is None) != (pack.signature is None):
        yield Finding("signature", "signer and signature go together", "one without the other")
        return
    if signer is None or pack.signature is None:
        yield Finding("signature", "a pack is signed", "UNSIGNED: anyone can have written it")
        return
    try:
        key = keys.public_of(signer.public_key)
    except ValueError:
        yield Finding("signer", "an Ed25519 key", "its public key is none")
        return
    if (keys.ALGORITHM, keys.fingerprint(key), keys.pem_of(key)) != (
        signer.algorithm, signer.fingerprint, signer.public_key
    ):
        yield Finding("signer", "a key and its fingerprint", "its public key has another fingerprint, or another form")
    if not keys.fits(key, pack.signature, pack.line):
        found = "the signature does not fit: the pack was changed after it was signed, or never signed by this key"
        yield Finding("signature", f"signed by the key {signer.fingerprint}", found)


def _distrust(fingerprint: str, trust: Collection[str]) -> Finding:
    if trust:
        return Finding("signer", f"a key you trust ({', '.join(sorted(trust))})", f"signed by {fingerprint}")
    return Finding(
        "signer", "a key that somebody vouches for",
        f"signed by {fingerprint}, which anyone may have made. Get the signer's fingerprint by another way than this "
        "pack and give it with --trust",
    )


def _consistent(statement: Statement) -> Iterator[Finding]:
    """What the signer may have put together wrongly: parts of the statement that speak of the same thing."""
    for name, field in CONTENTS.items():
        certified, found = statement.run.get(name), file_of(as_written(getattr(statement, field)))
        if certified != found:
            yield Finding(name, _said(certified), f"its content in the pack is {_said(found)}")
    digests = {str(statement.lineage.get("recipe")), str(statement.scores.get("digest")), statement.recipe.digest}
    if len(digests) > 1:
        yield Finding("recipe", "one recipe", "digests " + ", ".join(sorted(digests)))
    result = statement.lineage.get("result")
    if not isinstance(result, dict) or result.get("weights") != statement.weights:
        yield Finding("weights", f"measured {statement.weights}", "the lineage has others")
    for name, wrong in not_audited(statement.lineage, statement.model, statement.base):
        yield Finding(name, "certified as it was audited", wrong)
    if statement.number < 1 or (statement.number == 1) != (statement.previous is None):
        yield Finding("chain", "the first pack, or one with a previous", f"number {statement.number}")


def _chain(statement: Statement, previous: bytes, trust: Collection[str] | None) -> Iterator[Finding]:
    before = check(previous, trust=trust)
    for one in before.findings:
        yield Finding(f"previous pack, {one.where}", one.certified, one.found)
    found = file_of(previous).sha256
    if statement.previous is None:
        yield Finding("chain", "the first pack of its chain, with none before it", "a previous pack was given")
    elif statement.previous != found:
        yield Finding("chain", f"certified previous pack sha256 {statement.previous}", f"found sha256 {found}")
    elif before.opened is not None and before.opened.statement.number + 1 != statement.number:
        number = before.opened.statement.number
        yield Finding("chain", f"certified as number {statement.number}", f"the previous pack is number {number}")


def _folders(statement: Statement, model: Path, base: Path | None, progress: Progress) -> Iterator[Finding]:
    """Differences of the model and, where it is an adapter, of the model below it."""
    yield from _differences(statement.model, read_folder(model, progress), "")
    if statement.base is None:
        return
    where = base if base is not None else Path(base_of(model) or "")
    if base is None and not (base_of(model) and where.is_dir()):
        found = f"the adapter names '{base_of(model) or ''}', which is no folder here; give its folder with --base"
        yield Finding("base", f"{len(statement.base.files)} certified files of '{statement.base.name}'", found)
        return
    yield from _differences(statement.base, read_folder(where, progress), "base: ")


def _differences(certified: Folder, found: Listing, what: str) -> Iterator[Finding]:
    for path in sorted({*certified.files, *found.files, *found.problems}):
        wanted, here, problem = certified.files.get(path), found.files.get(path), found.problems.get(path)
        if problem is not None or wanted != here:
            told = problem if problem is not None else "no such file" if here is None else _said(here)
            yield Finding(what + path, f"certified {_said(wanted)}", f"found {told}")


def _said(file: File | None) -> str:
    return "no such file" if file is None else f"sha256 {file.sha256} ({file.size:,} bytes)"
