"""Canaries as streams: what is planted in the training data, and what is asked of the model afterwards."""

from __future__ import annotations

from typing import Literal

from expunge.data.canaries import Canary, Format, make_canaries, parse_format
from expunge.data.examples import check_stream
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Example

Part = Literal["training", "inserted", "controls"]

DEFAULT = "The locker code of {name} is {digits:4}."


@reader("canaries")
def canaries(
    *, part: Part, format: str = DEFAULT, num: int = 8, candidates: int = 1000, repeats: tuple[int, ...] = (1, 4, 16),
    seed: int = 0,
) -> list[Example]:
    """Invented secrets to be planted in training data, and to be ranked among their candidates (metric `exposure`).

    training: every canary as often as it is to be planted (ids "canary/x4/000#0", "#1", ...), for the training data.
    inserted: every planted canary once, with its candidates as `choices`. controls: as many that were never planted.
    The three parts belong together when all other arguments are equal. The secret is a span; `subject` is the name.

    Args:
        format: text with {name} and then one of {digits:N}, {letters:N}, {words:N}, the secret.
        num: canaries for each count of `repeats`.
        candidates: most secrets that one is ranked among, itself included; all where there are no more.
        repeats: how often canaries are planted, each >= 1.
        seed: of names, secrets and candidates.
    """
    form = parse_format(format)
    if num < 1 or candidates < 2:
        raise DataError(
            "canaries", f"got num={num}, candidates={candidates}", "num 1 or more, candidates 2 or more", "Correct it"
        )
    if not repeats or min(repeats) < 1 or len(set(repeats)) < len(repeats):
        raise DataError(
            "canaries.repeats", f"got {list(repeats)}", "different counts, each 1 or more",
            "Write for example: [1, 4, 16]"
        )
    made = make_canaries(form, 2 * num * len(repeats), candidates=candidates, seed=seed)
    planted, never = made[: num * len(repeats)], made[num * len(repeats) :]
    counted = [(one, repeats[i // num], i % num) for i, one in enumerate(planted)]
    if part == "training":
        chosen = [
            _example(form, one, f"canary/x{count}/{i:03d}#{copy}", ranked=False)
            for one, count, i in counted for copy in range(count)
        ]
    elif part == "inserted":
        chosen = [_example(form, one, f"canary/x{count}/{i:03d}", ranked=True) for one, count, i in counted]
    else:
        chosen = [_example(form, one, f"canary/control/{i:03d}", ranked=True) for i, one in enumerate(never)]
    check_stream("canaries", chosen)
    return chosen


def _example(form: Format, canary: Canary, name: str, *, ranked: bool) -> Example:
    secret = form.secret(canary.secret)
    return Example(
        name, form.prompt(canary.name), secret + form.after, spans=((0, len(secret)),), subject=canary.name,
        choices=tuple(form.secret(number) + form.after for number in canary.candidates) if ranked else (),
    )
