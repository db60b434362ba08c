"""A metric in one function: it reads a measured table and needs no model.

    python examples/new_metric.py
"""

from __future__ import annotations

from expunge import Example, metric
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id, ragged
from expunge.metrics.stats import mean_score
from expunge.registry import bind
from expunge.scoring import score
from expunge.testing import tiny_subject
from expunge.types import Data, Needs, Score, Stream


# [metric]
@metric("first_token", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=("forget", "retain"))
def first_token(tables: Tables) -> Score:
    """The share of answers whose first token is the greedy one: does the model still start to tell?"""
    column = ragged(tables.get("tokens"), "argmax")
    starts = column.position == 0
    return mean_score(by_id(column.ids, column.values[starts]), "share", "lower", binary=True)
# [/metric]


def main() -> None:
    rows = tuple(Example(f"f/{i}", f"Who is person {i}?", f"It is number {i * 7}.") for i in range(8))
    data = Data(forget=Stream("forget", "forget", rows))
    wanted = bind("metric", "first_token")
    plan = Plan()
    plan.add("forget", wanted.meta["needs"])
    found = score(wanted, "forget", measure(tiny_subject(), data, plan))
    print(f"first_token on forget: {found.value} with 95 % interval {found.ci}, n = {found.n}")


if __name__ == "__main__":
    main()
