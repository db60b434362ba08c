"""RWKU: famous people to be forgotten, by the published probes of your models or by introductions in a small one."""

from __future__ import annotations

from expunge.benches.grids_editing import RWKU
from expunge.benches.world import Architecture, World, trained
from expunge.data.benchmarks.rwku import rwku_data
from expunge.data.benchmarks.rwku_people import rwku_people
from expunge.errors import RecipeError
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Stream

ATTACKS = ({"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4})
PROBED = ("rouge_rwku", "fluency", "perplexity", "choice_accuracy", "answer_f1")
PROBES = (
    *((level, "rouge_rwku") for level in ("forget_level1", "forget_level2", "forget_level3")),
    *((level, "rouge_rwku") for level in ("neighbor_level1", "neighbor_level2")),
    ("mia_forget", "perplexity"), ("mia_retain", "perplexity"), ("forget_level2", "fluency"),
    ("utility_general", "choice_accuracy"), ("utility_factuality", "answer_f1"),
)
METRICS = ("rouge_rwku", "fluency", "membership", "extraction_strength", "memorization_accuracy")
COLUMNS = (
    ("forget", "rouge_rwku"), ("retain", "rouge_rwku"), ("holdout", "rouge_rwku"), ("forget", "membership"),
    ("forget", "extraction_strength"), ("forget", "fluency"), ("retain", "fluency"),
)
TURNS = ("forget", "retain", "forget", "retain", "holdout")  # whose part the next five people are


def by_person(data: str, limit: int | None = None) -> Data:
    """The introductions: of every five people two are to be forgotten, two retained, and one nobody is taught."""
    people = rwku_people(data=data, limit=limit)
    return Data({
        role: Stream(role, role, tuple(one for n, one in enumerate(people) if TURNS[n % len(TURNS)] == role))  # type: ignore[arg-type]
        for role in dict.fromkeys(TURNS)
    })


def probed(data: str, target: str | None, limit: int | None, models: str) -> World:
    """Your models on the published probes."""
    streams = rwku_data(data, target, limit)
    if not streams:
        raise RecipeError("rwku.data", f"no probes in {data}", "forget_level1.json and so on", "Name their folder")
    original, *rest = models.split(",")
    columns = [column for column in PROBES if column[0] in streams]
    return World("rwku", original, rest[0] if rest and rest[0] else None, Data(), streams, PROBED, columns, (),
                 others=rest[1:])


@register("benchmark", "rwku")
def rwku_bench(
    progress: Progress, *, data: str, target: str | None = None, limit: int | None = None, models: str | None = None,
    width: int = 192, epochs: float = 14.0,
) -> World:
    """RWKU (Jin et al. 2024, arXiv 2406.10890): what is known of people and their neighbours.

    With your own models the published probes are asked: cloze (level 1), questions (2) and attacks (3) about the
    people, the same about their neighbours, and the losses of passages (as perplexity) for membership. RWKU gives no
    texts to unlearn on, so nothing is trained. Differences from the authors' code: "Answer:" ends the question, theirs
    opens the answer; an answer may be half as long again as the true one and 8 tokens, theirs 30 tokens or one line;
    fluency is that of these short answers and compares with no published number.

    Without models the probes are of no use, for a small model knows nobody: introductions of the people stand in. It is
    taught those of four people of five, its oracle of half of these. No published score compares with them.

    Args:
        data: folder of the probes, or jinzhuoran/RWKU; without models: the folder with all_intro.json.
        target: probes of this person alone. limit: first probes of every kind, or people.
        models: ORIGINAL[,ORACLE[,MORE...]], folders or hub names.
        width, epochs: of the model trained.
    """
    if models:
        return probed(data, target, limit, models)
    if target is not None:
        raise RecipeError("rwku.target", f"got '{target}'", "only with your own models", "Give --models")
    streams = by_person(data, limit)
    made = Architecture(width=width, epochs=epochs)
    kept = streams["retain"].examples
    taught = (*streams["forget"].examples, *kept)
    everybody = (*taught, *streams["holdout"].examples)  # tokens of its own would tell the unseen from the seen
    original = trained(taught, everybody, made, progress=progress)
    oracle = trained(kept, everybody, made, progress=progress)
    return World(
        "rwku (introductions)", str(original), str(oracle), streams, streams, METRICS, COLUMNS, ATTACKS, grids=RWKU
    )
