"""Metrics of edited knowledge: golden values, what counts as a token of the answer, and models that were edited."""

from __future__ import annotations

import pytest

from expunge.audit import Audit
from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.measure.plan import measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.editing import edit_success, generality, locality, reliability
from expunge.metrics.stats import clopper_pearson
from expunge.models import clone
from expunge.recipe import AuditSpec
from expunge.registry import bind
from expunge.scoring import applies, label, plan_for, score, score_all
from expunge.types import Data, Example, Stream
from support.golden import load
from support.learned import knows, short_data, taught

END = 0  # the token that closes every text


def table(tokens, *, right=None, greedy=None, logp=None, ids=None):
    """A token table whose greedy tokens are given, or derived from what is right."""
    if right is None:
        pairs = zip(tokens, greedy or tokens, strict=True)
        right = [[a == b for a, b in zip(row, said, strict=True)] for row, said in pairs]
    columns = {
        "id": ids or [f"e{i}" for i in range(len(tokens))], "item": [0] * len(tokens), "token": tokens, "argmax": right,
        "greedy": greedy or tokens, "logp": logp or [[-1.0] * len(row) for row in tokens],
    }
    return Table.of(columns)


def seen(variant="alternative", stream="forget", **subjects):
    return Tables({(name, stream, "tokens", variant): found for name, found in subjects.items()}, stream, {})


@pytest.fixture(scope="module")
def gold():
    return load("f_learning")["metrics"]


@pytest.mark.parametrize(("metric", "variant"), [
    (reliability, "alternative"), (generality, "alternative@paraphrases"),
])
def test_golden_accuracy_of_both_forms(gold, metric, variant):
    tables = seen(variant, this=table(gold["gold_tokens"], greedy=gold["pred_argmax_tokens"]))
    for ending in (True, False):  # the golden answers end with different tokens: nothing closes them
        tokens = metric(tables, form="tokens", ending=ending)
        assert tokens.value == pytest.approx(gold["token_accuracy_mean"], abs=1e-9)
        exact = metric(tables, form="exact", ending=ending)
        assert exact.value == pytest.approx(gold["exact_match"], abs=1e-9)
        assert exact.ci == clopper_pearson(1, 3)


def test_locality_is_agreement_not_correctness(gold):
    pre, post = gold["locality_pre"], gold["locality_post"]
    answers = [[50 + i * 10 + j for j in range(len(row))] for i, row in enumerate(pre)]  # neither model says these
    tables = seen("answer", "unrelated", this=table(answers, greedy=post), original=table(answers, greedy=pre))
    assert locality(tables).value == pytest.approx(gold["locality_token"], abs=1e-9)
    assert locality(tables, form="exact").value == pytest.approx(gold["locality_exact"], abs=1e-9)
    same = seen("answer", "unrelated", this=table(answers, greedy=pre), original=table(answers, greedy=pre))
    assert locality(same).value == 1.0


def test_the_closing_token_counts_only_when_asked():
    """Answers of 2 and 1 tokens, each closed by END, which is always right: 1/2 and 0 without it, 2/3 and 1/2 with."""
    found = table([[4, 7, END], [5, END]], right=[[True, False, True], [False, True]])
    tables = seen(this=found)
    assert reliability(tables).per_example == {"e0": 0.5, "e1": 0.0}
    assert reliability(tables, ending=True).per_example == pytest.approx({"e0": 2 / 3, "e1": 0.5})
    assert reliability(seen(this=table([[4, 7, END], [5, END]]))).value == 1.0


def test_an_answer_of_one_token_is_never_left_out():
    assert reliability(seen(this=table([[4], [4]], right=[[True], [False]]))).per_example == {"e0": 1.0, "e1": 0.0}


def test_paraphrases_of_an_edit_count_as_their_mean():
    found = table([[4, END]] * 3, right=[[True, True], [False, True], [True, True]], ids=["a", "a", "b"])
    assert generality(seen("alternative@paraphrases", this=found)).per_example == {"a": 0.5, "b": 1.0}


def test_edit_success_by_hand():
    """Per token new -1 against old -2 wins; of the whole answer -3 against -2 loses. A tie is no success."""
    new = table([[1, 2, 3, END], [1, END]], logp=[[-1.0, -1.0, -1.0, -9.0], [-2.0, -9.0]])
    old = table([[4, END], [2, END]], logp=[[-2.0, -0.1], [-2.0, -0.1]])
    tables = Tables({("this", "forget", "tokens", "alternative"): new, ("this", "forget", "tokens", "answer"): old},
                    "forget", {})
    assert edit_success(tables).per_example == {"e0": 1.0, "e1": 0.0}
    assert edit_success(tables, normalise=False).per_example == {"e0": 0.0, "e1": 0.0}
    assert edit_success(tables).ci == clopper_pearson(1, 2)


def test_locality_without_an_original_or_of_another_tokenizer_is_not_measured():
    this = table([[1, 2]])
    with pytest.raises(NotMeasured, match="no original was given"):
        locality(seen("answer", "unrelated", this=this))
    with pytest.raises(NotMeasured, match="reads the answer of 'e0' as other tokens"):
        locality(seen("answer", "unrelated", this=this, original=table([[1, 3]])))


