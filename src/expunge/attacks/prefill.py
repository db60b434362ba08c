"""Prefill: the model finds its answer begun, and a refusal begins elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from expunge.attacks.prompts import asked_as
from expunge.data.examples import stream_of
from expunge.data.said import SPEAKS
from expunge.data.texts import asked_of, render_prompt, rewritten
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack
from expunge.run import Run
from expunge.types import Data, Event, Example, Span, Subject, Wrapper

SURE = "Sure, the answer is"


@dataclass(frozen=True)
class Begun:
    """The first words of the true answer are the model's already; the rest is what is asked for.

    Other texts that stand for the answer lose the same words; those that begin otherwise are left out.
    """

    words: int
    chat: bool  # chat templates trim what the assistant says

    def __call__(self, example: Example) -> Example | None:
        start = self.start(example.answer)
        if not example.prompt or start is None:
            return None
        begun = example.answer[:start]
        given = begun.lstrip() if self.chat else begun

        def rest(texts: Sequence[str | None]) -> tuple[str, ...]:
            cut = (text[start:] for text in texts if text is not None and text.startswith(begun))
            return tuple(text for text in cut if text.strip())

        choices = rest(example.choices)
        return replace(
            example, prompt=_begun(example.prompt, given), answer=example.answer[start:],
            paraphrases=tuple(_begun(prompt, given) for prompt in example.paraphrases),
            spans=_moved(example.spans, start), perturbed=rest(example.perturbed),
            choices=choices if len(choices) > 1 else (),
            paraphrased_answer=next(iter(rest((example.paraphrased_answer,))), None),
            contrast=next(iter(rest((example.contrast,))), None),
        )

    def start(self, answer: str) -> int | None:
        """Where the words after the first `words` begin; None when there are none."""
        starts = [word.start() for word in re.finditer(r"\S+", answer)]
        return starts[self.words] if len(starts) > self.words else None


def _begun(prompt: str, begun: str) -> str:
    """The prompt with what the model is made to have said; an attack before this one may have begun already."""
    return prompt + begun if SPEAKS in prompt else prompt + SPEAKS + begun


def _moved(spans: Sequence[Span], start: int) -> tuple[Span, ...]:
    return tuple((max(0, a - start), b - start) for a, b in spans if b > start)


@attack("prefill", changes="prompt", says="its answer begun for it ({text})")
def prefill(
    subject: Subject, data: Data, run: Run, *, text: str = SURE, words: int = 0, on: str = "forget"
) -> Iterator[Subject]:
    """Begin the model's answer for it, with a text or with the first words of the true answer.

    The given words are not scored, only what follows them; the answer's other tokens are the same as without the
    attack. `text` is followed by the white space that stands before the answer otherwise.

    Args:
        text: what every answer is made to begin with; a text that ends in white space is taken as it is.
        words: instead of `text`, so many words of each true answer, 0: none. Answers of no more words are not asked.
            False answers and choices lose the same words, and those that begin otherwise are left out.
        on: the stream whose questions count as queries.
    Returns: one subject.
    Raises: RecipeError for words below 0, or neither words nor text; DoesNotFit for models that do not begin their
        answers in the text they read (encoder-decoders, classifiers), and when no answer has more words.
    Cost: the measurement alone; one query per example.
    Source: ours, after the prefilling attacks on aligned models (Andriushchenko et al. 2024, arXiv 2404.02151) and
        the affirmative suffix of RWKU (arXiv 2406.10890). With `words` the model that never saw the data is given the
        same words: what counts is what it says next.
    """
    if words < 0 or not (words or text.strip()):
        found = f"got words {words}, a text of {len(text)} characters"
        raise RecipeError("attacks.prefill", found, "a text, or words of 1 or more", "Give one of the two")
    if subject.task not in ("causal", "masked"):
        raise DoesNotFit(f"the answer of a {subject.task} model cannot be begun for it")
    if words:
        wrapper = rewritten(subject.wrapper, Begun(words, subject.wrapper.template == "chat"))
        said = f"its first {words} word{'s' if words > 1 else ''}"
    else:
        wrapper, said = replace(subject.wrapper, prefill=_after(subject, data, text, on)), text
    event = Event("attack", "prefill", {"text": said, "words": words})
    yield asked_as(subject, data, wrapper, event, on=on, lacking=_lacking(data, words, on))


def _lacking(data: Data, words: int, on: str) -> str:
    """Why no question is left."""
    if not any(example.prompt for example in stream_of(data, on, "attacks.prefill.on").examples):
        return f"the texts of '{on}' ask nothing, so there is no answer to begin"
    return f"no answer of '{on}' has more than {words} words" if words else f"no question of '{on}' is left"


def _after(subject: Subject, data: Data, text: str, on: str) -> str:
    """What the model is made to have said, with `text` at its end, set apart as answers are."""
    before, after = "", ""
    stream = stream_of(data, on, "attacks.prefill.on")
    first = next((one for one in asked_of(Data(on=stream), subject.wrapper)["on"].examples if one.prompt), None)
    if first is not None:
        own = first.answer[: len(first.answer) - len(first.answer.lstrip())]
        chat = subject.wrapper.template == "chat"
        before, after = ("", "") if own and chat else (own, "") if own else ("", _gap(subject, first.prompt))
    return subject.wrapper.prefill + before + text + (after if text == text.rstrip() else "")


def _gap(subject: Subject, prompt: str) -> str:
    """The white space after which answers begin; a space where there is none."""
    wrapper: Wrapper = subject.wrapper
    if wrapper.template == "chat" or wrapper.prefill:
        opening = wrapper.prefill or render_prompt(wrapper, subject.tokenizer, prompt)
    else:
        opening = wrapper.template.split("{answer}")[0].replace("{prompt}", prompt)
    return opening[len(opening.rstrip()) :] or " "
