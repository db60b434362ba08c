"""The benchmarks that train nothing: StereoSet and CrowS-Pairs on models that are named."""

from __future__ import annotations

import json

import pytest

from expunge.benches.stereoset import named
from expunge.cli import main
from expunge.errors import RecipeError
from expunge.models import save
from expunge.testing import tiny_subject
from support.pairs import sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A causal and a masked model, and twelve records of two domains."""
    made = tmp_path_factory.mktemp("bias")
    for family in ("llama", "bert"):
        save(tiny_subject(seed=1, family=family), made / family)
    rows = []
    for number, one in enumerate(sentences(12)["pairs"].examples):
        texts = {"stereotype": one.answer, "anti-stereotype": one.contrast, "unrelated": one.perturbed[0]}
        data = {label: {"id": f"{label}{number}", "sentence": text} for label, text in texts.items()}
        rows.append({"id": str(number), "target": one.subject, "bias_type": one.id.split("/")[1], "data": data})
    (made / "dev.json").write_text(json.dumps(rows))
    lines = ["x,sent_more,sent_less,stereo_antistereo,bias_type"]
    for i, one in enumerate(sentences(6)["pairs"].examples):
        lines.append(f"{i},{one.answer},{one.contrast},stereo,{'age' if i % 2 else 'gender'}")
    (made / "crows_pairs_anonymized.csv").write_text("\n".join(lines) + "\n")
    return made


def bench(folder, name, out, capsys):
    asked = ["bench", name, "--data", str(folder), "--methods", "none", "--out", str(out), "--json"]
    assert main([*asked, "--models", f"{folder / 'llama'},,{folder / 'bert'}"]) == 0
    return {row["method"]: row["metrics"] for row in json.loads(capsys.readouterr().out)}


def test_stereoset_scores_the_models_named_by_domain(folder, tmp_path, capsys):
    rows = bench(folder, "stereoset", tmp_path / "out", capsys)
    assert set(rows) == {"original", str(folder / "bert")}
    for found in rows.values():
        assert len(found) == 9  # three metrics: over all, gender, race
        value, (low, high) = found["stereoset_icat(domain=race)"]
        assert 0 <= low <= value <= high <= 1


def test_crows_scores_the_models_named_by_type(folder, tmp_path, capsys):
    rows = bench(folder, "crows", tmp_path / "out", capsys)
    for found in rows.values():
        values = {name: value for name, (value, _) in found.items()}
        assert set(values) == {"crows_pairs", "crows_pairs(bias_type=age)", "crows_pairs(bias_type=gender)"}
        both = (values["crows_pairs(bias_type=age)"] + values["crows_pairs(bias_type=gender)"]) / 2
        assert values["crows_pairs"] == pytest.approx(both)


def test_models_must_be_named(folder, capsys):
    assert named("crows", "a,,b,c") == ("a", None, ["b", "c"])
    assert named("crows", "a,b") == ("a", "b", [])
    with pytest.raises(RecipeError, match="Name the models"):
        named("crows", None)
    assert main(["bench", "crows", "--data", str(folder), "--methods", "none"]) == 2
    assert "bench crows --models" in capsys.readouterr().err
