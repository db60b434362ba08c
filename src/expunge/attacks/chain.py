"""Attacks one after another: each works on what the one before left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from expunge.errors import RecipeError
from expunge.registry import Kind, attack
from expunge.run import Run
from expunge.types import Bound, Data, Subject


@attack("chain", changes="weights", says="several attacks in a row")
def chain(
    subject: Subject, data: Data, run: Run, *, attacks: Annotated[Any, Kind("attack", many=True)]
) -> Iterator[Subject]:
    """Several attacks in a row: relearn and then quantise, add a suffix and then draw many samples.

    Args:
        attacks: two or more, in order. Each is run on every subject that the ones before it yield.
    Returns: the subjects of the last attack; their lineage holds the events, and so the costs, of all.
    Raises: RecipeError for fewer than two; DoesNotFit where one of them does not fit.
    Cost: the sum, where an attack yields several subjects once for each.
    Source: ours; Lucki et al. 2024 (arXiv 2409.18025) run their attacks one at a time.
    """
    if len(attacks) < 2:
        raise RecipeError("attacks.chain.attacks", f"{len(attacks)} attack(s)", "two or more", "Use the attack itself")
    yield from _through(subject, data, run, attacks)


def _through(subject: Subject, data: Data, run: Run, attacks: Sequence[Bound]) -> Iterator[Subject]:
    first, *rest = attacks
    for index, changed in enumerate(first(subject, data, run.at(0))):
        if rest:
            yield from _through(changed, data, run.at(1 + index), rest)
        else:
            yield changed
