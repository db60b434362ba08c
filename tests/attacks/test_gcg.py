"""The suffix attack: what is searched is what is asked, and what is promised of it is measured."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.attacked import describe
from expunge.attacks.suffix import losses, propose
from expunge.attacks.suffix.problem import Frame, Problem, Put, problems_of, putting
from expunge.attacks.suffix.search import Search, Settings, goal_of, search
from expunge.attacks.suffix.settings import digest
from expunge.data.texts import render_prompt
from expunge.data.tokenise import prompt_tokens
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.plan import Plan, measure
from expunge.registry import bind
from expunge.run import Run
from expunge.testing import check_attack, tiny_data, tiny_subject
from expunge.types import Data, Example, Needs, Stream, Subject, Wrapper
from support import toys
from support.learned import knows, short_data
from support.tokenizers import KINDS, tokenizer_of

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUICK = {"use": "gcg", "steps": 2, "width": 12, "length": 8, "num": 2}


def chatty(subject):
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.chat_template = CHAT
    return replace(subject, tokenizer=tokenizer, wrapper=Wrapper(template="chat"))


def asked_with(subject, put, example):
    """The prompt's tokens as a generation would start from them."""
    wrapper = putting(subject.wrapper, put)
    prompt = wrapper.rewrite(example).prompt
    return tuple(prompt_tokens(replace(subject, wrapper=wrapper), [prompt])[0].tolist())


# -- where the string stands ---------------------------------------------------------------------------------------
def test_a_string_stands_after_before_or_inside_every_question():
    example = Example("a", "Who wrote it then?", "Mara", paraphrases=("Its author?",))
    assert Put(" x y")(example).prompt == "Who wrote it then? x y"
    assert Put("x y ", "prefix")(example).prompt == "x y Who wrote it then?"
    assert Put(" x y", "infix")(example).prompt == "Who wrote x y it then?"
    assert Put(" x y", "infix")(example).paraphrases == ("Its x y author?",)
    assert Put(" x", "infix")(replace(example, prompt="Who?")).prompt == "Who? x"
    assert Put(" x")(Example("b", "", "plain text")) is None


def test_what_was_said_before_a_prompt_is_still_said_before_it():
    wrapper = Wrapper("{prompt} {answer}", turns={"Who?": (("One?", "1"),), "": (("Any?", "2"),)})
    changed = putting(wrapper, Put(" x"))
    assert "One? 1" in render_prompt(changed, None, changed.rewrite(Example("a", "Who?", "Mara")).prompt)
    assert "Any? 2" in render_prompt(changed, None, "Else? x")


@pytest.mark.parametrize("kind", [*KINDS, "chat"])
@pytest.mark.parametrize("place", ["suffix", "prefix", "infix"])
def test_a_problem_is_the_prompt_that_will_be_asked_cut_in_pieces(kind, place):
    subject = tiny_subject()
    subject = chatty(subject) if kind == "chat" else replace(subject, tokenizer=tokenizer_of(kind))
    examples = tiny_data(forget=3)["forget"].examples
    found = problems_of(subject, examples, length=9, place=place)
    assert [one.id for one in found] == [example.id for example in examples]
    for one, example in zip(found, examples, strict=True):
        assert 1 <= len(one.start) <= 9
        put = one.put(one.start)
        assert set(put.text.split()) == {"x"}
        assert asked_with(subject, put, example) == (*one.before, *one.start, *one.after)
        assert subject.tokenizer.decode(one.target).strip().startswith("It is ")
        assert one.exact(one.start)
        if kind == "chat":
            text = subject.tokenizer.decode([*one.before, *one.start, *one.after])
            user = text.split("<|user|>")[1].split("<|end|>")[0]
            assert user == putting(subject.wrapper, put).rewrite(example).prompt.strip()


