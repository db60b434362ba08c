"""WMDP: multiple-choice questions as a stand-in for hazardous knowledge (Li et al. 2024), from files or from the hub.

The texts that the authors unlearn on are not public; here the questions themselves are what is to be forgotten. Score
them and report aggregates; never print them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data.benchmarks.mmlu import mmlu, multiple_choice
from expunge.data.examples import check_stream
from expunge.data.readers import read_dataset, read_rows
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Stream

Domain = Literal["bio", "chem", "cyber"]
TOPICS: Mapping[str, str] = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}


@reader("wmdp")
def wmdp(*, data: str, domain: Domain = "bio", limit: int | None = None, words: int | None = None) -> list[Example]:
    """Questions of one domain: `answer` is the right choice, `choices` all four, `perturbed` the wrong ones.

    Args:
        data: folder with bio_questions.json and so on, or a name of the hub such as cais/wmdp.
        limit: first rows only. words: leave out questions that have more words, choices included.
    Returns: examples whose `subject` is the topic as the authors write it in their prompt.
    Raises: DataError for a file that is not there, or a row of another form.
    """
    root = Path(data).expanduser()
    table: Iterable[Mapping[str, Any]]
    if root.is_dir():
        place = str(root / f"{domain}_questions.json")
        table = read_rows(Path(place))
    else:
        place = f"{data}/wmdp-{domain}"
        table = read_dataset(data, f"wmdp-{domain}", "test")
    made = [
        multiple_choice(f"wmdp/{domain}/{number}", TOPICS[domain], row, f"{place}, row {number + 1}")
        for number, row in enumerate(table)
    ]
    kept = short(made, words)[:limit]
    check_stream(place, kept)
    return kept


def short(examples: Sequence[Example], words: int | None) -> list[Example]:
    """The examples of at most so many words, choices included; None: all."""
    return [one for one in examples if words is None or len(" ".join((one.prompt, *one.choices)).split()) <= words]


def wmdp_data(
    data: str, domain: Domain = "bio", *, mmlu_data: str | None = None, limit: int | None = None,
    words: int | None = None,
) -> Data:
    """The streams: forget (questions of the domain), and of MMLU retain (test) and dev (answered, for prompts).

    Args:
        data: see `wmdp`. mmlu_data: see `mmlu`; None: the folder "mmlu" beside `data`, where there is one.
        limit: questions of forget, and of retain (the same number of each subject). words: of each at most.
    Raises: DataError when a file is missing or no question is that short.
    """
    found = Data(forget=Stream("forget", "forget", tuple(wmdp(data=data, domain=domain, limit=limit, words=words))))
    beside = Path(data).expanduser().parent / "mmlu"
    source = mmlu_data or str(beside)
    if mmlu_data is None and not beside.is_dir():
        raise DataError("wmdp: mmlu_data", "missing", f"no folder {beside}", "Name the folder of MMLU")
    whole = short(mmlu(data=source), words)
    check_stream(f"{source}: test", whole)
    found["retain"] = Stream("retain", "retain", tuple(_in_turn(whole)[:limit]))
    found["dev"] = Stream("dev", "anchor", tuple(mmlu(data=source, split="dev")))
    return found


def _in_turn(examples: Sequence[Example]) -> list[Example]:
    """The first of every subject, then the second of every subject, and so on."""
    seen: dict[str | None, int] = {}
    ranked = []
    for one in examples:
        seen[one.subject] = seen.get(one.subject, -1) + 1
        ranked.append((seen[one.subject], one))
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]
