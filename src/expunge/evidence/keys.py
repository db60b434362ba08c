"""Ed25519 keys in files, their fingerprints, and signatures. Needs the package `cryptography` (extra: sign)."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import DataError, MissingExtra
from expunge.run import storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"


def new_key(path: Path) -> tuple[str, Path]:
    """Make a private key (PEM, PKCS #8, readable by its owner alone) and its public half beside it.

    Returns: the fingerprint, and the file of the public key (`key.pem` -> `key.pub.pem`).
    Raises: DataError when one of the files is there already; StorageError when they cannot be written.
    """
    kinds, serial = _library()
    public = path.with_name(f"{path.stem}.pub.pem")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            raise DataError(str(file), "is there already", "keys are never overwritten", "Choose another name")
    made = kinds.Ed25519PrivateKey.generate()
    pem = made.private_bytes(serial.Encoding.PEM, serial.PrivateFormat.PKCS8, serial.NoEncryption())
    _write_new(path, pem, 0o600)
    try:
        _write_new(public, pem_of(made.public_key()).encode(), 0o644)
    except BaseException:
        path.unlink()
        raise
    return fingerprint(made.public_key()), public


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file. Raises: DataError when there is none that can be used."""
    kinds, serial = _library()
    try:
        key = serial.load_pem_private_key(_read(path, "--key"), None)
    except (ValueError, TypeError) as error:  # TypeError: it wants a password
        found = "is locked with a password" if isinstance(error, TypeError) else "holds no private key"
        raise DataError(
            str(path), found, "accepted: a PEM file (PKCS #8) of an Ed25519 key, without a password",
            "Make one: expunge pack --new-key KEY.pem",
        ) from error
    if not isinstance(key, kinds.Ed25519PrivateKey):
        raise DataError(
            str(path), f"a key of another kind ({type(key).__name__.strip('_')})", "accepted: Ed25519",
            "Make one: expunge pack --new-key KEY.pem",
        )
    return key


def open_to_others(path: Path) -> bool:
    """Whether others than the owner may read a file."""
    return os.name != "nt" and bool(path.stat().st_mode & 0o077)


def trusted(text: str) -> str:
    """The fingerprint that `--trust` means: of a public key file, or written out."""
    written = text.lower().removeprefix("sha256:").replace(":", "")
    if re.fullmatch("[0-9a-f]{64}", written) and not Path(text).exists():
        return written
    if not Path(text).exists():
        raise DataError(
            f"--trust {text}", "no such file, and no fingerprint",
            "accepted: a public key (PEM), or its fingerprint of 64 hex digits", "Ask the signer for one of them",
        )
    try:
        return fingerprint(public_of(_read(Path(text), "--trust").decode("ascii")))
    except ValueError as error:
        raise DataError(
            f"--trust {text}", "holds no Ed25519 public key", "accepted: the .pub.pem file, not the private key",
            "Give the public key or its fingerprint",
        ) from error


def public_of(pem: str) -> Ed25519PublicKey:
    """A public key from PEM. Raises: ValueError for anything else."""
    kinds, serial = _library()
    try:
        key = serial.load_pem_public_key(pem.encode("ascii"))
    except Exception as error:  # the library below has kinds of its own for what it does not know
        raise ValueError("no public key") from error
    if not isinstance(key, kinds.Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return key


def pem_of(key: Ed25519PublicKey) -> str:
    _, serial = _library()
    pem: bytes = key.public_bytes(serial.Encoding.PEM, serial.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode("ascii")


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the DER form of a public key, 64 hex digits."""
    _, serial = _library()
    return hashlib.sha256(
        key.public_bytes(serial.Encoding.DER, serial.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def fits(key: Ed25519PublicKey, signature: bytes, line: bytes) -> bool:
    """Whether a signature is that of these bytes by this key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, line)
    except InvalidSignature:
        return False
    return True


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("signatures", "cryptography", "sign") from error
    return ed25519, serialization


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        raise DataError(
            f"{option} {path}", f"cannot be read ({error.strerror or error})", "a PEM file", "Correct the path"
        ) from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise
