"""A realistic piece of evidence: what an audit of NPO with two attacks and an oracle would write."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from expunge.report.schema import (
    Change,
    Checked,
    Condition,
    ConditionCost,
    Evidence,
    Measured,
    Method,
    Reached,
    Recovery,
    ResidueGap,
    ResidueGrid,
    ResidueMap,
    RunCost,
    Saving,
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
        changes=(Change("after+relearn(20)", "after", "forget", "exact_memorization", 0.278, n=160),),
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


FAMILIES = (
    ("relearn", tuple(f"relearn(steps={steps})" for steps in (5, 10, 20, 40, 80)), "steps of relearning on 20% of it"),
    ("relearn", ("relearn(on=retain)",), "20 steps of relearning on what was kept"),
    ("quantize", ("quantize(bits=8)", "quantize"), "rounding to 8 or 4 bits"),
    ("gcg", ("gcg", "gcg[1]", "gcg[2]"), "a searched suffix"),
    ("prefill", ("prefill",), "the answer begun for it"),
    ("jailbreak", ("jailbreak", "jailbreak(form=role_play)", "jailbreak(form=reverse)"), "asked in disguise"),
    ("sampling", ("sampling(num=10)", "sampling(num=100)"), "the best of many answers"),
    ("prune", ("prune(share=0.05)", "prune(share=0.1)"), "small weights set to zero"),
    ("orthogonalize", ("orthogonalize",), "a direction taken out"),
    ("noise", ("noise(scale=0.01)", "noise(scale=0.1)"), "noise on all weights"),
    ("relearn+quantize", ("relearn(steps=20)+quantize",), "20 steps of relearning, then rounding to 4 bits"),
    ("soft_prompt", ("soft_prompt",), "a learned prefix"),
    ("multi_turn", ("multi_turn",), "a talk of three turns"),
)
REFUSED = {"prefill": "the tokenizer has no chat template", "multi_turn": "the tokenizer has no chat template"}
MANY = tuple(f"measure_{number}" for number in range(1, 15))


def _attacked(name: str, label: str, attack: str, of: str) -> Condition:
    steps = int(found.group(1)) if (found := re.search(r"steps=(\d+)", name)) else 20
    queries = 500 * (1 + int(name[-2])) if name.startswith("gcg[") else 500
    cost = {"gcg": ConditionCost(queries=queries, seconds=9.0), "relearn": ConditionCost(steps=steps, seconds=3.0)}
    base = {"after": "After the removal", "oracle": "Oracle: never saw the data"}[of]
    shown = f"{base}, then {steps} {label}" if label.startswith("steps") else f"{base}, then {label}: {name}"
    return Condition(f"{of}+{name}", "attack", of, attack, shown, cost.get(attack, ConditionCost(queries=120)))


def _curve(metric: str, unit: str, shift: float) -> Recovery:
    def line(of: str, start: float, speed: float) -> tuple[Reached, ...]:
        found = []
        for steps in (0, 5, 10, 20, 40, 80):
            value = min(0.97, start + shift + speed * steps)
            name = of if steps == 0 else f"{of}+relearn(steps={steps})"
            found.append(Reached(float(steps), value, (value - 0.04, value + 0.04), name))
        return tuple(found)

    after = line("after", 0.05, 0.012)
    savings = tuple(Saving(point.budget, point.value, 3.2 - point.budget / 80, (2.1, 4.4 if point.budget < 40 else
                    float("inf")), point.budget > 20) for point in after[1:])
    return Recovery("relearn", "forget", metric, "steps", after, line("oracle", 0.04, 0.004), savings, unit, 160, 16)


def _layers() -> ResidueMap:
    def grid(name: str, height: float) -> ResidueGrid:
        return ResidueGrid(name, tuple(tuple(-9.0 + height * layer / 7 + 0.1 * place for place in range(12))
                                       for layer in range(8)))

    gaps = tuple(ResidueGap(layer, 0.06 * layer, (0.04 * layer - 0.1, 0.08 * layer + 0.1)) for layer in range(8))
    return ResidueMap("forget", tuple(range(200, 80, -10)),
                      (grid("original", 7.8), grid("after", 5.5), grid("oracle", 4.0)), "oracle", gaps, 200, 20)


def large_evidence() -> Evidence:
    """Twenty-five attacks, some of which did not fit, twenty measures, curves and layers."""
    full = example_evidence()
    named = [(attack, name, label) for attack, names, label in FAMILIES for name in names]
    more = tuple(_attacked(name, label, attack, of) for of in ("after", "oracle") for attack, name, label in named)
    more = tuple(row for row in more if not (row.of == "oracle" and row.suffix in REFUSED))
    plain = tuple(row for row in full.conditions if row.kind != "attack")
    wanted = [(stream, metric, unit, better, half) for stream, metric, unit, better, half, _ in TABLE]
    wanted += [("forget", metric, "share", "lower", 0.03) for metric in MANY]
    level = {"original": 0.97, "oracle": 0.05, "after": 0.07}
    rows = []
    for number, condition in enumerate(plain + more):
        for place, (stream, metric, unit, better, half) in enumerate(wanted):
            if condition.suffix in REFUSED:
                rows.append(Measured(condition.name, stream, metric, None, None, 0, unit, better, "n/a",
                                     REFUSED[condition.suffix]))
                continue
            if metric == "rouge" and number % 5 == 4:
                rows.append(Measured(condition.name, stream, metric, None, None, 0, unit, better, "n/a",
                                     f"{condition.attack} leaves nothing to ask <b>"))
                continue
            if metric == "measure_14":
                rows.append(Measured(condition.name, stream, metric, None, None, 0, unit, better, "n/a", "no spans"))
                continue
            drift = 0.0 if condition.of != "after" else ((7 * number + 3 * place) % 23) / 60
            value = 0.9 if stream != "forget" else min(0.98, level.get(condition.name, 0.06) + drift)
            value = 4.0 + value if unit == "perplexity" else value
            rows.append(Measured(condition.name, stream, metric, value, (value - half, value + half), 200, unit, better,
                                 groups=20))
    judged = ("exact_memorization", "probability", "extraction_strength", "rouge", "membership(min_k)", "truth_ratio")
    return replace(
        full, conditions=plain + more, scores=tuple(rows), verdicts=_judged(rows, judged), changes=(),
        recoveries=tuple(_curve(metric, "share", place / 50) for place, metric in enumerate(judged[:4])),
        residue=(_layers(),),
        untested=(*full.untested, *(Untested(f"attack_{n}", "available, not asked for") for n in range(9))),
    )


def _judged(rows: list[Measured], judged: tuple[str, ...]) -> tuple[Verdict, ...]:
    known = {(row.condition, row.metric): row for row in rows if row.stream == "forget"}
    found = []
    for metric in judged:
        checks = []
        for (condition, name), row in known.items():
            if name != metric or not condition.startswith("after") or row.reason.startswith("the tok"):
                continue
            twin = known.get((condition.replace("after", "oracle", 1), metric))
            if row.value is None or twin is None or twin.value is None:
                checks.append(Checked(condition))
                continue
            gap = row.value - twin.value
            verdict = "PASS" if abs(gap) < 0.06 else "FAIL" if abs(gap) > 0.14 else "INCONCLUSIVE"
            checks.append(Checked(condition, gap, (gap - 0.04, gap + 0.04), verdict, 200, 20))
        worst = max(checks, key=lambda one: abs(one.difference or 0.0))
        found.append(Verdict("forgotten", metric, "forget", worst.verdict, worst.condition, "oracle", worst.difference,
                             worst.ci, 0.1, 0.9, "", tuple(checks)))
    return tuple(found)


@pytest.fixture(scope="session")
def large() -> Evidence:
    return large_evidence()


@pytest.fixture(scope="session")
def large_page(large: Evidence) -> str:
    from expunge.report import html

    return html.render(large)


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