# -- on models -------------------------------------------------------------------------------------------------------
METRICS = [bind("metric", {"use": name, "form": "exact"}) for name in ("reliability", "generality", "locality")] + [
    bind("metric", "edit_success")
]


def edited_data():
    """Every forget answer is to become another two words; unrelated facts stay. Paraphrases differ from prompts."""
    data = short_data()
    answers = [example.answer for example in data["forget"].examples]
    edits = tuple(
        Example(e.id, e.prompt, e.answer, paraphrases=(e.paraphrases[0], e.prompt), alternative=new)
        for e, new in zip(data["forget"].examples, answers[1:] + answers[:1], strict=True)
    )
    return Data(
        forget=Stream("forget", "forget", edits), retain=data["retain"],
        taught=Stream("taught", "anchor", tuple(Example(e.id, e.prompt, e.alternative) for e in edits)),
    )


def scores(subject, data, original=None):
    plan = plan_for(METRICS, data)
    before = None if original is None else measure(original, data, plan)
    found = score_all(METRICS, data, measure(subject, data, plan), original=before)
    return {(stream, metric.partition("(")[0]): value for (stream, metric), value in found.items()}


def test_before_and_after_an_edit():
    """The original gives no new answer and agrees with itself; taught the new answers it gives them all."""
    data, original = edited_data(), knows("forget", "retain")
    before = scores(original, data, original)
    assert before["forget", "reliability"].value == 0.0
    assert before["forget", "edit_success"].value == 0.0
    assert before["retain", "locality"].value == 1.0
    edited = taught(clone(original), data, ["taught", "retain"])
    after = scores(edited, data, original)
    assert after["forget", "reliability"].value == 1.0
    assert after["forget", "edit_success"].value == 1.0
    assert after["forget", "generality"].value >= 0.5  # one of the two wordings is the prompt itself
    assert after["retain", "locality"].value > 0.8
    alone = scores(edited, data)
    assert alone["retain", "locality"].status == "n/a"
    assert alone["retain", "locality"].reason == "no original was given"


def test_the_audit_compares_with_the_original_under_every_condition():
    data, original = edited_data(), knows("forget", "retain")
    exactly = bind("metric", {"use": "locality", "form": "exact"})
    audit = Audit(data, AuditSpec((exactly,), (bind("attack", {"use": "quantize", "bits": 8}),)))
    audit.run(knows("forget"), original=lambda: original, oracle=lambda: knows("retain"))
    found = {name: state.scores["retain", label(exactly)] for name, state in audit.states.items()}
    assert found["original"].value == 1.0
    assert found["oracle"].value > 0.8  # it was taught the same retain answers
    assert found["after"].value < 0.5
    assert all(one.status == "ok" for one in found.values())
    assert set(found) == {"original", "oracle", "oracle+quantize(bits=8)", "after", "after+quantize(bits=8)"}


def test_edits_are_scored_on_forget_and_locality_elsewhere():
    data = short_data()
    assert applies(bind("metric", "reliability"), data) == ["forget"]
    assert applies(bind("metric", "locality"), data) == ["retain"]


# -- variants ---------------------------------------------------------------------------------------------------------
def test_a_variant_may_name_what_is_asked():
    one = Example("a", "P", "old", paraphrases=("Q", "R"), perturbed=("x", "y"), alternative="new")
    stream = Stream("forget", "forget", (one, Example("b", "P2", "old")))
    assert variants(stream, "alternative@paraphrases") == [("a", 0, "Q", "new", ()), ("a", 1, "R", "new", ())]
    assert variants(stream, "alternative@paraphrase:1", "prompt") == [("a", 0, "R", "new", ())]
    assert variants(stream, "alternative@prompt", "paraphrase:0") == [("a", 0, "P", "new", ())]
    assert [row[1:4] for row in variants(stream, "perturbed@paraphrases")] == [
        (0, "Q", "x"), (1, "Q", "y"), (2, "R", "x"), (3, "R", "y"),
    ]
    with pytest.raises(LookupError, match="no example of 'forget' has paraphrase 2"):
        variants(stream, "alternative@paraphrase:2")
    with pytest.raises(LookupError, match="no example of 'bare' has paraphrases"):
        variants(Stream("bare", "forget", stream.examples[1:]), "answer@paraphrases")
    with pytest.raises(DataError, match="got 'paraphrased'; accepted: prompt, paraphrases, or paraphrase:K"):
        variants(stream, "answer@paraphrased")


def test_generality_is_told_when_nothing_is_paraphrased():
    data = Data(forget=Stream("forget", "forget", (Example("a", "Who is f 1?", "Oslo sea", alternative="Mara"),)))
    metric = bind("metric", "generality")
    found = score(metric, "forget", measure(knows("forget"), data, plan_for([metric], data)))
    assert (found.status, found.reason) == ("n/a", "no example of 'forget' has paraphrases")
