"""One published record of an edited fact, as ZsRE, CounterFact and those who carry them on write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expunge.data.hops import SOURCE, hops_of
from expunge.types import Example

Name = Literal["zsre", "counterfact"]


@dataclass(frozen=True)
class Record:
    """One record of a benchmark: the edit, and prompts with their answers by the stream they belong to."""

    edit: Example
    others: Mapping[str, tuple[tuple[str, str], ...]]


def _zsre(row: Mapping[str, Any], number: int) -> Record:
    old = [str(answer) for answer in row["answers"]]
    edit = _edit(f"zsre/{number}", row["src"], old, row["alt"], [row["rephrase"]], row["subject"])
    return Record(edit, {"unrelated": ((row["loc"], row["loc_ans"]),), SOURCE: tuple(hops_of(row))})


def _counterfact(row: Mapping[str, Any], number: int) -> Record:
    name = f"counterfact/{row['case_id']}"
    if "requested_rewrite" not in row:
        edit = _edit(
            name, row["prompt"], [row["ground_truth"]], row["target_new"], [row["rephrase_prompt"]], row["subject"]
        )
        near = ((row["locality_prompt"], row["locality_ground_truth"]),)
        return Record(edit, {"unrelated": near, SOURCE: tuple(hops_of(row))})
    wanted = row["requested_rewrite"]
    old, new = wanted["target_true"]["str"], wanted["target_new"]["str"]
    prompt = wanted["prompt"].replace("{}", wanted["subject"])
    edit = _edit(name, prompt, [old], new, row["paraphrase_prompts"], wanted["subject"])
    others = {
        "unrelated": tuple((near, old) for near in row["neighborhood_prompts"]),
        "attributes": tuple((near, new) for near in row.get("attribute_prompts", ())), SOURCE: tuple(hops_of(row)),
    }
    return Record(edit, others)


def _edit(name: str, prompt: str, old: list[str], new: str, paraphrases: Iterable[str], subject: str) -> Example:
    new = new.strip()
    known = {answer.strip().lower() for answer in old}
    return Example(
        name, prompt.strip(), old[0].strip(), subject=subject, paraphrases=tuple(one.strip() for one in paraphrases),
        alternative=new if new and new.lower() not in known else None,
    )


READ: Mapping[Name, Callable[[Mapping[str, Any], int], Record]] = {"zsre": _zsre, "counterfact": _counterfact}
