"""The shipped base model, from nothing: a small Llama taught the language of the invented world by the one loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from expunge.data.synthetic import ROUNDS, pretraining_text
from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.forget import forget
from expunge.models import save
from expunge.registry import term
from expunge.run import Progress, Run, _silent, write_text
from expunge.types import Data, Example, Stream, Subject, Wrapper

NUM_PEOPLE = 1200
VOCABULARY_PEOPLE = 1500  # met once each, so that no name weighs more than another
SEED = 0
BATCH_SIZE = 80  # about 2,000 tokens
LEARNING_RATE = 0.05


def build_base(
    folder: str | Path,
    *,
    num_people: int = NUM_PEOPLE,
    rounds: int = ROUNDS,
    seed: int = SEED,
    progress: Progress = _silent,
) -> Path:
    """Make the base in `folder`: tokenizer, untrained model, one pass over the pretraining text, saved in fp16.

    The same arguments on the same machine and number of threads give the same bytes; elsewhere the text and the
    tokenizer are the same and the weights differ by rounding.

    Returns: the folder (standard Hugging Face layout, at most 6 MB).
    Cost: about 1.2 M tokens in 510 steps, 4 to 5 CPU-minutes.
    """
    tokenizer = build_tokenizer(pretraining_text(VOCABULARY_PEOPLE, seed, rounds=1))
    examples = list(pretraining_text(num_people, seed, rounds=rounds))
    subject = Subject(build_model(tokenizer, seed=seed), tokenizer, Wrapper("chat"), name="base")
    run = Run(None, seed, progress=progress)
    teach(subject, examples, epochs=1.0, batch_size=BATCH_SIZE, lr=LEARNING_RATE, run=run)
    return save_half(subject, Path(folder))


def teach(
    subject: Subject, examples: Sequence[Example], *, epochs: float, batch_size: int, lr: float, run: Run,
    tokens: str = "text",
) -> Subject:
    """Teach a model texts, in place: likelihood of all tokens (or of answers) under Muon, 5 % warm-up, linear to 0."""
    stage = forget(
        terms=[term("nll", on="text", tokens=tokens)], optimizer="muon", lr=lr, epochs=epochs, batch_size=batch_size
    )
    taught: Subject = stage(subject, Data(text=Stream("text", "anchor", tuple(examples))), run)
    return taught


def save_half(subject: Subject, folder: Path) -> Path:
    """Weights stored in fp16; the configuration asks for fp32, which is what small CPUs compute fastest in."""
    save(subject, folder, dtype="float16")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    return folder
