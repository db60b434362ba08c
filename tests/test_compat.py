"""OpenUnlearning's conventions: its own numbers on models that learned by counting, and what each option changes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.compat import ASSUMED, TOFU, metrics_of
from expunge.errors import RecipeError
from expunge.measure.plan import Measured, measure
from expunge.registry import bind
from expunge.scoring import applies, plan_for, score
from expunge.types import Data, Example, Score, Stream
from support.counted import counted, words_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "openunlearning.json").read_text(encoding="utf-8"))
SHARE = ("prob_mean", "forget", {"use": "truth_ratio", "aggregate": "share"})
SAME = [(name, *one) for name, one in TOFU.items()] + [SHARE]
ROLES: dict[str, Any] = {
    "forget": "forget", "retain": "retain", "holdout": "holdout", "real_authors": "probe", "world_facts": "probe",
}


@cache
def data() -> Data:
    return Data({
        name: Stream(name, ROLES[name], tuple(
            Example(
                f"{name}/{i:02d}", row["question"], row["answer"], paraphrased_answer=row["paraphrased_answer"],
                perturbed=tuple(row["perturbed_answer"]),
            )
            for i, row in enumerate(rows)
        ))
        for name, rows in GOLDEN["streams"].items()
    })


@cache
def measured(which: str) -> Measured:
    streams: dict[str, list[dict[str, Any]]] = GOLDEN["streams"]
    texts = [
        text for rows in streams.values() for row in rows
        for text in (row["question"], row["answer"], row["paraphrased_answer"] or "", *row["perturbed_answer"])
    ]
    pairs = [
        (row["question"], row[field]) for name, field, num in GOLDEN["learned"][which] for row in streams[name][:num]
    ]
    wanted = [bind("metric", spec) for _, _, spec in SAME] + [bind("metric", "rouge")]
    return measure(counted(words_of(texts), pairs, GOLDEN["added"][which]), data(), plan_for(wanted, data()))


def scored(spec: Any, stream: str = "forget", *, oracle: bool = True, which: str = "this") -> Score:
    return score(bind("metric", spec), stream, measured(which), measured("oracle") if oracle else None)


@pytest.mark.parametrize(("name", "stream", "spec"), SAME, ids=lambda one: one if isinstance(one, str) else "")
def test_its_own_numbers(name: str, stream: str, spec: dict[str, Any]) -> None:
    found = scored(spec, stream)
    assert found.value == pytest.approx(GOLDEN["values"][name], abs=1e-6)
    assert found.ci is not None
    assert found.ci[0] <= found.value <= found.ci[1]


@pytest.mark.parametrize("name", sorted(GOLDEN["each"]))
def test_its_own_numbers_row_by_row(name: str) -> None:
    """Its membership scores have the other sign; its truth ratio is R where ours is min(R, 1/R).

    Where a prediction has no spread, min-k++ divides rounding errors by the smallest sigma, 1e-3.
    """
    found = list(scored(TOFU[name][1]).per_example.values())
    expected = np.array(GOLDEN["each"][name])
    if name == "forget_Truth_Ratio":
        expected = np.minimum(expected, 1 / expected)
    signed = -expected if name.startswith("mia_") else expected
    assert found == pytest.approx(signed, abs=2e-3 if "plus" in name else 1e-6)


def test_answers_go_on_for_200_tokens() -> None:
    """A model that counts for ever says 200 words when asked its way, and as many as the answer allows when not."""
    tables = measured("this").tables
    longest = [int(tables["forget", "samples", asked].column("num_tokens").max()) for asked in (
        "prompt#max_new_tokens=200", "prompt"
    )]
    assert max(GOLDEN["num_words"]) == 200
    assert list(tables["forget", "samples", "prompt#max_new_tokens=200"].column("num_tokens")) == GOLDEN["num_words"]
    assert longest == [200, 21]  # 9 tokens with the end: 9 * 3 // 2 + 8


def test_without_an_oracle_it_takes_one_half() -> None:
    """PrivLeak is n/a by default; its way the retrained model's AUC is 0.5, which the table of metrics asks for."""
    spec = next(one for one in metrics_of(TOFU, oracle=False) if one["use"] == "privleak")
    assert spec["reference"] == ASSUMED
    found = scored(spec, oracle=False, which="oracle")
    assert found.value == pytest.approx(GOLDEN["without_reference"]["privleak"], abs=1e-6)
    assert scored(TOFU["privleak"][1], oracle=False).status == "n/a"
    assert all("reference" not in one for one in metrics_of(TOFU, oracle=True) if one["use"] == "privleak")


def test_every_option_matters_here() -> None:
    """Where an option changes nothing on these models, the numbers above would not show that it is needed."""
    for name in ("extraction_strength", "exact_memorization", "mia_min_k", "mia_min_k_plus_plus", "privleak"):
        spec = TOFU[name][1]
        for option in spec.keys() - {"use", "score"}:
            plain = scored({key: value for key, value in spec.items() if key != option})
            assert plain.per_example != scored(spec).per_example, (name, option)


def test_the_end_counts_or_does_not() -> None:
    """Right tokens times length differ by the end alone, which is right or wrong; lengths by one."""
    counts = [scored({"use": "memorization_accuracy", "ending": ending}).per_example for ending in (True, False)]
    ends = []
    for one in data()["forget"].examples:
        words = len(one.answer.split())
        ends.append(round(counts[0][one.id] * (words + 1) - counts[1][one.id] * words, 9))
    assert set(ends) == {0.0, 1.0}


@pytest.mark.parametrize("asked", ["prompt#max_new_tokens=0", "prompt#max_new_tokens=many", "prompt#length=3"])
def test_a_wrong_limit_is_told(asked: str) -> None:
    spec = bind("metric", {"use": "rouge", "asked": asked})
    small = Data(forget=replace(data()["forget"], examples=data()["forget"].examples[:1]))
    subject = counted(words_of(["a b"]), [("a", "b")])
    with pytest.raises(RecipeError, match="max_new_tokens=N"):
        measure(subject, small, plan_for([spec], small))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_an_auc_out_of_range_is_told(value: float) -> None:
    with pytest.raises(RecipeError, match="reference"):
        scored({"use": "privleak", "reference": value})


def test_a_reference_that_tells_all_apart_is_nothing_to_divide_by() -> None:
    found = scored({"use": "privleak", "reference": 1.0})
    assert found.status == "n/a"
    assert "nothing to divide by" in found.reason


def test_the_benchmark_measures_that_way(shared: Path) -> None:
    """Every metric of the table, each once; non-members are measured as well, and every column has its number."""
    asked = {"use": "tofu", "data": str(shared / "data" / "tofu"), "limit_authors": 3, "models": "one,two"}
    plain = bind("benchmark", asked)(lambda *_: None)
    theirs = bind("benchmark", {**asked, "compat": "openunlearning"})(lambda *_: None)
    alone = bind("benchmark", {**asked, "models": "one", "compat": "openunlearning"})(lambda *_: None)
    assert "holdout" not in plain.audited
    assert len(theirs.audited["holdout"]) == len(theirs.audited["forget"])
    assert {json.dumps(one) for one in theirs.metrics} == {json.dumps(spec) for _, spec in TOFU.values()}
    assert {"use": "privleak", "ending": False, "reference": ASSUMED} in alone.metrics
    bound = [bind("metric", spec) for spec in theirs.metrics]
    there = {(stream, one.name) for one in bound for stream in applies(one, theirs.audited)}
    assert set(theirs.columns) <= there
