"""Conditions x metrics -> scores and verdicts. An unlearning is not believed: it is attacked and compared.

Conditions are the original, the oracle (a twin that never saw the data), the model after, and after each attack;
every attack is also run on the oracle, because relearning teaches any model something: what counts is whether the
unlearned one learns it back more easily than one that never knew it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.attacks import NOT_YET
from expunge.measure.plan import Measured, measure
from expunge.measure.tables import NotMeasured
from expunge.metrics.stats import equivalence
from expunge.recipe import AuditSpec
from expunge.registry import entries
from expunge.report import schema
from expunge.run import Progress, _silent
from expunge.scoring import label, plan_for, score_all
from expunge.types import Bound, Cost, Data, Score, Subject

FORGOTTEN = ("extraction_strength", "exact_memorization", "probability", "rouge", "truth_ratio")
KEPT = ("exact_memorization", "probability", "rouge")
ORDER: Mapping[schema.Outcome, int] = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}
Loader = Callable[[], Subject]
Scores = Mapping[tuple[str, str], Score]


@dataclass(frozen=True)
class State:
    """One measured condition."""

    condition: schema.Condition
    measured: Measured
    scores: Scores


@dataclass
class Audit:
    """An audit under way. `run()` measures every condition; the rest reads what it found.

    original, oracle: how to load them, or None. They are loaded one at a time and let go.
    """

    data: Data
    spec: AuditSpec
    cache: Path | None = None
    device: str = "cpu"
    progress: Progress = _silent
    states: dict[str, State] = field(default_factory=dict)
    untested: list[schema.Untested] = field(default_factory=list)
    seconds: float = 0.0
    forwards: int = 0
    tokens: int = 0
    expected: int = 0  # conditions to come, for the progress bar

    def run(self, after: Subject, *, original: Loader | None = None, oracle: Loader | None = None) -> None:
        """Measure original, oracle, after, and both of the latter under every attack."""
        begun = time.perf_counter()
        subjects = 1 + (oracle is not None)
        self.expected = len(self.states) + (original is not None) + subjects * (1 + len(self.spec.attacks))
        if original is not None:
            self.measure(original(), "original")
        twin = oracle() if oracle is not None else None
        if twin is not None:
            self.measure(twin, "oracle")
        if "original" in self.states:  # measured before its reference was there
            first = self.states["original"]
            self.states["original"] = replace(first, scores=self._scores("original", first.measured))
        self.measure(after, "after")
        for attack in self.spec.attacks:
            for of, subject in (("oracle", twin), ("after", after)):
                if subject is not None:
                    self.attack(attack, subject, of)
        self.seconds += time.perf_counter() - begun

    def measure(self, subject: Subject, name: str, condition: schema.Condition | None = None) -> None:
        """Measure a subject under a name; the oracle's tables of the same condition serve as its reference."""
        kind = name if name in ("original", "oracle") else "after"
        condition = condition or schema.Condition(name, kind, label=LABELS.get(name, name))  # type: ignore[arg-type]
        self.progress("audit", len(self.states), max(self.expected, len(self.states)), condition.shown)
        measured = measure(
            subject, self.data, plan_for(self.spec.metrics, self.data), cache=self.cache, device=self.device
        )
        self.states[name] = State(condition, measured, self._scores(name, measured))
        self.forwards += measured.forwards
        self.tokens += measured.tokens
        self.progress("audit", len(self.states), max(self.expected, len(self.states)), condition.shown)

    def _scores(self, name: str, measured: Measured) -> Scores:
        """Scores of a condition; its reference is the oracle under the same attack."""
        twin = self.states.get(twin_of(name))
        oracle = measured if name == twin_of(name) else twin.measured if twin else None
        return score_all(self.spec.metrics, self.data, measured, oracle)

    def attack(self, attack: Bound, subject: Subject, of: str) -> None:
        """Measure everything an attack makes of a subject, as conditions `of+attack`."""
        known = len(subject.lineage)
        made = 0
        for index, changed in enumerate(attack(subject, self.data)):
            cost = sum((event.cost for event in changed.lineage[known:]), Cost())
            name = label(attack) + (f"[{index}]" if index else "")
            bill = schema.ConditionCost(
                cost.steps, cost.forwards, cost.backwards, cost.tokens, cost.seconds, cost.queries
            )
            shown = f"{LABELS.get(of, of)}, then {describe(attack)}" + (f" ({index + 1})" if index else "")
            condition = schema.Condition(f"{of}+{name}", "attack", of, attack.name, shown, bill)  # type: ignore[arg-type]
            self.measure(changed, condition.name, condition)
            made += 1
        if not made and of != "oracle":
            self.untested.append(schema.Untested(label(attack), "the data holds nothing this attack could use"))

    # -- findings ----------------------------------------------------------------------------------------------
    def rows(self) -> Iterator[schema.Measured]:
        """Every score as a row of scores.json."""
        for name, state in self.states.items():
            for (stream, metric), s in state.scores.items():
                yield schema.Measured(name, stream, metric, s.value, s.ci, s.n, s.unit, s.better, s.status, s.reason)

    def verdicts(self) -> list[schema.Verdict]:
        """One verdict per claim: forgotten-metrics on each forget stream, kept-metrics on each retain stream."""
        found = []
        for stream in self.data.of_role("forget"):
            if stream.follows is None:
                found += [v for metric in FORGOTTEN if (v := self._forgotten(stream.name, metric)) is not None]
        for stream in self.data.of_role("retain"):
            if stream.follows is None:
                found += [v for metric in KEPT if (v := self._kept(stream.name, metric)) is not None]
        return found

    def _names(self, of: str) -> list[str]:
        return [name for name in self.states if name == of or name.startswith(of + "+")]

    def _forgotten(self, stream: str, metric: str) -> schema.Verdict | None:
        """Equivalence to the oracle under the same condition; without an oracle, to text that was never seen."""
        against = "oracle" if "oracle" in self.states else "holdout"
        unseen = next((held.name for held in self.data.of_role("holdout")), "holdout")
        checked: list[tuple[schema.Checked, float | None]] = []
        reasons: list[str] = []
        for name in self._names("after"):
            mine = self.states[name].scores.get((stream, metric))
            twin = twin_of(name)
            if against == "oracle":
                other = self.states[twin].scores.get((stream, metric)) if twin in self.states else None
            else:
                other = self.states[name].scores.get((unseen, metric))
            if mine is None:
                return None
            if other is None or mine.status != "ok" or other.status != "ok":
                missing = (
                    "no oracle and no holdout stream to compare with" if other is None else mine.reason or other.reason
                )
                reasons.append(missing)
                checked.append((schema.Checked(name, verdict="INCONCLUSIVE"), None))
                continue
            checked.append(compare(name, mine, other, self.spec.margin, paired=against == "oracle"))
        return worst("forgotten", metric, stream, against, checked, self.spec.margin, reasons)

    def _kept(self, stream: str, metric: str) -> schema.Verdict | None:
        """Not worse than the original by more than the margin; attacks are the attacker's loss and do not count."""
        against = "original" if "original" in self.states else "oracle"
        if against not in self.states or "after" not in self.states:
            return None
        mine, other = (self.states[name].scores.get((stream, metric)) for name in ("after", against))
        if mine is None or other is None or mine.status != "ok" or other.status != "ok":
            return None
        checked = compare("after", mine, other, self.spec.margin, paired=True, only_lower=True)
        return worst("kept", metric, stream, against, [checked], self.spec.margin, [])

    def not_tested(self) -> list[schema.Untested]:
        """What a reader might take for granted and nobody looked at."""
        used = {attack.name for attack in self.spec.attacks}
        found = [schema.Untested(name, "available, not asked for") for name in entries("attack") if name not in used]
        found += [schema.Untested(what, why) for what, why in NOT_YET.items()]
        if "oracle" not in self.states:
            found.append(schema.Untested("comparison with an oracle", "no twin that never saw the data was given"))
        if "original" not in self.states:
            found.append(schema.Untested("comparison with the original", "the model before the removal was not given"))
        if not self.data.of_role("holdout"):
            found.append(schema.Untested("membership inference", "no holdout stream was given"))
        return self.untested + found


