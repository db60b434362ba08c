"""Answers chosen otherwise than greedily, as a subject's `decoding` says: drawn at random, searched for, or guided.

Where several answers are made to a question, the one that speaks most against the removal counts: the closest to the
reference by ROUGE-L recall. So every metric that reads the sample table becomes that of the worst answer (leak@num).
Teacher-forced tables do not change: what the model thinks of a text does not depend on how answers are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.tokenise import prompt_tokens
from expunge.measure.desk import Desk, Job
from expunge.measure.generation import ended, generate, padded
from expunge.measure.sampled import Setting, Slot, draw, name_of
from expunge.measure.samples import (
    BATCH_ROWS,
    Generation,
    Guide,
    check_memory,
    limits_of,
    said_to_each,
    stop_tokens,
    translate_with,
)
from expunge.measure.tables import NotMeasured
from expunge.types import Decoding, Subject

PLAUSIBLE = 5.0  # nats below its best token at which a guide takes a token for impossible
SMALLEST = -1e4  # nats: what is held above, so that twice impossible is not likely


def answers(subject: Subject, job: Job, desk: Desk, most: int | None = None) -> list[Generation]:
    """The answer to every text's prompt that counts under the subject's decoding.

    Of several the closest to the reference by ROUGE-L recall; of equally close ones the reference itself, then the one
    that was made first.

    Args:
        most: tokens of an answer at most; None: as the true answer says.
    Raises: NotMeasured for a decoding that cannot be had of this model.
    Cost: `num` generations per prompt (twice the forwards with a guide); a beam search, `beams` sequences per prompt.
    """
    decoding, stops = subject.decoding, stop_tokens(subject, job.encoded)
    asked = prompt_tokens(subject, [text.prompt for text in job.texts])
    limits = limits_of(subject, asked, job.encoded, most)
    names = [name_of(text) for text in job.texts]
    slots = [Slot(*row) for row in zip(names, range(len(names)), asked, limits, strict=True) if row[-1] > 0]
    if decoding.beams > 1:
        found = _searched(subject, slots, stops, desk)
    else:
        found = _drawn(subject, slots, stops, desk)
    open_rows = [i for i, limit in enumerate(limits) if limit > 0]
    said = dict(zip(open_rows, found, strict=True))
    return [_closest(subject, text.answer, said.get(i, [[]])) for i, text in enumerate(job.texts)]


def _drawn(subject: Subject, slots: Sequence[Slot], stops: frozenset[int], desk: Desk) -> list[list[list[int]]]:
    """`num` answers in every slot, or the greedy one."""
    decoding, guide = subject.decoding, guide_of(subject)
    setting = Setting(1, decoding.temperature, decoding.top_k, decoding.top_p, seed=decoding.seed)
    num = 1 if setting.greedy else decoding.num
    each = [Slot(one.name, number, one.before, one.limit) for one in slots for number in range(num)]
    desk.count(forwards=len(each) * (1 if guide is None else 2))
    said = draw(subject, each, setting, stops, guide=guide, device=desk.device)
    return [said[i : i + num] for i in range(0, len(said), num)]


def _searched(subject: Subject, slots: Sequence[Slot], stops: frozenset[int], desk: Desk) -> list[list[list[int]]]:
    """The likeliest answers in every slot by beam search, `num` of them, the likeliest first."""
    decoding = subject.decoding
    if decoding.guide or decoding.temperature:
        raise NotMeasured("a beam search goes with neither a guide nor answers drawn at random")
    num = min(decoding.num, decoding.beams)
    order = sorted(range(len(slots)), key=lambda i: slots[i].place)
    groups: list[list[int]] = []
    for i in order:  # how long an answer may be is one number for a search: only equals are searched together
        fits = groups and slots[groups[-1][0]].limit == slots[i].limit
        if not fits or (len(groups[-1]) + 1) * decoding.beams > BATCH_ROWS:
            groups.append([])
        groups[-1].append(i)

    def say(rows: Sequence[int]) -> list[list[int]]:
        chosen = [slots[row // num] for row in rows[::num]]
        before, limit = [one.before for one in chosen], chosen[0].limit
        return search(subject, before, limit, stops, beams=decoding.beams, num=num, device=desk.device)

    desk.count(forwards=len(slots) * decoding.beams)
    made = said_to_each([[num * i + number for i in group for number in range(num)] for group in groups], say)
    return [[made[num * i + number] for number in range(num)] for i in range(len(slots))]


@torch.no_grad()
def search(
    subject: Subject, before: Sequence[np.ndarray], limit: int, stops: frozenset[int], *, beams: int, num: int = 1,
    device: str = "cpu",
) -> list[list[int]]:
    """The `num` likeliest answers that a beam search finds to each prompt, without the token that ends them.

    Log-probabilities are summed, with no reward for length; an answer cut off at the limit counts as it is.

    Args:
        before: tokens asked, one row per prompt. limit: most tokens of an answer. num: at most `beams`.
    Returns: the answers to the first prompt, the likeliest first, then those to the next.
    Raises: NotMeasured for logits that are not finite, and for a model that keeps no keys and values.
    """
    if subject.task == "seq2seq":
        limits = [limit] * len(before)
        return translate_with(subject, before, limits, stops, None, beams=beams, num=num, device=device)
    check_memory(subject.model)
    ids, mask = padded(before, left=True, device=device)
    out = generate(subject, ids, mask, stops, limit, num_beams=beams, num_return_sequences=num)
    return [ended(row, limit, stops) for row in out[:, ids.shape[1] :].tolist()]


# -- guided ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Contrast:
    """What the guide says more strongly than the model: (1 + w) log p_guide - w log p_model, [R, V].

    Tokens more than `plausible` nats less likely to the guide than its best one are impossible: where both find a
    token next to impossible, how much less one does means nothing.
    """

    weight: float
    plausible: float = PLAUSIBLE

    def __call__(self, model: Tensor, guide: Tensor) -> Tensor:
        size = min(model.shape[-1], guide.shape[-1])  # a vocabulary may be filled up with rows nobody uses
        now, before = (logits[:, :size].float().log_softmax(-1).clamp(min=SMALLEST) for logits in (model, guide))
        scores = (1 + self.weight) * before - self.weight * now
        best = before.amax(-1, keepdim=True)
        return scores.masked_fill(before < best - self.plausible, -torch.inf)


def guide_of(subject: Subject) -> Guide | None:
    """The helper that guides the subject's answers, if its decoding names one.

    Raises: NotMeasured where it is not there or cannot read along.
    """
    decoding: Decoding = subject.decoding
    if not decoding.guide:
        return None
    helper = subject.helpers.get(decoding.guide)
    if helper is None:
        raise NotMeasured(f"the model that should guide the answers, '{decoding.guide}', was not given")
    why = cannot_guide(subject, helper)
    if why:
        raise NotMeasured(why)
    return Guide(helper, Contrast(decoding.guidance))


def cannot_guide(subject: Subject, helper: Subject) -> str:
    """Why a model cannot read along with another one; empty where it can."""
    if subject.task != "causal" or helper.task != "causal":
        return "only causal models can be guided by another one"
    if subject.tokenizer.get_vocab() != helper.tokenizer.get_vocab():
        return "the model before the removal cuts texts into other tokens"
    try:
        for model in (subject.model, helper.model):
            check_memory(model)
    except NotMeasured as reason:
        return str(reason)
    return ""


# -- which counts ----------------------------------------------------------------------------------------------
class _Characters:
    """Texts as characters, for references without a word that ROUGE can see."""

    def tokenize(self, text: str) -> list[str]:
        return [letter for letter in text.casefold() if not letter.isspace()]


@cache
def _scorer(words: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, tokenizer=None if words else _Characters())


def closeness(reference: str, texts: Sequence[str]) -> list[float]:
    """ROUGE-L recall of each text, in [0, 1]; over characters where the reference has no word of a-z or 0-9.

    Source: Lin 2004, package rouge-score, as in the metric `rouge`.
    """
    scorer = _scorer(any(letter.isascii() and letter.isalnum() for letter in reference))
    known = {text: float(scorer.score(reference, text)["rougeL"].recall) for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def _closest(subject: Subject, reference: str, said: Sequence[list[int]]) -> Generation:
    """The answer closest to the reference, and how many tokens were made for it and the others."""
    produced = sum(map(len, said))
    if len(said) == 1:
        return Generation(said[0], produced)
    texts = [text.strip() for text in subject.tokenizer.batch_decode(list(said), skip_special_tokens=True)]
    wanted = reference.strip()
    keys = [(close, text == wanted) for close, text in zip(closeness(wanted, texts), texts, strict=True)]
    return Generation(said[keys.index(max(keys))], produced)
