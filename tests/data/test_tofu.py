"""TOFU as published: the same ids in every stream, and smaller worlds that keep the story."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data.benchmarks.tofu import refusals, tofu_data
from expunge.data.examples import check_overlap
from expunge.errors import DataError
from expunge.registry import bind


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "tofu"


@pytest.mark.parametrize(("split", "authors"), [("forget01", 2), ("forget05", 10), ("forget10", 20)])
def test_whole_splits_agree_with_the_published_files(folder: Path, split: str, authors: int) -> None:
    data = tofu_data(folder, split)  # type: ignore[arg-type]
    sizes = {name: len(stream) for name, stream in data.items()}
    assert sizes == {
        "forget": 20 * authors, "retain_train": 4000 - 20 * authors, "retain": 400, "real_authors": 100,
        "world_facts": 117, "full": 4000,
    }
    text = {example.id: (example.prompt, example.answer) for example in data["full"].examples}
    for name in ("forget", "retain_train", "retain"):
        assert all(text[example.id] == (example.prompt, example.answer) for example in data[name].examples)
    ids = {name: {example.id for example in stream.examples} for name, stream in data.items()}
    assert ids["forget"] | ids["retain_train"] == ids["full"]
    assert not ids["forget"] & ids["retain_train"]
    assert ids["retain"] < ids["retain_train"]
    for example in data["forget"].examples:
        assert len(example.perturbed) == 5
        assert example.paraphrased_answer
        assert len(example.paraphrases) == 1
    assert all(len(e.perturbed) == 3 and e.paraphrased_answer is None for e in data["world_facts"].examples)
    check_overlap(data, pytest.fail)
    for name, part in ((f"{split}.json", "forget"), (f"retain{100 - authors // 2:02d}.json", "retain_train")):
        published = bind("reader", {"use": "json", "path": str(folder / name), "prompt": "question"}, "data")()
        assert [e.prompt for e in published] == [e.prompt for e in data[part].examples]


@pytest.mark.parametrize(
    ("split", "limit", "forgotten", "retained", "probed"),
    [
        ("forget10", 30, 3, 27, 20), ("forget10", 10, 2, 8, 8), ("forget10", 3, 2, 1, 1),
        ("forget05", 100, 5, 95, 20), ("forget01", 200, 2, 198, 20), ("forget01", 199, 2, 197, 20),
    ],
)
def test_smaller_worlds(folder: Path, split: str, limit: int, forgotten: int, retained: int, probed: int) -> None:
    data = tofu_data(folder, split, limit_authors=limit)  # type: ignore[arg-type]
    authors = {name: {example.subject for example in stream.examples} for name, stream in data.items()}
    assert authors["forget"] == {f"author {i}" for i in range(200 - forgotten, 200)}
    assert authors["retain_train"] == {f"author {i}" for i in range(retained)}
    assert authors["retain"] == {f"author {i}" for i in range(probed)}
    assert len(data["full"]) == 20 * (forgotten + retained)


def test_the_reader_gives_one_part(folder: Path) -> None:
    spec = {"use": "tofu", "data": str(folder), "part": "retain", "limit_authors": 5}
    assert [e.id for e in bind("reader", spec, "data.retain")()] == [f"tofu/{i}" for i in range(60)]


def test_refusals_are_plain_lines(folder: Path) -> None:
    lines = refusals(folder)
    assert len(lines) == 100
    assert all(line and not line.startswith("{") for line in lines)


def test_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"full\.json: no such file"):
        tofu_data(tmp_path)
    with pytest.raises(DataError, match="3 to 200"):
        tofu_data(folder, limit_authors=2)
    (tmp_path / "full.json").write_text('{"question": "Q", "answer": "A"}\n')
    (tmp_path / "forget10_perturbed.json").write_text('{"question": "Q", "answer": "B"}\n')
    with pytest.raises(DataError, match=r"forget10_perturbed\.json, line 1: this row is not in full\.json"):
        tofu_data(tmp_path)


def test_a_hub_name_is_read_configuration_by_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.data.benchmarks import tofu as module
    from expunge.data.readers import read_rows

    asked = set()

    def hub(name: str, config: str, split: str) -> list[dict[str, object]]:
        asked.add((name, split))
        return read_rows(folder / f"{config}.json")

    monkeypatch.setattr(module, "read_dataset", hub)
    found = tofu_data("somebody/TOFU", "forget01")
    module._rows.cache_clear()
    assert asked == {("somebody/TOFU", "train")}
    assert found == tofu_data(folder, "forget01")
