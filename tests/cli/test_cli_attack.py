"""`expunge attack`: one attack alone, before and after."""

from __future__ import annotations

import json
import re

import pytest

from expunge import cli
from expunge.cli.attack import _conclude
from expunge.models import save
from expunge.report.schema import Condition, ConditionCost, Evidence, Measured
from support.learned import knows, short_data
from support.world import write_stream


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """retain/ knows retain alone: relearning on a part of forget changes what it says of the rest of it."""
    folder = tmp_path_factory.mktemp("world")
    save(knows("retain"), folder / "model")
    for name, stream in short_data().items():
        write_stream(folder / f"{name}.jsonl", stream)
    return folder


@pytest.fixture
def attack(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str, out: str = "out") -> tuple[int, str, str]:
        name, *rest = arguments
        code = cli.main([
            "attack", name, str(world / "model"), "--forget", str(world / "forget.jsonl"), "--metrics", "probability",
            "--out", str(tmp_path / out), *rest,
        ])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def value(scores, condition, stream="forget"):
    (row,) = (row for row in scores if (row["condition"], row["stream"]) == (condition, stream))
    return row["value"]


def test_before_and_after_with_arguments_from_both_places(attack, world, tmp_path):
    code, out, err = attack(
        "relearn:steps=30", "--set", "lr=1e-3", "--set", "share=0.5", "--retain", str(world / "retain.jsonl"), "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["fits"]
    named = [row["name"] for row in found["conditions"]]
    assert named[0] == "after"
    (attacked,) = named[1:]
    assert all(part in attacked for part in ("after+relearn(", "steps=30", "lr=0.001", "share=0.5"))
    assert value(found["scores"], attacked, "retain") != value(found["scores"], "after", "retain")
    assert found["conditions"][1]["cost"]["steps"] == 30
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["scores"] == found["scores"]
    assert (tmp_path / "out" / "report.html").exists()


def test_a_person_gets_a_table_and_the_bill(attack, world, tmp_path):
    code, out, err = attack("quantize:bits=4", "--oracle", str(world / "model"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "quantize against model"
    for head in ("before", "after it", "never saw it"):
        assert head in lines[1] + lines[2]
    (row,) = (line for line in lines if line.startswith("probability"))
    assert row.count("%") == 4
    assert "After the removal, then " in out
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in out
    assert "Verdict" not in out


def test_growing_budgets_are_columns_as_far_as_there_is_room(tmp_path, capsys):
    for num, heads in ((2, ["before", "after 10 steps", "after 20 steps"]), (9, ["before", "after it"])):
        budgets = [10 * (number + 1) for number in range(num)]
        attacked = [Condition(f"after+x[{b}]", "attack", "after", "x", cost=ConditionCost(steps=b)) for b in budgets]
        rows = [Measured(one, "forget", "probability", 0.5, (0.25, 0.75), 12, "prob")
                for one in ("after", *(one.name for one in attacked))]
        found = Evidence("x against y", "y", "", "", (Condition("after", "after"), *attacked), tuple(rows))
        assert _conclude(found, "x", tmp_path, as_json=False) == 0
        out = capsys.readouterr().out
        assert re.split(r" {2,}", out.splitlines()[1].strip())[1:] == heads
        assert f"after+x[{budgets[-1]}]: {budgets[-1]} steps" in out


def test_an_attack_that_finds_nothing_to_use_ends_1_with_the_reason(attack, world, tmp_path):
    rows = [{"id": str(i), "prompt": f"Who is {i}?", "answer": "Nobody"} for i in range(4)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = attack("paraphrase", "--forget", str(tmp_path / "plain.jsonl"))
    assert code == 1
    assert "It does not fit: " in out
    code, out, _ = attack("paraphrase", "--forget", str(tmp_path / "plain.jsonl"), "--json", out="again")
    assert (code, json.loads(out)["fits"], bool(json.loads(out)["reason"])) == (1, False, True)


@pytest.mark.parametrize(("arguments", "message"), [
    (("quantise",), "unknown attack 'quantise'; did you mean 'quantize'"), (("quantize,relearn",), "2 attacks in"),
    (("none",), "0 attacks in"), (("quantize", "--set", "bits"), "no 'name=value'"),
    (("quantize", "--set", "bit=3"), "did you mean 'bits'"), (("quantize:bits=[",), "not YAML"),
])
def test_mistakes_end_2_with_one_line(attack, tmp_path, arguments, message):
    code, out, err = attack(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
