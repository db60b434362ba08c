"""Questions that all renderings ask of the evidence: what is worst, what to compare with, how far away."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from expunge.report import glossary, numbers
from expunge.report.schema import Change, Condition, Evidence, Measured, Verdict

_ORDER = {"original": 0, "oracle": 1, "after": 2, "attack": 3}
_ROLES = {"forget": 0, "retain": 1, "holdout": 2, "anchor": 3, "probe": 4}


@dataclass(frozen=True)
class Probe:
    """An attack on the unlearned model, with the same attack on the oracle where there is one."""

    attacked: Condition
    twin: Condition | None


def only(evidence: Evidence, kind: str) -> Condition | None:
    """The condition of a kind ("original", "oracle", "after")."""
    return next((row for row in evidence.conditions if row.kind == kind), None)


def ordered(evidence: Evidence) -> list[Condition]:
    """Original, oracle, after, attacks on it, attacks on the oracle."""
    return sorted(evidence.conditions, key=lambda row: (_ORDER[row.kind], row.of == "oracle"))


def probes(evidence: Evidence) -> list[Probe]:
    """The attacks on the unlearned model, each with its twin on the oracle."""
    attacks = [row for row in evidence.conditions if row.kind == "attack"]
    twins = {row.suffix: row for row in attacks if row.of == "oracle"}
    return [Probe(row, twins.get(row.suffix)) for row in attacks if row.of != "oracle"]


def tried(evidence: Evidence) -> list[Probe]:
    """The attacks on the unlearned model that fitted it."""
    return [probe for probe in probes(evidence) if unfit(evidence, probe.attacked) is None]


def unjudged(evidence: Evidence, condition: Condition) -> bool:
    """Whether an attacked condition is shown and makes no claim: what it shows may have come with the attack."""
    if condition.kind != "attack" or condition.of == "oracle":
        return False
    oracle = only(evidence, "oracle") is not None
    if condition.judged == "never" or (condition.judged == "oracle" and not oracle):
        return True
    checked = {item.condition for row in evidence.verdicts if row.claim == "forgotten" for item in row.checked}
    alone = not any(row.of == "oracle" and row.suffix == condition.suffix for row in evidence.conditions)
    return oracle and alone and bool(checked) and condition.name not in checked


def judged(evidence: Evidence) -> list[Probe]:
    """The attacks on the unlearned model that fitted it and speak of what it still knows."""
    return [probe for probe in tried(evidence) if not unjudged(evidence, probe.attacked)]


def named(evidence: Evidence, condition: Condition) -> str:
    """What an attack added to the name; its label where one attack gave several conditions, which the name only counts:
    "jailbreak[4]" -> "asked in disguise (role_play)"."""
    alike = [row for row in evidence.conditions if row.of == condition.of and _uncounted(row) == _uncounted(condition)]
    if len(alike) < 2 or not condition.label:
        return condition.suffix
    told = short(evidence, condition)
    told = told[:1].lower() + told[1:]
    return told if sum(row.label == condition.label for row in alike) == 1 else f"{told}: {condition.suffix}"


def _uncounted(condition: Condition) -> str:
    return re.sub(r"\[\d+\]$", "", condition.suffix)


def short(evidence: Evidence, condition: Condition) -> str:
    """The label of a condition without what it started from: "After the removal, then asked in other words"."""
    base = only(evidence, condition.of) if condition.of else None
    shown = condition.shown
    if base is not None:
        shown = shown.removeprefix(f"{base.shown}, then ")
    return shown[:1].upper() + shown[1:]


def unfit(evidence: Evidence, condition: Condition) -> str | None:
    """Why an attack gave nothing at all: the one reason that all its scores are n/a; None where it gave something."""
    rows = evidence.of(condition.name)
    if condition.kind != "attack" or not rows or any(row.value is not None for row in rows):
        return None
    reasons = {row.reason for row in rows}
    return (reasons.pop() or "no reason given") if len(reasons) == 1 else None


def untested(evidence: Evidence) -> list[tuple[str, str]]:
    """What was not tested and why; three or more things with one reason stand together."""
    reasons: dict[str, list[str]] = {}
    for item in evidence.untested:
        reasons.setdefault(item.why, []).append(what(evidence, item.what))
    found: list[tuple[str, str]] = []
    for why, names in reasons.items():
        found += [(", ".join(names), why)] if why and len(names) > 2 else [(name, why) for name in names]
    return found


def what(evidence: Evidence, untested: str) -> str:
    """Something untested as people call it, where it is an attack that was run."""
    return next((named(evidence, probe.attacked) for probe in probes(evidence)
                 if probe.attacked.suffix == untested), untested)


def role(evidence: Evidence, stream: str) -> str:
    """The role of a stream; a stream that is not listed is taken by its name."""
    listed = next((row.role for row in evidence.streams if row.name == stream), None)
    return listed or (stream if stream in _ROLES else "probe")


def size(evidence: Evidence, wanted: str) -> int:
    """How many examples the streams of a role hold together."""
    return sum(row.n for row in evidence.streams if row.role == wanted)


def groups(evidence: Evidence, stream: str) -> int | None:
    """Of how many subjects the examples of a stream are, where ranges are over subjects; else None."""
    return max((row.groups for row in evidence.scores if row.stream == stream and row.groups is not None), default=None)


def sized(evidence: Evidence, stream: str, n: int) -> str:
    """`120 examples`, `120 examples of 12 subjects`."""
    known = groups(evidence, stream)
    return f"{n:,} example{'' if n == 1 else 's'}" + (f" of {known:,} subjects" if known is not None else "")


def one_by_one(evidence: Evidence) -> list[str]:
    """Metrics with a range over single examples although those examples belong together in groups."""
    grouped = {row.stream for row in evidence.scores if row.groups is not None}
    return list(dict.fromkeys(row.metric for row in evidence.scores
                              if row.stream in grouped and row.groups is None and row.ci is not None))


def streams(evidence: Evidence) -> list[str]:
    """Streams that were scored, forget first."""
    names = dict.fromkeys(row.stream for row in evidence.scores)
    return sorted(names, key=lambda name: _ROLES.get(role(evidence, name), 9))


def metrics(evidence: Evidence, stream: str) -> list[str]:
    """Metrics of a stream in the order of the file."""
    return list(dict.fromkeys(row.metric for row in evidence.scores if row.stream == stream))


def headline(evidence: Evidence, stream: str, wanted: Sequence[str]) -> str | None:
    """The first of `wanted` that has a value on this stream; else the first metric with a share as its unit."""
    valued = dict.fromkeys(row.metric for row in evidence.scores if row.stream == stream and row.value is not None)
    for name in wanted:
        for metric in valued:
            if glossary.base(metric) == name:
                return metric
    shares = (row.metric for row in evidence.scores
              if row.stream == stream and row.value is not None and numbers.is_share(row.unit))
    return next(shares, next(iter(valued), None))


def knowledge(evidence: Evidence) -> tuple[str, str] | None:
    """(stream, metric) that best tells how much of the removed data the model can still say."""
    for stream in streams(evidence):
        if role(evidence, stream) == "forget" and (metric := headline(evidence, stream, glossary.KNOWLEDGE)):
            return stream, metric
    return None


def utility(evidence: Evidence) -> tuple[str, str] | None:
    """(stream, metric) that best tells how much of the rest still works."""
    kept = [name for name in streams(evidence) if role(evidence, name) != "forget"]
    for stream in kept:
        if "model_utility" in metrics(evidence, stream) and headline(evidence, stream, ("model_utility",)):
            return stream, "model_utility"
    for wanted in ("retain", "anchor", "probe"):
        for stream in kept:
            if role(evidence, stream) == wanted and (metric := headline(evidence, stream, glossary.UTILITY)):
                return stream, metric
    return None


def position(value: float, unit: str) -> float:
    """A value on the scale on which differences are judged: log10 for p-values and perplexities."""
    if numbers.is_log(unit):
        return math.log10(max(value, 1e-300)) if math.isfinite(value) else math.copysign(300.0, value)
    return value if math.isfinite(value) else math.copysign(1e300, value)


def reference(evidence: Evidence, row: Measured) -> Measured | None:
    """What a score should look like: the same attack on the oracle, else the oracle; for kept streams without an
    oracle the original. None for references themselves and where nothing fits."""
    condition = evidence.condition(row.condition)
    oracle = only(evidence, "oracle")
    if condition is None or condition.kind == "oracle" or condition.of == "oracle":
        return None
    names: list[str] = []
    if condition.kind == "attack":
        names += [probe.twin.name for probe in probes(evidence) if probe.attacked == condition and probe.twin]
    if oracle is not None:
        names.append(oracle.name)
    original = only(evidence, "original")
    if oracle is None and original is not None and role(evidence, row.stream) != "forget":
        names.append(original.name)
    for name in names:
        found = evidence.score(name, row.stream, row.metric)
        if found is not None and found.value is not None and name != row.condition:
            return found
    return None


def worst(evidence: Evidence, stream: str, metric: str) -> Measured | None:
    """The attacked score that speaks most against the removal: the verdict's where it names an attack; on forget
    streams the one nearest to the original side; elsewhere the one farthest from the unattacked model. None where no
    attack makes a claim."""
    candidates = [row for probe in judged(evidence)
                  if (row := evidence.score(probe.attacked.name, stream, metric)) and row.value is not None]
    if not candidates:
        return None
    decisive = next((row for row in candidates if decides(evidence, row)), None)
    if decisive is not None:
        return decisive
    if role(evidence, stream) == "forget":
        return max(candidates, key=lambda row: brought_back(evidence, row))
    base = value_of(evidence, "after", stream, metric)
    if base is None:
        base = value_of(evidence, "original", stream, metric)
    if base is None:
        return candidates[0]
    return max(candidates, key=lambda row: abs(position(_number(row), row.unit) - position(base, row.unit)))


def decides(evidence: Evidence, row: Measured) -> bool:
    """Whether a verdict rests on this score. It is the one farthest from its yardstick, not always the one that brought
    back most."""
    key = (row.condition, row.stream, row.metric)
    return any((one.condition, one.stream, one.metric) == key for one in evidence.verdicts)


def recovered(evidence: Evidence, row: Measured) -> float | None:
    """Share of the removed knowledge that an attack brought back: (attacked - after) / (original - after).

    What an attack was shown is not scored, so the score after the attack is over fewer examples than the one before it:
    the numerator is the change on the examples that both have. None where that was not tested.
    """
    before = value_of(evidence, "original", row.stream, row.metric)
    after, now = value_of(evidence, "after", row.stream, row.metric), _paired(evidence, row)
    if before is None or after is None or now is None or row.value is None:
        return None
    first, there, last = (position(value, row.unit) for value in (before, now, after))
    return (there - last) / (first - last) if abs(first - last) > 0.02 else None


def brought_back(evidence: Evidence, row: Measured) -> float:
    """Larger = nearer to the model that still knew, by the change on the same examples where that was tested."""
    now = _paired(evidence, row)
    return remembered(evidence, row if now is None else replace(row, value=now))


def _paired(evidence: Evidence, row: Measured) -> float | None:
    """The score after an attack, had it been over the examples of the score before it."""
    found, after = change(evidence, row), value_of(evidence, "after", row.stream, row.metric)
    if found is None or found.difference is None or after is None:
        return None
    now = after + found.difference
    return None if numbers.is_log(row.unit) and now <= 0 else now


def change(evidence: Evidence, row: Measured) -> Change | None:
    """What an attack did to this very score, tested example by example."""
    key = (row.condition, row.stream, row.metric)
    return next((one for one in evidence.changes if (one.condition, one.stream, one.metric) == key), None)


def direction(evidence: Evidence, row: Measured) -> str:
    """Where a good removal moves a score of this stream: "lower", "higher", "oracle" or "" (for comparison only).

    `better` speaks of the forget stream; on what must be kept the same metric often points the other way.
    """
    kind = role(evidence, row.stream)
    if kind == "forget":
        return row.better
    return "" if kind == "holdout" else glossary.KEPT.get(glossary.base(row.metric), row.better)


def verdict_for(evidence: Evidence, stream: str, metric: str) -> Verdict | None:
    return next((row for row in evidence.verdicts if (row.stream, row.metric) == (stream, metric)), None)


def unit_of(evidence: Evidence, stream: str, metric: str) -> str:
    """The unit of a metric on a stream, from any of its scores."""
    return next((row.unit for row in evidence.scores if (row.stream, row.metric) == (stream, metric) and row.unit), "")


def label(evidence: Evidence, name: str) -> str:
    """The human label of a condition; the name when it is not listed."""
    condition = evidence.condition(name)
    return condition.shown if condition else name


def by_claim(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for row in verdicts:
        groups.setdefault(row.claim, []).append(row)
    return groups


def remembered(evidence: Evidence, row: Measured) -> float:
    """Larger = closer to the model that still knew."""
    before = value_of(evidence, "original", row.stream, row.metric)
    clean = value_of(evidence, "oracle", row.stream, row.metric)
    here = position(_number(row), row.unit)
    if before is not None and clean is not None and before != clean:
        return here if before > clean else -here
    return here if row.better == "lower" else -here


def value_of(evidence: Evidence, kind: str, stream: str, metric: str) -> float | None:
    """What the original, the oracle or the model after scores; None without a value."""
    condition = only(evidence, kind)
    row = evidence.score(condition.name, stream, metric) if condition else None
    return row.value if row else None


def _number(row: Measured) -> float:
    return math.nan if row.value is None else row.value
