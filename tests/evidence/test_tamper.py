"""Thousands of random changes of a pack, or of the model it certifies: none verifies."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.evidence.check import check
from support.packs import fingerprint, model_folder, pack

Rng = random.Random
MANY = pytest.param(1, 10_000, marks=pytest.mark.slow)


def cut(rng: Rng, size: int) -> tuple[int, int]:
    """A random range, mostly a short one."""
    start = rng.randrange(size + 1)
    return start, min(size, start + rng.choice((0, 1, 1, 1, 2, 5, 40, size)))


# -- bytes -----------------------------------------------------------------------------------------------------
def flip_bit(raw: bytes, rng: Rng) -> bytes:
    made = bytearray(raw)
    if made:
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def set_byte(raw: bytes, rng: Rng) -> bytes:
    made = bytearray(raw)
    if made:
        made[rng.randrange(len(made))] = rng.choice(b' \t\n\r\x000aA"{},:\\=' + bytes([rng.randrange(256)]))
    return bytes(made)


def insert(raw: bytes, rng: Rng) -> bytes:
    at = rng.choice((0, len(raw), rng.randrange(len(raw) + 1)))
    return raw[:at] + rng.choice((b" ", b"\n", b"\0", b"\xef\xbb\xbf", rng.randbytes(3))) + raw[at:]


def delete(raw: bytes, rng: Rng) -> bytes:
    start, end = cut(rng, len(raw))
    return raw[:start] + raw[end:]


def truncate(raw: bytes, rng: Rng) -> bytes:
    return raw[: rng.choice((0, len(raw) - 1, rng.randrange(len(raw) + 1)))]


def repeat(raw: bytes, rng: Rng) -> bytes:
    start, end = cut(rng, len(raw))
    return raw[:end] + raw[start:end] + raw[end:]


def swap(raw: bytes, rng: Rng) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(raw) + 1) for _ in range(4))
    return raw[:a] + raw[c:d] + raw[b:c] + raw[a:b] + raw[d:]


def change_case(raw: bytes, rng: Rng) -> bytes:
    start, end = cut(rng, len(raw))
    return raw[:start] + raw[start:end].swapcase() + raw[end:]


BYTES = (flip_bit, set_byte, insert, delete, truncate, repeat, swap, change_case)


# -- JSON: the same content in other words, or nearly the same content ----------------------------------------
def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with a key or index into it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def frame(plain: dict[str, Any]) -> bytes:
    """A pack's three lines with this content, whoever signed it."""
    statement = json.dumps(plain["statement"], separators=(",", ":"))
    signature = json.dumps(plain["signature"])
    return f'{{"expunge_evidence":1,"statement":\n{statement}\n,"signature":{signature}}}\n'.encode()


def other_spaces(raw: bytes, rng: Rng) -> bytes:
    how = rng.choice(({"indent": 1}, {}, {"sort_keys": True}, {"separators": (",", ":")}, {"ensure_ascii": False}))
    return json.dumps(json.loads(raw), **how).encode() + rng.choice((b"", b"\n"))


def other_order(raw: bytes, rng: Rng) -> bytes:
    plain = json.loads(raw)
    boxes = [box[key] for box, key in places(plain["statement"]) if isinstance(box[key], dict) and len(box[key]) > 1]
    box = rng.choice([plain["statement"], *boxes])
    items = rng.sample(list(box.items()), len(box))
    box.clear()
    box.update(items)
    return frame(plain)


def other_value(raw: bytes, rng: Rng) -> bytes:
    plain = json.loads(raw)
    box, key = rng.choice(list(places(plain["statement"])))
    old = box[key]
    box[key] = rng.choice((None, 0, 1, 1.5, "", "x", [], {}, True, old + old if isinstance(old, str | list) else [old]))
    return frame(plain)


def other_key(raw: bytes, rng: Rng) -> bytes:
    plain = json.loads(raw)
    box, key = rng.choice([one for one in places(plain["statement"]) if isinstance(one[0], dict)])
    if rng.random() < 0.5:
        del box[key]
    else:
        box[key + "_"] = box[key]
    return frame(plain)


def other_number(raw: bytes, rng: Rng) -> bytes:
    """0.25 as 0.250, 25e-2, ...; 12 as 12.0."""
    found = [i for i, byte in enumerate(raw[:-1]) if chr(byte).isdigit() and raw[i + 1] in b",}"]
    at = rng.choice(found) + 1
    return raw[:at] + rng.choice((b".0", b"e0", b"0", b"E+0", b".")) + raw[at:]


