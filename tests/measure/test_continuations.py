"""Continuations: with the greedy identity they are those of a loop over every start, at a fraction of the runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.tokenise import encode, texts_of
from expunge.measure.continuations import measure_continuations
from expunge.measure.plan import Plan, measure
from expunge.measure.samples import stop_tokens
from expunge.measure.spans import span_codes, spans_of
from expunge.measure.tables import Table, Tables
from expunge.measure.tokens import measure_tokens
from expunge.metrics.extraction_likelihood import continued, extraction_likelihood
from expunge.metrics.memorization import memorization_accuracy
from expunge.models import clone
from expunge.testing import tiny_subject
from expunge.types import Data, Event, Example, Needs, Stream
from support.bigram import bigram
from support.bigram import encoded as tokens_of
from support.learned import knows, short_data, taught


def plain(num: int = 5) -> Stream:
    """Texts without a prompt, of different length, two spans each."""
    made = []
    for i in range(num):
        text = f"The phone of Mara {i} is 555-0{i}42, so people say" + " in winter by the sea" * (i % 3)
        made.append(Example(f"t/{i}", "", text, spans=((13, 17), (text.index("555"), text.index("555") + 8))))
    return Stream("forget", "forget", tuple(made))


def measured(subject, stream, columns=("all",)):
    encoded = encode(subject, texts_of(stream))
    greedy = [row["greedy"] for row in measure_tokens(subject, encoded, ())]
    table, ran = measure_continuations(subject, encoded, greedy, columns)
    return encoded, continued(Table.of(table)), ran


def obvious(subject, prefix, limit, stops):
    """One forward over everything for every token; the token that ends it is kept."""
    said = []
    with torch.no_grad():
        while len(said) < limit and (not said or said[-1] not in stops):
            ids = torch.tensor([[*prefix, *said]])
            said.append(int(subject.model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return said


SUBJECTS = {
    "llama-random": lambda: tiny_subject(seed=2),
    "gpt2-random": lambda: tiny_subject(seed=2, family="gpt2"),
    "learned": lambda: knows("forget"),
    "half-learned": lambda: knows("forget", steps=25),
}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("kind", ["plain", "prompted"])
def test_every_start_is_continued_as_an_obvious_loop_does(name, kind):
    subject = SUBJECTS[name]()
    few = (Example("a", "", "Mara is 555-01"), Example("b", "", "Who says: the sea?"))
    stream = replace(plain(1), examples=few if kind == "plain" else short_data()["forget"].examples[:4])
    encoded, rows, ran = measured(subject, stream)
    stops = stop_tokens(subject, encoded)
    starts = 0
    for one, (_, row) in zip(encoded, rows, strict=True):
        places = np.flatnonzero(one.counted[1:]) + 1
        assert row.tokens.tolist() == one.tokens[places].tolist()
        starts += len(places)
        for k, place in enumerate(places):
            expected = obvious(subject, one.tokens[:place].tolist(), len(places) - k, stops)
            assert row.after(k).tolist() == expected, (k, place)
    assert ran <= sum(len(row.runs) for _, row in rows) <= starts
    assert (ran == 0) is (name == "learned" and kind == "prompted")


def test_a_model_that_learned_is_hardly_run():
    """Three texts known by heart up to a few tokens: as many generations as wrong tokens, of 150 starts."""
    subject = taught(tiny_subject(seed=2), Data(forget=plain(3)), ["forget"], steps=40)
    encoded, rows, ran = measured(subject, plain(3))
    wrong = sum(len(row.runs) for _, row in rows)
    starts = sum(len(one) - 1 for one in encoded)
    assert 0 < ran <= wrong < 0.2 * starts


def test_spans_alone_are_run_once_each_and_no_further_than_they_reach():
    subject = tiny_subject(seed=2)
    encoded, rows, ran = measured(subject, plain(3), ("span_anchored",))
    whole = dict(measured(subject, plain(3))[1])
    spans = 0
    for name, row in rows:
        for begin, end in spans_of(row.span):
            spans += 1
            assert row.after(begin)[: end - begin].tolist() == whole[name].after(begin)[: end - begin].tolist()
        assert sum(map(len, row.runs.values())) <= sum(end - begin for begin, end in spans_of(row.span))
    assert spans == 6
    assert ran <= spans < sum(len(row.runs) for row in whole.values())
    assert len(encoded) == len(rows)


def test_what_is_said_ends_with_a_stop_token_of_which_there_may_be_several():
    """0 -> 1 -> 2 -> 3 -> 0 in a table model; the text goes on after a 2 (right) and turns to 0 after 1 (wrong)."""
    table = [[9.0 if b == (a + 1) % 4 else 0.0 for b in range(4)] for a in range(4)]
    texts = tokens_of([[0, 1, 2, 3, 0, 1, 0, 1]])
    for stops, expected in (
        ([], [[1, 2, 3, 0, 1, 2, 3], [2, 3, 0, 1, 2, 3], [3, 0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [2, 3], [1]]),
        ([2], [[1, 2], [2], [3, 0, 1, 2], [0, 1, 2], [1, 2], [2], [1]]),
        ([2, 3], [[1, 2], [2], [3], [0, 1, 2], [1, 2], [2], [1]]),
    ):
        subject = bigram(table, stops)
        subject.model.generation_config = type("Settings", (), {"eos_token_id": stops})
        greedy = [row["greedy"] for row in measure_tokens(subject, texts, ())]
        found, _ = measure_continuations(subject, texts, greedy, ("all",))
        ((_, row),) = continued(Table.of(found))
        assert [row.after(k).tolist() for k in range(7)] == expected, stops


def test_batches_of_any_size_give_the_same(monkeypatch):
    import expunge.measure.continuations as module

    subject = tiny_subject(seed=2)
    _, rows, ran = measured(subject, plain(2))
    monkeypatch.setattr(module, "BATCH_TOKENS", 300)
    _, again, ran_again = measured(subject, plain(2))
    assert ran == ran_again > 10
    for (name, one), (other_name, other) in zip(rows, again, strict=True):
        assert name == other_name
        assert {k: run.tolist() for k, run in one.runs.items()} == {k: run.tolist() for k, run in other.runs.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_that_fills_the_context_is_never_left(family):
    """No continuation is longer than what is left of its text, so learned positions are never overrun."""
    subject = tiny_subject(seed=3, family=family)
    stream = Stream("forget", "forget", (Example("a", "x " * 117, "yes it is so, say"),))
    encoded, rows, _ = measured(subject, stream)
    assert 250 < len(encoded[0]) <= 256
    row, num = rows[0][1], len(rows[0][1].tokens)
    assert num > 10
    assert all(len(row.after(k)) <= num - k for k in range(num))


def test_memorised_texts_are_extracted_whatever_n():
    """MA = 1 implies EL_n = 1 for all n; and where nothing is right, EL can be above MA."""
    data = short_data()
    plan = Plan()
    plan.add("forget", [Needs("continuations", columns=("all",)), Needs("tokens")])
    found = measure(knows("forget"), data, plan)
    tables = Tables({("this", *key): table for key, table in found.tables.items()}, "forget", {})
    exact = [name for name, value in memorization_accuracy(tables).per_example.items() if value == 1]
    assert len(exact) == 12
    for n in (1, 2, 3):
        for denominator in ("target", "generated"):
            assert extraction_likelihood(tables, n=n, denominator=denominator).value == 1.0


def test_the_planner_runs_it_leaves_out_what_was_exposed_and_keeps_it(tmp_path):
    data = Data(forget=plain(4), holdout=replace(plain(3), name="holdout", role="holdout"))
    plan = Plan()
    plan.add("forget", [Needs("continuations", columns=("all",))])
    plan.add("holdout", [Needs("continuations", columns=("all",))])
    subject = clone(tiny_subject(seed=2))
    subject = subject.after(Event("attack", "relearn", exposed=frozenset({"t/1"})))
    found = measure(subject, data, plan, cache=tmp_path)
    ids = {name: found.tables[name, "continuations", "answer"].ids for name in data}
    assert ids == {"forget": ["t/0", "t/2", "t/3"], "holdout": ["t/0", "t/1", "t/2"]}
    table = found.tables["forget", "continuations", "answer"]
    made = sum(len(starts) for starts in table.rows("start"))
    assert len(table) + 3 < found.forwards <= 6 + made + sum(
        len(starts) for starts in found.tables["holdout", "continuations", "answer"].rows("start")
    )
    again = measure(subject, data, plan, cache=tmp_path)
    assert again.forwards == 0
    assert again.tables["forget", "continuations", "answer"].arrow.equals(table.arrow)


@pytest.mark.parametrize("variant", ["perturbed", "alternative", "paraphrased_answer", "answer@paraphrases"])
def test_other_texts_are_continued_as_an_obvious_loop_does(variant):
    """The token table holds the true answers alone, whose greedy choices say nothing of other texts."""
    subject = knows("forget")
    examples = tuple(replace(one, paraphrased_answer="The winter") for one in short_data()["forget"].examples[:2])
    stream = Stream("forget", "forget", examples)
    plan = Plan()
    plan.add("forget", [Needs("continuations", variant=variant, columns=("all",))])
    found = measure(subject, Data(forget=stream), plan)
    texts = texts_of(stream, variant)
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    rows = continued(found.tables["forget", "continuations", variant])
    assert [name for name, _ in rows] == [text.id for text in texts]
    for one, (_, row) in zip(encoded, rows, strict=True):
        places = np.flatnonzero(one.counted[1:]) + 1
        for k, place in enumerate(places):
            assert row.after(k).tolist() == obvious(subject, one.tokens[:place].tolist(), len(places) - k, stops)


def test_models_that_do_not_continue_say_so():
    subject = replace(tiny_subject(), task="masked")
    plan = Plan()
    plan.wanted["forget", "continuations", "answer"] = {"all"}
    found = measure(subject, Data(forget=plain(1)), plan)
    assert found.tables == {}
    assert "masked model does not continue" in found.missing["forget", "continuations", "answer"]


def test_codes_of_spans():
    """Tokens 1-2 and 4 of six are spans; token 0 is not predicted, so a span that begins there has no first token."""
    (one,) = tokens_of([[5, 6, 7, 8, 9, 4]], [[0, 1, 1, 0, 1, 0]])
    assert span_codes(one).tolist() == [2, 1, 0, 2, 0]
    assert spans_of(span_codes(one)) == [(0, 2), (3, 4)]
    (clipped,) = tokens_of([[5, 6, 7, 8]], [[1, 1, 0, 1]])
    assert span_codes(clipped).tolist() == [1, 0, 2]
    assert spans_of(span_codes(clipped)) == [(2, 3)]
