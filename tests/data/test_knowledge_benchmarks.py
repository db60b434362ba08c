"""MUSE, WMDP, MMLU and LAMBADA as published, in their upstream forms, and from the hub. Rows are never shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.benchmarks import lambada, mmlu, muse, wmdp
from expunge.data.examples import check_overlap
from expunge.errors import DataError
from expunge.registry import bind
from expunge.types import Example


# -- MMLU ----------------------------------------------------------------------------------------------------------
def test_mmlu_as_published(shared: Path) -> None:
    folder = str(shared / "data" / "mmlu")
    found = mmlu.mmlu(data=folder)
    assert len(found) == 2141
    assert len({one.subject for one in found}) == 12
    assert all(len(one.choices) == 4 and one.answer in one.choices and one.answer not in one.perturbed for one in found)
    assert len(mmlu.mmlu(data=folder, split="dev")) == 60
    few = bind("reader", {"use": "mmlu", "data": folder, "subjects": ["virology"], "limit_per_subject": 3})()
    assert [one.id for one in few] == [f"mmlu/virology/{i}" for i in range(3)]
    assert {one.subject for one in bind("reader", {"use": "mmlu", "data": folder, "limit_per_subject": 1})()} == {
        one.subject for one in found
    }
    with pytest.raises(DataError, match="did you mean 'virology'"):
        mmlu.mmlu(data=folder, subjects=["virologie"])


def _upstream(folder: Path, line: str) -> str:
    """A file of the original form: no heading, the answer by its letter."""
    (folder / "test").mkdir()
    (folder / "test" / "old_maps_test.csv").write_text(line)
    return str(folder)


def test_mmlu_in_its_first_form(tmp_path: Path) -> None:
    (one,) = mmlu.mmlu(data=_upstream(tmp_path, '"Which, of these?",a,b,c,d,C\n'))
    assert one == Example(
        "mmlu/old_maps/0", "Which, of these?", "c", subject="old maps", choices=("a", "b", "c", "d"),
        perturbed=("a", "b", "d"),
    )


@pytest.mark.parametrize(("line", "found"), [("q,a,b,C\n", "4 cells"), ("q,a,b,c,d,E\n", "no question"), ("", "empty")])
def test_mmlu_says_what_is_wrong(tmp_path: Path, line: str, found: str) -> None:
    with pytest.raises(DataError, match=found):
        mmlu.mmlu(data=_upstream(tmp_path, line))


# -- WMDP ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("domain", "size", "topic"), [
    ("bio", 1273, "biology"), ("chem", 408, "chemistry"), ("cyber", 1987, "cybersecurity"),
])
def test_wmdp_as_published(shared: Path, domain: Any, size: int, topic: str) -> None:
    found = wmdp.wmdp(data=str(shared / "data" / "wmdp"), domain=domain)
    kept = sum(len(one.choices) == 4 and one.answer in one.choices and one.subject == topic for one in found)
    assert (len(found), kept) == (size, size)


def test_wmdp_streams(shared: Path) -> None:
    """Forget and retain are as many, the retained ones in turn of every topic; no question is long."""
    data = wmdp.wmdp_data(str(shared / "data" / "wmdp"), "bio", limit=24, words=60)
    sizes = {name: (stream.role, len(stream)) for name, stream in data.items()}
    assert sizes == {"forget": ("forget", 24), "retain": ("retain", 24), "dev": ("anchor", 60)}
    assert len({one.subject for one in data["retain"].examples}) == 11  # all questions about history are long
    both = [*data["forget"].examples, *data["retain"].examples]
    assert max(len(" ".join((one.prompt, *one.choices)).split()) for one in both) <= 60
    check_overlap(data, pytest.fail)


def test_wmdp_needs_something_to_retain(tmp_path: Path) -> None:
    (tmp_path / "bio_questions.json").write_text('[{"question": "q", "choices": ["a", "b"], "answer": 0}]')
    with pytest.raises(DataError, match="mmlu_data: missing"):
        wmdp.wmdp_data(str(tmp_path))


# -- MUSE ----------------------------------------------------------------------------------------------------------
def test_muse_as_published(shared: Path) -> None:
    data = muse.muse_data(str(shared / "data" / "muse" / "news"))
    assert {name: (stream.role, len(stream)) for name, stream in data.items()} == {
        "forget": ("forget", 200), "retain": ("retain", 100), "privleak": ("forget", 100), "holdout": ("holdout", 100),
        "verbmem": ("forget", 100), "knowmem_forget": ("forget", 100), "knowmem_retain": ("retain", 100),
    }
    assert all(not one.prompt for name in ("forget", "retain", "holdout") for one in data[name].examples)
    assert all(one.prompt and one.answer for one in data["verbmem"].examples)
    check_overlap(data, pytest.fail)


def test_muse_questions_follow_answered_ones(shared: Path) -> None:
    """Ten answered questions in the form of the paper, one blank line between; the asked one comes last."""
    folder = shared / "data" / "muse" / "books"
    spec = {"use": "muse", "data": str(folder), "part": "knowmem_retain"}
    (one,) = bind("reader", {**spec, "limit": 1})()
    before = json.loads((folder / "knowmem" / "retain2_qa_icl.json").read_text())
    asked = json.loads((folder / "knowmem" / "retain2_qa.json").read_text())[0]
    parts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in before]
    assert one.prompt == "\n\n".join([*parts, f"Question: {asked['question']}\nAnswer:"])
    assert one.answer == asked["answer"]
    (bare,) = bind("reader", {**spec, "limit": 1, "shots": 0})()
    assert bare.prompt == f"Question: {asked['question']}\nAnswer:"
    with pytest.raises(DataError, match=r"forget\.json: no such file"):
        muse.muse_data(str(folder))


def test_muse_passages_and_endings(shared: Path) -> None:
    folder = str(shared / "data" / "muse" / "news")
    passages = muse.muse(data=folder, part="holdout", words=50, limit=30)
    assert {len(one.answer.split()) for one in passages} == {50}
    assert passages[0].id == "muse/privleak/holdout/0/0"
    whole, short = (muse.muse(data=folder, part="verbmem", words=words, limit=3) for words in (None, 20))
    assert all(b.prompt.split() == a.prompt.split()[-20:] for a, b in zip(whole, short, strict=True))
    assert [one.answer for one in whole] == [one.answer for one in short]


# -- LAMBADA -------------------------------------------------------------------------------------------------------
def test_lambada_as_published(shared: Path) -> None:
    """The words are those of KUL's reader, which puts them apart."""
    folder = str(shared / "data" / "kul")
    found = lambada.lambada(data=folder)
    apart = bind("reader", {"use": "kul_text", "data": folder, "part": "lambada"})()
    assert len(found) == 4992
    assert sum(a.answer[slice(*a.spans[0])] == b.answer for a, b in zip(found, apart, strict=True)) == 4992