def other_letter(raw: bytes, rng: Rng) -> bytes:
    r"""é as \u00E9, as itself, as e with an accent; a as \u0061; / as \/."""
    if rng.random() < 0.5:
        return raw.replace(rb"\u00e9", rng.choice(("é", "e\u0301", r"\u00E9", r"e\u0301")).encode())
    at = rng.choice([i for i, byte in enumerate(raw) if chr(byte).isalpha()])
    return raw[:at] + rf"\u{raw[at]:04x}".encode() + raw[at + 1 :]


def repeated_key(raw: bytes, rng: Rng) -> bytes:
    at = rng.choice([i for i, byte in enumerate(raw[:-2]) if raw[i : i + 1] in b"{,"]) + 1
    return raw[:at] + rng.choice((b'"number":1,', b'"signer":null,', b'"verdict":"PASS",')) + raw[at:]


TEXTS = (other_spaces, other_order, other_value, other_key, other_number, other_letter, repeated_key)


# -- the model ---------------------------------------------------------------------------------------------------
def change_content(folder: Path, rng: Rng) -> None:
    file = rng.choice(files(folder))
    file.write_bytes(rng.choice(BYTES)(file.read_bytes(), rng))


def swap_files(folder: Path, rng: Rng) -> None:
    one, other = rng.sample(files(folder), 2)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def rename(folder: Path, rng: Rng) -> None:
    file = rng.choice(files(folder))
    file.rename(file.with_name(rng.choice((file.name.upper(), file.name + " ", "." + file.name, "e\u0301"))))


def move(folder: Path, rng: Rng) -> None:
    (folder / "code").mkdir(exist_ok=True)
    file = rng.choice(files(folder))
    file.rename((folder / "code" if file.parent == folder else folder) / file.name)


def remove(folder: Path, rng: Rng) -> None:
    rng.choice(files(folder)).unlink()


def add(folder: Path, rng: Rng) -> None:
    name = rng.choice(("extra.bin", ".hidden", "code/more.py", "new/deep/file", "config.json "))
    model_folder(folder, {name: rng.choice((b"", b"x"))})


def replace_by_folder(folder: Path, rng: Rng) -> None:
    file = rng.choice(files(folder))
    file.unlink()
    rng.choice((file.mkdir, lambda: file.symlink_to(folder), lambda: file.symlink_to("nowhere")))()


MODEL = (change_content, swap_files, rename, move, remove, add, replace_by_folder)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*") if path.is_file() or path.is_symlink()
    }


# -- the tests ---------------------------------------------------------------------------------------------------
def different(change: Callable[[Rng], Any], same: Any, rng: Rng) -> Any:
    """What a change makes, tried again where it changed nothing."""
    for _ in range(100):
        made = change(rng)
        if made != same:
            return made
    raise AssertionError("this change never changes anything")


@pytest.mark.parametrize(("seed", "num"), [(0, 1000), MANY])
def test_no_changed_pack_verifies(seed: int, num: int, tmp_path: Path) -> None:
    rng, mine = random.Random(seed), {fingerprint()}
    model = model_folder(tmp_path / "model")
    raw = pack(model, before=pack(model))
    kinds: Counter[str] = Counter()
    for turn in range(num):
        mutate = (*BYTES, *TEXTS)[turn % (len(BYTES) + len(TEXTS))]
        made = different(lambda rng, mutate=mutate: mutate(raw, rng), raw, rng)
        found = check(made, trust=mine)
        assert not found.holds, f"{mutate.__name__}: {made!r}"
        assert not found.intact
        kinds[mutate.__name__] += 1
    assert min(kinds.values()) >= num // (len(BYTES) + len(TEXTS))
    assert check(raw, trust=mine, model=model).holds


@pytest.mark.parametrize(("seed", "num"), [(0, 150), MANY])
def test_no_changed_model_verifies(seed: int, num: int, tmp_path: Path) -> None:
    rng, mine = random.Random(seed), {fingerprint()}
    model = model_folder(tmp_path / "model")
    raw, before = pack(model), content(model)

    def change(rng: Rng, mutate: Callable[[Path, Rng], None]) -> dict[str, bytes | None]:
        mutate(model, rng)
        return content(model)

    for turn in range(num):
        mutate = MODEL[turn % len(MODEL)] if turn % 2 else change_content
        different(lambda rng, mutate=mutate: change(rng, mutate), before, rng)
        found = check(raw, trust=mine, model=model)
        assert not found.holds, mutate.__name__
        assert found.intact
        if mutate is change_content and set(content(model)) == set(before):  # put back what differs: fast
            for name, old in before.items():
                if (model / name).read_bytes() != old:
                    (model / name).write_bytes(old or b"")
        else:
            shutil.rmtree(model)
            model_folder(model)
    assert check(raw, trust=mine, model=model).holds
