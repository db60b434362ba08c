"""Every file of a folder counts, whatever it is called and wherever it lies; nothing is held in memory whole."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from expunge.errors import ModelError
from expunge.evidence import files
from expunge.evidence.files import base_of, certified, file_of, hashes_of, read_folder, shown, stamps
from support.packs import FILES, model_folder


def test_every_file_is_listed_by_its_path_with_the_hash_others_compute(tmp_path):
    found = certified(model_folder(tmp_path))
    assert {name: (one.sha256, one.size) for name, one in found.items()} == {
        name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in FILES.items()
    }


def test_names_that_are_odd_or_hidden_count(tmp_path):
    odd = (".hidden", "two\nlines", "a b", "caf\u00e9", "cafe\u0301", "deep/er/still", os.fsdecode(b"\xff"), "..x")
    assert set(certified(model_folder(tmp_path, dict.fromkeys(odd, b"x")))) == set(odd)


def test_a_file_is_read_in_pieces(tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(48 << 20)
    tracemalloc.start()
    read_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert files._PIECE < 48 << 20


def test_links_to_files_are_their_files_and_links_to_folders_are_refused(tmp_path):
    folder = model_folder(tmp_path / "model")
    (tmp_path / "blob").write_bytes(b"weights")
    (folder / "linked").symlink_to(tmp_path / "blob")
    assert certified(folder)["linked"] == file_of(b"weights")
    (folder / "up").symlink_to(tmp_path)
    assert read_folder(folder).problems == {"up": "a link to a folder"}
    with pytest.raises(ModelError, match="up: a link to a folder"):
        certified(folder)
    (folder / "up").unlink()
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "round").symlink_to(folder / "round")
    assert set(read_folder(folder).problems) == {"nowhere", "round"}


def test_what_is_no_file_is_a_problem_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    found = read_folder(tmp_path)
    assert found.files == {}
    assert found.problems == {"pipe": "not a file", "zero": "not a file"}


def test_a_file_that_is_written_to_while_it_is_read_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "growing").write_bytes(b"a" * 10)
    real = files.hashlib.sha256

    def writing(*args):
        with (tmp_path / "growing").open("ab") as file:
            file.write(b"b")
        return real(*args)

    monkeypatch.setattr(files.hashlib, "sha256", writing)
    assert read_folder(tmp_path).problems == {"growing": "written to while it was read"}


def test_an_empty_folder_is_nothing_to_certify(tmp_path):
    with pytest.raises(ModelError, match="holds no file"):
        certified(tmp_path)


def test_hashes_leave_the_texts_for_people_at_the_top_out_and_follow_links(tmp_path):
    folder = model_folder(tmp_path / "model", {
        "z.json": b"z", "README.md": b"card", "deep/note.md": b"n", "a.md.json": b"a", "deep/er/b": b"b",
    })
    (tmp_path / "blob").write_bytes(b"weights")
    (folder / "linked").symlink_to(tmp_path / "blob")
    (folder / "up").symlink_to(tmp_path)
    found = hashes_of(folder)
    assert list(found) == ["a.md.json", "deep/er/b", "deep/note.md", "linked", "z.json"]
    assert found["linked"] == hashlib.sha256(b"weights").hexdigest()
    assert hashes_of(tmp_path / "none") == {}


def test_stamps_differ_when_a_file_was_written(tmp_path):
    before = stamps(model_folder(tmp_path))
    assert stamps(tmp_path) == before
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert stamps(tmp_path) != before


def test_the_base_of_an_adapter_is_where_it_says_or_beside_it(tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    model_folder(adapter)
    assert base_of(adapter) is None
    for name, found in (("owner/name", "owner/name"), ("../base", str(adapter / "../base")), ("", "")):
        (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{name}"}}')
        model_folder(tmp_path / "base")
        assert base_of(adapter) == found
    (adapter / "adapter_config.json").write_text("not JSON")
    assert base_of(adapter) == ""


def test_texts_from_elsewhere_cannot_steer_a_terminal():
    assert shown("a\x1b[2J\r\n\u202e\udcffé") == r"a\x1b[2J\r\n\u202e\udcffé"


def test_progress_ends_at_its_total(tmp_path: Path):
    told: list[tuple[int, int]] = []
    read_folder(model_folder(tmp_path), lambda what, done, total, note: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
