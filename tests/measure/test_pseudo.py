"""What a masked model gives each token when it alone is hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.data.tokenise import Encoded, Text, encode
from expunge.errors import DataError
from expunge.measure.plan import Plan, measure
from expunge.measure.pseudo import masked_copy, measure_pseudo, places
from expunge.registry import bind
from expunge.scoring import needs_of, score
from expunge.testing import tiny_subject
from expunge.types import Needs, Subject
from support import golden, toys
from support.pairs import sentences
from support.ranks import run_ranks


@pytest.fixture(scope="module")
def bert():
    return tiny_subject(seed=3, family="bert")


def one_by_one(subject, ids, places):
    """The slow way: transformers' own forward of the text with one token hidden, for each place."""
    found = []
    for place in places:
        hidden = list(ids)
        hidden[place] = subject.tokenizer.mask_token_id
        with torch.no_grad():
            logits = subject.model(input_ids=torch.tensor([hidden])).logits[0, place]
        found.append(float(logits.log_softmax(-1)[ids[place]]))
    return found


def test_every_token_is_hidden_alone(bert):
    texts = ["Who wrote the book?", "The sea in winter.", "Oslo", "the people who live between them, born in 1961"]
    encoded = encode(bert, [Text(str(i), 0, "", text) for i, text in enumerate(texts)])
    found = measure_pseudo(bert, encoded, [""] * len(texts))
    for text, (tokens, logp) in zip(texts, found, strict=True):
        ids = bert.tokenizer(text)["input_ids"]
        assert tokens.tolist() == ids[1:-1]  # neither [CLS] nor [SEP]
        assert logp == pytest.approx(one_by_one(bert, ids, range(1, len(ids) - 1)), abs=1e-5)


def test_a_span_alone_and_what_stands_left_of_it(bert):
    """"left": of the span only what was already said is seen, the rest is cut out."""
    text = "All of them are authors of novels."
    span = (text.index("authors"), text.index("authors") + 7)
    encoded = encode(bert, [Text("a", 0, "", text, (span,))])
    ids = bert.tokenizer(text)["input_ids"]
    inside = np.flatnonzero(encoded[0].spanned).tolist()
    assert len(inside) > 1
    (tokens, logp), = measure_pseudo(bert, encoded, ["spans"])
    assert tokens.tolist() == [ids[i] for i in inside]
    assert logp == pytest.approx(one_by_one(bert, ids, inside), abs=1e-5)
    (tokens, left), = measure_pseudo(bert, encoded, ["left"])
    expected = []
    for place in inside:
        cut = [*ids[: place + 1], *ids[inside[-1] + 1 :]]
        expected += one_by_one(bert, cut, [place])
    assert left == pytest.approx(expected, abs=1e-5)
    assert left[-1] == pytest.approx(logp[-1], abs=1e-5)  # nothing of the span follows its last token
    assert abs(left[0] - logp[0]) > 1e-4


def test_places_of_two_spans():
    """Tokens 2, 3 and 6 are in spans: those of the first go on at 4, that of the second at 7."""
    spanned = np.isin(np.arange(9), [2, 3, 6])
    counted = np.arange(9) > 0
    one = Encoded("a", 0, np.arange(9), counted, spanned, np.arange(9), task="masked")
    assert places(one, "left") == [(2, 4), (3, 4), (6, 7)]
    assert places(one, "spans") == [(2, 3), (3, 4), (6, 7)]
    assert places(one) == [(i, i + 1) for i in range(1, 9)]
    copy = masked_copy(one, 2, 4, 99)
    assert copy.tokens.tolist() == [0, 1, 99, 4, 5, 6, 7, 8]
    assert copy.targets is not None
    assert copy.targets[copy.counted].tolist() == [2]


def test_golden_pseudo_log_likelihood():
    """CrowS-Pairs of the golden toy: the five words both sentences share, less the one in which they differ."""
    given = golden.load("pcgu")
    case, mask = given["crows_pairs"], given["mask_id"]
    tokenizer = type("Masks", (), {"mask_token_id": mask})()
    subject = Subject(toys.toy_bert(), tokenizer, task="masked")
    counted = np.isin(np.arange(7), case["unmodified_positions"])
    made = [
        Encoded(name, 0, np.array(case[name]), counted, counted, task="masked") for name in ("sent_more", "sent_less")
    ]
    more, less = (float(logp.sum()) for _, logp in measure_pseudo(subject, made, ["", ""]))
    assert more == pytest.approx(case["pll_more"], abs=1e-7)
    assert less == pytest.approx(case["pll_less"], abs=1e-7)
    assert (more > less) is case["stereotype_preferred"]


def test_the_bill_and_the_setting(bert):
    data = sentences(3)
    plan = Plan()
    plan.add("pairs", [Needs("pseudo", "pair:answer"), Needs("pseudo", "pair:answer:fill#left")])
    measured = measure(bert, data, plan)
    tables = {asked[2]: table for asked, table in measured.tables.items()}
    assert measured.forwards == sum(int(table.num_tokens.sum()) for table in tables.values())
    assert tables["pair:answer"].ids == [one.id for one in data["pairs"].examples]
    wrong = Plan()
    wrong.add("pairs", [Needs("pseudo", "pair:answer#lefft")])
    with pytest.raises(DataError, match="did you mean 'left'"):
        measure(bert, data, wrong)


def test_a_causal_model_has_no_such_table():
    plan = Plan()
    plan.add("pairs", [Needs("pseudo", "pair:answer")])
    measured = measure(tiny_subject(), sentences(2), plan)
    assert measured.tables == {}
    assert "causal" in next(iter(measured.missing.values()))


def test_batches_do_not_matter(bert, monkeypatch):
    metric, data = bind("metric", "crows_pairs"), sentences(3)

    def scored():
        plan = Plan()
        plan.add("pairs", needs_of(metric))
        measured = measure(bert, data, plan)
        table = measured.tables["pairs", "pseudo", "pair:answer"]
        return score(metric, "pairs", measured).per_example, table.ragged("logp")[0]

    whole = scored()
    monkeypatch.setattr("expunge.measure.pseudo.BATCH_TOKENS", 300)
    small = scored()
    assert whole[0] == small[0]
    assert whole[1] == pytest.approx(small[1], abs=1e-5)


PROGRAM = '''
import json, sys
from pathlib import Path
from expunge import dist
from expunge.measure import pseudo
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.scoring import plan_for
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream

dist.setup("cpu")
pseudo.BATCH_TOKENS = 60
made = tuple(
    Example(f"a/{i}", "", f"The sea is {i * 7} and kind.", contrast=f"The sea is {i * 7} and old.") for i in range(5)
)
data = Data(pairs=Stream("pairs", "probe", made))
metrics = [bind("metric", name) for name in ("crows_pairs", "winobias")]
measured = measure(tiny_subject(seed=3, family="bert"), data, plan_for(metrics, data))
if dist.rank() == 0:
    found = {asked[2]: table.arrow.to_pydict() for asked, table in measured.tables.items() if asked[1] == "pseudo"}
    assert len(found) == 4, sorted(found)
    Path(sys.argv[1], "found.json").write_text(json.dumps(found))
'''


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    one, two = (run_ranks(tmp_path / str(ranks), PROGRAM, ranks) / "found.json" for ranks in (1, 2))
    assert one.read_text() == two.read_text()
