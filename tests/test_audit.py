"""The audit: it must not believe a removal that did not happen, nor doubt a model that never knew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.attacked import describe
from expunge.audit import Audit
from expunge.errors import DataError
from expunge.metrics.stats import mean_score
from expunge.models import weights_hash
from expunge.recipe import AuditSpec
from expunge.registry import bind
from expunge.report import schema
from expunge.types import Cost, Data, Event, Example, Score, Stream
from expunge.verdicts import changes, compare, compare_values, judge, not_judged, overall, twin_of, worst
from support.learned import knows, short_data

CLAIMS = ("exact_memorization", "extraction_strength", "probability")


def spec(*attacks, metrics=CLAIMS, margin=0.3) -> AuditSpec:
    return AuditSpec(
        tuple(bind("metric", one) for one in metrics), tuple(bind("attack", one) for one in attacks), margin=margin
    )


def audited(after, data=None, *, original=None, oracle=None, of=None) -> Audit:
    made = Audit(data or short_data(), of or spec())
    loaders = {"original": original, "oracle": oracle}
    made.run(after, **{name: lambda found=found: found for name, found in loaders.items() if found is not None})
    return made


def outcomes(audit: Audit) -> dict[tuple[str, str], str]:
    return {(v.claim, v.metric): v.verdict for v in audit.verdicts()}


def test_doing_nothing_fails():
    """The model still says every forget answer; its oracle says none: exact memorization 1 against 0."""
    model, oracle = knows("forget", "retain"), knows("retain")
    audit = audited(model, original=model, oracle=oracle)
    found = outcomes(audit)
    assert {found["forgotten", metric] for metric in CLAIMS} == {"FAIL"}
    assert {found["kept", metric] for metric in ("exact_memorization", "probability")} == {"PASS"}
    assert overall(audit.verdicts()) == "FAIL"
    (exact,) = [v for v in audit.verdicts() if (v.claim, v.metric) == ("forgotten", "exact_memorization")]
    assert exact.difference == 1.0
    assert "knows clearly more than the oracle" in exact.reason


def test_the_oracle_against_itself_passes_where_twelve_examples_can_tell():
    """All differences are 0; the rule of three leaves 3/12 = 0.25 open: inside a margin of 0.3, outside 0.1."""
    oracle = knows("retain")
    wide = audited(oracle, original=knows("forget", "retain"), oracle=oracle, of=spec(margin=0.3))
    assert set(outcomes(wide).values()) == {"PASS"}
    assert overall(wide.verdicts()) == "PASS"
    narrow = audited(oracle, original=oracle, oracle=oracle, of=spec(margin=0.1))
    assert set(outcomes(narrow).values()) == {"INCONCLUSIVE"}


def test_damage_to_what_should_stay_fails():
    """A model that knows only the forget set has lost the retain set that the original knew."""
    audit = audited(knows("forget"), original=knows("forget", "retain"), oracle=knows("retain"))
    assert outcomes(audit)["kept", "exact_memorization"] == "FAIL"
    improved = audited(knows("forget", "retain"), original=knows("forget"), oracle=knows("forget", "retain"))
    assert outcomes(improved)["kept", "exact_memorization"] == "PASS"  # better than before is not damage


def test_without_an_oracle_text_that_was_never_seen_is_the_measure():
    audit = audited(knows("forget", "retain"))
    assert all(v.against == "holdout" and v.verdict == "FAIL" for v in audit.verdicts() if v.claim == "forgotten")
    never = audited(knows("retain"), of=spec(metrics=("exact_memorization",), margin=0.6))
    assert outcomes(never)["forgotten", "exact_memorization"] == "PASS"


def test_a_holdout_stream_is_known_by_its_role_not_its_name():
    data = short_data()
    data["unseen"] = replace(data.pop("holdout"), name="unseen")
    assert set(outcomes(audited(knows("forget"), data)).values()) == {"FAIL"}


def test_without_oracle_and_holdout_nothing_can_be_concluded():
    data = Data(forget=short_data()["forget"])
    audit = audited(knows("retain"), data)
    assert set(outcomes(audit).values()) == {"INCONCLUSIVE"}
    assert {v.reason for v in audit.verdicts()} == {"no oracle and no holdout stream to compare with"}
    told = {one.what for one in audit.not_tested()}
    assert {"comparison with an oracle", "comparison with the original", "membership inference"} <= told


def test_the_worst_attack_decides():
    """Relearning a fifth brings nothing back to a model that never knew; one attack that fails fails the claim."""
    good = (schema.Checked("after", 0.0, (-0.1, 0.1), "PASS"), 0.9)
    bad = (schema.Checked("after+relearn", 0.4, (0.35, 0.45), "FAIL"), 0.8)
    unsure = (schema.Checked("after+quantize", 0.9, (-0.5, 1.0), "INCONCLUSIVE"), 0.1)
    mildly = (schema.Checked("after+paraphrase", -0.35, (-0.4, -0.31), "FAIL"), 0.7)
    for checked, decides in (((good,), good), ((good, unsure), unsure), ((bad, unsure, good, mildly), bad)):
        verdict = worst("forgotten", "probability", "forget", "oracle", checked, 0.3)
        assert (verdict.verdict, verdict.condition) == (decides[0].verdict, decides[0].condition)
        assert verdict.power == decides[1]
        assert len(verdict.checked) == len(checked)
    over = worst("forgotten", "probability", "forget", "oracle", [mildly], 0.3)
    assert "over-forgetting" in over.reason
    assert overall([]) is None


def test_under_an_attack_only_knowing_more_counts():
    """What an attack breaks is the attacker's loss: less than the oracle is a trace without an attack alone."""
    high, low = (
        mean_score({f"x{i}": value for i in range(40)}, unit="share", better="lower") for value in (0.9, 0.1)
    )
    assert compare("after+x", low, high, 0.1, paired=True, way="more")[0].verdict == "PASS"
    assert compare("after+x", high, low, 0.1, paired=True, way="more")[0].verdict == "FAIL"
    assert compare("after", low, high, 0.1, paired=True)[0].verdict == "FAIL"
    data = short_data()

    def judged(**scores):
        return judge({name: {("forget", "exact_memorization"): score} for name, score in scores.items()}, data, 0.3)[0]

    know, not_ = (
        mean_score({f"f/{i}": value for i in range(12)}, unit="share", better="lower") for value in (1.0, 0.0)
    )
    fine = {"oracle": not_, "after": not_}
    (broken,) = [v for v in judged(**fine, **{"oracle+x": know, "after+x": not_}) if v.claim == "forgotten"]
    assert broken.verdict == "PASS"
    assert broken.condition == "after"  # of two that pass, the one that knows most
    assert broken.reason == "like the oracle within the margin (the worst of 2 conditions)"
    (opened,) = [v for v in judged(**fine, **{"oracle+x": not_, "after+x": know}) if v.claim == "forgotten"]
    assert opened.verdict == "FAIL"


