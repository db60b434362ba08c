"""ZsRE and CounterFact as published: edits with an old and a new answer, and what must stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.data.benchmarks.editing import editing_data
from expunge.data.benchmarks.edits import Name
from expunge.data.examples import check_overlap
from expunge.errors import DataError
from expunge.registry import bind

FILES: dict[str, Name] = {
    "zsre_mend_train-1k.json": "zsre", "easyedit_counterfact-val.json": "counterfact",
    "easyedit_counterfact-edit.json.gz": "counterfact", "rome_counterfact_1949.json.gz": "counterfact",
}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "knowledge_editing"


@pytest.mark.parametrize(("file", "edits", "paraphrases"), [
    ("zsre_mend_train-1k.json", 977, 1), ("easyedit_counterfact-val.json", 1912, 1),
    ("easyedit_counterfact-edit.json.gz", 9917, 1), ("rome_counterfact_1949.json.gz", 1948, 2),
])
def test_whole_files(folder: Path, file: str, edits: int, paraphrases: int) -> None:
    """Every edit changes an answer, no prompt is edited twice, nothing unrelated is edited."""
    data = editing_data(folder / file, FILES[file])
    forget, unrelated = data["forget"].examples, data["unrelated"].examples
    assert len(forget) == edits
    assert len({one.prompt for one in forget}) == edits
    assert all(one.alternative and one.alternative.lower() != one.answer.lower() for one in forget)
    assert all(len(one.paraphrases) == paraphrases for one in forget)
    assert not {one.prompt for one in forget} & {one.prompt for one in unrelated}
    assert len({one.prompt for one in unrelated}) == len(unrelated)
    assert data["unrelated"].role == "probe"
    check_overlap(data, pytest.fail)


def test_a_record_of_each(folder: Path) -> None:
    zsre = editing_data(folder / "zsre_mend_train-1k.json", "zsre", limit=3)
    first = zsre["forget"].examples[0]
    assert (first.id, first.prompt, first.answer, first.alternative) == (
        "zsre/0", "What is the product made by UniFirst?", "uniform", "unmanned aircraft",
    )
    assert first.paraphrases == ("What will be the product of UniFirst?",)
    assert zsre["unrelated"].examples[0].answer == "Walter Sobchak"
    flat = editing_data(folder / "easyedit_counterfact-edit.json.gz", "counterfact", limit=1)
    assert flat["forget"].examples[0].prompt == "The mother tongue of Danielle Darrieux is"
    assert (flat["forget"].examples[0].answer, flat["forget"].examples[0].alternative) == ("French", "English")
    assert flat["unrelated"].examples[0].prompt == "Michel Rocard is a native speaker of"
    rome = editing_data(folder / "rome_counterfact_1949.json.gz", "counterfact", limit=1)
    assert rome["forget"].examples[0].prompt == "Angola is located in"
    assert rome["forget"].examples[0].alternative == "Antarctica"
    assert len(rome["unrelated"]) == 10
    assert {one.answer for one in rome["unrelated"].examples} == {"Africa"}
    assert rome["unrelated"].examples[9].id == "counterfact/20952/unrelated/9"


@pytest.mark.parametrize(("name", "file"), [("zsre", "zsre_mend_train-1k.json"),
                                            ("counterfact", "easyedit_counterfact-val.json")])
def test_readers_give_the_same_parts(folder: Path, name: Name, file: str) -> None:
    data = editing_data(folder / file, name, limit=20)
    assert len(data["forget"]) == 20
    for part, stream in (("edits", "forget"), ("unrelated", "unrelated")):
        spec = {"use": name, "path": str(folder / file), "part": part, "limit": 20}
        assert bind("reader", spec, "data.x")() == list(data[stream].examples)


def zsre_row(number: int, **changes: object) -> dict[str, object]:
    return {
        "subject": "s", "src": f"Who is {number}? ", "rephrase": f"Name {number}", "alt": "New", "answers": ["Old"],
        "loc": f"nq question: {number}", "loc_ans": "Loc",
    } | changes


def test_what_is_left_out(tmp_path: Path) -> None:
    """No new answer, the old one again, an edited prompt again; and an unrelated prompt that is edited itself."""
    rows = [
        zsre_row(0), zsre_row(1, alt=" "), zsre_row(2, alt="old"), zsre_row(3, answers=["Old", "NEW"]),
        zsre_row(4, src="Who is 0?", alt="Other"), zsre_row(5, loc="Who is 0?"), zsre_row(6, loc="nq question: 0"),
        zsre_row(7),
    ]
    path = tmp_path / "z.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    data = editing_data(path, "zsre")
    assert [one.id for one in data["forget"].examples] == ["zsre/0", "zsre/5", "zsre/6", "zsre/7"]
    assert [one.id for one in data["unrelated"].examples] == ["zsre/0/unrelated/0", "zsre/7/unrelated/0"]
    assert data["forget"].examples[0].prompt == "Who is 0?"
    assert len(editing_data(path, "zsre", limit=2)["forget"]) == 2


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "z.json"
    with pytest.raises(DataError, match="no such file"):
        editing_data(path, "zsre")
    path.write_text(json.dumps([zsre_row(0), {"prompt": "P"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"record 2: lacks what an edit has \(KeyError: 'answers'\)"):
        editing_data(path, "zsre")
    with pytest.raises(DataError, match="record 1: lacks"):
        editing_data(path, "counterfact")
    with pytest.raises(DataError, match="limit: got 0"):
        editing_data(path, "zsre", limit=0)
    path.write_text(json.dumps([zsre_row(0, alt="")]), encoding="utf-8")
    with pytest.raises(DataError, match="forget: no examples"):
        editing_data(path, "zsre")
