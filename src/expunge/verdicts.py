"""From scores to verdicts: each claim is judged by its worst condition, within a margin fixed before measuring.

"forgotten": the model is equivalent to the oracle, and under every attack it knows no more than the oracle under the
same attack (without an oracle: of its forget texts than of texts it never saw). What an attack breaks is the attacker's
loss. "kept": the model is not worse than before by more than the margin. Examples of one subject count together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from expunge.measure.tables import NotMeasured
from expunge.metrics import comparison
from expunge.metrics.clusters import Clusters, clusters_of
from expunge.metrics.equivalence import Equivalence, equivalence, equivalence_of
from expunge.report import schema
from expunge.types import Data, Score

FORGOTTEN = ("extraction_strength", "exact_memorization", "probability", "rouge", "truth_ratio", "membership")
KEPT = ("exact_memorization", "probability", "rouge")
ORDER: Mapping[schema.Outcome, int] = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}
OUTCOMES: Mapping[str, schema.Outcome] = {"equivalent": "PASS", "different": "FAIL", "undecided": "INCONCLUSIVE"}
POWER = 0.8  # for which the number of examples is told
CHANCE = Score(0.5, (0.5, 0.5), unit="AUC")  # members and non-members cannot be told apart
Scores = Mapping[tuple[str, str], Score]  # of one condition, by (stream, metric)
Check = tuple[schema.Checked, float | None]  # a comparison and its power
Way = Literal["both", "less", "more"]


def judge(
    conditions: Mapping[str, Scores], data: Data, margin: float, levels: Mapping[str, str] | None = None
) -> tuple[list[schema.Verdict], list[schema.Untested]]:
    """All claims that the scores allow, and those that could not be put, with the reason.

    Args:
        conditions: scores by condition: "original", "oracle", "after", "after+ATTACK", "oracle+ATTACK".
        margin: a difference that does not matter, in the unit of the metrics (shares).
        levels: of the attacks' conditions: judged "always", only beside an "oracle" under the same attack, or "never".
    """
    left_out = not_judged(conditions, levels or {})
    conditions = {name: scores for name, scores in conditions.items() if name not in left_out}
    found: list[schema.Verdict] = []
    unclaimed = [schema.Untested(name.partition("+")[2], why) for name, why in left_out.items()]
    for claim, role, metrics, put in (("forgotten", "forget", FORGOTTEN, forgotten), ("kept", "retain", KEPT, kept)):
        streams = [stream.name for stream in data.of_role(role) if stream.follows is None]  # type: ignore[arg-type]
        yardstick = claim == "forgotten" or "original" in conditions or "oracle" in conditions
        if not streams or not yardstick:
            why = "neither the original nor an oracle was given" if streams else f"no {role} stream was given"
            unclaimed.append(schema.Untested(f"what was {claim}", why))
            continue
        for stream in streams:
            for metric in metrics:
                after = conditions.get("after", {}).get((stream, metric))
                if after is None:
                    unclaimed += _only_with_settings(claim, conditions.get("after", {}), stream, metric)
                    continue
                if after.status != "ok":
                    unclaimed.append(schema.Untested(f"{claim}: {metric} on {stream}", after.reason))
                    continue
                found.append(put(conditions, data, stream, metric, margin))
                if claim == "forgotten":
                    unclaimed += _lost(conditions, stream, metric)
    return found, list(dict.fromkeys(unclaimed))


def _lost(conditions: Mapping[str, Scores], stream: str, metric: str) -> list[schema.Untested]:
    """Attacks under which a metric cannot be had that can be had without them."""
    scores = [(name, found[stream, metric]) for name, found in conditions.items() if name.startswith("after+")]
    return [
        schema.Untested(f"{metric} on {stream} under {name.partition('+')[2]}", score.reason)
        for name, score in scores if score.status != "ok"
    ]


def not_judged(conditions: Mapping[str, Scores], levels: Mapping[str, str]) -> dict[str, str]:
    """Attacked conditions that are shown and make no claim, with the reason."""
    found = {}
    for name in conditions:
        if not name.startswith("after+"):
            continue
        level, twin = levels.get(name, "always"), twin_of(name) in conditions
        if level == "never":
            found[name] = "shown, not judged: what comes back may have been brought along by the attack"
        elif level == "oracle" and "oracle" not in conditions:
            found[name] = "shown, not judged: it is told answers; only an oracle under the same attack would tell"
        elif "oracle" in conditions and not twin:
            found[name] = "shown, not judged: the oracle could not be attacked alike"
    return found


def _only_with_settings(claim: str, scores: Scores, stream: str, metric: str) -> list[schema.Untested]:
    """A metric that was measured with other settings only: what is judged is fixed before measuring, so it is told."""
    why = f"'{metric}' is judged with its default settings; ask for it without arguments as well"
    found = sorted(name for where, name in scores if where == stream and name.startswith(f"{metric}("))
    return [schema.Untested(f"{claim}: {name} on {stream}", why) for name in found]


def forgotten(conditions: Mapping[str, Scores], data: Data, stream: str, metric: str, margin: float) -> schema.Verdict:
    """Equivalence to the oracle under the same attack; without an oracle, to text that was never seen."""
    against = "oracle" if "oracle" in conditions else "holdout"
    unseen = next((held.name for held in data.of_role("holdout")), "holdout")
    signed = conditions["after"][stream, metric].better == "lower"
    mine_of, theirs_of = clusters_of(data.get(stream)), clusters_of(data.get(stream if against == "oracle" else unseen))
    checks: list[Check] = []
    reasons: list[str] = []
    for name, scores in conditions.items():
        if name.partition("+")[0] != "after":
            continue
        mine = scores[stream, metric]
        if name != "after" and mine.status != "ok":  # it could be had without the attack: this one says nothing of it
            continue
        twin = twin_of(name)
        if against == "oracle":
            found = conditions.get(twin, {}).get((stream, metric))
        else:
            found = CHANCE if metric == "membership" else scores.get((unseen, metric))
        if found is None or mine.status != "ok" or found.status != "ok":
            nothing = "no oracle and no holdout stream to compare with"
            reasons.append(nothing if found is None else mine.reason or found.reason)
            checks.append((schema.Checked(name, verdict="INCONCLUSIVE"), None))
        elif metric == "membership":
            checks.append(compare_values(name, mine, found, margin, more=name != "after"))
        else:
            way: Way = "more" if signed and name != "after" else "both"
            paired = against == "oracle"
            checks.append(compare(name, mine, found, margin, paired=paired, way=way, clusters=(mine_of, theirs_of)))
    return worst("forgotten", metric, stream, against, checks, margin, reasons=reasons, signed=signed)


def kept(conditions: Mapping[str, Scores], data: Data, stream: str, metric: str, margin: float) -> schema.Verdict:
    """Not worse than before by more than the margin; what an attacker breaks is his own loss and does not count."""
    against = "original" if "original" in conditions else "oracle"
    mine, other = conditions["after"][stream, metric], conditions.get(against, {}).get((stream, metric))
    if other is None or other.status != "ok":
        check: Check = (schema.Checked("after", verdict="INCONCLUSIVE"), None)
        reason = other.reason if other else f"the {against} was not measured on it"
        return worst("kept", metric, stream, against, [check], margin, reasons=[reason])
    clusters = clusters_of(data.get(stream))
    check = compare("after", mine, other, margin, paired=True, way="less", clusters=(clusters, clusters))
    return worst("kept", metric, stream, against, [check], margin)


def twin_of(condition: str) -> str:
    """The oracle's condition under the same attack: "after+quantize(bits=8)" -> "oracle+quantize(bits=8)"."""
    _, plus, suffix = condition.partition("+")
    return "oracle" + plus + suffix


