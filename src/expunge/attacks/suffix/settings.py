"""How to search: the settings, their ranges, and the random numbers of each step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator

from expunge.attacks.suffix.problem import Problem
from expunge.errors import RecipeError
from expunge.models import weights_hash
from expunge.types import Subject

OPERATORS = ("swap", "delete", "insert", "sample")
_BUDGETS = ("steps", "max_queries", "early_stop")  # a search may be taken up again with more of them


@dataclass(frozen=True)
class Settings:
    """How to search; the defaults are GCG with 10 % random candidates.

    steps: at most. max_queries: candidate evaluations (a string on a prompt) at most; None: no bound.
    width: candidates a step. top_k: tokens per place they are drawn from, the best by gradient. num_replace: places
    changed in each. random: share of candidates whose new tokens are drawn from all allowed ones instead.
    exhaustive: all swaps of all places with their top_k, instead of `width` drawn ones.
    keep_best: do not move to a worse string (GCG does). buffer: strings kept to go on from; 0: the last winner only.
    mellowmax: its alpha, instead of cross-entropy. fluency: weight of the string's own NLL per token. repetition: of
    the penalty for repeated tokens.
    operators: how often a step changes the string by ("swap", "delete", "insert", "sample"); lengths then vary between
    `shortest` and `longest`, and the buffer lets the string go that was changed and takes the best candidates (FLRT).
    "sample" swaps in tokens that the model itself might say there.
    probe: blocks of the draft model (the first of the same model) for probe sampling; 0: none. probe_share,
    probe_ratio: its probe set and how far it trusts the draft (1/16 and 8 in the paper).
    sample: problems on which a candidate is scored at each step, drawn anew; 0: all. The winner is scored on all.
    early_stop: end when every target is said whole. ascii_only: printable ASCII only. ban_target: no token of the
    targets may stand in the string. banned: further tokens that may not.
    buckets: groups of candidates at most, by first changed place, that share keys and values; 0: one per place.
    batch_tokens: tokens read in one forward at most.
    """

    steps: int = 100
    width: int = 256
    top_k: int = 256
    num_replace: int = 1
    random: float = 0.1
    exhaustive: bool = False
    keep_best: bool = False
    buffer: int = 0
    mellowmax: float | None = None
    fluency: float = 0.0
    repetition: float = 0.0
    operators: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    shortest: int = 1
    longest: int = 200
    probe: int = 0
    probe_share: float = 1 / 16
    probe_ratio: float = 8.0
    sample: int = 0
    max_queries: int | None = None
    early_stop: bool = True
    ascii_only: bool = True
    ban_target: bool = False
    banned: tuple[int, ...] = ()
    buckets: int = 8
    batch_tokens: int = 16384
    seed: int = 0

    @property
    def varies(self) -> bool:
        """Whether strings change in length or by what the model says, as in FLRT."""
        return any(self.operators[1:])


def check(settings: Settings, problems: Sequence[Problem]) -> None:
    """Refuse settings out of range, and problems that cannot share a string.

    Raises: RecipeError.
    """
    least = {"steps": 0, "width": 1, "top_k": 1, "num_replace": 1, "batch_tokens": 1, "shortest": 1}
    for name in ("buffer", "sample", "probe", "buckets", "fluency", "repetition", "seed"):
        least[name] = 0
    wrong = next((name for name, value in least.items() if getattr(settings, name) < value), None)
    if wrong is not None:
        raise RecipeError(f"search.{wrong}", f"got {getattr(settings, wrong)}", f"{least[wrong]} or more", "Correct it")
    shares = {"random": 0 <= settings.random <= 1, "probe_share": 0 < settings.probe_share <= 1}
    shares |= {"probe_ratio": settings.probe_ratio > 0, "mellowmax": settings.mellowmax != 0}
    shares |= {"operators": min(settings.operators) >= 0 < sum(settings.operators)}
    shares |= {"sample": settings.sample <= len(problems)}
    wrong = next((name for name, fine in shares.items() if not fine), None)
    if wrong is not None:
        raise RecipeError(
            f"search.{wrong}", f"got {getattr(settings, wrong)}", "shares lie in [0, 1], weights are not negative, and "
            "there are as many problems as are drawn", "Correct the value",
        )
    sides = {one.start if one.frame is None else (one.start, one.frame.left, one.frame.right) for one in problems}
    if len(sides) != 1 or not problems[0].start:
        raise RecipeError("search.problems", f"{len(sides)} different starts", "one that all share", "Make them alike")


def digest(settings: Settings, problems: Sequence[Problem], goal: object, draft: Subject | None = None) -> str:
    """What a saved search must agree in to be taken up again: settings, texts, weights, and what is made small.

    goal: its functions are told apart by their names and by what they were made with, as far as that has a name too;
    of a tensor inside one, only the kind is known.
    """
    plain = {name: value for name, value in asdict(settings).items() if name not in _BUDGETS}
    texts = [[one.id, one.before, one.start, one.after, one.target] for one in problems]
    subjects = [one.subject for one in problems] + ([] if draft is None else [draft])
    hashes = {id(one.model): one for one in subjects}
    known = {key: weights_hash(one) for key, one in hashes.items()}
    parts = [plain, texts, [known[id(one.model)] for one in subjects], draft is None, named(goal)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def named(value: Any) -> Any:
    """A name for a value that is the same in the next process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Sequence):
        return [named(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, [named(getattr(value, one.name)) for one in fields(value)]]
    if isinstance(value, partial):
        return [named(value.func), named(value.args), named(sorted(value.keywords.items()))]
    inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    kind = value if hasattr(value, "__qualname__") else type(value)
    return [f"{kind.__module__}.{kind.__qualname__}", [named(one) for one in inside if one is not value]]


def seeded(seed: int, step: int) -> Generator:
    """The random numbers of one step."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def drawn(settings: Settings, length: int, rng: Generator) -> str:
    """How this step changes a string of that many tokens: too short ones only grow, too long ones do not."""
    weights = torch.tensor(settings.operators, dtype=torch.float64)
    if length >= settings.longest:
        weights[OPERATORS.index("insert")] = 0.0
    if length <= settings.shortest:
        weights[OPERATORS.index("delete")] = 0.0
    if length < settings.shortest or weights.sum() == 0:
        return "insert" if length < settings.longest else "swap"
    return OPERATORS[int(torch.multinomial(weights, 1, generator=rng))]
