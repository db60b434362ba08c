"""The bytes of a pack. One JSON object on three lines; the second line, with its line end, is what is signed.

Everything has one way to be written: compact ASCII JSON as Python writes it, every key once, keys of the statement in
the order of the classes below, hexadecimal in lower case. What is written in any other way is no pack.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import DataError
from expunge.evidence.files import File, reading
from expunge.report.jsonform import MisfitError, decode, encode

VERSION = 1
FILE = "evidence.json"
LARGEST = 1 << 28  # bytes of a pack; real ones have some hundred thousand
_MARK = b'{"expunge_evidence":'
_HEAD = _MARK + b'%d,"statement":\n' % VERSION
_TAIL = re.compile(rb',"signature":(?:null|"([0-9a-f]{128})")\}\n')


class Broken(Exception):
    """The bytes are not those of a pack; says why."""


@dataclass(frozen=True)
class Folder:
    """A certified folder: its name, for people, and each of its files."""

    name: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class Signer:
    """Who signed: the public key as PEM, and its fingerprint, the SHA-256 of its DER form."""

    algorithm: str
    fingerprint: str
    public_key: str


@dataclass(frozen=True)
class Settings:
    """How the model was asked and read while it was measured."""

    template: str  # "chat": the tokenizer's own, whose file is certified; else a format string
    task: str
    precision: str
    decoding: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """The recipe of the run with every default, and its digest; rows of data are counted, not shown."""

    digest: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Statement:
    """What is signed."""

    made_by: str  # the program and its version
    created: str  # ISO 8601, by the clock of the machine that made the pack
    number: int  # of the pack in its chain, from 1
    previous: str | None  # SHA-256 of the file of the pack before
    signer: Signer | None  # None: unsigned
    model: Folder
    base: Folder | None  # of an adapter
    weights: str  # hash of the loaded weights, by which the run knows the model it measured
    settings: Settings
    recipe: Resolved
    run: Mapping[str, File]  # the files of the run: scores.json, report.html, ...
    lineage: Mapping[str, Any]  # content of lineage.json: hashes of the data and the weights that went in and came out
    environment: Mapping[str, Any]  # content of env.json
    scores: Mapping[str, Any]  # content of scores.json


@dataclass(frozen=True)
class Opened:
    """A pack taken apart: the signed bytes, what they say, and the signature."""

    line: bytes
    statement: Statement
    signature: bytes | None


def line_of(statement: Statement) -> bytes:
    """The bytes that are signed."""
    return _compact(encode(statement))


def sealed(line: bytes, signature: bytes | None) -> bytes:
    """The file."""
    tail = "null" if signature is None else f'"{signature.hex()}"'
    return _HEAD + line + f',"signature":{tail}}}\n'.encode()


def opened(raw: bytes) -> Opened:
    """Take a pack apart. Raises: Broken unless `raw` is, to the byte, what this module would write."""
    head, _, rest = raw.partition(b"\n")
    line, _, tail = rest.partition(b"\n")
    line += b"\n"
    if head + b"\n" != _HEAD:
        raise Broken(f"the first line is not that of a pack of version {VERSION}")
    match = _TAIL.fullmatch(tail)
    if match is None:
        raise Broken("the last line is not that of a pack: cut short, or written to")
    signature = bytes.fromhex(match[1].decode()) if match[1] else None
    try:
        plain = json.loads(line)
        statement: Statement = decode(Statement, plain, "")
        same = line_of(statement) == line
    except MisfitError as error:
        raise Broken(f"the statement does not fit: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Broken(f"the statement is not JSON ({error})") from error
    if not same or sealed(line, signature) != raw:
        raise Broken("it is not written as a pack is: other spaces, order, numbers, letters or keys")
    return Opened(line, statement, signature)


def read_pack(path: Path) -> bytes:
    """The bytes of a pack file.

    Raises: DataError for a file that is not there, or nothing like a pack.
    """
    try:
        with reading(path) as file:
            raw = file.readall() if os.fstat(file.fileno()).st_size <= LARGEST else b""
    except OSError as error:
        raise _no_pack(path, f"cannot be read ({error.strerror or error})") from error
    if not raw.startswith(_MARK):
        raise _no_pack(path, "no evidence pack")
    return raw


def as_written(content: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file of a run with this content (see `expunge.run.write_json`)."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")


def _no_pack(path: Path, found: str) -> DataError:
    return DataError(str(path), found, f"accepted: what 'expunge pack' wrote, such as RUN/{FILE}", "Name such a file")


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
