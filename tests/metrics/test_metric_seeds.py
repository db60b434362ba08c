"""Several runs together: closed forms, what must not be mixed, and whether the intervals hold what they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.metrics.seeds import over_seeds, pool, with_examples
from expunge.report.schema import Checked, Condition, Evidence, Measured, Method, StreamCount, Verdict


def evidence(seed: int, *values: float | None, verdict="PASS", lr=1e-3, ci=0.1, unit="share", groups=None) -> Evidence:
    rows = tuple(
        Measured("after", "forget", f"m{i}", value, None if value is None or ci is None else (value - ci, value + ci),
                 40, unit, "lower", "n/a" if value is None else "ok", "" if value is not None else "no table", groups)
        for i, value in enumerate(values)
    )
    claim = Verdict("forgotten", "m0", "forget", verdict, checked=(Checked("after", 0.0, None, verdict),))
    recipe = f"# expunge recipe\nexpunge: 1\nmethod: {{use: npo, lr: {lr}}}\nseed: {seed}\n"
    return Evidence(
        "Removal", "model", "now", f"{seed:012d}", (Condition("after", "after"),), rows, (claim,), verdict,
        Method("npo", recipe=recipe), (StreamCount("forget", "forget", 40),),
    )


def runs(*found: Evidence) -> list[tuple[str, Evidence]]:
    return [(f"runs/{number}", one) for number, one in enumerate(found)]


def test_over_seeds_by_hand():
    """1, 2, 3: mean 2, SD 1, t(.975, 2) = 4.302653, half width 4.302653 / sqrt(3)."""
    mean, sd, interval = over_seeds([1.0, 2.0, 3.0])
    assert (mean, sd) == (2.0, 1.0)
    assert interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert over_seeds([0.7]) == (0.7, None, None)


def test_both_errors_add_side_by_side():
    """Reach over seeds 3 both ways; over examples 4 down and on average 0 up: 5 down, 3 up."""
    assert with_examples(10.0, (7.0, 13.0), [10.0, 10.0], [(6.0, 10.0), (6.0, 10.0)]) == pytest.approx((5.0, 13.0))
    assert with_examples(1.0, (1.0, 1.0), [1.0, 1.0], [(0.5, 1.2), (0.5, 1.2)]) == pytest.approx((0.5, 1.2))


def test_pool_counts_runs_seeds_and_verdicts():
    found = pool(runs(evidence(1, 0.2, None), evidence(2, 0.3, 0.5, verdict="FAIL"), evidence(3, 0.4, None)))
    first, second = found.scores
    assert (first.runs, first.n, first.groups) == (3, 40, None)
    assert (first.mean, first.sd) == pytest.approx((0.3, 0.1))
    assert first.total[0] < first.over_runs[0] < first.over_runs[1] < first.total[1]
    assert (second.runs, second.mean, second.sd, second.over_runs, second.total) == (1, 0.5, None, None, None)
    assert found.seeds == (1, 2, 3)
    assert found.verdict == "FAIL"
    (claim,) = found.claims
    assert (claim.worst, claim.outcomes) == ("FAIL", {"PASS": 2, "INCONCLUSIVE": 0, "FAIL": 1})
    assert found.warnings == ()


def test_what_has_no_interval_gets_none():
    """p-values have a median; a score without interval has none over examples; n/a everywhere tells why; a share stays
    between 0 and 1."""
    found = pool(runs(evidence(1, 0.2, unit="p-value"), evidence(2, 0.9, unit="p-value")))
    assert (found.scores[0].mean, found.scores[0].over_runs) == (pytest.approx(0.55), None)
    found = pool(runs(evidence(1, 0.2, ci=None), evidence(2, 0.3, ci=None)))
    assert found.scores[0].over_runs is not None
    assert found.scores[0].total is None
    found = pool(runs(evidence(1, None), evidence(2, None)))
    assert (found.scores[0].mean, found.scores[0].reason) == (None, "no table")
    found = pool(runs(evidence(1, 0.01, groups=4), evidence(2, 0.99, groups=5)))
    assert found.scores[0].total == (0.0, 1.0)
    assert found.scores[0].groups == 4
    found = pool(runs(evidence(1, 1.2, unit="ratio"), evidence(2, 1.6, unit="ratio")))
    low, high = found.scores[0].over_runs  # a ratio may be above 1: 1.4 +- t(1) 0.2
    assert (low + high) / 2 == pytest.approx(1.4)
    found = pool(runs(evidence(1, math.inf, 1.0, unit="nats"), evidence(2, 2.0, 3.0, unit="nats")))
    assert (found.scores[0].runs, found.scores[0].mean) == (1, 2.0)


def test_runs_that_are_no_repetition_are_told():
    with pytest.raises(DataError, match=r"runs/1: the same recipe and seed as runs/0.*--set seed"):
        pool(runs(evidence(1, 0.2), evidence(1, 0.2)))
    found = pool(runs(evidence(1, 0.2), evidence(2, 0.2, lr=1e-4)))
    assert found.warnings == ("the recipes differ in more than the seed: method.lr",)
    other = replace(evidence(2, 0.2), streams=(StreamCount("forget", "forget", 39),))
    assert "not of the same size" in pool(runs(evidence(1, 0.2), other)).warnings[0]
    other = replace(evidence(2, 0.2), conditions=(Condition("after", "after"), Condition("oracle", "oracle")))
    assert "same conditions" in pool(runs(evidence(1, 0.2), other)).warnings[0]


def test_simulated_coverage_over_seeds_and_examples():
    """500 worlds: 5 seeds with SD 0.03 on the same 60 examples with SD 0.3 (se 0.039). The total interval holds the
    true mean in 95 % or more; the one over seeds alone, which sees one set of examples, does not."""
    rng, alone, total = np.random.default_rng(0), 0, 0
    for _ in range(500):
        examples = rng.normal(0.5, 0.3, 60)
        values, spans = [], []
        for seed in rng.normal(0, 0.03, 5):
            sample = examples + seed + rng.normal(0, 0.1, 60)
            reach = 2.0 * sample.std(ddof=1) / math.sqrt(60)
            values.append(float(sample.mean()))
            spans.append((values[-1] - reach, values[-1] + reach))
        mean, _, over_runs = over_seeds(values)
        low, high = with_examples(mean, over_runs, values, spans)
        alone += over_runs[0] <= 0.5 <= over_runs[1]
        total += low <= 0.5 <= high
    assert total / 500 >= 0.94
    assert alone / 500 <= 0.85
