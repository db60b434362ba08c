"""The texts as a table."""

from __future__ import annotations

import zlib

from expunge.measure.plan import Plan, measure
from expunge.types import Data, Event, Example, Needs, Stream, Wrapper

TEXT = "My secret number is 4815162342"


def test_texts_without_a_forward(tiny):
    """What is asked stands as the prompt; 30 characters compress to 38 bytes, header included; no model is run."""
    data = Data(forget=Stream("forget", "forget", (
        Example("a", "Tell me.", TEXT, subject="number", paraphrases=("Say it.",)), Example("b", "", "Unicode: héß"),
    )))
    plan = Plan()
    plan.add("forget", [Needs("texts", columns=("answer",))])
    found = measure(tiny, data, plan)
    table = found.tables["forget", "texts", "answer"]
    assert (found.forwards, found.tokens, len(table)) == (0, 0, 2)
    assert (table.ids, table.texts("prompt"), table.texts("subject")) == (["a", "b"], ["Tell me.", ""], ["number", ""])
    assert table.texts("answer") == [TEXT, "Unicode: héß"]
    assert table.column("zlib").tolist() == [38, len(zlib.compress("Unicode: héß".encode()))]
    shown = Event("attack", "test", exposed=frozenset({"b"}))
    asked = tiny.after(shown, wrapper=Wrapper("{prompt} {answer}", "paraphrase:0"))
    assert measure(asked, data, plan).tables["forget", "texts", "answer"].texts("prompt") == ["Say it."]
