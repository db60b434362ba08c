"""The texts themselves as a table, for metrics that ask what a reader without the model can tell."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pyarrow as pa

from expunge.measure.desk import Desk, Job
from expunge.measure.tables import Table
from expunge.registry import instrument
from expunge.types import Subject


@instrument("texts")
def texts(subject: Subject, jobs: Sequence[Job], desk: Desk) -> list[Table]:
    """Prompt, answer, the answer's compressed bytes and what the example is about, of every text; no model is run.

    Returns: tables with the columns id, item, prompt, answer, zlib, subject (empty where the example names none).
    Cost: none.
    """
    tables = []
    for job in jobs:
        about = {example.id: example.subject or "" for example in desk.data[job.stream].examples}
        tables.append(Table(pa.table({
            "id": pa.array([text.id for text in job.texts], type=pa.string()),
            "item": pa.array([text.item for text in job.texts], type=pa.int64()),
            "prompt": pa.array([text.prompt for text in job.texts], type=pa.string()),
            "answer": pa.array([text.answer for text in job.texts], type=pa.string()),
            "zlib": pa.array([len(zlib.compress(text.answer.encode())) for text in job.texts], type=pa.int64()),
            "subject": pa.array([about[text.id] for text in job.texts], type=pa.string()),
        })))
    return tables
