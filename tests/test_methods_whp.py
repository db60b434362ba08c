"""Who's Harry Potter on a small book that was really learned: its names go, other text stays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.measure.plan import measure
from expunge.models import clone, weights_hash
from expunge.registry import bind, spec_of
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.types import Data, Example, Stream, Subject, Wrapper
from support.learned import taught

HEROES = {"Mara": "winter", "Ferra": "ocean", "Linda": "phone", "Tomas": "novel", "Oskar": "river", "Petra": "tower"}
OTHERS = {"Tina": "lamp", "Paul": "gate", "Nora": "lake", "Hugo": "coin", "Vera": "door", "Erik": "boat"}
NAMES = {**dict(zip(HEROES, OTHERS, strict=True)), **dict(zip(HEROES.values(), OTHERS.values(), strict=True))}
QUICK: Mapping[str, Any] = {
    "dictionary": {"use": "terms", "terms": NAMES}, "reinforce": {"lr": 1e-3, "epochs": 5}, "lr": 7e-4,
    "epochs": 8, "batch_size": 6,
}


def told(things: Mapping[str, str], mark: str) -> tuple[Example, ...]:
    return tuple(Example(f"{mark}/{name}", "", f"{name} loves the {thing}.") for name, thing in things.items())


def library() -> Data:
    """A book about heroes, other text of the same kind about others, and probes that ask what belongs to a hero."""
    probe = tuple(
        Example(f"p/{name}", f"{name} loves the", thing, choices=(thing,)) for name, thing in HEROES.items()
    )
    return Data(
        forget=Stream("forget", "forget", told(HEROES, "book")),
        retain=Stream("retain", "retain", told(OTHERS, "other")),
        probe=Stream("probe", "probe", probe),
    )


@cache
def reader() -> Subject:
    """A model that read the book and the other text, with a token for every word; do not change it."""
    data = library()
    tokenizer = build_tokenizer([*data["forget"].examples, *data["retain"].examples], size=400)
    model = build_model(tokenizer, width=32, layers=2, heads=2, seed=2).eval()
    return taught(Subject(model, tokenizer, Wrapper("{prompt} {answer}")), data, ("forget", "retain"), steps=200)


def values(subject: Subject) -> dict[str, float]:
    metrics = [bind("metric", name) for name in ("familiarity_probability", "perplexity")]
    data = library()
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    return {f"{stream}.{name}": score.value or 0.0 for (stream, name), score in found.items()}


def forgotten(**changes: Any) -> tuple[Subject, Data]:
    subject, data = clone(reader()), library()
    for index, stage in enumerate(bind("method", {"use": "whp", **QUICK, **changes})()):
        subject = stage(subject, data, Run(None, stage=index))
    return subject, data


def test_names_are_forgotten_and_other_text_stays() -> None:
    """F_p falls to a fraction, the book becomes unlikely, other text keeps its perplexity."""
    before = values(reader())
    subject, data = forgotten()
    after = values(subject)
    assert before["probe.familiarity_probability"] > 0.9
    assert after["probe.familiarity_probability"] < 0.4
    assert after["forget.perplexity"] > 1.25 * before["forget.perplexity"]
    assert after["retain.perplexity"] < 1.15 * before["retain.perplexity"]
    assert values(subject.helpers["reinforced"])["forget.perplexity"] < 1.05  # the helper knows it by heart
    assert [event.name for event in subject.lineage] == ["branch", "translate", "forget"]
    assert set(data) == {"forget", "retain", "probe", "generic"}


def test_reinforcing_alone_cannot_lower_what_was_certain_before() -> None:
    """Without a dictionary: the reader is sure of its heroes already, so no gain shows, and they stay."""
    subject, _ = forgotten(dictionary=None)
    assert values(subject)["probe.familiarity_probability"] > 0.9


def test_more_steps_forget_more() -> None:
    found = [values(forgotten(epochs=epochs)[0])["probe.familiarity_probability"] for epochs in (2.0, 5.0, 12.0)]
    start = values(reader())["probe.familiarity_probability"]
    assert start > found[0] > found[1] > found[2]


def test_rounds_make_the_labels_anew_from_the_tuned_model() -> None:
    once, first = forgotten(epochs=6.0)
    twice, data = forgotten(epochs=6.0, rounds=2)
    assert [event.name for event in twice.lineage] == ["branch", "translate", "forget"] * 2
    assert data["generic"].targets != first["generic"].targets
    assert weights_hash(twice) != weights_hash(once)
    key = "probe.familiarity_probability"
    assert values(twice)[key] < values(once)[key]


def test_an_adapter_may_hold_the_reinforced_weights() -> None:
    subject, _ = forgotten(reinforce={"scope": {"use": "lora", "rank": 4}, "lr": 1e-2, "epochs": 4}, epochs=1)
    assert type(subject.helpers["reinforced"].model).__name__.startswith("Peft")
    assert not type(subject.model).__name__.startswith("Peft")


def test_defaults_are_the_authors_and_options_reach_their_stages() -> None:
    first, second, third = bind("method", "whp")()
    stronger = first.hyper["stages"][0]
    assert (stronger.hyper["lr"], stronger.hyper["epochs"]) == (3e-6, 3.0)
    assert (third.hyper["lr"], third.hyper["epochs"]) == (1e-6, 2.0)
    assert (second.hyper["alpha"], second.hyper["space"]) == (5.0, "logprob")
    (only,) = bind("method", {"use": "whp", "rounds": 3, "space": "logits"})()
    plain = spec_of(only)
    assert plain["schedule"]["rounds"] == 3
    assert [stage["use"] for stage in plain["schedule"]["make"]] == ["branch", "translate"]
    assert plain["schedule"]["make"][1]["space"] == "logits"
    assert bind("stage", plain).hyper.keys() == only.hyper.keys()
