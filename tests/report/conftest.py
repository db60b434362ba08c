"""A realistic piece of evidence: what an audit of NPO with two attacks and an oracle would write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.report.schema import (
    Checked,
    Condition,
    ConditionCost,
    Evidence,
    Measured,
    Method,
    RunCost,
    StageCost,
    StreamCount,
    TrainingPoint,
    Untested,
    Verdict,
)

CONDITIONS = (
    Condition("original", "original", label="Before the removal"),
    Condition("oracle", "oracle", label="Oracle: never saw the data"),
    Condition("after", "after", label="After the removal"),
    Condition("after+relearn(20)", "attack", "after", "relearn", "After 20 steps of relearning",
              ConditionCost(steps=20, forwards=640, backwards=640, tokens=23_410, seconds=6.4)),
    Condition("after+quantize(4)", "attack", "after", "quantize", "Rounded to 4 bits", ConditionCost(seconds=0.41)),
    Condition("after+paraphrase(0)", "attack", "after", "paraphrase", "Asked in other words",
              ConditionCost(queries=200, forwards=200, tokens=8_112, seconds=1.2)),
    Condition("oracle+relearn(20)", "attack", "oracle", "relearn", "Oracle after 20 steps of relearning",
              ConditionCost(steps=20, forwards=640, backwards=640, tokens=23_410, seconds=6.3)),
)
NAMES = tuple(row.name for row in CONDITIONS)

# stream, metric, unit, better, half width of the interval, values in the order of CONDITIONS (None: n/a)
TABLE: tuple[tuple[str, str, str, str, float, tuple[float | None, ...]], ...] = (
    ("forget", "exact_memorization", "share", "lower", 0.03, (0.973, 0.021, 0.034, 0.312, 0.041, 0.025, 0.118)),
    ("forget", "probability", "probability", "lower", 0.02, (0.9614, 0.1123, 0.0871, 0.402, 0.0913, 0.0799, 0.214)),
    ("forget", "extraction_strength", "share", "lower", 0.02, (0.981, 0.064, 0.071, 0.288, 0.074, 0.062, 0.149)),
    ("forget", "memorization_accuracy", "share", "lower", 0.02, (0.991, 0.412, 0.398, 0.618, 0.401, 0.377, 0.522)),
    ("forget", "rouge", "share", "lower", 0.03, (0.984, 0.371, 0.342, 0.541, 0.351, None, 0.447)),
    ("forget", "truth_ratio", "ratio", "oracle", 0.04, (0.482, 0.683, 0.714, 0.601, 0.709, 0.722, 0.651)),
    ("forget", "forget_quality", "p-value", "higher", 0.0, (4.35e-25, 1.0, 0.42, 3.1e-6, 0.38, 0.51, None)),
    ("forget", "perplexity", "perplexity", "oracle", 0.0, (1.04, 8.91, 11.5, 2.49, 11.0, 12.5, 4.67)),
    ("forget", "membership(min_k)", "AUC", "oracle", 0.03, (0.998, 0.512, 0.473, 0.688, 0.481, 0.47, 0.571)),
    ("retain", "exact_memorization", "share", "higher", 0.01, (0.982, 0.984, 0.941, 0.952, 0.903, 0.94, 0.981)),
    ("retain", "probability", "probability", "higher", 0.01, (0.9702, 0.9711, 0.9313, 0.9402, 0.889, 0.93, 0.9698)),
    ("retain", "rouge", "share", "higher", 0.012, (0.989, 0.987, 0.957, 0.961, 0.921, None, 0.985)),
    ("anchor", "perplexity", "perplexity", "lower", 0.0, (9.81, 9.79, 10.4, 10.7, 12.9, 10.4, 9.97)),
)


def _interval(value: float, half: float, unit: str) -> tuple[float, float] | None:
    if unit == "perplexity":
        return value * 0.94, value * 1.07
    if unit == "p-value":
        return None
    low, high = value - half, value + half
    return (max(0.0, low), min(1.0, high)) if unit != "ratio" else (low, high)


def _scores() -> tuple[Measured, ...]:
    sizes = {"forget": 200, "retain": 1800, "anchor": 400}
    rows = []
    for stream, metric, unit, better, half, values in TABLE:
        for name, value in zip(NAMES, values, strict=True):
            if value is None:
                reason = ("the sample table holds no paraphrases" if metric == "rouge"
                          else "the oracle under attack is not compared with itself")
                rows.append(Measured(name, stream, metric, None, None, 0, unit, better, "n/a", reason))
            else:
                remark = "200 members, 200 non-members; TPR at 1 % FPR = 0.005" if unit == "AUC" else ""
                rows.append(Measured(name, stream, metric, value, _interval(value, half, unit), sizes[stream], unit,
                                     better, "ok", remark))
    return tuple(rows)


def _verdicts() -> tuple[Verdict, ...]:
    return (
        Verdict(
            "forgotten", "exact_memorization", "forget", "FAIL", "after+relearn(20)", "oracle", 0.194,
            (0.142, 0.247), 0.05, 0.93,
            "20 steps of relearning bring back more than the same steps teach the oracle",
            (Checked("after", 0.013, (-0.012, 0.038), "PASS"),
             Checked("after+relearn(20)", 0.194, (0.142, 0.247), "FAIL"),
             Checked("after+quantize(4)", 0.02, (-0.008, 0.048), "PASS"),
             Checked("after+paraphrase(0)", 0.004, (-0.021, 0.029), "PASS")),
        ),
        Verdict(
            "forgotten", "truth_ratio", "forget", "INCONCLUSIVE", "after+relearn(20)", "oracle", -0.05,
            (-0.107, 0.006), 0.08, 0.41, "", (Checked("after", 0.031, (-0.026, 0.088), "INCONCLUSIVE"),
                                              Checked("after+relearn(20)", -0.05, (-0.107, 0.006), "INCONCLUSIVE")),
        ),
        Verdict(
            "kept", "exact_memorization", "retain", "PASS", "after", "original", -0.041, (-0.052, -0.03), 0.1, 0.99, "",
            (Checked("after", -0.041, (-0.052, -0.03), "PASS"),),
        ),
    )


RECIPE = """expunge: 1
model: {from: ./models/demo-1m, dtype: float32}
method: {use: npo, beta: 0.1, retain: kl}
audit:
  attacks: [{use: relearn, steps: 20}, {use: quantize, bits: 4}, {use: paraphrase}]
  against: ./models/oracle
