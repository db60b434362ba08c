"""Dynamic unlearning attack: one string behind every question, searched for on some, that makes a model tell again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch

from expunge.attacks.shown import Generalisation, exposed_of, growing, lesson, questions_of
from expunge.attacks.suffix.problem import Problem, Put, problems_of, putting
from expunge.attacks.suffix.propose import allowed_tokens, survivors, swaps
from expunge.attacks.suffix.search import Settings, milestones
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack, bind
from expunge.run import Run
from expunge.types import Cost, Data, Event, Stream, Subject, Wrapper

Practicality = Literal["unlearned", "original"]
TRIED = 64  # random strings drawn until one is read back as it was drawn


@attack(
    "dua", changes="prompt", helpers=("original",), judged="oracle", says="words added to every question {what}",
)
def dua(
    subject: Subject, data: Data, run: Run, *, practicality: Practicality = "unlearned",
    generalisation: Generalisation = "cross query", static: int = 0, length: int = 20, steps: int = 100,
    width: int = 128, pairs: int = 8, at: tuple[int, ...] = (), on: str = "forget", seed: int = 0,
) -> Iterator[Subject]:
    """Search one suffix under which a model says the forgotten answers, and put it behind every question.

    min_q - sum_(x, y) log p(y | x q) / |y| over suffixes q of `length` tokens, by GCG.

    Args:
        practicality: the model that is searched on: "unlearned", the one under attack, or "original", the one before
            the removal, whose suffix is carried over: then nobody needs the weights of the unlearned one.
        generalisation: "cross query": found on other wordings of the questions that are scored, or, where the examples
            hold none, on about half of the questions of each subject. "cross target": on questions about half of the
            subjects; the others are scored. "within query": on the very questions that are scored, `pairs` of them at
            most. Even if none of n differs from the oracle's, 3/n of a difference may be unseen: within a margin of
            0.1 a verdict needs `pairs` above 30 (and more where they differ); with fewer it cannot be PASS.
        static: so many forms of `jailbreak` come first, which nobody searched for: those that fit, in their order.
            0: none, although the paper's static attack is nothing else.
        length: tokens of the suffix, 1 or more. steps: of the search. width: candidates a step.
        pairs: questions it is found on at most; "within query", only those are scored.
        at: growing numbers of steps after which the best string is measured, in place of `steps`; 0: "x x x ...".
        on: the stream to take questions from. seed: of the choice of questions, the random string and the search.
    Returns: the written forms; a random string of the same length; the best suffix after each number of steps. The
        same examples are scored under each.
    Raises: DoesNotFit for models that are not causal, data without such questions, and for "original" where the model
        before the removal was not given.
    Cost: per step at most `pairs` forwards and backwards and `pairs` x `width` queries. Queries of a search are strings
        tried times questions they are tried on, put to the model that is searched on; those of a written form or the
        random string are the questions scored. Asking those with the string found is not counted again.
    Judged: beside an oracle only. The search is told the answers, and may spell them to a model that never knew.
    Source: Yuan et al. 2024 (arXiv 2408.10682), 3.1; GCG of Zou et al. 2023 (arXiv 2307.15043). Differences: the paper
        sums log p over the tokens of an answer, here it is their mean, so that long answers do not outweigh short
        ones; "cross target" takes other subjects erased from the same model, not other models; no question that was
        learned from is scored but "within query"; a random string of equal length is always tried beside it; the
        written forms are off unless asked for.
    """
    budgets = _checked(static, length, pairs, tuple(at) or (steps,))
    stream = stream_of(data, on, "attacks.dua.on")
    told = lesson(subject, stream, generalisation, pairs, seed)
    problems = problems_of(_searched(subject, practicality), told.examples, length=length)
    if generalisation == "within query":  # a question that cannot hold the string was not searched on
        held = {one.id for one in problems}
        left_out = exposed_of(stream, (one for one in told.examples if one.id not in held))
        told = replace(told, exposed=told.exposed | left_out)
    length = len(problems[0].start)
    known = {"practicality": practicality, "generalisation": generalisation, "length": length, "steps": 0}

    def changed(wrapper: Wrapper, cost: Cost, what: str, **hyper: Any) -> Subject:
        said = known | hyper | {"what": f"({what})"}
        return subject.after(Event("attack", "dua", said, cost, told.exposed), wrapper=wrapper)

    once = Cost(queries=_scored(subject, stream, told.exposed))
    for form in _written(subject, data, on, static, seed, run):
        yield changed(form.wrapper, once, f"the written form {form.lineage[-1].hyper['forms']}", length=0)
    yield changed(putting(subject.wrapper, random_string(problems, seed)), once, f"a random string of {length} tokens")
    settings = Settings(steps=budgets[-1], width=width, early_stop=False, seed=seed)
    for found in milestones(problems, settings, budgets, run.at(0)):
        what = f"{generalisation}: {length} tokens searched for in {found.number} steps on the {practicality} model"
        yield changed(putting(subject.wrapper, Put(found.text)), found.cost, what, steps=found.number)


def _scored(subject: Subject, stream: Stream, exposed: frozenset[str]) -> int:
    """How many questions of the stream are scored."""
    asked = questions_of(subject, stream)
    return len(asked) - len(exposed_of(stream, asked) & (exposed | subject.exposed))


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

    assert one.frame is not None
    found = survivors(draw, one.frame.survive, start, TRIED).tolist()
    exact = [ids for ids in found if all(each.exact(ids) for each in problems)]
    return one.put(exact[0] if exact else draw(0)[0].tolist())
