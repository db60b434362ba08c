"""The model card: front matter the Hub reads, and no way out of markdown for strings from outside."""

from __future__ import annotations

from dataclasses import replace

import yaml

from expunge.report.card import model_card
from expunge.report.schema import Evidence


def front(card: str) -> dict[str, object]:
    _, matter, _ = card.split("---\n", 2)
    data = yaml.safe_load(matter)
    assert isinstance(data, dict)
    return data


def test_front_matter(evidence: Evidence) -> None:
    assert front(model_card(evidence, base_model="org/model: x")) == {
        "library_name": "transformers",
        "tags": ["unlearning", "expunge", "unlearning-method:npo"],
        "base_model": "org/model: x",
        "base_model_relation": "finetune",
    }
    assert "base_model" not in front(model_card(evidence, base_model=None))
    assert front(model_card(evidence, base_model="m", library="peft"))["base_model_relation"] == "adapter"


def test_the_card_tells_counts_verdict_scores_limits_and_recipe(evidence: Evidence) -> None:
    card = model_card(evidence, base_model=None)
    for wanted in (
        "# Removal of 20 people from demo-1m",
        "**Verdict of the audit: FAIL.**",
        "200 examples in `forget` (forget)",
        "Method: `npo` (Zhang et al. 2024, arXiv 2404.05868).",
        "| forget | Exact memorization | 97.3 % (94.3–100) | 3.4 % (0.4–6.4) | 31.2 % (28.2–34.2) | 2.1 % (0–5.1) |",
        "- Suffix search (gcg): not asked for; takes about 40 minutes on this machine",
        "3 of 200 forget examples",
        "```yaml\nexpunge: 1\n",
        "`3f9a0c17be42`",
    ):
        assert wanted in card, wanted
    assert card.endswith("\n")


def test_strings_from_outside_stay_text(evidence: Evidence) -> None:
    method = replace(evidence.method, recipe="a: '```'") if evidence.method else None
    card = model_card(replace(evidence, title="x\n# y | <b>", method=method), base_model=None)
    assert "# x # y \\| &lt;b>" in card
    assert "<script>" not in card
    assert "````yaml\na: '```'\n````" in card


def test_a_bare_audit(bare: Evidence) -> None:
    card = model_card(bare, base_model=None)
    assert "| Stream | Metric | Before | After |\n" in card
    assert "Verdict of the audit: none asked" in card
    assert "Not tested:" not in card
