"""Multiple choice: by hand, against golden values, and on a model that was taught the right choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from expunge.data.questions import introduced, right_choices, wrong_choices
from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.data.variants import variants
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.choice import Normalise, choice_accuracy, credit, letter_accuracy, mc1, mc2
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.scoring import needs_of, score
from expunge.types import Data, Example, Score, Stream, Subject, Wrapper
from support import golden
from support.learned import short_examples, taught

Rows = Mapping[str, Sequence[Sequence[float]]]  # id -> the choices' log-probabilities, token by token


def _table(rows: Rows, end: float | None = None) -> Table:
    """A token table of choices; end: log-probability of a token after each, outside its span."""
    listed = [(name, item, list(values)) for name, choices in rows.items() for item, values in enumerate(choices)]
    tail = [] if end is None else [end]
    return Table.of({
        "id": [name for name, _, _ in listed], "item": [item for _, item, _ in listed],
        "zlib": [1] * len(listed),
        "logp": [[*values, *tail] for _, _, values in listed],
        "span": [[2, *[1] * (len(values) - 1), *[0] * len(tail)] for _, _, values in listed],
        "token": [list(range(len(values) + len(tail))) for _, _, values in listed],
    })


def _tables(right: Rows | Table, wrong: Rows | Table, texts: Mapping[str, str] | None = None, **more: Table) -> Tables:
    """Tables of the choices; texts: of example a, by variant."""
    given = {"right": right, "wrong": wrong, **more}
    found = {("tokens", name): one if isinstance(one, Table) else _table(one) for name, one in given.items()}
    for name, text in (texts or {}).items():
        found["texts", name] = Table.of({"id": ["a"], "item": [0], "answer": [text]})
    return Tables({("this", "forget", *key): table for key, table in found.items()}, "forget", {})


def test_by_hand() -> None:
    """a: -3 against -4 and -5 is right; b: -3 against -2 is wrong. Chance: (1/3 + 1/2) / 2."""
    given = _tables({"a": [[-1, -2]], "b": [[-3]]}, {"a": [[-4], [-5]], "b": [[-1, -1]]})
    found = choice_accuracy(given)
    assert found.per_example == {"a": 1.0, "b": 0.0}
    assert found.ci == clopper_pearson(1, 2)
    assert found.reason == "chance is 0.417"
    assert choice_accuracy(given, normalise="tokens").per_example == {"a": 1.0, "b": 0.0}  # -1.5, -3 against -1


def test_normalisations_by_hand() -> None:
    """Right: 2 tokens, "xyz", -4 in all, -3 before anything is asked; wrong: 1 token, two signs of 2 bytes, -3 and -1.

    none: -4 < -3. tokens: -2 > -3. characters: -4/3 > -3/2. bytes: -4/3 < -3/4. prior: -4 + 3 = -1 > -3 + 1 = -2.
    """
    given = _tables(
        {"a": [[-2.0, -2.0]]}, {"a": [[-3.0]]}, {"right": "xyz", "wrong": "éè"},
        **{"unasked:prior:right": _table({"a": [[-2.0, -1.0]]}), "unasked:prior:wrong": _table({"a": [[-1.0]]})},
    )
    found = {name: choice_accuracy(given, normalise=name).value for name in get_args(Normalise)}
    assert found == {"none": 0.0, "tokens": 1.0, "characters": 1.0, "bytes": 0.0, "prior": 1.0}


def test_the_token_that_ends_an_answer_does_not_count() -> None:
    """With the end counted, -1 - 9 would lose against -2."""
    given = _tables(_table({"a": [[-1.0]]}, end=-9.0), _table({"a": [[-2.0]]}, end=-1.0))
    assert choice_accuracy(given).value == 1.0


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [(-1.0, [-2.0, -3.0], 1.0), (-2.0, [-1.0, -3.0], 0.0), (-1.0, [-1.0, -3.0], 0.5), (-1.0, [-1.0] * 3, 0.25)],
)
def test_credit(right: float, wrong: list[float], expected: float) -> None:
    """A model that says the same of all four choices is right as often as chance."""
    assert credit(right, np.array(wrong)) == expected


def test_broken_numbers_are_said() -> None:
    assert math.isnan(credit(math.nan, np.array([-1.0])))
    assert choice_accuracy(_tables({"a": [[math.nan]]}, {"a": [[-1.0]]})).status == "n/a"
    assert choice_accuracy(_tables({"a": [[-math.inf]]}, {"a": [[-math.inf]]})).value == 0.5
    assert mc2(_tables({"a": [[-math.inf]]}, {"a": [[-math.inf]]})).status == "n/a"


def test_truthfulqa_golden() -> None:
    """The best true answer (the first) is less probable than a false one; the true ones hold 0.37 of the mass."""
    part = golden.load("lau_dua")["truthfulqa"]
    given = _tables(
        {"q": [[value] for value in part["scores_true"]]}, {"q": [[value] for value in part["scores_false"]]}
    )
    assert mc1(given).value == part["MC1"]
    assert mc2(given).value == pytest.approx(part["MC2"], abs=1e-9)


def test_mc_closed_forms() -> None:
    """p = 1/2 and 1/8 true, 1/4 false: MC1 = 1, MC2 = 5/7. MC1 looks at the first true answer alone: q is wrong."""
    true = {"p": [[math.log(1 / 2)], [math.log(1 / 8)]], "q": [[math.log(1 / 8)], [math.log(1 / 2)]]}
    given = _tables(true, {name: [[math.log(1 / 4)]] for name in true})
    assert mc1(given).per_example == {"p": 1.0, "q": 0.0}
    assert mc2(given).per_example == pytest.approx({"p": 5 / 7, "q": 5 / 7})
    assert choice_accuracy(given).value == 1.0  # any right choice will do
    assert mc1(given).reason == "chance is 0.5"
    assert choice_accuracy(given).reason == "chance is 0.667"


def test_examples_without_both_are_counted() -> None:
    found = choice_accuracy(_tables({"a": [[-1.0]], "b": [[-1.0]]}, {"a": [[-2.0]]}))
    assert found.n == 1
    assert "1 examples without a right and a wrong choice were left out" in found.reason
    with pytest.raises(NotMeasured, match="no right"):
        choice_accuracy(Tables({}, "forget", {}))


# -- the texts ---------------------------------------------------------------------------------------------------
CHOICES = ("red", "green", "blue", "grey")
ASKED = Example("q", "Which?", "green", subject="colours", choices=CHOICES)


def test_what_is_right_and_wrong() -> None:
    """False answers as named, else all choices but the answer; what is not false is right, the answer first."""
    assert wrong_choices(ASKED) == ("red", "blue", "grey")
    assert right_choices(ASKED) == ("green",)
    several = replace(ASKED, perturbed=("red", "grey"))
    assert wrong_choices(several) == ("red", "grey")
    assert right_choices(several) == ("green", "blue")


def test_the_prompt_of_wmdp() -> None:
    assert introduced(ASKED, ASKED.prompt) == (
        "The following are multiple choice questions (with answers) about colours.\n\n"
        "Which?\nA. red\nB. green\nC. blue\nD. grey\nAnswer:"
    )


def test_letters_with_answered_questions_of_the_same_topic() -> None:
    other = replace(ASKED, id="d1", prompt="Other?", answer="grey")
    dev = Stream("dev", "anchor", (replace(ASKED, id="d0", subject="shapes"), other))
    data = Data(probe=Stream("probe", "probe", (ASKED,)), dev=dev)
    (row,) = variants(data["probe"], "letters:right:1:dev", data=data)
    assert row[3:] == ("B", ((0, 1),))
    assert row[2].startswith("The following are multiple choice questions (with answers) about colours.\n\nOther?\n")
    assert "D. grey\nAnswer: D\n\nWhich?" in row[2]
    assert [row[3] for row in variants(data["probe"], "letters:wrong:0:dev", data=data)] == ["A", "C", "D"]
    with pytest.raises(LookupError, match="1 answered questions about colours, 2 are wanted"):
        variants(data["probe"], "letters:right:2:dev", data=data)
    with pytest.raises(LookupError, match="no stream 'elsewhere'"):
        variants(data["probe"], "letters:right:1:elsewhere", data=data)


def test_a_choice_that_stands_twice_is_right_under_both_letters() -> None:
    twice = replace(ASKED, choices=("green", "red", "green"))
    stream = Stream("probe", "probe", (twice,))
    assert [row[3] for row in variants(stream, "letters:right:0:dev")] == ["A", "C"]
    assert [row[3] for row in variants(stream, "letters:wrong:0:dev")] == ["B"]


def test_letters_are_told_apart_where_their_tokens_part() -> None:
    """[7, 1] against [7, 2]: the second token decides, whatever comes before and after."""
    def letters(rows: Sequence[tuple[list[int], list[float]]]) -> Table:
        return Table.of({
            "id": ["q"] * len(rows), "item": list(range(len(rows))), "zlib": [1] * len(rows),
            "token": [ids for ids, _ in rows], "logp": [logp for _, logp in rows],
        })

    keys = [("this", "forget", "tokens", f"letters:{which}:0:dev") for which in ("right", "wrong")]
    right, wrong = letters([([7, 1, 9], [-1.0, -2.0, -9.0])]), letters([([7, 2, 9], [-1.0, -3.0, -1.0])])
    assert letter_accuracy(Tables(dict(zip(keys, (right, wrong), strict=True)), "forget", {})).value == 1.0


# -- a model that learned ----------------------------------------------------------------------------------------
def _questions(num: int, mark: str, shift: int) -> tuple[Example, ...]:
    """Questions with three choices; the right one stands at every place in turn."""
    made = []
    for i, one in enumerate(short_examples(num, mark, shift)):
        order = np.roll([one.answer, "no one", "all of them"], i % 3).tolist()
        made.append(replace(one, choices=tuple(order), perturbed=(), subject="people"))
    return tuple(made)


def _learned(template: str) -> tuple[Subject, Data]:
    """A tiny model that was taught the answers of `forget`, and the letters of `lettered`."""
    data = Data(forget=Stream("forget", "forget", _questions(4, "f", 0)))
    pairs = [(one, introduced(one, one.prompt)) for one in _questions(3, "l", 3)]
    data["lettered"] = Stream("lettered", "forget", tuple(one for one, _ in pairs))
    told = [Example(one.id, asked, "ABC"[one.choices.index(one.answer)]) for one, asked in pairs]
    streams = Data(forget=data["forget"], told=Stream("told", "anchor", tuple(told)))
    return taught(_untaught(template), streams, ("forget", "told"), steps=90), data


def _untaught(template: str) -> Subject:
    texts = [Example(one.id, introduced(one, one.prompt), one.answer) for one in _questions(12, "f", 0)]
    tokenizer = build_tokenizer(texts, size=500)  # words are few tokens: the prompts are long
    return Subject(build_model(tokenizer, width=32, layers=2).eval(), tokenizer, Wrapper(template))


def _score(name: str, stream: str, subject: Subject, data: Data, **hyper: object) -> Score:
    metric, plan = bind("metric", {"use": name, **hyper}), Plan()
    plan.add(stream, needs_of(metric))
    return score(metric, stream, measure(subject, data, plan))


def test_what_was_taught_is_chosen() -> None:
    subject, data = _learned("chat")
    for normalise in ("none", "tokens", "prior"):
        assert _score("choice_accuracy", "forget", subject, data, normalise=normalise).value == 1.0
    assert _score("letter_accuracy", "lettered", subject, data).value == 1.0
    assert (_score("letter_accuracy", "lettered", _untaught("chat"), data).value or 0.0) < 0.7


def test_likelihoods_are_those_of_the_obvious_loop() -> None:
    """Each choice run by itself, its tokens' log-probabilities summed without the end: the same right choices."""
    import torch

    subject = _untaught("{prompt} {answer}")
    data = Data(probe=Stream("probe", "probe", _questions(12, "p", 0)))
    credits = {}
    for one in data["probe"].examples:
        sums = []
        for choice in (one.answer, *wrong_choices(one)):
            ids = subject.tokenizer(f"{one.prompt} {choice}", return_tensors="pt").input_ids
            start = len(subject.tokenizer(one.prompt).input_ids)
            with torch.no_grad():
                logp = subject.model(input_ids=ids).logits[0].log_softmax(-1)
            sums.append(sum(float(logp[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
        credits[one.id] = float(sums[0] > max(sums[1:]))
    assert 0 < sum(credits.values()) < len(credits)
    assert _score("choice_accuracy", "probe", subject, data).per_example == credits
