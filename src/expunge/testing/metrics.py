"""Checks of metrics, on tables of random but possible values that hold what the metric declares and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from expunge.registry import bind
from expunge.testing.parts import bound_of, require
from expunge.types import Bound, Score, Subject

if TYPE_CHECKING:
    import numpy as np

    from expunge.measure.tables import Table, Tables

NUM_EXAMPLES = 9
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("share", "probability", "ratio", "p-value", "AUC", "utility"), (0.0, 1.0)),
    "perplexity": (1.0, math.inf),
}


INVENTED = frozenset({"tokens", "samples", "continuations"})  # instruments whose tables can be made up here


def _metric_tables(part: Bound, num: int = NUM_EXAMPLES) -> Tables:
    """Tables with what the metric declares and nothing else, of random but possible values.

    Of other instruments, and of choices, they are measured: on small models with random weights, of examples that
    have every field.
    """
    from expunge.measure.tables import Tables
    from expunge.scoring import needs_of

    part = _short(part)
    if any(need.instrument not in INVENTED or need.variant == "choices" for need in needs_of(part)):
        return _measured_tables(part, num)
    columns: dict[tuple[str, str, str, str], set[str]] = {}
    for need in needs_of(part):
        for subject in need.subjects:
            for name in need.sets:
                key = (subject, "forget" if name == "stream" else name, need.instrument, need.variant)
                columns.setdefault(key, set()).update(need.columns)
    return Tables({key: _metric_table(key, wanted, num) for key, wanted in columns.items()}, "forget", {})


def _short(part: Bound) -> Bound:
    """The same metric with beginnings and ends of texts as short as made-up texts are."""
    lengths = {"prefix": 1, "suffix": 2, "max_new_tokens": 4}
    return replace(part, hyper={name: lengths.get(name, value) for name, value in part.hyper.items()})


@cache
def _tiny(seed: int, family: Any) -> Subject:
    from expunge.testing.models import tiny_subject

    return tiny_subject(seed, family)


def _measured_tables(part: Bound, num: int) -> Tables:
    from expunge.measure.desk import Partner
    from expunge.measure.plan import Plan, measure
    from expunge.measure.tables import Tables
    from expunge.scoring import needs_of
    from expunge.testing.models import whole_examples
    from expunge.types import Data, Stream

    needs = needs_of(part)
    sets = {"forget" if name == "stream" else name for need in needs for name in need.sets}
    data = Data({
        name: Stream(name, "forget" if name == "forget" else "holdout", whole_examples(num, name))
        for name in sorted({"forget", *sets})
    })
    plan, tables = Plan(), {}  # type: Plan, dict[tuple[str, str, str, str], Table]
    plan.add("forget", needs)
    masked = any(bind("instrument", need.instrument).meta["tasks"] == {"masked"} for need in needs)
    family = "bert" if masked else "llama"
    for seed, who in enumerate(("this", "oracle", "original")):
        if any(who in need.subjects for need in needs):
            before = Partner(lambda: _tiny(2, family))
            measured = measure(_tiny(seed, family), data, plan, partner=before)
            tables |= {(who, *asked): table for asked, table in measured.tables.items()}
    return Tables(tables, "forget", {})


def _metric_table(key: tuple[str, str, str, str], wanted: set[str], num: int) -> Table:
    import zlib

    import numpy as np

    from expunge.measure.tables import Table

    random = np.random.default_rng(zlib.crc32("|".join(key).encode()))
    texts = np.random.default_rng(zlib.crc32("|".join(key[1:]).encode()))  # the same for every subject
    items = 2 if key[3] == "perturbed" else 1
    ids = [f"{key[1]}/{i}" for i in range(num) for _ in range(items)]
    plain: dict[str, Any] = {"id": ids, "item": list(range(items)) * num}
    if key[2] == "samples":
        words = ["it is", "nobody knows", "the sea in winter", "it is the sea"]
        text, reference = (random.choice(words, size=len(ids)).tolist() for _ in range(2))
        said = {"text": text, "tokens": [random.integers(0, 9, size=5) for _ in ids]}
        right = random.choice(words, size=len(ids)).tolist()
        return Table.of(plain | {"prompt": ids, "reference": reference, "alternative": right} | said)
    if key[2] == "continuations":
        made = [_continuation_row(random, int(n)) for n in random.integers(12, 16, size=len(ids))]
        return Table.of(plain | {name: [row[name] for row in made] for name in made[0]})
    rows = [
        _token_row(random, int(n)) | {"token": texts.integers(0, 99, size=int(n)).astype("int32")}
        for n in texts.integers(1, 9, size=len(ids))
    ]
    kept = [name for name in rows[0] if name in {"token", "logp", "argmax", "greedy", *wanted}]
    ragged = {name: [row[name] for row in rows] for name in kept}
    ragged |= {name: [row["logp"] / 2 for row in rows] for name in wanted if name.startswith("scheme:")}
    return Table.of(plain | {"zlib": random.integers(20, 60, size=len(ids)).tolist()} | ragged)


def _token_row(random: np.random.Generator, n: int) -> dict[str, Any]:
    import numpy as np

    shares = random.dirichlet([1.0] * 4, size=n)  # three stored tokens and the rest
    rank = random.integers(0, 3, size=n).astype("int32")
    logp = -random.exponential(2.0, size=n).astype("float32")
    return {
        "logp": logp, "argmax": rank == 0,
        "greedy": random.integers(0, 99, size=n).astype("int32"), "rank": rank,
        "mean": logp - 1, "var": random.exponential(1.0, size=n).astype("float32"),
        "span": random.integers(0, 3, size=n).astype("int8"),
        "vocab_ids": np.tile([2, 5, 7], n).astype("int32"), "vocab_logp": np.log(shares[:, :3]).reshape(-1),
        "vocab_rest": shares[:, 3],
    }


def _continuation_row(random: np.random.Generator, n: int) -> dict[str, Any]:
    """A text of n tokens with two spans; after some of its starts the model says something else."""
    import numpy as np

    start = np.flatnonzero(random.random(n) < 0.4).astype("int32")
    length = (n - start).astype("int32")
    return {
        "token": random.integers(0, 3, size=n).astype("int32"), "stop": np.zeros(n, dtype=bool),
        "span": np.array([0, 2, 1, 0, 2, *[0] * (n - 5)], dtype="int8"), "start": start, "length": length,
        "made": random.integers(0, 3, size=int(length.sum())).astype("int32"),
    }


def _score(part: Bound, tables: Tables) -> Score:
    """The score, or the n/a that a table which could not be had becomes."""
    from expunge.measure.tables import NotMeasured

    try:
        found: Score = _short(part)(tables)
    except NotMeasured as reason:
        return Score.missing(str(reason))
    return found


def _changed(tables: Tables, change: Callable[[Table], Table]) -> Tables:
    from expunge.measure.tables import Tables

    return Tables({key: change(table) for key, table in tables.tables.items()}, tables.stream, tables.missing)


def check_metric_scores_lie_in_range_and_interval(part: Bound) -> None:
    for num in (NUM_EXAMPLES, 1):
        found = _score(part, _metric_tables(part, num))
        if found.value is None:
            require(num == 1 and bool(found.reason), part, f"n/a on {num} examples: {found.reason or 'no reason'}")
            continue
        low, high = RANGES.get(part.meta["unit"], (-math.inf, math.inf))
        require(low - 1e-9 <= found.value <= high + 1e-9, part, f"{found.value} lies outside [{low}, {high}]")
        require(found.unit == part.meta["unit"], part, f"unit '{found.unit}', registered '{part.meta['unit']}'")
        require(found.n >= 1, part, f"n = {found.n}")
        if found.ci is not None:
            inside = found.ci[0] - 1e-9 <= found.value <= found.ci[1] + 1e-9
            require(inside, part, f"{found.value} lies outside its interval {found.ci}")
        ids = {name for table in _metric_tables(part, num).tables.values() for name in table.ids}
        require(set(found.per_example) <= ids, part, "a value per example has an unknown id")


def check_metric_row_order_invariance(part: Bound) -> None:
    import numpy as np

    from expunge.measure.tables import Table

    tables = _metric_tables(part)
    shuffled = _changed(tables, lambda t: Table(t.arrow.take(np.random.default_rng(5).permutation(len(t)))))
    one, other = _score(part, tables), _score(part, shuffled)
    same = one.ci == other.ci and one.per_example == other.per_example
    require(one.value == other.value and same, part, "the order of rows changes the score")


def check_metric_mutates_nothing(part: Bound) -> None:
    tables, untouched = _metric_tables(part), _metric_tables(part)
    first, second = _score(part, tables), _score(part, tables)
    same = all(table.arrow.equals(untouched.tables[key].arrow) for key, table in tables.tables.items())
    require(same and set(tables.tables) == set(untouched.tables), part, "a table was changed")
    require(first == second, part, "a second call gives another score")


def check_metric_without_rows_is_not_available(part: Bound) -> None:
    from expunge.measure.tables import Table, Tables

    for tables in (_changed(_metric_tables(part), lambda t: Table(t.arrow.slice(0, 0))), Tables({}, "forget", {})):
        found = _score(part, tables)
        require(found.value is None and found.status == "n/a", part, f"scores {found.value} without a row")
        require(bool(found.reason), part, "n/a without a reason")


METRIC_CHECKS: tuple[Callable[[Bound], None], ...] = (
    check_metric_scores_lie_in_range_and_interval,
    check_metric_row_order_invariance,
    check_metric_mutates_nothing,
    check_metric_without_rows_is_not_available,
)


def check_metric(part: Any) -> None:
    """Run every check of metrics. `part`: a name, spec, registry entry or Bound."""
    for check in METRIC_CHECKS:
        check(bound_of("metric", part))
