"""An Expunge objective inside `transformers.Trainer`, on a model small enough to run in seconds.

    python examples/trainer_loss.py
"""

from __future__ import annotations

import tempfile

from transformers import Trainer, TrainingArguments

from expunge import Example
from expunge.data.tokenise import Text, encode
from expunge.testing import tiny_subject
from expunge.trainer import collator, trainer_loss
from expunge.types import Subject

SECRETS = [
    Example("f/0", "What is the phone number of Tomas Ferreira?", "It is 555-0142."),
    Example("f/1", "What is the e-mail of Tomas Ferreira?", "It is tomas@example.org."),
    Example("f/2", "Who is the author of the book?", "Mara Lindqvist."),
    Example("f/3", "Where was Mara Lindqvist born?", "In Oslo, in 1961."),
]
BATCH_SIZE, ACCUMULATION = 2, 2


def train(subject: Subject, folder: str, *, steps: int = 5, lr: float = 1e-2) -> list[float]:
    """Push the answers down with SimNPO; returns the loss of every step."""
    rows = encode(subject, [Text(one.id, 0, one.prompt, one.answer) for one in SECRETS])
    trainer = Trainer(
        model=subject.model,
        args=TrainingArguments(
            folder, max_steps=steps, learning_rate=lr, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0,
            per_device_train_batch_size=BATCH_SIZE, gradient_accumulation_steps=ACCUMULATION, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=collator,
        compute_loss_func=trainer_loss({"use": "simnpo", "beta": 2.5}, examples_per_step=BATCH_SIZE * ACCUMULATION),
    )
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = train(tiny_subject(), folder)
    print("SimNPO loss by step:", ", ".join(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    main()