def test_a_metric_that_an_attack_leaves_nothing_of_is_not_judged_under_it_and_told():
    known = mean_score({f"f/{i}": 0.0 for i in range(12)}, unit="share", better="lower")
    scores = {name: {("forget", "rouge"): known} for name in ("oracle", "after", "oracle+x", "after+x")}
    scores["after+x"] = {("forget", "rouge"): Score.missing("no example of 'forget' can be asked like that")}
    verdicts, untested = judge(scores, short_data(), 0.3)
    (claim,) = [v for v in verdicts if v.claim == "forgotten"]
    assert (claim.verdict, [check.condition for check in claim.checked]) == ("PASS", ["after"])
    assert [one.why for one in untested if one.what == "rouge on forget under x"] == [
        "no example of 'forget' can be asked like that"
    ]


def test_the_only_subject_an_attack_leaves_says_nothing_of_the_others():
    mine, other = (mean_score({f"f/{i}": 0.0 for i in range(12)}, unit="share", better="lower") for _ in range(2))
    about = {f"f/{i}": "one" if i < 12 else "two" for i in range(24)}
    check, power = compare("after+x", mine, other, 0.3, paired=True, clusters=(about, about))
    assert (check.verdict, check.groups, power) == ("INCONCLUSIVE", 1, None)
    assert compare("after+x", mine, other, 0.3, paired=True)[0].verdict == "PASS"