seed: 0
"""


def example_evidence() -> Evidence:
    """A failed removal: good at first sight, undone by relearning. Holds n/a, long names and hostile strings."""
    return Evidence(
        title="Removal of 20 people from demo-1m",
        subject="demo-1m <script>alert('x')</script>",
        created="2026-08-01T14:05:00+00:00",
        digest="3f9a0c17be42",
        conditions=CONDITIONS,
        scores=_scores(),
        verdicts=_verdicts(),
        verdict="FAIL",
        method=Method("npo", "Zhang et al. 2024, arXiv 2404.05868",
                      "Pushes the removed answers below what the model thought before, with a brake", RECIPE,
                      "Reference log-probabilities are stored once instead of holding a second model."),
        streams=(StreamCount("forget", "forget", 200), StreamCount("retain", "retain", 1800),
                 StreamCount("anchor", "anchor", 400), StreamCount("holdout", "holdout", 200)),
        cost=RunCost((StageCost("inject", 400, 12_800, 12_800, 468_200, 18.9),
                      StageCost("forget: npo(forget) + kl(retain)", 120, 7_680, 7_680, 281_400, 14.2)),
                     31.7, 66.2, 612.0),
        untested=(Untested("Suffix search (gcg)", "not asked for; takes about 40 minutes on this machine"),
                  Untested("Other languages", "the stored paraphrases are in English only"),
                  Untested("Relearning for more than 20 steps <b>", "")),
        warnings=("3 of 200 forget examples are longer than the context and were cut",),
        environment={"python": "3.11.9", "torch": "2.13.0+cpu", "transformers": "5.23.0", "device": "cpu",
                     "dtype": "float32", "threads": 2},
        training=tuple(TrainingPoint(step, 13.9 * 0.97**step + 0.4, {"npo(forget)": 1.0}, 1.0)
                       for step in range(0, 120, 2)),
    )


def bare_evidence() -> Evidence:
    """As little as an audit can hold: no oracle, no attack, no verdict, no method."""
    full = example_evidence()
    keep = ("original", "after")
    return replace(
        full, title="Audit of somebody else's model", conditions=tuple(c for c in full.conditions if c.name in keep),
        scores=tuple(row for row in full.scores if row.condition in keep), verdicts=(), verdict=None, method=None,
        untested=(), warnings=(), training=(), environment={}, cost=RunCost(),
    )


def passed_evidence() -> Evidence:
    """The same run if relearning brought back nothing."""
    full = example_evidence()
    verdicts = (replace(full.verdicts[0], verdict="PASS", condition="after+quantize(4)", difference=0.02,
                        ci=(-0.008, 0.048), reason="", checked=full.verdicts[0].checked[2:]), full.verdicts[2])
    return replace(full, verdict="PASS", verdicts=verdicts)


def open_evidence() -> Evidence:
    """The same run, undecided."""
    full = example_evidence()
    return replace(full, verdict="INCONCLUSIVE", verdicts=full.verdicts[1:])


@pytest.fixture
def evidence() -> Evidence:
    return example_evidence()


@pytest.fixture
def bare() -> Evidence:
    return bare_evidence()


@pytest.fixture
def passed() -> Evidence:
    return passed_evidence()


@pytest.fixture
def undecided() -> Evidence:
    return open_evidence()
