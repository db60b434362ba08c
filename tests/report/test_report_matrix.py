"""The attack matrix: what is compared with what, in which margins, and that nothing of it needs colour or a script."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.report import html, matrix, recovered, summary, view, yardstick
from expunge.report.families import family, growing
from expunge.report.layers import layers, likely
from expunge.report.schema import (
    Condition,
    ConditionCost,
    Evidence,
    Measured,
    Recovery,
    ResidueGrid,
    ResidueMap,
    Saving,
    StreamCount,
    load,
)


def _score(evidence: Evidence, condition: str, metric: str = "exact_memorization", stream: str = "forget") -> Measured:
    row = evidence.score(condition, stream, metric)
    assert row is not None
    return row


def _away(evidence: Evidence, value: float, metric: str = "exact_memorization") -> yardstick.Distance:
    """The distance of the score after the removal, were it `value`."""
    rows = tuple(replace(row, value=value, ci=None) if (row.condition, row.metric, row.stream) ==
                 ("after", metric, "forget") else row for row in evidence.scores)
    changed = replace(evidence, scores=rows)
    found = yardstick.distance(changed, _score(changed, "after", metric))
    assert found is not None
    return found


# -- the yardstick ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("margins", "level", "sign"), [
    (0.0, 0, "≈"), (0.5, 0, "≈"), (0.8, 1, "≈"), (1.0, 1, "≈"), (-1.0, 1, "≈"), (1.5, 2, "▲"), (-1.2, 2, "▼"),
    (2.0, 2, "▲"), (3.9, 3, "▲▲"), (4.5, 4, "▲▲▲"), (-40.0, 4, "▼▼▼"),
])
def test_tint_and_sign_count_margins(evidence: Evidence, margins: float, level: int, sign: str) -> None:
    """The oracle has 0.021, the margin of this claim is 0.05."""
    found = _away(evidence, 0.021 + 0.05 * margins)
    assert (found.level, found.sign) == (level, sign)
    assert found.margins == pytest.approx(abs(margins))


def test_margins_of_other_scales(evidence: Evidence) -> None:
    """Perplexity: a margin of 5 % is 5 % of it; p-values have steps of their own; a ratio has the margin agreed."""
    assert _away(evidence, 8.91 * 1.05**3, "perplexity").margins == pytest.approx(3.0)
    assert [_away(evidence, p, "forget_quality").level for p in (0.9, 0.04, 1e-4, 1e-9)] == [0, 2, 3, 4]
    assert _away(evidence, 0.683 + 2 * 0.08, "truth_ratio").margins == pytest.approx(2.0)
    assert _away(evidence, math.inf, "perplexity").told == "many margins above the oracle"
    bits = replace(evidence, scores=tuple(replace(row, unit="bits") for row in evidence.scores))
    assert yardstick.step(bits, "forget", "probability", "bits") == (
        pytest.approx(0.05 * (0.9614 - 0.1123)), "± 5 % of the way from before to the oracle",
    )
    alone = replace(bits, conditions=evidence.conditions[2:])
    assert yardstick.step(alone, "forget", "probability", "bits") is None


def test_an_attack_is_held_against_its_twin_and_else_the_oracle(evidence: Evidence) -> None:
    kinds = {name: yardstick.yardstick(evidence, _score(evidence, name))
             for name in ("after", "after+relearn(20)", "after+quantize(4)", "original")}
    assert {name: found.kind if found else None for name, found in kinds.items()} == {
        "after": "oracle", "after+relearn(20)": "twin", "after+quantize(4)": "oracle", "original": "oracle",
    }
    assert yardstick.yardstick(evidence, _score(evidence, "oracle")) is None


def test_without_an_oracle_unseen_text_then_guessing_then_the_original(bare: Evidence) -> None:
    unseen = tuple(replace(row, stream="held", value=0.02) for row in bare.scores if row.metric == "exact_memorization"
                   and row.stream == "forget")
    held = replace(bare, scores=bare.scores + unseen, streams=(*bare.streams, StreamCount("held", "holdout", 200)))
    found = yardstick.yardstick(held, _score(held, "after"))
    assert found is not None
    assert (found.kind, found.value) == ("holdout", 0.02)
    guess = yardstick.yardstick(bare, _score(bare, "after", "membership(min_k)"))
    assert guess is not None
    assert (guess.kind, guess.value) == ("chance", 0.5)
    near = yardstick.distance(bare, replace(_score(bare, "after"), value=0.97))
    far = yardstick.distance(bare, _score(bare, "after"))
    assert near is not None
    assert far is not None
    assert (near.yardstick.kind, near.level, near.sign) == ("original", 4, "≈")  # like before is what must not be
    assert (far.level, far.sign) == (0, "▼▼▼")
    assert "near is bad" in html.render(bare)
    assert "from texts it never saw or guessing, in margins" in html.render(held)


# -- the matrix ------------------------------------------------------------------------------------------------
def test_rows_are_states_and_columns_measures_judged_ones_first(large: Evidence) -> None:
    (sheaf,) = matrix.under_attack(large)
    (judged,) = sheaf.judged
    assert [column.name for column in judged.columns] == [
        "exact_memorization", "probability", "extraction_strength", "rouge", "truth_ratio", "membership(min_k)",
    ]
    assert [len(one.columns) for one in sheaf.others] == [8, 8]  # of sixteen, at most ten side by side
    assert [one.caption for one in sheaf.others] == [f"“forget”: further measures, {n} of 2" for n in (1, 2)]
    assert sheaf.missing == (("Measure 14", "no spans"),)
    lines = [line.name for group in judged.groups for line in group.lines]
    assert lines[:4] == ["original", "oracle", "after", "after+relearn(steps=5)"]
    assert len(lines) == 28
    assert {group.title: len(group.lines) for group in judged.groups if group.title} == {
        "Relearning": 6, "Rounding": 2, "Suffix search": 3, "Jailbreak": 3, "Sampling": 2, "Pruning": 2, "Noise": 2,
    }


def test_a_cell_says_in_words_what_it_shows_in_colour(large: Evidence) -> None:
    (sheaf,) = matrix.under_attack(large)
    line = next(line for group in sheaf.judged[0].groups for line in group.lines if "steps=20)" in line.name)
    spot = line.spots[2]
    assert (spot.value, spot.interval, spot.level, spot.sign, spot.mark) == ("36.0 %", "34.0–38.0", 3, "▲▲", "✗")
    assert spot.told == (
        "20 steps of relearning on 20% of it. Extraction strength: 36.0 % (34.0–38.0), 200 examples of 20 subjects. "
        "The oracle under the same attack: 6.0 % (4.0–8.0); this is 3.0 margins above it. "
        "This comparison failed."
    )
    assert (line.label, line.cost, line.verdict) == ("20 steps of relearning on 20% of it", "20 steps, 3.00 s", "FAIL")


def test_an_attack_that_does_not_fit_says_why_once(large: Evidence, large_page: str) -> None:
    assert [label for label, _ in recovered.unfit(large)] == [
        "The answer begun for it: prefill", "A talk of three turns: multi_turn",
    ]
    row = re.search(r'<tr>\s*<th scope="row" title="after\+prefill">.*?</tr>', large_page, re.S)
    assert row is not None
    assert row.group().count("no chat template") == 2  # in the cell and in its tooltip
    assert 'colspan="7"' in row.group()
    prefill = next(condition for condition in large.conditions if condition.name == "after+prefill")
    assert view.unfit(large, prefill) == "the tokenizer has no chat template"
    assert all(view.unfit(large, row) is None for row in large.conditions if row.kind != "attack")
    assert "after+prefill" not in {probe.attacked.name for probe in view.tried(large)}


def test_reasons_of_single_cells_are_footnotes_told_once(large: Evidence, large_page: str) -> None:
    (sheaf,) = matrix.under_attack(large)
    (judged,) = sheaf.judged
    notes = {spot.note for group in judged.groups for line in group.lines for spot in line.spots if spot.note}
    assert notes == set(range(1, len(judged.notes) + 1))
    assert len(set(judged.notes)) == len(judged.notes)
    text = large_page
    for number, reason in enumerate(judged.notes, 1):
        assert f'href="#{judged.id}-note-{number}"' in text
        assert f'id="{judged.id}-note-{number}">{reason.replace("<", "&lt;").replace(">", "&gt;")}</li>' in text


def test_tables_are_tables(large_page: str) -> None:
    for table in re.findall(r'<table class="cross">.*?</table>', large_page, re.S):
        assert table.count("<caption") == 1
        heads = len(re.findall(r'<th scope="col"', table))
        for row in re.findall(r"<tr[^>]*>.*?</tr>", table.split("</thead>")[1], re.S):
            assert len(re.findall(r'<th scope="row', row)) == 1
            spans = [int(number) for number in re.findall(r'colspan="(\d+)"', row)]
            assert len(re.findall(r"<t[hd]", row)) + sum(spans) - len(spans) == heads


def test_every_score_of_every_attack_stands_somewhere(large: Evidence, large_page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", large_page)
    for row in large.scores:
        if row.value is not None:
            assert f"{100 * row.value:.1f} %" in text or f"{row.value:.3g}" in text, row


def test_many_attacks_are_folded_and_few_are_not(evidence: Evidence, large: Evidence, large_page: str) -> None:
    assert "17 more attacks" in large_page
    assert "Of the attacks only the 3 that brought back most are named." in large_page
    assert "more attacks" not in html.render(evidence)
    rows = recovered.attacks(large)
    gravity = [matrix.GRAVITY[row.verdict] for row in rows]
    assert gravity == sorted(gravity)
    assert "attack_0, attack_1, attack_2" in large_page


# -- families --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "wanted"), [
    ("after+relearn", "relearn"), ("after+relearn[3]", "relearn"), ("after+relearn(steps=5)", "relearn"),
    ("oracle+relearn(steps=5,lr=0.1)[2]", "relearn(lr=0.1)"),
    ("after+relearn(lr=0.1,budgets=(5, 10))+quantize(bits=8)[1]", "relearn(lr=0.1)+quantize(bits=8)"),
    ("after+gcg(words=[a,b],queries=9)", "gcg(words=[a,b])"), ("after+relearn(20)", "relearn(20)"),
    ("after+sampling(num=10)+relearn(num=8,at=(1, 2))", "sampling+relearn(num=8)"),
])
def test_a_family_is_an_attack_without_its_budget(name: str, wanted: str) -> None:
    assert family(Condition(name, "attack", "after", "relearn")) == wanted


def _spent(*costs: ConditionCost, sweep: bool = False) -> list[Condition]:
    names = [f"after+a[{n}]" if sweep else f"after+a(steps={n})" for n in range(len(costs))]
    return [Condition(name, "attack", "after", "a", cost=cost) for name, cost in zip(names, costs, strict=True)]


def test_what_grows() -> None:
    assert growing(_spent(ConditionCost(steps=5, queries=9), ConditionCost(steps=10, queries=9))) == "steps"
    assert growing(_spent(ConditionCost(queries=9), ConditionCost(queries=90))) == "queries"
    assert growing(_spent(ConditionCost(tokens=9), ConditionCost(tokens=90))) == "tokens"
    assert growing(_spent(ConditionCost(tokens=9), ConditionCost(tokens=9))) is None
    assert growing([]) is None


def test_a_sweep_over_settings_is_no_growing_budget() -> None:
    """Temperatures tried one after another are charged for those before; steps of one search are real."""
    assert growing(_spent(ConditionCost(queries=9), ConditionCost(queries=18), sweep=True)) is None
    searched = _spent(ConditionCost(queries=9), ConditionCost(steps=5, queries=18), ConditionCost(steps=9), sweep=True)
    assert growing(searched) == "steps"


# -- curves and layers -----------------------------------------------------------------------------------------
def test_savings_in_words() -> None:
    assert recovered.ratio(Saving(10, 0.4, 4.2, (3.1, 6.0))) == "4.2 × (3.1–6.0)"
    assert recovered.ratio(Saving(10, 0.4, 4.0, (3.1, math.inf), censored=True)) == "≥ 4.0 × (3.1 or more)"
    assert recovered.ratio(Saving(10, 0.4, 4.2)) == "4.2 ×"
    assert recovered.ratio(Saving(10, 0.4, 2.0, (0.0, math.inf), censored=True)) == "≥ 2.0 × (may be chance)"
    assert recovered.ratio(Saving(20, 0.4, 1.0, (0.0, math.inf), censored=True)) == "–"


def test_a_censored_last_point_says_nothing(large: Evidence) -> None:
    """With 80 steps each, the oracle does not get there: no more is known than that it is not cheaper."""
    last = Saving(80, 0.97, 1.0, (0.9, math.inf), True)
    one = replace(large.recoveries[0], savings=(last,))
    drawn = recovered.curve(large, one)
    assert drawn.said == ""
    assert [saved for *_, saved in drawn.rows] == ["–"] * 6
    assert "No savings can be told at 80: the oracle does not get there, with no more budget." in drawn.note


def _aside(large: Evidence) -> Evidence:
    name = "after+relearn(steps=20)"
    verdicts = tuple(replace(row, checked=tuple(item for item in row.checked if item.condition != name))
                     for row in large.verdicts)
    return replace(large, verdicts=verdicts, conditions=tuple(
        replace(row, judged="never") if row.name == name else row for row in large.conditions
    ))


def test_what_makes_no_claim_is_shown_without_a_tint(large: Evidence, large_page: str) -> None:
    (sheaf,) = matrix.under_attack(_aside(large))
    lines = {line.name: line for group in sheaf.judged[0].groups for line in group.lines}
    aside, other = lines["after+relearn(steps=20)"], lines["after+relearn(steps=40)"]
    assert (aside.aside, other.aside) == ("shown, not judged", "")
    assert {(spot.level, spot.sign, spot.verdict) for spot in aside.spots} == {(None, "", "")}
    assert aside.spots[2].value == "36.0 %"
    assert aside.spots[2].told.endswith("200 examples of 20 subjects. Shown, not judged.")
    page = html.render(_aside(large))
    assert "“Shown, not judged” marks attacks that make no claim" in page
    assert "hown, not judged" not in large_page
    row = next(row for row in recovered.attacks(_aside(large)) if row.label.startswith("20 steps of relearning on 20%"))
    assert (row.verdict, row.aside) == ("", "shown, not judged")


def test_savings_are_told_at_the_largest_budget_where_they_are_sure(large: Evidence, large_page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", large_page).split())
    assert "What 80 steps bring back the oracle does not reach with 80: savings ≥ 2.2 × (2.1 or more)." in text
    assert "What 80 steps of “relearning” bring back costs at least 2.2 times as many where nothing was" in text
    silent = replace(large, recoveries=tuple(replace(one, savings=()) for one in large.recoveries))
    assert "as many where nothing" not in " ".join(part.text for part in summary.paragraphs(silent))
    unsure = (Saving(5, 0.2, 9.0, (0.5, 20.0)), Saving(10, 0.3, 2.0, (0.9, 4.0)), Saving(20, 0.4, 1.0, None, True))
    assert recovered.telling(unsure) == unsure[1]
    assert recovered.telling(unsure[2:]) is None  # the oracle had no more budget
    assert recovered.telling(()) is None


def test_a_curve_without_an_oracle_is_drawn_alone(large: Evidence) -> None:
    alone = replace(large.recoveries[0], oracle=(), savings=(), note="no savings: nobody compared")
    (curves,) = recovered.curves(replace(large, recoveries=(alone,)))
    assert "unlearned" in curves.first.drawing
    assert "oracle" not in curves.first.drawing
    assert curves.first.note.endswith("No savings: nobody compared.")


@pytest.mark.parametrize(("prob", "text"), [(1.0, "100"), (0.5, "50"), (0.0096, "1"), (0.004, ".4"), (0.0001, "<.1")])
def test_probabilities_are_short(prob: float, text: str) -> None:
    assert likely(math.log(prob)) == text


def test_all_maps_share_one_scale_and_deep_models_are_thinned(large: Evidence) -> None:
    deep = tuple(tuple(-8.0 * (80 - layer) / 80 for _ in range(3)) for layer in range(80))
    near = tuple(tuple(-1.0 for _ in range(3)) for _ in range(80))
    found = ResidueMap("forget", (9, 9, 4), (ResidueGrid("original", near), ResidueGrid("after", deep)), "original")
    (shown,) = layers(replace(large, residue=(found,)))
    assert [grid.title for grid in shown.grids] == ["Before the removal", "After the removal"]
    assert len(shown.grids[1].rows) <= 32
    assert shown.grids[1].rows[0][0] == 79  # the last layer stands on top and is never left out
    assert shown.skipped == 80 - len(shown.grids[1].rows)
    assert {cell.share for _, cells in shown.grids[0].rows for cell in cells} == {0.875}  # -1 on a scale down to -8
    assert shown.gap == ""
    broken = replace(found, grids=(ResidueGrid("after", ((None, -1.0, -2.0),)),))
    assert "n/a" in html.render(replace(large, residue=(broken,)))


# -- files -----------------------------------------------------------------------------------------------------
def test_what_is_new_goes_to_disk_and_back(large: Evidence, tmp_path: Path) -> None:
    large.write(tmp_path)
    assert load(tmp_path) == large
    assert load(tmp_path).recoveries[0].savings[-1].ci == (2.1, math.inf)


def test_files_of_earlier_releases_still_open(large: Evidence, tmp_path: Path) -> None:
    large.write(tmp_path)
    file = tmp_path / "scores.json"
    plain = json.loads(file.read_text())
    del plain["recoveries"], plain["residue"]
    file.write_text(json.dumps(plain))
    page = html.write_report(tmp_path).read_text()
    assert 'id="recovery"' not in page
    assert 'id="layers"' not in page
    assert 'id="matrix"' in page


def test_hostile_names_stay_text(large: Evidence) -> None:
    hostile = '<img src=x onerror="alert(1)">'
    recoveries = tuple(replace(one, attack=hostile, metric=hostile, note=hostile) for one in large.recoveries)
    assert isinstance(recoveries[0], Recovery)
    spoiled = replace(
        large, recoveries=recoveries, residue=tuple(replace(one, stream=hostile) for one in large.residue),
        conditions=tuple(replace(row, label=hostile, attack=hostile) for row in large.conditions),
        scores=tuple(replace(row, reason=hostile) for row in large.scores),
    )
    assert "<img" not in html.render(spoiled)