def test_streams_of_a_role_under_other_names_are_attacked():
    data = short_data()
    data = Data(people=replace(data["forget"], name="people"), keep=replace(data["retain"], name="keep"))
    audit = audited(knows("forget"), data, of=spec("paraphrase", "quantize", metrics=("probability",)))
    assert not audit.refused
    assert audit.states["after+paraphrase"].scores["people", "probability"].n == 12


def test_an_attack_that_is_told_answers_claims_nothing_without_an_oracle_under_the_same():
    names = ("after", "after+told", "after+never", "after+plain", "oracle", "oracle+told", "oracle+never")
    one = mean_score({"f/0": 1.0}, unit="share", better="lower")
    scores = {name: {("forget", "exact_memorization"): one} for name in names}
    levels = {"after+told": "oracle", "after+never": "never", "after+plain": "always"}
    without = {name: found for name, found in scores.items() if not name.startswith("oracle")}
    assert set(not_judged(without, levels)) == {"after+told", "after+never"}
    with_oracle = not_judged(scores, levels)
    assert set(with_oracle) == {"after+never", "after+plain"}  # the last one's twin is missing
    assert "oracle could not be attacked alike" in with_oracle["after+plain"]
    verdicts, untested = judge(scores, short_data(), 0.3, levels)
    claimed = [v for v in verdicts if v.claim == "forgotten"]
    assert {check.condition for v in claimed for check in v.checked} == {"after", "after+told"}
    assert {one.what for one in untested} >= {"never", "plain"}


@pytest.mark.filterwarnings("ignore:attacks.relearn.lr")  # two steps at the default rate move little
def test_attacks_are_conditions_of_after_and_of_the_oracle():
    attacks = ({"use": "quantize", "bits": 8}, {"use": "relearn", "steps": 2}, "paraphrase")
    before = weights_hash(knows("forget"))
    audit = audited(knows("forget"), oracle=knows("retain"), of=spec(*attacks, metrics=("exact_memorization",)))
    labels = ("quantize(bits=8)", "relearn(steps=2)", "paraphrase")
    names = {of: [of, *(f"{of}+{label}" for label in labels)] for of in ("oracle", "after")}
    assert list(audit.states) == names["oracle"] + names["after"]
    assert twin_of("after+quantize(bits=8)") == "oracle+quantize(bits=8)"
    (verdict,) = [v for v in audit.verdicts() if v.claim == "forgotten"]
    assert [check.condition for check in verdict.checked] == [name for name in audit.states if name.startswith("after")]
    relearned = audit.states["after+relearn(steps=2)"]
    assert relearned.condition.cost.steps == 2
    assert relearned.scores["forget", "exact_memorization"].n == 12 - round(0.2 * 12)  # the shown ones are not scored
    assert weights_hash(knows("forget")) == before
    assert {one.what for one in audit.not_tested()}.isdisjoint({"quantize", "relearn", "paraphrase"})


def test_an_attack_without_anything_to_use_is_listed_as_not_tested():
    data = short_data()
    bare = tuple(replace(example, paraphrases=()) for example in data["forget"].examples)
    data["forget"] = Stream("forget", "forget", bare)
    audit = audited(knows("forget"), data, of=spec("paraphrase"))
    assert any(one.what == "paraphrase" and "paraphrase" in one.why for one in audit.not_tested())
    audit = audited(knows("forget"), Data(retain=data["retain"]), of=spec("paraphrase"))  # nobody named a stream
    assert any(one.what == "paraphrase" and one.why == "no forget stream was given" for one in audit.not_tested())
    with pytest.raises(DataError, match=r"attacks\.paraphrase\.on: no stream 'people'"):
        audited(knows("forget"), data, of=spec({"use": "paraphrase", "on": "people"}))


