"""The model card: README.md beside the weights, in the form the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from expunge.report import glossary, numbers, summary, view
from expunge.report.schema import Evidence


def model_card(evidence: Evidence, *, base_model: str | None, library: str = "transformers") -> str:
    """README.md: YAML front matter, what was removed (counts only), the verdict, the main table, limits, re-run.

    Args:
        base_model: Hub name or path of the model before the removal; None when it must not be named.
        library: the library that loads the weights: "transformers", "peft".
    """
    parts = [_front(evidence, base_model, library), f"# {_inline(evidence.title)}\n", _opening(evidence),
             _removed(evidence), _findings(evidence), _table(evidence), _limits(evidence), _again(evidence)]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _front(evidence: Evidence, base_model: str | None, library: str) -> str:
    data: dict[str, Any] = {"library_name": library, "tags": ["unlearning", "expunge"]}
    if evidence.method is not None:
        data["tags"].append(f"unlearning-method:{evidence.method.name}")
    if base_model is not None:
        data["base_model"] = base_model
        data["base_model_relation"] = "adapter" if library == "peft" else "finetune"
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _opening(evidence: Evidence) -> str:
    verdict = evidence.verdict or "none asked"
    return f"**Verdict of the audit: {verdict}.** {_inline(summary.opening(evidence))}\n"


def _removed(evidence: Evidence) -> str:
    lines = ["## What was removed\n"]
    counts = ", ".join(f"{row.n:,} examples in `{row.name}` ({row.role})" for row in evidence.streams)
    lines.append((counts[:1].upper() + counts[1:] + "." if counts else "Not recorded.")
                 + " The texts themselves are not part of this card.\n")
    method = evidence.method
    if method is not None:
        paper = f" ({_inline(method.paper)})" if method.paper else ""
        lines.append(f"Method: `{method.name}`{paper}. {_inline(method.summary).rstrip('.')}.\n")
        if method.differs:
            lines.append(f"Where it differs from the paper: {_inline(method.differs)}\n")
    return "\n".join(lines)


def _findings(evidence: Evidence) -> str:
    lines = ["## What the audit found\n"]
    lines += [f"- **{part.lead}.** {_inline(part.text)}" for part in summary.paragraphs(evidence)[1:]]
    return "\n".join(lines) + "\n"


def _table(evidence: Evidence) -> str:
    heads = [(name, kind) for name, kind in (("Before", "original"), ("After", "after"), ("Worst attack", "attack"),
                                             ("Oracle", "oracle")) if _has(evidence, kind)]
    lines = ["| Stream | Metric | " + " | ".join(name for name, _ in heads) + " |",
             "| --- | --- |" + " ---: |" * len(heads)]
    for stream in view.streams(evidence):
        for metric in view.metrics(evidence, stream):
            cells = " | ".join(_cell(evidence, kind, stream, metric) for _, kind in heads)
            lines.append(f"| {_inline(stream)} | {_inline(glossary.title(metric))} | {cells} |")
    level = numbers.percent(evidence.confidence, whole=True)
    note = f"Ranges are {level} intervals. {_inline(summary.over(evidence))} The oracle never saw the data."
    return "## Scores\n\n" + "\n".join(lines) + f"\n\n{note}\n"


def _limits(evidence: Evidence) -> str:
    lines = ["## Limits\n", "An audit shows what was tried; it cannot show that nothing else would work."]
    items = list(_untested(evidence))
    lines += ["", "Not tested:", "", *items] if items else []
    lines += ["", "Warnings:", "", *(f"- {_inline(text)}" for text in evidence.warnings)] if evidence.warnings else []
    return "\n".join(lines) + "\n"


def _untested(evidence: Evidence) -> Iterator[str]:
    for what, why in view.untested(evidence):
        yield f"- {_inline(what)}" + (f": {_inline(why)}" if why else "")


def _again(evidence: Evidence) -> str:
    text = f"## How to run it again\n\nDigest of the resolved recipe: `{evidence.digest}`.\n"
    if evidence.method is None or not evidence.method.recipe:
        return text
    recipe = evidence.method.recipe.rstrip()
    fence = "`" * max(3, _longest_run(recipe) + 1)
    return text + f"\n{fence}yaml\n{recipe}\n{fence}\n\n    expunge run recipe.yaml\n"


def _longest_run(text: str) -> int:
    longest = run = 0
    for letter in text:
        run = run + 1 if letter == "`" else 0
        longest = max(longest, run)
    return longest


def _has(evidence: Evidence, kind: str) -> bool:
    return bool(view.judged(evidence)) if kind == "attack" else view.only(evidence, kind) is not None


def _cell(evidence: Evidence, kind: str, stream: str, metric: str) -> str:
    condition = view.only(evidence, kind)
    row = view.worst(evidence, stream, metric) if kind == "attack" else (
        evidence.score(condition.name, stream, metric) if condition else None
    )
    return "–" if row is None else numbers.with_interval(row.value, row.ci, row.unit)


def _inline(text: str) -> str:
    """Text that cannot open HTML, a table cell or a line of its own in markdown."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
