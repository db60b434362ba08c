"""What stands inside a model: its stream read out layer by layer (`lens`), and as vectors for probes (`states`).

The stream of a block can be read, and entered, at these points:

    block      what the block puts out
    middle     its input plus what attention wrote: what the MLP of the block works on
    attention  what attention wrote            mlp  what the MLP wrote

How the blocks of a family are built is found out by running four tokens (`anatomy`), not from a list of names.
Whatever a model does after its last block (norm, projection, head, soft caps, scales) is done by the model itself:
its blocks are skipped and the state stands in for what they would have put out (`entering`). Hugging Face's
`hidden_states[-1]` is the state after the final norm; here every state is the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge import dist
from expunge.data.tokenise import Encoded, by_length, collate
from expunge.errors import RecipeError, close_to
from expunge.measure.desk import Desk, Job
from expunge.measure.forward import run_model, token_logp
from expunge.measure.tables import NotMeasured, Table
from expunge.measure.tokens import BATCH_TOKENS, CHUNK
from expunge.models import blocks
from expunge.registry import instrument
from expunge.types import Subject

POINTS = ("block", "attention", "middle", "mlp")
KINDS = ("logp", "rank", "argmax")
PLACES = ("last", "prompt", "mean")
Heard = dict[tuple[str, int], Tensor]  # (point, block) -> states at the picked positions [K, D]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """How the blocks of a model are put together. names: the child of a block at which a point is read.

    tuples: whether a block puts out a tuple that starts with the stream.
    """

    model: Any
    blocks: tuple[nn.Module, ...]
    tuples: bool
    names: Mapping[str, str]

    @property
    def points(self) -> tuple[str, ...]:
        return tuple(point for point in POINTS if point == "block" or point in self.names)


@torch.no_grad()
def anatomy(model: Any, device: str = "cpu") -> Anatomy:
    """Look into the first block while the model reads four tokens, and check that its last block can be read out.

    The middle of a block is what some child is given that is the block's input plus what an earlier child put out.
    A block whose attention and MLP work side by side has none, and only its output is read.

    Raises: NotMeasured where the logits are not made from the last block's output alone.
    """
    found = tuple(block for _, block in blocks(model))
    ids = torch.arange(4, device=device).unsqueeze(0)
    given: dict[str, Tensor] = {}
    made: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, module in [("", found[0]), *found[0].named_children(), ("last", found[-1])]:
            stack.enter_context(_overheard(module, name, given, made))
        logits = model(input_ids=ids, use_cache=False).logits
    names = _children(given, {name: _first(output) for name, output in made.items()})
    inside = Anatomy(model, found, isinstance(made["last"], tuple), names)
    again = read_out(inside, _first(made["last"])[0])
    if not _near(again, logits[0]):
        raise NotMeasured(f"the logits of this {type(model).__name__} are not made from its last block's output alone")
    return inside


@contextmanager
def _overheard(module: nn.Module, name: str, given: dict[str, Tensor], made: dict[str, Any]) -> Iterator[None]:
    """Write down what a module is given and what it puts out, under its name, in the order in which they finish."""

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = _given(args, kwargs)
        if isinstance(value, Tensor):
            given[name] = value
        made[name] = output

    handle = module.register_forward_hook(listen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _children(given: Mapping[str, Tensor], made: Mapping[str, Any]) -> dict[str, str]:
    """Which children of the first block stand at middle, attention and mlp."""
    start, end = given[""], made[""]
    order = [name for name in made if name not in ("", "last")]
    for at, receiver in enumerate(order):
        middle = given.get(receiver)
        if middle is None or middle.numel() != start.numel():
            continue
        middle = middle.reshape(start.shape)  # some families put all texts of a batch into one row
        writers = [name for name in order[:at] if _near(made[name], middle - start)]
        if writers:
            wrote = [name for name in order if _near(made[name], end - middle)]
            return {"middle": receiver, "attention": writers[-1], **({"mlp": wrote[-1]} if wrote else {})}
    return {}


def _near(one: Any, other: Tensor) -> bool:
    """The same up to rounding, in the norm."""
    if not isinstance(one, Tensor) or one.numel() != other.numel():
        return False
    allowed = 1e-3 if other.dtype.itemsize >= 4 else 5e-2
    return bool((one.reshape(other.shape).float() - other.float()).norm() <= allowed * other.float().norm())


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def entering(inside: Anatomy, layer: int, states: Tensor) -> Iterator[None]:
    """While active, blocks 0..layer are skipped: the stream after block `layer` is `states` [B, T, D]."""
    skipped = inside.blocks[: layer + 1]
    own = [block.__dict__.get("forward") for block in skipped]

    def give(*_: Any, **__: Any) -> Any:
        return (states, None) if inside.tuples else states

    try:
        for block in skipped:
            block.forward = give
        yield
    finally:
        for block, forward in zip(skipped, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def read_out(inside: Anatomy, states: Tensor) -> Tensor:
    """Logits [K, V] of states [K, D] as if the last block had put them out."""
    ids = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)  # one token each: no position matters
    with entering(inside, len(inside.blocks) - 1, states.unsqueeze(1)):
        logits: Tensor = inside.model(input_ids=ids, use_cache=False).logits
    return logits[:, 0]


@contextmanager
def listening(inside: Anatomy, points: Sequence[str], picked: Tensor) -> Iterator[Heard]:
    """While active, the states of every block at some points are written down where `picked` [B, T] says."""
    heard: Heard = {}

    def hook(point: str, layer: int) -> Callable[..., None]:
        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
            value: Tensor = _given(args, kwargs) if point == "middle" else _first(output)
            heard[point, layer] = value.reshape(*picked.shape, -1)[picked]

        return listen

    handles = []
    for layer, block in enumerate(inside.blocks):
        for point in points:
            module = block if point == "block" else getattr(block, inside.names[point])
            handles.append(module.register_forward_hook(hook(point, layer), with_kwargs=True))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


# -- lens ------------------------------------------------------------------------------------------------------
@instrument("lens", tasks=("causal",), partner=True)
def lens(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """The logit lens: what every layer's stream would say, read through the final norm and the output head.

    p_l(. | x_<t) = softmax(head(norm(h_l,t))), where a soft cap, a scale or a bias of the model belongs to its head.

    Columns: token, logp and argmax of the model itself, one value a counted token; and for every column
    "KIND:POINT" that is asked for, KIND one of logp (nats), rank (0 = most likely) and argmax (bool) of the true
    token, POINT one of block, attention, middle, mlp or all, num_layers values a token (`Table.wide`). A point the
    family does not have has no column. The setting "head=original" reads through norm and head of the model before
    the removal.
    Cost: 1 forward per text, and the head once per counted token, layer and point.
    """
    inside = anatomy(subject.model, desk.device)
    return [_lens(job, inside, desk) for job in jobs]


def _lens(job: Job, inside: Anatomy, desk: Desk) -> Table:
    head = job.settings.get("head", "own")
    _check("head", head, ("own", "original"))
    outside = inside if head == "own" else partner_of(inside, desk)
    wanted = _readings(job.columns, inside.points)
    rows = each_row(job.encoded, lambda group: _lens_rows(group, inside, outside, wanted, desk.device))
    desk.count(forwards=len(job.encoded), tokens=sum(one.size for one in job.encoded))
    return table_of(job, rows)


def _check(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RecipeError(where, f"got '{value}'", close_to(value, known), "Correct the value")


def _readings(columns: frozenset[str], available: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, point) of every column asked for that can be had."""
    found = set()
    for column in columns:
        kind, colon, point = column.partition(":")
        if not colon:
            continue
        _check(column, kind, KINDS)
        _check(column, point, (*POINTS, "all"))
        found |= {(kind, one) for one in available if point in (one, "all")}
    return sorted(found)


