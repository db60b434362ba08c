"""Random samples: what is drawn, that each depends on itself alone, and that it comes as often as the scheme says."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.data.tokenise import encode, prompt_tokens, texts_of
from expunge.errors import RecipeError
from expunge.measure.plan import Plan, measure
from expunge.measure.sampled import Setting, Taste, draw_of
from expunge.measure.samples import stop_tokens
from expunge.measure.tokens import _scheme
from expunge.metrics.discoverable import suffixes
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Needs, Stream
from support.learned import knows, short_data
from support.ranks import run_ranks

PLAIN = tuple(Example(f"t/{i}", "", f"The phone of Mara {i} is 555-0{i}42, so people say") for i in range(3))


def table_of(subject, data, setting, *also):
    plan = Plan()
    plan.add("forget", [Needs("sampled", variant=f"prompt#{setting}"), *also])
    measured = measure(subject, data, plan)
    return measured.tables["forget", "sampled", f"prompt#{setting}"], measured


def rows_of(table, *names):
    columns = [table.arrow.column(name).to_pylist() for name in names or ("text", "tokens", "match", "reference")]
    return {key: row for key, *row in zip(zip(table.ids, table.items.tolist(), strict=True), *columns, strict=True)}


def obvious(subject, before, chances, taste, stops):
    """One forward over everything for every token; greedy without chances."""
    said = []
    with torch.no_grad():
        for chance in chances:
            logits = subject.model(input_ids=torch.tensor([[*before, *said]]), use_cache=False).logits[0, -1:]
            token = int(logits.argmax() if taste is None else taste.pick(logits, torch.tensor([chance])))
            if token in stops:
                break
            said.append(token)
    return said


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_sample_is_that_of_an_obvious_loop(family, prefix):
    """Its numbers come from the seed, the id and the sample's number; drawn at temperature 0.7 from 9 tokens' 0.9."""
    subject, data = tiny_subject(seed=2, family=family), short_data(2, 1, 1)
    setting = f"num=2,temperature=0.7,top_k=9,top_p=0.9,prefix={prefix},length=5,seed=4"
    rows = rows_of(table_of(subject, data, setting)[0], "tokens")
    texts = texts_of(data["forget"])
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    for text, one in zip(texts, encoded, strict=True):
        places = np.flatnonzero(one.counted)
        before = one.tokens[: places[prefix]] if prefix else prompt_tokens(subject, [text.prompt])[0]
        for number in range(2):
            chances = draw_of(4, text.id, number).random(5, dtype=np.float32)
            taste = Taste(0.7, 0.9, top_k=9)
            assert rows[text.id, number] == [obvious(subject, before.tolist(), chances, taste, stops)]


@pytest.mark.parametrize("name", ["random", "half", "learned"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_temperature_nought_is_greedy(name, prefix):
    """With the beginning that teacher forcing tells: nothing is run for what the model knows."""
    subject = tiny_subject(seed=2) if name == "random" else knows("forget", steps=25 if name == "half" else 60)
    data = short_data(4, 1, 1)
    table, measured = table_of(subject, data, f"temperature=0,num=7,prefix={prefix},length=6")
    rows = rows_of(table)
    encoded = encode(subject, texts_of(data["forget"]))
    stops = stop_tokens(subject, encoded)
    assert set(rows) == {(one.id, 0) for one in encoded}
    for one in encoded:
        places = np.flatnonzero(one.counted)
        truth = one.tokens[places[prefix:]].tolist()[:6]
        said = obvious(subject, one.tokens[: places[prefix]].tolist(), range(6), None, stops)
        text, tokens, match, reference = rows[one.id, 0]
        assert tokens == said
        ended = [*said, *stops][:6]  # what ends a text is a token of it
        assert match == [k < len(ended) and ended[k] == token for k, token in enumerate(truth)]
        assert text == subject.tokenizer.decode(said).strip()
        assert reference == subject.tokenizer.decode(truth, skip_special_tokens=True).strip()
    assert (measured.forwards == len(encoded)) is (name == "learned")


def test_a_sample_depends_on_nothing_but_itself():
    """Not on the order of the examples, on which others there are, on how many samples, or on those of another seed."""
    subject, data = knows("forget", steps=25), short_data(6, 1, 1)
    examples = data["forget"].examples
    rows = rows_of(table_of(subject, data, "num=4")[0])
    shuffled = Data(forget=replace(data["forget"], examples=(*examples[::-1],)))
    assert rows_of(table_of(subject, shuffled, "num=4")[0]) == rows
    fewer = rows_of(table_of(subject, Data(forget=replace(data["forget"], examples=examples[1:3])), "num=2")[0])
    assert fewer == {key: rows[key] for key in fewer}
    assert len(fewer) == 4
    other = rows_of(table_of(subject, data, "num=4,seed=1")[0])
    assert other.keys() == rows.keys()
    assert other != rows
    assert len({str(rows["f/0", number]) for number in range(4)}) > 1


def test_other_prompts_have_samples_of_their_own():
    """Two prompts an example: items 0, 1 and 2, 3; greedily what is said after these, not what the table knows."""
    subject, first = knows("forget"), short_data(3, 1, 1)["forget"]
    examples = tuple(replace(one, paraphrases=(one.prompt, f"Tell me of {one.id}")) for one in first.examples)
    data = Data(forget=replace(first, examples=examples))
    plan = Plan()
    names = ("prompt#num=2", "prompt@paraphrases#num=2", "prompt@paraphrases#temperature=0")
    plan.add("forget", [Needs("sampled", variant=name) for name in names])
    own, both, greedy = (rows_of(measure(subject, data, plan).tables["forget", "sampled", name]) for name in names)
    assert set(both) == {(one.id, item) for one in examples for item in range(4)}
    assert own == {key: both[key] for key in own}
    for one in examples:
        assert both[one.id, 2] != both[one.id, 0] or both[one.id, 3] != both[one.id, 1]
        for item, prompt in enumerate(one.paraphrases):
            before = prompt_tokens(subject, [prompt])[0].tolist()
            said = greedy[one.id, item][1]
            assert said == obvious(subject, before, range(len(said)), None, stop_tokens(subject))


def test_samples_come_as_often_as_the_token_table_says():
    """600 samples of two tokens: recited as often as p_z of the column for the scheme, within 4 standard errors."""
    subject, data, num = knows("forget", steps=25), short_data(1, 1, 1), 600
    column = "scheme:0.8:6:0.95"
    table, measured = table_of(
        subject, data, f"num={num},temperature=0.8,top_k=6,top_p=0.95,length=2", Needs("tokens", columns=(column,))
    )
    logp, _ = suffixes(measured.tables["forget", "tokens", "answer"], column, 0, 2)
    p = math.exp(logp.sums()[0])
    assert 0.05 < p < 0.95
    recited = float((table.row_sum("match") == 2).mean())
    assert recited == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / num))


def test_texts_without_a_prompt_need_a_beginning():
    data = Data(forget=Stream("forget", "forget", PLAIN))
    subject = tiny_subject(seed=2)
    silent = rows_of(table_of(subject, data, "num=2")[0])
    assert silent == {(one.id, number): ["", [], [], ""] for one in PLAIN for number in range(2)}
    table = table_of(subject, data, "num=1,prefix=4,length=8")[0]
    assert (table.column("num_tokens") > 0).all()
    for row in rows_of(table, "reference", "match").values():
        assert row[0]
        assert len(row[1]) == 8
    nothing = rows_of(table_of(subject, data, "num=1,prefix=99")[0])
    assert all(row == ["", [], [], ""] for row in nothing.values())


def test_secrets_are_those_the_sample_could_say():
    """A span that lies in the prefix is given away, not found out."""
    example = Example("a", "Who?", "Mara of Oslo", spans=((0, 4), (8, 12)))
    data = Data(forget=Stream("forget", "forget", (example,)))
    subject = tiny_subject(seed=2)
    assert rows_of(table_of(subject, data, "num=1")[0], "secrets") == {("a", 0): [["Mara", "Oslo"]]}
    given = len(subject.tokenizer(" Mara")["input_ids"])
    assert rows_of(table_of(subject, data, f"num=1,prefix={given}")[0], "secrets") == {("a", 0): [["Oslo"]]}


@pytest.mark.parametrize(("setting", "message"), [
    ("nun=3", r"sampled\.nun: unknown; accepted: num, temperature"), ("num=0", r"sampled\.num: got 0"),
    ("num=x", r"sampled: got 'num=x'"), ("prefix=-1", r"sampled\.prefix: got -1"),
    ("temperature=-1", r"sampled\.temperature: got -1"), ("top_p=0", r"sampled\.top_p: got 0"),
    ("top_k=-2", r"sampled\.top_k: got -2"),
])
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        table_of(tiny_subject(), short_data(1, 1, 1), setting)


def test_top_k_keeps_the_likeliest():
    """Of 4, 3, 2, 1 tenths the first two: 4/7 and 3/7. top_p counts what is left: 0.5 of them is the first alone."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(1000, 4)
    chances = torch.linspace(0, 0.9999, 1000)
    picked = Taste(top_k=2).pick(logits, chances)
    assert float((picked == 0).float().mean()) == pytest.approx(4 / 7, abs=2e-3)
    assert picked.max() == 1
    assert Taste(top_k=2, top_p=0.5).pick(logits, chances).max() == 0
    assert Taste(top_k=9).pick(logits, chances).tolist() == Taste().pick(logits, chances).tolist()
    assert Setting().taste == Taste(most=1, where="sampled")


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (2, 1.0), (3, 1.0), (2, 0.5), (2, 0.9), (0, 0.9)])
def test_what_is_drawn_is_the_scheme_of_the_token_table_also_at_ties(top_k, top_p):
    """Odds of 4, 2, 2, 2, 1, 0: the second best stands three times, and the best two are four."""
    logits = torch.tensor([2.0, 4.0, 0.0, 2.0, 1.0, 2.0]).log().expand(6, 6)
    scheme = _scheme(logits, torch.arange(6), f"scheme:1:{top_k}:{top_p}").exp()
    chances = (torch.arange(6600) + 0.5) / 6600
    picked = Taste(top_k=top_k, top_p=top_p).pick(logits[:1].expand(6600, 6), chances)
    assert (picked.bincount(minlength=6) / 6600).tolist() == pytest.approx(scheme.tolist(), abs=2e-4)
    if (top_k, top_p) == (2, 1.0):
        assert scheme.tolist() == pytest.approx([0.2, 0.4, 0, 0.2, 0, 0.2])


