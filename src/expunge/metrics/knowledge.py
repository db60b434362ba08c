"""What a model knows of a text or of the language: MUSE's two memories, and the last word of LAMBADA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rows import by_id, ragged
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

ROLES = ("forget", "retain", "holdout", "probe")
GREEDY = "prompt#temperature=0,prefix=0,length={length}"
SAID = Needs("sampled", variant=GREEDY, columns=("text",))
STOPS = ("\n\n", "\nQuestion", "Question:")  # where MUSE ends an answer: the model goes on with the next question


def shortened(text: str, stops: Iterable[str] = STOPS) -> str:
    """The text up to the first of the stops, without white space around it."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def rouge_f1(references: Sequence[str], texts: Sequence[str], *, stem: bool) -> Floats:
    """ROUGE-L F1 of each text against its reference, [rows] in [0, 1]; NaN where ROUGE sees no word of the reference.

    stem: "Running" and "runs" are one word.
    """
    from rouge_score import rouge_scorer, tokenizers

    words = tokenizers.DefaultTokenizer(stem)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=words)
    found = [
        scorer.score(reference, text)["rougeL"].fmeasure if words.tokenize(reference) else float("nan")
        for reference, text in zip(references, texts, strict=True)
    ]
    return np.array(found, dtype=np.float64)


def _rouge_score(table: Table, stem: bool, stops: Iterable[str] = ()) -> Score:
    texts = [shortened(text, stops) for text in table.texts("text")]
    scores = rouge_f1(table.texts("reference"), texts, stem=stem)
    seen = ~np.isnan(scores)
    left_out = int((~seen).sum())
    why = "no prompt, or no word of a-z or 0-9 in the reference"
    remark = f"{left_out} of {len(scores)} examples were left out: {why}" if left_out else ""
    ids = [name for name, keep in zip(table.ids, seen, strict=True) if keep]
    return mean_score(by_id(ids, scores[seen]), "share", "lower", reason=remark if len(table) else "no generated text")


@metric("verbmem", SAID, unit="share", better="lower", roles=ROLES)
def verbmem(tables: Tables, *, length: int = 128, stem: bool = False) -> Score:
    """Verbatim memorization of MUSE: how much of the true continuation comes back after the beginning of the text.

    ROUGE-L F1 = 2 P R / (P + R) of the greedy continuation against the true one, P and R the words of their longest
    common subsequence over the words of either.

    Args:
        tables: greedy samples of the prompts; an example's prompt is the beginning of a text, its answer the rest.
        length: tokens of the continuation at most; of the true one as many are compared. 0: half as many again as the
            true one has, and 8.
        stem: count forms of a word as one; the public tool OpenUnlearning does, MUSE does not.
    Returns: mean over examples, in [0, 1]; to be compared with the oracle's, for news share phrases with other news.
    Cost: one generation per example, shared.
    Fooled by: a paraphrase of the text scores low and leaks it all; a continuation longer than the reference loses
        precision without having forgotten.
    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460): 512 tokens asked, 128 compared.
    """
    return _rouge_score(tables.get("sampled", GREEDY.format(length=length)), stem)


@metric("knowmem", SAID, unit="share", better="lower", roles=ROLES)
def knowmem(tables: Tables, *, length: int = 32, stem: bool = False) -> Score:
    """Knowledge memorization of MUSE: how close the answers to questions about the text are to the true ones.

    ROUGE-L F1 of the greedy answer, cut where the model goes on to a next question ("\\n\\n", "\\nQuestion",
    "Question:"), against the true answer. With the reader's `shots` the prompt opens with answered questions.

    Args:
        tables: greedy samples of the questions.
        length: tokens of an answer at most; 0: half as many again as the true one has, and 8.
        stem: count forms of a word as one; the public tool OpenUnlearning does, MUSE does not.
    Returns: mean over examples, in [0, 1]; on what was forgotten to be compared with the oracle's, on what is retained
        with the original's.
    Cost: one generation per example, shared.
    Fooled by: right answers in a whole sentence lose precision; short answers are guessed (years, yes and no).
    Source: Shi et al. 2024 (MUSE, arXiv 2407.06460): 10 answered questions in front, 32 tokens.
    """
    return _rouge_score(tables.get("sampled", GREEDY.format(length=length)), stem, STOPS)


@metric(
    "lambada", Needs("tokens", columns=("argmax", "span")), unit="share", better="higher", roles=("retain", "probe")
)
def lambada(tables: Tables) -> Score:
    """LAMBADA accuracy: the share of texts whose last word greedy decoding gets right, given all words before it.

    [every token of the annotated span is the greedy one]; the reader `lambada` annotates the last word. Nothing but the
    word counts: no token that ends the text.

    Args:
        tables: token table of the texts with the columns `argmax` and `span`.
    Returns: share in [0, 1] with its Clopper-Pearson interval; examples without a span are left out and counted.
    Cost: 1 forward per text.
    Fooled by: the word in other tokens than the tokenizer's own counts as wrong (rare); a model that was trained on
        the texts knows the words without understanding them.
    Source: Paperno et al. 2016 (arXiv 1606.06031); greedy form as in Jang et al. 2022 (arXiv 2210.01504) and
        lm-evaluation-harness. Difference: the authors' code also accepts a generated word that is equal after
        normalisation.
    """
    table = tables.get("tokens")
    right, spans = ragged(table, "argmax"), ragged(table, "span")
    if not right.ids:
        raise NotMeasured("no example with a counted token")
    spanned = spans.values > 0
    wanted = np.bincount(spans.owner[spanned], minlength=len(right.n))
    missed = np.bincount(right.owner[spanned & (right.values == 0)], minlength=len(right.n))
    has = wanted > 0
    values = by_id([name for name, keep in zip(right.ids, has, strict=True) if keep], (missed == 0)[has].astype(float))
    left_out = int((~has).sum())
    remark = f"{left_out} of {len(has)} texts have no annotated last word and were left out" if left_out else ""
    return mean_score(values, "share", "higher", reason=remark)
