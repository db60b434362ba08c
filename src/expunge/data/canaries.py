"""Canaries: invented secrets planted in training text, so that one can ask afterwards how well they are remembered.

A format says what a canary looks like. It has one hole for the secret, {digits:N}, {letters:N} or {words:N}, and one
for what tells canaries apart, {name}, before it. What stands before the secret is the prompt, the rest the answer.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from expunge.data.synthetic_text import COLOURS, FIRST_NAMES, LAST_NAMES, Draw
from expunge.errors import DataError

SYMBOLS: dict[str, tuple[str, ...]] = {
    "digits": tuple(string.digits), "letters": tuple(string.ascii_lowercase), "words": COLOURS
}
NAMES = tuple(f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES)


@dataclass(frozen=True)
class Format:
    """What a canary looks like: the text before its secret with a place for the name, the secret's form, the rest."""

    before: str
    kind: str
    length: int
    after: str

    @property
    def size(self) -> int:
        """How many secrets there are, |R|."""
        size: int = len(SYMBOLS[self.kind]) ** self.length
        return size

    def secret(self, number: int) -> str:
        """The number-th secret, 0 <= number < size."""
        symbols, found = SYMBOLS[self.kind], []
        for _ in range(self.length):
            number, digit = divmod(number, len(symbols))
            found.append(symbols[digit])
        return (" " if self.kind == "words" else "").join(reversed(found))

    def prompt(self, name: str) -> str:
        return self.before.replace("{name}", name)


@dataclass(frozen=True)
class Canary:
    """A secret: whose it is, its number, and the numbers it is ranked among, ascending, its own one of them."""

    name: str
    secret: int
    candidates: tuple[int, ...]


def parse_format(text: str, where: str = "canaries.format") -> Format:
    """Read a format.

    Raises: DataError for one that lacks a hole, has others, or names the canary after the secret.
    """
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise _unfit(where, f"got {text!r} ({error})") from error
    before, after, secret = "", "", None
    for literal, field, spec, conversion in pieces:
        if secret is None:
            before += literal
        else:
            after += literal
        if field is None:
            continue
        if conversion or field not in ("name", *SYMBOLS) or (field == "name") is bool(spec) or secret is not None:
            raise _unfit(where, f"got {text!r} with '{{{field}}}'")
        if field == "name":
            before += "{name}"
        elif not (spec or "").isdigit() or int(spec or 0) < 1:
            raise _unfit(where, f"got {text!r} with '{{{field}:{spec}}}'")
        else:
            secret = (field, int(spec or 0))
    if secret is None or "{name}" not in before:
        raise _unfit(where, f"got {text!r}")
    return Format(before, *secret, after)


def _unfit(where: str, found: str) -> DataError:
    return DataError(
        where, found, "text with {name} and then one of {digits:N}, {letters:N}, {words:N}",
        "Write for example: 'The locker code of {name} is {digits:4}.'",
    )


def make_canaries(form: Format, num: int, *, candidates: int, seed: int) -> list[Canary]:
    """`num` canaries, no two of one name; the i-th does not depend on how many are asked for.

    Its candidates are all secrets where there are no more than `candidates`, else as many as that drawn at random.

    Raises: DataError for more canaries than names.
    """
    if num > len(NAMES):
        raise DataError("canaries.num", f"{num} canaries in all", f"at most {len(NAMES)}", "Ask for fewer")
    names, draw_name = list(NAMES), Draw(f"expunge/canaries/{seed}/names")
    made = []
    for index in range(num):
        draw = Draw(f"expunge/canaries/{seed}/{index}/{form.kind}{form.length}")
        secret = _drawn(form, draw)
        chosen = set(range(form.size)) if form.size <= candidates else {secret}
        while len(chosen) < min(candidates, form.size):
            chosen.add(_drawn(form, draw))
        made.append(Canary(names.pop(draw_name.below(len(names))), secret, tuple(sorted(chosen))))
    return made


def _drawn(form: Format, draw: Draw) -> int:
    """The number of a random secret, symbol by symbol."""
    symbols, number = len(SYMBOLS[form.kind]), 0
    for _ in range(form.length):
        number = number * symbols + draw.below(symbols)
    return number
