"""Answers that are not greedy: each is that of an obvious loop, and the one closest to the truth counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from expunge.data.tokenise import encode, prompt_tokens, texts_of
from expunge.measure.decoding import PLAUSIBLE, Contrast, closeness, search
from expunge.measure.plan import Plan, measure
from expunge.measure.sampled import Taste, draw_of
from expunge.measure.samples import stop_tokens
from expunge.metrics.rouge import rouge_scores
from expunge.models import clone
from expunge.testing import tiny_subject
from expunge.types import Data, Decoding, Example, Needs, Stream
from support.learned import knows, short_data
from support.ranks import run_ranks

ASKED = ("forget", "samples", "prompt")


def measured(subject, decoding=None, data=None, *also, **options):
    plan = Plan()
    plan.add("forget", [Needs("samples", "prompt", ("text",)), *also])
    asked = subject if decoding is None else replace(subject, decoding=decoding)
    return measure(asked, data or short_data(6, 1, 1), plan, **options)


def said(subject, decoding=None, data=None):
    """Tokens of the answer to each question that counts."""
    found = measured(subject, decoding, data)
    assert not found.missing
    table = found.tables[ASKED]
    return dict(zip(table.ids, table.arrow.column("tokens").to_pylist(), strict=True))


@torch.no_grad()
def logits_of(subject, tokens):
    """What follows a row of tokens, in one pass over all of them and without a cache."""
    return subject.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1:]


# -- drawn -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_greedy_by_another_road_is_greedy(family):
    """A decoding that only has another seed is drawn like the others, at temperature 0."""
    subject = tiny_subject(seed=4, family=family)
    assert said(subject, Decoding(num=5, seed=3)) == said(subject)


def test_of_the_answers_the_sampled_table_holds_the_closest_counts():
    """The same draws as those of leak@k, and of them the one with the largest ROUGE-L recall; ties: the first."""
    subject, data = knows("forget", steps=25), short_data(6, 1, 1)
    also = Needs("sampled", variant="prompt#num=5,temperature=1.3,top_k=40,top_p=0.95,seed=7")
    found = measured(subject, Decoding(5, 1.3, 40, 0.95, seed=7), data, also)
    drawn, table = found.tables["forget", "sampled", also.variant], found.tables[ASKED]
    texts = {name: [] for name in table.ids}
    for name, text in zip(drawn.ids, drawn.texts("text"), strict=True):
        texts[name].append(text)
    moved = 0
    for name, text, reference in zip(table.ids, table.texts("text"), table.texts("reference"), strict=True):
        recall = rouge_scores([reference] * 5, texts[name])
        assert text == texts[name][int(recall.argmax())]
        moved += text != texts[name][0]
    assert moved  # the first was not always the closest
    assert found.forwards == 6 + 6 * 5 + 6 * 5  # read once, drawn twice


def test_an_answer_depends_on_nothing_but_its_example():
    subject, data, decoding = knows("forget", steps=25), short_data(6, 1, 1), Decoding(3, 1.0)
    whole = said(subject, decoding, data)
    examples = data["forget"].examples
    for chosen in (examples[::-1], examples[1:3]):
        found = said(subject, decoding, Data(forget=replace(data["forget"], examples=chosen)))
        assert found == {one.id: whole[one.id] for one in chosen}
    assert said(subject, replace(decoding, seed=1), data) != whole


def test_an_encoder_decoder_draws_with_the_numbers_of_each_example():
    subject, data = tiny_subject(seed=4, family="bart"), short_data(3, 1, 1)
    found = said(subject, Decoding(1, 0.7, 9, 0.9, seed=2), data)
    texts = texts_of(data["forget"])
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    for text, one in zip(texts, encoded, strict=True):
        source = torch.from_numpy(prompt_tokens(subject, [text.prompt])[0]).unsqueeze(0)
        rows, limit = [0], int(one.counted.sum()) * 3 // 2 + 8
        for chance in draw_of(2, text.id, 0).random(limit, dtype=np.float32):
            with torch.no_grad():
                logits = subject.model(input_ids=source, decoder_input_ids=torch.tensor([rows])).logits[0, -1:]
            token = int(Taste(0.7, 0.9, top_k=9).pick(logits, torch.tensor([chance])))
            if token in stops:
                break
            rows.append(token)
        assert found[text.id] == rows[1:]


# -- searched --------------------------------------------------------------------------------------------------
def both_steps(subject, before, stops):
    """Every answer of at most two tokens and its log-probability, the likeliest first."""
    first = logits_of(subject, before)[0].log_softmax(-1)
    every = torch.arange(len(first))
    rows = torch.cat([torch.tensor(list(before)).expand(len(first), -1), every.unsqueeze(1)], dim=1)
    with torch.no_grad():
        second = subject.model(input_ids=rows).logits[:, -1].log_softmax(-1)
    both = [((), float(first[token])) for token in stops]
    best = (first.unsqueeze(1) + second).masked_fill(torch.isin(every, torch.tensor(sorted(stops))).unsqueeze(1), -1e9)
    top = best.flatten().topk(50)
    for total, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        one, two = divmod(index, len(first))
        both.append(((one,) if two in stops else (one, two), total))
    return sorted(both, key=lambda pair: -pair[1])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_wide_search_finds_the_likeliest_answers_there_are(family):
    """With a beam for every token nothing is lost: all answers of two tokens. The prompts differ in length."""
    subject = tiny_subject(seed=5, family=family)
    before = prompt_tokens(subject, ["Who?", "Who is the author of the book about the sea and the winter?"])
    stops = stop_tokens(subject)
    found = search(subject, before, 2, stops, beams=300, num=3)
    for i, row in enumerate(before):
        wanted = both_steps(subject, row.tolist(), stops)[:3]
        assert [tuple(one) for one in found[3 * i : 3 * i + 3]] == [answer for answer, _ in wanted]


def test_a_search_among_others_is_that_alone_and_the_models_own_settings_do_not_speak():
    subject, data = clone(tiny_subject(seed=3)), short_data(3, 1, 1)
    examples = tuple(replace(one, prompt=one.prompt * (1 + i % 3)) for i, one in enumerate(data["forget"].examples))
    data = Data(forget=replace(data["forget"], examples=examples))
    whole = said(subject, Decoding(beams=4), data)
    assert whole != said(subject, Decoding(), data)
    settings = {"num_beams": 2, "no_repeat_ngram_size": 1, "min_length": 9, "length_penalty": 3.0}
    for name, value in {**settings, "repetition_penalty": 3.0, "early_stopping": True}.items():
        setattr(subject.model.generation_config, name, value)
    for one in examples:
        alone = said(subject, Decoding(beams=4), Data(forget=replace(data["forget"], examples=(one,))))
        assert alone == {one.id: whole[one.id]}


def test_of_several_beams_the_closest_counts_and_of_one_the_likeliest():
    """The search of three answers holds the likeliest first; asked for one, that is the answer."""
    subject, data = knows("forget", steps=25), short_data(4, 1, 1)
    one, three = said(subject, Decoding(beams=6), data), said(subject, Decoding(num=3, beams=6), data)
    texts = texts_of(data["forget"])
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    for text, row in zip(texts, encoded, strict=True):
        limit = int(row.counted.sum()) * 3 // 2 + 8
        found = search(subject, prompt_tokens(subject, [text.prompt]), limit, stops, beams=6, num=3)
        assert one[text.id] == found[0]
        recall = closeness(text.answer, [said.strip() for said in subject.tokenizer.batch_decode(found)])
        assert three[text.id] == found[recall.index(max(recall))]
    assert one != three


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_is_searched_as_transformers_does(family):
    subject, data = tiny_subject(seed=4, family=family), short_data(3, 1, 1)
    found = said(subject, Decoding(beams=4), data)
    texts = texts_of(data["forget"])
    for text, row in zip(texts, encode(subject, texts), strict=True):
        ids = subject.tokenizer(text.prompt, return_tensors="pt")["input_ids"]
        limit = int(row.counted.sum()) * 3 // 2 + 8
        out = subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, length_penalty=0.0, max_new_tokens=limit + 1
        )[0, 1:].tolist()
        end = subject.tokenizer.eos_token_id
        assert found[text.id] == out[: out.index(end) if end in out else limit][:limit]


# -- guided ----------------------------------------------------------------------------------------------------
def test_contrast_by_hand():
    """p = .6 .3 .1, guide q = .3 .3 .4, w = 1: q^2/p = .15 .3 1.6. What the guide finds impossible stays so."""
    p, q = (torch.tensor([row]).log() + 3.0 for row in ([0.6, 0.3, 0.1], [0.3, 0.3, 0.4]))
    torch.testing.assert_close(Contrast(1.0)(p, q), torch.tensor([[0.15, 0.3, 1.6]]).log())
    torch.testing.assert_close(Contrast(0.0)(p, q), torch.tensor([[0.3, 0.3, 0.4]]).log())
    assert Contrast(1.0, plausible=math.log(4 / 3) - 0.01)(p, q).tolist()[0][:2] == [-math.inf, -math.inf]
    rare = torch.tensor([[1 - 1e-9, 1e-9]]).log()  # 21 nats less likely to the guide; impossible to the model
    never = torch.tensor([[0.0, -math.inf]])
    assert Contrast(1.0)(never, rare).argmax() == 0
    padded = torch.cat([q, torch.full((1, 2), -9.0)], dim=1)  # rows of a vocabulary that nobody uses
    assert Contrast(0.5)(p, padded).shape == (1, 3)
    assert Contrast(1.0, plausible=math.inf)(never, never).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_guided_answers_are_those_of_an_obvious_loop(weight, family):
    subject, guide = tiny_subject(seed=2, family=family), tiny_subject(seed=3, family=family)
    data = short_data(4, 1, 1)
    examples = tuple(replace(one, prompt=one.prompt * (1 + i % 2)) for i, one in enumerate(data["forget"].examples))
    data = Data(forget=replace(data["forget"], examples=examples))
    asked = replace(subject, helpers={"original": guide})
    found = said(asked, Decoding(guide="original", guidance=weight), data)
    texts = texts_of(data["forget"])
    encoded = encode(subject, texts)
    stops = stop_tokens(subject, encoded)
    for text, one in zip(texts, encoded, strict=True):
        tokens = prompt_tokens(subject, [text.prompt])[0].tolist()
        row: list[int] = []
        while len(row) < int(one.counted.sum()) * 3 // 2 + 8:
            now, before = (logits_of(of, [*tokens, *row])[0].log_softmax(-1) for of in (subject, guide))
            scores = (1 + weight) * before - weight * now
            token = int(scores.masked_fill(before < before.max() - PLAUSIBLE, -math.inf).argmax())
            if token in stops:
                break
            row.append(token)
        assert found[text.id] == row
    if not weight:
        assert found == said(guide, None, data)


def test_what_was_taken_away_stands_out():
    """Before: forget and retain. After: one that never saw forget, and greedily says next to nothing of it.

    By contrast even this one tells all of it: only what an unlearned model gives beyond that is left in it.
    """
    data = short_data()
    after = replace(knows("retain"), helpers={"original": knows("forget", "retain")})
    guided, plain = (
        measured(after, decoding, data).tables[ASKED].texts("text")
        for decoding in (Decoding(guide="original", guidance=1.0), None)
    )
    wanted = [one.answer for one in data["forget"].examples]
    assert guided == wanted
    assert sum(text == answer for text, answer in zip(plain, wanted, strict=True)) <= 2


# -- what cannot be had ----------------------------------------------------------------------------------------
def test_what_cannot_be_had_says_why():
    subject, other = tiny_subject(seed=2), tiny_subject(seed=2, family="bart")
    guided = Decoding(guide="original", guidance=1.0)
    mamba = MambaForCausalLM(MambaConfig(
        vocab_size=len(subject.tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1, expand=1, conv_kernel=2,
        time_step_rank=2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )).eval()
    for asked, decoding, message in (
        (subject, guided, "'original', was not given"),
        (replace(subject, helpers={"original": other}), guided, "only causal models"),
        (replace(other, helpers={"original": other}), guided, "only causal models"),
        (replace(subject, helpers={"original": subject}), replace(guided, beams=4), "neither a guide"),
        (subject, Decoding(num=2, temperature=1.0, beams=4), "neither a guide nor answers drawn"),
        (replace(subject, model=mamba), Decoding(beams=4), "keeps no keys and values"),
        (replace(subject, helpers={"original": replace(subject, model=mamba)}), guided, "keeps no keys and values"),
    ):
        assert message in measured(asked, decoding, short_data(2, 1, 1)).missing[ASKED]


def test_a_ruined_model_answers_nothing():
    broken = clone(tiny_subject(seed=2))
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(math.nan)
    for decoding in (Decoding(2, 1.0), Decoding(beams=2)):
        found = measured(broken, decoding, short_data(2, 1, 1))
        assert "not finite" in found.missing[ASKED]


def test_no_room_for_an_answer_is_an_empty_one():
    """A prompt that fills the context."""
    subject = tiny_subject(seed=2)
    example = Example("a", "x" * 250, "the sea")
    data = Data(forget=Stream("forget", "forget", (example, *short_data(1, 1, 1)["forget"].examples)))
    room = 256 - len(prompt_tokens(subject, [example.prompt])[0])
    for decoding in (Decoding(2, 1.0), Decoding(beams=2)):
        found = said(subject, decoding, data)
        assert len(found["a"]) <= room
        assert found["f/0"]


# -- which counts ----------------------------------------------------------------------------------------------
def test_closeness_is_the_recall_of_the_metric():
    texts = ["Mara of Oslo", "She was writing novels", "", "oslo", "Of the novels Mara writes, Oslo"]
    for reference in ("Mara writes novels in Oslo", "5", "Oslo"):
        assert closeness(reference, texts) == pytest.approx(rouge_scores([reference] * len(texts), texts).tolist())
    assert closeness("東京 大阪", ["大阪", "東京大阪", "Tokyo", "京大"]) == [0.5, 1.0, 0.0, 0.5]


def test_of_equally_close_answers_the_reference_itself_counts(monkeypatch):
    """All three hold every word of it. The metric of exact matches must not miss the one that matches."""
    subject, data = knows("forget"), short_data(1, 1, 1)
    answer = data["forget"].examples[0].answer
    texts = ["no idea", f"it is {answer} at sea", answer]
    tokens = [subject.tokenizer(text)["input_ids"] for text in texts]
    monkeypatch.setattr("expunge.measure.decoding.draw", lambda *_args, **_more: tokens)
    assert said(subject, Decoding(3, 1.0), data) == {"f/0": tokens[2]}


# -- kept tables and ranks -------------------------------------------------------------------------------------
def test_stored_answers_belong_to_their_decoding_and_guide_and_what_is_read_is_read_once(tmp_path):
    subject, data = replace(tiny_subject(seed=2), helpers={"original": tiny_subject(seed=3)}), short_data(2, 1, 1)
    other = replace(subject, helpers={"original": tiny_subject(seed=4)})
    guided = Decoding(guide="original", guidance=1.0)
    decodings = [(subject, Decoding()), (subject, Decoding(2, 1.0)), (subject, Decoding(2, 1.5)), (subject, guided),
                 (other, guided), (subject, replace(guided, guidance=2.0)), (subject, Decoding(beams=2))]
    first = [measured(of, decoding, data, cache=tmp_path) for of, decoding in decodings]
    assert [one.forwards for one in first] == [4, 4, 4, 4, 4, 4, 4]  # 2 texts read once, then 2 by 2 for each
    assert len(list(tmp_path.glob("forget.prompt.samples.*.parquet"))) == len(decodings)
    for (of, decoding), before in zip(decodings, first, strict=True):
        again = measured(of, decoding, data, cache=tmp_path)
        assert again.forwards == 0
        assert again.tables[ASKED].arrow == before.tables[ASKED].arrow
    read = ("forget", "tokens", "answer")
    assert all(one.tables[read].arrow == first[0].tables[read].arrow for one in first)


PROGRAM = '''
import json, sys
from dataclasses import replace
from pathlib import Path
from expunge import dist
from expunge.measure.plan import Plan, measure
from expunge.testing import tiny_data, tiny_subject
from expunge.types import Decoding, Needs

out, ranks = Path(sys.argv[1]), int(sys.argv[2])
dist.setup("cpu")
import torch
torch.set_num_threads(1)
assert dist.world_size() == ranks
plan, found = Plan(), {}
plan.add("forget", [Needs("samples", "prompt", ("text",))])
subject = replace(tiny_subject(seed=1), helpers={"original": tiny_subject(seed=2)})
for decoding in (Decoding(20, 1.0), Decoding(beams=4, num=2), Decoding(guide="original", guidance=1.0)):
    measured = measure(replace(subject, decoding=decoding), tiny_data(7, 6, 5), plan)
    found[str(decoding)] = [measured.tables["forget", "samples", "prompt"].arrow.to_pylist(), measured.forwards]
assert all(other == found for other in dist.gather([found])), "ranks disagree"
if dist.rank() == 0:
    (out / "found.json").write_text(json.dumps(found))
'''


@pytest.mark.slow
def test_two_ranks_answer_what_one_does(tmp_path):
    folders = [run_ranks(tmp_path / str(ranks), PROGRAM, ranks) for ranks in (1, 2)]
    one, two = (json.loads((folder / "found.json").read_text()) for folder in folders)
    assert one == two
    assert all(len(rows) == 7 for rows, _ in one.values())
