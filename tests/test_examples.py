"""Every example is a whole program that runs; the one with a Trainer gives the loop's own losses and weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from expunge.data.tokenise import Text, encode
from expunge.errors import RecipeError
from expunge.forget import forget
from expunge.models import clone
from expunge.registry import _entries, term
from expunge.run import Run
from expunge.trainer import collator, trainer_loss, view_of
from expunge.types import Data, Stream, Subject

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAID = {
    "new_method.py": "method: quiet_npo verdict:",
    "new_metric.py": "first_token on forget:",
    "trainer_loss.py": "SimNPO loss by step:",
}


@pytest.fixture
def _own_registry():
    """What an example registers is gone after the test."""
    yield
    for key in [key for key, entry in _entries.items() if entry.fn.__module__ == "__main__"]:
        del _entries[key]


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of transformers.Trainer
@pytest.mark.parametrize("name", sorted(SAID))
def test_an_example_runs_and_says_what_it_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAID[name] in capsys.readouterr().out


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.rglob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", ["simnpo", "nll"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_trainer_computes_what_a_forget_stage_computes(name: str, tiny: Subject, tmp_path: Path) -> None:
    """Three steps of plain descent over the whole set, two micro-batches each: the same losses, the same weights."""
    from transformers import Trainer, TrainingArguments

    example = runpy.run_path(str(EXAMPLES / "trainer_loss.py"))
    secrets = example["SECRETS"]
    ours = clone(tiny)
    made = forget(terms=[term(name, on="forget")], optimizer="sgd", lr=1e-2, steps=3, batch_size=4)
    made(ours, Data(forget=Stream("forget", "forget", tuple(secrets))), Run(tmp_path / "ours"))
    logged = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "ours/log.jsonl").open()]

    theirs = clone(tiny)
    trainer = Trainer(
        model=theirs.model,
        args=TrainingArguments(
            str(tmp_path / "theirs"), max_steps=3, learning_rate=1e-2, lr_scheduler_type="constant", optim="sgd",
            max_grad_norm=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=encode(theirs, [Text(one.id, 0, one.prompt, one.answer) for one in secrets]),
        data_collator=collator,
        compute_loss_func=trainer_loss(name, examples_per_step=4),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses == pytest.approx(logged, abs=1e-4)
    after = theirs.model.state_dict()
    for key, tensor in ours.model.state_dict().items():
        torch.testing.assert_close(tensor, after[key], atol=1e-5, rtol=1e-4)


def test_a_view_of_logits_and_labels_counts_the_labelled_tokens() -> None:
    logits = torch.zeros(2, 3, 4)
    labels = torch.tensor([[-100, 1, 2], [-100, -100, 3]])
    view = view_of(logits, labels)
    assert view.now.n.tolist() == [2, 1]
    assert view.now.sum_logp.tolist() == pytest.approx([-2 * 1.3862944, -1.3862944])  # log 4


@pytest.mark.parametrize(
    ("objective", "words"),
    [("npo", "needs a reference"), ("dpo", "needs a reference"), ("simnpo", "examples_per_step: missing"),
     ("simnpoo", "did you mean 'simnpo'")],
)
def test_what_a_trainer_cannot_compute_is_told(objective: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        trainer_loss(objective)
