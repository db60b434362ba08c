"""Dynamic unlearning attack: one string behind every question, searched for on some, that makes a model tell again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch

from expunge.attacks.shown import Generalisation, growing, lesson, questions_of
from expunge.attacks.suffix.problem import Problem, Put, problems_of, putting
from expunge.attacks.suffix.propose import allowed_tokens, survivors, swaps
from expunge.attacks.suffix.search import Settings, Step, search
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack, bind
from expunge.run import Run
from expunge.types import Cost, Data, Event, Subject, Wrapper

Practicality = Literal["unlearned", "original"]
TRIED = 64  # random strings drawn until one is read back as it was drawn


@attack(
    "dua", changes="prompt", helpers=("original",),
    says="{generalisation}: {steps} steps of search for a suffix of {length} tokens on the {practicality} model",
)
def dua(
    subject: Subject, data: Data, run: Run, *, practicality: Practicality = "unlearned",
    generalisation: Generalisation = "within query", static: int = 0, length: int = 20, steps: int = 100,
    width: int = 128, pairs: int = 8, at: tuple[int, ...] = (), on: str = "forget", seed: int = 0,
) -> Iterator[Subject]:
    """Search one suffix under which a model says the forgotten answers, and put it behind every question.

    min_q - sum_(x, y) log p(y | x q) / |y| over suffixes q of `length` tokens, by GCG.

    Args:
        practicality: the model that is searched on: "unlearned", the one under attack, or "original", the one before
            the removal, whose suffix is carried over: then nobody needs the weights of the unlearned one.
        generalisation: "within query": found on the very questions that are scored. "cross query": on other wordings of
            them, or, where the examples hold none, on about half of the questions of each subject. "cross target": on
            questions about half of the subjects; the others are scored.
        static: so many forms of `jailbreak` come first, which nobody searched for: those that fit, in their order.
        length: tokens of the suffix, 1 or more. steps: of the search. width: candidates a step.
        pairs: questions it is found on at most; "within query", only those are scored.
        at: growing numbers of steps after which the best string is measured, in place of `steps`; 0: "x x x ...".
        on: the stream to take questions from. seed: of the choice of questions, the random string and the search.
    Returns: the written forms; a random string of the same length; the best suffix after each number of steps. The
        same examples are scored under each.
    Raises: DoesNotFit for models that are not causal, data without such questions, and for "original" where the model
        before the removal was not given.
    Cost: per step at most `pairs` forwards and backwards and `pairs` x `width` queries.
    Source: Yuan et al. 2024 (arXiv 2408.10682), 3.1; GCG of Zou et al. 2023 (arXiv 2307.15043). Differences: "cross
        target" takes other subjects erased from the same model, not other models; no question that was learned from is
        scored but "within query"; a random string of equal length is always tried beside it.
    """
    budgets = _checked(static, length, pairs, tuple(at) or (steps,))
    stream = stream_of(data, on, "attacks.dua.on")
    told = lesson(subject, stream, generalisation, pairs, seed)
    problems = problems_of(_searched(subject, practicality), told.examples, length=length)
    if generalisation == "within query":  # a question that cannot hold the string was not searched on
        told = replace(told, exposed=told.exposed | {one.id for one in told.examples} - {one.id for one in problems})
    asked = {one.id for one in questions_of(subject, stream)} - told.exposed - subject.exposed
    length = len(problems[0].start)
    known = {"practicality": practicality, "generalisation": generalisation, "length": length, "steps": 0}

    def changed(wrapper: Wrapper, cost: Cost, **hyper: Any) -> Subject:
        return subject.after(Event("attack", "dua", known | hyper, cost, told.exposed), wrapper=wrapper)

    once = Cost(queries=len(asked))
    for form in _written(subject, data, on, static, seed, run):
        yield changed(form.wrapper, once, generalisation=f"written form {form.lineage[-1].hyper['forms']}", length=0)
    yield changed(putting(subject.wrapper, random_string(problems, seed)), once, generalisation="random string")
    settings = Settings(steps=budgets[-1], width=width, early_stop=False, seed=seed)
    for found in _milestones(problems, settings, budgets, run):
        yield changed(putting(subject.wrapper, Put(found.text)), found.cost, steps=found.number)


def _checked(static: int, length: int, pairs: int, budgets: tuple[int, ...]) -> tuple[int, ...]:
    """After how many steps to yield.

    Raises: RecipeError for a number out of range.
    """
    for name, value, least in (("static", static, 0), ("length", length, 1), ("pairs", pairs, 1)):
        if value < least:
            raise RecipeError(f"attacks.dua.{name}", f"got {value}", f"{least} or more", "Correct it")
    return growing(budgets, "attacks.dua")


def _searched(subject: Subject, practicality: Practicality) -> Subject:
    """The model to search on, asked as the subject is; the questions come worded already.

    Raises: DoesNotFit when the model before the removal is wanted and was not given.
    """
    wrapper = replace(subject.wrapper, ask="prompt")
    if practicality == "unlearned":
        return replace(subject, wrapper=wrapper)
    if "original" not in subject.helpers:
        raise DoesNotFit("the model before the removal was not given, so no suffix can be carried over from it")
    return replace(subject.helpers["original"], wrapper=wrapper)


def _written(subject: Subject, data: Data, on: str, num: int, seed: int, run: Run) -> Iterator[Subject]:
    """The first forms of the attack `jailbreak` that fit the data and show nothing of it."""
    if num:
        forms = bind("attack", {"use": "jailbreak", "on": on, "seed": seed}, "attacks.dua.static")(subject, data, run)
        yield from islice((one for one in forms if one.exposed == subject.exposed), num)


def random_string(problems: Sequence[Problem], seed: int) -> Put:
    """A string of as many tokens as the one searched for, drawn evenly from those allowed.

    Read back token by token where such a string is found among a few hundred, else as its text is read.
    """
    one = problems[0]
    table = one.subject.model.get_input_embeddings().weight
    allowed = allowed_tokens(one.subject.tokenizer, len(table))
    rng = torch.Generator().manual_seed(seed)
    start = torch.tensor(one.start)
    every = allowed.nonzero().T.expand(len(start), -1)  # [n, number allowed]

    def draw(_: int) -> torch.Tensor:
        return swaps(start, every, allowed, TRIED, num_replace=len(start), random=1.0, rng=rng)

    first = draw(0)[0].tolist()
    assert one.frame is not None
    found = survivors(draw, one.frame.survive, start, TRIED).tolist()
    return one.put(next((ids for ids in found if all(each.exact(ids) for each in problems)), first))


def _milestones(problems: Sequence[Problem], settings: Settings, budgets: Sequence[int], run: Run) -> Iterator[Step]:
    """The best string after each number of steps; as many as there are budgets, also where the search ends early."""
    left, last = list(budgets), None
    for last in search(problems, settings, run.at(0)):
        while left and last.number >= left[0]:
            left.pop(0)
            yield last
        if not left:
            return
    assert last is not None
    for _ in left:
        yield last
