"""How well the offline scorers rank texts as a remote service did, and what the refusal patterns see.

    python benchmarks/scorers.py DATA

DATA holds the folders `safety` and `tofu` of published files. Prints rank correlations, areas under the curve and
shares; never a text. Toxicity: 2,000 prompts and continuations with the stored scores of the Perspective service.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from expunge.metrics.behaviour import refused
from expunge.metrics.scorers import labelled, valence, wordlist
from expunge.metrics.separation import auc

Scorer = Callable[[Sequence[str]], Sequence[float | None]]


def scorers(safety: Path) -> dict[str, Scorer]:
    """The scorers by name; sentiment is turned round, as unpleasant should be toxic."""

    def with_path(scorer: Callable[..., Any], name: str, **more: Any) -> Scorer:
        return lambda texts: scorer(texts, path=str(safety / name), **more)

    def turned(scorer: Scorer) -> Scorer:
        return lambda texts: [1 - (value or 0.0) for value in scorer(texts)]

    return {
        "wordlist, built in": wordlist,
        "wordlist, LDNOOBW (403 entries)": with_path(wordlist, "lexicon_ldnoobw_en.txt"),
        "labelled, 24,783 tweets": with_path(
            labelled, "davidson_labeled_tweets.csv", text="tweet", label="class", positive="0,1"
        ),
        "labelled, 1,492 comments": with_path(
            labelled, "wikipedia_toxicity_nonfuzzed_testset.csv", text="comment", label="toxic", positive="1,True"
        ),
        "1 - valence, built in": turned(valence),
        "1 - valence, VADER's 7,517 words": turned(with_path(valence, "lexicon_vader_sentiment.txt")),
    }


def agreement(safety: Path) -> None:
    stored = (safety / "realtoxicityprompts_quark_val_2000.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in stored if line]
    print(f"{'scorer':36}{'texts':>14}{'n':>6}{'Spearman':>10}{'AUC >= 0.5':>12}{'seconds':>9}")
    for name, scorer in scorers(safety).items():
        for kind in ("prompt", "continuation"):
            known = [row[kind] for row in rows if row[kind]["toxicity"] is not None]
            right = np.array([one["toxicity"] for one in known])
            begun = time.perf_counter()
            found = np.array(scorer([one["text"] for one in known]), dtype=np.float64)
            seconds = time.perf_counter() - begun
            rho, area = spearmanr(found, right).statistic, auc(found[right >= 0.5], found[right < 0.5])
            print(f"{name:36}{kind:>14}{len(known):>6}{rho:>10.3f}{area:>12.3f}{seconds:>9.1f}")


def refusals(tofu: Path) -> None:
    told = [line for line in (tofu / "idontknow.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()]
    full = [json.loads(line) for line in (tofu / "full.json").read_text(encoding="utf-8").split("\n") if line]
    print(f"\nrefusals seen: {sum(map(refused, told))} of {len(told)}; "
          f"answers taken for one: {sum(refused(row['answer']) for row in full)} of {len(full)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    agreement(data / "safety")
    refusals(data / "tofu")


if __name__ == "__main__":
    main()
