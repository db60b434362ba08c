"""Taggers: what the one without a model says, how tags reach word pieces, and what the others need."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from expunge import tagging
from expunge.errors import MissingExtra, ModelError, RecipeError
from expunge.tagging import patterns, tagger_of, tags_of_pieces


def tagged(text: str) -> dict[str, str]:
    return {text[start:end]: tag for start, end, tag in patterns(text)}


def test_the_classes_of_the_tagger_without_a_model() -> None:
    text = "The old fisherman sold 12.5 boats to Mara in Oslo."
    found = tagged(f"{text} They quickly rowed home, and she saw the station!")
    assert found | {
        "The": "determiner", "12.5": "number", "Mara": "name", "Oslo": "name", "They": "pronoun", "quickly": "adverb",
        "rowed": "verb-like", "and": "conjunction", "saw": "verb-like", "station": "noun-like", "in": "preposition",
        ".": "punctuation",
    } == found


def test_a_capital_at_the_start_of_a_sentence_is_no_name() -> None:
    assert tagged('Rain fell. "Rain fell," said Rain.')["Rain"] == "name"  # the last one
    first, *_ = patterns("Rain fell.")
    assert first[2] != "name"


def test_words_cover_the_text_once_and_in_order() -> None:
    text = "It's 3,000 kilometres -- isn't it? Äpfel_und naïve!"
    spots = [(start, end) for start, end, _ in patterns(text)]
    assert all(a < b <= c for (a, b), (c, _) in pairwise(spots))
    covered = "".join(text[a:b] for a, b in spots)
    assert covered == "".join(text.split())


def test_a_piece_takes_the_tag_of_the_word_it_starts_in() -> None:
    text = "> Mara swims<end>"
    words = [(0, 4, "name"), (5, 10, "verb-like")]  # of the answer, which starts at 2
    pieces = [(0, 1), (2, 4), (4, 6), (6, 9), (9, 12), (12, 17), (0, 0)]  # the fourth opens with a space
    tags = ["none", "name", "name", "verb-like", "verb-like", "none", "none"]
    assert tags_of_pieces(text, words, pieces, 2) == tags


def test_installed_taggers_are_used_and_missing_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tagging.importlib.util.find_spec
    monkeypatch.setattr(
        tagging.importlib.util, "find_spec", lambda name: None if name in ("nltk", "spacy") else real(name)
    )
    for name in ("nltk", "spacy"):
        with pytest.raises(MissingExtra, match=r"expunge\[tags\]"):
            tagger_of(name)
    monkeypatch.setattr(tagging.importlib.util, "find_spec", lambda name: object())
    nltk: Any = ModuleType("nltk")
    nltk.pos_tag = lambda words, tagset: [(word, "NOUN") for word in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    tagger = tagger_of("nltk")
    assert tagger is not None
    assert tagger("two words") == [(0, 3, "NOUN"), (4, 9, "NOUN")]

    def without_data(words: Any, tagset: str) -> Any:
        raise LookupError("averaged_perceptron_tagger_eng")

    nltk.pos_tag = without_data
    with pytest.raises(ModelError, match="data is not installed"):
        tagger("two words")
    spacy: Any = ModuleType("spacy")
    spacy.util = type("util", (), {"is_package": staticmethod(lambda name: False)})
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    with pytest.raises(ModelError, match="'en_core_web_sm' is not installed"):
        tagger_of("spacy")


def test_other_taggers_by_path_and_none_at_all() -> None:
    assert tagger_of("none") is None
    assert tagger_of("expunge.tagging:patterns") is patterns
    with pytest.raises(RecipeError, match="did you mean 'patterns'"):
        tagger_of("pattern")
    with pytest.raises(RecipeError, match="cannot import"):
        tagger_of("expunge.tagging:nothing")
