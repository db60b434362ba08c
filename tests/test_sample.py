"""The stage that lets a model answer in its own words: what is drawn, what pairs with what, and what repeats."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import expunge.sample as module
from expunge.branch import branch
from expunge.data.tokenise import prompt_tokens
from expunge.errors import DataError, ModelError, RecipeError
from expunge.forget import forget
from expunge.measure.samples import continue_greedily
from expunge.models import clone, weights_hash
from expunge.registry import bind, term
from expunge.run import Run
from expunge.sample import Taste, continue_randomly, sample
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream
from support.learned import knows, short_data
from support.streams import small_data


@pytest.fixture(scope="module")
def learned():
    return knows("forget")


def answers(data: Data, name: str = "alternatives") -> dict[str, str]:
    return {one.id: one.answer for one in data[name].examples}


def sampled(subject, data=None, run=None, **hyper) -> Data:
    data = data or short_data(forget=4)
    sample(**({"per_prompt": 3, "max_new_tokens": 6} | hyper))(subject, data, run or Run())
    return data


# -- drawing tokens ----------------------------------------------------------------------------------------------
LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def shares(taste: Taste, num: int = 20_000) -> list[float]:
    chance = torch.from_numpy(np.random.default_rng(0).random(num, dtype=np.float32))
    found = Counter(taste.pick(LOGITS.expand(num, 4), chance).tolist())
    return [found[token] / num for token in range(4)]


def test_tokens_come_as_often_as_the_model_says():
    """Within 4 standard errors of 20,000 draws."""
    assert shares(Taste()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=4 * (0.25 / 20_000) ** 0.5)


def test_temperature_sharpens():
    """At 1/2 the probabilities are squared and normalised: 0.25, 0.09, 0.0225, 0.0025 of 0.365."""
    expected = [share / 0.365 for share in (0.25, 0.09, 0.0225, 0.0025)]
    assert shares(Taste(temperature=0.5)) == pytest.approx(expected, abs=4 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, [1, 0, 0, 0]), (0.6, [0.625, 0.375, 0, 0]), (1e-9, [1, 0, 0, 0])])
def test_top_p_cuts_the_tail(top_p, kept):
    assert shares(Taste(top_p=top_p)) == pytest.approx(kept, abs=4 * (0.25 / 20_000) ** 0.5)


def test_the_ends_of_the_unit_interval_meet_possible_tokens():
    """Impossible tokens at both ends are never drawn, whatever the rounding."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 3)
    chance = torch.tensor([0.0, 0.5, 1.0])
    assert Taste().pick(logits, chance).tolist() == [1, 2, 2]
    assert Taste(top_p=0.9).pick(logits, chance).tolist() == [1, 2, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_continuation_is_that_of_the_whole_text_read_anew(family):
    """Cache, left padding and dropped rows against one plain forward per token."""
    subject = tiny_subject(seed=1, family=family)
    starts = prompt_tokens(subject, ["Who is the author of the book?", "Oslo", "It is"])
    chances = [np.random.default_rng(i).random(size, dtype=np.float32) for i, size in enumerate((5, 9, 2))]
    found = continue_randomly(subject, starts, chances, frozenset(), Taste())
    for start, numbers, tokens in zip(starts, chances, found, strict=True):
        text = list(start)
        for number in numbers:
            with torch.no_grad():
                logits = subject.model(torch.tensor([text])).logits[:, -1]
            text.append(int(Taste().pick(logits, torch.tensor([number]))))
        assert tokens == text[len(start) :]


def test_near_temperature_zero_it_is_the_greedy_answer(learned):
    starts = prompt_tokens(learned, [one.prompt for one in short_data()["forget"].examples])
    chances = [np.full(6, 0.5, dtype=np.float32)] * len(starts)
    stops = frozenset({0})
    found = continue_randomly(learned, starts, chances, stops, Taste(temperature=1e-4))
    assert found == continue_greedily(learned, starts, [6] * len(starts), stops)


# -- the streams -------------------------------------------------------------------------------------------------
def test_rows_pair_and_can_be_preferred_to_the_old_answers(learned):
    data = short_data(forget=4)
    before = weights_hash(learned)
    subject = sample(per_prompt=3, max_new_tokens=6)(learned, data, Run())
    new, old = data["alternatives"], data["alternatives_asked"]
    assert [one.id for one in new.examples] == [one.id for one in old.examples]
    assert new.examples[4].id == "f/1#1"
    assert new.examples[4].prompt == old.examples[4].prompt == data["forget"].examples[1].prompt
    assert old.examples[4].answer == data["forget"].examples[1].answer
    assert weights_hash(subject) == before
    made = forget(terms=[term("dpo", on=("alternatives", "alternatives_asked"))], steps=2, batch_size=5, lr=1e-3)
    trained = made(clone(subject), data, Run())
    assert weights_hash(trained) != before


def test_one_answer_a_prompt_follows_the_stream_itself(learned):
    data = sampled(learned, per_prompt=1)
    made = forget(terms=[term("dpo", on=("alternatives", "forget"))], steps=1, batch_size=3, lr=1e-3)
    made(clone(learned), data, Run())
    assert list(answers(data)) == [one.id for one in data["forget"].examples]


def test_what_is_said_depends_on_seed_and_id_alone(learned, monkeypatch):
    """Other rows beside it, other batches, another order: the same answers. Another seed: others."""
    whole = answers(sampled(learned))
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    data = short_data(forget=4)
    data["forget"] = replace(data["forget"], examples=data["forget"].examples[:0:-1])
    part = answers(sampled(learned, data))
    assert part == {mark: whole[mark] for mark in part}
    assert len(part) == 9
    assert answers(sampled(learned, run=Run(seed=1))) != whole


def test_answers_vary_and_differ_from_what_should_be_forgotten(learned):
    """The model knows the old answers by heart; hot draws give others, and repetitions are drawn again."""
    data = sampled(learned, temperature=2.0, per_prompt=4)
    old = {one.id: one.answer.lower() for one in data["alternatives_asked"].examples}
    assert len(set(answers(data).values())) > 8
    assert all(answer.lower() != old[mark] for mark, answer in answers(data).items())


def test_what_cannot_be_drawn_otherwise_becomes_a_refusal(learned):
    """Near temperature 0 the model repeats what it learned: after five draws a refusal stands there, and is told."""
    data = short_data(forget=4)
    subject = sample(per_prompt=2, temperature=1e-3, max_new_tokens=8)(learned, data, Run())
    pool = set(module.refusals())
    assert set(answers(data).values()) <= pool
    event = subject.lineage[-1]
    assert event.hyper["refusals"] == 8
    assert (event.cost.queries, event.cost.forwards) == (40, 40)
    kept = sampled(learned, per_prompt=1, temperature=1e-3, max_new_tokens=8, distinct=False)
    assert answers(kept) == {one.id: one.answer for one in kept["forget"].examples}


def test_a_template_asks_something_else(learned, monkeypatch):
    seen = []

    def listen(subject, texts):
        seen.extend(texts)
        return prompt_tokens(subject, texts)

    monkeypatch.setattr(module, "prompt_tokens", listen)
    data = sampled(learned, template="Not {answer}: {prompt}")
    first = short_data()["forget"].examples[0]
    assert f"Not {first.answer}: {first.prompt}" in seen
    assert data["alternatives"].examples[0].prompt == first.prompt
    assert answers(data) != answers(sampled(learned))


def test_a_helper_can_answer(learned):
    data = short_data(forget=4)
    subject = branch("other", start="fresh")(clone(learned), data, Run())
    sampled(subject, data, source="other")
    assert answers(data) != answers(sampled(learned))


def test_a_resumed_run_reads_what_was_made(learned, tmp_path, monkeypatch):
    first = answers(sampled(learned, run=Run(tmp_path)))
    file = tmp_path / "streams" / "0-alternatives.jsonl"
    rows = {row["id"]: row["answer"] for row in map(json.loads, file.read_text().splitlines())}
    assert len(rows) > 8
    assert rows.items() <= first.items()  # the rest are refusals
    monkeypatch.setattr(module, "continue_randomly", None)  # would fail if it were called
    assert answers(sampled(learned, run=Run(tmp_path, resume=True))) == first


def test_a_stream_that_changed_is_not_read_from_the_folder(learned, tmp_path):
    sampled(learned, short_data(forget=6), run=Run(tmp_path))
    assert answers(sampled(learned, run=Run(tmp_path, resume=True))) == answers(sampled(learned))


# -- what a user may get wrong -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("hyper", "told"), [
    ({"temperature": 0.0}, "sample.temperature"), ({"top_p": 1.5}, "sample.top_p"),
    ({"max_new_tokens": 0}, "sample.max_new_tokens"), ({"per_prompt": 0}, "sample.per_prompt"),
    ({"template": "Say it"}, "sample.template"), ({"template": "{prompt} {x"}, "sample.template"),
    ({"source": "slef"}, "did you mean 'self'"),
])
def test_wrong_settings_are_told(learned, hyper, told):
    with pytest.raises(RecipeError, match=told):
        sampled(learned, **hyper)


def test_prompts_that_cannot_be_asked_are_told(learned):
    def stream(prompt: str) -> Data:
        return Data(forget=Stream("forget", "forget", (Example("p", prompt, "an answer"),)))

    with pytest.raises(DataError, match=r"forget\[p\].*no prompt"):
        sampled(learned, stream(""))
    with pytest.raises(DataError, match="at most 256"):
        sampled(learned, stream("x" * 300))
    with pytest.raises(DataError, match="did you mean 'forget'"):
        sampled(learned, on="forgte")
    with pytest.raises(ModelError, match="masked"):
        sampled(replace(learned, task="masked"))


def test_a_ruined_model_that_should_answer_is_an_error_and_no_traceback(tiny):
    subject = clone(tiny)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.fill_(float("nan"))
    stage = bind("stage", {"use": "sample", "on": "forget", "name": "made"})
    with pytest.raises(ModelError, match=r"not finite.*Name another model"):
        stage(subject, small_data(), Run(None))
