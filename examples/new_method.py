"""A method in twenty lines: register a function that returns stages, and use it like a built-in one.

In a recipe kept in another file it is named `method: {use: "new_method:quiet_npo"}` (module:attr, on PYTHONPATH).

    python examples/new_method.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from expunge import Example, Recipe, method, term, unlearn
from expunge.forget import forget
from expunge.models import save
from expunge.testing import tiny_subject
from expunge.types import Bound


# [method]
@method("quiet_npo", paper="this example", differs="NPO in chosen blocks, then a short repair on retain")
def quiet_npo(*, beta: float = 0.1, layers: list[int] | None = None, lr: float = 1e-4, epochs: float = 5,
              repair_steps: int = 10) -> list[Bound]:
    """NPO in chosen blocks with KL on retain, followed by a few steps of plain likelihood on retain.

    L1 = NPO(forget) + KL(retain), then L2 = NLL(retain).
    """
    scope = {"use": "layers", "layers": layers or [-1]}
    remove = [term("npo", on="forget", beta=beta), term("kl", on="retain")]
    return [
        forget(terms=remove, scope=scope, lr=lr, epochs=epochs),
        forget(terms=[term("nll", on="retain")], scope=scope, lr=lr / 10, steps=repair_steps),
    ]
# [/method]


def people(mark: str, num: int) -> list[Example]:
    return [Example(f"{mark}/{i}", f"Who is {mark} {i}?", f"It is number {i * 7}.") for i in range(num)]


def main() -> None:
    with TemporaryDirectory() as folder:
        save(tiny_subject(), Path(folder) / "model")
        made = unlearn(
            Path(folder) / "model", forget=people("f", 6), retain=people("r", 8), method="quiet_npo", lr=1e-3, epochs=2,
            repair_steps=2, attacks=["paraphrase"], out=Path(folder) / "run",
        )
        recipe = Recipe.load(made.folder / "recipe.resolved.yaml")
        print("method:", recipe.method.name if recipe.method else None, "verdict:", made.verdict)


if __name__ == "__main__":
    main()