LABELS = {"original": "Before the removal", "oracle": "Model that never saw the data", "after": "After the removal"}
_ACTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "relearn": lambda h: f"{h['steps']} steps of relearning on {h['share']:.0%} of it",
    "quantize": lambda h: f"rounding to {h['bits']} bits",
    "paraphrase": lambda h: "asked in other words",
}


def twin_of(condition: str) -> str:
    """The oracle's condition under the same attack: "after+quantize(bits=8)" -> "oracle+quantize(bits=8)"."""
    _, plus, suffix = condition.partition("+")
    return "oracle" + plus + suffix


def describe(attack: Bound) -> str:
    """What an attack does, for people."""
    act = _ACTS.get(attack.name)
    return act(attack.hyper) if act else label(attack)


def compare(
    name: str, mine: Score, other: Score, margin: float, *, paired: bool, only_lower: bool = False
) -> tuple[schema.Checked, float | None]:
    """Equivalence of two scores within a margin, from their values per example; the power comes with it.

    only_lower: a difference above the margin is welcome (kept knowledge), one below -margin is not.
    """
    try:
        test = equivalence(mine.per_example, other.per_example, margin=margin, paired=paired)
    except NotMeasured:
        return schema.Checked(name, verdict="INCONCLUSIVE"), None
    low, high = test.ci90
    outcome: schema.Outcome = "INCONCLUSIVE"
    if only_lower:
        outcome = "PASS" if low > -margin else "FAIL" if high < -margin else "INCONCLUSIVE"
    else:
        outcome = {"equivalent": "PASS", "different": "FAIL"}.get(test.verdict, "INCONCLUSIVE")  # type: ignore[assignment]
    return schema.Checked(name, test.difference, (low, high), outcome), test.power


