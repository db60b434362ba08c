"""ZsRE and CounterFact: facts in a small model that was taught them, to be forgotten or replaced by other answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge.benches.grids_editing import EDITING
from expunge.benches.world import Architecture, World, trained
from expunge.data.benchmarks.editing import editing_data
from expunge.data.benchmarks.edits import Name
from expunge.errors import DataError
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Example, Role, Stream

FILES: dict[Name, tuple[str, ...]] = {  # of a folder the first that is there
    "zsre": ("zsre_mend_eval_portability_gpt4.json", "zsre_mend_eval.json", "zsre_mend_train-1k.json"),
    "counterfact": (
        "counterfact_portability_gpt4.json", "rome_counterfact_1949.json.gz", "counterfact.json",
        "easyedit_counterfact-val.json", "counterfact-val.json", "counterfact-edit.json",
    ),
}
NEAR = 2  # unrelated prompts of every fact that a model trained here is taught
METRICS = (
    "exact_memorization", "extraction_strength", "reliability", "generality", "portability", "locality",
    "edit_success", "memorization_accuracy",
)
ROLES: tuple[Role, ...] = ("forget", "retain", "holdout")
COLUMNS = (
    ("forget", "exact_memorization"), ("forget", "extraction_strength"), ("forget", "reliability"),
    ("forget", "generality"), ("forget", "portability"), ("unrelated", "locality"), ("retain", "exact_memorization"),
    ("forget", "edit_success"),
)
ATTACKS = (
    {"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4}, "paraphrase",
)


@register("benchmark", "zsre")
def zsre_bench(
    progress: Progress, *, data: str, limit: int = 60, models: str | None = None, width: int = 128,
    epochs: float = 15.0,
) -> World:
    """ZsRE (Levy et al. 2017, as in MEND, arXiv 2110.11309): facts asked as questions, with a new answer each.

    The small model is taught the old answers in every wording, the unrelated facts, and other facts of the same kind,
    which are what is retained; its oracle all but the old answers. Reliability, generality and portability are about
    the new answers, exact memorization and extraction strength about the old ones (which counts the token that ends an
    answer, so with answers of one word it does not fall to 0), locality about the unrelated. Portability needs records
    with questions one step further; the usual ones have none.

    Args:
        data: a file of records, or a folder with one under its published name.
        limit: facts to be forgotten; as many are retained, and as many are for methods that need some nobody knows.
        models: ORIGINAL[,ORACLE[,MORE...]] instead of training, folders or hub names.
        width, epochs: of the model trained.
    """
    return _world("zsre", data, limit, models, Architecture(width=width, epochs=epochs), progress)


@register("benchmark", "counterfact")
def counterfact_bench(
    progress: Progress, *, data: str, limit: int = 60, models: str | None = None, width: int = 128,
    epochs: float = 15.0,
) -> World:
    """CounterFact (Meng et al. 2022, ROME, arXiv 2202.05262): facts as sentences to be ended, with a false end each.

    As `zsre`; records in ROME's own form or EasyEdit's. Of the unrelated prompts of a fact a small model is taught two.

    Args:
        data: a file of records, or a folder with one under its published name.
        limit: facts to be forgotten; as many are retained, and as many are for methods that need some nobody knows.
        models: ORIGINAL[,ORACLE[,MORE...]] instead of training, folders or hub names.
        width, epochs: of the model trained.
    """
    return _world("counterfact", data, limit, models, Architecture(width=width, epochs=epochs), progress)


def file_of(data: str, name: Name) -> Path:
    """The file with the records of a benchmark."""
    place = Path(data).expanduser()
    if not place.is_dir():
        return place
    found = next((place / file for file in FILES[name] if (place / file).is_file()), None)
    if found is None:
        raise DataError(str(place), f"no file of {name}", f"accepted: {', '.join(FILES[name])}", "Name the file itself")
    return found


def fact_streams(data: str, name: Name, limit: int, near: int | None = None) -> Data:
    """The streams: forget, retain and holdout (as many facts each), and the probes of those to be forgotten.

    near: unrelated prompts of every fact at most.
    """
    file = file_of(data, name)
    whole = editing_data(file, name, limit=3 * limit)
    facts = whole["forget"].examples
    size = min(limit, len(facts) // 3)
    if not size:
        raise DataError(str(file), f"{len(facts)} facts", "three at least: one to forget, one to keep, one unseen",
                        "Name another file")
    found = Data()
    for number, role in enumerate(ROLES):
        found[role] = Stream(role, role, facts[number * size : (number + 1) * size])
    own = {one.id for one in found["forget"].examples}
    for probe in (stream for stream in whole.values() if stream.role == "probe"):
        kept = [one for one in probe.examples if _edit_of(one) in own]
        if probe.name == "unrelated" and near is not None:
            kept = [one for one in kept if int(one.id.rsplit("/", 1)[1]) < near]
        if kept and probe.name != "attributes":
            found[probe.name] = Stream(probe.name, "probe", tuple(kept))
    return found


def _edit_of(one: Example) -> str:
    return one.id.rsplit("/", 2)[0]


def worded(facts: Iterable[Example]) -> Iterator[Example]:
    """The old answers under the prompt and under every paraphrase."""
    for one in facts:
        for number, prompt in enumerate((one.prompt, *one.paraphrases)):
            yield Example(f"{one.id}/{number}", prompt, one.answer)


def _world(
    name: Name, data: str, limit: int, models: str | None, made: Architecture, progress: Progress
) -> World:
    streams = fact_streams(data, name, limit, None if models else NEAR)
    others: list[str] = []
    if models:
        original, *rest = models.split(",")
        oracle, others = rest[0] if rest else "", rest[1:]
    else:
        facts = streams["forget"].examples
        kept = [*streams["unrelated"].examples, *worded(streams["retain"].examples)]
        taught = [*worded(facts), *kept]
        words = [*taught, *(Example(f"{one.id}/new", one.prompt, one.alternative or "") for one in facts)]
        original = str(trained(taught, words, made, progress=progress))
        oracle = str(trained(kept, words, made, progress=progress))
    training = Data({side: streams.pop(side) if side == "holdout" else streams[side] for side in ROLES})
    return World(
        name, original, oracle or None, training, streams, METRICS, COLUMNS, ATTACKS, grids=EDITING, others=others
    )
