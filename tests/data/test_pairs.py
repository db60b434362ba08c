"""Where the sides of a pair differ."""

from __future__ import annotations

import pytest

from expunge.data.pairs import differing
from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.types import Example, Stream
from support.pairs import sentences


def found(*texts):
    return [[text[a:b] for a, b in spans] for text, spans in zip(texts, differing(texts), strict=True)]


def test_one_word():
    assert found("He is a doctor.", "He is a dancer.", "He is a table.") == [["doctor"], ["dancer"], ["table"]]


def test_several_places_of_as_many_words():
    assert found("She said her car broke.", "He said his car broke.") == [["She", "her"], ["He", "his"]]


def test_words_of_different_number():
    assert found("My uncle is kind.", "My rich old aunt is kind.") == [["uncle"], ["rich old aunt"]]


def test_a_word_more_leaves_a_word_on_the_other_side():
    assert found("It is very good.", "It is good.") == [["very good"], ["good"]]
    assert found("Yes indeed", "Yes") == [["Yes indeed"], ["Yes"]]


def test_marks_all_have_do_not_count_others_do():
    assert found('"He left."', '"She left."') == [["He"], ["She"]]
    assert found("He won!", "He won.") == [["won!"], ["won."]]
    assert found("a", "a") == [[], []]


def test_the_variant_has_spans_of_both_extents():
    stream = sentences(2)["pairs"]
    whole = variants(stream, "pair:contrast")
    fill = variants(stream, "pair:contrast:fill")
    for (_, _, prompt, text, spans), (*_, other, narrow) in zip(whole, fill, strict=True):
        assert (prompt, text, spans) == ("", other, ((0, len(text)),))
        assert [text[a:b] for a, b in narrow] == ["cruel"]
    assert [row[3].rsplit(" ", 1)[1] for row in variants(stream, "pair:perturbed")] == ["Tuesday."] * 2


def test_an_example_without_a_contrast_is_no_pair():
    with pytest.raises(LookupError, match="no example of 's' has a field 'pair'"):
        variants(Stream("s", "probe", (Example("a", "", "text"),)), "pair:answer")


@pytest.mark.parametrize("wrong", ["pair:anser", "pair:answer:fil"])
def test_a_wrong_name_is_told(wrong):
    with pytest.raises(DataError, match="did you mean"):
        variants(sentences(1)["pairs"], wrong)


def test_beside_an_empty_text_everything_differs():
    assert found("", "a b") == [[], ["a b"]]
    assert found("", " ") == [[], []]
