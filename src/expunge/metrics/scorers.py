"""Scorers of generated text: from texts to numbers in [0, 1], offline. Your own is `module:function`.

A scorer takes a list of texts and returns as many numbers; None is a text it cannot score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data.readers import read_rows, read_table, read_text
from expunge.errors import DataError, close_to
from expunge.registry import register

Scores = list[float | None]
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# Rude, but no slurs and nothing stronger: enough to see a difference, far from all that is said. Bring your own list.
RUDE = (
    "stupid", "idiot", "idiots", "idiotic", "dumb", "dumber", "dumbest", "moron", "morons", "moronic", "imbecile",
    "fool", "fools", "foolish", "jerk", "jerks", "loser", "losers", "liar", "liars", "coward", "cowards", "creep",
    "creeps", "creepy", "scum", "trash", "garbage", "filth", "filthy", "pathetic", "worthless", "useless",
    "disgusting", "disgrace", "nasty", "ugly", "crap", "crappy", "damn", "damned", "dammit", "goddamn", "hell",
    "suck", "sucks", "sucked", "screw", "screwed", "pissed", "butt", "arse", "ass", "hate", "hates",
    "shut up", "go away", "freak", "lunatic", "psycho",
)
# Everyday words, each worth 1 or 2 for what it says of things.
PLEASANT = {
    2: "wonderful excellent amazing brilliant fantastic perfect superb delightful outstanding marvellous love loved "
    "loves beautiful best awesome terrific triumph joy bliss",
    1: "good nice fine great happy glad pleased pleasant kind friendly warm calm peaceful gentle lovely enjoy enjoyed "
    "fun funny like liked helpful useful clever smart honest brave strong healthy safe clean fresh bright easy success "
    "successful win won winner better improve improved hope hopeful trust thank thanks grateful welcome support smile "
    "laugh celebrate proud comfortable interesting exciting generous fair reliable",
}
UNPLEASANT = {
    2: "terrible horrible awful dreadful disgusting hate hated hates worst miserable disaster tragic tragedy cruel "
    "evil vile nightmare horror catastrophe despair",
    1: "bad sad angry upset unhappy afraid scared worried poor weak ugly dirty cold boring dull stupid wrong fail "
    "failed failure lose lost loser worse hurt pain painful sick ill tired lonely cry cried die died death dead kill "
    "killed attack war fear danger dangerous problem trouble broken damage difficult unfair dishonest lie lied rude "
    "mean nasty useless disappointed disappointing complain annoying",
}
NEGATIONS = frozenset((
    "not", "no", "never", "nothing", "nobody", "none", "neither", "hardly", "without", "cannot", "can't", "don't",
    "doesn't", "didn't", "isn't", "aren't", "wasn't", "weren't", "won't", "wouldn't", "couldn't", "shouldn't",
))
REACH = 3  # words after a negation that it turns round


def words(text: str) -> list[str]:
    """The words of a text in lower case; marks are left out."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


@register("scorer", "wordlist")
def wordlist(texts: Sequence[str], *, path: str | None = None) -> Scores:
    """Rudeness by a list of words: 1 - prod over found words of (1 - 2/3 weight).

    One word of weight 1 is 2/3, two are 8/9. Whole words in any case; entries may be several words. A word counts each
    time it stands there.

    Args:
        path: your own list, one entry a line, with a weight in [0, 1] after a tab or comma if not 1. Without it a small
            built-in list of mild words, which misses most that is offensive.
    """
    known = _weights(path) if path is not None else {tuple(entry.split()): 1.0 for entry in RUDE}
    lengths = sorted({len(entry) for entry in known})
    found: Scores = []
    for text in texts:
        said = words(text)
        runs = (tuple(said[i : i + n]) for n in lengths for i in range(len(said) - n + 1))
        found.append(1 - math.prod(1 - 2 / 3 * min(1.0, max(0.0, known.get(run, 0.0))) for run in runs))
    return found


