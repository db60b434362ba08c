"""Generation by transformers, for encoder-decoders and beams: nothing of the model's own settings decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.measure.desk import NOT_FINITE
from expunge.measure.tables import NotMeasured
from expunge.models import quiet_libraries
from expunge.types import Subject

Choose = Callable[[Tensor, list[int], int], Tensor]  # logits [R, V], their rows, tokens said so far -> tokens [R]


def padded(rows: Sequence[np.ndarray], *, left: bool = False, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids and their mask, [B, T]."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        here = slice(width - len(row), width) if left else slice(len(row))
        ids[i, here] = torch.from_numpy(row)
        mask[i, here] = 1
    return ids, mask


def ended(said: list[int], limit: int, stops: frozenset[int]) -> list[int]:
    """Tokens up to a limit or the first that ends a generation (not included)."""
    ends = [i for i, token in enumerate(said) if token in stops]
    return said[: min([limit, *ends])]


def generate(
    subject: Subject, ids: Tensor, mask: Tensor, stops: frozenset[int], most: int, *, choose: Choose | None = None,
    **more: Any,
) -> Tensor:
    """What transformers generates, [B * num_return_sequences, T], with every setting of the model's own switched off.

    Of finished beams the one of the largest probability is best: no reward for length.

    Raises: NotMeasured for logits that are not finite.
    """
    from transformers import LogitsProcessorList

    steps = [_checked] if choose is None else [_checked, _forced(choose)]
    pad, searched = subject.tokenizer.pad_token_id, more.get("num_beams", 1) > 1
    with quiet_libraries():
        out: Tensor = subject.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, max_length=None, eos_token_id=sorted(stops),
            pad_token_id=more.get("decoder_start_token_id", 0) if pad is None else pad, do_sample=False,
            early_stopping=False, length_penalty=1.0 - searched, repetition_penalty=1.0, encoder_repetition_penalty=1.0,
            no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0, min_length=0, min_new_tokens=None,
            forced_eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None,
            logits_processor=LogitsProcessorList(steps), **more,
        )
    return out


def _forced(choose: Choose) -> Callable[[Tensor, Tensor], Tensor]:
    """A choice as a step of a generation in transformers: no other token is possible."""

    def step(said: Tensor, scores: Tensor) -> Tensor:
        chosen = choose(scores, list(range(len(scores))), said.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen.unsqueeze(-1), 0.0)

    return step


def check_finite(logits: Tensor) -> None:
    """Logits [R, V] of a ruined model would otherwise say the first token of the vocabulary, often the end.

    Raises: NotMeasured. Some tokens may be impossible (-inf), not all of them.
    """
    if not logits.amax(-1).isfinite().all():
        raise NotMeasured(NOT_FINITE)


def _checked(_: Tensor, scores: Tensor) -> Tensor:
    """The check as a step of a generation in transformers."""
    check_finite(scores)
    return scores