def changes(conditions: Mapping[str, Scores], data: Data) -> list[schema.Change]:
    """What each attack changed on the forget streams, of the metrics that are judged; n/a scores carry their reason."""
    found: list[schema.Change] = []
    before = conditions.get("after", {})
    for stream in data.of_role("forget"):
        groups = clusters_of(stream)
        for metric in FORGOTTEN:
            base = before.get((stream.name, metric))
            family: dict[str, comparison.Comparison] = {}
            for name, scores in conditions.items():
                attacked = scores.get((stream.name, metric)) if name.startswith("after+") else None
                if base is not None and attacked is not None:
                    with suppress(NotMeasured):
                        family[name] = comparison.compare(attacked, base, clusters=groups)
            adjusted = comparison.holm({name: made.p for name, made in family.items()})
            found += [
                schema.Change(name, "after", stream.name, metric, m.difference, m.ci, m.p, adjusted[name], m.test, m.n,
                              m.groups)
                for name, m in family.items()
            ]
    return found


def compare(
    name: str, mine: Score, other: Score, margin: float, *, paired: bool, way: Way = "both",
    clusters: tuple[Clusters, Clusters] = ({}, {}),
) -> Check:
    """Equivalence of two scores within a margin, from their values per example; the power comes with it.

    way: which differences beyond the margin count: "both", "less" (what is kept), "more" (what an attack brings back).
    clusters: groups of the examples of `mine` and of `other`.
    """
    try:
        test = equivalence(
            mine.per_example, other.per_example, margin=margin, paired=paired, clusters=clusters[0],
            clusters_b=clusters[1],
        )
    except NotMeasured:
        return schema.Checked(name, verdict="INCONCLUSIVE"), None
    if _one_left(mine, clusters[0]):  # the only subject an attack left says nothing of the others
        return schema.Checked(name, test.difference, None, "INCONCLUSIVE", test.n, 1), None
    low, high = test.ci90
    outcome: schema.Outcome = OUTCOMES[test.verdict]
    if way == "less":
        outcome = "PASS" if low > -margin else "FAIL" if high < -margin else "INCONCLUSIVE"
    elif way == "more":
        outcome = _no_more(low, high, margin)
    return _checked(name, test, outcome), test.power


