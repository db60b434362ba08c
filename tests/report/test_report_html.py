"""The HTML file as text: whole, offline, escaped, every number there. tests/browser opens it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from expunge.report import html, numbers
from expunge.report.schema import Evidence, Measured

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects text and attributes, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(params=["evidence", "bare", "passed", "undecided", "large"])
def any_evidence(request: pytest.FixtureRequest) -> Evidence:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Evidence)
    return found


def test_the_page_is_whole_small_and_offline(any_evidence: Evidence) -> None:
    page = html.render(any_evidence)
    assert len(page.encode()) < 2_000_000
    reader = read(page)
    loads = [value for _, name, value in reader.attributes if name in {"src", "href", "action", "data", "poster",
                                                                       "srcset", "xlink:href"}]
    assert all(value.startswith("#") or value == "data:," for value in loads)
    assert not re.search(r"url\(|@import|https?://", page)


def test_headings_do_not_skip_a_level(any_evidence: Evidence) -> None:
    levels = read(html.render(any_evidence)).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_ids_are_unique_and_labels_point_somewhere(any_evidence: Evidence) -> None:
    attributes = read(html.render(any_evidence)).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value.lstrip("#") for _, name, value in attributes
               if name in {"href", "aria-labelledby"} and not value.startswith("data:")}
    assert targets <= set(ids)


def test_every_drawing_is_well_formed_and_spoken_or_hidden(any_evidence: Evidence) -> None:
    page = html.render(any_evidence)
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert drawings
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-hidden") == "true" or (root.get("role") == "img" and root.get("aria-label"))
        assert "nan" not in drawing.replace("aria-label", "")
        for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy"):
            assert all(abs(float(node.get(name, "0"))) < 2_000 for node in root.iter())


def test_strings_from_outside_are_escaped(evidence: Evidence) -> None:
    hostile = '<img src=x onerror="alert(1)">'
    conditions = tuple(replace(row, label=hostile) for row in evidence.conditions)
    spoiled = replace(evidence, title=hostile, conditions=conditions, warnings=(hostile,),
                      scores=tuple(replace(row, reason=hostile) for row in evidence.scores))
    page = html.render(spoiled)
    assert hostile not in page
    assert "<script>alert" not in page
    assert not any(tag == "img" or name.startswith("on") for tag, name, _ in read(page).attributes)


def test_every_value_interval_and_reason_is_there(evidence: Evidence) -> None:
    text = " ".join(read(html.render(evidence)).text)
    for row in evidence.scores:
        assert numbers.number(row.value, row.unit) in text
        assert numbers.interval(row.ci, row.unit) in text
        assert row.reason in text
    for verdict in evidence.verdicts:
        assert verdict.reason in text
    for wanted in ("+19.4 points", "+14.2 to +24.7", "± 5 points", "93 %", "INCONCLUSIVE", evidence.digest,
                   "Suffix search (gcg)", "3 of 200 forget examples", "468,200", "18.9 s", "612 MB", "2.13.0+cpu",
                   "method: {use: npo, beta: 0.1, retain: kl}", "29.6 %", "1 August 2026, 14:05 UTC"):
        assert wanted in text, wanted


def test_sections_stand_in_the_order_of_the_reader(evidence: Evidence, large_page: str) -> None:
    page = html.render(evidence)
    names = re.findall(r'<section id="([a-z]+)"', page)
    assert names == ["summary", "verdicts", "attacks", "tradeoff", "plots", "scores", "cost", "untested", "rerun",
                     "glossary"]
    full = re.findall(r'<section id="([a-z]+)"', large_page)
    assert full[2:6] == ["attacks", "recovery", "layers", "tradeoff"]


def test_what_is_missing_is_said_and_not_left_out(bare: Evidence) -> None:
    text = " ".join(read(html.render(bare)).text)
    assert "NO VERDICT" in text
    assert "No claim was put to the test" in text
    assert "No attack was run." in text
    assert "There is no oracle in this run" in text
    assert "not known to Expunge" in text


def test_an_empty_audit_still_gives_a_page(bare: Evidence) -> None:
    page = html.render(replace(bare, conditions=(), scores=(), streams=()))
    assert "Nothing was scored in this run." in page


def test_scores_that_are_all_n_a_give_reasons(bare: Evidence) -> None:
    rows = tuple(replace(row, value=None, ci=None, status="n/a", reason="no tokens left") for row in bare.scores)
    page = html.render(replace(bare, scores=rows))
    assert "no tokens left" in page
    assert "No metric has a value to draw." in page


def test_infinite_and_zero_values_are_drawn_within_the_frame(evidence: Evidence) -> None:
    def broken(row: Measured) -> Measured:
        if row.condition == "after" and row.metric == "perplexity":
            return replace(row, value=float("inf"), ci=(1e9, float("inf")))
        if row.metric == "forget_quality" and row.condition == "original":
            return replace(row, value=0.0)
        return row

    page = html.render(replace(evidence, scores=tuple(broken(row) for row in evidence.scores)))
    assert "∞" in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)


def test_many_conditions_and_long_names(evidence: Evidence) -> None:
    attack = evidence.conditions[3]
    more = tuple(replace(attack, name=f"after+an_attack_with_a_rather_long_name({n})", label="") for n in range(30))
    rows = tuple(replace(row, condition=condition.name) for condition in more for row in evidence.scores
                 if row.condition == attack.name)
    page = html.render(replace(evidence, conditions=evidence.conditions + more, scores=evidence.scores + rows))
    assert len(page.encode()) < 2_000_000
    read(page)


def test_write_report_reads_a_run_folder(evidence: Evidence, tmp_path: Path) -> None:
    evidence.write(tmp_path)
    path = html.write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text() == html.render(evidence)
    assert html.write_report(tmp_path / "scores.json") == path


def test_an_unreadable_date_is_shown_as_it_is(bare: Evidence) -> None:
    assert "yesterday" in html.render(replace(bare, created="yesterday"))
