"""What must not matter to a measurement does not: padding, batches, order, company. Odd texts are read as they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import expunge.measure.tokens as instrument
from expunge.errors import DataError
from expunge.measure.plan import Plan, measure
from expunge.models import context_length
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Needs, Stream, Wrapper
from support.ranks import run_ranks

WORDS = ("sea", "a", "winter", "Ada's", "1961", "x", "in the", "no", "Québec", "end.")
SUBJECT = replace(tiny_subject(seed=2), wrapper=Wrapper("Q: {prompt}\nA: {answer}"))
NEEDS = (
    Needs("tokens", columns=("rank", "mean", "var")), Needs("tokens", variant="perturbed"),
    Needs("samples", variant="prompt", columns=("text",)),
)

phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
examples = st.lists(st.tuples(phrases, phrases, st.lists(phrases, max_size=3)), min_size=1, max_size=7)


def stream(rows) -> Data:
    made = [Example(f"x/{i}", row[0], row[1], perturbed=tuple(row[2])) for i, row in enumerate(rows)]
    return Data(forget=Stream("forget", "forget", tuple(made)))


def tables(data, needs=NEEDS, subject=SUBJECT):
    plan = Plan()
    plan.add("forget", needs)
    return measure(subject, data, plan)


def by_row(table, names):
    rows = zip(table.ids, table.items.tolist(), *(table.arrow.column(name).to_pylist() for name in names), strict=True)
    return {(id, item): rest for id, item, *rest in rows}


def same(one, other) -> None:
    """Equal words and tokens, numbers equal up to the rounding of another batch."""
    assert one.keys() == other.keys()
    for key in one:
        for a, b in zip(one[key], other[key], strict=True):
            if isinstance(a, list) and a and isinstance(a[0], float):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            else:
                assert a == b


TOKENS, SAMPLES = ("token", "logp", "argmax", "rank", "mean", "var"), ("text", "tokens", "reference")


@settings(max_examples=6, deadline=None)
@given(rows=examples, size=st.sampled_from([1, 40, 4096]), order=st.randoms(use_true_random=False))
def test_batch_size_order_and_company_do_not_matter(rows, size, order):
    whole = tables(stream(rows))
    shuffled = list(stream(rows)["forget"].examples)
    order.shuffle(shuffled)
    before = instrument.BATCH_TOKENS
    try:
        instrument.BATCH_TOKENS = size
        again = tables(Data(forget=Stream("forget", "forget", tuple(shuffled))))
    finally:
        instrument.BATCH_TOKENS = before
    assert whole.missing.keys() == again.missing.keys()
    for key, table in whole.tables.items():
        names = SAMPLES if key[1] == "samples" else TOKENS if key[2] == "answer" else TOKENS[:3]
        same(by_row(again.tables[key], names), by_row(table, names))
    first = tables(Data(forget=Stream("forget", "forget", stream(rows)["forget"].examples[:1])))
    alone = by_row(first.tables["forget", "tokens", "answer"], TOKENS)
    company = by_row(whole.tables["forget", "tokens", "answer"], TOKENS)
    same(alone, {key: company[key] for key in alone})


def test_the_same_text_under_two_ids_scores_the_same():
    rows = [("Who?", "Ada in winter", ["Bo"])] * 2 + [("Where?", "the sea", [])]
    found = tables(stream(rows))
    for key in (("forget", "tokens", "answer"), ("forget", "samples", "prompt")):
        table = by_row(found.tables[key], SAMPLES if key[1] == "samples" else TOKENS)
        assert table["x/0", 0] == table["x/1", 0]
    assert found.tables["forget", "tokens", "answer"].ids == ["x/0", "x/1", "x/2"]


def test_an_answer_of_one_token_counts_that_token_and_the_end():
    letter = next(word for word in "abcdefghij" if len(SUBJECT.tokenizer(" " + word)["input_ids"]) == 1)
    found = tables(stream([("Who?", letter, [])])).tables["forget", "tokens", "answer"]
    token, end = found.rows("token")[0].tolist()
    assert SUBJECT.tokenizer.decode([token]).strip() == letter
    assert end == SUBJECT.tokenizer.eos_token_id


@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_empty_answer_is_an_error_with_its_id(answer):
    with pytest.raises(DataError, match="x/1"):
        tables(stream([("Who?", "Ada", []), ("Who?", answer, [])]))


def test_an_end_token_inside_an_answer_is_a_token_like_others():
    eos = SUBJECT.tokenizer.eos_token
    rows = tables(stream([("Who?", f"Ada {eos} Bo", []), ("Who?", "Ada", [])])).tables["forget", "tokens", "answer"]
    tokens = rows.rows("token")[0].tolist()
    assert tokens.count(SUBJECT.tokenizer.eos_token_id) >= 1
    assert len(tokens) >= len(rows.rows("token")[1])
    assert all(np.isfinite(row).all() for row in rows.rows("logp"))


def test_padding_tokens_inside_a_text_are_read():
    """Masks come from lengths: a text may hold the padding token, and its neighbours in the batch do not change it."""
    pad = SUBJECT.tokenizer.pad_token
    rows = [("Who?", f"Ada {pad} {pad} Bo", []), ("Who was it in the winter?", "no no no no no no no no no", [])]
    together, alone = tables(stream(rows)), tables(stream(rows[:1]))
    key = ("forget", "tokens", "answer")
    same(by_row(alone.tables[key], TOKENS), {("x/0", 0): by_row(together.tables[key], TOKENS)["x/0", 0]})


def test_a_prompt_longer_than_the_context_is_an_error_that_names_it():
    long = "sea " * context_length(SUBJECT)
    with pytest.raises(DataError, match=r"x/0.*too long.*reads at most"):
        tables(stream([(long, "Ada", [])]))


def test_a_false_answer_that_is_too_long_is_not_available_with_its_reason():
    found = tables(stream([("Who?", "Ada", ["sea " * context_length(SUBJECT)])]))
    assert "too long" in found.missing["forget", "tokens", "perturbed"]
    assert ("forget", "tokens", "answer") in found.tables


RANKS = '''
import json, sys
from pathlib import Path
from expunge import dist
from expunge.measure.desk import Partner
from expunge.measure.plan import measure
from expunge.registry import bind, entries
from expunge.scoring import plan_for
from expunge.testing import tiny_data, tiny_subject

out, ranks = Path(sys.argv[1]), int(sys.argv[2])
dist.setup("cpu")
import torch
torch.set_num_threads(1)
assert dist.world_size() == ranks
data, subject = tiny_data(7, 6, 5), tiny_subject(seed=1)
metrics = [bind("metric", name) for name in sorted(entries("metric"))]
measured = measure(subject, data, plan_for(metrics, data), partner=Partner(lambda: tiny_subject(seed=2)))
assert len(set(dist.gather([sorted(measured.missing)[0] if measured.missing else ""]))) == 1
if dist.rank() == 0:
    for asked, table in measured.tables.items():
        table.write(out / ("|".join(asked).replace("/", "_") + ".parquet"))
    (out / "bill.json").write_text(json.dumps([measured.forwards, measured.tokens, sorted(measured.missing.values())]))
'''


def test_two_ranks_make_the_very_tables_of_one(tmp_path):
    """Every table that any registered metric asks for, of every instrument."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        run_ranks(folder, RANKS, ranks)
        found.append({path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))})
    one, two = found
    assert {name.split("|")[1] for name in one} >= {"tokens", "samples", "continuations"}
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    bills = [json.loads((tmp_path / ranks / "bill.json").read_text()) for ranks in "12"]
    assert bills[0] == bills[1]
