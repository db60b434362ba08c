"""The token instrument: one teacher-forced pass from which all likelihood metrics are derived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import dist
from expunge.data.tokenise import Encoded, by_length, collate
from expunge.measure.forward import kept_logits, token_logp
from expunge.types import Batch, Subject

BATCH_TOKENS = 4096  # padded tokens of one forward without gradients: more falls out of the cache of a CPU
CHUNK = 1024  # positions whose [chunk, V] temporaries live at once
ALWAYS = ("token", "logp", "argmax", "greedy")  # cost nothing beyond the forward
COLUMNS = (*ALWAYS, "rank", "mean", "var")


@torch.no_grad()
def measure_tokens(
    subject: Subject, encoded: Sequence[Encoded], columns: Sequence[str], *, device: str = "cpu"
) -> list[dict[str, np.ndarray]]:
    """Token columns of each text, at its counted positions.

    token: the id that stands there. logp: its log-probability, nats. argmax: whether it is the greedy choice.
    greedy: the greedy choice. rank: tokens that are more likely, 0 = greedy. mean, var: of log p(v), v ~ p.

    Args:
        columns: which of COLUMNS are wanted beyond those that cost nothing.
    Returns: one dict per text, in order; on several ranks every rank holds all rows.
    Cost: 1 forward per text, the head on counted positions only; mean and var one more pass over [K, V].
    """
    lengths = [len(one) for one in encoded]
    rows: list[tuple[int, dict[str, np.ndarray]]] = []
    for group in dist.shard(list(by_length(lengths, BATCH_TOKENS))):
        batch = collate([encoded[i] for i in group], device=device)
        keep = batch.positions("answer")
        logits, _ = kept_logits(subject.model, batch, keep)
        packed = _columns(logits, batch, keep, columns)
        ends = np.cumsum(keep.sum(-1).cpu().numpy())
        pieces = {name: np.split(values.cpu().numpy(), ends[:-1]) for name, values in packed.items()}
        rows += [(int(i), {name: pieces[name][j] for name in pieces}) for j, i in enumerate(group)]
    return [row for _, row in sorted(dist.gather(rows), key=lambda pair: pair[0])]


def _columns(logits: Tensor, batch: Batch, keep: Tensor, columns: Sequence[str]) -> dict[str, Tensor]:
    targets = batch.input_ids[:, 1:][keep]
    greedy = logits.argmax(-1)
    out = {
        "token": targets.int(),
        "logp": token_logp(logits, batch, keep)[keep],
        "argmax": greedy == targets,
        "greedy": greedy.int(),
    }
    if "rank" in columns:
        own = logits.gather(-1, targets.unsqueeze(-1))
        out["rank"] = (logits > own).sum(-1).int()
    if "mean" in columns or "var" in columns:
        out["mean"], out["var"] = _moments(logits)
    return out


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p(v) under v ~ p, per position [K]."""
    means, variances = [], []
    for part in logits.split(CHUNK):
        logp = part.float().log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        means.append(mean)
        variances.append((p * (logp - mean.unsqueeze(-1)).square()).sum(-1))  # centred: no cancellation
    return torch.cat(means), torch.cat(variances)


def token_columns(
    encoded: Sequence[Encoded], rows: Sequence[dict[str, np.ndarray]], sizes: Sequence[int]
) -> dict[str, Any]:
    """Columns of a token table: ids, items, compressed sizes and the ragged token columns."""
    columns: dict[str, Any] = {
        "id": [one.id for one in encoded],
        "item": [one.item for one in encoded],
        "zlib": list(sizes),
    }
    for name in rows[0] if rows else ALWAYS:
        columns[name] = [row[name] for row in rows]
    return columns