def test_an_earlier_attack_is_built_upon():
    """A rewrite, turns and a prefill that are there already stay, and are in the tokens."""
    subject = tiny_subject()
    wrapper = replace(
        subject.wrapper, rewrite=Put("Please! ", "prefix"), turns={"": (("One?", "1"),)}, prefill="Sure: "
    )
    subject = replace(subject, wrapper=wrapper)
    one = problems_of(subject, tiny_data()["forget"].examples, length=8)[0]
    text = subject.tokenizer.decode([*one.before, *one.start, *one.after, *one.target])
    assert text == f"One? 1\nPlease! What is forget 0?{one.put(one.start).text} Sure: It is 0 and forget."


def test_candidates_that_are_read_back_otherwise_are_left_out():
    """One call for all; the same verdict as tokenising each whole prompt."""
    subject = tiny_subject()
    one = problems_of(subject, tiny_data()["forget"].examples, length=8)[0]
    allowed = propose.allowed_tokens(subject.tokenizer, 300)
    rng = torch.Generator().manual_seed(0)
    rows = propose.swaps(
        torch.tensor(one.start), allowed.nonzero().T.repeat(8, 1)[: len(one.start)], allowed, 60, num_replace=2,
        random=0.5, rng=rng,
    )
    told = one.frame.survive(rows)
    assert 0 < int(told.sum()) < len(told)
    assert told.tolist() == [one.exact(row) for row in rows.tolist()]


def test_only_printable_ascii_without_special_tokens():
    tokenizer = tiny_subject().tokenizer
    allowed = propose.allowed_tokens(tokenizer, 310, forbidden=[70])
    texts = [tokenizer.decode([token]) for token in allowed.nonzero().squeeze(-1).tolist()]
    assert texts
    assert all(text.isascii() and text.isprintable() and text for text in texts)
    assert not allowed[[0, 70, 305]].any()  # the end token, a forbidden one, a row without a token
    more = propose.allowed_tokens(tokenizer, 310, ascii_only=False)
    assert int(more.sum()) >= int(allowed.sum())
    assert not more[0]


# -- the attack --------------------------------------------------------------------------------------------------
def test_it_does_what_every_attack_must():
    """On another family than tests/objectives/test_checks.py, and with two subjects yielded."""
    check_attack({**QUICK, "at": [1]}, tiny_subject(family="gpt2"))


def test_an_adapter_and_a_chat_model_can_be_attacked():
    subject = tiny_subject()
    adapted = replace(subject, model=bind("scope", {"use": "lora", "rank": 2})(tiny_subject().model).model)
    (one,), (other,) = (list(bind("attack", QUICK)(each, tiny_data(), Run())) for each in (adapted, subject))
    assert one.wrapper.rewrite == other.wrapper.rewrite  # a fresh adapter changes nothing
    (chat,) = bind("attack", QUICK)(chatty(subject), tiny_data(), Run())
    assert chat.wrapper.template == "chat"


def test_the_loss_told_is_the_loss_measured():
    """The audit's own measurement of the attacked subject finds the loss, and the answers said whole."""
    subject, data = knows("retain"), short_data()
    spec = {"use": "gcg", "steps": 8, "width": 24, "length": 10, "num": 3, "search": {"early_stop": False}}
    (attacked,) = bind("attack", spec)(subject, data, Run())
    told = attacked.lineage[-1].hyper
    plan = Plan()
    plan.add("forget", [Needs("samples"), Needs("tokens")])

    def losses(one):
        tables = measure(one, data, plan).tables
        table = tables["forget", "tokens", "answer"]
        logp = {id: np.asarray(row)[:-1] for id, row in zip(table.ids, table.arrow["logp"].to_pylist(), strict=True)}
        argmax = {id: row[:-1] for id, row in zip(table.ids, table.arrow["argmax"].to_pylist(), strict=True)}
        said = tables["forget", "samples", "answer"]
        pairs = zip(said.arrow["text"].to_pylist(), said.arrow["reference"].to_pylist(), strict=True)
        texts = dict(zip(said.ids, pairs, strict=True))
        found = [-logp[id].mean() for id in told["searched_on"]]
        assert [all(argmax[id]) for id in told["searched_on"]] == [
            texts[id][0].startswith(texts[id][1]) for id in told["searched_on"]
        ]
        return float(np.mean(found)), sum(all(argmax[id]) for id in told["searched_on"])

    before, after = losses(subject), losses(attacked)
    assert told["loss"] == pytest.approx(after[0], abs=1e-5)
    assert told["said"] == after[1]
    assert after[0] < before[0]