def _one_left(mine: Score, clusters: Clusters) -> bool:
    """Whether of a stream about several subjects only one is left."""
    return len(set(clusters.values())) > 1 and len({clusters.get(name, name) for name in mine.per_example}) == 1


def _no_more(low: float, high: float, margin: float) -> schema.Outcome:
    """Of an interval of a difference: whether it is clearly at most, or clearly above, the margin."""
    return "PASS" if high < margin else "FAIL" if low > margin else "INCONCLUSIVE"


def compare_values(name: str, mine: Score, other: Score, margin: float, *, more: bool = False) -> Check:
    """The same for a score that is no mean over examples (an AUC): its error is read from the two 95 % intervals.

    more: only a difference above the margin counts.
    """
    if mine.value is None or other.value is None or mine.ci is None or other.ci is None:
        return schema.Checked(name, verdict="INCONCLUSIVE"), None
    widths = [high - low for low, high in (mine.ci, other.ci)]
    test = equivalence_of(mine.value - other.value, math.hypot(*widths) / (2 * 1.96), margin=margin, n=mine.n)
    outcome = _no_more(*test.ci90, margin) if more else OUTCOMES[test.verdict]
    return _checked(name, test, outcome), test.power


def _checked(name: str, test: Equivalence, outcome: schema.Outcome) -> schema.Checked:
    needed = test.needed_examples(POWER)
    return schema.Checked(name, test.difference, test.ci90, outcome, test.n, test.groups, needed)


def worst(
    claim: str, metric: str, stream: str, against: str, checks: Sequence[Check], margin: float, *,
    reasons: Sequence[str] = (), signed: bool = True,
) -> schema.Verdict:
    """The verdict of a claim: that of its worst condition. signed: a positive difference means more knowledge."""
    def badness(check: Check) -> tuple[int, float]:
        difference = check[0].difference or 0.0
        one_sided = signed and claim == "forgotten" and "+" in check[0].condition
        return ORDER[check[0].verdict], difference if one_sided else abs(difference)

    top, power = max(checks, key=badness)
    reason = reasons[0] if top.difference is None and reasons else _sentence(claim, top, against, signed)
    reason += f" (the worst of {len(checks)} conditions)" if len(checks) > 1 else ""
    return schema.Verdict(
        claim, metric, stream, top.verdict, top.condition, against, top.difference, top.ci, margin, power, reason,
        tuple(check for check, _ in checks),
    )


_PEOPLE = {"oracle": "the oracle", "holdout": "of text it never saw", "original": "the original"}


def _sentence(claim: str, top: schema.Checked, against: str, signed: bool) -> str:
    if top.difference is None:
        return "could not be compared"
    if top.verdict == "INCONCLUSIVE":
        return f"the interval reaches over the margin: {_more(top)}"
    if claim == "kept":
        return "kept within the margin" if top.verdict == "PASS" else "lost more than the margin"
    if top.verdict == "PASS" and "+" in top.condition and top.difference < 0:
        return f"knows no more than {_PEOPLE[against]}"
    if top.verdict == "PASS":
        return f"like {_PEOPLE[against].removeprefix('of ')} within the margin"
    if not signed:
        return f"can be told from {_PEOPLE[against].removeprefix('of ')}"
    more = f"knows clearly more than {_PEOPLE[against]}"
    return more if top.difference > 0 else more.replace("more", "less") + ": over-forgetting is a trace too"


def _more(top: schema.Checked) -> str:
    """How many examples would decide a comparison that is open, as far as that can be told."""
    if top.needed is None or top.n == 0:
        return "more examples would tell"
    if top.needed <= top.n:
        return "there are examples enough, but the difference lies near the margin itself"
    words = f"{_about(top.needed):,} examples"
    if top.groups is not None:
        words += f" of {_about(math.ceil(top.needed * top.groups / top.n)):,} subjects"
    return f"about {words} would tell, were there no difference"


def _about(number: int) -> int:
    """Rounded to two digits."""
    return int(float(f"{number:.1e}"))


def overall(verdicts: Sequence[schema.Verdict]) -> schema.Outcome | None:
    """The worst of all verdicts; None when there was no claim."""
    return max((v.verdict for v in verdicts), key=lambda outcome: ORDER[outcome], default=None)
