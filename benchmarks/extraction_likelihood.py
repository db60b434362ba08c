"""Extraction likelihood of texts, ours against one generation per start: seconds and agreement, in one run.

    python benchmarks/extraction_likelihood.py --data KUL_FOLDER [--examples 16] [--tokens 200] [--epochs 60]

The plain side does what the authors' release does: for every start of a text the model goes on greedily to the text's
end, the texts of one start in one batch, keys and values kept. Ours runs the starts alone after which the model errs.
Published targets at the paper's length; one small model was taught them, the other as many others (made once and
kept). What is saved depends on what the model knows, so both are shown.
"""

from __future__ import annotations

import argparse
import time

from expunge import machine

machine.prepare()
machine.set_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from expunge.benches.world import Architecture, trained  # noqa: E402
from expunge.data.benchmarks.kul import cut, kul_data  # noqa: E402
from expunge.data.synthetic_base import build_tokenizer  # noqa: E402
from expunge.data.tokenise import encode, texts_of  # noqa: E402
from expunge.measure.plan import measure  # noqa: E402
from expunge.models import load  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.scoring import plan_for, score  # noqa: E402
from expunge.types import Data, Stream, Subject  # noqa: E402

N = 10


def ours(subject: Subject, data: Data) -> tuple[float, int]:
    metric = bind("metric", {"use": "extraction_likelihood", "n": N})
    measured = measure(subject, data, plan_for([metric], data))
    found = score(metric, "forget", measured).value
    assert found is not None
    return found, measured.forwards


@torch.no_grad()
def plain(subject: Subject, data: Data) -> tuple[float, int]:
    """EL(x) = mean over t of the share of n-grams of x_>t that are in what the model says after x_<=t."""
    rows = [one.tokens[one.counted] for one in encode(subject, texts_of(data["forget"]))]
    found: list[list[float]] = [[] for _ in rows]
    ran = 0
    for start in range(1, max(map(len, rows)) - N + 1):
        here = [i for i, row in enumerate(rows) if len(row) - start >= N]
        ids = torch.from_numpy(np.stack([rows[i][:start] for i in here]))
        most = max(len(rows[i]) for i in here) - start
        out = subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, use_cache=True,
            pad_token_id=subject.tokenizer.pad_token_id, eos_token_id=subject.tokenizer.eos_token_id,
        )
        ran += len(here)
        for i, said in zip(here, out[:, start:].tolist(), strict=True):
            left = rows[i][start:].tolist()
            said = said[: len(left)]
            made = {tuple(said[j : j + N]) for j in range(len(said) - N + 1)}
            true = [tuple(left[j : j + N]) for j in range(len(left) - N + 1)]
            found[i].append(sum(gram in made for gram in true) / len(true))
    return float(np.mean([np.mean(values) for values in found])), ran


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True)
    options.add_argument("--examples", type=int, default=16)
    options.add_argument("--tokens", type=int, default=200)
    options.add_argument("--epochs", type=float, default=60.0)
    asked = options.parse_args()
    whole = kul_data(asked.data, 128)
    made = Architecture(epochs=asked.epochs, batch_size=4, tokens="text")
    texts = [whole[name].examples[: asked.examples] for name in ("forget", "retain")]
    tokenizer = build_tokenizer([*texts[0], *texts[1]], size=made.vocabulary)
    forget, others = (cut(part, tokenizer, asked.tokens) for part in texts)
    folders = [str(trained(part, [*texts[0], *texts[1]], made)) for part in (forget, others)]
    data, few = (Data(forget=Stream("forget", "forget", forget[:num])) for num in (asked.examples, 1))
    print("| model | EL ours | EL plain | runs ours | runs plain | seconds ours | seconds plain | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, folder in zip(("taught the texts", "never saw them"), folders, strict=True):
        subject = load(folder)
        timed = []
        for side in (ours, plain):
            side(subject, few)  # what the first call of a process costs is nobody's
            begun = time.process_time()
            timed.append((*side(subject, data), time.process_time() - begun))
        (a, ran_a, seconds_a), (b, ran_b, seconds_b) = timed
        print(
            f"| {name} | {a:.4f} | {b:.4f} | {ran_a} | {ran_b} | {seconds_a:.2f} | {seconds_b:.2f} |"
            f" {seconds_b / seconds_a:.1f} |"
        )


if __name__ == "__main__":
    main()
