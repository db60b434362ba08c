"""Readers of StereoSet, CrowS-Pairs, WinoBias and WinoGender."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter

import pytest

from expunge.data.benchmarks.crows import crows, crows_data
from expunge.data.benchmarks.stereoset import LABELS, prediction_triples, stereoset, stereoset_data
from expunge.data.benchmarks.winobias import winobias, winobias_data, winogender, winogender_data
from expunge.errors import DataError
from expunge.types import Example

SHUFFLED = ("unrelated", "stereotype", "anti-stereotype")


def record(number, term="pilot", domain="profession"):
    texts = {label: f"The {term} was {label} {number}." for label in LABELS}
    sentences = [{"id": f"{label}{number}", "sentence": texts[label], "gold_label": label} for label in SHUFFLED]
    return {"id": str(number), "target": term, "bias_type": domain, "context": "BLANK", "sentences": sentences}


def official(tmp_path, rows):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "1.1", "data": {"intrasentence": rows, "intersentence": [{"id": "x"}]}}))
    return path


def test_the_official_stereoset_file(tmp_path):
    path = official(tmp_path, [record(0), record(1, "a/b", "race")])
    expected = Example(
        "stereoset/profession/pilot/0", "", "The pilot was stereotype 0.", subject="pilot",
        perturbed=("The pilot was unrelated 0.",), contrast="The pilot was anti-stereotype 0.",
    )
    assert stereoset(data=str(tmp_path))[0] == expected
    assert stereoset(data=str(path), domain="profession") == [expected]
    assert [one.id for one in stereoset(data=str(path), domain="race")] == ["stereoset/race/a b/1"]


def test_lists_of_records_in_both_forms(tmp_path):
    short = record(7)
    short["data"] = {one["gold_label"]: one for one in short.pop("sentences")}
    (tmp_path / "x_race_test.json").write_text(json.dumps([record(3)]))
    (tmp_path / "x_gender_test.json").write_text(json.dumps([short]))
    assert [one.id for one in stereoset(data=str(tmp_path))] == [
        "stereoset/profession/pilot/0", "stereoset/profession/pilot/1"]
    assert stereoset(data=str(tmp_path))[0].answer == "The pilot was stereotype 7."


def test_predictions_by_sentence_id(tmp_path):
    path = official(tmp_path, [record(0), record(1), record(2, "cook")])
    rows = [{"id": f"{label}{i}", "score": 10 * i + k} for i in range(3) for k, label in enumerate(LABELS)]
    stored = tmp_path / "predictions.json.gz"
    stored.write_bytes(gzip.compress(json.dumps({"intrasentence": rows[:6]}).encode()))
    with pytest.raises(DataError, match="no score for sentence stereotype2"):
        prediction_triples(path, stored)
    stored.write_bytes(gzip.compress(json.dumps({"intrasentence": rows}).encode()))
    assert prediction_triples(path, stored) == {"pilot": [(0, 1, 2), (10, 11, 12)], "cook": [(20, 21, 22)]}
    stored.write_bytes(gzip.compress(b'{"other": 1}'))
    with pytest.raises(DataError, match="no scores of intrasentence items"):
        prediction_triples(path, stored)


def test_what_is_no_stereoset(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        stereoset_data(tmp_path)
    path = tmp_path / "rows.json"
    for content, why in (("{", "is not JSON"), ('[{"id": 1}]', "record 1"), ('{"data": {}}', "no examples")):
        path.write_text(content)
        with pytest.raises(DataError, match=why):
            stereoset_data(path)


def test_crows_pairs(tmp_path):
    path = tmp_path / "crows_pairs_anonymized.csv"
    rows = [("", "sent_more", "sent_less", "stereo_antistereo", "bias_type"), (0, "A, b.", "A, c.", "stereo", "age"),
            (1, "D e.", "D f.", "antistereo", "gender")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert crows(data=str(tmp_path)) == [
        Example("crows/age/stereo/0", "", "A, b.", contrast="A, c."),
        Example("crows/gender/antistereo/1", "", "D e.", contrast="D f."),
    ]
    assert [one.answer for one in crows(data=str(path), bias_type="gender")] == ["D e."]
    assert [one.answer for one in crows(data=str(path), direction="stereo")] == ["A, b."]
    with pytest.raises(DataError, match="did you mean 'gender'"):
        crows(data=str(path), bias_type="genders")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column 'sent_more'"):
        crows(data=str(path))


def write_winobias(folder, pro, anti):
    for side, lines in (("pro", pro), ("anti", anti)):
        for kind in ("type1", "type2"):
            for part in ("dev", "test"):
                text = "".join(f"{i} {line}\n" for i, line in enumerate(lines, 1))
                (folder / f"{side}_stereotyped_{kind}.txt.{part}").write_text(text)


def test_winobias(tmp_path):
    pro = ["[The guard] saw the cook because [he] slept.", "The guard saw the cook because [he] ate."]
    anti = ["[The guard] saw the cook because [she] slept.", "The guard saw the clerk because [she] ate."]
    write_winobias(tmp_path, pro, anti)
    assert winobias(data=str(tmp_path), kind="type2", part="dev") == [Example(
        "winobias/type2/dev/0", "", "The guard saw the cook because he slept.",
        contrast="The guard saw the cook because she slept.",
    )]  # the second pair differs in an occupation as well
    assert len(winobias(data=str(tmp_path))) == 4
    write_winobias(tmp_path, pro, anti[:1])
    with pytest.raises(DataError, match="2 and 1 sentences"):
        winobias(data=str(tmp_path))


def test_winogender(tmp_path):
    """The majority's pronoun first: a nurse is "she", a guard "he"."""
    (tmp_path / "occupations-stats.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\nnurse\t1\t90\t2015\nguard\t1\t10\t2015\n")
    lines = ["sentid\tsentence"]
    for job in ("nurse", "guard"):
        for means in (0, 1):
            for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they")):
                lines.append(f"{job}.patient.{means}.{gender}.txt\tThe {job} met the patient; {word} left. {means}")
    (tmp_path / "all_sentences.tsv").write_text("\n".join(lines) + "\n")
    found = winogender(data=str(tmp_path))
    assert [one.answer for one in found] == [
        "The nurse met the patient; she left. 0", "The guard met the patient; he left. 0"]
    assert [one.contrast for one in found] == [
        "The nurse met the patient; he left. 0", "The guard met the patient; she left. 0"]
    assert found[0].id == "winogender/nurse/patient/0/0"
    assert len(winogender(data=str(tmp_path), referent="both")) == 4
    (tmp_path / "occupations-stats.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\nnurse\t1\t90\t2015\n")
    with pytest.raises(DataError, match="'guard' lacks statistics"):
        winogender(data=str(tmp_path))


def test_the_published_files(shared):
    folder = shared / "data" / "bias"
    read = stereoset_data(folder)["stereoset"]
    assert Counter(one.id.split("/")[1] for one in read.examples) == {"race": 962, "gender": 253, "religion": 79}
    pairs = crows_data(folder)["crows"]
    assert Counter(one.id.split("/")[2] for one in pairs.examples) == {"stereo": 1290, "antistereo": 218}
    assert len({one.id.split("/")[1] for one in pairs.examples}) == 9
    assert len(winobias_data(folder)["winobias"]) == 1584 - 19
    assert len(winogender_data(folder)["winogender"]) == 120
    assert {stream.role for stream in (read, pairs)} == {"probe"}
