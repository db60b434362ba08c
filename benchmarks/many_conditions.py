"""What a verdict over many conditions says: the chance of one FAIL among them, and of a PASS in all.

    python benchmarks/many_conditions.py [--repeats 4000]

40 conditions of one audit ask the same examples, so their differences are correlated. Every condition has the same true
difference (SD over examples 0.3, margin 0.1) and is judged as one under an attack is: FAIL where its 90 % interval
(Student's) lies wholly above the margin, PASS where it lies wholly below. Prints a Markdown table; takes seconds.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import special

CONDITIONS, SD, MARGIN, LEVEL = 40, 0.3, 0.1, 0.95
CORRELATIONS = (0.0, 0.5, 0.9)
FAILS = ((40, 0.0), (40, 0.05), (40, 0.08))  # examples, true difference
PASSES = ((40, 0.0), (80, 0.0), (400, 0.0))

Array = np.ndarray


def intervals(num: int, correlation: float, repeats: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Ends of the 90 % intervals of mean differences whose truth is 0, each [repeats, conditions]."""
    low, high = np.empty((2, repeats, CONDITIONS))
    reach = special.stdtrit(num - 1, LEVEL) / num**0.5
    for one in range(repeats):
        shared = rng.standard_normal((num, 1), dtype=np.float32)
        own = rng.standard_normal((num, CONDITIONS), dtype=np.float32)
        values = SD * (correlation**0.5 * shared + (1 - correlation) ** 0.5 * own)
        mean, spread = values.mean(0), values.std(0, ddof=1)
        low[one], high[one] = mean - reach * spread, mean + reach * spread
    return low, high


def rows(repeats: int, seed: int = 0) -> list[tuple[str, list[tuple[float, float]]]]:
    """What is counted, and per correlation the share in a single condition and over all of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for correlation in CORRELATIONS:
        rng = np.random.default_rng(seed)
        made = {num: intervals(num, correlation, repeats, rng) for num in sorted({n for n, _ in FAILS + PASSES})}
        for num, truth in FAILS:
            fails = made[num][0] + truth > MARGIN
            told = f"any FAIL, {num} examples, true difference {truth:g}"
            found.setdefault(told, []).append((fails.mean(), fails.any(1).mean()))
        for num, truth in PASSES:
            passes = made[num][1] + truth < MARGIN
            told = f"all PASS, {num} examples, true difference {truth:g}"
            found.setdefault(told, []).append((passes.mean(), passes.all(1).mean()))
    return list(found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4000)
    found = rows(parser.parse_args().repeats)
    heads = [f"{CONDITIONS} conditions, correlation {correlation:g}" for correlation in CORRELATIONS]
    print("| chance of | one condition |", " | ".join(heads), "|")
    print("| --- |", " | ".join(["--:"] * (1 + len(heads))), "|")
    for told, shares in found:
        alone = sum(one for one, _ in shares) / len(shares)
        print(f"| {told} | {alone:.1%} |", " | ".join(f"{every:.1%}" for _, every in shares), "|")


if __name__ == "__main__":
    main()
