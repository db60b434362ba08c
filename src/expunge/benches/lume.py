"""LUME: stories, people and biographies in a small model that was taught them, half of them to be forgotten."""

from __future__ import annotations

from dataclasses import replace

from expunge.benches.grids_editing import LUME
from expunge.benches.world import Architecture, World, trained
from expunge.data.benchmarks.lume import Task, lume_data
from expunge.registry import register
from expunge.run import Progress
from expunge.types import Data, Stream

WORDS = 30  # of a beginning, for a model trained here
LIMIT = 40  # documents of each side, for a model trained here
ATTACKS = ({"use": "relearn", "steps": 20, "lr": 5e-4, "batch_size": 16}, {"use": "quantize", "bits": 4})
METRICS = (
    "rouge", "answer_exact", "extraction_strength", "exact_memorization", "membership", "memorization_accuracy",
)
COLUMNS = (
    ("forget", "rouge"), ("forget_qa", "answer_exact"), ("retain", "rouge"), ("retain_qa", "answer_exact"),
    ("forget", "membership"), ("forget", "extraction_strength"), ("forget_qa", "extraction_strength"),
    ("forget", "exact_memorization"), ("retain", "exact_memorization"),
)
SECRETS = "span_memorization_accuracy"


def together(streams: Data, side: str) -> Stream:
    """Completions and questions of one side as one stream: what is taught and what is to be forgotten."""
    parts = [streams[name].examples for name in (side, f"{side}_qa") if name in streams]
    return replace(streams[side], examples=tuple(one for part in parts for one in part))


@register("benchmark", "lume")
def lume_bench(
    progress: Progress, *, data: str, task: Task = "people", limit: int | None = None, words: int | None = None,
    models: str | None = None, width: int = 192, epochs: float = 14.0,
) -> World:
    """LUME (Ramakrishna et al. 2025, arXiv 2502.15097; SemEval 2025 task 4): completions, questions, membership.

    Its scores are here `rouge` of the completions (regurgitation: ROUGE-L recall), `answer_exact` of the questions
    (knowledge) and `membership` by loss; its MMLU is `bench wmdp`'s retain side, and its one number over all, a
    harmonic mean, is not formed: it hides which of them failed. The small model is taught both sides of one task, the
    oracle what is retained. Non-members are retained documents that neither was taught; LUME's own were published
    apart, so with your models membership is n/a.

    Args:
        data: folder with the published files, or a hub name. task: stories, people or biographies.
        limit: documents of each side; None: 40 for the small model, all for yours.
        words: the last so many words of a beginning are asked; None: 30 for the small model, all for yours.
        models: ORIGINAL[,ORACLE[,MORE...]] instead of training, folders or hub names.
        width, epochs: of the model trained.
    """
    others: list[str] = []
    if models:
        original, *rest = models.split(",")
        oracle, others = rest[0] if rest else "", rest[1:]
        streams = lume_data(data, task, limit=limit, words=words)
    else:
        limit = limit or LIMIT
        streams = lume_data(data, task, limit=limit, words=words or WORDS, held=limit)
        made = Architecture(width=width, epochs=epochs)
        kept = together(streams, "retain").examples
        taught = (*together(streams, "forget").examples, *kept)
        vocabulary = (*taught, *streams["holdout"].examples)  # tokens of its own would tell the unseen from the seen
        original = str(trained(taught, vocabulary, made, progress=progress))
        oracle = str(trained(kept, vocabulary, made, progress=progress))
    training = Data({side: together(streams, side) for side in ("forget", "retain", "holdout") if side in streams})
    audited = Data({name: stream for name, stream in streams.items() if name != "holdout_qa"})
    secret = (SECRETS,) if task == "people" else ()
    return World(
        "lume", original, oracle or None, training, audited, (*METRICS, *secret),
        (*COLUMNS, *(("forget", name) for name in secret)), ATTACKS, grids=LUME, others=others,
    )