def test_what_cannot_be_computed_is_listed_with_its_reason():
    """Nothing is skipped: every metric has a row on every stream it applies to, in every condition."""
    metrics = ("exact_memorization", "forget_quality", "membership", "truth_ratio", "rouge")
    data = Data(forget=short_data()["forget"])
    audit = audited(knows("retain"), data, of=spec(metrics=metrics))
    rows = {row.metric: row for row in audit.rows()}
    assert set(rows) == set(metrics)
    assert rows["exact_memorization"].status == "ok"
    for name, reason in (("forget_quality", "no oracle"), ("membership", "no stream 'holdout'")):
        assert (rows[name].status, rows[name].value) == ("n/a", None)
        assert reason in rows[name].reason


def test_the_originals_reference_is_the_oracle_that_came_later():
    """forget_quality needs the oracle's tables; the original is measured first and scored again."""
    data = short_data()
    metrics = ("forget_quality",)
    audit = Audit(data, spec(metrics=metrics))
    audit.measure(knows("forget"), "original")
    assert audit.states["original"].scores["forget", "forget_quality"].status == "n/a"
    audit.run(knows("retain"), oracle=lambda: knows("retain"))
    values = {name: audit.states[name].scores["forget", "forget_quality"].value for name in audit.states}
    assert values["oracle"] == values["after"] == 1.0  # the very same ratios
    assert values["original"] < 1.0


def score(*values) -> Score:
    return Score(sum(values) / len(values), None, {str(i): value for i, value in enumerate(values)}, len(values))


def test_comparisons_are_by_example_and_one_sided_for_what_is_kept():
    """Differences 0.5 +- 0.01 with a margin of 0.1: different; for what is kept, higher is fine and lower is not."""
    low, high = score(*[0.2, 0.22, 0.18, 0.2] * 6), score(*[0.7, 0.73, 0.67, 0.7] * 6)
    assert compare("x", high, low, 0.1, paired=True)[0].verdict == "FAIL"
    assert compare("x", low, low, 0.2, paired=False)[0].verdict == "PASS"
    assert compare("x", high, low, 0.1, paired=True, way="less")[0].verdict == "PASS"
    assert compare("x", low, high, 0.1, paired=True, way="less")[0].verdict == "FAIL"
    stranger = replace(low, per_example={"else": 1.0})
    assert compare("x", low, stranger, 0.1, paired=True)[0].verdict == "INCONCLUSIVE"
    check, power = compare("x", high, low, 0.1, paired=True)
    assert check.difference == pytest.approx(0.5)
    assert 0 <= power <= 1


def test_attacks_are_described_for_people():
    assert describe(bind("attack", {"use": "relearn", "steps": 7})) == "7 steps of relearning on 20% of forget"
    assert describe(bind("attack", "quantize")) == "rounding to 4 bits"


def test_the_bill_of_an_attack_is_its_own():
    """What happened to the subject before the attack is not the attack's cost."""
    trained = knows("forget").after(Event("stage", "forget", cost=Cost(steps=1000)))
    audit = audited(trained, of=spec({"use": "relearn", "steps": 3}, metrics=("exact_memorization",)))
    assert audit.states["after+relearn(steps=3)"].condition.cost.steps == 3


