"""Probe: a linear read-out learns some of the forgotten answers at an inner block; the others are asked there."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.attacks.logit_lens import Layers, readable
from expunge.attacks.relearn import chosen
from expunge.attacks.shown import exposed_of
from expunge.attacks.tuned_lens import DEPTHS, Training, translated
from expunge.data.examples import stream_of
from expunge.errors import DoesNotFit, RecipeError
from expunge.registry import attack, term
from expunge.run import Run
from expunge.types import Data, Event, Example, Stream, Subject

SHOWN = "shown"


@attack(
    "probe", changes="reading",
    says="read behind inner block {layer} by what {steps} steps on {share:.0%} of it taught",
    judged="oracle",
)
def probe(
    subject: Subject, data: Data, run: Run, *, layers: Layers = None, share: float = 0.5, steps: int = 100,
    lr: float = 0.03, batch_size: int = 16, on: str = "forget", also: str | None = None, seed: int = 0,
) -> Iterator[Subject]:
    """Train a linear read-out at an inner block on the true answers of some forget examples and ask the others there.

    p_l(. | x_<t) = softmax(head(norm(h + A h / D + s b))), h = h_l,t; A and b, 0 at the start, minimise -log p_l of the
    answers shown. Nothing else moves: what comes back was there in a form that a linear map reads.

    Args:
        layers: as for `logit_lens`; None: the last block but one.
        share: part of the stream that is shown, in (0, 1); examples about one subject are shown together.
        steps, lr, batch_size: as for `tuned_lens`.
        on: the stream that was to be forgotten. also: a stream that is not, whose answers are learned beside them.
        seed: of the choice of the examples.
    Returns: one subject per block; the examples to be forgotten that it was shown are in `exposed` and are not scored.
    Raises: RecipeError for a share out of range, and where `also` is to be forgotten; DoesNotFit as for `logit_lens`,
        and for a single example.
    Cost: per block `steps` forwards of the blocks up to it and backwards of the head.
    Judged: beside an oracle only. It is told forget answers, and teaches them to a model that never knew as well.
    Source: Alain and Bengio 2016 (arXiv 1610.01644) for the idea; the form is Belrose et al.'s translator (arXiv
        2303.08112), so that a probe answers in words. Ours: held-out subjects. A probe can be taught: what counts is
        what the same probe reads from a model that never knew.
    """
    if not 0 < share < 1:
        raise RecipeError(
            "attacks.probe.share", f"got {share}", "a number between 0 and 1", "Leave some examples to score"
        )
    inside, places = readable(subject, layers, "attacks.probe.layers", DEPTHS)
    stream = stream_of(data, on, "attacks.probe.on")
    shown = _shown(stream, share, seed)
    streams = Data({SHOWN: Stream(SHOWN, "forget", shown)})
    terms = [term("nll", on=SHOWN)]
    if also is not None:
        streams[also] = _beside(data, also)
        terms.append(term("nll", on=also))
    exposed = exposed_of(stream, shown)
    training = Training(steps, lr, batch_size)
    for index, layer in enumerate(places):
        made, cost = translated(inside, layer, streams, terms, training, run.at(index))
        told = {"layer": layer, "steps": steps, "lr": lr, "share": len(shown) / len(stream)}
        yield made.after(Event("attack", "probe", told, cost, exposed))


def _beside(data: Data, also: str) -> Stream:
    """A stream that is not to be forgotten: all of it is shown, and the forgotten is still to be scored."""
    stream = stream_of(data, also, "attacks.probe.also")
    if stream.role == "forget":
        told = f"the stream '{also}' is to be forgotten"
        raise RecipeError("attacks.probe.also", told, "one of another role", "Leave it out, or name a retain stream")
    return stream


def _shown(stream: Stream, share: float, seed: int) -> tuple[Example, ...]:
    """About a share of the examples; where all name their subjects, all or none of those about one."""
    if len(stream) < 2:
        raise DoesNotFit(f"stream '{stream.name}' holds one example: none would be left to ask")
    subjects = {example.subject for example in stream.examples}
    several = len(subjects) > 1 and None not in subjects
    size = min(max(1, round(share * len(stream))), len(stream) - 1)
    return chosen(stream, size, "subjects" if several else "examples", seed)
