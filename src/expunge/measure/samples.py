"""The sample instrument: what the model says when asked, greedily.

Two exact savings. Where teacher forcing found every answer token to be the greedy one, the generation is the
answer and nothing is run. Where the first wrong token is at position k, the first k tokens are known and the
generation starts there. Both hold because greedy decoding from a prompt retraces the answer as long as it agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from expunge import dist
from expunge.data.tokenise import Encoded, prompt_tokens
from expunge.measure.forward import packed_head
from expunge.models import context_length
from expunge.types import Subject

BATCH_ROWS = 64
MOST_TOKENS = 200


@dataclass(frozen=True)
class Generation:
    """Generated token ids (without the end-of-sequence token) and how many of them a model had to produce."""

    tokens: list[int]
    produced: int


def cap(num_answer_tokens: int) -> int:
    """Longest generation for an answer of that many tokens: half as much again and 8, at most 200 (and the context)."""
    return min(MOST_TOKENS, num_answer_tokens * 3 // 2 + 8)


def measure_samples(
    subject: Subject, prompts: Sequence[str], encoded: Sequence[Encoded], greedy: Sequence[np.ndarray] | None,
    *, device: str = "cpu",
) -> list[Generation]:
    """Greedy generations for prompts.

    Args:
        prompts: what is asked. encoded: the same prompts with their true answers.
        greedy: per row the greedy choice at each counted position (token instrument), or None to use no saving.
    Returns: one Generation per prompt, in order.
    Cost: prefill plus one forward per token produced, in batches of similar remaining length, finished rows dropped.
    """
    asked = prompt_tokens(subject, prompts)
    stops = stop_tokens(subject, encoded)
    greedy_rows: Sequence[np.ndarray | None] = greedy if greedy is not None else [None] * len(asked)
    known = [_known(a, one, g, stops) for a, one, g in zip(asked, encoded, greedy_rows, strict=True)]
    room = context_length(subject)
    limits = [min(cap(int(one.counted.sum())), room - len(a)) for a, one in zip(asked, encoded, strict=True)]
    open_rows = [i for i, (prefix, done) in enumerate(known) if not done and len(prefix) < limits[i]]
    open_rows.sort(key=lambda i: limits[i] - len(known[i][0]))
    groups = [open_rows[i : i + BATCH_ROWS] for i in range(0, len(open_rows), BATCH_ROWS)]
    found: list[tuple[int, list[int]]] = []
    for group in dist.shard(groups):
        starts = [np.concatenate([asked[i], np.asarray(known[i][0], dtype=np.int64)]) for i in group]
        more = continue_greedily(subject, starts, [limits[i] - len(known[i][0]) for i in group], stops, device=device)
        found += list(zip(group, more, strict=True))
    produced = dict(dist.gather(found))
    return [
        Generation([*prefix, *produced.get(i, [])][: limits[i]], len(produced.get(i, [])))
        for i, (prefix, _) in enumerate(known)
    ]


def stop_tokens(subject: Subject, encoded: Sequence[Encoded] = ()) -> frozenset[int]:
    """Tokens that end a generation: end of sequence, those of the model's generation settings, and the end of turn
    that the chat template puts after the encoded answers."""
    settings = getattr(subject.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = {subject.tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])}
    special = set(subject.tokenizer.all_special_ids)
    found |= {int(one.tokens[-1]) for one in encoded} & special
    return frozenset(int(token) for token in found if token is not None)


def _known(
    asked: np.ndarray, one: Encoded, greedy: np.ndarray | None, stops: frozenset[int]
) -> tuple[list[int], bool]:
    """Tokens of the generation that teacher forcing already tells, and whether that is all of it."""
    start = one.prompt_length
    if greedy is None or not np.array_equal(asked, one.tokens[:start]) or not one.counted[start:].all():
        return [], False  # the prompt alone is tokenised differently: no identity
    answer = one.tokens[start:]
    wrong = np.flatnonzero(greedy != answer)
    agreed = int(wrong[0]) if len(wrong) else len(answer)
    tokens = [int(token) for token in answer[:agreed]]
    if len(wrong):
        tokens.append(int(greedy[agreed]))
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return (tokens[: ends[0]], True) if ends else (tokens, False)


@torch.no_grad()
def continue_greedily(
    subject: Subject, starts: Sequence[np.ndarray], limits: Sequence[int], stops: frozenset[int], *, device: str = "cpu"
) -> list[list[int]]:
    """Greedy continuations of token prefixes, each up to its limit or a stop token (not included)."""
    from transformers import DynamicCache

    model = subject.model
    width = max(len(start) for start in starts)
    ids = torch.zeros(len(starts), width, dtype=torch.long, device=device)  # [B, T], padded on the left
    mask = torch.zeros_like(ids)
    for i, start in enumerate(starts):
        ids[i, width - len(start) :] = torch.from_numpy(start)
        mask[i, width - len(start) :] = 1
    rows, out = list(range(len(starts))), [[] for _ in starts]  # type: list[int], list[list[int]]
    cache = DynamicCache(config=model.config)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    while rows:
        last = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        last[:, -1] = True
        with packed_head(model, last):
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            ).logits[0]
        chosen = logits.argmax(-1)  # [rows]
        going = []
        for j, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token not in stops:
                out[row].append(token)
                if len(out[row]) < limits[row]:
                    going.append(j)
        if len(going) < len(rows):
            keep = torch.tensor(going, dtype=torch.long, device=device)
            rows = [rows[j] for j in going]
            if not rows:
                break
            cache.batch_select_indices(keep)
            chosen, mask, position = chosen[keep], mask[keep], position[keep]
        ids = chosen.unsqueeze(-1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        position = position[:, -1:] + 1
    return out
