"""Characters that divide a prompt into turns may not come in with the data."""

from __future__ import annotations

import pytest

from expunge.data.examples import check_stream
from expunge.data.said import SPEAKS, TURN
from expunge.errors import DataError
from expunge.types import Example


@pytest.mark.parametrize("mark", [TURN, SPEAKS])
@pytest.mark.parametrize("field", ["prompt", "answer", "paraphrases", "choices", "perturbed", "contrast", "subject"])
def test_a_mark_in_a_text_is_refused_with_its_place(field, mark):
    text = f"Who{mark} is it?"
    given = {"prompt": "Who?", "answer": "Me."}
    given[field] = ("Who?", text) if field in ("paraphrases", "choices", "perturbed") else text
    with pytest.raises(DataError) as told:
        check_stream("people", [Example("a", "Who?", "Me."), Example("b", **given)])
    error = told.value
    assert error.where == "people"
    assert error.found == f"'{field}' of example 'b' (position 2) holds U+{ord(mark):04X}"
    assert mark not in str(error)
    assert all((error.accepted, error.do))


def test_other_characters_that_are_rare_are_texts():
    check_stream("people", [Example("a", "Who \ufdcf\ufdd2\ufffd?", "Me \U0001f600.")])
