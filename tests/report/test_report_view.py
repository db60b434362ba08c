"""What is worst, what to compare with, and the words that follow from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.report import glossary, summary, view
from expunge.report.schema import Evidence, Measured


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
