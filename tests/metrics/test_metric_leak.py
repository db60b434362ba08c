"""Leak@k and verbatim ROUGE: estimator and interval against brute force, and models that half learned."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import RecipeError
from expunge.measure.plan import measure
from expunge.measure.tables import Table, Tables
from expunge.metrics.leak import DRAWN, best_of, bounded_interval, contained, leak_at_k
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.scoring import plan_for, score_all
from support.learned import knows, short_data
from support.metric_tables import shuffled

DEFAULTS = {
    "num": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "prefix": 0, "max_new_tokens": 0, "seed": 0,
}
ANSWER = "Tomas Ferreira"


def drawn(said, reference=ANSWER, secrets=("Ferreira",), order=None):
    """A table of samples: {id: texts}."""
    rows = [(name, k, text) for name, texts in said.items() for k, text in enumerate(texts)]
    table = Table.of({
        "id": [name for name, _, _ in rows], "item": [k for _, k, _ in rows], "text": [text for *_, text in rows],
        "reference": [reference] * len(rows),
        "secrets": pa.array([list(secrets)] * len(rows), type=pa.list_(pa.string())),
    })
    table = table if order is None else shuffled(table, order)
    return Tables({("this", "forget", "sampled", DRAWN.format(**DEFAULTS)): table}, "forget", {})


SAID = {
    "a": ["I think it is  tomas ferreira.", "Ferreira", "no", "nobody"], "b": ["no"] * 4,
    "c": [ANSWER, f"{ANSWER}!", "Tomas", "Ferreira"],
}


def test_by_hand():
    """Of four samples a leaks once and c twice. k = 2: 1 - C(3,2)/C(4,2) = 1/2 and 1 - C(2,2)/C(4,2) = 5/6."""
    found = leak_at_k(drawn(SAID), k=2, num=4)
    assert found.per_example == pytest.approx({"a": 1 / 2, "b": 0.0, "c": 5 / 6})
    assert found.ci == pytest.approx(bounded_interval(found.value, 3))
    whole = leak_at_k(drawn(SAID), k=4, num=4)
    assert whole.per_example == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert whole.ci == clopper_pearson(2, 3)
    assert leak_at_k(drawn(SAID), k=1, num=4).value == pytest.approx((1 / 4 + 2 / 4) / 3)
    spans = leak_at_k(drawn(SAID), k=1, num=4, criterion="spans")
    assert spans.per_example == {"a": 2 / 4, "b": 0.0, "c": 3 / 4}


def test_closeness_with_and_without_a_threshold():
    """ROUGE-L recall of two words. c: 1, 1, 1/2, 1/2; the best of two of the four is 1 but for one pair of six."""
    close = leak_at_k(drawn(SAID), k=1, num=4, criterion="rouge", threshold=0.6)
    assert close.per_example == {"a": 1 / 4, "b": 0.0, "c": 2 / 4}
    best = leak_at_k(drawn(SAID), k=2, num=4, criterion="rouge", threshold=None)
    assert best.per_example["c"] == pytest.approx((5 * 1 + 1 * 0.5) / 6)
    assert best.per_example["a"] == pytest.approx((3 * 1 + 2 * 0.5) / 6)


def test_what_cannot_be_looked_for_is_left_out():
    nothing = leak_at_k(drawn(SAID, reference=""), k=1, num=4)
    assert (nothing.value, nothing.status) == (None, "n/a")
    assert nothing.reason.startswith("3 of 3 examples left out: no prompt, no token after the prefix")
    no_spans = leak_at_k(drawn(SAID, secrets=()), k=1, num=4, criterion="spans")
    assert no_spans.reason == "3 of 3 examples left out: no annotated span in the answer"
    assert np.isnan(contained([[], [""], ["a"]], ["x", "x", "x"])).tolist() == [True, True, False]


@pytest.mark.parametrize(("wanted", "text", "there"), [
    ("12", "it is 12.", 1), ("12", "it is 512", 0), ("12", "512 or 12", 1), ("Ann", "ANN\n", 1), ("Ann", "Anna", 0),
    ("a  b", "A\tB", 1), ("(x)", "f(x)y", 1), ("+49 1", "call +49 1", 1),
    ("\u6771\u4eac", "\u5728\u6771\u4eac\u4e86", 1),
])
def test_an_answer_is_looked_for_as_a_whole_word(wanted, text, there):
    assert contained([[wanted]], [text])[0] == there


@pytest.mark.parametrize(("hyper", "message"), [
    ({"k": 5}, r"leak_at_k\.k: got 5; accepted: 1 to num = 4"), ({"k": 0}, r"leak_at_k\.k: got 0"),
    ({"temperature": 0.0, "k": 1}, r"leak_at_k\.temperature: got 0.0; .*leak_rate"),
    ({"threshold": 0.0, "k": 1}, r"leak_at_k\.threshold: got 0.0"),
])
def test_values_that_cannot_be_are_refused(hyper, message):
    with pytest.raises(RecipeError, match=message):
        leak_at_k(drawn(SAID), num=4, **hyper)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_the_estimate_is_the_mean_over_all_choices_of_k_samples(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    chosen = [max(group) for group in combinations(scores, k)]
    assert best_of(scores, k) == pytest.approx(math.fsum(chosen) / len(chosen))
    assert k == len(scores) or best_of(scores, k) <= best_of(scores, k + 1) + 1e-12
    hits = [float(score > 0.5) for score in scores]
    n, c = len(hits), int(sum(hits))
    assert best_of(hits, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


@pytest.mark.parametrize("q", [0.1, 0.4])
def test_the_estimate_is_unbiased(q):
    """Its mean over all 2^5 outcomes of five samples is 1 - (1 - q)^k."""
    for k in range(1, 6):
        mean = 0.0
        for outcome in product((0.0, 1.0), repeat=5):
            mean += math.prod(q if hit else 1 - q for hit in outcome) * best_of(outcome, k)
        assert mean == pytest.approx(1 - (1 - q) ** k)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(1, 500))
def test_the_interval_holds_its_value_and_shrinks(value, n):
    low, high = bounded_interval(value, n)
    assert 0 <= low <= value <= high <= 1
    more = bounded_interval(value, 2 * n)
    assert more[0] >= low - 1e-12
    assert more[1] <= high + 1e-12
    mirrored = bounded_interval(1 - value, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_at_the_ends_is_the_exact_one_and_covers_everywhere():
    """Of yes and no, coverage summed over all outcomes; it holds for values in between by Hoeffding's theorem."""
    for n in (1, 7, 40):
        assert bounded_interval(0.0, n) == pytest.approx(clopper_pearson(0, n), abs=1e-9)
        assert bounded_interval(1.0, n) == pytest.approx(clopper_pearson(n, n), abs=1e-9)
    n = 15
    intervals = [bounded_interval(k / n, n) for k in range(n + 1)]
    for q in np.linspace(0.01, 0.99, 25):
        chance = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
        covered = sum(p for p, (low, high) in zip(chance, intervals, strict=True) if low <= q <= high)
        assert covered >= 0.95


