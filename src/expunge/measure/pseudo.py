"""The pseudo instrument: what a masked model gives each token when that token alone is hidden.

One masked copy of the text per token, so the sum over a text is its pseudo-log-likelihood (Salazar et al. 2020).
Copies of all texts are pooled and run in batches of similar length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expunge import dist
from expunge.data.tokenise import Encoded, by_length, collate
from expunge.errors import DataError, close_to
from expunge.measure.desk import Desk, Job
from expunge.measure.forward import kept_logits, token_logp
from expunge.measure.tables import Table
from expunge.measure.tokens import BATCH_TOKENS
from expunge.registry import instrument
from expunge.types import Subject

SETTINGS = ("", "spans", "left")


@instrument("pseudo", tasks=("masked",))
def pseudo(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Per text the log-probability of its tokens, each hidden alone; columns token and logp (nats), ragged.

    The setting says which tokens: none, every counted one; "spans", those in the spans; "left", those in the spans,
    where a token of a span sees nothing of the span to its right (the rest is cut out, not hidden).

    Cost: one forward per token.
    """
    for job in jobs:
        if job.setting not in SETTINGS:
            raise DataError(
                job.asked[2], f"got '#{job.setting}'", close_to(job.setting, SETTINGS[1:]), "Correct the setting"
            )
    pooled = [one for job in jobs for one in job.encoded]
    settings = [job.setting for job in jobs for _ in job.encoded]
    rows = measure_pseudo(subject, pooled, settings, device=desk.device, desk=desk)
    tables, start = [], 0
    for job in jobs:
        mine = rows[start : start + len(job.encoded)]
        start += len(job.encoded)
        tables.append(Table.of({
            "id": [one.id for one in job.encoded], "item": [one.item for one in job.encoded],
            "token": [token for token, _ in mine], "logp": [logp for _, logp in mine],
        }))
    return tables


@torch.no_grad()
def measure_pseudo(
    subject: Subject, encoded: Sequence[Encoded], settings: Sequence[str], *, device: str = "cpu",
    desk: Desk | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens [n] and their log-probabilities [n] of every text, in order; on several ranks every rank holds all."""
    mask = int(subject.tokenizer.mask_token_id)
    hidden = [places(one, setting) for one, setting in zip(encoded, settings, strict=True)]
    copies = [(i, place, resume) for i, found in enumerate(hidden) for place, resume in found]
    lengths = [len(encoded[i]) - (resume - place - 1) for i, place, resume in copies]
    if desk is not None:
        desk.count(forwards=len(copies), tokens=sum(lengths))
    found: list[tuple[int, list[float]]] = []
    for group in dist.shard(list(by_length(lengths, BATCH_TOKENS))):
        chosen = [copies[j] for j in group]
        made = [masked_copy(encoded[i], place, resume, mask) for i, place, resume in chosen]
        batch = collate(made, device=device)
        keep = batch.positions("answer")
        logp = token_logp(kept_logits(subject.model, batch, keep)[0], batch, keep)[keep]  # [B]: one place a copy
        found += list(zip(group.tolist(), logp.tolist(), strict=True))
    values = np.array([value for _, value in sorted(dist.gather(found))], dtype=np.float64)
    ends = np.cumsum([len(row) for row in hidden])[:-1]
    return [
        (_original(one)[[place for place, _ in row]].astype(np.int32), logp)
        for one, row, logp in zip(encoded, hidden, np.split(values, ends), strict=True)
    ]


def _original(one: Encoded) -> np.ndarray:
    """The tokens of a text before any was hidden."""
    return one.tokens if one.targets is None else one.targets


def places(one: Encoded, setting: str = "") -> list[tuple[int, int]]:
    """The places to be hidden, and for each the place where the copy goes on after it."""
    chosen = one.counted & one.spanned if setting else one.counted
    found = np.flatnonzero(chosen).tolist()
    if setting != "left":
        return [(place, place + 1) for place in found]
    ends, end = [], len(one)
    for place in reversed(found):
        if place + 1 == len(one) or not chosen[place + 1]:
            end = place + 1
        ends.append(end)
    return list(zip(found, reversed(ends), strict=True))


def masked_copy(one: Encoded, place: int, resume: int, mask: int) -> Encoded:
    """The text with a mask at `place` and without what stands between it and `resume`."""
    whole = _original(one)
    tokens = np.concatenate([whole[:place], [mask], whole[resume:]])
    targets = tokens.copy()
    targets[place] = whole[place]
    counted = np.zeros(len(tokens), dtype=bool)
    counted[place] = True
    return Encoded(one.id, one.item, tokens, counted, np.zeros_like(counted), targets, task="masked", pad=one.pad)