def test_membership_counts_as_forgotten_or_not():
    """AUC 0.99 (0.98 to 1.00) against the oracle's 0.5 (0.45 to 0.55): clearly different. Near it: equivalent."""
    told, blind = Score(0.99, (0.98, 1.0), unit="AUC"), Score(0.5, (0.45, 0.55), unit="AUC")
    assert compare_values("after", told, blind, 0.1)[0].verdict == "FAIL"
    assert compare_values("after", blind, Score(0.51, (0.46, 0.56)), 0.1)[0].verdict == "PASS"
    assert compare_values("after", blind, Score(0.51, (0.2, 0.8)), 0.1)[0].verdict == "INCONCLUSIVE"


def test_what_cannot_be_claimed_is_listed_with_its_reason():
    scores = {"after": {("forget", "truth_ratio"): Score.missing("no example of 'forget' has a field 'perturbed'")}}
    data = Data(forget=Stream("forget", "forget", ()))
    found, unclaimed = judge(scores, data, 0.1)
    assert found == []
    assert {(one.what, one.why) for one in unclaimed} == {
        ("forgotten: truth_ratio on forget", "no example of 'forget' has a field 'perturbed'"),
        ("what was kept", "no retain stream was given"),
    }


def test_a_metric_with_other_settings_alone_is_not_judged_and_that_is_told():
    score = mean_score({"a": 0.0, "b": 1.0}, "share", "lower")
    scores = {("forget", "rouge(kind=rouge1)"): score, ("forget", "membership"): score,
              ("forget", "membership(score=min_k)"): score}
    data = Data(forget=Stream("forget", "forget", ()))
    found, unclaimed = judge({"after": scores}, data, 0.1)
    assert [one.metric for one in found] == ["membership"]
    told = {one.what: one.why for one in unclaimed if one.what.startswith("forgotten")}
    assert set(told) == {"forgotten: rouge(kind=rouge1) on forget"}
    assert "default settings" in told["forgotten: rouge(kind=rouge1) on forget"]


def grouped(num_people: int, num_questions: int, shift: float = 0.0) -> tuple[Score, Stream]:
    """Answers of people who differ, `shift` above 0.3; every question of a person has the same value."""
    examples = [Example(f"{p}/{q}", "", "x", subject=f"p{p}") for p in range(num_people) for q in range(num_questions)]
    values = {one.id: 0.3 + shift + 0.2 * (-1) ** int(one.subject[1:]) for one in examples}
    return mean_score(values, "share", "lower"), Stream("forget", "forget", tuple(examples))


def test_questions_to_one_person_count_together():
    """8 people of 25 questions each, all equal to the oracle but for one in five points up or down: 200 questions
    would decide it, 8 people do not; the reason tells how many would."""
    mine, stream = grouped(8, 25)
    twin = mean_score(dict.fromkeys(mine.per_example, 0.3), "share", "lower")
    conditions = {"after": {("forget", "probability"): mine}, "oracle": {("forget", "probability"): twin}}
    (over_people,), _ = judge(conditions, Data(forget=stream), 0.1)
    loose = replace(stream, examples=tuple(replace(one, subject=None) for one in stream.examples))
    (over_questions,), _ = judge(conditions, Data(forget=loose), 0.1)
    assert (over_questions.verdict, over_people.verdict) == ("PASS", "INCONCLUSIVE")
    (check,) = over_people.checked
    assert (check.n, check.groups) == (200, 8)
    assert check.needed > 200
    assert check.needed == 1006  # t(39.2) = 1.6846, z = 1.2816, se = 0.2 / sqrt(7): 200 (2.9662 se / 0.1)^2
    assert over_people.reason == (
        "the interval reaches over the margin: about 1,000 examples of 41 subjects would tell, were there no difference"
    )
    alone = grouped(1, 20)
    assert compare("x", alone[0], alone[0], 0.2, paired=True)[0].verdict == "PASS"  # one person: by questions


