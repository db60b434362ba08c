"""Readers take what people really have, and say clearly what is wrong with the rest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data import examples as checks
from expunge.data.variants import variants
from expunge.errors import DataError, RecipeError
from expunge.registry import bind, entries, parameters, spec_of
from expunge.types import Data, Example, Stream

ROWS = [
    {"id": "a", "prompt": "Who wrote it?", "answer": "Mara Lindqvist.", "spans": [[0, 4]], "perturbed": ["A", "B"]},
    {"id": "b", "prompt": "When?", "answer": "In 1961, in 1961.", "spans": ["1961"], "paraphrases": "What year?"},
    {"prompt": "", "answer": "Plain text: naïve — 雪"},
]
MADE = [
    Example("a", "Who wrote it?", "Mara Lindqvist.", spans=((0, 4),), perturbed=("A", "B")),
    Example("b", "When?", "In 1961, in 1961.", spans=((3, 7), (12, 16)), paraphrases=("What year?",)),
    Example("people/3", "", "Plain text: naïve — 雪"),
]


def read(use: str, **given: Any) -> list[Example]:
    return list(bind("reader", {"use": use, **given}, "data.forget")())


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def failure(use: str, **given: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(use, **given)
    assert all((caught.value.where, caught.value.found, caught.value.accepted, caught.value.do))
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines(folder: Path, start: str, end: str) -> None:
    assert read("jsonl", path=write(folder / "people.jsonl", start + lines(ROWS).replace("\n", end))) == MADE


def test_json_array_and_json_lines_in_a_json_file(folder: Path) -> None:
    assert read("json", path=write(folder / "people.json", json.dumps(ROWS, indent=1))) == MADE
    assert read("json", path=write(folder / "people.json", lines(ROWS))) == MADE
    assert read("json", path=write(folder / "people.json", lines(ROWS[:1]))) == MADE[:1]


def test_gzip_is_seen_by_its_content(folder: Path) -> None:
    assert read("jsonl", path=write(folder / "people.jsonl.gz", gzip.compress(lines(ROWS).encode()))) == MADE
    assert read("jsonl", path=write(folder / "people.jsonl", gzip.compress(lines(ROWS).encode()))) == MADE


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_csv(folder: Path, newline: str) -> None:
    table = 'prompt,answer,perturbed\nWho?,"Mara, of Oslo","[""Ann"", ""Bo""]"\nWhen?,1961,\n'.replace("\n", newline)
    assert read("csv", path=write(folder / "people.csv", "\ufeff" + table)) == [
        Example("people/1", "Who?", "Mara, of Oslo", perturbed=("Ann", "Bo")),
        Example("people/2", "When?", "1961"),
    ]
    assert read("csv", path=write(folder / "t.tsv", "prompt\tanswer\na\tb,c\n"), delimiter="\t")[0].answer == "b,c"


def test_parquet_and_hugging_face_folders(folder: Path) -> None:
    import datasets

    rows = [
        {"id": "a", "q": "Who?", "a": "Mara.", "perturbed": ["Ann."]},
        {"id": "b", "q": "When?", "a": "1961.", "perturbed": []},
    ]
    wanted = [Example("a", "Who?", "Mara.", perturbed=("Ann.",)), Example("b", "When?", "1961.")]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(folder / "people.parquet"))
    table.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(str(folder / "splits"))
    named = {"prompt": "q", "answer": "a"}
    assert read("parquet", path=str(folder / "people.parquet"), **named) == wanted
    assert read("hf", path=str(folder / "saved"), **named) == wanted
    assert read("hf", path=str(folder / "splits"), split="test", **named) == wanted[1:]
    assert "accepted: train, test" in failure("hf", path=str(folder / "splits"), **named)
    assert "did you mean 'test'?" in failure("hf", path=str(folder / "splits"), split="tset", **named)
    assert "could not be had" in failure("hf", path="nobody/nothing")
    assert "is not Parquet" in failure("parquet", path=write(folder / "x.parquet", b"PAR1 and more"))


def test_text_is_cut_into_passages(folder: Path) -> None:
    path = write(folder / "book.txt", "one two\n\nthree   four five\n")
    assert [(e.id, e.prompt, e.answer) for e in read("text", path=path, words=2)] == [
        ("book/1", "", "one two"), ("book/2", "", "three   four"), ("book/3", "", "five"),
    ]
    assert len(read("text", path=path, words=2, limit=1)) == 1


def test_inline_rows_and_columns_of_other_names() -> None:
    rows = [{"question": "Who?", "response": "Mara.", "author": "Lindqvist", "choices": ["x"], "key": 7}]
    fields = {"subject": "author", "choices": ""}
    got = read("inline", rows=rows, prompt="question", answer="response", id="key", fields=fields)
    assert got == [Example("7", "Who?", "Mara.", subject="Lindqvist")]
    assert read("inline", rows=[{"text": "abc"}], prompt="", answer="text") == [Example("inline/1", "", "abc")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["the file is empty"]),
        (" \n\n", ["the file is empty"]),
        (lines(ROWS) + '{"prompt": "x", "ans', ["line 4", "is not JSON"]),
        (lines([*ROWS, {"question": "x", "answer": "y"}]), ["line 4", "no field 'prompt'", "did you mean 'question'?"]),
        (lines([{"prompt": "x", "response": "y"}]), ["line 1", "did you mean 'response'?"]),
        (lines([{"prompt": "x", "answr": "y"}]), ["did you mean 'answr'?"]),
        (lines([{"prompt": "x", "answer": None}]), ["field 'answer' is null"]),
        (lines([{"prompt": 3, "answer": "y"}]), ["field 'prompt'", "int instead of text"]),
        (lines([{"prompt": "x", "answer": "y", "perturbed": {"a": 1}}]), ["perturbed", "dict instead of a list"]),
        (lines([{"prompt": "x", "answer": "y", "spans": [[0, 9]]}]), ["span [0, 9]", "1 characters"]),
        (lines([{"prompt": "x", "answer": "y", "spans": ["z"]}]), ["spans'[0]", "no place in the answer"]),
        (lines([{"prompt": "x", "answer": "  "}]), ["'x/1' (position 1) has an empty answer"]),
        (lines([ROWS[0], ROWS[1], ROWS[0]]), ["id 'a' stands twice, at positions 1 and 3"]),
        (lines([{"id": [1], "prompt": "x", "answer": "y"}]), ["an id is text or a whole number"]),
        ('["a"]\n', ["list instead of an object"]),
        ("caf\xe9".encode("latin-1"), ["byte 3 is not UTF-8"]),
        (gzip.compress(b"{}" * 100, mtime=0)[:-9], ["broken gzip"]),
    ],
)
def test_what_is_wrong_is_said(folder: Path, content: str | bytes, words: list[str]) -> None:
    message = failure("jsonl", path=write(folder / "x.jsonl", content))
    for word in words:
        assert word in message


def test_what_is_wrong_with_a_file_is_said(folder: Path) -> None:
    write(folder / "forget.jsonl", lines(ROWS))
    assert "did you mean 'forget.jsonl'?" in failure("jsonl", path=str(folder / "forgot.jsonl"))
    assert "cannot be read" in failure("jsonl", path=str(folder))
    assert "is one object (data)" in failure("json", path=write(folder / "x.json", '{"data":\n []}'))
    assert "no examples" in failure("json", path=write(folder / "x.json", "[]"))
    assert "is not JSON" in failure("json", path=write(folder / "x.json", '[{"a": 1}'))
    assert "line 3: 1 cells" in failure("csv", path=write(folder / "x.csv", "prompt,answer\na,b\nc\n"))
    assert "broken table" in failure("csv", path=write(folder / "x.csv", 'prompt,answer\na,"b\n'))
    assert "accepted: 1 or more" in failure("jsonl", path=str(folder / "forget.jsonl"), limit=0)
    assert "did you mean 'spans'?" in failure("jsonl", path=str(folder / "forget.jsonl"), fields={"span": "x"})
    assert "no field 'x'" in failure("jsonl", path=str(folder / "forget.jsonl"), fields={"spans": "x"})
    assert "no field 'key'" in failure("jsonl", path=str(folder / "forget.jsonl"), id="key")


def test_the_text_of_an_example_never_stands_in_an_error(folder: Path) -> None:
    secret = {"prompt": "x", "answer": "phone 555-0142", "perturbed": 3}
    assert "555-0142" not in failure("jsonl", path=write(folder / "x.jsonl", lines([secret])))


def test_every_reader_has_the_common_arguments_and_survives_a_recipe() -> None:
    for name in ("jsonl", "json", "csv", "parquet", "hf", "inline"):
        assert {"prompt", "answer", "id", "limit", "fields"} <= parameters(entries("reader")[name].fn).keys()
    bound = bind("reader", {"use": "jsonl", "path": "x", "fields": {"spans": "s"}}, "data.forget")
    assert bind("reader", spec_of(bound), "data.forget") == bound
    with pytest.raises(RecipeError, match="did you mean 'prompt'"):
        bind("reader", {"use": "jsonl", "path": "x", "promt": "q"}, "data.forget")


def stream(name: str, role: Any, *texts: str) -> Stream:
    return Stream(name, role, tuple(Example(f"{name}/{text}", "Q", text) for text in texts))


def test_overlap_warns_with_counts_and_refuses_containment() -> None:
    warned: list[str] = []
    forget, holdout = stream("forget", "forget", "a", "b", "c"), stream("holdout", "holdout", " c ")
    data = Data(forget=forget, retain=stream("retain", "retain", "b", "d"), holdout=holdout)
    checks.check_overlap(data, warned.append)
    assert len(warned) == 2
    assert "1 of 3 examples are also in 'retain'" in warned[0]
    assert "1 of 3 examples are also in 'holdout'" in warned[1]
    data["more"] = stream("more", "retain", "a", "c")
    with pytest.raises(DataError, match="all 3 examples are also in a retain stream"):
        checks.check_overlap(data, warned.append)
    checks.check_overlap(Data(forget=forget), warned.append)
    assert len(warned) == 2


def test_stream_hash_sees_every_field_and_not_the_name() -> None:
    one = Stream("one", "forget", tuple(MADE))
    assert checks.stream_hash(one) == checks.stream_hash(Stream("two", "retain", tuple(MADE)))
    assert checks.stream_hash(one) == checks.stream_hash(MADE)
    assert checks.stream_hash(MADE[:2]) != checks.stream_hash(MADE)
    assert checks.stream_hash([Example("a", "p", "q", subject="s")]) != checks.stream_hash([Example("a", "p", "q")])


def test_variants_and_paraphrases() -> None:
    one = Stream("one", "forget", tuple(MADE))
    assert [row[:2] for row in variants(one)] == [("a", 0), ("b", 0), ("people/3", 0)]
    assert variants(one)[0] == ("a", 0, "Who wrote it?", "Mara Lindqvist.", ((0, 4),))
    assert variants(one, "perturbed") == [("a", i, "Who wrote it?", text, ()) for i, text in enumerate("AB")]
    assert variants(one, ask="paraphrase:0") == [("b", 0, "What year?", "In 1961, in 1961.", ((3, 7), (12, 16)))]
    with pytest.raises(LookupError, match="field 'alternative'"):
        variants(one, "alternative")
    with pytest.raises(LookupError, match="paraphrase 1"):
        variants(one, ask="paraphrase:1")
    for variant, ask in (("answers", "prompt"), ("answer", "paraphrase:-1"), ("answer", "question")):
        with pytest.raises(DataError):
            variants(one, variant, ask)
