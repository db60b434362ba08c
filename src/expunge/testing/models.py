"""Small real things: models built in milliseconds, and streams with every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from expunge.types import Data, Example, Role, Stream, Subject, Task, Wrapper

_WORDS = (
    "Who is the author of the book? The author of the book is Mara Lindqvist, born in Oslo in 1961. "
    "What is the phone number of Tomas Ferreira? It is 555-0142, and his e-mail is tomas@example.org. "
    "She wrote novels about the sea, the winter and the people who live between them."
)


Family = Literal["llama", "gpt2", "bart", "marian", "t5", "bert", "distilbert"]
COLOURS = ("red", "green", "blue")  # the labels of the tiny classifier
TASKS: Mapping[Family, Task] = {
    "llama": "causal", "gpt2": "causal", "bart": "seq2seq", "marian": "seq2seq", "t5": "seq2seq", "bert": "masked",
    "distilbert": "classification",
}
_PREDICTS: Mapping[Task, str] = {
    "causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM", "masked": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
}


def tiny_tokenizer(vocab_size: int = 300, task: Task = "causal") -> Any:
    """A byte-level BPE tokenizer: every text can be written; `<|end|>` ends a text and pads.

    That of an encoder-decoder ends its texts itself; those of masked models and classifiers write [CLS] text [SEP].
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    encoder = task in ("masked", "classification")
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] if encoder else ["<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([_WORDS], trainer)
    numbers = [(token, number) for number, token in enumerate(special)]
    if task != "causal":
        whole = "[CLS] $A [SEP]" if encoder else "$A <|end|>"
        inner.post_processor = processors.TemplateProcessing(single=whole, special_tokens=numbers)
    names = ("pad_token", "cls_token", "sep_token", "mask_token")
    roles = dict(zip(names, special, strict=True)) if encoder else {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, model_max_length=256, **roles
    )


def tiny_subject(seed: int = 0, family: Family = "llama", several_labels: bool = False) -> Subject:
    """A model of 2 blocks, width 32, with random weights that depend on `seed` alone; context 256.

    Args:
        family: llama and gpt2 (causal), bart, marian and t5 (seq2seq), bert (masked), distilbert (classification into
            three colours). several_labels: the classifier says yes or no to each colour.
    """
    import torch
    import transformers

    task = TASKS[family]
    tokenizer = tiny_tokenizer(task=task)
    config = _tiny_config(family, len(tokenizer))
    if task == "classification":
        config.label2id = {name: number for number, name in enumerate(COLOURS)}
        config.id2label = dict(enumerate(COLOURS))
        config.problem_type = "multi_label_classification" if several_labels else "single_label_classification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, _PREDICTS[task]).from_config(config, dtype=torch.float32)
    template = "{prompt} {answer}" if task in ("causal", "masked") else "{prompt}"
    return Subject(model.eval(), tokenizer, Wrapper(template=template), name=f"tiny-{family}", task=task)


def _tiny_config(family: Family, vocab_size: int) -> Any:
    import transformers as hf

    common = {"vocab_size": vocab_size, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    halves = common | {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "init_std": 0.1,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256,
        "decoder_start_token_id": 0, "forced_eos_token_id": None, "dropout": 0.0,
    }
    block = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    if family == "llama":
        return hf.LlamaConfig(
            hidden_size=32, num_hidden_layers=2, max_position_embeddings=256, tie_word_embeddings=True,
            initializer_range=0.1, **block, **common,
        )
    if family == "gpt2":
        return hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.1, **common)
    if family == "bart":
        return hf.BartConfig(**halves)
    if family == "marian":
        return hf.MarianConfig(**halves, decoder_vocab_size=vocab_size, share_encoder_decoder_embeddings=True)
    if family == "t5":
        return hf.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0, n_positions=256, **common,
        )
    if family == "bert":
        return hf.BertConfig(
            vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=256, initializer_range=0.1, pad_token_id=0,
        )
    return hf.DistilBertConfig(
        vocab_size=vocab_size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=256,
        initializer_range=0.1, pad_token_id=0,
    )


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


def whole_examples(num: int, name: str) -> tuple[Example, ...]:
    """Examples that have every field an example can have; two in a row are about the same subject."""
    return tuple(
        replace(
            one, id=f"{name}/{i}", subject=f"{name} {i // 2}", choices=(one.answer, *one.perturbed),
            contrast=one.answer.replace("It is", "It was"),
        )
        for i, one in enumerate(tiny_data(forget=num)["forget"].examples)
    )


def tiny_classes(forget: int = 8, retain: int = 8, holdout: int = 6) -> Data:
    """Streams for the tiny classifier: texts and the colour each belongs to, the other two as false answers."""

    def stream(name: Role, size: int, shift: int) -> Stream:
        made = []
        for i in range(size):
            colour = COLOURS[(i + shift) % 3]
            others = tuple(other for other in COLOURS if other != colour)
            made.append(Example(f"{name}/{i}", f"What is {name} {i}?", colour, perturbed=others, alternative=others[0]))
        return Stream(name, name, tuple(made))

    return Data(
        forget=stream("forget", forget, 0), retain=stream("retain", retain, 1), holdout=stream("holdout", holdout, 2)
    )
