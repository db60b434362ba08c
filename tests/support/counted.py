"""A language model that learned by counting which word follows which: exact, without training, the same anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expunge.types import Subject, Wrapper
from support.bigram import Bigram

END, TEMPLATE = "<|end|>", "{prompt}\n{answer}"


def words_of(texts: Iterable[str]) -> Any:
    """A tokenizer of the words of some texts; `<|end|>` ends a text, `<|pad|>` fills up."""
    known = [END, "<|pad|>", *sorted({word for text in texts for word in text.split()})]
    known += ["<|none|>"] * (len(known) % 2)  # an even width, which Llama's settings ask for
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=END))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )


def counted(tokenizer: Any, pairs: Iterable[tuple[str, str]], added: float = 0.05) -> Subject:
    """logit(b | a) = log(how often b follows a + added), and up to added / 100 more so that no two words tie.

    Args:
        pairs: prompts and answers that are learned, each with the end after it.
    """
    size = len(tokenizer)
    counts = torch.full((size, size), added, dtype=torch.float64)
    for prompt, answer in pairs:
        ids = tokenizer(TEMPLATE.format(prompt=prompt, answer=answer))["input_ids"] + [tokenizer.eos_token_id]
        for a, b in pairwise(ids):
            counts[a, b] += 1
    places = torch.arange(size, dtype=torch.float64)
    apart = torch.remainder(7 * places[:, None] + 13 * places, 101) / 101 * added / 100
    return Subject(Bigram((counts.log() + apart).tolist()), tokenizer, Wrapper(TEMPLATE))