@pytest.mark.parametrize("variant", ["perturbed", "alternative", "paraphrased_answer", "prompt@paraphrases"])
def test_greedy_samples_of_other_texts_are_those_of_an_obvious_loop(variant):
    """Teacher forcing told of the true answers alone; here other words are given away and other ones are due."""
    subject, data = knows("forget"), short_data(4, 1, 1)
    examples = tuple(replace(one, paraphrased_answer="The winter book") for one in data["forget"].examples)
    data = Data(forget=replace(data["forget"], examples=examples))
    plan, setting = Plan(), "#temperature=0,prefix=1,length=4"
    plan.add("forget", [Needs("sampled", variant=variant + setting)])
    rows = rows_of(measure(subject, data, plan).tables["forget", "sampled", variant + setting], "tokens")
    texts = texts_of(data["forget"], variant)
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    assert len(rows) == len(texts)
    for text, one in zip(texts, encoded, strict=True):
        before = one.tokens[: np.flatnonzero(one.counted)[1]].tolist()
        assert rows[text.id, text.item] == [obvious(subject, before, range(4), None, stops)]


PROGRAM = '''
import json, sys
from pathlib import Path
from expunge import dist
from expunge.measure.plan import Plan, measure
from expunge.testing import tiny_data, tiny_subject
from expunge.types import Needs

out, ranks = Path(sys.argv[1]), int(sys.argv[2])
dist.setup("cpu")
import torch
torch.set_num_threads(1)
assert dist.world_size() == ranks
plan = Plan()
for setting in ("num=30", "temperature=0,prefix=1,length=4"):
    plan.add("forget", [Needs("sampled", variant="prompt#" + setting)])
measured = measure(tiny_subject(seed=1), tiny_data(7, 6, 5), plan)
found = {str(asked): table.arrow.to_pylist() for asked, table in measured.tables.items() if asked[1] == "sampled"}
assert all(other == found for other in dist.gather([found])), "ranks disagree"
if dist.rank() == 0:
    (out / "found.json").write_text(json.dumps([found, measured.forwards]))
'''


@pytest.mark.slow
def test_two_ranks_draw_what_one_does(tmp_path):
    """210 random samples in four batches, and greedy ones: the very same rows."""
    folders = [run_ranks(tmp_path / str(ranks), PROGRAM, ranks) for ranks in (1, 2)]
    one, two = (json.loads((folder / "found.json").read_text()) for folder in folders)
    assert one == two
    assert sum(len(rows) for rows in one[0].values()) == 7 * 30 + 7
