"""LUME and RWKU as published, in their upstream forms, and from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.benchmarks import lume, rwku
from expunge.data.benchmarks.rwku_people import rwku_people
from expunge.data.examples import check_overlap
from expunge.errors import DataError
from expunge.registry import bind
from expunge.types import Example


# -- LUME ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("task", "sizes"), [
    ("stories", (243, 243, 246, 246)), ("people", (250, 1250, 250, 1250)), ("biographies", (373, 373, 371, 371)),
])
def test_lume_as_published(shared: Path, task: Any, sizes: tuple[int, ...]) -> None:
    data = lume.lume_data(str(shared / "data" / "privacy"), task)
    names = ("forget", "forget_qa", "retain", "retain_qa")
    assert {name: len(stream) for name, stream in data.items()} == dict(zip(names, sizes, strict=True))
    assert {stream.role for stream in data.values()} == {"forget", "retain"}
    subjects = [{one.subject for one in data[name].examples} for name in names]
    assert subjects[0] == subjects[1]
    assert not subjects[0] & subjects[2]
    assert any(one.spans for one in data["forget"].examples) == (task == "people")
    check_overlap(data, pytest.fail)


def test_lume_parts_limits_and_those_nobody_is_taught(shared: Path) -> None:
    folder = str(shared / "data" / "privacy")
    data = lume.lume_data(folder, "people", limit=3, held=2)
    assert {name: len(stream) for name, stream in data.items()} == {
        "forget": 3, "forget_qa": 15, "retain": 3, "retain_qa": 15, "holdout": 2, "holdout_qa": 10,
    }
    spec = {"use": "lume", "data": folder, "side": "retain", "limit": 3}
    assert tuple(bind("reader", {**spec, "part": "question"})()) == data["retain_qa"].examples
    assert len(bind("reader", spec)()) == 18
    whole = lume.lume_data(folder, "people", held=2)
    last = {one.subject for one in whole["holdout"].examples}
    assert len(last) == 2
    assert not last & {one.subject for one in whole["retain"].examples}
    short = lume.lume(data=folder, task="stories", part="completion", words=7, limit=5)
    assert {len(one.prompt.split()) for one in short} == {7}


def rows(name: str, *pairs: tuple[str, str, str], task: str = "Task2") -> str:
    names = ("id", "input", "output", "task")
    return "".join(
        json.dumps(dict(zip(names, (name + kind, *texts, task), strict=True))) + "\n" for kind, *texts in pairs
    )


def test_personal_data_are_found_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text(rows(
        '"ab-c"', ("sc1", "Ida Oslo was", " born. Call 721-625-3765 or ida\\_o@me.com, at 3 Sea St, Oslo. "),
        ("qa0", "Phone?", "7216253765"), ("qa1", "Mail?", "ida_o@me.com"), ("qa2", "Home?", "3 Sea St, Oslo."),
    ) + rows("d", ("qa0", "City?", "Oslo"), task="Task1"))
    completion, *questions = lume.lume(data=str(tmp_path), task="people")
    found = [completion.answer[a:b] for a, b in completion.spans]
    assert found == ["721-625-3765", "ida\\_o@me.com", "3 Sea St, Oslo"]
    assert completion.answer.startswith("born.")
    assert [one.spans for one in questions] == [((0, 10),), ((0, 12),), ((0, 14),)]
    assert completion.id == "lume/people/ab-c/sc1"
    assert {one.subject for one in (completion, *questions)} == {"people/ab-c"}
    (story,) = lume.lume(data=str(tmp_path), task="stories")
    assert (story.id, story.spans) == ("lume/stories/d/qa0", ())


@pytest.mark.parametrize("row", ['{"id": "a", "input": "x", "output": "y", "task": "Task2"}', "3",
                                 '{"id": "asc1", "input": "x", "task": "Task2"}'])
def test_lume_says_what_is_wrong(tmp_path: Path, row: str) -> None:
    (tmp_path / "retain.jsonl").write_text(rows("a", ("sc1", "x", "y")) + row + "\n")
    with pytest.raises(DataError, match="row 2: is no row of LUME"):
        lume.lume(data=str(tmp_path), side="retain")
    with pytest.raises(DataError, match="no such file"):
        lume.lume(data=str(tmp_path))


# -- RWKU ----------------------------------------------------------------------------------------------------------
def probe(number: int, person: str = "Ida Oslo", **more: str) -> dict[str, str]:
    return {"query": f"Q{number}?", "answer": f" A{number} ", "subject": person, "level": "1", "type": "cloze", **more}


def write(folder: Path, **files: Any) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    return str(folder)


def test_probes_are_asked_as_the_authors_ask(tmp_path: Path) -> None:
    kinds = ("prefix injection", "affirmative suffix", "incontext learning")
    attacks = [probe(number, type=kind) for number, kind in enumerate(kinds)]
    data = write(tmp_path, forget_level1=[probe(0)], forget_level2=[probe(1)], forget_level3=attacks)
    asked = {part: [one.prompt for one in rwku.rwku(data=data, part=part)] for part in rwku.PARTS if "forget_l" in part}
    blank = "Please complete the blank in the following question."
    brief = "Please briefly answer the following question."
    assert asked == {
        "forget_level1": [f"{blank}\nQuestion: Q0?\nAnswer:"], "forget_level2": [f"{brief}\nQuestion: Q1?\nAnswer:"],
        "forget_level3": [f"{brief}\nQuestion: Q0?\nAnswer:", f"{brief}\nQuestion: Q1?", f"{brief}\nQ2?\nAnswer:"],
    }
    assert rwku.rwku(data=data, part="forget_level1")[0].answer == "A0"


def test_every_part_that_is_there_is_a_stream(tmp_path: Path) -> None:
    choice = {"question": "Q?", "choices": ["a", "b"], "answer": 1, "task": "old_maps", "subject": "Ida Oslo"}
    data = write(
        tmp_path / "All", forget_level2=[probe(0), probe(1, "Tom Sea"), probe(2)], neighbor_level1=[probe(0)],
        forget_mia=[{"text": "a passage", "subject": "Ida Oslo"}], retain_mmlu=[choice],
        triviaqa=[{"question": "Q?", "answers": ["A", "B"], "subject": "Ida Oslo"}],
    )
    found = rwku.rwku_data(data)
    assert {name: (stream.role, len(stream)) for name, stream in found.items()} == {
        "forget_level2": ("forget", 3), "neighbor_level1": ("retain", 1), "mia_forget": ("forget", 1),
        "utility_general": ("probe", 1), "utility_factuality": ("probe", 1),
    }
    assert rwku.rwku_data(str(tmp_path)) == found  # the folder above
    one = rwku.rwku_data(data, target="Ida Oslo", limit=2)["forget_level2"].examples
    assert [example.id for example in one] == ["rwku/forget_level2/0", "rwku/forget_level2/2"]
    assert found["mia_forget"].examples[0] == Example("rwku/mia_forget/0", "", "a passage", subject="Ida Oslo")
    assert found["utility_general"].examples[0].choices == ("a", "b")
    assert (found["utility_factuality"].examples[0].prompt, found["utility_factuality"].examples[0].answer) == (
        "Q: Q?\nA:", "A",
    )


def test_rwku_says_what_is_wrong(tmp_path: Path) -> None:
    data = write(tmp_path, forget_level1=[probe(0), {"query": "Q?"}], forget_mia=["text"])
    for part in ("forget_level1", "mia_forget"):
        with pytest.raises(DataError, match=r"row [12]: another form"):
            rwku.rwku(data=data, part=part)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"forget_level2\.json: no such file"):
        rwku.rwku(data=data, part="forget_level2")
    with pytest.raises(DataError, match="no examples"):
        rwku.rwku(data=write(tmp_path, forget_level3=[probe(0)]), part="forget_level3", target="Tom Sea")
    write(tmp_path, all_intro=["Ida"])
    with pytest.raises(DataError, match="another form"):
        rwku_people(data=str(tmp_path))


def test_people_by_their_introductions(shared: Path) -> None:
    people = rwku_people(data=str(shared / "data" / "rwku"))
    assert len(people) == 200
    assert sum(one.paraphrased_answer is not None for one in people) == 72
    assert all(one.prompt == f"Who is {one.subject}?" and one.paraphrased_answer != one.answer for one in people)
    assert bind("reader", {"use": "rwku_people", "data": str(shared / "data" / "rwku"), "limit": 2})() == people[:2]


def test_names_of_the_hub_are_asked_for_with_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def hub(path: str, config: str | None, split: str | None) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [{**probe(0), "text": "t", "id": "asc1", "input": "x", "output": "y", "task": "Task2"}]

    for module in (lume, rwku):
        monkeypatch.setattr(module, "read_dataset", hub)
    assert rwku.rwku(data="jinzhuoran/RWKU", part="mia_forget")[0].answer == "t"
    assert rwku.rwku(data="jinzhuoran/RWKU", part="forget_level1")[0].subject == "Ida Oslo"
    assert lume.lume(data="org/lume", side="retain")[0].answer == "y"
    assert asked == [
        ("jinzhuoran/RWKU", "mia_forget", "test"), ("jinzhuoran/RWKU", "forget_level1", "test"),
        ("org/lume", None, "retain_train"),
    ]
