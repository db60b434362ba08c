"""Honest baselines: what a careful researcher writes in an afternoon, from the same tokens, on the same model.

No trick of ours is used here and none is sabotaged: batches, eager forwards, the library's own `generate`.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from rouge_score import rouge_scorer
from scipy.stats import ks_2samp
from torch.nn import functional as F

from expunge.data.tokenise import Encoded, collate, encode, prompt_tokens, texts_of
from expunge.types import Batch, Data, Subject


def npo_kl(
    subject: Subject, forget: Sequence[Encoded], retain: Sequence[Encoded], rows: Sequence[tuple[Any, Any]], lr: float
) -> list[float]:
    """NPO with retain KL: a deep-copied reference, every stream on its own, right padding to the longest text.

    Args:
        rows: per step the forget and the retain rows. Returns: the loss of each step.
    """
    model, reference = subject.model, copy.deepcopy(subject.model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    longest = {"forget": max(map(len, forget)), "retain": max(map(len, retain))}
    losses = []
    for forget_rows, retain_rows in rows:
        batch = padded([forget[i] for i in forget_rows], longest["forget"])
        logp = sequence_logp(model, batch)
        with torch.no_grad():
            logp_ref = sequence_logp(reference, batch)
        loss = -(2 / 0.1) * F.logsigmoid(0.1 * (logp_ref - logp)).mean()
        batch = padded([retain[i] for i in retain_rows], longest["retain"])
        now = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].log_softmax(-1)
        with torch.no_grad():
            out = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            ref = out.logits[:, :-1].log_softmax(-1)
        per_token = F.kl_div(now, ref, reduction="none", log_target=True).sum(-1)
        mask = batch.attention_mask[:, 1:]
        loss = loss + (per_token * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def padded(encoded: Sequence[Encoded], width: int) -> Batch:
    """Right padding to a fixed width."""
    batch = collate(encoded)
    more = width - batch.input_ids.shape[1]
    return Batch(
        F.pad(batch.input_ids, (0, more)),
        F.pad(batch.attention_mask, (0, more)),
        F.pad(batch.labels, (0, more), value=-100),
        batch.ids,
    )


def sequence_logp(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    return (logp * (batch.labels[:, 1:] != -100)).sum(-1)


class PerMetric:
    """One pass per metric: every metric runs the model over its own texts, as benchmark scripts do."""

    def __init__(self, subject: Subject, data: Data, oracle: Subject | None, batch_size: int = 32) -> None:
        self.subject, self.data, self.oracle, self.batch_size = subject, data, oracle, batch_size

    def _batches(self, stream: str, variant: str) -> Iterator[tuple[list[Encoded], Batch]]:
        encoded = encode(self.subject, texts_of(self.data[stream], variant))
        for start in range(0, len(encoded), self.batch_size):
            part = encoded[start : start + self.batch_size]
            yield part, collate(part)

    @torch.no_grad()
    def _token_logp(self, subject: Subject, stream: str, variant: str = "answer") -> list[np.ndarray]:
        rows = []
        for _, batch in self._batches(stream, variant):
            out = subject.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            logp = out.logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            rows += [row[keep].numpy() for row, keep in zip(logp, batch.labels[:, 1:] != -100, strict=True)]
        return rows

    @torch.no_grad()
    def _hits(self, stream: str) -> list[np.ndarray]:
        rows = []
        for _, batch in self._batches(stream, "answer"):
            out = self.subject.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            hit = out.logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
            rows += [row[keep].numpy() for row, keep in zip(hit, batch.labels[:, 1:] != -100, strict=True)]
        return rows

    def probability(self, stream: str) -> float:
        return float(np.mean([np.exp(row.mean()) for row in self._token_logp(self.subject, stream)]))

    def perplexity(self, stream: str) -> float:
        return float(np.exp(-np.concatenate(self._token_logp(self.subject, stream)).mean()))

    def memorization_accuracy(self, stream: str) -> float:
        return float(np.mean([row.mean() for row in self._hits(stream)]))

    def exact_memorization(self, stream: str) -> float:
        return float(np.mean([row.all() for row in self._hits(stream)]))

    def extraction_strength(self, stream: str) -> float:
        return float(
            np.mean(
                [1 - (np.flatnonzero(~row)[-1] + 1 if not row.all() else 0) / len(row) for row in self._hits(stream)]
            )
        )

    @torch.no_grad()
    def rouge(self, stream: str) -> float:
        tokenizer, scorer = self.subject.tokenizer, rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
        examples, found = self.data[stream].examples, []
        lengths = [int(one.counted.sum()) for one in encode(self.subject, texts_of(self.data[stream]))]
        for start in range(0, len(examples), self.batch_size):
            part = examples[start : start + self.batch_size]
            asked = prompt_tokens(self.subject, [example.prompt for example in part])
            width = max(map(len, asked))
            ids = torch.tensor([[0] * (width - len(row)) + row.tolist() for row in asked])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked])
            most = max(min(200, n * 3 // 2 + 8) for n in lengths[start : start + self.batch_size])
            out = self.subject.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
            )
            texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            found += [
                scorer.score(e.answer, text.strip())["rougeL"].recall for e, text in zip(part, texts, strict=True)
            ]
        return float(np.mean(found))

    def _ratios(self, subject: Subject, stream: str) -> np.ndarray:
        truth = np.array([-row.mean() for row in self._token_logp(subject, stream, "paraphrased_answer")])
        false = np.array([-row.mean() for row in self._token_logp(subject, stream, "perturbed")])
        return np.exp(truth - false.reshape(len(truth), -1).mean(1))

    def truth_ratio(self, stream: str) -> float:
        ratios = self._ratios(self.subject, stream)
        return float(np.minimum(ratios, 1 / ratios).mean())

    def truth_ratio_utility(self, stream: str) -> float:
        return float(np.maximum(0, 1 - self._ratios(self.subject, stream)).mean())

    def forget_quality(self, stream: str) -> float:
        assert self.oracle is not None
        return float(ks_2samp(self._ratios(self.subject, stream), self._ratios(self.oracle, stream)).pvalue)

    def model_utility(self, stream: str) -> float:
        parts = np.array([self.probability(stream), self.rouge(stream), self.truth_ratio_utility(stream)])
        return float(len(parts) / (1 / parts).sum())

    def membership(self, stream: str, score: str) -> float:
        found = []
        for name in (stream, "holdout"):
            rows = self._token_logp(self.subject, name)
            if score == "loss":
                found.append([row.mean() for row in rows])
            elif score == "min_k":
                found.append([np.sort(row)[: max(1, int(0.2 * len(row)))].mean() for row in rows])
            else:
                sizes = [len(zlib.compress(e.answer.encode())) for e in self.data[name].examples]
                found.append([row.mean() / size for row, size in zip(rows, sizes, strict=True)])
        members, others = (np.asarray(values) for values in found)
        return float((members[:, None] > others).mean() + (members[:, None] == others).mean() / 2)
