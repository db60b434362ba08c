"""Golden values of attacks on weights, of the dossier "an adversarial perspective": pruning scores and relearning.

The toy and its numbers are specified beside the golden file; nothing is downloaded.
"""

from __future__ import annotations

import ast

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expunge.attacks.prune import snip, top
from expunge.attacks.relearn import _loop
from expunge.registry import bind
from expunge.types import Example, Subject
from support import toys
from support.bigram import encoded
from support.golden import load

UTILITY = [[1, 4, 6, 8, 10, 12, 13, 2], [1, 15, 16, 17, 18, 19, 21, 2]]
MATRIX = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def golden():
    return load("adversarial_perspective")


@pytest.fixture(scope="module")
def scores():
    """Of the forget text and of the two of use, [12, 8] each."""
    return [snip(toys.toy_llama(), encoded(rows))[MATRIX] for rows in ([toys.X[0]], UTILITY)]


def gone(scores, p: float, q: float) -> torch.Tensor:
    forget, utility = (score.reshape(1, -1) for score in scores)
    return (top(forget, q) & ~top(utility, p))[0]


def unlearned():
    """The toy with a direction written into it that stands in the way."""
    model, junk = toys.toy_llama(), toys.fill((8,), 7001)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.add_(4.0 * (junk / junk.norm())[:, None] * toys.fill((1, 12), 7002))
    return model


def test_snip(golden, scores):
    for name, found in zip(("forget", "utility"), scores, strict=True):
        assert float(found.sum()) == pytest.approx(golden["snip"][f"{name}_score_sum"], **toys.NEAR)
        assert found[0].tolist() == pytest.approx(golden["snip"][f"{name}_row0"], **toys.NEAR)


def test_set_difference(golden, scores):
    assert len(golden["set_difference"]) == 4
    for key, wanted in golden["set_difference"].items():
        assert gone(scores, *ast.literal_eval(key)).nonzero()[:, 0].tolist() == wanted


def test_set_difference_loss(golden, scores):
    model, ids = toys.toy_llama(), torch.tensor([toys.X[0]])
    with torch.no_grad():
        before = float(model(input_ids=ids, labels=ids).loss)
        model.get_submodule(MATRIX).weight.masked_fill_(gone(scores, 0.2, 0.1).reshape(12, 8), 0.0)
        after = float(model(input_ids=ids, labels=ids).loss)
    assert before == pytest.approx(golden["loss_before_prune"], **toys.NEAR)
    assert after == pytest.approx(golden["set_difference_loss_after_prune_0.2_0.1"], **toys.NEAR)


def numbers():
    """A tokenizer that writes a token as its number, and ends texts with nothing."""
    inner = Tokenizer(models.WordLevel({str(number): number for number in range(23)}, unk_token="0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)


def test_relearn_sgd(golden):
    """Four steps of the attack's own loop, with plain gradient descent in place of its AdamW."""
    text = Example("0", "", " ".join(map(str, toys.X[0])))
    loop = _loop(Subject(unlearned(), numbers()), [text], "all", 0.01, 1, 0, 4)
    loop.updater = bind("optimizer", "sgd")(loop.movable, 0.01)
    losses = [record["loss"] for record in loop.run()]
    assert losses == pytest.approx(golden["relearn_sgd_lr0.01_losses"], **toys.NEAR)
