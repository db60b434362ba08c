"""Keys are made once, kept private, and told apart by their fingerprint."""

from __future__ import annotations

import os
import stat
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from expunge.errors import DataError, MissingExtra
from expunge.evidence import keys


def test_a_new_key_is_private_and_never_overwritten(tmp_path):
    old = os.umask(0)
    try:
        fingerprint, public = keys.new_key(tmp_path / "deep" / "key.pem")
    finally:
        os.umask(old)
    private = tmp_path / "deep" / "key.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public == tmp_path / "deep" / "key.pub.pem"
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert not keys.open_to_others(private)
    assert keys.fingerprint(keys.load_key(private).public_key()) == fingerprint == keys.trusted(str(public))
    before = private.read_bytes()
    with pytest.raises(DataError, match=r"key\.pem: is there already"):
        keys.new_key(private)
    private.unlink()
    with pytest.raises(DataError, match=r"key\.pub\.pem: is there already"):
        keys.new_key(private)
    assert not private.exists()
    assert before
    assert keys.new_key(tmp_path / "other.pem")[0] != fingerprint


def test_a_fingerprint_may_be_written_as_others_write_it():
    plain = "0123456789abcdef" * 4
    assert keys.trusted(plain) == plain
    assert keys.trusted("SHA256:" + plain.upper()) == plain
    assert keys.trusted(":".join(plain[i : i + 2] for i in range(0, 64, 2))) == plain


@pytest.mark.parametrize("text", ["", "01234567", "0" * 63, "0" * 65, "g" * 64, "nowhere.pem"])
def test_what_is_no_fingerprint_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="--trust"):
        keys.trusted(text)


def test_a_private_key_is_not_what_is_trusted(tmp_path):
    keys.new_key(tmp_path / "key.pem")
    with pytest.raises(DataError, match="not the private key"):
        keys.trusted(str(tmp_path / "key.pem"))


def test_keys_that_cannot_be_used_are_told(tmp_path):
    made = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (tmp_path / "other.pem").write_bytes(made.private_bytes(*form, plain))
    (tmp_path / "locked.pem").write_bytes(made.private_bytes(*form, serialization.BestAvailableEncryption(b"x")))
    (tmp_path / "none.pem").write_bytes(b"\xff")
    for name, message in (
        ("other.pem", "another kind"), ("locked.pem", "password"), ("none.pem", "holds no private key"),
        ("missing.pem", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            keys.load_key(tmp_path / name)
    public = made.public_key().public_bytes(form[0], serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pub.pem").write_bytes(public)
    with pytest.raises(DataError, match="holds no Ed25519 public key"):
        keys.trusted(str(tmp_path / "other.pub.pem"))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingExtra, match=r"expunge\[sign\]"):
        keys.new_key(tmp_path / "key.pem")
    assert list(tmp_path.iterdir()) == []