def test_lambada_files(tmp_path: Path) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_text('{"text": "the sea in winter.\\n"}\n{"text": "no  one"}\n')
    first, second = lambada.lambada(data=str(file))
    assert [one.answer[slice(*one.spans[0])] for one in (first, second)] == ["winter.", "one"]
    assert first.answer == "the sea in winter."
    with pytest.raises(DataError, match="a row without 'passage'"):
        lambada.lambada(data=str(file), column="passage")
    file.write_text('{"text": "alone"}\n')
    with pytest.raises(DataError, match="fewer than two words"):
        lambada.lambada(data=str(file))


# -- the hub -------------------------------------------------------------------------------------------------------
def test_names_of_the_hub_are_asked_for_with_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []
    question = {"question": "q?", "choices": ["a", "b"], "answer": 1, "text": "some text", "prompt": "p", "gt": "g"}

    def hub(path: str, config: str | None, split: str | None) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [question]

    for module in (mmlu, wmdp, muse, lambada):
        monkeypatch.setattr(module, "read_dataset", hub)
    assert mmlu.mmlu(data="cais/mmlu", subjects=["virology"], split="val")[0].answer == "b"
    assert wmdp.wmdp(data="cais/wmdp", domain="cyber")[0].answer == "b"
    assert lambada.lambada(data="EleutherAI/lambada_openai")[0].spans == ((5, 9),)
    assert muse.muse(data="muse-bench/MUSE-News", part="retain")[0].answer == "some text"
    assert muse.muse(data="muse-bench/MUSE-News", part="knowmem_retain")[0].answer == "1"
    assert asked == [
        ("cais/mmlu", "virology", "validation"), ("cais/wmdp", "wmdp-cyber", "test"),
        ("EleutherAI/lambada_openai", None, "test"), ("muse-bench/MUSE-News", "raw", "retain2"),
        ("muse-bench/MUSE-News", "knowmem", "retain_qa"), ("muse-bench/MUSE-News", "knowmem", "retain_qa_icl"),
    ]
    with pytest.raises(DataError, match="needed for a data set of the hub"):
        mmlu.mmlu(data="cais/mmlu")
