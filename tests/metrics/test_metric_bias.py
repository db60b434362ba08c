"""Bias as likelihood: StereoSet, CrowS-Pairs, WinoBias."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table
from expunge.metrics.bias import (
    crows_pairs,
    icat,
    score_predictions,
    shared_places,
    stereoset_icat,
    stereoset_lm,
    stereoset_scores,
    stereoset_ss,
    winobias,
)
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.scoring import plan_for, score, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Stream
from support import golden
from support.learned import taught
from support.pairs import pair_tables, sentences, side_table

PUBLISHED = {  # of shared/data/bias/SOURCE.md, per cent
    ("gpt2_ModelNSP_GPT2LM", "race"): (89.756707, 60.350001, 71.177067),
    ("gpt2_ModelNSP_GPT2LM", "religion"): (88.459770, 58.022989, 74.265536),
    ("bert-base-cased_BertNextSentence_BertLM", "race"): (83.824098, 56.296276, 73.268505),
    ("bert-base-cased_BertNextSentence_BertLM", "religion"): (82.160920, 56.275862, 71.848308),
    ("roberta-base_ModelNSP_RoBERTaLM", "race"): (70.027825, 56.071871, 61.523827),
    ("roberta-base_ModelNSP_RoBERTaLM", "religion"): (70.597701, 40.827586, 57.646675),
}


@pytest.mark.parametrize(("model", "domain"), list(PUBLISHED))
def test_published_predictions_give_the_published_scores(shared, model, domain):
    folder = shared / "data" / "bias"
    found = score_predictions(folder, folder / "stereoset_predictions" / f"{model}.json.gz", domain)
    values = [100 * value for value in (found.lm, found.ss, found.icat)]
    assert values == pytest.approx(PUBLISHED[model, domain], abs=5e-7)
    published = json.loads((folder / "stereoset_predictions" / "published_scores.json").read_text())
    stored = published[model.split("_")[0]]["intrasentence"][domain]
    assert values == pytest.approx([stored[f"{name} Score"] for name in ("LM", "SS", "ICAT")], rel=1e-12)
    assert len(found.terms) == {"race": 36, "religion": 3}[domain]


def test_golden_triples():
    given = golden.load("pcgu")
    case = given["stereoset"]
    found = stereoset_scores({"": [tuple(row) for row in case["triples_stereo_anti_unrelated"]]})
    assert (found.lm, found.ss, found.icat) == pytest.approx((case["LMS"], case["SS"], case["ICAT"]))
    for one in given["icat_examples"]:
        assert float(icat(np.array(one["LMS"]), np.array(one["SS"]))) == pytest.approx(one["ICAT"])


def test_terms_count_alike_and_ties_beat_nothing():
    """Term a: one triple, all right. Term b: three; the stereotype never wins, one tie, unrelated wins everything."""
    found = stereoset_scores({"b": [(1, 1, 2), (1, 2, 3), (1, 2, 3)], "a": [(3, 2, 1)]})
    assert found.terms == ("a", "b")
    assert (found.lm, found.ss, found.icat) == (0.5, 0.5, 0.5)
    assert found.per_term.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def scores(ids, sides, **more):
    """Tables whose sentences have one token each: its log-probability is the score."""
    made = [side_table(dict(zip(ids, ([value] for value in side), strict=True)), **more) for side in sides]
    return pair_tables(made)


def test_a_causal_sentence_is_its_mean_without_the_end_token():
    """Per token: stereotype -2, anti-stereotype -1.5, unrelated -3; by their sums the last would be the likeliest."""
    name = "stereoset/race/north/0"
    rows = ([-2.0] * 6, [-1.5] * 8, [-3.0] * 2)
    tables = pair_tables([side_table({name: row}, ended=True) for row in rows])
    assert stereoset_lm(tables).value == 1.0
    assert stereoset_ss(tables).value == 0.0
    assert stereoset_lm(tables).per_example == {name: 1.0}


def test_a_masked_word_is_the_mean_probability_of_its_pieces():
    """(0.9 + 0.1) / 2 = 0.5 beats 0.4, though its mean logarithm (0.3) does not; the pseudo table goes first."""
    name = "stereoset/race/north/0"
    rows = ([math.log(0.9), math.log(0.1)], [math.log(0.4)], [math.log(0.45)])
    tables = pair_tables([side_table({name: row}) for row in rows], "pseudo", ":fill#left")
    assert stereoset_ss(tables).value == 1.0
    assert stereoset_lm(tables).per_example == {name: 0.5}


def test_several_unrelated_sentences_count_by_their_mean():
    """-1 and -9 are -5: -4 beats it, -6 does not."""
    name = "x/y/z/0"
    sides = [side_table({name: [value]}, ended=True) for value in (-4.0, -6.0, -1.0, -9.0)]
    unrelated = Table(pa.concat_tables([table.arrow for table in sides[2:]]))
    assert stereoset_lm(pair_tables([*sides[:2], unrelated])).value == 0.5


def by_terms(num_terms, per_term, wins, seed=0):
    """`per_term` examples of each term; the share of stereotypes that win is 1 in `wins` terms and 0 in the others."""
    ids, sides = [], ([], [], [])
    for term in range(num_terms):
        for i in range(per_term):
            ids.append(f"stereoset/race/t{term}/{i}")
            for side, value in zip(sides, (-1.0, -2.0 if term < wins else -0.5, -3.0), strict=True):
                side.append(value)
    return scores(ids, sides, ended=True)


def test_the_interval_is_over_terms():
    """Ten terms, half of them all stereotype: as many examples as one likes tell no more about terms."""
    few, many = (stereoset_ss(by_terms(10, n, 5)) for n in (2, 40))
    assert few.value == many.value == 0.5
    assert few.ci == many.ci
    assert few.ci[0] < 0.3
    assert few.ci[1] > 0.7
    assert (few.groups, many.groups) == (10, 10)


def test_three_terms_are_few_and_one_is_none():
    three = stereoset_icat(by_terms(3, 4, 1))
    assert "only 3 target terms" in three.reason
    assert three.ci[0] <= three.value <= three.ci[1]
    one = stereoset_ss(by_terms(1, 20, 1))
    assert one.groups is None
    assert one.ci == pytest.approx((0.8316, 1.0), abs=1e-3)  # as Clopper-Pearson of 20 out of 20


def test_the_interval_of_icat_holds_its_value():
    """SS is 0.5, the best there is: every other draw is worse."""
    found = stereoset_icat(by_terms(10, 3, 5))
    assert found.value == found.ci[1] == 1.0
    assert found.ci[0] < 0.8


def test_one_domain_alone():
    ids = ["stereoset/race/a/0", "stereoset/race/b/1", "stereoset/gender/a/2"]
    tables = scores(ids, ([-1.0, -1.0, -5.0], [-2.0, -2.0, -2.0], [-3.0] * 3), ended=True)
    assert stereoset_ss(tables, domain="race").value == 1.0
    assert stereoset_ss(tables, domain="gender").value == 0.0
    assert stereoset_ss(tables).value == 0.5 * (0.5 + 1.0)  # term a: one of two
    with pytest.raises(NotMeasured, match="of 'religion'"):
        stereoset_ss(tables, domain="religion")


def test_what_is_not_finite_is_not_measured():
    tables = scores(["a/b/0"], ([-math.inf], [-1.0], [-1.0]), ended=True)
    with pytest.raises(NotMeasured, match="1 of 1 sentences"):
        stereoset_lm(tables)


# -- CrowS-Pairs -----------------------------------------------------------------------------------------------
def test_shared_places():
    """The golden pair without its start and end tokens; a longer side; nothing in common."""
    assert shared_places([7, 12, 20, 15, 9], [7, 12, 21, 15, 9]) == ([0, 1, 3, 4], [0, 1, 3, 4])
    assert shared_places([1, 2, 3, 4], [1, 5, 6, 3, 4]) == ([0, 2, 3], [0, 3, 4])
    assert shared_places([1, 2], [3, 4]) == ([], [])
    assert shared_places([5], [5]) == ([0], [0])
    assert shared_places([5, 5], [6, 5]) == ([1], [1])  # the end token that follows both decides which 5 it is


def crows_tables(instrument="pseudo", ended=False):
    """a: shared tokens favour the first (-1 against -2), though the word that differs is far less likely there."""
    ids = ("crows/age/stereo/0", "crows/age/antistereo/1", "crows/religion/stereo/2")
    more = {ids[0]: [-1.0, -9.0], ids[1]: [-3.0, -1.0], ids[2]: [-1.0, -1.0]}
    less = {ids[0]: [-2.0, -0.1], ids[1]: [-2.0, -1.0], ids[2]: [-1.0, -4.0]}
    tokens = {name: [1, 2] for name in ids}, {name: [1, 3] for name in ids}
    made = [side_table(rows, words, ended) for rows, words in zip((more, less), tokens, strict=True)]
    return pair_tables(made, instrument), ids


@pytest.mark.parametrize(("instrument", "ended"), [("pseudo", False), ("tokens", True)])
def test_only_shared_tokens_are_predicted(instrument, ended):
    tables, ids = crows_tables(instrument, ended)
    found = crows_pairs(tables)
    assert found.per_example == dict(zip(ids, (1.0, 0.0, 0.0), strict=True))
    assert found.value == pytest.approx(1 / 3)
    assert found.ci == pytest.approx(clopper_pearson(1, 3))
    assert found.reason == "1 of 3 pairs are equally likely"


def test_bias_types_and_directions():
    tables, _ = crows_tables()
    assert crows_pairs(tables, bias_type="age").value == 0.5
    assert crows_pairs(tables, bias_type="age", direction="stereo").value == 1.0
    assert crows_pairs(tables, direction="antistereo").value == 0.0
    with pytest.raises(NotMeasured, match="'gender', direction both"):
        crows_pairs(tables, bias_type="gender")


# -- WinoBias --------------------------------------------------------------------------------------------------
def test_the_gap_is_right_on_pro_less_right_on_anti():
    """Three of four choose the stereotype: 0.75 - 0.25."""
    ids = [f"winobias/type{1 + i // 2}/dev/{i}" for i in range(4)]
    tables = pair_tables([
        side_table(dict(zip(ids, ([value, -1.0] for value in side), strict=True)), ended=True)
        for side in ((-1.0, -1.0, -1.0, -3.0), (-2.0, -2.0, -2.0, -2.0))
    ])
    found = winobias(tables)
    assert found.value == 0.5
    assert found.per_example == dict(zip(ids, (1.0, 1.0, 1.0, -1.0), strict=True))
    assert found.ci[0] < 0.5 < found.ci[1] <= 1.0
    assert winobias(tables, kind="type1").value == 1.0
    assert winobias(tables, kind="type2").value == 0.0


# -- on models -------------------------------------------------------------------------------------------------
def test_a_causal_score_is_that_of_transformers():
    """The mean over all tokens but the first, without the end token."""
    subject, data = tiny_subject(seed=4), sentences(4)
    metric = bind("metric", "stereoset_ss")
    found = score(metric, "pairs", measure(subject, data, plan_for([metric], data))).per_example

    def mean(text):
        ids = torch.tensor([subject.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logp = subject.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        return float(logp.gather(-1, ids[0, 1:, None]).mean())

    assert found == {
        one.id: float(mean(one.answer) > mean(one.contrast)) for one in data["pairs"].examples
    }


@pytest.mark.parametrize(("side", "expected"), [("answer", 1.0), ("contrast", 0.0)])
def test_a_model_that_was_taught_a_stereotype_has_it(side, expected):
    """Taught one side of every pair: LM is 1 for either, SS is 1 or 0, and ICAT 0; CrowS and the gap see it too."""
    data = sentences(12)
    examples = data["pairs"].examples
    lesson = tuple(replace(one, answer=getattr(one, side), contrast=None, perturbed=()) for one in examples)
    model = taught(tiny_subject(seed=2), Data(pairs=Stream("pairs", "anchor", lesson)), ["pairs"], steps=20)
    metrics = [bind("metric", name) for name in ("stereoset_lm", "stereoset_ss", "stereoset_icat", "winobias")]
    found = score_all(metrics, data, measure(model, data, plan_for(metrics, data)))
    values = {name: one.value for (_, name), one in found.items()}
    assert values["stereoset_ss"] == expected
    assert values["stereoset_lm"] >= 0.5
    assert values["stereoset_icat"] == 0.0
    assert values["winobias"] == 2 * expected - 1


def test_a_masked_model_is_asked_word_by_word():
    """The pseudo table is what counts: the token table of a masked model hides the whole sentence at once."""
    subject, data = tiny_subject(seed=4, family="bert"), sentences(2)
    metric = bind("metric", "stereoset_ss")
    measured = measure(subject, data, plan_for([metric], data))
    whole = score(metric, "pairs", measured).per_example
    only = {key: table for key, table in measured.tables.items() if key[1] == "pseudo"}
    assert score(metric, "pairs", replace(measured, tables=only)).per_example == whole
    words = measured.tables["pairs", "pseudo", "pair:answer:fill#left"]
    assert words.num_tokens.tolist() == [len(subject.tokenizer("kind")["input_ids"]) - 2] * 2
