"""WinoBias and WinoGender: sentences about people by their occupation, with a pronoun of one gender or the other.

WinoBias (Zhao et al. 2018) says which pronoun agrees with the stereotype. WinoGender (Rudinger et al. 2018) does not;
there the pronoun of the gender that holds most of the jobs in an occupation (official statistics of the United States)
stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from expunge.data.examples import check_stream
from expunge.data.readers import read_table, read_text
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Data, Example, Stream

Kind = Literal["all", "type1", "type2"]
Part = Literal["all", "dev", "test"]
Referent = Literal["occupation", "participant", "both"]
PRONOUNS = frozenset({"he", "him", "his", "himself", "she", "her", "hers", "herself"})
_WORD = re.compile(r"\w+")


@reader("winobias")
def winobias(*, data: str, kind: Kind = "all", part: Part = "all") -> list[Example]:
    """WinoBias: the pro-stereotypical sentence as the answer, the other as the contrast; see `winobias_data`."""
    return list(winobias_data(data, kind, part)["winobias"].examples)


@reader("winogender")
def winogender(*, data: str, referent: Referent = "occupation") -> list[Example]:
    """WinoGender: the sentence with the majority's pronoun as the answer; see `winogender_data`."""
    return list(winogender_data(data, referent)["winogender"].examples)


def winobias_data(data: str | Path, kind: Kind = "all", part: Part = "all") -> Data:
    """One probe stream, "winobias": pairs of sentences that differ in their pronouns alone.

    Pairs that differ in another word as well (19 of 1,584, by mistakes in the release) are left out.

    Args:
        data: the folder with pro_stereotyped_type1.txt.dev and its seven siblings, or the one above it.
        kind: type1 needs knowledge of the world to resolve the pronoun, type2 grammar alone. part: dev or test.
    """
    root = Path(data).expanduser()
    root = root / "winobias" if (root / "winobias").is_dir() else root
    made = []
    for one in ("type1", "type2") if kind == "all" else (kind,):
        for split in ("dev", "test") if part == "all" else (part,):
            pro, anti = (_sentences(root / f"{side}_stereotyped_{one}.txt.{split}") for side in ("pro", "anti"))
            if len(pro) != len(anti):
                raise DataError(str(root), f"{len(pro)} and {len(anti)} sentences of {one}, {split}", "as many of both",
                                "Copy the folder again")
            made += [
                Example(f"winobias/{one}/{split}/{number}", "", a, contrast=b)
                for number, (a, b) in enumerate(zip(pro, anti, strict=True)) if _in_pronouns_alone(a, b)
            ]
    check_stream(f"{root}: {kind}, {part}", made)
    return Data(winobias=Stream("winobias", "probe", tuple(made)))


def winogender_data(data: str | Path, referent: Referent = "occupation") -> Data:
    """One probe stream, "winogender": the male and the female version of every sentence, majority's first.

    An id such as "winogender/nurse/patient/0/17" ends with whom the pronoun means (0: the occupation) and a number.

    Args:
        data: the folder with all_sentences.tsv and occupations-stats.tsv (any prefix).
        referent: sentences whose pronoun means the occupation, the other participant, or both kinds.
    Raises: DataError for a missing file, or an occupation without statistics.
    """
    root = Path(data).expanduser()
    share = {row["occupation"]: float(row["bls_pct_female"]) for _, row in _named(root, "occupations-stats.tsv")}
    versions: dict[tuple[str, ...], dict[str, str]] = {}
    for _, row in _named(root, "all_sentences.tsv"):
        *about, gender = row["sentid"].removesuffix(".txt").split(".")
        versions.setdefault(tuple(about), {})[gender] = row["sentence"]
    wanted = {"occupation": ("0",), "participant": ("1",), "both": ("0", "1")}[referent]
    made = []
    for number, ((occupation, other, means), texts) in enumerate(versions.items()):
        if occupation not in share or not {"male", "female"} <= texts.keys():
            raise DataError(str(root), f"'{occupation}' lacks statistics or a version", "the published files",
                            "Copy the folder again")
        if means in wanted:
            common, rare = ("female", "male") if share[occupation] > 50 else ("male", "female")
            name = f"winogender/{occupation}/{other}/{means}/{number}"
            made.append(Example(name, "", texts[common], subject=occupation, contrast=texts[rare]))
    check_stream(f"{root}: {referent}", made)
    return Data(winogender=Stream("winogender", "probe", tuple(made)))


def _sentences(file: Path) -> list[str]:
    """The sentences of a file of numbered lines, without the brackets around mentions."""
    lines = (line.strip().partition(" ")[2] for line in read_text(file).splitlines())
    return [re.sub(r"[\[\]]", "", line).strip() for line in lines if line]


def _in_pronouns_alone(a: str, b: str) -> bool:
    words = [_WORD.findall(text.lower()) for text in (a, b)]
    if len(words[0]) != len(words[1]):
        return False
    changed = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
    return bool(changed) and all(PRONOUNS.issuperset(pair) for pair in changed)


def _named(root: Path, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    found = sorted(root.glob(f"*{name}")) or [root / name]
    return read_table(found[0], "\t")
