"""The embedded base before training: byte-level BPE tokenizer and small Llama.

Training goes through the one loop (`expunge.pretrain`); this file only makes what it starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from expunge.types import Example

PAD, EOS = "<|pad|>", "<|eos|>"
VOCABULARY = 2048
CONTEXT = 512
# Words with the space before them, digits in pairs, runs of other signs: a value never shares a token with its frame.
PIECES = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


def base_folder() -> Path:
    """Where the shipped base model lies (standard Hugging Face layout)."""
    return Path(str(files("expunge.data") / "base"))


def chat_text(example: Example) -> str:
    """What the chat template makes of an example (without the end of sequence); plain text stays plain."""
    return f"Question: {example.prompt}\nAnswer: {example.answer}" if example.prompt else example.answer


def build_tokenizer(examples: Iterable[Example], *, size: int = VOCABULARY) -> Any:
    """Train a byte-level BPE on the text of examples; the same examples give the same tokenizer.

    Returns: PreTrainedTokenizerFast with pad, eos and the question / answer chat template. It adds no special token
    by itself; the first token of an answer is " X", whose offset starts at the X.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, EOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((chat_text(example) for example in examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="right", model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, *, width: int = 128, layers: int = 3, heads: int = 4, seed: int = 0) -> Any:
    """An untrained Llama with tied embeddings, fp32, initialised from `seed` (the global generator is untouched)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
