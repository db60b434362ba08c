"""What is worst, what to compare with, and the words that follow from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.registry import entries
from expunge.report import glossary, recovered, summary, view
from expunge.report.schema import Condition, Evidence, Measured, Untested


def _score(evidence: Evidence, condition: str, metric: str = "exact_memorization", stream: str = "forget") -> Measured:
    row = evidence.score(condition, stream, metric)
    assert row is not None
    return row


def test_the_worst_attack_is_the_one_nearest_to_what_was_known(evidence: Evidence) -> None:
    silent = replace(evidence, verdicts=())
    for metric in ("exact_memorization", "probability", "truth_ratio", "perplexity", "forget_quality"):
        worst = view.worst(silent, "forget", metric)  # the direction differs from metric to metric
        assert worst is not None
        assert worst.condition == "after+relearn(20)", metric


def test_the_verdict_decides_what_was_worst(evidence: Evidence) -> None:
    named = replace(evidence, verdicts=(replace(evidence.verdicts[0], condition="after+quantize(4)"),))
    worst = view.worst(named, "forget", "exact_memorization")
    assert worst is not None
    assert worst.condition == "after+quantize(4)"


def test_on_kept_data_the_worst_attack_moves_most(evidence: Evidence) -> None:
    worst = view.worst(evidence, "retain", "probability")
    assert worst is not None
    assert worst.condition == "after+quantize(4)"


def test_without_attacks_nothing_is_worst(bare: Evidence) -> None:
    assert view.worst(bare, "forget", "exact_memorization") is None
    assert view.probes(bare) == []


def test_an_attack_is_held_against_the_same_attack_on_the_oracle(evidence: Evidence) -> None:
    wanted = {"after": "oracle", "after+relearn(20)": "oracle+relearn(20)", "after+quantize(4)": "oracle"}
    for condition, reference in wanted.items():
        found = view.reference(evidence, _score(evidence, condition))
        assert found is not None
        assert found.condition == reference
    assert view.reference(evidence, _score(evidence, "oracle")) is None
    assert view.reference(evidence, _score(evidence, "oracle+relearn(20)")) is None


def test_without_an_oracle_only_kept_data_have_a_reference(bare: Evidence) -> None:
    assert view.reference(bare, _score(bare, "after")) is None
    kept = view.reference(bare, _score(bare, "after", stream="retain"))
    assert kept is not None
    assert kept.condition == "original"


def test_recovered_is_a_share_of_what_the_removal_took_away(evidence: Evidence) -> None:
    share = view.recovered(evidence, _score(evidence, "after+relearn(20)"))
    assert share == pytest.approx((0.312 - 0.034) / (0.973 - 0.034))


def test_recovered_compares_the_same_examples_and_nothing_else(evidence: Evidence) -> None:
    """The 24 examples that were not relearned scored 0.30 before, all 30 of them 0.40: +15 points, not +5."""
    scores = tuple(replace(row, value=0.4) if row.condition == "after" and row.metric == "exact_memorization" else
                   replace(row, value=0.45) if row.condition == "after+relearn(20)" else row for row in evidence.scores)
    paired = replace(evidence, scores=scores, changes=(replace(evidence.changes[0], difference=0.15, n=24),))
    row = _score(paired, "after+relearn(20)")
    assert view.recovered(paired, row) == pytest.approx(0.15 / (0.973 - 0.4))
    told = next(part.text for part in summary.paragraphs(paired) if part.lead == "Under attack")
    assert "+15.0 points on the same 24 examples, 26.2 % of what the removal had taken away" in told
    assert next(tile.note for tile in summary.tiles(paired) if tile.kind == "attack").endswith("Brought back: 26.2 %")
    assert recovered.attacks(paired)[0].recovered == "26.2 %"
    blind = replace(paired, changes=())
    assert view.recovered(blind, row) is None
    assert recovered.attacks(blind)[0].recovered == "n/a"
    assert "had taken away" not in " ".join(part.text for part in summary.paragraphs(blind))
    assert next(tile.note for tile in summary.tiles(blind) if tile.kind == "attack").endswith("Brought back: n/a")
    strange = replace(paired, changes=(replace(evidence.changes[0], metric="perplexity", difference=-99.0),))
    assert view.recovered(strange, _score(strange, "after+relearn(20)", "perplexity")) is None


def test_the_attack_of_the_verdict_is_not_said_to_have_brought_back_most(evidence: Evidence) -> None:
    named = replace(evidence, verdicts=(replace(evidence.verdicts[0], condition="after+quantize(4)"),))
    text, tile = (next(part.text for part in summary.paragraphs(named) if part.lead == "Under attack"),
                  summary.tiles(named)[2])
    assert text.startswith("After the attack the verdict rests on (“Rounded to 4 bits”), it ")
    assert tile.note.startswith("Rounded to 4 bits; the verdict rests on it.")
    unasked = replace(evidence, verdicts=())
    silent = next(part.text for part in summary.paragraphs(unasked) if part.lead == "Under attack")
    assert silent.startswith("After the attack that brought back most (“After 20 steps of relearning”), it ")
    most = replace(evidence.changes[0], condition="after+quantize(4)", difference=0.5)
    moved = view.worst(replace(unasked, changes=(*evidence.changes, most)), "forget", "exact_memorization")
    assert moved is not None
    assert moved.condition == "after+quantize(4)"  # by the same examples, not by the larger score


def _judged(evidence: Evidence, level: str, name: str = "after+relearn(20)") -> Evidence:
    changed = (replace(row, judged=level) if row.name == name else row for row in evidence.conditions)
    return replace(evidence, conditions=tuple(changed))


def test_what_makes_no_claim_is_never_the_worst(evidence: Evidence) -> None:
    silent = replace(evidence, verdicts=())
    twinned = evidence.conditions[3]
    assert [view.unjudged(_judged(silent, level), replace(twinned, judged=level))
            for level in ("always", "oracle", "never")] == [False, False, True]
    alone = tuple(row for row in evidence.conditions if "oracle" not in (row.kind, row.of))
    assert view.unjudged(replace(silent, conditions=alone), replace(twinned, judged="oracle"))
    lonely = replace(evidence, verdicts=evidence.verdicts[1:])  # with no twin under the same attack, and not checked
    assert view.unjudged(lonely, evidence.conditions[4])
    assert not view.unjudged(evidence, evidence.conditions[4])
    worst = view.worst(_judged(silent, "never"), "forget", "exact_memorization")
    assert worst is not None
    assert worst.condition == "after+quantize(4)"


def test_attacks_of_which_none_is_judged_are_not_said_to_be_missing(evidence: Evidence) -> None:
    aside = replace(evidence, verdicts=())
    for name in ("after+relearn(20)", "after+quantize(4)", "after+paraphrase(0)"):
        aside = _judged(aside, "never", name)
    told = next(part.text for part in summary.paragraphs(aside) if part.lead == "Under attack")
    assert told == "The attacks that were run are shown, not judged."
    assert summary.tiles(aside)[2].note == "the attacks that were run are shown, not judged"


def test_the_reason_of_a_verdict_closes_its_paragraph(evidence: Evidence) -> None:
    counted = replace(evidence.verdicts[0], reason="knows no more than the oracle (the worst of 4 conditions)")
    claim = next(part.text for part in summary.paragraphs(replace(evidence, verdicts=(counted,)))
                 if part.lead == "Claim “forgotten”")
    assert claim.endswith(" Knows no more than the oracle (the worst of 4 conditions).")


def test_conditions_that_a_name_only_counts_are_called_by_their_labels(evidence: Evidence) -> None:
    forms = [Condition(f"after+jailbreak{count}", "attack", "after", "jailbreak",
                       f"After the removal, then asked in disguise ({form})")
             for count, form in (("", "role_play"), ("[1]", "base64"), ("[2]", "reverse"), ("[3]", "reverse"))]
    many = replace(evidence, conditions=(*evidence.conditions, *forms))
    assert [view.named(many, row) for row in forms] == [
        "asked in disguise (role_play)", "asked in disguise (base64)",
        "asked in disguise (reverse): jailbreak[2]", "asked in disguise (reverse): jailbreak[3]",
    ]
    assert view.named(many, evidence.conditions[3]) == "relearn(20)"
    assert view.named(many, replace(forms[1], label="", name="after+other")) == "other"
    left = replace(many, untested=(Untested("jailbreak[1]", "shown, not judged: no oracle"),))
    assert view.untested(left) == [("asked in disguise (base64)", "shown, not judged: no oracle")]


def test_every_attack_is_explained() -> None:
    assert glossary.attack("perturb_prompt") == "Stray letters are put into the questions."
    assert [name for name in entries("attack") if not glossary.attack(name)] == []


def test_direction_of_kept_data_is_not_that_of_the_forget_stream(evidence: Evidence) -> None:
    row = replace(_score(evidence, "after", stream="retain"), better="lower")
    assert view.direction(evidence, row) == "higher"
    assert view.direction(evidence, _score(evidence, "after")) == "lower"


def test_headlines_are_the_most_telling_metrics(evidence: Evidence) -> None:
    assert view.knowledge(evidence) == ("forget", "exact_memorization")
    assert view.utility(evidence) == ("retain", "exact_memorization")
    fewer = replace(evidence, scores=tuple(row for row in evidence.scores if row.metric == "membership(min_k)"))
    assert view.knowledge(fewer) == ("forget", "membership(min_k)")
    assert view.utility(fewer) is None


def test_the_summary_of_a_failure_is_honest(evidence: Evidence) -> None:
    text = {part.lead: part for part in summary.paragraphs(evidence)}
    assert text["Before"].text == (
        "Before the removal, the model reproduced 97.3 % (between 94.3 and 100) of the answers word for word."
    )
    assert "The same attack on the twin that never saw the texts gives 11.8 %" in text["Under attack"].text
    claim = text["Claim “forgotten”"]
    assert claim.tone == "fail"
    assert "It failed. Of 2 measures, 1 failed, 1 undecided." in claim.text
    assert "by +19.4 points (between +14.2 and +24.7); up to ± 5 points counts as equal" in claim.text
    assert text["Claim “kept”"].tone == "pass"
    assert summary.opening(evidence).startswith("The removal did not hold. The claim “forgotten” failed")


def test_the_summary_of_an_open_question_is_no_weak_pass(undecided: Evidence) -> None:
    claim = next(part for part in summary.paragraphs(undecided) if part.lead == "Claim “forgotten”")
    assert claim.tone == "open"
    assert "This is not a weak pass." in claim.text
    assert "a chance of only 41 %" in claim.text


def test_the_summary_of_a_pass(passed: Evidence) -> None:
    assert summary.opening(passed) == (
        "The removal held. Every claim stood in the worst case that was looked at."
    )


def test_what_is_absent_is_said(bare: Evidence) -> None:
    text = " ".join(part.text for part in summary.paragraphs(bare))
    assert "No attack on the removal was run" in text
    assert "There was no twin that never saw these texts" in text
    assert [tile.value for tile in summary.tiles(bare)] == ["97.3 %", "3.4 %", "–", "–"]
    nothing = replace(bare, scores=())
    assert "No measure of the removed data has a value" in " ".join(p.text for p in summary.paragraphs(nothing))


def test_glossary_falls_back_to_the_name_and_knows_variants() -> None:
    assert glossary.describe("my_metric") == "my_metric"
    assert glossary.title("my_metric") == "My metric"
    assert glossary.phrase("my_metric").format(value="3") == "scored 3 on My metric"
    assert glossary.describe("membership(min_k)") == glossary.describe("membership")
    assert glossary.title("membership(min_k)") == "Membership inference (min_k)"
    assert glossary.phrase("odd{x}").format(value="3") == "scored 3 on Odd x"
    assert glossary.attack("relearn+quantize").startswith("The model is trained")
    assert glossary.attack(None) == ""
    assert glossary.attack_title("relearn(lr=1e+5)+soft_prompt") == "Relearning (lr=1e+5), then soft prompt"
