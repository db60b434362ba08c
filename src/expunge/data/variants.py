"""The variants of a stream: what stands as prompt and as answer in each text that is measured or trained on.

A variant is written NAME[:ARG[:ARG...]][@ASK]: the registered function NAME, its arguments, and what is asked
instead of what the subject's wrapper asks ("prompt", "paraphrase:K", "paraphrases").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from expunge.data.said import said_in
from expunge.errors import DataError, close_to
from expunge.registry import entries, variant
from expunge.types import Data, Example, Span, Stream

Row = tuple[str, int, str, str, tuple[Span, ...]]  # id, item, prompt, answer, spans of the answer
Texts = Iterator[tuple[str, str, tuple[Span, ...]]]  # prompt, answer, spans


def variants(stream: Stream, variant: str = "answer", ask: str = "prompt", data: Data | None = None) -> list[Row]:
    """A stream as texts: (id, item, prompt, answer, spans), in the order of the examples.

    Args:
        variant: NAME[:ARGS][@ASK]; see `expunge list variants`. "alternative@paraphrases" names what is asked as well
            and overrules `ask`.
        ask: what stands as the prompt. "prompt", "paraphrase:K" for the K-th stored paraphrase, or "paraphrases" for
            every one.
        data: all streams, for variants that borrow from another one.
    Returns: one row per text, those of an example numbered by `item`; examples that lack what is asked are left
        out.
    Raises: LookupError with the reason when no example has it; DataError for an unknown variant or `ask`.
    """
    spec, at, own = variant.partition("@")
    ask = own if at else ask
    name, *args = spec.split(":")
    known = entries("variant")
    if name not in known:
        raise DataError("variant", f"got '{variant}'", close_to(name, known), "Correct the name")
    make, asks = known[name].fn, _asks(ask)
    try:
        inspect.signature(make).bind(None, None, None, *args)
    except TypeError as error:
        raise DataError("variant", f"got '{variant}'", f"the arguments of '{name}'", "Correct it") from error
    streams = data if data is not None else Data({stream.name: stream})
    rows, asked = [], 0
    for example in stream.examples:
        prompts = asks(example)
        asked += bool(prompts)
        texts = [text for prompt in prompts for text in _made(make, example, prompt, streams, args)]
        rows += [(example.id, item, *text) for item, text in enumerate(texts)]
    if not stream.examples:
        raise LookupError(f"no example of '{stream.name}' can be asked like that")
    if not asked:
        raise LookupError(f"no example of '{stream.name}' has {ask.replace(':', ' ')}")
    if not rows:
        raise LookupError(f"no example of '{stream.name}' has a field '{name}'")
    return rows


def _made(make: Callable[..., Texts], example: Example, prompt: str, data: Data, args: Sequence[str]) -> Texts:
    """The texts of a prompt; what was said before it stays, a beginning of its answer where the question stays."""
    said = said_in(prompt)
    for asked, text, spans in make(example, said.question, data, *args):
        begun = said.begun if asked == said.question else ""
        yield replace(said, question=asked, begun=begun).prompt if asked else "", text, spans


def _asks(ask: str) -> Callable[[Example], tuple[str, ...]]:
    """From an example to the prompts that `ask` names, none where it lacks them."""
    if ask == "prompt":
        return lambda example: (example.prompt,)
    if ask == "paraphrases":
        return lambda example: example.paraphrases
    kind, _, number = ask.partition(":")
    if kind != "paraphrase" or not number.isdigit():
        raise DataError(
            "ask", f"got '{ask}'", "accepted: prompt, paraphrases, or paraphrase:K with K = 0, 1, ...", "Correct it"
        )
    which = slice(int(number), int(number) + 1)
    return lambda example: example.paraphrases[which]


@variant("answer")
def answer(example: Example, prompt: str, data: Data) -> Texts:
    """The true answer, with its annotated spans."""
    yield prompt, example.answer, example.spans


@variant("prompt")
def asked(example: Example, prompt: str, data: Data) -> Texts:
    """The true answer as the reference of what the model is asked for; the same texts as `answer`."""
    yield prompt, example.answer, example.spans


@variant("paraphrased_answer")
def paraphrased_answer(example: Example, prompt: str, data: Data) -> Texts:
    """The answer in other words."""
    if example.paraphrased_answer is not None:
        yield prompt, example.paraphrased_answer, ()


@variant("perturbed")
def perturbed(example: Example, prompt: str, data: Data) -> Texts:
    """Every false answer of the same form."""
    yield from ((prompt, text, ()) for text in example.perturbed)


@variant("choices")
def choices(example: Example, prompt: str, data: Data) -> Texts:
    """Every choice, the right one among them."""
    yield from ((prompt, text, ()) for text in example.choices)


@variant("alternative")
def alternative(example: Example, prompt: str, data: Data) -> Texts:
    """What should be said instead."""
    if example.alternative is not None:
        yield prompt, example.alternative, ()


@variant("contrast")
def contrast(example: Example, prompt: str, data: Data) -> Texts:
    """The other half of a pair."""
    if example.contrast is not None:
        yield prompt, example.contrast, ()
