"""Muon: orthogonal updates, equal to an obvious loop, resumed bit-exactly."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from expunge.optim import NEWTON_SCHULZ, build_optimizer, orthogonalize


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 10)
        self.second = nn.Linear(6, 10, bias=False)
        self.third = nn.Linear(10, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        return self.third(torch.tanh(self.first(x)) * self.second(x))


def train(model: Toy, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(0, 11, (8,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 11).backward()
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * (1 - step / 20)
        optimizer.step()


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5), (3, 6, 9)])
def test_orthogonalize_gives_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrices, steps=10))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    u, _, vt = torch.linalg.svd(torch.randn(6, 9, generator=torch.Generator().manual_seed(2)), full_matrices=False)
    matrix = u @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.5, 1.0])) @ vt
    rotated = u.T @ orthogonalize(matrix) @ vt.T
    assert (rotated - torch.diag(rotated.diag())).abs().max() < 1e-4


def test_zero_gradient_moves_nothing_but_the_decay() -> None:
    assert orthogonalize(torch.zeros(4, 3)).abs().max() == 0


def obvious_muon(parameter: torch.Tensor, grads: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """One matrix at a time, as the paper writes it."""
    weight, velocity = parameter.clone(), torch.zeros_like(parameter)
    a, b, c = NEWTON_SCHULZ
    for grad in grads:
        velocity = 0.95 * velocity + grad
        x = grad + 0.95 * velocity
        x = x / x.norm()
        for _ in range(5):
            x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
        rows, columns = weight.shape
        weight = weight * (1 - lr * decay) - lr * max(1.0, rows / columns) ** 0.5 * x
    return weight


def test_muon_matches_the_obvious_loop_matrix_by_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (6, 6), "b": (6, 6), "tall": (12, 4), "wide": (4, 12)}
    parameters = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    grads = {name: [torch.randn(shape, generator=generator) for _ in range(4)] for name, shape in shapes.items()}
    optimizer = build_optimizer(parameters, name="muon", lr=0.05, weight_decay=0.1)
    for step in range(4):
        for name, parameter in parameters.items():
            parameter.grad = grads[name][step].clone()
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), obvious_muon(start[name], grads[name], 0.05, 0.1))


def test_tables_and_vectors_are_moved_by_adamw() -> None:
    model, twin = Toy(), Toy()
    muon = build_optimizer(dict(model.named_parameters()), name="muon", lr=0.05, weight_decay=0.02)
    kinds = {id(p): group["kind"] for group in muon.param_groups for p in group["params"]}
    assert kinds[id(model.embed_tokens.weight)] == kinds[id(model.first.bias)] == "adamw"
    assert kinds[id(model.first.weight)] == kinds[id(model.third.weight)] == "muon"
    adamw = torch.optim.AdamW(
        [
            {"params": [twin.embed_tokens.weight], "weight_decay": 0.02},
            {"params": [twin.first.bias], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.99),
    )
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        pairs = ((model.embed_tokens.weight, twin.embed_tokens.weight), (model.first.bias, twin.first.bias))
        for ours, theirs in pairs:
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(model.embed_tokens.weight, twin.embed_tokens.weight)
    torch.testing.assert_close(model.first.bias, twin.first.bias)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_resume_is_bit_exact(name: str) -> None:
    whole = Toy()
    train(whole, build_optimizer(dict(whole.named_parameters()), name=name, lr=0.02), range(10))

    first = Toy()
    optimizer = build_optimizer(dict(first.named_parameters()), name=name, lr=0.02)
    train(first, optimizer, range(4))
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    second = Toy()
    second.load_state_dict(saved["model"])
    resumed = build_optimizer(dict(second.named_parameters()), name=name, lr=0.02)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(4, 10))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_groups_carry_their_base_rate(name: str) -> None:
    optimizer = build_optimizer(dict(Toy().named_parameters()), name=name, lr=0.05)
    assert optimizer.param_groups[0]["base_lr"] == 0.05
    if name == "muon":
        assert [group["base_lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01, 0.01])


def test_parameters_without_gradient_stay() -> None:
    model = Toy()
    before = model.second.weight.detach().clone()
    optimizer = build_optimizer(dict(model.named_parameters()), name="muon", lr=0.05, weight_decay=0.5)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    optimizer.step()
    assert torch.equal(model.second.weight, before)
