"""What attacks on the prompt share: one more wrapper, checked against the data and the model it is meant for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from expunge.data.examples import stream_of
from expunge.data.texts import Encoded, Text, asked_of, render, rewritten, texts_of
from expunge.data.tokenise import encode
from expunge.errors import DoesNotFit
from expunge.models import context_length, quiet_libraries
from expunge.types import Cost, Data, Event, Example, Stream, Subject, Wrapper

SPECIAL = 4  # tokens a tokenizer may put around a text


@dataclass(frozen=True)
class Unless:
    """Examples with these prompts and answers are not asked, and plain text is not either."""

    those: frozenset[tuple[str, str]]

    def __call__(self, example: Example) -> Example | None:
        return None if not example.prompt or (example.prompt, example.answer) in self.those else example


def asked_as(
    subject: Subject, data: Data, wrapper: Wrapper, event: Event, *, on: str, lacking: str = "no question is left"
) -> Subject:
    """The subject asked through another wrapper; the event's queries grow by the questions of the stream `on`.

    Questions that, with all that is put around them, are longer than the model reads are not asked; the event says how
    many they are.

    Raises: DoesNotFit when no question is left, with `lacking` where it is not for their length; DataError for an
        unknown stream.
    """
    stream = stream_of(data, on, f"attacks.{event.name}.on")
    changed = subject.after(event, wrapper=wrapper)
    if not _ids(changed, stream):
        raise DoesNotFit(lacking)
    long = too_long(changed, data)
    if long:
        event = replace(event, hyper={**event.hyper, "too_long": len(long)})
        wrapper = rewritten(wrapper, Unless(frozenset((text.prompt, text.answer) for text in long)))
    asked = _ids(replace(changed, wrapper=wrapper), stream)
    if not asked:
        raise DoesNotFit(
            f"with what is put around it, every question is longer than the {context_length(subject)} tokens the "
            "model reads"
        )
    return subject.after(replace(event, cost=event.cost + Cost(queries=len(asked))), wrapper=wrapper)


def _ids(subject: Subject, stream: Stream) -> set[str]:
    """Which examples of a stream are asked and scored."""
    asked = {text.id for text in _texts(subject, Data({stream.name: stream}))}
    return asked - subject.exposed if stream.role == "forget" else asked


def too_long(subject: Subject, data: Data) -> list[Text]:
    """Questions that are, with their answers, longer than the model reads."""
    limit, around = context_length(subject), _bytes_around(subject)
    maybe = [text for text in _texts(subject, data) if around + _bytes(text.prompt + text.answer) > limit]
    with quiet_libraries():  # a tokenizer warns of what is looked for here
        made = encode(subject, maybe)
    return [text for text, one in zip(maybe, made, strict=True) if _tokens(one) > limit]


def _tokens(one: Encoded) -> int:
    """Tokens of the longest sequence the model reads for a text."""
    return max(len(one) if one.read is None else one.read, 0 if one.source is None else len(one.source))


def _texts(subject: Subject, data: Data) -> Iterator[Text]:
    """Every question that is asked, with its answer; nothing is put around plain text."""
    for stream in asked_of(data, subject.wrapper).values():
        try:
            yield from (text for text in texts_of(stream, "answer", subject.wrapper.ask, data) if text.prompt)
        except LookupError:  # nothing of this stream is asked
            continue


def _bytes_around(subject: Subject) -> int:
    """Bytes of what stands around a question: no tokenizer makes more tokens of a text than that, but for a few."""
    wrapper = subject.wrapper
    told = max((_bytes("".join(map("".join, turns))) for turns in wrapper.turns.values()), default=0)
    num = max(map(len, wrapper.turns.values()), default=0)
    bare = replace(wrapper, turns={}, prefill="")
    template = render(bare, subject.tokenizer, "?", ".")[0] if wrapper.template == "chat" else wrapper.template
    return told + (num + 1) * (_bytes(template) + 1) + _bytes(wrapper.prefill) + SPECIAL


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
