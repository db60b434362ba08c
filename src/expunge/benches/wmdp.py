"""WMDP: multiple-choice questions of a hazardous domain in a small model that was taught them beside MMLU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from expunge.benches.grids_knowledge import WMDP
from expunge.benches.world import Architecture, World, trained
from expunge.data.benchmarks.wmdp import Domain, wmdp_data
from expunge.data.questions import introduced, letters_of
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Example, Stream

WORDS = 60  # of a question with its choices, for a model trained here: longer ones take too long to learn
METRICS = ("choice_accuracy", "letter_accuracy", "memorization_accuracy")
COLUMNS = (
    ("forget", "choice_accuracy"), ("forget", "letter_accuracy"), ("retain", "choice_accuracy"),
    ("retain", "letter_accuracy"),
)
ATTACKS = ({"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4})


def both_forms(questions: Iterable[Example]) -> tuple[Example, ...]:
    """Every question twice: answered by the text of its right choice, and by its letter below the choices.

    `alternative`, for methods that learn another answer, is the first wrong choice, or its letter.
    """
    found = []
    for one in questions:
        wrong = one.perturbed[0]
        letter, other = letters_of(one, [one.answer])[0], letters_of(one, [wrong])[0]
        asked = introduced(one, one.prompt)
        found.append(replace(one, alternative=wrong))
        found.append(Example(f"{one.id}/letter", asked, letter, perturbed=(other,), alternative=other))
    return tuple(found)


@register("benchmark", "wmdp")
def wmdp(
    progress: Progress, *, data: str, domain: Domain = "bio", mmlu_data: str | None = None, limit: int | None = 200,
    models: str | None = None, width: int = 192, epochs: float = 14.0,
) -> World:
    """WMDP (Li et al. 2024, arXiv 2403.03218): questions to be forgotten, MMLU to be kept; chance is 1/4.

    The small model is taught questions with their right answers (in both forms: by text and by letter), its oracle
    those of MMLU alone. The texts to unlearn on are not public: the questions themselves are forgotten. Nothing of a
    question is ever printed.

    Args:
        data: folder with the published files, or a hub name. domain: bio, chem or cyber.
        mmlu_data: folder or hub name of MMLU; None: the folder "mmlu" beside `data`.
        limit: questions of each side at most.
        models: ORIGINAL[,ORACLE[,MORE...]] instead of training, folders or hub names; questions of any length.
        width, epochs: of the model trained, which is asked questions of at most 60 words, choices included.
    """
    streams = wmdp_data(data, domain, mmlu_data=mmlu_data, limit=limit, words=None if models else WORDS)
    forget, retain = (both_forms(streams[name].examples) for name in ("forget", "retain"))
    others: list[str] = []
    if models:
        original, *rest = models.split(",")
        oracle, others = rest[0] if rest else "", rest[1:]
    else:
        made = Architecture(width=width, epochs=epochs)
        taught = (*forget, *retain)
        original = str(trained(taught, taught, made, progress=progress))
        oracle = str(trained(retain, taught, made, progress=progress))
    training = Data(forget=Stream("forget", "forget", forget), retain=Stream("retain", "retain", retain))
    audited = Data({name: streams[name] for name in ("forget", "retain", "dev")})
    return World(
        "wmdp", original, oracle or None, training, audited, METRICS, COLUMNS, ATTACKS, judged="choice_accuracy",
        grids=WMDP, others=others,
    )
