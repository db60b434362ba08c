"""A pack can be written in one way only, even by its signer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.errors import DataError
from expunge.evidence.check import check
from expunge.evidence.form import LARGEST, Broken, line_of, opened, read_pack, sealed
from support.packs import evidence, fingerprint, key, model_folder, pack, statement


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    return pack(model_folder(tmp_path / "model"))


def line(raw: bytes) -> bytes:
    return raw.split(b"\n")[1] + b"\n"


def test_a_pack_is_one_json_object_on_three_lines_and_the_second_is_signed(raw, tmp_path):
    plain = json.loads(raw)
    assert set(plain) == {"expunge_evidence", "statement", "signature"}
    assert plain["expunge_evidence"] == 1
    assert raw.count(b"\n") == 3
    assert raw.isascii()
    key().public_key().verify(bytes.fromhex(plain["signature"]), line(raw))
    assert plain["statement"]["scores"] == json.loads(evidence().to_json())
    assert json.loads(line(raw)) == plain["statement"]


def test_what_is_opened_is_written_again_to_the_byte(raw):
    found = opened(raw)
    assert line_of(found.statement) == found.line == line(raw)
    assert sealed(found.line, found.signature) == raw


def rewritten(change):
    """The signer himself writes the statement in another way, and signs that."""

    def make(raw: bytes) -> bytes:
        other = change(line(raw))
        assert other != line(raw)
        return sealed(other, key().sign(other))

    return make


def dumped(**how):
    return lambda line: json.dumps(json.loads(line), **how).encode() + b"\n"


def with_key(line: bytes) -> bytes:
    return json.dumps({**json.loads(line), "more": 1}, separators=(",", ":")).encode() + b"\n"


COMPACT = {"separators": (",", ":")}


@pytest.mark.parametrize("change", [
    dumped(), dumped(**COMPACT, sort_keys=True), dumped(**COMPACT, ensure_ascii=False), with_key,
    lambda line: line.replace(b'"number":1,', b'"number":1.0,'),
    lambda line: line.replace(b'"number":1,', b'"number":1e0,'),
    lambda line: line.replace(b"1e-05", b"0.00001"), lambda line: line.replace(b"0.25", b"0.250"),
    lambda line: line.replace(b"0.25", b"NaN"), lambda line: line.replace(b"0.25", b"1e999"),
    lambda line: line.replace(b'"number":1,', b'"number":' + b"1" * 5000 + b","),
    lambda line: line.replace(b'"number":1,', b'"number":1,"number":1,'),
    lambda line: line.replace(b'"number":1,', b'"number":2,"number":1,'),
    lambda line: line.replace(b'"number":1,', b'"number":true,'), lambda line: line.replace(b'"number":1,', b""),
    lambda line: line.replace(rb"\u00e9", rb"\u00E9"), lambda line: line.replace(rb"\u00e9", "é".encode()),
    lambda line: line.replace(b'"small"', rb'"\u0073mall"'), lambda line: line.replace(b"/", rb"\/"),
    lambda line: b"\xef\xbb\xbf" + line, lambda line: line.replace(b"\n", b"\r\n"), lambda line: line[:-1] + b" \n",
    lambda line: line.replace(b'"base":null,', b'"base":[],'), lambda line: b"[" * 100_000 + b"\n",
    lambda line: line.replace(b'"environment":{', b'"environment":{"a":' + b"[" * 99_999), lambda line: b"{}\n",
    lambda line: b"null\n", lambda line: b"\xff\n",
])
def test_another_way_to_write_it_is_refused_even_when_signed(raw, change):
    made = rewritten(change)(raw)
    with pytest.raises(Broken):
        opened(made)
    assert not check(made, trust={fingerprint()}).holds


@pytest.mark.parametrize("change", [
    lambda raw: raw + b"\n", lambda raw: raw[:-1], lambda raw: b" " + raw, lambda raw: raw + b"x",
    lambda raw: raw.replace(b"\n", b"\r\n"), lambda raw: raw.replace(b"\n", b""),
    lambda raw: raw[:-140] + raw[-140:].upper(),
    lambda raw: raw.replace(b'"expunge_evidence":1', b'"expunge_evidence":2'),
    lambda raw: raw.replace(b',"signature":', b', "signature":'), lambda raw: raw[:-3] + b'"}\n}\n',
    lambda raw: raw[:-2] + b',"a":1}\n',
])
def test_the_frame_has_one_form_too(raw, change):
    made = change(raw)
    assert made != raw
    assert not check(made, trust={fingerprint()}).holds


def test_a_later_version_is_told(raw):
    found = check(raw.replace(b'{"expunge_evidence":1', b'{"expunge_evidence":2', 1), trust=None)
    assert "version 1" in str(found.findings[0])


@pytest.mark.parametrize("change", [
    lambda pem: pem[: pem.index("=") - 1] + chr(ord(pem[pem.index("=") - 1]) + 1) + pem[pem.index("=") :],
    lambda pem: "words before\n" + pem, lambda pem: pem + "\n", lambda pem: pem[:-1],
    lambda pem: pem.replace("\n", "\r\n"), lambda pem: pem[:40] + "\n" + pem[40:], lambda pem: pem + pem,
    lambda pem: pem.replace("PUBLIC", "PRIVATE"), lambda pem: "", lambda pem: "\u00e9" + pem,
])
def test_a_key_in_another_form_is_refused_even_when_signed(tmp_path, change):
    made = statement(model_folder(tmp_path / "model"))
    pem = made.signer.public_key
    other = change(pem)
    assert other != pem
    text = line_of(made).replace(json.dumps(pem)[1:-1].encode(), json.dumps(other)[1:-1].encode())
    assert text != line_of(made)
    found = check(sealed(text, key().sign(text)), trust={fingerprint()})
    assert [one.where for one in found.findings] == ["signer"]


def test_what_is_no_pack_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "large.json").touch()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    for name in ("other.json", "large.json", "missing.json", "."):
        with pytest.raises(DataError, match="expunge pack"):
            read_pack(tmp_path / name)
