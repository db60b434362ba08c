"""What the model before the removal still says when its stream is replaced by another model's, one layer at a time.

Only the positions that predict the counted tokens are replaced: the tokens of the annotated spans where the example
has any, else the whole answer. The forward goes on from the replaced layer; the blocks below it are not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.data.tokenise import Encoded, collate
from expunge.errors import RecipeError
from expunge.measure.desk import Desk, Job
from expunge.measure.forward import run_model, token_logp
from expunge.measure.hidden import Anatomy, anatomy, each_row, entering, listening, partner_of, table_of
from expunge.measure.tables import NotMeasured, Table
from expunge.registry import instrument
from expunge.types import Batch, Subject

PATCH_TOKENS = 1024  # padded tokens of a batch: the original's streams after all of its blocks live at once


@instrument("patched", tasks=("causal",), partner=True)
def patched(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Activation patching: the model before the removal, with the stream after one block replaced by this model's.

    patched_l = 1/n sum_t log p(x_t | x_<t; h_l,t-1 := h'_l,t-1 at all counted t), h' the states of this model on the
    same text, for every block l; clean = the same without replacing anything.

    Columns: clean (nats per counted token), counted (how many), patched (num_layers values), and for every column
    "window:W" that is asked for the same with states of the model before the removal itself, which it has when it
    reads no more than the text's first token and the last W ones.
    Raises: NotMeasured when the model before the removal was not given, is built differently or reads other tokens.
    Cost: 2 forwards per text and (num_layers - 1) / 2 more (and num_layers heads) for every column of patched
        values; the streams of a batch of 1024 tokens after all blocks live at once.
    """
    donor = anatomy(subject.model, desk.device)
    original = partner_of(donor, desk)
    if desk.partner().tokenizer.get_vocab() != subject.tokenizer.get_vocab():
        raise NotMeasured("the model before the removal has another tokenizer")
    return [_table(job, original, donor, desk) for job in jobs]


def _table(job: Job, original: Anatomy, donor: Anatomy, desk: Desk) -> Table:
    windows = {column: _window(column) for column in sorted(job.columns) if column.startswith("window:")}
    rows = each_row(
        job.encoded, lambda group: _rows(group, original, donor, windows, desk.device), most=PATCH_TOKENS
    )
    passes = 2 + (1 + len(windows)) * (len(original.blocks) - 1) / 2  # in whole forwards; see `Cost` above
    tokens = sum(one.size for one in job.encoded)
    desk.count(forwards=round(passes * len(job.encoded)), tokens=round(passes * tokens))
    return table_of(job, rows)


def _window(column: str) -> int:
    size = column.partition(":")[2]
    if not size.isdigit() or size == "0":
        raise RecipeError(column, f"got '{size}' tokens", "a whole number of tokens, 1 or more", "Correct the window")
    return int(size)


@torch.no_grad()
def _rows(
    group: list[Encoded], original: Anatomy, donor: Anatomy, windows: Mapping[str, int], device: str
) -> list[dict[str, Any]]:
    batch = collate(group, device=device)
    keep = counted(batch)
    donors = {"patched": states_at(donor, batch, keep)}
    donors |= {name: window_states(original, group, keep, size) for name, size in windows.items()}
    clean, found = patch(original, batch, keep, list(donors.values()))
    columns = {"clean": clean, **dict(zip(donors, found, strict=True))}
    pieces = {name: values.float().cpu().numpy() for name, values in columns.items()}
    sizes = keep.sum(-1).tolist()
    return [{"counted": size, **{name: pieces[name][i] for name in pieces}} for i, size in enumerate(sizes)]


def counted(batch: Batch) -> Tensor:
    """Which predictions count, [B, T-1] bool: those of annotated spans in rows that have any, else of the answer."""
    spans, answer = batch.positions("spans"), batch.positions("answer")
    return torch.where(spans.any(-1, keepdim=True), spans, answer)


@torch.no_grad()
def patch(
    original: Anatomy, batch: Batch, keep: Tensor, donors: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Mean log-probability of the counted tokens, nats: untouched [B], and per donor by replaced block [B, L].

    Args:
        keep: [B, T-1] bool. donors: of each its states after every block at those positions, [K, D].
    """

    def mean() -> Tensor:
        logits = run_model(original.model, batch, keep).logits
        assert logits is not None
        return token_logp(logits, batch, keep).sum(-1) / keep.sum(-1)

    with listening(original, ["block"], torch.ones_like(batch.input_ids, dtype=torch.bool)) as heard:
        clean = mean()
    at = F.pad(keep, (0, 1))
    found: list[list[Tensor]] = [[] for _ in donors]
    for layer in range(len(original.blocks)):
        stream = heard.pop(("block", layer)).view(*at.shape, -1)  # [B, T, D]
        for states, means in zip(donors, found, strict=True):
            mixed = stream.clone()
            mixed[at] = states[layer].to(mixed.dtype)
            with entering(original, layer, mixed):
                means.append(mean())
    return clean, [torch.stack(means, dim=-1) for means in found]


@torch.no_grad()
def states_at(inside: Anatomy, batch: Batch, keep: Tensor) -> list[Tensor]:
    """The stream after every block at the positions of `keep` [B, T-1], [K, D] each."""
    last = len(inside.blocks) - 1
    with listening(inside, ["block"], F.pad(keep, (0, 1))) as heard:
        run_model(inside.model, batch, keep, layers=[last], stop=True)
    return [heard["block", layer] for layer in range(last + 1)]


def window_states(inside: Anatomy, group: Sequence[Encoded], keep: Tensor, size: int) -> list[Tensor]:
    """The same where the model reads only the text's first token and the last `size` ones up to the position.

    The first token stays because many models rest their attention on it; without it the state would be a rare one.
    Equal windows are read once.
    """
    rows = [tuple(_seen(group[i].tokens, t, size).tolist()) for i, t in keep.nonzero().tolist()]
    distinct = list(dict.fromkeys(rows))
    found: list[Tensor] = []
    for length in sorted({len(row) for row in distinct}):
        alike = [row for row in distinct if len(row) == length]
        many = max(1, PATCH_TOKENS // length)
        for start in range(0, len(alike), many):
            ids = torch.tensor(alike[start : start + many], device=keep.device)
            batch = Batch(ids, torch.ones_like(ids), ids, ("",) * len(ids))
            last = torch.zeros_like(ids, dtype=torch.bool)
            last[:, -1] = True
            with listening(inside, ["block"], last) as heard:
                run_model(inside.model, batch, last[:, :-1], layers=[len(inside.blocks) - 1], stop=True)
            found.append(torch.stack([heard["block", layer] for layer in range(len(inside.blocks))]))  # [L, R, D]
    order = {row: place for place, row in enumerate(sorted(distinct, key=len))}  # a stable sort: as they were read
    return list(torch.cat(found, dim=1)[:, [order[row] for row in rows]])


def _seen(tokens: np.ndarray, at: int, size: int) -> np.ndarray:
    """The text's first token, and the last `size` up to place `at`."""
    return np.concatenate([tokens[:1], tokens[max(1, at + 1 - size) : at + 1]])
