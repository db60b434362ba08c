"""Membership scores of single texts, from measured tables. All of them: higher = more like a member.

l_t = log p(x_t | x_<t) at the counted tokens, LL = mean l_t, NLL = -LL, all in nats.

    loss               LL
    zlib               LL / bytes of the compressed text
    lowercase          -NLL(x) / NLL(lower-cased x)
    reference          LL - LL of another model
    neighbourhood      LL(x) - mean LL of texts near x
    min_k              mean of the smallest share of l_t
    min_k_plus_plus    the same of (l_t - mu_t) / sigma_t, mean and deviation of log p(v), v ~ p
    recall             LL(x | non-members) / LL(x)
    gradient_norm      -mean over weight tensors of ||gradient of NLL||_p
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import Table
from expunge.metrics.rows import Ragged, by_id, ragged, row_column
from expunge.metrics.stats import Floats

MembershipScore = Literal["loss", "min_k", "min_k_plus_plus", "zlib"]

SMALLEST_SIGMA = 1e-6  # a certain prediction has no spread; min-k++ divides by it
SMALLEST_NLL = 1e-9  # nats a token: a text known by heart can have 0, and two scores divide by it


class Scored(NamedTuple):
    """Scores by example id, and a remark that travels with them."""

    values: dict[str, float]
    remark: str = ""


def check_share(share: float, where: str = "membership.share") -> None:
    """Raises: RecipeError for a share of the tokens outside (0, 1]."""
    if not 0 < share <= 1:
        raise RecipeError(where, f"got {share!r}", "accepted: a number in (0, 1]", "Correct the value")


def smallest_mean(column: Ragged, share: float) -> Floats:
    """Mean of the smallest `share` of the values of each row, at least one value: max(1, floor(share n)), [rows]."""
    order = np.lexsort((column.values, column.owner))
    count = np.maximum(1, np.floor(share * column.n + 1e-9).astype(np.int64))
    taken = column.position < count[column.owner]  # rows are contiguous, so places within a row are its ranks
    sums = np.bincount(column.owner[taken], weights=column.values[order][taken], minlength=len(column.n))
    return np.asarray(sums / count)


def membership_scores(
    table: Table, *, score: MembershipScore = "loss", share: float = 0.2, ending: bool = True,
    least_sigma: float = SMALLEST_SIGMA,
) -> dict[str, float]:
    """Scores that one table holds all of: loss, zlib, min_k and min_k_plus_plus, by example id.

    Args:
        table: token table with `logp`; for zlib also `zlib`, for min_k_plus_plus `mean` and `var`.
        score: which one. share: of the tokens that min_k and min_k_plus_plus look at, in (0, 1]; at least one token.
        ending: whether the last counted token counts. least_sigma: what sigma is held above in min_k_plus_plus.
    """
    column = ragged(table, "logp", ending=ending)
    if not column.ids:
        return {}
    if score == "loss":
        values = column.means()
    elif score == "zlib":
        values = np.asarray(column.means() / row_column(table, "zlib", column, ending=ending))
    elif score == "min_k":
        values = smallest_mean(column, share)
    else:
        mean, variance = (ragged(table, name, ending=ending).values for name in ("mean", "var"))
        sigma = np.maximum(np.sqrt(np.maximum(variance, 0.0)), least_sigma)
        standard = np.asarray((column.values - mean) / sigma)
        values = smallest_mean(Ragged(standard, column.owner, column.n, column.ids), share)
    return by_id(column.ids, values)


def lowercase_scores(answer: Table, lowered: Table) -> Scored:
    """-NLL(x) / NLL(x in lower case): a text known as it is written loses more by being rewritten; -1 if unchanged."""
    x, lower = membership_scores(answer), membership_scores(lowered)
    return Scored({key: -_ratio(x[key], lower[key]) for key in _shared(x, lower)})


def reference_scores(answer: Table, other: Table, num_bytes: dict[str, int] | None = None) -> Scored:
    """LL - LL of another model: what this one knows of the text beyond how easy it is.

    Where the two models cut the texts into other tokens, both sums are divided by the bytes of the answer instead.

    Args:
        answer, other: token tables of the same texts by this model and by the other.
        num_bytes: of the answers in UTF-8, by id; only needed where the tokenizers differ.
    """
    mine, theirs = tokens_of(answer), tokens_of(other)
    ids = _shared(mine, theirs)
    if all(np.array_equal(mine[key][0], theirs[key][0]) for key in ids):
        return Scored({key: float(mine[key][1].mean() - theirs[key][1].mean()) for key in ids})
    known = [key for key in ids if num_bytes and key in num_bytes]
    values = {
        key: float(mine[key][1].sum() - theirs[key][1].sum()) / max(1, (num_bytes or {})[key]) for key in known
    }
    return Scored(values, "the two models cut texts into other tokens: log-probabilities are per byte")


def neighbourhood_scores(answer: Table, neighbours: Table) -> Scored:
    """LL(x) - mean over its neighbours of LL: how far the text stands out from texts like it."""
    x, near = membership_scores(answer), membership_scores(neighbours)
    lacking = len(x.keys() - near.keys())
    remark = f"{lacking} of {len(x)} examples have no word to replace" if lacking else ""
    return Scored({key: x[key] - near[key] for key in _shared(x, near)}, remark)


def recall_scores(answer: Table, conditioned: Table) -> Scored:
    """LL(x | P) / LL(x) over the same tokens of x.

    The same tokens: the longest run of tokens in which both rows end. Plain text has no prediction of its first
    token until something stands before it, and a tokenizer may join that token with what stands there; neither may
    count on one side alone.
    """
    alone, after = tokens_of(answer), tokens_of(conditioned)
    values, fewer = {}, 0
    for key in _shared(alone, after):
        (tokens, logp), (more, given) = alone[key], after[key]
        n = common_end(tokens, more)
        fewer += n < len(tokens)
        if n:
            values[key] = _ratio(float(given[-n:].mean()), float(logp[-n:].mean()))
    return Scored(values, f"{fewer} of {len(alone)} examples: fewer tokens compared than counted" if fewer else "")


def gradient_scores(table: Table) -> Scored:
    """-norm of the gradient: what was learned pulls at no weight any more."""
    return Scored(by_id(table.ids, -np.asarray(table.column("norm"), dtype=np.float64)) if len(table) else {})


def tokens_of(table: Table) -> dict[str, tuple[np.ndarray, Floats]]:
    """Counted tokens and their log-probabilities by id, of the first text of every example; empty rows left out."""
    found: dict[str, tuple[np.ndarray, Floats]] = {}
    if len(table) == 0:
        return found
    for key, item, token, logp in zip(table.ids, table.items, table.rows("token"), table.rows("logp"), strict=True):
        if item == 0 and len(logp):
            found[key] = (token, np.asarray(logp, dtype=np.float64))
    return found


def common_end(a: np.ndarray, b: np.ndarray) -> int:
    """In how many values two rows end alike."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[len(a) - n :] != b[len(b) - n :])
    return n if not len(differ) else n - 1 - int(differ[-1])


def _shared(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    return sorted(a.keys() & b.keys())


def _ratio(a: float, b: float) -> float:
    """a / b of two log-likelihoods (at most 0), each held away from 0; 1 where both are 0."""
    return min(a, -SMALLEST_NLL) / min(b, -SMALLEST_NLL)
