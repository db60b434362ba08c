"""`scores.json`: what is written is what is read, and what does not fit is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import DataError, StorageError
from expunge.report.schema import Evidence, load, parse


def test_write_then_load_gives_the_same(evidence: Evidence, tmp_path: Path) -> None:
    path = evidence.write(tmp_path / "run")
    assert path == tmp_path / "run" / "scores.json"
    assert load(tmp_path / "run") == evidence == load(path)
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]  # nothing aside is left


def test_the_file_is_strict_json_with_the_keys_of_the_contract(evidence: Evidence) -> None:
    data = json.loads(evidence.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert {"expunge", "title", "subject", "created", "digest", "conditions", "scores", "verdicts", "verdict", "method",
            "streams", "cost", "untested", "warnings", "environment", "training"} <= set(data)
    assert data["expunge"] == 1
    assert set(data["scores"][0]) == {"condition", "stream", "metric", "value", "ci", "n", "unit", "better", "status",
                                      "reason", "groups"}
    assert data["conditions"][3]["of"] == "after"


def test_infinities_survive(evidence: Evidence) -> None:
    row = replace(evidence.scores[0], value=math.inf, ci=(1.0, math.inf))
    again = parse(json.loads(replace(evidence, scores=(row,)).to_json()))
    assert again.scores[0].value == math.inf
    assert again.scores[0].ci == (1.0, math.inf)


def test_optional_keys_may_be_absent_and_unknown_ones_present() -> None:
    evidence = parse({"expunge": 1, "title": "t", "subject": "s", "created": "now", "digest": "0" * 12,
                      "conditions": [], "scores": [], "added_later": 1})
    assert evidence.verdict is None
    assert evidence.cost.stages == ()


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores\.json: no such file; .*\. Give the folder") as caught:
        load(tmp_path)
    assert all((caught.value.where, caught.value.found, caught.value.accepted, caught.value.do))


def test_a_file_that_is_not_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"expunge": 1,\n oops')
    with pytest.raises(DataError, match=r"scores\.json:2: not JSON"):
        load(tmp_path)


def _drop_condition(data: dict[str, Any]) -> None:
    del data["scores"][0]["condition"]


def _misspell(data: dict[str, Any]) -> None:
    data["scores"][0]["metrik"] = data["scores"][0].pop("metric")


def _word_for_number(data: dict[str, Any]) -> None:
    data["scores"][0]["value"] = "high"


def _short_interval(data: dict[str, Any]) -> None:
    data["scores"][0]["ci"] = [0.1]


def _strange_kind(data: dict[str, Any]) -> None:
    data["conditions"][0]["kind"] = "before"


def _unknown_condition(data: dict[str, Any]) -> None:
    data["scores"][0]["condition"] = "later"


def _twice(data: dict[str, Any]) -> None:
    data["scores"].append(data["scores"][0])


def _ok_without_value(data: dict[str, Any]) -> None:
    data["scores"][0]["value"] = None


def _other_version(data: dict[str, Any]) -> None:
    data["expunge"] = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_condition, r"scores\[0\]\.condition: missing; 'condition' must be given"),
        (_misspell, r"scores\[0\]\.metric: missing; 'metrik' stands there and is not known"),
        (_word_for_number, r"scores\[0\]\.value: found 'high'; expected a number"),
        (_short_interval, r"scores\[0\]\.ci: found 1 entries; expected 2"),
        (_strange_kind, r"conditions\[0\]\.kind: found 'before'; accepted: original, oracle, after, attack"),
        (_unknown_condition, r"scores\[0\]: names the condition 'later'; conditions: original, oracle"),
        (_twice, r"scores\[\d+\]: exact_memorization of forget under original stands twice"),
        (_ok_without_value, r"scores\[0\]: value None with status 'ok'"),
        (_other_version, r"expunge: format version 2; this release reads version 1"),
    ],
)
def test_what_does_not_fit_is_named(evidence: Evidence, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    data = json.loads(evidence.to_json())
    spoil(data)
    with pytest.raises(DataError, match=message):
        parse(data)


@pytest.mark.parametrize("data", [[], "text", None, {}])
def test_json_of_another_kind_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="format version None"):
        parse(data)


def test_a_failed_write_leaves_the_old_file(evidence: Evidence, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    with pytest.raises(StorageError):
        evidence.write(blocked / "run")
    assert blocked.read_text() == "mine"