def test_what_is_kept_and_what_is_held_against_a_holdout_goes_by_people_as_well():
    mine, stream = grouped(8, 25)
    before = mean_score(dict.fromkeys(mine.per_example, 0.3), "share", "lower")
    data = Data(retain=replace(stream, name="retain", role="retain"))
    conditions = {"after": {("retain", "probability"): mine}, "original": {("retain", "probability"): before}}
    (verdict,), _ = judge(conditions, data, 0.1)
    assert (verdict.claim, verdict.verdict, verdict.checked[0].groups) == ("kept", "INCONCLUSIVE", 8)
    unseen = replace(stream, name="unseen", role="holdout",
                     examples=tuple(replace(one, id=f"u/{one.id}") for one in stream.examples))
    other = replace(mine, per_example={f"u/{key}": value for key, value in mine.per_example.items()})
    conditions = {"after": {("forget", "probability"): mine, ("unseen", "probability"): other}}
    (verdict,), _ = judge(conditions, Data(forget=stream, unseen=unseen), 0.15)
    assert (verdict.against, verdict.verdict, verdict.checked[0].groups) == ("holdout", "INCONCLUSIVE", 8)
    wide = verdict.checked[0].ci[1]
    (verdict,), _ = judge(conditions, Data(forget=stream, unseen=replace(unseen, examples=())), 0.15)
    assert verdict.checked[0].ci[1] < 0.8 * wide  # unseen texts of nobody count one by one


def test_an_open_verdict_says_what_would_settle_it():
    """As many examples as are needed and still open: the difference itself lies at the margin."""
    near = score(*[0.30, 0.32, 0.28, 0.31] * 10)
    low = score(*[0.2] * 40)
    check, power = compare("x", near, low, 0.1, paired=True)
    assert check.verdict == "INCONCLUSIVE"
    assert power > 0.9
    verdict = worst("forgotten", "probability", "forget", "oracle", [(check, power)], 0.1)
    assert "the difference lies near the margin itself" in verdict.reason
    unknown = (schema.Checked("x", 0.1, (0.0, 0.2), "INCONCLUSIVE"), 0.1)
    assert "more examples would tell" in worst("forgotten", "rouge", "forget", "oracle", [unknown], 0.1).reason


def test_what_an_attack_changed_is_tested_by_example_and_corrected_for_the_number_of_attacks():
    """12 answers, none known after the removal: relearning brings 9 back (p = 2/512), rounding none (p = 1); Holm
    doubles the smaller. What is n/a, and streams that are kept, have no row."""
    data = short_data()
    key, kept_key = ("forget", "exact_memorization"), ("retain", "exact_memorization")

    def state(*values) -> dict[tuple[str, str], Score]:
        return {key: score(*values), kept_key: score(1.0, 0.0), ("forget", "rouge"): Score.missing("no text")}

    conditions = {
        "after": state(*[0.0] * 12), "oracle": state(*[0.0] * 12), "oracle+relearn": state(*[1.0] * 12),
        "after+relearn": state(*[1.0] * 9, 0.0, 0.0, 0.0), "after+quantize": state(*[0.0] * 12),
    }
    relearned, rounded = changes(conditions, data)
    assert (relearned.condition, relearned.against) == ("after+relearn", "after")
    assert (relearned.difference, relearned.p, relearned.adjusted) == (0.75, 2 / 512, 4 / 512)
    assert (relearned.test, relearned.n, relearned.groups) == ("mcnemar", 12, None)
    assert (rounded.p, rounded.adjusted) == (1.0, 1.0)


def test_an_audit_groups_by_subject_and_writes_it_down():
    """Twelve forget questions about four people: every mean has four groups, in the scores and in their rows."""
    data = short_data()
    people = tuple(replace(one, subject=f"p{i // 3}") for i, one in enumerate(data["forget"].examples))
    data["forget"] = Stream("forget", "forget", people)
    audit = audited(knows("retain"), data, oracle=knows("retain"), of=spec("quantize", metrics=("probability",)))
    groups = {row.stream: row.groups for row in audit.rows() if row.condition == "after"}
    assert groups["forget"] == 4
    assert groups["retain"] is None
    assert [row.condition for row in audit.changes()] == ["after+quantize"]