def test_whole_prompts_decide_not_the_quick_look_at_the_neighbours(monkeypatch):
    """Where nothing passes but what is read back otherwise, the search stands still."""
    problems = problems_of(knows("retain"), short_data()["forget"].examples, length=8, limit=2)
    survive = Frame.survive
    monkeypatch.setattr(Frame, "survive", lambda self, rows: ~survive(self, rows))
    start, *steps = search(problems, Settings(steps=2, width=12), Run())
    assert [(one.ids, one.loss, one.current) for one in steps] == 2 * [(start.ids, start.loss, start.current)]
    assert steps[-1].cost.queries > start.cost.queries  # they were candidates, and were asked about


def test_every_string_on_the_way_is_read_back_in_all_its_prompts():
    subject = knows("retain")
    problems = problems_of(subject, short_data()["forget"].examples, length=8, limit=3)
    examples = {example.id: example for example in short_data()["forget"].examples}
    seen = set()
    for settings in (Settings(steps=4, width=12), Settings(steps=3, width=12, operators=(1, 1, 1, 1), buffer=3)):
        for step in search(problems, settings, Run()):
            seen.add(step.ids)
            for one in problems:
                put = one.put(step.ids)
                assert put.text == step.text
                assert asked_with(subject, put, examples[one.id]) == (*one.before, *step.ids, *one.after)
    assert len(seen) > 4


def test_it_finds_more_than_as_many_random_strings():
    """By 0.11 to 0.34 nats with six seeds. Here, random swaps of single tokens do as well as those by gradient."""
    subject, data = knows("retain"), short_data()
    problems = problems_of(subject, data["forget"].examples, length=10, limit=2)
    best = []
    for more in ({}, {"random": 1.0, "num_replace": 10}):
        settings = Settings(steps=10, width=24, early_stop=False, **more)
        best.append(list(search(problems, settings, Run()))[-1].loss)
    assert best[0] < best[1] - 0.05


def test_what_it_was_searched_on_is_told_and_can_be_left_out():
    subject, data = tiny_subject(), tiny_data(forget=5)
    (plain,) = bind("attack", QUICK)(subject, data, Run())
    (held,) = bind("attack", {**QUICK, "held_out": True, "num": 9})(subject, data, Run())
    assert plain.exposed == frozenset()
    assert len(plain.lineage[-1].hyper["searched_on"]) == 2
    assert held.exposed == frozenset(held.lineage[-1].hyper["searched_on"])
    same = replace(data["retain"], examples=tuple(
        replace(one, id=other.id) for one, other in zip(data["retain"].examples, data["forget"].examples, strict=False)
    ))
    mixed = Data({**data, "retain": same})
    (kept,) = bind("attack", {**QUICK, "held_out": True, "on": "retain"})(subject, mixed, Run())
    assert set(kept.lineage[-1].hyper["searched_on"]) <= {one.id for one in data["forget"].examples}
    assert not kept.exposed  # ids are unique within a stream only
    assert len(held.exposed) == 4  # one is left to score
    seeds = [bind("attack", {**QUICK, "seed": seed, "steps": 0})(subject, data, Run()) for seed in range(4)]
    assert len({tuple(next(made).lineage[-1].hyper["searched_on"]) for made in seeds}) > 1


def test_a_growing_budget_yields_as_it_goes_and_a_killed_one_again(tmp_path):
    subject, data = tiny_subject(), tiny_data()
    spec = bind("attack", {**QUICK, "at": [0, 1, 3]})
    made = list(spec(subject, data, Run()))
    assert [one.lineage[-1].hyper["steps"] for one in made] == [0, 1, 3]
    queries = [one.lineage[-1].cost.queries for one in made]
    assert queries == sorted(set(queries))
    run = Run(tmp_path, save_every=2)
    begun = spec(subject, data, run)
    for _ in made:
        next(begun)
    begun.close()
    again = list(spec(subject, data, Run(tmp_path, resume=True)))
    assert [one.lineage for one in again] == [one.lineage for one in made]