def each_row(
    encoded: Sequence[Encoded], make: Callable[[list[Encoded]], list[dict[str, Any]]], most: int = BATCH_TOKENS
) -> list[dict[str, Any]]:
    """One row per text, made in batches of similar length, on several ranks by all of them."""
    found: list[tuple[int, dict[str, Any]]] = []
    for group in dist.shard(list(by_length([one.size for one in encoded], most))):
        made = make([encoded[i] for i in group])
        found += [(int(i), row) for i, row in zip(group, made, strict=True)]
    return [row for _, row in sorted(dist.gather(found), key=lambda pair: pair[0])]


def table_of(job: Job, rows: Sequence[Mapping[str, Any]], **more: Any) -> Table:
    """A table of one row per text of the job."""
    columns: dict[str, Any] = {"id": [one.id for one in job.encoded], "item": [one.item for one in job.encoded]}
    return Table.of(columns | more | {name: [row[name] for row in rows] for name in rows[0]})


@torch.no_grad()
def _lens_rows(
    group: list[Encoded], inside: Anatomy, outside: Anatomy, wanted: Sequence[tuple[str, str]], device: str
) -> list[dict[str, Any]]:
    batch = collate(group, device=device)
    keep = batch.positions("answer")
    points = sorted({point for _, point in wanted})
    with listening(inside, points, F.pad(keep, (0, 1))) as heard:
        logits = run_model(inside.model, batch, keep).logits
    assert logits is not None
    targets = batch.target_ids[:, 1:][keep]
    packed = {"token": targets.int(), "logp": token_logp(logits, batch, keep)[keep].float()}
    packed["argmax"] = logits.argmax(-1) == targets
    layers = len(inside.blocks)
    for point in points:
        kinds = [kind for kind, at in wanted if at == point]
        read = [_judged(outside, heard.pop((point, layer)), targets, kinds) for layer in range(layers)]
        packed |= {f"{kind}:{point}": torch.stack([one[kind] for one in read], dim=-1) for kind in kinds}  # [K, L]
    ends = np.cumsum(keep.sum(-1).cpu().numpy())[:-1]
    pieces = {name: np.split(values.cpu().numpy(), ends) for name, values in packed.items()}
    return [{name: pieces[name][i].reshape(-1) for name in pieces} for i in range(len(group))]


