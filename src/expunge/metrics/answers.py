"""How right a generated answer is, by its words: equal, sharing words, or sharing their order."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, bootstrap_of, mean_score
from expunge.metrics.text import _PIECES, ORDERS, bleu, ngrams
from expunge.registry import metric
from expunge.types import Needs, Score

ROLES = ("forget", "retain", "holdout", "probe")
SAID = Needs("samples", variant="prompt", columns=("text",))
Equal = Literal["plain", "words"]
Form = Literal["sentence", "corpus"]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, without punctuation marks and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_MARKS)).split()


def f1_of(reference: str, text: str) -> float:
    """F1 of the words two answers share, each as often as in both; two answers without words are equal."""
    wanted, said = words_of(reference), words_of(text)
    if not wanted or not said:
        return float(wanted == said)
    return 2 * (Counter(wanted) & Counter(said)).total() / (len(wanted) + len(said))


@metric("answer_f1", SAID, unit="share", better="lower", roles=ROLES)
def answer_f1(tables: Tables) -> Score:
    """Answer F1: how many words the generated answer and the true one share.

    2 P R / (P + R) = 2 c / (n + m): n and m the words of the two, c those in common, each as often as in both. Lower
    case, without punctuation marks and articles; order does not count.

    Args:
        tables: sample table of the prompts with the columns `text` and `reference`.
    Returns: mean over examples, in [0, 1]; several samples of one example are averaged first.
    Fooled by: the right words in a wrong sentence (order and negation do not count); whole sentences around a right
        answer lose precision.
    Cost: one generation per example, shared.
    Source: Rajpurkar et al. 2016 (SQuAD, arXiv 1606.05250), the score of KGA's question answering and of RWKU's
        TriviaQA. Difference: one true answer per question.
    """
    table = tables.get("samples", "prompt")
    pairs = zip(table.texts("reference"), table.texts("text"), strict=True)
    values = np.array([f1_of(*pair) for pair in pairs], dtype=np.float64)
    return mean_score(by_id(table.ids, values), "share", "lower", reason="" if len(table) else "no generated text")


@metric("answer_exact", SAID, unit="share", better="lower", roles=ROLES)
def answer_exact(tables: Tables, *, equal: Equal = "plain") -> Score:
    """Exact answers: the share of the questions whose generated answer is the true one.

    Args:
        tables: sample table of the prompts with the columns `text` and `reference`.
        equal: "plain": up to case and white space around; "words": as the words of `answer_f1`, so marks and articles
            do not matter.
    Returns: share in [0, 1] with its Clopper-Pearson interval; an example with several samples counts if all are.
    Fooled by: other wording or form of a right answer (12 May for May 12), a full stop in "plain".
    Cost: one generation per example, shared.
    Source: "plain" is the knowledge score of LUME (arXiv 2502.15097), "words" the exact match of SQuAD. Unlike
        `exact_memorization` it compares texts, not tokens, and does not ask that the model ends its turn.
    """
    table = tables.get("samples", "prompt")
    pairs = zip(table.texts("reference"), table.texts("text"), strict=True)
    if equal == "words":
        same = [words_of(reference) == words_of(text) for reference, text in pairs]
    else:
        same = [reference.strip().lower() == text.strip().lower() for reference, text in pairs]
    shares = by_id(table.ids, np.array(same, dtype=np.float64))
    values = {key: float(share == 1.0) for key, share in shares.items()}
    return mean_score(values, "share", "lower", binary=True, reason="" if len(table) else "no generated text")


def bleu_counts(reference: Sequence[object], text: Sequence[object], num: int = ORDERS) -> list[int]:
    """What corpus BLEU adds up: length of both, then matches and n-grams of the text by order, [2 + 2 num]."""
    counts = [len(reference), len(text)]
    for n in range(1, num + 1):
        found = ngrams(text, n)
        counts += [(found & ngrams(reference, n)).total(), found.total()]
    return counts


def corpus_bleu(counts: Floats) -> Floats:
    """BLEU of summed counts [..., 2 + 2 num] -> [...]: min(1, e^(1 - r/c)) times the geometric mean of the precisions.

    An order without any match counts as half a match, the next one without as a quarter, and so on (as sacrebleu).
    """
    lengths, matches, totals = counts[..., :2], counts[..., 2::2], counts[..., 3::2]
    missed = np.cumsum(matches == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(matches == 0, 0.5**missed, matches)) - np.log(totals)
        brief = np.exp(np.minimum(0.0, 1 - lengths[..., 0] / lengths[..., 1]))
        found = brief * np.exp(logs.mean(-1))
    return np.where((matches[..., 0] == 0) | (totals == 0).any(-1), 0.0, found)


@metric("bleu", SAID, unit="share", better="lower", roles=ROLES)
def bleu_score(tables: Tables, *, form: Form = "corpus", num: int = ORDERS) -> Score:
    """BLEU of the generated answers: how many of their runs of words stand in the true answers.

    min(1, e^(1 - r/c)) * exp(1/N sum_n log p_n): r and c the words of the true and the generated answers, p_n the
    share of the generated n-grams that stand in the true answer, each at most as often as there. "corpus": all counts
    are added up before. "sentence": the mean over examples of each one's own, N at most its length.

    Args:
        tables: sample table of the prompts with the columns `text` and `reference`.
        form: which of the two. num: longest n-gram, N, of "corpus", 1 to 4 (BLEU-1 to BLEU-4).
    Returns: in [0, 1] (published numbers are 100 times this). Interval: bootstrap over examples. Per example always
        "sentence".
    Raises: RecipeError for another num.
    Fooled by: other wording of the same; "corpus": a few long answers outweigh many short ones.
    Cost: one generation per example, shared.
    Source: Papineni et al. 2002, with the smoothing of sacrebleu ("exp"); the task score of KGA's translation and
        dialogue (arXiv 2305.06535). Differences: words are runs of letters and digits, every other sign stands alone,
        case counts; greedy answers, not beams.
    """
    if not 1 <= num <= ORDERS:
        raise RecipeError("bleu.num", f"got {num!r}", f"accepted: 1 to {ORDERS}", "Correct the value")
    table = tables.get("samples", "prompt")
    if not len(table):
        return Score.missing("no generated text", "share", "lower")
    pairs = [
        (_PIECES.findall(a), _PIECES.findall(b))
        for a, b in zip(table.texts("reference"), table.texts("text"), strict=True)
    ]
    values = by_id(table.ids, np.array([bleu(*pair) for pair in pairs], dtype=np.float64))
    if form == "sentence":
        return mean_score(values, "share", "lower")
    owners = {name: k for k, name in enumerate(values)}
    counts = np.zeros((len(values), 2 + 2 * num))
    for name, pair in zip(table.ids, pairs, strict=True):
        counts[owners[name]] += bleu_counts(*pair, num)
    ci = bootstrap_of(lambda drawn: corpus_bleu(counts[drawn[0]].sum(axis=1)), [len(counts)])
    whole = float(corpus_bleu(counts.sum(axis=0)))
    return Score(whole, ci, values, len(values), "share", "lower", bounds=(0.0, 1.0))