def worst(
    claim: str,
    metric: str,
    stream: str,
    against: str,
    checked: Sequence[tuple[schema.Checked, float | None]],
    margin: float,
    reasons: Sequence[str],
) -> schema.Verdict:
    """The verdict of a claim: that of its worst condition."""
    top, power = max(checked, key=lambda pair: (ORDER[pair[0].verdict], abs(pair[0].difference or 0.0)))
    reason = reasons[0] if top.difference is None and reasons else _sentence(claim, top, against)
    return schema.Verdict(
        claim,
        metric,
        stream,
        top.verdict,
        top.condition,
        against,
        top.difference,
        top.ci,
        margin,
        power,
        reason,
        tuple(check for check, _ in checked),
    )


def _sentence(claim: str, top: schema.Checked, against: str) -> str:
    if top.difference is None:
        return "could not be compared"
    if claim == "kept":
        said = {
            "PASS": "kept within the margin",
            "FAIL": "lost more than the margin",
            "INCONCLUSIVE": "the interval reaches over the margin: more examples would tell",
        }
        return said[top.verdict]
    more = "more" if top.difference > 0 else "less"
    if top.verdict == "FAIL":
        extra = "" if top.difference > 0 else ": over-forgetting is a trace too"
        return f"knows clearly {more} than the {against}{extra}"
    return f"like the {against} within the margin" if top.verdict == "PASS" else "the interval reaches over the margin"


def overall(verdicts: Sequence[schema.Verdict]) -> schema.Outcome | None:
    """The worst of all verdicts; None when there was no claim."""
    return max((v.verdict for v in verdicts), key=lambda outcome: ORDER[outcome], default=None)
