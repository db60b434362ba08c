"""Questions one step beyond an edited fact: who reads the edit must know their answers as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from expunge.data.variants import Texts
from expunge.registry import variant
from expunge.types import Data, Example

SOURCE = "portability"  # the stream that holds them
NONE = "the data holds no questions that go one step beyond the edited facts"


@variant("hops")
def hops(example: Example, prompt: str, data: Data, source: str = SOURCE) -> Texts:
    """The questions of another stream that follow from this edit, with the answers that are right after it.

    source: the stream; its examples belong to the edit whose id their own id begins with, up to a slash.
    """
    if source not in data:
        raise LookupError(NONE)
    start = f"{example.id}/"
    yield from ((one.prompt, one.answer, one.spans) for one in data[source].examples if one.id.startswith(start))


def hops_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Question and answer of every step a published record names; none for a record without them.

    Forms: EasyEdit's {"New Question": ..., "New Answer": ...}, and KnowEdit's lists of {"prompt", "ground_truth"} by
    kind, where the first accepted answer counts.
    """
    found = row.get("portability") or {}
    if "New Question" in found:
        yield found["New Question"].strip(), found["New Answer"].strip()
        return
    for questions in found.values():
        for one in questions:
            answer = one["ground_truth"]
            while not isinstance(answer, str):
                answer = answer[0]
            if answer.strip():
                yield one["prompt"].strip(), answer.strip()
