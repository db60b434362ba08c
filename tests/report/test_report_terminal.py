"""Terminal tables and markdown, compared as exact text."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from expunge.report import terminal
from expunge.report.schema import Evidence, Untested
from expunge.report.terminal import Row

ROWS: list[Row] = [
    {"method": "npo", "condition": "after", "seconds": 12.3,
     "metrics": {"forget_quality": (3.1e-6, (1e-9, 0.02)), "model_utility": (0.51, (0.49, 0.53)),
                 "rouge": (None, None)}},
    {"method": "idk|dpo", "condition": "after+relearn(20)", "seconds": 4.0,
     "metrics": {"forget_quality": (0.42, None), "model_utility": (0.5, (0.48, 0.52)), "rouge": (0.4, (0.38, 0.42))}},
]


def printed(evidence: Evidence, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    terminal.print_evidence(evidence, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_one_line_per_metric_at_100_columns(evidence: Evidence) -> None:
    lines = lines_of(printed(evidence))
    assert lines[:7] == [
        "Removal of 20 people from demo-1m",
        "demo-1m <script>alert('x')</script> · 3f9a0c17be42",
        "metric                 original           oracle             after              worst attack",
        "─" * 99,
        "forget, n=200",
        "exact_memorization     97.3 % 94.3–100    2.1 % 0–5.1        3.4 % 0.4–6.4      31.2 % 28.2–34.2 a",
        "probability            96.1 % 94.1–98.1   11.2 % 9.2–13.2    8.7 % 6.7–10.7     40.2 % 38.2–42.2 a",
    ]
    assert "a relearn(20)    exact_memorization  31.2 %  11.8 %  +19.4 (+14.2…+24.7)  FAIL" in lines
    assert ("FAIL          forgotten: exact_memorization on forget, after+relearn(20) +19.4 points (+14.2 to") in lines
    assert lines[-1] == "Verdict: FAIL"
    assert max(map(len, lines)) <= 100


def test_every_attack_is_told_by_its_worst_measure_and_refusals_once(large: Evidence) -> None:
    lines = lines_of(printed(large))
    assert sum(line.endswith("  FAIL") and line[:2].strip().isalpha() for line in lines) == 23
    assert "c relearn(steps=20)           extraction_strength  36.0 %   6.0 %     +30.0 (+26.0…+34.0)  FAIL" in lines
    assert "n/a: prefill, multi_turn: the tokenizer has no chat template" in lines
    assert sum("no chat template" in line for line in lines) == 1
    told = "Relearning, on “forget”, exact memorization: What 80 steps bring back the oracle does not reach with 80"
    assert any(line.startswith(told) for line in lines)
    assert max(len(line) for line in lines if not line.startswith(("Relearning", "n/a"))) <= 100


def test_the_list_of_what_was_not_tested_is_cut(large: Evidence) -> None:
    many = replace(large, untested=tuple(Untested(f"attack {n}", "available") for n in range(40)))
    text = " ".join(printed(many).split())
    assert "attack 11; and 28 more, listed in the report" in text
    told = replace(large, untested=(Untested("prefill", "the tokenizer has no chat template"), Untested("other")))
    assert "Not tested: other" in lines_of(printed(told))


def test_without_verdicts_attacks_are_told_by_the_most_telling_metric(evidence: Evidence) -> None:
    lines = lines_of(printed(replace(evidence, verdicts=(), verdict=None)))
    assert "a relearn(20)    exact_memorization  31.2 %  11.8 %           -  -" in lines


def test_attacks_that_make_no_claim_or_are_only_counted_are_told(evidence: Evidence) -> None:
    shown = tuple(replace(row, judged="never") if row.attack == "quantize" else row for row in evidence.conditions)
    first = replace(evidence.conditions[3], name="after+relearn", label="After the removal, then 20 steps of it")
    second = replace(first, name="after+relearn[1]", label="After the removal, then 40 steps of it")
    lines = lines_of(printed(replace(evidence, verdicts=(), conditions=(*shown, first, second))))
    told = next(line for line in lines if line.startswith("b quantize(4)"))
    assert told.endswith("not judged")
    assert "not judged: shown, not judged; what it shows may have come with the attack" in lines
    assert any("40 steps of it" in line for line in lines)
    assert not any("relearn[1]" in line for line in lines)


def test_intervals_go_below_where_it_is_narrow(evidence: Evidence) -> None:
    lines = lines_of(printed(evidence, 80))
    row = next(index for index, line in enumerate(lines) if line.startswith("exact_memorization"))
    assert lines[row : row + 2] == [
        "exact_memorization     97.3 %       2.1 %        3.4 %        31.2 %",
        "                       94.3–100     0–5.1        0.4–6.4      28.2–34.2 a",
    ]
    assert max(map(len, lines)) <= 80


def test_no_colour_and_no_markup_when_not_a_terminal(evidence: Evidence) -> None:
    text = printed(replace(evidence, title="[bold]x[/bold] [link=y]", warnings=("[red]careful[/red]",)))
    assert "\x1b" not in text
    assert "[bold]x[/bold] [link=y]" in text
    assert "[red]careful[/red]" in text


def test_no_color_is_honoured_on_a_terminal(evidence: Evidence) -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm"})
    terminal.print_evidence(evidence, console)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[31m" not in console.file.getvalue()
    assert "38;5" not in console.file.getvalue()


def test_as_little_as_can_be(bare: Evidence) -> None:
    lines = lines_of(printed(bare))
    assert lines[2] == "metric                 original           after"
    assert lines[-1] == "Verdict: none asked"
    assert "Verdict: none asked" in printed(replace(bare, conditions=(), scores=(), streams=()))


def test_leaderboard() -> None:
    console = Console(width=100, file=io.StringIO())
    terminal.leaderboard(ROWS, console, title="TOFU")
    assert isinstance(console.file, io.StringIO)
    assert lines_of(console.file.getvalue()) == [
        "TOFU",
        "                                       forget        model",
        "method   condition                    quality      utility      rouge  seconds",
        "──────────────────────────────────────────────────────────────────────────────",
        "npo      after                        3.10e-6        0.510        n/a     12.3",
        "                            1.00e-9 to 0.0200  0.490–0.530",
        "idk|dpo  after+relearn(20)              0.420        0.500     40.0 %     4.00",
        "                                               0.480–0.520  38.0–42.0",
    ]


def test_a_wide_leaderboard_is_cut_into_tables_that_fit() -> None:
    metrics = {f"metric_number_{n}": (0.5, (0.45, 0.55)) for n in range(14)}
    console = Console(width=80, file=io.StringIO())
    terminal.leaderboard([{"method": "npo", "metrics": metrics, "seconds": 1.0}], console)
    assert isinstance(console.file, io.StringIO)
    lines = lines_of(console.file.getvalue())
    assert sum(line.startswith("npo") for line in lines) > 1
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.45–0.55") for line in lines) == 14


def test_leaderboard_as_markdown() -> None:
    assert terminal.to_markdown(ROWS) == (
        "| method | condition | forget_quality | model_utility | rouge | seconds |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| npo | after | 3.10e-6 (1.00e-9 to 0.0200) | 0.510 (0.490–0.530) | n/a | 12.3 |\n"
        "| idk\\|dpo | after+relearn(20) | 0.420 | 0.500 (0.480–0.520) | 40.0 % (38.0–42.0) | 4.00 |\n"
    )


def test_units_may_be_given_and_no_rows_is_no_error() -> None:
    assert "50.0 %" in terminal.to_markdown([{"method": "m", "metrics": {"mine": (0.5, None)}}],
                                            units={"mine": "share"})
    assert terminal.to_markdown([]) == "| method |\n| --- |\n"
    terminal.leaderboard([], Console(file=io.StringIO()))
