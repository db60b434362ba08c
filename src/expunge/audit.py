"""Conditions x metrics -> scores and verdicts. An unlearning is not believed: it is attacked and compared.

Conditions are the original, the oracle (a twin that never saw the data), the model after, and after each attack;
every attack is also run on the oracle, because relearning teaches any model something: what counts is whether the
unlearned one learns it back more easily than one that never knew it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from expunge.attacked import Records, Tried, name_of, parts_of, record_key, tries, wants_helpers
from expunge.attacks import LOOKED_AT
from expunge.measure.desk import Partner
from expunge.measure.plan import Measured, Plan, identity, measure
from expunge.recipe import AuditSpec
from expunge.recovery import recoveries
from expunge.registry import entries, find
from expunge.report import schema
from expunge.residue_map import add_lens, residue_maps
from expunge.run import Progress, Run, _silent
from expunge.scoring import plan_for, score_all
from expunge.types import Bound, Data, Score, Subject
from expunge.verdicts import Scores, changes, judge, twin_of

Loader = Callable[[], Subject]


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
    folder: where attacks keep their states and what was found is recorded; an audit that was killed goes on from there
    with `resume`.
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
    partner: Partner | None = None  # the model before the removal, for instruments and attacks that run it as well
    folder: Path | None = None
    resume: bool = False
    seed: int = 0
    lens: bool = False  # whether every layer is read for the map of what is left inside
    refused: dict[str, str] = field(default_factory=dict)  # conditions that do not fit this model, and why

    def run(self, after: Subject, *, original: Loader | None = None, oracle: Loader | None = None) -> None:
        """Measure original, oracle, after, and both of the latter under every attack."""
        begun = time.perf_counter()
        subjects = 1 + (oracle is not None)
        self.expected = len(self.states) + (original is not None) + subjects * (1 + len(self.spec.attacks))
        if original is not None:
            self.partner = Partner(original)
            self.measure(self.partner.subject if self._runs_two() else original(), "original")
        if oracle is not None:
            self._measure_all(oracle(), "oracle")
        self.compare_again("original")
        self._measure_all(after, "after")
        self.partner = None
        self.seconds += time.perf_counter() - begun

    def _runs_two(self) -> bool:
        """Whether an instrument runs the original beside the model that is measured: then it is loaded once."""
        asked = {key[1] for key in self._plan().wanted}
        return any(find("instrument", name, "instrument").meta["partner"] for name in asked)

    def _plan(self, *, attacked: bool = False) -> Plan:
        """What the metrics need; the map of the layers is drawn of models that nobody attacked."""
        plan = plan_for(self.spec.metrics, self.data)
        return plan if attacked else add_lens(plan, self.data, asked=self.lens)

    def _measure_all(self, subject: Subject, name: str) -> None:
        self.measure(subject, name)
        for attack in self.spec.attacks:
            self.attack(attack, subject, name)

    def measure(self, subject: Subject, name: str, condition: schema.Condition | None = None) -> None:
        """Measure a subject under a name; the oracle's tables of the same condition serve as its reference."""
        kind = name if name in ("original", "oracle") else "after"
        condition = condition or schema.Condition(name, kind, label=LABELS.get(name, name))  # type: ignore[arg-type]
        self.progress("audit", len(self.states), max(self.expected, len(self.states)), condition.shown)
        plan = self._plan(attacked=condition.kind == "attack")
        measured = measure(subject, self.data, plan, cache=self.cache, device=self.device, partner=self.partner)
        self.states[name] = State(condition, measured, self._scores(name, measured))
        self.forwards += measured.forwards
        self.tokens += measured.tokens
        self.progress("audit", len(self.states), max(self.expected, len(self.states)), condition.shown)

    def compare_again(self, name: str) -> None:
        """Score a condition once more that was measured before what it is compared with was there."""
        if name in self.states:
            state = self.states[name]
            self.states[name] = replace(state, scores=self._scores(name, state.measured))

    def _scores(self, name: str, measured: Measured) -> Scores:
        """Scores of a condition; it is compared with the oracle under the same attack, and with the original."""

        def known(other: str) -> Measured | None:
            state = self.states.get(other)
            return measured if other == name else state.measured if state else None

        return score_all(self.spec.metrics, self.data, measured, known(twin_of(name)), known("original"))

    def attack(self, attack: Bound, subject: Subject, of: str) -> None:
        """Measure everything an attack makes of a subject, as conditions `of+attack`."""
        name = f"{of}+{name_of(attack)}"
        subject = self._with_helpers(attack, subject)
        beside = identity(self.partner.subject) if self.folder and self._runs_two() and self.partner else ""
        key = record_key(subject, attack, self.spec, self.data, beside)
        records = Records(self.folder, name, key, self.resume)
        found = records.read()
        if found is None:
            found = list(self._tried(attack, subject, of, records))
            records.write(found)
        else:
            for tried in found:
                self._add(tried, tried.measured)
        if of == "oracle":
            return
        if not found:
            self.untested.append(schema.Untested(name_of(attack), "the data holds nothing this attack could use"))
        for tried in found:
            if tried.reason:
                self.untested.append(schema.Untested(tried.condition.suffix, tried.reason))
            for part, why in tried.left_out.items():
                self.untested.append(schema.Untested(f"{tried.condition.attack}: {part}", why))
            state = self.states[tried.condition.name]  # scored: nobody reads its tables again
            self.states[tried.condition.name] = replace(state, measured=Measured({}, {}, 0, 0))

    def _tried(self, attack: Bound, subject: Subject, of: str, records: Records) -> Iterator[Tried]:
        """What an attack makes, one after another, measured as soon as it is there."""
        own = None if self.folder is None else self.folder / "attacks" / records.readable
        run = Run(own, self.seed, self.device, self.resume, progress=self.progress)
        for tried, changed in tries(attack, subject, self.data, run, self.spec.budget, records.name):
            shown = f"{LABELS.get(of, of)}, then {tried.condition.label}"
            condition = replace(tried.condition, of=of, label=shown)  # type: ignore[arg-type]
            if changed is None:
                self._add(replace(tried, condition=condition), None)
                yield replace(tried, condition=condition)
            else:
                self.measure(changed, condition.name, condition)
                yield replace(tried, condition=condition, measured=self.states[condition.name].measured)

    def _add(self, tried: Tried, measured: Measured | None) -> None:
        """A condition that was measured before it was killed, or one that this model does not allow."""
        name = tried.condition.name
        if measured is None:
            self.refused[name] = tried.reason
            asked = {key: score for state in self.states.values() for key, score in state.scores.items()}
            scores = {key: Score.missing(tried.reason, score.unit, score.better) for key, score in asked.items()}
            self.states[name] = State(tried.condition, Measured({}, {}, 0, 0), scores)
            return
        self.states[name] = State(tried.condition, measured, self._scores(name, measured))
        self.forwards += measured.forwards
        self.tokens += measured.tokens

    def _with_helpers(self, attack: Bound, subject: Subject) -> Subject:
        """The subject with the model before the removal beside it, where an attack asks for it and it can be had."""
        if "original" not in wants_helpers(attack) or self.partner is None:
            return subject
        return replace(subject, helpers={**subject.helpers, "original": self.partner.subject})

    # -- findings ----------------------------------------------------------------------------------------------
    def rows(self) -> Iterator[schema.Measured]:
        """Every score as a row of scores.json."""
        for name, state in self.states.items():
            for (stream, metric), s in state.scores.items():
                yield schema.Measured(
                    name, stream, metric, s.value, s.ci, s.n, s.unit, s.better, s.status, s.reason, s.groups
                )

    def verdicts(self) -> list[schema.Verdict]:
        """One verdict per claim."""
        return self._judged()[0]

    def changes(self) -> list[schema.Change]:
        """What each attack changed, tested example by example."""
        return changes(self._by_condition(), self.data)

    def recoveries(self) -> list[schema.Recovery]:
        """What attacks of growing budgets bring back, beside the oracle under the same."""
        shown = [state.condition for name, state in self.states.items() if name not in self.refused]
        return recoveries(shown, self._by_condition(), self.data)

    def residue(self) -> list[schema.ResidueMap]:
        """What every layer still holds of the answers, where the lens was measured."""
        return residue_maps({name: state.measured for name, state in self.states.items()}, self.data)

    def _judged(self) -> tuple[list[schema.Verdict], list[schema.Untested]]:
        levels = {
            name: state.condition.judged for name, state in self.states.items() if state.condition.kind == "attack"
        }
        return judge(self._by_condition(), self.data, self.spec.margin, levels)

    def _by_condition(self) -> dict[str, Scores]:
        return {name: state.scores for name, state in self.states.items() if name not in self.refused}

    def not_tested(self) -> list[schema.Untested]:
        """What a reader might take for granted and nobody looked at."""
        asked = {metric.name for metric in self.spec.metrics}
        used = {part.name for attack in self.spec.attacks for part in parts_of(attack)} | {"chain"}
        found = [
            schema.Untested(name, "available, not asked for") for name in entries("attack")
            if name not in used and asked.isdisjoint(LOOKED_AT.get(name, ()))
        ]
        if "oracle" not in self.states:
            found.append(schema.Untested("comparison with an oracle", "no twin that never saw the data was given"))
        if "original" not in self.states:
            found.append(schema.Untested("comparison with the original", "the model before the removal was not given"))
        if not self.data.of_role("holdout"):
            found.append(schema.Untested("membership inference", "no holdout stream was given"))
        return self.untested + self._judged()[1] + found


LABELS = {"original": "Before the removal", "oracle": "Model that never saw the data", "after": "After the removal"}