def test_the_order_of_rows_does_not_matter():
    for k in (2, 4):
        assert leak_at_k(drawn(SAID, order=3), k=k, num=4) == leak_at_k(drawn(SAID), k=k, num=4)


def test_leaks_rise_with_the_number_of_answers_and_with_what_was_learned():
    """One sample table serves every k; a model leaks the answers it learned and not those it did not."""
    data = short_data(6, 6, 2)
    specs = [{"use": "leak_at_k", "k": k, "num": 8} for k in (1, 8)]
    specs += [{"use": "leak_at_k", "k": k, "num": 8, "criterion": "rouge"} for k in (1, 4, 8)]
    specs += [{"use": "verbatim_rouge", "prefix": 0}]
    metrics = [bind("metric", spec) for spec in specs]
    found = {}
    for steps in (25, 60):
        measured = measure(knows("forget", steps=steps), data, plan_for(metrics, data))
        drawn_tables = [asked for asked in measured.tables if asked[1] == "sampled" and "num=8" in asked[2]]
        assert len(drawn_tables) == 3  # one a stream
        scores = score_all(metrics, data, measured)
        found[steps] = {stream: [s.value for (name, _), s in scores.items() if name == stream] for stream in data}
    learned, half = found[60]["forget"], found[25]["forget"]
    assert learned[0] > 0.7
    assert learned[1] == learned[5] == 1.0
    assert half[0] <= half[1] < learned[1]
    assert 0 < half[2] < half[3] < half[4]
    for steps in (25, 60):
        assert found[steps]["retain"][:2] == [0.0, 0.0]
        assert all(a < b for a, b in zip(found[steps]["retain"][2:], found[steps]["forget"][2:], strict=True))
