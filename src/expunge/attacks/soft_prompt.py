"""Soft prompt: a few trained vectors stand beside every question, where words would have to be words."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.parts import shallow
from expunge.attacks.shown import asked_like, exposed_of, growing, part_of
from expunge.attacks.suffix.problem import Place, Put, putting
from expunge.data.examples import stream_of
from expunge.data.tokenise import Encoded, collate
from expunge.errors import DoesNotFit, RecipeError
from expunge.measure.desk import NOT_FINITE
from expunge.measure.forward import kept_logits, token_logp
from expunge.perturb.latent import frozen
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject


@dataclass(frozen=True, eq=False)
class Vectors:
    """Tokens that stand for vectors: the tokenizer that knows them, their numbers and their text."""

    tokenizer: Any
    ids: tuple[int, ...]
    text: str

    def given(self, subject: Subject, rows: Tensor, place: Place) -> Subject:
        """The subject with these rows [n, D] in its embedding, put beside every prompt.

        The head keeps its rows, so the new tokens cannot be said, and without them every distribution is what it was.
        Cost: one copy of the embedding.
        """
        changed = shallow(subject)
        old = changed.model.get_input_embeddings().weight  # [V, D]
        wide = old.new_zeros(max(len(old), max(self.ids) + 1), old.shape[1])
        wide[: len(old)] = old.detach()
        wide[list(self.ids)] = rows.to(wide)
        parameter = nn.Parameter(wide, requires_grad=old.requires_grad)
        for module in changed.model.modules():  # encoder-decoders hold the same table several times
            if isinstance(module, nn.Embedding) and module.weight is old:
                module.weight, module.num_embeddings = parameter, len(wide)
        return replace(changed, tokenizer=self.tokenizer, wrapper=putting(subject.wrapper, Put(self.text, place)))


def new_vectors(subject: Subject, length: int) -> Vectors:
    """Tokens that no text has held so far, in a copy of the tokenizer.

    Raises: DoesNotFit for a tokenizer whose numbers have gaps, and for an embedding that is no plain table.
    """
    from tokenizers import AddedToken

    table = subject.model.get_input_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(table.weight, nn.Parameter):  # under an adapter, say
        raise DoesNotFit("the input embedding of this model is no plain table of vectors")
    known = subject.tokenizer.get_vocab()
    mark = next(number for number in count() if f"<|soft {number}.0|>" not in known)
    names = [f"<|soft {mark}.{i}|>" for i in range(length)]
    # A head may be wider than the vocabulary: numbers that it can say are used up first.
    spare = [f"<|row {number}|>" for number in range(max(known.values()) + 1, len(table.weight))]
    tokenizer = copy.deepcopy(subject.tokenizer)
    added = [AddedToken(name, special=True, normalized=False) for name in (*spare, *names)]
    tokenizer.add_tokens(added, special_tokens=True)
    ids = tuple(int(number) for number in tokenizer.convert_tokens_to_ids(names))
    if not set(known.values()).isdisjoint(ids):
        raise DoesNotFit("the numbers of this tokenizer have gaps, so no token can be added to it")
    return Vectors(tokenizer, ids, "".join(names))


@attack(
    "soft_prompt", changes="weights", judged="oracle",
    says="{length} vectors at every question, trained {steps} steps on {share:.0%}",
)
def soft_prompt(
    subject: Subject, data: Data, run: Run, *, length: int = 8, steps: int = 100, lr: float = 0.1, share: float = 0.5,
    place: Place = "suffix", at: tuple[int, ...] = (), batch_size: int = 16, on: str = "forget", seed: int = 0,
) -> Iterator[Subject]:
    """Train free vectors beside the questions until some forgotten answers become likely; the others are scored.

    min_e - sum_(x, y) log p(y | x, e) / (number of answer tokens), e [n, D] the same for all pairs, by Adam.

    It is declared as a change of weights: nobody who only types can do this, it takes the embedding of the model. The
    vectors are rows of it, tokens of their own stand for them, and every measurement sees the questions with them.

    Args:
        length: vectors, 1 or more; they start as those of tokens drawn at random.
        steps: of Adam. lr: its step as a share of the typical entry (root mean square) of an embedding vector.
        share: part of the stream the vectors are trained on, in (0, 1).
        place: "suffix" (behind the question, before a cue such as "Answer:" that ends it), "prefix" or "infix".
        at: growing numbers of steps after which the model is measured, in place of `steps`; 0: nothing trained.
        batch_size: questions of a step. on: the stream to take them from. seed: of part, start and batches.
    Returns: one subject per budget; the questions trained on that are to be forgotten are in `exposed` and are not
        scored.
    Raises: DoesNotFit where no question can be shown and another scored, or the embedding is no plain table.
    Cost: per step one forward and one backward of `batch_size` questions; a copy of the embedding. No queries: nobody
        asks the model for an answer on the way.
    Judged: beside an oracle only. It is told answers of the stream, and vectors can teach as well as ask.
    Source: Schwinn et al. 2024 (arXiv 2402.09063), embedding attacks on unlearned models; soft prompts of Lester et
        al. 2021 (arXiv 2104.08691). Differences: Adam instead of signed steps, and never scored on what was trained.
    """
    budgets = _checked(length, lr, batch_size, tuple(at) or (steps,))
    stream = stream_of(data, on, "attacks.soft_prompt.on")
    shown = part_of(subject, stream, share, seed, "attacks.soft_prompt.share")
    vectors = new_vectors(subject, length)
    random = np.random.default_rng([seed, length])
    table = subject.model.get_input_embeddings().weight.detach()
    start = table[torch.from_numpy(random.permutation(min(len(table), min(vectors.ids)))[:length]).to(table.device)]
    start = start.float().repeat(-(-length // len(start)), 1)[:length]  # a vocabulary may be smaller than `length`
    rows, cost = start.clone(), Cost()
    training = vectors.given(subject, rows, place)
    training.model.eval()
    encoded = asked_like(training, shown)
    optimizer = torch.optim.Adam([rows], lr=lr * float(start.square().mean().sqrt()))
    order = _batches(len(encoded), batch_size, random)
    done = 0
    for budget in budgets:
        for step in range(done, budget):
            run.check_stop()
            chosen = [encoded[i] for i in next(order)]
            loss = _descend(training.model, vectors.ids, rows, optimizer, chosen)
            size = sum(one.size for one in chosen)
            cost += Cost(steps=1, forwards=len(chosen), backwards=len(chosen), tokens=size)
            run.progress("soft prompt", step + 1, budgets[-1], f"loss {loss:.3f}")
        done = budget
        hyper = {"length": length, "steps": budget, "share": share}
        event = Event("attack", "soft_prompt", hyper, cost, exposed_of(stream, shown))
        yield vectors.given(subject, rows.detach(), place).after(event)


def _checked(length: int, lr: float, batch_size: int, budgets: tuple[int, ...]) -> tuple[int, ...]:
    """After how many steps to yield.

    Raises: RecipeError for a number out of range.
    """
    for name, value in (("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise RecipeError(f"attacks.soft_prompt.{name}", f"got {value}", "1 or more", "Correct it")
    if not 0 < lr < float("inf"):
        raise RecipeError("attacks.soft_prompt.lr", f"got {lr}", "more than 0", "Correct it")
    return growing(budgets, "attacks.soft_prompt")


def _batches(num: int, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers, `size` at a time, in a new order whenever all have been drawn."""
    left = np.empty(0, dtype=np.int64)
    while True:
        while len(left) < min(size, num):
            left = np.concatenate([left, random.permutation(num)])
        yield left[:size]
        left = left[size:]


def _descend(
    model: Any, ids: Sequence[int], rows: Tensor, optimizer: torch.optim.Optimizer, encoded: Sequence[Encoded]
) -> float:
    """One step of the rows down the loss per answer token, nats; the model's table holds the rows afterwards.

    Raises: DoesNotFit when the loss is not finite.
    """
    table = model.get_input_embeddings().weight
    batch = collate(encoded, device=str(table.device))
    keep = batch.positions("answer")
    with frozen(model), torch.enable_grad():
        table.requires_grad_(True)
        loss = -token_logp(kept_logits(model, batch, keep)[0], batch, keep).sum() / keep.sum()
        (slope,) = torch.autograd.grad(loss, table)
        table.requires_grad_(False)
    if not loss.isfinite():
        raise DoesNotFit(NOT_FINITE)
    rows.grad = slope[list(ids)].float()
    optimizer.step()
    with torch.no_grad():
        table[list(ids)] = rows.to(table)
    return float(loss.detach())
