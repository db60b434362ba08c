"""MUSE's memories and LAMBADA's last word: by hand, and on models that learned a text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from expunge.data.benchmarks.lambada import lambada as read_lambada
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import Table, Tables
from expunge.metrics.knowledge import GREEDY, knowmem, lambada, rouge_f1, shortened, verbmem
from expunge.metrics.stats import clopper_pearson
from expunge.registry import bind
from expunge.scoring import needs_of, score
from expunge.testing import tiny_subject
from expunge.types import Data, Stream
from support.learned import knows, short_data, taught
from support.metric_tables import tables, token_table


def _said(rows: Sequence[tuple[str, str, str]], length: int) -> Tables:
    """Greedy samples: (id, reference, text)."""
    columns = {name: [row[at] for row in rows] for at, name in enumerate(("id", "reference", "text"))}
    key = ("this", "forget", "sampled", GREEDY.format(length=length))
    return Tables({key: Table.of({**columns, "item": [0] * len(rows)})}, "forget", {})


def test_verbmem_by_hand() -> None:
    """"a b c d" against "a b x d e": 3 words in common of 4 and 5: F1 = 2 * (3/4)(3/5) / (3/4 + 3/5) = 2/3."""
    found = verbmem(_said([("p", "a b c d", "a b x d e"), ("q", "a b", "a b"), ("r", "...", "a")], 128))
    assert found.per_example == pytest.approx({"p": 2 / 3, "q": 1.0})
    assert "1 of 3 examples were left out" in found.reason


def test_words_are_stemmed_only_when_asked() -> None:
    assert rouge_f1(["running"], ["runs"], stem=False) == [0.0]
    assert rouge_f1(["running"], ["runs"], stem=True) == [1.0]
    given = _said([("p", "she was running", "she was running now")], 128)
    assert verbmem(given).value == pytest.approx(2 * 3 / 7)  # 3 common of 3 and 4


def test_knowmem_ends_where_the_next_question_begins() -> None:
    """Uncut, "Oslo" against six words would score 2/7."""
    rows = [("p", "Oslo", "Oslo\n\nQuestion: And Bergen?"), ("q", "Oslo", "in Oslo Question: and Bergen")]
    found = knowmem(_said(rows, 32))
    assert found.per_example == pytest.approx({"p": 1.0, "q": 2 / 3})
    assert shortened("Oslo\nQuestion: x\n\ny") == "Oslo"


def test_lambada_by_hand() -> None:
    """a: both tokens of the word right, one before it wrong; b: one of two wrong; c: no word annotated."""
    rows = [("a", [False, True, True]), ("b", [True, True, False]), ("c", [True, True, True])]
    plain = token_table("argmax", rows)
    found = lambada(tables(Table(plain.arrow.append_column("span", [[[0, 2, 1], [0, 2, 1], [0, 0, 0]]]))))
    assert found.per_example == {"a": 1.0, "b": 0.0}
    assert found.ci == clopper_pearson(1, 2)
    assert "1 of 3 texts have no annotated last word" in found.reason


def test_lambada_reads_what_the_reader_made(tmp_path) -> None:
    """A model that was taught the texts by heart knows every last word, one that was not knows none."""
    file = tmp_path / "passages.jsonl"
    texts = [one.prompt + " " + one.answer for one in short_data().get("forget").examples[:6]]  # type: ignore[union-attr]
    file.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    stream = Stream("probe", "probe", tuple(read_lambada(data=str(file))))
    assert [one.answer[slice(*one.spans[0])] for one in stream.examples] == [text.split()[-1] for text in texts]
    metric, plan = bind("metric", "lambada"), Plan()
    plan.add("probe", needs_of(metric))
    found = [
        score(metric, "probe", measure(subject, Data(probe=stream), plan)).value
        for subject in (taught(tiny_subject(seed=2), Data(probe=stream), ("probe",)), tiny_subject(seed=2))
    ]
    assert found[0] == 1.0
    assert found[1] is not None
    assert found[1] < 0.5


def test_both_memories_of_a_model_that_learned_one_side() -> None:
    """Taught `forget` and not `holdout`: all comes back of the one, little of the other."""
    subject, data = knows("forget"), short_data()
    for name in ("verbmem", "knowmem"):
        metric = bind("metric", {"use": name, "length": 0})
        plan = Plan()
        for stream in ("forget", "holdout"):
            plan.add(stream, needs_of(metric))
        measured = measure(subject, data, plan)
        mine, other = (score(metric, stream, measured).value for stream in ("forget", "holdout"))
        assert mine == pytest.approx(1.0), name
        assert other is not None
        assert other < 0.7, name
