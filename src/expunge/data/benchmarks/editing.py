"""Knowledge editing: facts with an old and a new answer, and unrelated ones that must stay (ZsRE, CounterFact).

An edit is an example whose `answer` is the old answer and whose `alternative` the new one, so a stream of edits
serves for both: "forget" teaches or unlearns the old answers, "forget:alternative" the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.data.benchmarks.edits import READ, Name, Record
from expunge.data.examples import check_stream
from expunge.data.hops import SOURCE
from expunge.data.readers import read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Stream

Part = Literal["edits", "unrelated", "attributes", "portability"]


@reader("zsre")
def zsre(*, path: str, part: Part = "edits", limit: int | None = None) -> list[Example]:
    """ZsRE in the form of MEND and EasyEdit: edits, or what belongs to them; see `editing_data`."""
    return _part(path, "zsre", part, limit)


@reader("counterfact")
def counterfact(*, path: str, part: Part = "edits", limit: int | None = None) -> list[Example]:
    """CounterFact as EasyEdit's flat records or as ROME's own: edits, or what belongs to them; see `editing_data`."""
    return _part(path, "counterfact", part, limit)


def _part(path: str, name: Name, part: Part, limit: int | None) -> list[Example]:
    data = editing_data(path, name, limit)
    wanted = "forget" if part == "edits" else part
    if wanted not in data:
        known = ", ".join("edits" if one == "forget" else one for one in data)
        raise DataError(f"{path}: part", f"these records have no '{part}'", f"accepted: {known}", "Name another part")
    return list(data[wanted].examples)


def editing_data(path: str | Path, name: Name, limit: int | None = None) -> Data:
    """The first `limit` edits of a file, what must not change with them, and what follows from them.

    forget: one example per edit: prompt, old answer, new answer (`alternative`), paraphrases. Probes, where records
    have them: unrelated (prompts with their answers), attributes (ROME: things of which the new answer was true
    before), portability (questions one step further, with the answers that are right after the edit). ROME's
    generation prompts come without answers and are left out. All edits are meant to hold at once, so left out are
    edits without a new answer or with one of the old ones as the new, a prompt that was edited before (the first
    record stays), and prompts of probes that are edited themselves or were named before.

    Args:
        path: JSON array or lines, may be gzipped. name: whose fields it has.
        limit: edits that are kept, counted after what is left out.
    Raises: DataError for a file that is missing, or a record without the fields.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{path}: limit", f"got {limit}", "accepted: 1 or more", "Leave it out to read everything")
    file = Path(path).expanduser()
    kept: dict[str, Record] = {}
    for record in _records(file, READ[name]):
        if limit is not None and len(kept) == limit:
            break
        kept.setdefault(record.edit.prompt, record)
    data = Data(forget=Stream("forget", "forget", tuple(record.edit for record in kept.values())))
    for name_of in ("unrelated", "attributes", SOURCE):
        near: dict[str, Example] = {}
        for record in kept.values():
            for number, (prompt, answer) in enumerate(record.others.get(name_of, ())):
                if prompt not in kept:
                    near.setdefault(prompt, Example(f"{record.edit.id}/{name_of}/{number}", prompt, answer))
        if near:
            data[name_of] = Stream(name_of, "probe", tuple(near.values()))
    for stream in data.values():
        check_stream(f"{path}: {stream.name}", stream.examples)
    return data


def _records(file: Path, read: Callable[[Mapping[str, Any], int], Record]) -> Iterator[Record]:
    """The records whose new answer is one, and another than the old."""
    for number, row in enumerate(read_rows(file), 1):
        try:
            record = read(row, number - 1)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{file}, record {number}", f"lacks what an edit has ({type(error).__name__}: {error})",
                "accepted: the published files", "Name the right benchmark, or copy the file again",
            ) from error
        if record.edit.alternative:
            yield record