def _judged(outside: Anatomy, states: Tensor, targets: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
    """What the states [K, D] say of the true tokens [K]."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for part, true in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = read_out(outside, part).float()
        if "logp" in kinds:
            found["logp"].append(-F.cross_entropy(logits, true, reduction="none"))
        if "rank" in kinds:
            found["rank"].append((logits > logits.gather(-1, true.unsqueeze(-1))).sum(-1).int())
        if "argmax" in kinds:
            found["argmax"].append(logits.argmax(-1) == true)
    return {kind: torch.cat(values) for kind, values in found.items()}


def partner_of(inside: Anatomy, desk: Desk) -> Anatomy:
    """The anatomy of the model before the removal.

    Raises: NotMeasured when there is none, or when states of one model mean nothing in the other.
    """
    outside = anatomy(desk.partner().model, desk.device)
    sizes = [
        (len(one.blocks), *one.model.get_input_embeddings().weight.shape, one.model.config.model_type)
        for one in (outside, inside)
    ]
    if sizes[0] != sizes[1]:
        told = ["{} blocks, {} tokens x {} ({})".format(*size) for size in sizes]
        raise NotMeasured(f"the model before the removal is built differently: {told[0]}; this one: {told[1]}")
    return outside


# -- states ----------------------------------------------------------------------------------------------------
@instrument("states", tasks=("causal",))
def states(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """One vector per text and layer, for probes: the stream after every block.

    The setting "at=last" (default) takes the state at the text's last token, which has read all of it; "at=prompt" at
    the last token before the answer; "at=mean" the mean over the answer's tokens.

    Columns: states (float32, num_layers * width values end to end), num_layers, token (ids of the answer's tokens),
    subject (of the example; stream and id where it names none).
    Cost: 1 forward per text without the head; 4 * num_layers * width bytes a text are stored.
    """
    inside = anatomy(subject.model, desk.device)
    return [_states(job, inside, desk) for job in jobs]


def _states(job: Job, inside: Anatomy, desk: Desk) -> Table:
    at = job.settings.get("at", "last")
    _check("at", at, PLACES)
    rows = each_row(job.encoded, lambda group: _state_rows(group, inside, at, desk.device))
    desk.count(forwards=len(job.encoded), tokens=sum(one.size for one in job.encoded))
    whose = [job.examples[one.id].subject or f"{job.stream}: {one.id}" for one in job.encoded]
    return table_of(job, rows, subject=whose, num_layers=[len(inside.blocks)] * len(rows))


@torch.no_grad()
def _state_rows(group: list[Encoded], inside: Anatomy, at: str, device: str) -> list[dict[str, Any]]:
    batch = collate(group, device=device)
    picked = torch.zeros(batch.input_ids.shape, dtype=torch.bool, device=device)  # [B, T]
    for i, one in enumerate(group):
        if at == "mean":
            picked[i, : len(one)] = torch.from_numpy(one.counted).to(device)
        else:
            picked[i, len(one) - 1 if at == "last" else max(0, one.prompt_length - 1)] = True
    last = len(inside.blocks) - 1
    with listening(inside, ["block"], picked) as heard:
        run_model(inside.model, batch, batch.positions("answer"), layers=[last], stop=True)
    stacked = torch.stack([heard["block", layer].float() for layer in range(last + 1)], dim=1)  # [K, L, D]
    owner = picked.nonzero()[:, 0]
    summed = stacked.new_zeros(len(group), *stacked.shape[1:]).index_add(0, owner, stacked)
    mean = (summed / picked.sum(-1).view(-1, 1, 1)).cpu().numpy()
    return [
        {"states": mean[i].reshape(-1), "token": one.tokens[one.counted].astype(np.int32)}
        for i, one in enumerate(group)
    ]
