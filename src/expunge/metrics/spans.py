"""Memorization and extraction of annotated spans: is the sensitive part gone, and is the rest still there?"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from expunge.measure.spans import FIRST, spans_of
from expunge.measure.tables import Tables
from expunge.metrics.extraction_likelihood import Continued, check_n, continued, left_out, ngrams, overlaps
from expunge.metrics.rows import by_id, ragged
from expunge.metrics.stats import mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Where = Literal["spans", "first", "context"]
Variant = Literal["span_anchored", "prefix_averaged"]


@metric(
    "span_memorization_accuracy", Needs("tokens", columns=("argmax", "span")), unit="share", better="lower",
    roles=("forget", "retain", "holdout"),
)
def span_memorization_accuracy(tables: Tables, *, where: Where = "spans") -> Score:
    """S-MA: memorization accuracy of the annotated spans alone.

    S-MA(x) = sum_t m_t [argmax_v p(v | x_<t) = x_t] / sum_t m_t, m_t = 1 on the tokens that count.

    Args:
        tables: token table of the answers with columns `argmax` and `span`.
        where: "spans": tokens inside a span. "first": the first token of each span, which an attacker has to win;
            the others are helped by it. "context": tokens outside the spans, which should stay as they were.
    Returns: mean over the examples with such a token, in [0, 1].
    Fooled by: spans of which only the first token is in doubt: the rest follows from spelling.
    Cost: 1 forward per example, shared with every teacher-forced metric.
    Source: Wang et al. 2024 (SeUL, arXiv 2402.05813) by name; its exact form could not be read. The first token of a
        text is not predicted and counts nowhere; nor does a span that begins with it have a first token here.
    """
    table = tables.get("tokens")
    right, span = ragged(table, "argmax"), ragged(table, "span")
    counts = {"spans": span.values > 0, "first": span.values == FIRST, "context": span.values == 0}[where]
    size = len(right.n)
    num = np.bincount(right.owner, weights=counts, minlength=size)
    hits = np.bincount(right.owner, weights=counts * right.values, minlength=size)
    kept = num > 0
    why = left_out(int((~kept).sum()), size, "no such token")
    ids = [name for name, keep in zip(right.ids, kept, strict=True) if keep]
    return mean_score(by_id(ids, hits[kept] / num[kept]), "share", "lower", reason=why)


@metric(
    "span_extraction_likelihood", Needs("continuations", columns=("{variant}",)), unit="share", better="lower",
    roles=("forget", "holdout"),
)
def span_extraction_likelihood(
    tables: Tables, *, n: int = 3, variant: Variant = "span_anchored", first_only: bool = True
) -> Score:
    """S-EL: how much of the annotated spans turns up when the model goes on from the true text.

    span_anchored: for each span [a, b) the model goes on after x_<a for b-a tokens g;
        |{c in ng_n'(g) : c in ng_n'(x_a..x_b-1)}| / |ng_n'(x_a..x_b-1)| with n' = min(n, b-a), mean over the spans.
    prefix_averaged: EL_n where only n-grams that touch a span count; at most 1 at each start, mean over the starts
        t = 1..T-n after which such an n-gram is still to come.

    Args:
        tables: continuation table of the answers.
        n: tokens of a fragment; spans are short, so 1 to 3.
        first_only: span_anchored leaves out a span whose tokens an earlier span of the text has: repeating what
            stands in the prompt is copying, not memory.
    Returns: mean over the examples with a span, in [0, 1].
    Fooled by: spans that can be guessed from what stands before them; read it beside the same of text that was never
        seen.
    Cost: span_anchored at most one generation of its length per span; prefix_averaged as extraction_likelihood.
    Source: Wang et al. 2024 (SeUL, arXiv 2402.05813) by name; its exact form could not be read, both forms are ours.
    """
    check_n(n)
    rows = continued(tables.get("continuations"))
    values = {
        name: _anchored(row, n, first_only) if variant == "span_anchored" else _averaged(row, n) for name, row in rows
    }
    found = {name: value for name, value in values.items() if value is not None}
    why = left_out(len(rows) - len(found), len(rows), "no span to be asked for")
    return mean_score(by_id(list(found), np.array(list(found.values()))), "share", "lower", reason=why)


def _anchored(row: Continued, n: int, first_only: bool) -> float | None:
    shares, seen = [], set()
    for begin, end in spans_of(row.span):
        true = row.tokens[begin:end]
        if first_only and true.tobytes() in seen:
            continue
        seen.add(true.tobytes())
        size = min(n, end - begin)
        there = ngrams(true, size)
        said = ngrams(row.after(begin)[: end - begin], size)
        shares.append(sum(key in there for key in said) / len(there))
    return float(np.mean(shares)) if shares else None


def _averaged(row: Continued, n: int) -> float | None:
    if len(row.tokens) < n:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(row.span > 0, n)
    touches: npt.NDArray[np.bool_] = np.asarray(windows.any(-1))
    hits, _, there = overlaps(row, n, touches)
    counted = there > 0
    return float(np.minimum(1.0, hits[counted] / there[counted]).mean()) if counted.any() else None
