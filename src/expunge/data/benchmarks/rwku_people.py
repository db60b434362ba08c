"""The 200 people of RWKU by their introductions: what its code repository holds, where the probes are not at hand."""

from __future__ import annotations

import json
from pathlib import Path

from expunge.data.examples import check_stream
from expunge.data.readers import read_text
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Example

INTRODUCTIONS = "all_intro.json"


@reader("rwku_people")
def rwku_people(*, data: str, limit: int | None = None) -> list[Example]:
    """RWKU's people by their introductions, a stand-in where the probes are not at hand: who is this?

    `answer` is the first introduction, `paraphrased_answer` another wording where there is one.

    Args:
        data: folder with all_intro.json of the code repository. limit: first people only.
    """
    file = Path(data).expanduser() / INTRODUCTIONS
    made = []
    try:
        for name, texts in list(json.loads(read_text(file)).items())[:limit]:
            first, *more = dict.fromkeys(text.strip() for text in texts)
            other = more[0] if more else None
            made.append(Example(f"rwku/{name}", f"Who is {name}?", first, subject=name, paraphrased_answer=other))
    except (ValueError, AttributeError, TypeError) as error:
        found = f"another form ({type(error).__name__}: {error})"
        raise DataError(str(file), found, "accepted: {name: [introduction, ...]}", "Copy it again") from error
    check_stream(str(file), made)
    return made
