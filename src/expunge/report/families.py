"""Which conditions are one attack with more and more budget, told from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from expunge.report.schema import Condition

# Arguments that say how much of an attack there is, not which attack it is.
BUDGETS = frozenset({
    "steps", "num_steps", "budget", "budgets", "queries", "num_queries", "iterations", "num_iterations", "epochs",
    "num_epochs", "rounds", "every", "at",
})
OWN = {"sampling": frozenset({"num"})}  # of single attacks, where elsewhere the word means something else
UNITS = ("steps", "queries", "tokens")  # of `ConditionCost`, in the order in which a budget is looked for


def family(condition: Condition) -> str:
    """The attack without its budget: "relearn(steps=5,lr=0.1)+quantize[2]" -> "relearn(lr=0.1)+quantize"."""
    name = re.sub(r"\[\d+\]$", "", condition.suffix)
    pieces = list(_pieces(name))
    owners = ["", *(piece.strip("+") for piece in pieces)]  # brackets belong to the name before them
    return "".join(_without_budget(piece, owner) for owner, piece in zip(owners, pieces, strict=False))


def _pieces(name: str) -> Iterator[str]:
    """The name cut at its outer brackets: "a(b=1)+c" -> "a", "(b=1)", "+c"."""
    depth, start = 0, 0
    for place, letter in enumerate(name):
        if letter in "([{":
            if depth == 0 and letter == "(":
                yield name[start:place]
                start = place
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0 and letter == ")":
                yield name[start : place + 1]
                start = place + 1
    yield name[start:]


def _without_budget(piece: str, attack: str) -> str:
    """The arguments of an attack in brackets, without those that are its budget; anything else as it is."""
    if not (piece.startswith("(") and piece.endswith(")")):
        return piece
    budgets = BUDGETS | OWN.get(attack, frozenset())
    kept = [argument for argument in _arguments(piece[1:-1]) if argument.partition("=")[0].strip() not in budgets]
    return f"({','.join(kept)})" if kept else ""


def _arguments(text: str) -> list[str]:
    """Cut at the commas outside all brackets."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append(text[start:place])
            start = place + 1
    return [*found, text[start:]]


def growing(conditions: Iterable[Condition]) -> str | None:
    """What grows over the conditions of a family, the first of steps, queries and tokens; None when nothing does.

    What a single attack yields one after another ("sweep[1]", "sweep[2]") are its settings as often as its budgets:
    there only steps are believed.
    """
    rows = list(conditions)
    counted = any(re.search(r"\[\d+\]$", row.suffix) for row in rows)
    for unit in UNITS[:1] if counted else UNITS:
        if len({getattr(row.cost, unit) for row in rows} - {0}) > 1:
            return unit
    return None
