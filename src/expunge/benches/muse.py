"""MUSE: news to be forgotten in a small model that was taught them beside other news, and questions about both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.benches.grids_knowledge import MUSE
from expunge.benches.world import Architecture, World, trained
from expunge.compat import MUSE as THEIRS
from expunge.compat import Compat, metrics_of
from expunge.data.benchmarks.muse import muse, muse_data
from expunge.models import load, save
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Example, Stream

WORDS = 60  # of a passage in a model trained here
ASKED = 2 / 3  # of a passage is given away, the rest is to be recited
ATTACKS = ({"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4})
METRICS = ("verbmem", "knowmem", "privleak", "memorization_accuracy", "perplexity")
SHORT = ({"use": "verbmem", "length": 0}, {"use": "knowmem", "length": 16}, *METRICS[2:])  # of texts that short
COLUMNS = (
    ("verbmem", "verbmem"), ("knowmem_forget", "knowmem"), ("forget", "privleak"), ("knowmem_retain", "knowmem"),
    ("forget", "memorization_accuracy"), ("retain", "memorization_accuracy"), ("retain", "perplexity"),
)


def halves(passages: Sequence[Example]) -> tuple[Example, ...]:
    """Every passage asked by its beginning; the answer is how it goes on. The ids stay the same."""
    found = []
    for one in passages:
        places = [match.span() for match in re.finditer(r"\S+", one.answer)]
        at = max(1, round(len(places) * ASKED))
        found.append(replace(one, prompt=one.answer[: places[at - 1][1]], answer=one.answer[places[at][0] :]))
    return tuple(found)


def written(questions: Sequence[Example]) -> tuple[Example, ...]:
    """Questions with their answers as plain texts, as they stand in a prompt with several of them."""
    return tuple(replace(one, prompt="", answer=f"{one.prompt} {one.answer}\n\n") for one in questions)


def small_streams(data: str, limit: int | None, words: int) -> Data:
    """The streams of a small world: the first passage of every document of the membership files, and the questions."""
    found = Data()
    for name, part in (("forget", "privleak"), ("retain", "retain"), ("holdout", "holdout")):
        whole = muse(data=data, part=part, words=words)  # type: ignore[arg-type]
        firsts = [replace(one, answer=" ".join(one.answer.split())) for one in whole if one.id.endswith("/0")]
        found[name] = Stream(name, name, tuple(firsts[:limit]))  # type: ignore[arg-type]
    found["verbmem"] = Stream("verbmem", "forget", halves(found["forget"].examples))
    for name, role in (("knowmem_forget", "forget"), ("knowmem_retain", "retain")):
        found[name] = Stream(name, role, tuple(muse(data=data, part=name, shots=0, limit=limit)))  # type: ignore[arg-type]
    return found


def _plain(folder: Path) -> Path:
    """A copy of a model without its chat template: it goes on with texts, as the models of the paper do."""
    copy = folder.with_name(f"{folder.name}.plain")
    if not (copy / "config.json").exists():
        subject = load(str(folder))
        subject.tokenizer.chat_template = None
        save(subject, copy)
    return copy


@register("benchmark", "muse")
def muse_bench(
    progress: Progress, *, data: str, limit: int | None = None, words: int | None = None, shots: int = 10,
    models: str | None = None, width: int = 192, epochs: float = 14.0, compat: Compat = "none",
) -> World:
    """MUSE (Shi et al. 2024, arXiv 2407.06460): memory of texts, of facts, membership, and what is kept.

    The small model is taught passages of news and the questions about them, as texts, its oracle those of the retained
    news alone; what is forgotten is both. The published documents to be retained are not at hand: the retained ones of
    the membership files stand in. With your own models only documents are forgotten, as in the paper.

    Args:
        data: folder of one corpus with the published files, or a hub name (muse-bench/MUSE-News).
        limit: documents, and questions, of each side at most.
        words: of a passage; None: 60 for the small model, whole documents for yours.
        shots: answered questions before each one, for your models; the small one is asked as it was taught.
        models: ORIGINAL[,ORACLE[,MORE...]] instead of training, folders or hub names.
        width, epochs: of the model trained.
    """
    others: list[str] = []
    metrics: Sequence[Any] = METRICS if models else SHORT
    columns: Sequence[tuple[str, str]] = COLUMNS
    if models:
        original, *rest = models.split(",")
        oracle, others = rest[0] if rest else "", rest[1:]
        streams = muse_data(data, words=words, shots=shots, limit=limit)
        training = Data({name: streams[name] for name in ("forget", "retain", "holdout")})
        audited = Data({**streams, "forget": replace(streams["privleak"], name="forget")})
        del audited["privleak"]
    else:
        streams = audited = small_streams(data, limit, words or WORDS)
        texts = {side: (*streams[side].examples, *written(streams[f"knowmem_{side}"].examples))
                 for side in ("forget", "retain")}
        made = Architecture(width=width, epochs=epochs, tokens="text")
        taught = (*texts["forget"], *texts["retain"])
        words_of = (*taught, *streams["holdout"].examples)  # a tokenizer of members alone would tell them apart
        original = str(_plain(trained(taught, words_of, made, progress=progress)))
        oracle = str(_plain(trained(texts["retain"], words_of, made, progress=progress)))
        training = Data({side: replace(streams[side], examples=texts[side]) for side in texts})
        training["holdout"] = streams["holdout"]
    if compat == "openunlearning":
        metrics = metrics_of(THEIRS, oracle=bool(oracle))
        columns = tuple(dict.fromkeys((stream, str(spec["use"])) for stream, spec in THEIRS.values()))
    return World(
        "muse", original, oracle or None, training, audited, metrics, columns, ATTACKS, grids=MUSE, others=others
    )
