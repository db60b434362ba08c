"""Reference quantities without a second model: measured once before training and kept per example.

Sequence objectives need one log-probability per token. Full-vocabulary objectives need the reference's
distribution: its last hidden states are stored, D numbers a token instead of V, and only the output head is kept
frozen (not even that when the head does not move). What a run will never draw is never measured, because the
draws are known in advance. Where the stored states would be too large, or the model does something to its logits
after the head, a switched-off adapter or a frozen copy takes over, and the plan says so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.data.tokenise import Encoded, by_length, collate
from expunge.measure.forward import kept_logits, make_pass, token_logp
from expunge.types import Batch, Movable, Pass

Way = Literal["stored", "adapter off", "frozen copy"]
MEASURE_TOKENS = 8192  # padded tokens of a batch without gradients


@dataclass
class Reference:
    """The start model's view of some streams.

    way: how full distributions are had; token log-probabilities are always stored.
    """

    model: Any
    movable: Movable
    budget_bytes: int = 2 << 30
    device: str = "cpu"
    logp: dict[str, dict[int, Tensor]] = field(default_factory=dict)  # stream -> row -> [T-1]
    states: dict[str, dict[int, Tensor]] = field(default_factory=dict)  # stream -> row -> [T-1, D]
    way: Way = "stored"
    head: Any = None
    frozen: Any = None
    forwards: int = 0

    def measure(self, streams: Mapping[str, tuple[Sequence[Encoded], Sequence[int]]], vocab: Sequence[str]) -> None:
        """Measure the rows each stream will draw.

        Args:
            streams: stream name -> (its encoded examples, the rows that will be drawn).
            vocab: names of the streams whose full distributions are needed.
        Cost: 1 forward per distinct example drawn.
        """
        if vocab:
            self._choose_way(sum(len(streams[name][0][row]) for name in vocab for row in streams[name][1]))
        for name, (encoded, rows) in streams.items():
            self.logp[name], self.states[name] = {}, {}
            lengths = [len(encoded[row]) for row in rows]
            for group in by_length(lengths, MEASURE_TOKENS):
                self._measure_batch(name, encoded, [rows[i] for i in group], keep_states=name in vocab)

    def _choose_way(self, num_tokens: int) -> None:
        head = self.model.get_output_embeddings()
        width = head.weight.shape[1]
        if num_tokens * width * head.weight.element_size() <= self.budget_bytes and self._head_is_plain():
            moves = any(p is q for p in head.parameters() for q in self.movable.parameters.values())
            self.head = copy.deepcopy(head).requires_grad_(False) if moves else head
        elif self.movable.adapter:
            self.way = "adapter off"
        else:
            self.way, self.frozen = "frozen copy", copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether logits are the head's output and nothing else (no soft cap, no scaling)."""
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        batch = Batch(ids, torch.ones_like(ids), ids, ("",))
        logits, states = kept_logits(self.model, batch, torch.ones(1, 3, dtype=torch.bool, device=self.device))
        return torch.equal(logits, self.model.get_output_embeddings()(states.unsqueeze(0))[0])

    @torch.no_grad()
    def _measure_batch(self, name: str, encoded: Sequence[Encoded], rows: Sequence[int], *, keep_states: bool) -> None:
        batch = collate([encoded[row] for row in rows], device=self.device)
        keep = batch.positions("text")
        with self._off():
            logits, states = kept_logits(self.model, batch, keep)
        self.forwards += len(rows)
        logp = token_logp(logits, batch, keep)
        packed = states.split(keep.sum(-1).tolist())
        for i, row in enumerate(rows):
            self.logp[name][row] = logp[i, : len(encoded[row]) - 1].clone()
            if keep_states and self.way == "stored":
                self.states[name][row] = packed[i].clone()

    def _off(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter() if self.movable.adapter else nullcontext()

    @torch.no_grad()
    def view(self, name: str, rows: Sequence[int], batch: Batch, keep: Tensor, *, vocab: bool) -> Pass:
        """The reference pass of a training batch over `keep`."""
        if vocab and self.way != "stored":
            with self._off():
                whole, _ = kept_logits(self.frozen if self.frozen is not None else self.model, batch, keep)
            return make_pass(whole, batch, keep, with_logits=True)
        logp = batch.input_ids.new_zeros(keep.shape, dtype=self.logp[name][rows[0]].dtype)
        for i, row in enumerate(rows):
            stored = self.logp[name][row]
            logp[i, : len(stored)] = stored
        logits: Tensor | None = None
        if vocab:
            text = batch.positions("text")
            states = torch.cat([self.states[name][row] for row in rows])  # all text positions, row-major
            logits = self.head(states[keep[text]])
        return Pass(logp * keep, keep, logits)
