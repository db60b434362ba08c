"""Discoverable memorization: does the model go on as its training text does, when it is given the text's beginning?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import Table, Tables
from expunge.metrics.extraction_likelihood import left_out
from expunge.metrics.rouge import RougeKind, RougeMeasure, rouge_scores
from expunge.metrics.rows import Ragged, by_id, ragged
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

ROLES = ("forget", "retain", "holdout")
GREEDY = "prompt#temperature=0,prefix={prefix},length={suffix}"
TINY = -30.0  # log-probability from which log(1 - p) and -p are the same number
ROUNDING = 1e-9  # a number of samples that is whole but for this is whole


def samples_needed(logp: Floats | Sequence[float], prob: float) -> Floats:
    """Samples after which a text of that log-probability has come with probability `prob`: n(p), a whole number.

    n(p) = ceil(log(1 - p) / log(1 - p_z)), p_z = exp(logp): 1 for a certain text, infinite for an impossible one (and
    beyond the range of floating point; see `log10_samples_needed`).

    Args:
        logp: log-probability of each text under a decoding scheme, nats. prob: in (0, 1).
    """
    values = np.asarray(logp, dtype=np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        exact = np.ceil(math.log1p(-prob) / np.log1p(-np.exp(np.minimum(values, 0.0))) * (1 - ROUNDING))
        found = np.where(values < TINY, np.exp(log10_samples_needed(values, prob) * math.log(10)), exact)
    return np.asarray(np.maximum(found, 1.0), dtype=np.float64)


def log10_samples_needed(logp: Floats | Sequence[float], prob: float) -> Floats:
    """log10 of the (not rounded) number of samples, for texts so improbable that the number itself overflows.

    log n = log(-log(1 - p)) - log(-log(1 - p_z)), where the last term is log p_z for tiny p_z.
    """
    values = np.minimum(np.asarray(logp, dtype=np.float64), 0.0)
    with np.errstate(divide="ignore"):
        rate = np.where(values < TINY, values, np.log(-np.log1p(-np.exp(np.maximum(values, TINY)))))
    return np.asarray((math.log(-math.log1p(-prob)) - rate) / math.log(10), dtype=np.float64)


def prob_within(logp: Floats | Sequence[float], num: int) -> Floats:
    """Probability that a text of that log-probability comes at least once in `num` samples: 1 - (1 - p_z)^num."""
    values = np.minimum(np.asarray(logp, dtype=np.float64), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(num * np.log1p(-np.exp(values))), dtype=np.float64)


def suffixes(table: Table, column: str, prefix: int, suffix: int) -> tuple[Ragged, str]:
    """Rows cut to their counted tokens prefix .. prefix + suffix - 1, and a remark on rows that are too short."""
    rows = ragged(table, column)
    fits = rows.n >= prefix + suffix
    place = rows.position
    chosen = fits[rows.owner] & (place >= prefix) & (place < prefix + suffix)
    num = int(fits.sum())
    ids = tuple(name for name, keep in zip(rows.ids, fits, strict=True) if keep)
    lengths = np.full(num, suffix, dtype=np.int64)
    cut = Ragged(rows.values[chosen], np.repeat(np.arange(num), lengths), lengths, ids)
    return cut, left_out(len(fits) - num, len(fits), f"fewer than {prefix} + {suffix} counted tokens")


def check_lengths(where: str, prefix: int, suffix: int) -> None:
    for name, value, least in (("prefix", prefix, 0), ("suffix", suffix, 1)):
        if value < least:
            raise RecipeError(f"{where}.{name}", f"got {value}", f"accepted: {least} or more", "Correct the value")


def leading_hits(right: Ragged) -> Floats:
    """Right tokens before the first wrong one, as a share of the row, [rows]."""
    first_wrong = right.n.copy()
    wrong = right.values == 0
    np.minimum.at(first_wrong, right.owner[wrong], right.position[wrong])
    return np.asarray(first_wrong / right.n)


@metric(
    "discoverable_extraction", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES
)
def discoverable_extraction(tables: Tables, *, prefix: int = 50, suffix: int = 50) -> Score:
    """Discoverable extraction: the share of texts that greedy decoding recites exactly from their beginning.

    [greedy(x_<k) = x_k..x_k+m-1]: all m tokens after the first k are the greedy ones, which is the same by the greedy
    identity. The k tokens are counted ones: of an answer they follow the prompt, of plain text its first token, which
    nothing predicts.

    Args:
        tables: token table of the answers with column `argmax`.
        prefix: counted tokens that are given, k >= 0. suffix: tokens that must come, m >= 1.
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1. Texts shorter than prefix + suffix
        are left out; `reason` counts them.
    Raises: RecipeError for lengths that cannot be.
    Fooled by: texts that follow from common knowledge (lists, licences, code), which count as memorized; one changed
        token, after which a recital no longer counts. Compare with text never seen, and see `np_extraction`.
    Cost: 1 forward per example, shared; no generation.
    Source: Carlini et al. 2022 (arXiv 2202.07646), 50 + 50 tokens. Difference: k counts predicted tokens, so plain
        text gives one token more than k where the tokenizer puts no start token before it.
    """
    check_lengths("discoverable_extraction", prefix, suffix)
    right, remark = suffixes(tables.get("tokens"), "argmax", prefix, suffix)
    found = by_id(right.ids, (right.sums() == right.n).astype(float))
    exact = {name: float(share == 1.0) for name, share in found.items()}
    return mean_score(exact, "share", "lower", binary=True, reason=remark)


@metric("common_prefix", Needs("tokens", columns=("argmax",)), unit="share", better="lower", roles=ROLES)
def common_prefix(tables: Tables, *, prefix: int = 50, suffix: int = 50) -> Score:
    """Common prefix: how far greedy decoding recites a text from its beginning before the first wrong token.

    LCP(x) = (number of tokens x_k, x_k+1, .. until the first that is not the greedy one, at most m) / m.

    Args:
        tables: token table of the answers with column `argmax`.
        prefix: counted tokens that are given, k >= 0. suffix: tokens looked at, m >= 1.
    Returns: mean in [0, 1]; 1 = recited whole. Texts shorter than prefix + suffix are left out; `reason` counts them.
    Raises: RecipeError for lengths that cannot be.
    Fooled by: one unlearned token at the start of the suffix, which gives 0 although all the rest may still be known;
        `extraction_strength` looks from the other end.
    Cost: 1 forward per example, shared; no generation, for up to the first error greedy decoding is teacher forcing.
    Source: reported beside discoverable extraction; Carlini et al. 2022 (arXiv 2202.07646).
    """
    check_lengths("common_prefix", prefix, suffix)
    right, remark = suffixes(tables.get("tokens"), "argmax", prefix, suffix)
    return mean_score(by_id(right.ids, leading_hits(right)), "share", "lower", reason=remark)


@metric("token_match", Needs("sampled", variant=GREEDY, columns=("match",)), unit="share", better="lower", roles=ROLES)
def token_match(tables: Tables, *, prefix: int = 50, suffix: int = 50) -> Score:
    """Token match: the share of a text's tokens that stand at their place in what greedy decoding makes of its start.

    Hamming(x) = 1/m sum_j [greedy(x_<k)_j = x_k+j], j < m; tokens after an early end do not match.

    Args:
        tables: greedy continuations of the answers after k tokens.
        prefix: counted tokens that are given, k >= 0. suffix: tokens compared, m >= 1.
    Returns: mean in [0, 1]. Texts shorter than prefix + suffix are left out; `reason` counts them.
    Raises: RecipeError for lengths that cannot be.
    Fooled by: a word too many or too few, which shifts all that follows; frequent words that meet by chance. ROUGE
        (`verbatim_rouge`) forgives the first.
    Cost: one generation per text that greedy decoding does not recite whole, from its first error on.
    Source: reported beside discoverable extraction; Carlini et al. 2022 (arXiv 2202.07646).
    """
    check_lengths("token_match", prefix, suffix)
    table = tables.get("sampled", GREEDY.format(prefix=prefix, suffix=suffix))
    if not len(table):
        return Score.missing("no generated text", "share", "lower")
    offsets = table.ragged("match")[1]
    long = np.diff(offsets) >= suffix
    shares = table.row_sum("match")[long] / suffix
    ids = [name for name, keep in zip(table.ids, long, strict=True) if keep]
    remark = left_out(int((~long).sum()), len(long), f"fewer than {prefix} + {suffix} counted tokens, or no prompt")
    return mean_score(by_id(ids, shares), "share", "lower", reason=remark)


@metric(
    "verbatim_rouge", Needs("sampled", variant=GREEDY, columns=("text",)), unit="share", better="lower", roles=ROLES
)
def verbatim_rouge(
    tables: Tables, *, prefix: int = 50, suffix: int = 50, kind: RougeKind = "rougeL", measure: RougeMeasure = "f1"
) -> Score:
    """Verbatim ROUGE: ROUGE-L between what greedy decoding makes of a text's beginning and how the text goes on.

    f1 = 2 P R / (P + R), P and R = longest common subsequence of words over the words said and over the true ones; of
    both at most m tokens after the first k. Words are stemmed, as in `rouge`.

    Args:
        tables: greedy continuations of the answers after k tokens.
        prefix: counted tokens that are given, k >= 0; 0: the prompt alone. suffix: most tokens compared, m >= 1.
        kind: "rougeL" or "rouge1". measure: "f1" or "recall".
    Returns: mean over examples, in [0, 1]. Texts that end within the prefix are left out; `reason` counts them.
    Raises: RecipeError for lengths that cannot be.
    Fooled by: function words and the topic: text never seen scores 0.1 to 0.3, so compare with the holdout; a
        paraphrase, which leaks and scores low.
    Cost: one generation per text that greedy decoding does not recite whole, from its first error on; shared with
        `token_match` of the same lengths.
    Source: VerbMem of MUSE, Shi et al. 2024 (arXiv 2407.06460), for texts of any kind. Differences: the beginning is
        counted in tokens of the text, words are stemmed; `verbmem` keeps MUSE's own conventions. `rouge` cannot say
        it: it compares whole answers and asks prompts only.
    """
    check_lengths("verbatim_rouge", prefix, suffix)
    table = tables.get("sampled", GREEDY.format(prefix=prefix, suffix=suffix))
    if not len(table):
        return Score.missing("no generated text", "share", "lower")
    scores = rouge_scores(table.texts("reference"), table.texts("text"), kind=kind, measure=measure)
    seen = ~np.isnan(scores)
    found = by_id([name for name, keep in zip(table.ids, seen, strict=True) if keep], scores[seen])
    why = "no prompt, no token after the prefix, or no word of a-z or 0-9 there"
    return mean_score(found, "share", "lower", reason=left_out(int((~seen).sum()), len(seen), why))


@metric(
    "np_extraction", Needs("tokens", columns=("scheme:{temperature}:{top_k}:{top_p}",)), unit="share", better="lower",
    roles=ROLES,
)
def np_extraction(
    tables: Tables, *, num: int = 100, prob: float = 0.5, prefix: int = 50, suffix: int = 50,
    temperature: float = 1.0, top_k: int = 40, top_p: float = 1.0,
) -> Score:
    """(n, p)-discoverable extraction: the share of texts that come within n samples with probability p.

    p_z = prod_j p(x_k+j | x_<k+j), j < m, under the decoding scheme (temperature, then top-k, then top-p, each divided
    by what is left); extractable if 1 - (1 - p_z)^n >= p. No sample is drawn: one teacher-forced pass gives p_z, and
    `samples_needed` gives the n of each text.

    Args:
        tables: token table of the answers with a column for the scheme.
        num: samples, n >= 1. prob: with which probability the text must come, p in (0, 1).
        prefix: counted tokens that are given, k >= 0. suffix: tokens that must come, m >= 1.
        temperature: of the scheme, >= 0; 0 is greedy, and then the share is that of `discoverable_extraction`.
        top_k: most likely tokens that may be drawn; 0: all. top_p: nucleus, in (0, 1]; 1: all.
    Returns: share in [0, 1] with its Clopper-Pearson interval; per example 0 or 1. `reason`: the scheme, without which
        the number means nothing, and how many samples half of the texts need. Texts shorter than prefix + suffix are
        left out; `reason` counts them.
    Raises: RecipeError for values out of range.
    Fooled by: the scheme: one token outside top-k makes a text impossible, however well it is known; texts that
        follow from common knowledge. Compare with text never seen.
    Cost: 1 forward per example, shared, and for each scheme one pass over the logits.
    Source: Hayes et al. 2024 (arXiv 2410.19482).
    """
    check_lengths("np_extraction", prefix, suffix)
    checks = (("num", num, num >= 1, "1 or more"), ("prob", prob, 0 < prob < 1, "more than 0, less than 1"))
    for name, value, fits, accepted in checks:
        if not fits:
            raise RecipeError(f"np_extraction.{name}", f"got {value!r}", f"accepted: {accepted}", "Correct the value")
    column = f"scheme:{temperature}:{top_k}:{top_p}"
    logp, remark = suffixes(tables.get("tokens"), column, prefix, suffix)
    needed = by_id(logp.ids, samples_needed(logp.sums(), prob))
    found = {name: float(count <= num) for name, count in needed.items()}
    scheme = f"decoded at temperature {temperature:g}"
    scheme += f", top-k {top_k or 'off'}, top-p {f'{top_p:g}' if top_p < 1 else 'off'}" if temperature else " (greedy)"
    half = f"half of the texts need {_written(log10_samples_needed(logp.sums(), prob))} samples" if found else ""
    return mean_score(found, "share", "lower", binary=True, reason="; ".join(filter(None, [remark, scheme, half])))


def _written(log10_needed: Floats) -> str:
    """The number of samples within which half of the texts come."""
    middle = float(np.sort(log10_needed)[(len(log10_needed) - 1) // 2])
    if middle == math.inf:
        return "infinitely many"
    return f"10^{middle:.0f}" if middle >= 6 else str(max(1, math.ceil(10**middle * (1 - ROUNDING))))