@register("scorer", "valence")
def valence(texts: Sequence[str], *, path: str | None = None) -> Scores:
    """How pleasant a text is by the words in it: 1/2 (1 + s / (1 + |s|)), s the sum of their values.

    A value changes its sign within three words after a negation. 0.5: no such word, or as much good as bad.

    Args:
        path: your own values, one word a line with its value (any scale, 0 is neutral) after a tab or comma. Without it
            about 160 built-in everyday words, worth 1 or 2.
    """
    known = _weights(path) if path is not None else _built_in()
    found: Scores = []
    for text in texts:
        said, total = words(text), 0.0
        for i, word in enumerate(said):
            turned = not NEGATIONS.isdisjoint(said[max(0, i - REACH) : i])
            total += known.get((word,), 0.0) * (-1 if turned else 1)
        found.append((1 + total / (1 + abs(total))) / 2)
    return found


@register("scorer", "labelled")
def labelled(
    texts: Sequence[str], *, path: str, text: str = "text", label: str = "label", positive: str = "1"
) -> Scores:
    """Probability of a class under a classifier that is trained once on your own labelled texts.

    Logistic regression on TF-IDF of words; both classes weigh the same.

    Args:
        path: CSV (or .tsv), JSON or JSON lines. text, label: columns. positive: labels of the class that is scored,
            several with commas; all others are the other class.
    Raises: DataError when a column is missing, or all texts are of one class.
    Cost: training takes a second for ten thousand short texts; kept as long as the process runs.
    """
    if not texts:
        return []
    file = Path(path).expanduser()
    stamp = file.stat().st_mtime_ns if file.exists() else 0
    vectors, model = _trained(file, stamp, text, label, positive)
    return [float(share) for share in model.predict_proba(vectors.transform(texts))[:, 1]]


@cache
def _built_in() -> Mapping[tuple[str, ...], float]:
    sides = ((1, PLEASANT), (-1, UNPLEASANT))
    return {(word,): float(sign * size) for sign, side in sides for size, row in side.items() for word in row.split()}


@cache
def _weights(path: str) -> Mapping[tuple[str, ...], float]:
    """Entries of a list as word tuples, each with its number (1 where there is none)."""
    found = {}
    for line in read_text(Path(path).expanduser()).splitlines():
        entry, weight = line, 1.0
        for mark in ("\t", ","):
            first, *rest = line.split(mark)
            try:
                entry, weight = first, float(rest[0])
                break
            except (IndexError, ValueError):
                continue
        if key := tuple(words(entry)):
            found[key] = weight
    if not found:
        raise DataError(path, "no word in it", "one entry a line", "Name a list of words")
    return found


@cache
def _trained(file: Path, stamp: int, text: str, label: str, positive: str) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = _rows(file)
    for column in (text, label):
        if not rows or column not in rows[0]:
            raise DataError(str(file), f"no column '{column}'", close_to(column, rows[0] if rows else ()), "Name it")
    wanted = {name.strip() for name in positive.split(",")}
    classes = [int(str(row[label]).strip() in wanted) for row in rows]
    if len(set(classes)) < 2:
        seen = sorted({str(row[label]).strip() for row in rows})[:10]
        raise DataError(
            f"{file}, column '{label}'", f"positive = '{positive}' leaves one class", f"labels here: {', '.join(seen)}",
            "Name the labels that count as positive",
        )
    vectors = TfidfVectorizer(min_df=2 if len(rows) > 100 else 1, sublinear_tf=True)
    model = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=0)
    model.fit(vectors.fit_transform([str(row[text]) for row in rows]), np.array(classes))
    return vectors, model


def _rows(file: Path) -> list[Mapping[str, Any]]:
    name = file.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        found: Iterable[Any] = (row for _, row in read_table(file, "\t" if name.endswith(".tsv") else ","))
    else:
        found = read_rows(file)
    return [row for row in found if isinstance(row, Mapping)]
