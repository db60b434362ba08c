"""Variants that change the words of a text or put others before it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from expunge.data import neighbours as neighbours_module
from expunge.data.neighbours import REMEMBERED, WORD, Seen, neighbour, seen, word_class
from expunge.data.texts import texts_of
from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.types import Data, Example, Stream

TEXTS = (
    "Mara Lindqvist was born in Oslo in 1961 and wrote nine novels.",
    "Tomas Ferreira was raised in Porto in 1975 and painted three murals.",
    "Ines Duarte moved to Turin in 1988 and planted some orchards for the WWF.",
)


def stream(name: str = "forget", texts=TEXTS, prompt: str = "") -> Stream:
    return Stream(name, "forget", tuple(Example(f"{name}/{k}", prompt, text) for k, text in enumerate(texts)))


@pytest.mark.parametrize(("word", "kind"), [
    ("the", None), ("The", None), ("1961", "shape 9999"), ("b2B", "shape a9A"), ("WWF", "capitals"), ("A", None),
    ("Oslo", "capitalised"), ("painted", "lower case ed"), ("novels", "lower case s"), ("winter", "lower case"),
    ("red", "lower case"), ("_", None), ("X", "capitalised"),
])
def test_classes(word, kind):
    assert word_class(word) == kind


def test_words_are_replaced_by_their_kind():
    """All replaceable words at once: each becomes another word of its class and of the stream; grammar stays."""
    first = stream().examples[0]
    (row,) = [row for row in variants(stream(), "neighbours:1:1.0") if row[0] == first.id]
    before, after = WORD.findall(first.answer), WORD.findall(row[3])
    known = {word for text in TEXTS for word in WORD.findall(text)}
    assert [word_class(word) for word in before] == [word_class(word) for word in after]
    for old, new in zip(before, after, strict=True):
        assert new in known
        alone = sum(word_class(word) == word_class(old) for word in known) == 1
        assert (old == new) == (word_class(old) is None or alone), (old, new)
    assert re.sub(r"\w+", "", row[3]) == re.sub(r"\w+", "", first.answer)  # marks and spaces as they were


def test_share_of_words():
    """Ten words of one class: a share of 0.3 replaces three, one of 0.01 still one; no other word: the text itself."""
    text, pool = " ".join(["Alice"] * 10), {"capitalised": ["Alice", "Bob", "Carol"]}
    for share, number in ((0.3, 3), (0.01, 1), (1.0, 10)):
        found = neighbour(text, pool, share, np.random.default_rng(0)).split()
        assert sum(word != "Alice" for word in found) == number
    assert neighbour(text, {"capitalised": ["Alice"]}, 1.0, np.random.default_rng(0)) == text


def test_neighbours_hang_on_id_and_number_alone():
    """The order of examples, the number of neighbours asked for and other streams change nothing; ids do."""
    base = {row[:2]: row[3] for row in variants(stream(), "neighbours:6")}
    turned = Stream("forget", "forget", stream().examples[::-1])
    assert {row[:2]: row[3] for row in variants(turned, "neighbours:6", data=Data(forget=turned))} == base
    data = Data(holdout=stream("holdout", ("Other People came in 2001.",)), forget=stream())
    assert {row[:2]: row[3] for row in variants(data["forget"], "neighbours:6", data=data)} == base
    fewer = {row[:2]: row[3] for row in variants(stream(), "neighbours:2")}
    assert fewer.items() <= base.items()
    renamed = stream("other")
    assert {row[3] for row in variants(renamed, "neighbours:6", data=Data(other=renamed))} != set(base.values())


def test_neighbours_differ_from_the_text_and_from_each_other():
    rows = variants(stream(), "neighbours:8:0.3")
    for number, example in enumerate(stream().examples):
        mine = [row[3] for row in rows if row[0] == f"forget/{number}"]
        assert len(set(mine)) == len(mine) >= 6
        assert example.answer not in mine


def test_a_text_without_content_words_has_no_neighbour():
    """One of two is left out; a stream of such texts is not available, with a reason."""
    mixed = stream("s", ("It is the one.", "Oslo", "Porto"))
    assert {row[0] for row in variants(mixed, "neighbours:2", data=Data(s=mixed))} == {"s/1", "s/2"}
    plain = stream("s", ("It is the one.",))
    with pytest.raises(LookupError, match="neighbours"):
        variants(plain, "neighbours:2", data=Data(s=plain))
    with pytest.raises(DataError, match="got 'two'"):
        variants(mixed, "neighbours:two", data=Data(s=mixed))


def test_lower_case():
    one = Stream("s", "forget", (Example("a", "Who is MARA?", "Mara of OSLO.", spans=((0, 4),)),))
    assert variants(one, "lowercase") == [("a", 0, "who is mara?", "mara of oslo.", ())]


def pair(prompt: str = "") -> Data:
    return Data(forget=stream(prompt=prompt), holdout=stream("holdout", ("One.", "Two.", "Three.", "Four."), prompt))


def test_conditioned_puts_the_same_texts_before_every_other():
    """Asked texts: before the prompt. All three share the prefix, made of two whole texts of the other stream."""
    data = pair("Say it:")
    rows = variants(data["forget"], "conditioned:holdout:2", data=data)
    (before,) = {row[2].removesuffix("Say it:") for row in rows}
    assert sum(f"Say it: {text}\n\n" in before for text in ("One.", "Two.", "Three.", "Four.")) == 2
    assert [row[3] for row in rows] == list(TEXTS)
    assert variants(data["forget"], "conditioned:holdout:0", data=data) == variants(data["forget"], data=data)


def test_conditioned_leaves_the_text_itself_out():
    """Of its own stream, and where the same text stands under another id: both get two other texts."""
    data = pair()
    chosen = [row[3].split("\n\n") for row in variants(data["holdout"], "conditioned:holdout:2", data=data)]
    for *before, text in chosen:
        assert text not in before
        assert len(set(before)) == 2
    common = min((tuple(before) for *before, _ in chosen), key=lambda one: -sum(one == tuple(c[:-1]) for c in chosen))
    twin = Stream("forget", "forget", (Example("elsewhere", "", common[0]),))
    (row,) = variants(twin, "conditioned:holdout:2", data=Data(forget=twin, holdout=data["holdout"]))
    assert row[3].split("\n\n").count(common[0]) == 1


def test_conditioned_plain_text_keeps_its_spans():
    spanned = Example("a", "", "Mara of Oslo", spans=((8, 12),))
    data = Data(forget=Stream("forget", "forget", (spanned,)), holdout=pair()["holdout"])
    (text,) = texts_of(data["forget"], "conditioned:holdout:1", data=data)
    assert text.prompt == ""
    assert text.answer.endswith("\n\nMara of Oslo")
    assert [text.answer[a:b] for a, b in text.spans] == ["Oslo"]


def test_conditioned_says_what_is_missing():
    data = pair()
    with pytest.raises(LookupError, match="no stream 'news'"):
        variants(data["forget"], "conditioned:news:2", data=data)
    with pytest.raises(LookupError, match="'holdout' has 3 other texts, 4 are"):
        variants(data["holdout"], "conditioned:holdout:4", data=data)


def test_the_order_of_streams_that_share_an_example_changes_nothing():
    """The same examples in two streams, one with more words: the first by name lends them either way."""
    small = stream()
    large = Stream("a", "probe", (*small.examples, Example("x", "", "Other People came in 2001.")))
    found = [
        variants(small, "neighbours:6:1.0", data=data)
        for data in (Data(forget=small, a=large), Data(a=large, forget=small))
    ]
    assert found[0] == found[1]
    assert found[0] != variants(small, "neighbours:6:1.0")


def test_many_streams_are_read_once_each(monkeypatch):
    """Seventeen streams, one more than are kept: their words and ids are not read again for every example."""
    made = []
    monkeypatch.setattr(neighbours_module, "Seen", lambda one, kind=Seen: made.append(one.name) or kind(one))
    data = Data({name: stream(name) for name in (f"s{k:02}" for k in range(REMEMBERED + 1))})
    variants(data[f"s{REMEMBERED}"], "neighbours:2", data=data)
    assert sorted(made) == sorted(data)
    known = list(data.values())
    seen(known[0])
    for k in range(REMEMBERED - 1):
        seen(stream(f"other{k}"))
    made.clear()
    seen(known[0])  # was used last before the others: it is kept
    assert made == []


@pytest.mark.parametrize("share", ["1.5", "0", "-0.1", "nan"])
def test_a_share_of_words_that_cannot_be_is_told(share):
    with pytest.raises(DataError, match=rf"got a share of '{share}'.*at most 1"):
        variants(stream(), f"neighbours:2:{share}")