def test_as_many_subjects_when_the_search_ends_early():
    """The oracle's are compared with the unlearned model's one by one."""
    subject, data = tiny_subject(), tiny_data()
    spec = {**QUICK, "at": [1, 4, 6, 9], "search": {"max_queries": 60}}
    made = list(bind("attack", spec)(subject, data, Run()))
    steps = [one.lineage[-1].hyper["steps"] for one in made]
    assert len(steps) == 4
    assert steps[0] == 1 < steps[-1] < 9
    assert made[-1].wrapper == made[-2].wrapper


def test_the_string_stands_in_no_label_record_or_log(tmp_path):
    """It may spell parts of the answers it was searched for."""
    subject, data = tiny_subject(), tiny_data()
    run, told = Run(tmp_path, save_every=1), []
    run.progress = lambda *words: told.append(words)
    bound = bind("attack", {**QUICK, "at": [0, 2]})
    made = list(bound(subject, data, run))
    told += [repr(one.lineage) for one in made] + [describe(bound, [one.lineage[-1].hyper]) for one in made]
    told += [path.read_text() for path in tmp_path.rglob("*.json")]
    texts = {one.wrapper.rewrite.text for one in made}
    assert len(texts) == 2
    assert len(told) > 5
    for text in texts:
        assert not [words for words in told if text.strip() in str(words) or json.dumps(text)[1:-1] in str(words)]
    again = list(bound(subject, data, Run(tmp_path, resume=True)))
    assert [one.wrapper for one in again] == [one.wrapper for one in made]


def test_nothing_is_dropped_out_while_it_searches():
    """A model that comes in training mode gives the same string, and goes out as it came."""
    data, found = tiny_data(), []
    for training in (False, True):
        subject = tiny_subject(family="gpt2")
        for module in subject.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        subject.model.train(training)
        (made,) = bind("attack", QUICK)(subject, data, Run())
        found.append((made.wrapper, made.lineage))
        assert subject.model.training is training
    assert found[0] == found[1]


def test_a_string_stands_before_a_cue_that_ends_the_question():
    assert Put(" x y")(Example("a", "Who?\nAnswer:", "Mara")).prompt == "Who? x y\nAnswer:"
    subject = tiny_subject()
    cued = [replace(one, prompt=one.prompt + "\nAnswer:") for one in tiny_data(forget=3)["forget"].examples]
    for one, example in zip(problems_of(subject, cued, length=8), cued, strict=True):
        put = one.put(one.start)
        assert asked_with(subject, put, example) == (*one.before, *one.start, *one.after)
        assert subject.tokenizer.decode(one.after).endswith("Answer:")


