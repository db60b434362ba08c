"""Extraction likelihood: how much of a text turns up in what the model says after each of its starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, Indices, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Denominator = Literal["target", "generated"]


@dataclass(frozen=True, eq=False)
class Continued:
    """A row of a continuation table: m counted tokens, and what the model says after each of their starts."""

    tokens: Indices  # [m]
    span: Indices  # [m] 0 outside the spans, 2 on the first token of one, 1 on its others
    stop: Indices  # [m] bool: nothing is said after this token
    runs: dict[int, Indices]  # what was generated from a token on

    def stretches(self) -> Iterator[tuple[range, Indices]]:
        """Starts that share their continuation, and it: what is said from start k on is `said[k - starts[0]:]`.

        As long as the model is right, what it says from one token on is that token and what it says from the next
        on, so all starts up to where it was run, or fell silent, share one sequence.
        """
        m = len(self.tokens)
        ends = sorted({*self.runs, *np.flatnonzero(self.stop).tolist(), m - 1}) if m else []
        for before, end in pairwise([-1, *ends]):
            starts = range(before + 1, end + 1)
            yield starts, np.concatenate([self.tokens[starts[0] : end], self.runs.get(end, self.tokens[end : end + 1])])

    def after(self, start: int) -> Indices:
        """What the model says from counted token `start` on."""
        return next(said[start - starts[0] :] for starts, said in self.stretches() if start in starts)


def continued(table: Table) -> list[tuple[str, Continued]]:
    """Rows of a continuation table with their ids."""
    if len(table) == 0:
        raise NotMeasured("no example with a counted token")
    names = ("token", "span", "stop", "start", "length", "made")
    found = []
    for name, *row in zip(table.ids, *(table.rows(column) for column in names), strict=True):
        token, span, stop, start, length, made = row
        pieces = np.split(made, np.cumsum(length)[:-1]) if len(length) else []
        runs = {int(at): piece for at, piece in zip(start, pieces, strict=True)}
        found.append((name, Continued(token, span, stop.astype(bool), runs)))
    return found


def ngrams(tokens: Indices, n: int) -> list[bytes]:
    """All n-grams in order, as keys; none when there are fewer than n tokens."""
    flat = np.ascontiguousarray(tokens, dtype=np.int32).tobytes()
    size = 4
    return [flat[size * i : size * (i + n)] for i in range(len(tokens) - n + 1)]


def overlaps(row: Continued, n: int, chosen: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Floats, Floats]:
    """How many n-grams of each continuation also stand in the rest of the text, and how many there are on each side.

    For k = 0..m-n: n-grams of what is said from token k on (with repeats) that occur in x_>=k; n-grams said; n-grams
    of x_>=k. chosen: which of the text's n-grams count, [m-n+1] bool; None: all.

    Returns: hits, said and there, [m-n+1]; empty when the text has fewer than n tokens.
    """
    keys = ngrams(row.tokens, n)
    counts = np.ones(len(keys), dtype=bool) if chosen is None else chosen
    last = {key: i for i, (key, counted) in enumerate(zip(keys, counts, strict=True)) if counted}
    hits, said = np.zeros(len(keys)), np.zeros(len(keys))
    for starts, tokens in row.stretches():
        where = np.array([last.get(key, -1) for key in ngrams(tokens, n)], dtype=np.int64)
        for k in range(starts[0], min(starts[-1] + 1, len(keys))):
            rest = where[k - starts[0] :]
            hits[k], said[k] = (rest >= k).sum(), len(rest)
    there = np.cumsum(counts[::-1], dtype=np.float64)[::-1]
    return hits, said, there


def check_n(n: int) -> None:
    if n < 1:
        raise RecipeError("extraction likelihood: n", f"got {n}", "accepted: 1 or more", "Correct the value")


def left_out(num: int, total: int, why: str) -> str:
    """A remark that travels with a score; empty when all examples were scored."""
    return f"{num} of {total} examples left out: {why}" if num else ""


@metric(
    "extraction_likelihood", Needs("continuations", columns=("all",)), unit="share", better="lower",
    roles=("forget", "holdout"),
)
def extraction_likelihood(tables: Tables, *, n: int = 10, denominator: Denominator = "target") -> Score:
    """Extraction likelihood: the share of the text's n-grams that turn up when the model goes on from each start.

    EL_n(x) = 1/(T-n) sum_{t=1..T-n} |{c in ng_n(greedy(x_<t)) : c in ng_n(x_>=t)}| / |ng_n(x_>=t)|, with repeats;
    greedy(x_<t) has at most T-t tokens and ends with an end-of-sequence token. Of an answer to a prompt, x_<1 is the
    prompt. MA = 1 gives EL_n = 1 for all n, unless an end-of-sequence token stands inside the text.

    Args:
        tables: continuation table of the answers.
        n: tokens of a fragment. Texts with fewer counted tokens are left out.
        denominator: "target" divides by the n-grams of the true rest; "generated" by those of what was said (nothing
            said gives 0). They differ only where generation ends early: "generated" then gives a single true
            fragment before the end the value 1.
    Returns: mean of EL_n in [0, 1].
    Fooled by: texts with repeated phrases (their n-grams turn up anyway); a refusal at the start of every answer
        gives 0 while the text is still there behind another beginning.
    Cost: 1 forward per example, and one generation per start after which the next token is not the greedy one
        (instead of T-1); the same table serves every n and both denominators.
    Source: Jang et al. 2022 (arXiv 2210.01504). Difference: the paper divides by the n-grams of what was said, the
        released code by those of the target, which is the default here.
    """
    check_n(n)
    rows = continued(tables.get("continuations"))
    found: dict[str, float] = {}
    for name, row in rows:
        hits, said, there = overlaps(row, n)
        if len(hits):
            found[name] = float((hits / np.maximum(1, there if denominator == "target" else said)).mean())
    why = left_out(len(rows) - len(found), len(rows), f"fewer than {n} tokens")
    return mean_score(by_id(list(found), np.array(list(found.values()))), "share", "lower", reason=why)
