"""What ranges are over, what attacks changed, and several runs in one table: as people see it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from expunge import cli
from expunge.report import card, html, numbers, summary, terminal, view
from expunge.report.schema import Change, Evidence, load


def over_subjects(evidence: Evidence) -> Evidence:
    """The same evidence, its forget means over 20 subjects; membership goes by example."""
    rows = tuple(
        replace(row, groups=20) if row.stream == "forget" and row.unit in ("share", "probability") else row
        for row in evidence.scores
    )
    return replace(evidence, scores=rows)


def printed(evidence: Evidence, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    terminal.print_evidence(evidence, console)
    return console.file.getvalue()


def test_one_sentence_says_what_ranges_are_over(evidence: Evidence) -> None:
    """Everywhere the same sentence: terminal, report, card."""
    plain = "The ranges say where a score would lie with other examples like these."
    assert summary.over(evidence) == plain
    grouped = over_subjects(evidence)
    said = summary.over(grouped)
    assert "examples of one subject (a person, a chapter) count together" in said
    assert "There are 20 of “forget”." in said
    assert said.endswith("and their ranges may be too narrow.")
    assert "Membership inference" in said
    for made, sentence in ((evidence, plain), (grouped, said)):
        assert sentence in " ".join(printed(made).split())
        assert sentence in html.render(made)
        assert sentence in card.model_card(made, base_model=None)
        assert any(sentence in part.text for part in summary.paragraphs(made))


def test_sizes_are_told_with_their_subjects(evidence: Evidence) -> None:
    grouped = over_subjects(evidence)
    lines = [line.split() for line in printed(grouped).splitlines()]
    assert ["forget,", "n=200", "of", "20", "subjects"] in lines
    assert ["retain,", "n=1800"] in lines
    assert "200 examples of 20 subjects" in html.render(grouped)
    assert "of 20 subjects" not in html.render(evidence)
    assert view.sized(grouped, "retain", 1) == "1 example"


def test_old_files_without_groups_still_open(evidence: Evidence, tmp_path: Path) -> None:
    data = json.loads(over_subjects(evidence).to_json())
    for row in data["scores"]:
        del row["groups"]
    for verdict in data["verdicts"]:
        for check in verdict["checked"]:
            del check["n"], check["groups"], check["needed"]
    del data["changes"]
    (tmp_path / "scores.json").write_text(json.dumps(data))
    assert load(tmp_path) == replace(evidence, changes=())
    (tmp_path / "scores.json").write_text(over_subjects(evidence).to_json())
    assert load(tmp_path) == over_subjects(evidence)


def test_what_an_attack_brought_back_is_told_with_its_chance(evidence: Evidence) -> None:
    change = Change("after+relearn(20)", "after", "forget", "exact_memorization", 0.28, (0.2, 0.36), 1e-5, 3e-5,
                    "mcnemar", 200)
    rounded = replace(change, condition="after+quantize(4)", p=0.3, adjusted=0.6)
    known = replace(evidence, changes=(change, rounded))
    text = html.render(known)
    assert "29.8 %" in text  # 28 of the 93.9 points
    assert "p &lt; 0.001" in text
    assert "p = 0.60" in text
    assert "how often chance alone would change a score that much" in text
    assert "how often chance alone" not in html.render(replace(evidence, changes=()))
    assert (numbers.p_value(0.0012), numbers.p_value(1.0)) == ("p = 0.0012", "p = 1.0")


def several(evidence: Evidence, folder: Path) -> list[str]:
    """Three runs of one recipe, seeds 0, 1, 2, with scores a point apart."""
    for seed in range(3):
        rows = tuple(
            replace(row, value=row.value + 0.01 * seed, ci=(row.ci[0] + 0.01 * seed, row.ci[1] + 0.01 * seed))
            if row.value is not None and row.ci is not None else row
            for row in over_subjects(evidence).scores
        )
        recipe = evidence.method.recipe.replace("seed: 0", f"seed: {seed}")
        made = replace(evidence, scores=rows, digest=f"{seed:012d}", method=replace(evidence.method, recipe=recipe))
        made.write(folder / f"seed{seed}")
    return [str(folder / f"seed{seed}") for seed in range(3)]


def test_several_runs_are_one_table(evidence: Evidence, tmp_path: Path, capsys) -> None:
    """Exact memorization after the removal 3.4, 4.4, 5.4 %: mean 4.4, SD 1 point, t interval 1.9 to 6.9."""
    runs = several(evidence, tmp_path)
    assert cli.main(["report", *runs, "--out", str(tmp_path / "all")]) == 0
    out = capsys.readouterr().out
    assert "Removal of 20 people from demo-1m: 3 runs, seeds 0, 1, 2" in out
    assert "forget, n = 200 of 20 subjects" in out
    assert "forgotten: exact_memorization on forget: 3 FAIL" in out
    line = next(row for row in out.splitlines() if row.startswith("after ") and "exact_memorization" in row)
    assert line.split() == ["after", "exact_memorization", "3", "4.4", "%", "1.0", "points", "1.9–6.9", "0.5–8.3"]
    markdown = (tmp_path / "all" / "seeds.md").read_text()
    assert "| after | exact_memorization | 3 | 4.4 % | 1.0 points | 1.9–6.9 | 0.5–8.3 |" in markdown
    assert "- **FAIL** forgotten: exact_memorization on forget: 3 FAIL" in markdown
    found = json.loads((tmp_path / "all" / "seeds.json").read_text())
    assert found["seeds"] == [0, 1, 2]
    assert not (tmp_path / "seed0" / "report.html").exists()


def test_several_runs_as_json_and_what_is_refused(evidence: Evidence, tmp_path: Path, capsys) -> None:
    runs = several(evidence, tmp_path)
    assert cli.main(["report", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(r for r in found["scores"] if (r["condition"], r["metric"]) == ("after", "forget_quality"))
    assert (row["runs"], row["mean"], row["sd"]) == (3, 0.42, None)
    assert cli.main(["report", runs[0], runs[0]]) == 2
    assert "the same recipe and seed" in capsys.readouterr().err
    assert cli.main(["report", runs[0], "--out", str(tmp_path)]) == 2
    assert "more runs" in capsys.readouterr().err
    assert cli.main(["report", runs[0], "--json"]) == 0
    assert (tmp_path / "seed0" / "report.html").exists()
