"""The embedded default: the model really learned its people, and its twin really never saw them."""

from __future__ import annotations

import json

import pytest

from expunge.cli import main
from expunge.demo import QUICK, Settings, people, prepare
from expunge.measure.plan import measure
from expunge.models import load
from expunge.registry import bind
from expunge.scoring import plan_for, score
from expunge.types import Data, Stream


def exact_memorization(folder, data: Data) -> dict[str, float]:
    metric = bind("metric", "exact_memorization")
    measured = measure(load(str(folder)), data, plan_for([metric], data))
    return {name: score(metric, name, measured).value for name in data}


@pytest.mark.slow
def test_the_target_knows_everybody_and_the_oracle_nobody_it_was_not_told_of(tmp_path):
    """Greedy exact match: target >= 0.95 on forget and retain people, oracle <= 0.05 on forget people."""
    settings = Settings()
    prepare(tmp_path, settings)
    data = Data({part: Stream(part, part, tuple(people(part, settings))) for part in ("forget", "retain", "holdout")})
    target, oracle = exact_memorization(tmp_path / "target", data), exact_memorization(tmp_path / "oracle", data)
    assert target["forget"] >= 0.95
    assert target["retain"] >= 0.95
    assert oracle["retain"] >= 0.95
    assert oracle["forget"] <= 0.05
    assert max(target["holdout"], oracle["holdout"]) <= 0.05


def test_the_parts_share_nobody():
    settings = Settings()
    names = [{example.subject for example in people(part, settings)} for part in ("forget", "retain", "holdout")]
    assert [len(part) for part in names] == [settings.forget, settings.retain, settings.holdout]
    assert len(set().union(*names)) == sum(len(part) for part in names)


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_report(tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    told = capsys.readouterr().out
    assert "exact_memorization" in told
    assert "report.html" in told
    run = tmp_path / "demo" / "run"
    evidence = json.loads((run / "scores.json").read_text())
    kinds = {condition["kind"] for condition in evidence["conditions"]}
    assert kinds == {"original", "oracle", "after", "attack"}
    secret = people("forget", QUICK)[0].answer
    for name in ("scores.json", "report.html", "log.jsonl", "lineage.json"):
        assert secret not in (run / name).read_text()
