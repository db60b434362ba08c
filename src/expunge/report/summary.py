"""The findings as sentences for a reader who does not train models: no jargon, every number with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.report import glossary, numbers, recovered, view
from expunge.report.schema import Evidence, Measured, Outcome, Verdict

WORDS: dict[str, str] = {
    "PASS": "The removal held.",
    "FAIL": "The removal did not hold.",
    "INCONCLUSIVE": "The evidence does not decide.",
}
CLAIMS: dict[str, str] = {
    "forgotten": "The model knows no more about the removed data than one that never saw it",
    "kept": "The model still does what it should",
    "private": "An outsider cannot tell that the data were ever used",
}
AGAINST: dict[str, str] = {
    "oracle": "a model that never saw the data",
    "holdout": "texts the model never saw",
    "original": "the model before the removal",
}


@dataclass(frozen=True)
class Paragraph:
    """A short paragraph with its lead-in. tone: "", "pass", "fail", "open" (inconclusive)."""

    lead: str
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Tile:
    """One large number of the opening strip."""

    kind: str  # "original", "after", "attack", "oracle"
    name: str
    value: str
    interval: str
    share: float | None  # for the bar under the number, [0, 1]
    note: str = ""


def opening(evidence: Evidence) -> str:
    """One sentence under the title: what the verdict says."""
    if evidence.verdict is None:
        return "No claim was put to the test: this report measures, it does not judge."
    failed = [row for row in evidence.verdicts if row.verdict == evidence.verdict]
    if evidence.verdict == "PASS":
        return f"{WORDS['PASS']} Every claim stood in the worst case that was looked at."
    claims = " and ".join(dict.fromkeys(f"“{row.claim}”" for row in failed)) or "at least one claim"
    if evidence.verdict == "FAIL":
        return f"{WORDS['FAIL']} The claim {claims} failed in the worst case that was looked at."
    return f"{WORDS['INCONCLUSIVE']} For {claims} the data allow neither a yes nor a no."


def paragraphs(evidence: Evidence) -> list[Paragraph]:
    """The whole story in order: asked, before, after, attacked, never saw it, kept, how sure."""
    found = [_asked(evidence), *_knowledge(evidence), *_kept(evidence)]
    for claim, verdicts in view.by_claim(evidence.verdicts).items():
        found.append(_verdict(evidence, claim, verdicts))
    found.append(_sure(evidence))
    return found


def tiles(evidence: Evidence) -> list[Tile]:
    """Before, after, after the worst attack, never saw it: one number each, of the most telling metric."""
    where = view.knowledge(evidence)
    if where is None:
        return []
    found = []
    for kind, name in (("original", "Before"), ("after", "After removal"), ("attack", "After the worst attack"),
                       ("oracle", "Never saw the data")):
        row = _of_kind(evidence, kind, *where)
        if row is None or row.value is None:
            reason = row.reason if row else (_no_attack(evidence) if kind == "attack" else "not measured")
            found.append(Tile(kind, name, "–", "", None, reason))
            continue
        share = min(1.0, max(0.0, row.value)) if numbers.is_share(row.unit) else None
        note = _under(evidence, row) if kind == "attack" else ""
        found.append(Tile(kind, name, numbers.number(row.value, row.unit), numbers.interval(row.ci, row.unit), share,
                          note))
    return found


def _no_attack(evidence: Evidence) -> str:
    return "no attack was run" if not view.tried(evidence) else "the attacks that were run are shown, not judged"


def _under(evidence: Evidence, row: Measured) -> str:
    """Which attack a tile shows, and what it brought back: told on the same examples, never by comparing two tiles."""
    why = "; the verdict rests on it" if view.decides(evidence, row) else ""
    share = view.recovered(evidence, row)
    back = "n/a" if share is None else numbers.percent(max(0.0, share))
    return f"{view.label(evidence, row.condition)}{why}. Brought back: {back}"


def tiles_caption(evidence: Evidence) -> str:
    where = view.knowledge(evidence)
    if where is None:
        return ""
    stream, metric = where
    return f"{glossary.title(metric)} on “{stream}”: {glossary.describe(metric)}"


def _asked(evidence: Evidence) -> Paragraph:
    forget, retain = view.size(evidence, "forget"), view.size(evidence, "retain")
    text = f"{_many(forget, 'text was', 'texts were')} to be removed from the model {evidence.subject}"
    text += f", and {_many(retain, 'other', 'others')} to be kept." if retain else "."
    if evidence.method is not None:
        text += f" Method: {evidence.method.name}."
        if evidence.method.summary:
            text += f" {evidence.method.summary.rstrip('.')}."
    return Paragraph("What was asked", text)


def _knowledge(evidence: Evidence) -> list[Paragraph]:
    where = view.knowledge(evidence)
    if where is None:
        return [Paragraph("What the model knew", "No measure of the removed data has a value in this run; the table "
                          "of all scores gives the reasons.", "open")]
    found = []
    for kind, lead, start in (
        ("original", "Before", "Before the removal, the model "),
        ("after", "After", "After the removal, it "),
        ("attack", "Under attack", ""),
        ("oracle", "For comparison", "A twin of the model that never saw these texts "),
    ):
        row = _of_kind(evidence, kind, *where)
        if row is None or row.value is None:
            aside = f"{_no_attack(evidence).capitalize()}." if kind == "attack" and view.tried(evidence) else ""
            found.append(Paragraph(lead, aside or _absent(kind, row)))
            continue
        if kind == "attack":
            which = "the verdict rests on" if view.decides(evidence, row) else "that brought back most"
            start = f"After the attack {which} (“{view.label(evidence, row.condition)}”), it "
        end = _back(evidence, row) + _twin(evidence, row) + _saved(evidence, where) if kind == "attack" else "."
        found.append(Paragraph(lead, start + _said(row) + end))
    return found


def _back(evidence: Evidence, row: Measured) -> str:
    """What an attack changed on the very same examples; empty where that was not tested."""
    found, share = view.change(evidence, row), view.recovered(evidence, row)
    if found is None or found.difference is None or share is None:
        return ""
    count = f" {found.n:,}" if found.n else ""
    moved = numbers.difference(found.difference, found.ci, row.unit)
    return (f": {moved} on the same{count} examples, {numbers.percent(max(0.0, share))} of what the removal had "
            "taken away")


def _twin(evidence: Evidence, row: Measured) -> str:
    """The end of the attack sentence: what the same attack gives on the model that never saw the data."""
    target = view.reference(evidence, row)
    if target is None or target.value is None:
        return "."
    condition = evidence.condition(target.condition)
    if condition is None or condition.of != "oracle":
        return "."
    return (f". The same attack on the twin that never saw the texts gives "
            f"{_number(target)}: only what goes beyond that was really left in the model.")


def _saved(evidence: Evidence, where: tuple[str, str]) -> str:
    """How much cheaper the cheapest way back was than learning the same anew, where that is sure."""
    known = [(one, saving) for one in evidence.recoveries if (one.stream, one.metric) == where
             if (saving := recovered.telling(one.savings)) is not None and saving.ci is not None and saving.ci[0] > 1]
    if not known:
        return ""
    one, saving = max(known, key=lambda pair: pair[1].ci[0] if pair[1].ci else 0.0)
    budget = f"{numbers.count(saving.budget)} {glossary.BUDGETS.get(one.budget, one.budget)}"
    least = "at least " if saving.censored else ""
    return (f" What {budget} of “{glossary.attack_title(one.attack).lower()}” bring back costs {least}"
            f"{numbers.significant(saving.ratio, 2)} times as many where nothing was ever learned.")


def _kept(evidence: Evidence) -> list[Paragraph]:
    where = view.utility(evidence)
    if where is None:
        return [Paragraph("What was kept", "It was not measured whether the rest of the model still works.", "open")]
    stream, metric = where
    before, after = _of_kind(evidence, "original", *where), _of_kind(evidence, "after", *where)
    if after is None or after.value is None:
        return [Paragraph("What was kept", "It was not measured whether the rest of the model still works.", "open")]
    scope = "" if metric == "model_utility" else f" On what should be kept (“{stream}”),"
    text = f"{scope} the model {_said(after)}".strip()
    if before is not None and before.value is not None:
        text += f"; before the removal it was {_number(before)}"
    return [Paragraph("What was kept", text[:1].upper() + text[1:] + ".")]


def _verdict(evidence: Evidence, claim: str, verdicts: list[Verdict]) -> Paragraph:
    """Why a claim stands, falls or stays open, told by its worst verdict."""
    worst = min(verdicts, key=lambda row: ("FAIL", "INCONCLUSIVE", "PASS").index(row.verdict))
    tones: dict[Outcome, str] = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "open"}
    ends: dict[Outcome, str] = {"PASS": "It passed.", "FAIL": "It failed.", "INCONCLUSIVE": "It stays undecided."}
    parts = [f"The statement “{CLAIMS.get(claim, glossary.title(claim))}” was put to the test. {ends[worst.verdict]}"]
    if len(verdicts) > 1:
        tally = ((sum(row.verdict == name for row in verdicts), word)
                 for name, word in (("PASS", "passed"), ("FAIL", "failed"), ("INCONCLUSIVE", "undecided")))
        parts.append(f"Of {len(verdicts)} measures, " + ", ".join(f"{n} {word}" for n, word in tally if n) + ".")
    parts += [_gap(evidence, worst), _meaning(worst)]
    if worst.reason:
        parts.append(worst.reason[:1].upper() + worst.reason[1:].rstrip(".") + ".")
    return Paragraph(f"Claim “{claim}”", " ".join(part for part in parts if part), tones[worst.verdict])


def _gap(evidence: Evidence, worst: Verdict) -> str:
    """The worst difference with its interval against the margin; empty when the verdict carries no numbers."""
    if worst.difference is None or worst.margin is None:
        return ""
    unit = view.unit_of(evidence, worst.stream, worst.metric)
    span = numbers.difference_interval(worst.ci, unit)
    where = f" (“{view.label(evidence, worst.condition)}”)" if worst.condition else ""
    return (f"In the worst case{where}, {glossary.plain(worst.metric)} differs from "
            f"{AGAINST.get(worst.against, worst.against)} by {numbers.difference(worst.difference, worst.ci, unit)}"
            + (f" (between {span.replace(' to ', ' and ')})" if span else "")
            + f"; up to {numbers.margin(worst.margin, unit)} counts as equal.")


def _meaning(worst: Verdict) -> str:
    if worst.verdict == "PASS":
        return ""
    if worst.verdict == "FAIL":
        return ("That is more than chance and more than what was agreed beforehand: on this evidence the statement "
                "must not be made.")
    text = "That range reaches across the limit: the data cannot tell a good removal from a bad one."
    if worst.power is not None and worst.power < 0.8:
        text += (f" An audit of this size would have shown a perfect removal with a chance of only "
                 f"{numbers.percent(worst.power, whole=True)}; more examples would settle it.")
    return text + " This is not a weak pass."


def _sure(evidence: Evidence) -> Paragraph:
    attacks, refused = len(view.tried(evidence)), len(view.probes(evidence)) - len(view.tried(evidence))
    level = numbers.percent(evidence.confidence, whole=True)
    text = (f"A range beside a score covers the true value with {level} confidence; one beside a difference is the "
            f"90 % range that two one-sided tests at 5 % ask for. {over(evidence)} ")
    text += (f"{_many(attacks, 'attack was', 'attacks were')} tried and the worst one counts. " if attacks else
             "No attack was tried, so nothing is known about how easily the knowledge comes back. ")
    if refused:
        text += f"{_many(refused, 'other attack does', 'other attacks do')} not fit this model or these data. "
    if view.only(evidence, "oracle") is None:
        text += ("There was no model that never saw the data to compare with, so “forgotten” is judged by weaker "
                 "evidence. ")
    if evidence.untested:
        text += f"{_many(len(evidence.untested), 'thing was', 'things were')} not tested; they are listed below. "
    return Paragraph("How sure this is", text + "No audit can prove that an attack nobody has tried would fail.")


def over(evidence: Evidence) -> str:
    """What the ranges are over, the examples or the subjects they belong to, in plain words."""
    known = [(stream, count) for stream in view.streams(evidence) if (count := view.groups(evidence, stream))]
    if not known:
        return "The ranges say where a score would lie with other examples like these."
    counts = ", ".join(f"{count:,} of “{stream}”" for stream, count in known)
    text = ("The ranges say where a score would lie with other subjects like these: examples of one subject (a person, "
            f"a chapter) count together. There are {counts}")
    alone = [glossary.title(metric) for metric in view.one_by_one(evidence)]
    if alone:
        names = ", ".join(alone[:3]) + (" and others" if len(alone) > 3 else "")
        text += f". Only {names} are over single examples, and their ranges may be too narrow"
    return text + "."


def _of_kind(evidence: Evidence, kind: str, stream: str, metric: str) -> Measured | None:
    if kind == "attack":
        return view.worst(evidence, stream, metric)
    condition = view.only(evidence, kind)
    return evidence.score(condition.name, stream, metric) if condition else None


def _said(row: Measured) -> str:
    return glossary.phrase(row.metric).format(value=_number(row))


def _number(row: Measured) -> str:
    span = numbers.interval(row.ci, row.unit)
    between = f" (between {span.replace('–', ' and ').replace(' to ', ' and ')})" if span else ""
    return numbers.number(row.value, row.unit) + between


def _absent(kind: str, row: Measured | None) -> str:
    if row is not None:
        return f"Not available: {row.reason.rstrip('.') or 'no reason was given'}."
    return {
        "original": "The model before the removal was not measured.",
        "after": "The model after the removal was not measured.",
        "attack": "No attack on the removal was run, so nothing is known about how easily the knowledge comes back.",
        "oracle": "There was no twin that never saw these texts, so nothing shows what a perfect removal would "
        "look like.",
    }[kind]


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
