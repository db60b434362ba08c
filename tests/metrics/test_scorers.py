"""Scorers of text, offline."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from expunge.errors import DataError
from expunge.metrics.scorers import labelled, valence, wordlist, words
from expunge.registry import bind, entries


def test_words():
    assert words("Don’t SHOUT, re-read_it: 2x!") == ["don't", "shout", "re", "read", "it", "2x"]


def test_one_word_is_two_thirds_and_two_are_eight_ninths():
    assert wordlist(["Idiot!", "stupid idiot", "a nice day", ""]) == pytest.approx([2 / 3, 8 / 9, 0.0, 0.0])
    assert wordlist(["Oh shut up now", "shut the door, up there"]) == pytest.approx([2 / 3, 0.0])
    assert wordlist(["classic passing"]) == [0.0]  # whole words


def test_a_list_of_ones_own(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("grumble\nbig, bad wolf\nmild\t0.3\nwolfish,0.6\n\n")
    found = wordlist(["grumble", "the Big bad wolf", "mild", "wolfish", "idiot"], path=str(path))
    assert found == pytest.approx([2 / 3, 2 / 3, 0.2, 0.4, 0.0])
    path.with_name("none.txt").write_text("...\n")
    with pytest.raises(DataError, match="no word in it"):
        wordlist(["a"], path=str(path.with_name("none.txt")))
    with pytest.raises(DataError, match="no such file"):
        wordlist(["a"], path=str(tmp_path / "nowhere.txt"))


def test_valence_by_hand():
    """s / (1 + |s|) on [0, 1]: good 1 -> 3/4; wonderful 2 -> 5/6; not good -> 1/4; both -> 1/2."""
    texts = ["A good day", "wonderful", "not a good day", "good and bad", "a table", "not here, but far away good"]
    found = valence(texts)
    assert found == pytest.approx([3 / 4, 5 / 6, 1 / 4, 1 / 2, 1 / 2, 3 / 4])


def test_values_of_ones_own(tmp_path):
    path = tmp_path / "values.tsv"
    path.write_text("plum\t3\t0.5\nfog\t-1\n")
    assert valence(["plum", "fog", "good"], path=str(path)) == pytest.approx([7 / 8, 1 / 4, 1 / 2])


ROWS = [("you are a troll and a pest", "bad")] * 4 + [("you are a friend and a help", "fine")] * 4


def test_a_classifier_of_ones_own_texts(tmp_path):
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("said", "kind"), *ROWS])
    lines.write_text("\n".join(json.dumps({"said": said, "kind": kind}) for said, kind in ROWS))
    asked = ["what a pest", "what a friend", "what"]
    for path in (table, lines):
        pest, friend, nothing = labelled(asked, path=str(path), text="said", label="kind", positive="bad")
        assert pest > 0.6 > 0.4 > friend
        assert nothing == pytest.approx(0.5, abs=0.05)
    other = labelled(asked, path=str(table), text="said", label="kind", positive="fine, good")
    assert other[0] == pytest.approx(1 - pest, abs=0.02)
    assert labelled([], path="nowhere") == []


def test_a_table_without_the_column_or_with_one_class(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": said, "label": kind}) for said, kind in ROWS))
    with pytest.raises(DataError, match="no column 'tex'; did you mean 'text'"):
        labelled(["a"], path=str(path), text="tex")
    with pytest.raises(DataError, match="labels here: bad, fine"):
        labelled(["a"], path=str(path), positive="1")


def test_every_scorer_is_registered():
    assert {"wordlist", "valence", "labelled"} <= set(entries("scorer"))
    assert bind("scorer", "wordlist")(["idiot"]) == pytest.approx([2 / 3])


def test_the_order_of_a_remote_service_is_roughly_followed(shared):
    """Rank correlation with the stored numbers of the service: the built-in list 0.35, a list of swear words 0.48."""
    folder = shared / "data" / "safety"
    stored = (folder / "realtoxicityprompts_quark_val_2000.jsonl").read_text()
    rows = [json.loads(line) for line in stored.splitlines()]
    said = [row["continuation"] for row in rows if row["continuation"]["toxicity"] is not None]
    right = np.array([one["toxicity"] for one in said])

    def agreement(scores):
        return float(spearmanr(scores, right).statistic)

    texts = [one["text"] for one in said]
    assert agreement(wordlist(texts)) > 0.25
    assert agreement(wordlist(texts, path=str(folder / "lexicon_ldnoobw_en.txt"))) > 0.45
    assert agreement(valence(texts)) < -0.1
    comments = str(folder / "wikipedia_toxicity_nonfuzzed_testset.csv")
    assert agreement(labelled(texts, path=comments, text="comment", label="toxic", positive="1,True")) > 0.4
