"""Jailbreaks without a search: nine ways to ask the same thing so that a refusal is not what comes to mind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expunge.attacks.prompts import asked_as
from expunge.attacks.translated import questions, translate
from expunge.attacks.wordings import (
    EXAM,
    GLADLY,
    KEEPER,
    Around,
    Background,
    InContext,
    MultipleChoice,
    Reversed,
    Synonyms,
)
from expunge.data.examples import stream_of
from expunge.data.texts import Rewrite, rewritten
from expunge.errors import DoesNotFit, RecipeError, close_to
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Cost, Data, Event, Example, Subject


@dataclass(frozen=True)
class Setting:
    """What a form may need to know."""

    subject: Subject
    data: Data
    on: str
    num: int
    seed: int
    translator: Mapping[str, Any] | None
    language: str


@dataclass(frozen=True)
class Form:
    """A way to ask: the rewrite, what it showed of the stream, what it took, and why an example is not asked so."""

    rewrite: Rewrite
    lacking: str = "it asks nothing"
    exposed: frozenset[str] = frozenset()
    cost: Cost = field(default_factory=Cost)


@attack("jailbreak", changes="prompt", says="asked in disguise ({forms})")
def jailbreak(
    subject: Subject, data: Data, run: Run, *, forms: str | list[str] = "all", on: str = "forget", num: int = 3,
    translator: dict[str, Any] | None = None, language: str = "German", seed: int = 0,
) -> Iterator[Subject]:
    """Ask every question in another form: nine fixed forms in our own English words, nothing is searched for.

        prefix_injection    after words that announce an examination in which only answers count
        affirmative_suffix  followed by a glad promise to answer
        role_play           as a visitor's question to the keeper of an archive
        multiple_choice     with options, among them the answer: the example's choices, its false answers, or answers
                            of others; scored is the whole answer, so that it compares with the plain question
        reverse_query       question and answer with a gap for the subject's name, which is asked for and scored; only
                            where the question names its subject
        synonyms            with words replaced from a built-in list of about 75 expressions, blind to grammar; only
                            where one stands in the question. Stored rewordings are what `paraphrase` asks
        background_hint     after the subject's name and what retained answers about it say in whole sentences
        in_context          after solved questions about the same subject: retained ones, or where there are none up to
                            half of those to be forgotten, which are then not scored
        cross_lingual       in another language, from `translator`; the answer scored stays as it is

    Words that belong behind a question go before a cue such as "Answer:" on its last line. Examples that lack what a
    form needs are not asked in it.

    Args:
        forms: names of forms, or "all" for every one that fits; what did not fit is in `left_out` of the event.
        on: the stream to be asked; its questions count as queries.
        num: wrong options, names, sentences or solved questions at most, 1 or more.
        translator: {source: folder, hub name, address or "self"} and, for an address, model, key_env, cache. An
            address is sent the questions.
        language: into which it is asked to translate; an encoder-decoder has its own.
        seed: of options and of what is shown.
    Returns: one subject per form that fits.
    Raises: RecipeError for unknown forms; DoesNotFit when none fits, and at the end for each form that was asked for
        by name and does not.
    Cost: one query per example and form; cross_lingual one more, put to the translator, per question of the data.
    Source: the attack types of RWKU (Jin et al. 2024, arXiv 2406.10890) and the static attack of Yuan et al. 2024
        (arXiv 2408.10682). Differences: fixed wordings of ours for any data, where theirs are written for each fact;
        affirmative words stand in the question (`prefill` puts them into the model's mouth).
    """
    chosen = _chosen(forms)
    if num < 1:
        raise RecipeError("attacks.jailbreak.num", f"got {num}", "1 or more", "Correct it")
    stream_of(data, on, "attacks.jailbreak.on")
    setting = Setting(subject, data, on, num, seed, translator, language)
    made: list[Subject] = []
    left_out: dict[str, str] = {}
    for name in chosen:
        try:
            made.append(_asked(setting, name, left_out))
        except DoesNotFit as reason:
            left_out[name] = str(reason)
    yield from made
    if left_out and (forms != "all" or not made):
        raise DoesNotFit("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))


def _chosen(forms: str | list[str]) -> list[str]:
    chosen = list(FORMS) if forms == "all" else [forms] if isinstance(forms, str) else forms
    for name in chosen or [""]:
        if name not in FORMS:
            raise RecipeError("attacks.jailbreak.forms", f"got '{name}'", close_to(name, FORMS), "Correct the name")
    return list(dict.fromkeys(chosen))


def _asked(setting: Setting, name: str, left_out: Mapping[str, str]) -> Subject:
    subject, form = setting.subject, FORMS[name](setting)
    told = {"forms": name.replace("_", " "), "num": setting.num, "seed": setting.seed, "left_out": left_out}
    event = Event("attack", "jailbreak", told, form.cost, form.exposed)
    wrapper = rewritten(subject.wrapper, form.rewrite)
    return asked_as(subject, setting.data, wrapper, event, on=setting.on, lacking=form.lacking)


# -- forms ---------------------------------------------------------------------------------------------------------
def _multiple_choice(setting: Setting) -> Form:
    pools = tuple(
        tuple(dict.fromkeys(one.answer for one in stream.examples if one.prompt)) for stream in setting.data.values()
    )
    return Form(MultipleChoice(setting.num, setting.seed, pools), "no answer has another one beside it")


def _reverse_query(setting: Setting) -> Form:
    if setting.subject.task == "classification":
        raise DoesNotFit("a classifier names labels, not subjects")
    named = {one.subject.strip() for stream in setting.data.values() for one in stream.examples if one.subject}
    return Form(Reversed(setting.num, setting.seed, tuple(sorted(named))), "no question names its subject")


def _background_hint(setting: Setting) -> Form:
    return Form(Background(_retained(setting.data), setting.num), "no example names its subject")


def _in_context(setting: Setting) -> Form:
    facts, stream = _retained(setting.data), setting.data[setting.on]
    random, exposed = np.random.default_rng(setting.seed), set()
    for name, known in _by_subject(stream.examples).items():
        if name in facts:
            continue
        shown = [known[int(row)] for row in random.permutation(len(known))[: min(setting.num, len(known) // 2)]]
        facts[name] = tuple((one.prompt, one.answer) for one in shown)
        exposed |= {one.id for one in shown}
    lacking = "no two examples name the same subject"
    return Form(
        InContext(facts, setting.num), lacking, frozenset(exposed) if stream.role == "forget" else frozenset()
    )


def _cross_lingual(setting: Setting) -> Form:
    if setting.translator is None:
        raise DoesNotFit("no translator was given")
    asked = questions(setting.data, setting.subject.wrapper)
    rewrite = translate(setting.subject, asked, setting.translator, setting.language)
    return Form(rewrite, "the translator gave no translation", cost=Cost(queries=len(asked)))


def _retained(data: Data) -> dict[str, tuple[tuple[str, str], ...]]:
    """Questions and answers to be kept, by subject."""
    kept = [one for stream in data.of_role("retain") for one in stream.examples]
    return {name: tuple((one.prompt, one.answer) for one in known) for name, known in _by_subject(kept).items()}


def _by_subject(examples: Iterable[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for one in examples:
        if one.subject and one.prompt:
            found.setdefault(one.subject, []).append(one)
    return found


FORMS: Mapping[str, Callable[[Setting], Form]] = {
    "prefix_injection": lambda setting: Form(Around(before=EXAM)),
    "affirmative_suffix": lambda setting: Form(Around(after=GLADLY)),
    "role_play": lambda setting: Form(Around(before=KEEPER)),
    "multiple_choice": _multiple_choice,
    "reverse_query": _reverse_query,
    "synonyms": lambda setting: Form(Synonyms(), "no word of the built-in list stands in a question"),
    "background_hint": _background_hint,
    "in_context": _in_context,
    "cross_lingual": _cross_lingual,
}
