"""Small real things: models built in milliseconds, and streams with every field."""

from __future__ import annotations

from typing import Any, Literal

from expunge.types import Data, Example, Stream, Subject, Wrapper

_WORDS = (
    "Who is the author of the book? The author of the book is Mara Lindqvist, born in Oslo in 1961. "
    "What is the phone number of Tomas Ferreira? It is 555-0142, and his e-mail is tomas@example.org. "
    "She wrote novels about the sea, the winter and the people who live between them."
)


def tiny_tokenizer(vocab_size: int = 300) -> Any:
    """A byte-level BPE tokenizer: every text can be written; `<|end|>` ends a text and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([_WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def tiny_subject(seed: int = 0, family: Literal["llama", "gpt2"] = "llama") -> Subject:
    """A model of 2 blocks, width 32, with random weights that depend on `seed` alone; context 256."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    tokenizer = tiny_tokenizer()
    common = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    if family == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1, **common,
        )
    else:
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.1, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Subject(model.eval(), tokenizer, Wrapper(template="{prompt} {answer}"), name=f"tiny-{family}")


def tiny_data(forget: int = 8, retain: int = 6, holdout: int = 6) -> Data:
    """Streams with every field: paraphrases, false answers, alternatives, spans."""

    def stream(name: Literal["forget", "retain", "holdout"], size: int) -> Stream:
        return Stream(name, name, tuple(
            Example(
                f"{name}/{i}", f"What is {name} {i}?", f"It is {i * 7} and {name}.", spans=((6, 8),),
                paraphrases=(f"Tell me {name} {i}",), paraphrased_answer=f"{i * 7} it is.",
                perturbed=(f"It is {i} and none.", "It is nothing."), alternative="No idea.",
            )
            for i in range(size)
        ))

    return Data(forget=stream("forget", forget), retain=stream("retain", retain), holdout=stream("holdout", holdout))