def test_a_search_is_not_taken_up_with_other_weights_or_another_goal():
    """Its strings and losses belong to what was asked for then."""
    models = toys.llama(), toys.shifted(toys.toy_llama())
    settings = Settings()
    one, other = (Problem(Subject(model, None), (1, 5), (3, 3), (7,), (11, 2)) for model in models)

    def key(problems=(one,), draft=None, **goal):
        return digest(settings, problems, goal_of(settings, **goal), draft)

    def far(depth):
        return lambda seen: seen.logits.sum() * depth

    term = losses.Term(losses.repetition, 2.0)
    keys = [
        key(), key((other,)), key((one, other)), key((other, one)), key(draft=other.subject), key(draft=one.subject),
        key(value=losses.mellowmax(1.0)), key(value=losses.mellowmax(2.0)), key(value=losses.flrt(3)),
        key(value=far(1)), key(value=far(2)), key(terms=[term]), key(terms=[replace(term, weight=3.0)]),
        key(terms=[replace(term, value=losses.fluency)]),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key() == key(value=losses.cross_entropy)
    assert key(value=losses.mellowmax(1.0)) == key(value=losses.mellowmax(1.0))


def test_each_round_of_candidates_is_drawn_once():
    asked = []

    def draw(number):
        asked.append(number)
        return torch.tensor([[1, 2], [3, 4], [1, 2]]) + 10 * number

    found = propose.survivors(draw, None, torch.tensor([3, 4]), 2)
    assert asked == [0]
    assert found.tolist() == [[1, 2]]
    propose.survivors(draw, lambda rows: torch.zeros(len(rows), dtype=torch.bool), torch.tensor([3, 4]), 2)
    assert asked[1:] == list(range(propose.ROUNDS))


def test_the_tokens_of_the_answers_can_be_forbidden():
    subject, data = tiny_subject(), tiny_data()
    problems = problems_of(subject, data["forget"].examples, length=8, limit=2)
    targets = {token for one in problems for token in one.target}
    for ban in (False, True):
        settings = Settings(steps=5, width=16, num_replace=4, ban_target=ban, early_stop=False)
        allowed = set(Search(problems, settings, Run(), goal_of(settings)).allowed.nonzero().squeeze(-1).tolist())
        assert allowed.isdisjoint(targets) is ban
        tried = {token for step in search(problems, settings, Run()) for token in step.current}
        assert len(tried) > 8
        assert tried <= allowed | set(problems[0].start)


def test_what_does_not_fit_says_why(monkeypatch):
    data = tiny_data()
    for family in ("bert", "bart", "distilbert"):
        with pytest.raises(DoesNotFit, match="is for causal models"):
            list(bind("attack", "gcg")(tiny_subject(family=family), data, Run()))
    plain = Data(forget=Stream("forget", "forget", (Example("a", "", "A text without a question."),)))
    with pytest.raises(DoesNotFit, match="holds too few questions"):
        list(bind("attack", "gcg")(tiny_subject(), plain, Run()))
    long = Example("a", "Who is " + "so " * 120 + "tall?", "Mara")
    with pytest.raises(DoesNotFit, match="no question can hold the string"):
        list(bind("attack", "gcg")(tiny_subject(), Data(forget=Stream("forget", "forget", (long,))), Run()))
    survive = Frame.survive
    monkeypatch.setattr(Frame, "survive", lambda self, rows: survive(self, rows) & (len(rows) == 1))
    with pytest.raises(DoesNotFit, match="no changed string is read back"):
        list(bind("attack", QUICK)(tiny_subject(), data, Run()))


@pytest.mark.parametrize(("wrong", "match"), [
    ({"on": "forgt"}, r"attacks\.gcg\.on: no stream 'forgt'; did you mean 'forget'"),
    ({"num": 0}, r"attacks\.gcg\.num: got 0"),
    ({"at": [3, 2]}, r"attacks\.gcg\.at: got \[3, 2\]"),
    ({"search": {"topk": 3}}, r"attacks\.gcg\.search\.topk: unknown setting \(got 3\); did you mean 'top_k'"),
    ({"search": {"steps": 3}}, r"attacks\.gcg\.search\.steps: unknown setting"),
    ({"search": {"width": "many"}}, r"attacks\.gcg\.search\.width: unknown setting"),
    ({"search": {"top_k": "many"}}, r"attacks\.gcg\.search\.top_k: got 'many'"),
    ({"search": {"random": 2.0}}, r"search\.random: got 2\.0"),
])
def test_mistakes_are_told(wrong, match):
    with pytest.raises((RecipeError, DataError), match=match):
        list(bind("attack", {**QUICK, **wrong})(tiny_subject(), tiny_data(), Run()))


def test_rarer_settings_reach_the_search():
    spec = {**QUICK, "search": {"max_queries": 20, "operators": [1, 1, 0, 0], "buffer": 2, "mellowmax": 1.0}}
    (made,) = bind("attack", spec)(tiny_subject(), tiny_data(), Run())
    assert made.lineage[-1].cost.queries <= 20
