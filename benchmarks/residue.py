"""What is left inside after a removal: depth, lens and probe on models that forgot, hid, or never knew; do they agree?

    python benchmarks/residue.py TOFU_FOLDER [--examples 24] [--windows 1,2,4]

The models: the original and the oracle of `expunge bench tofu --limit-authors 40` (trained at the first call and
kept), gradient ascent, GradDiff, NPO and RMU at two strengths each, GradDiff on the last block alone, and two that hide
without forgetting: a last block that writes noise, and a head with its rows moved. Spearman's rank correlations are
over models, with percentile bootstrap intervals over them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

from expunge import machine

machine.prepare()
machine.set_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.stats import rankdata  # noqa: E402

from expunge.benches.tofu import tofu  # noqa: E402
from expunge.benches.world import World  # noqa: E402
from expunge.measure.desk import Partner  # noqa: E402
from expunge.measure.plan import Measured, Plan, measure  # noqa: E402
from expunge.metrics.stats import bootstrap_of  # noqa: E402
from expunge.models import load  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.run import Run, _silent  # noqa: E402
from expunge.scoring import needs_of, score  # noqa: E402
from expunge.types import Bound, Data, Subject  # noqa: E402

MADE = {
    "ga, weak": {"use": "ga", "lr": 1e-4, "epochs": 2}, "ga, strong": {"use": "ga", "lr": 3e-4, "epochs": 4},
    "graddiff, weak": {"use": "graddiff", "lr": 2e-3, "epochs": 1},
    "graddiff, strong": {"use": "graddiff", "lr": 2e-3, "epochs": 4},
    "npo, weak": {"use": "npo", "lr": 4e-3, "epochs": 1}, "npo, strong": {"use": "npo", "lr": 4e-3, "epochs": 4},
    "rmu, weak": {"use": "rmu", "layer": 2, "lr": 2e-3, "alpha": 10.0, "steps": 10},
    "rmu, strong": {"use": "rmu", "layer": 2, "lr": 2e-2, "alpha": 1.0, "steps": 20},
    "graddiff, last block": {
        "use": "graddiff", "lr": 1e-2, "epochs": 4, "alpha": 0.3, "scope": {"use": "layers", "layers": [3]},
    },
}


def noisy_block(subject: Subject) -> Subject:
    """The last block writes noise as long as what it used to write, and more."""
    block = subject.model.model.layers[-1]
    torch.manual_seed(0)
    with torch.no_grad():
        for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            matrix.copy_(5 * matrix.std() * torch.randn_like(matrix))
    return subject


def moved_head(subject: Subject) -> Subject:
    """Every token's row of the head belongs to another token; the stream is what it was."""
    head = subject.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().roll(17, 0).clone())
    return subject


def models(world: World) -> Iterator[tuple[str, Subject]]:
    yield "original", load(world.original)
    yield "oracle", load(str(world.oracle))
    for name, spec in MADE.items():
        subject = load(world.original)
        for stage in bind("method", {"batch_size": 16, **spec})():
            subject = stage(subject, world.training, Run())
        yield name, replace(subject, lineage=())
    yield "noise in the last block", noisy_block(load(world.original))
    yield "head with moved rows", moved_head(load(world.original))


def fewer(world: World, num: int) -> Data:
    """`num` examples to forget, four times as many retained, spread over the authors; three false answers each."""
    kept = {}
    for name, size in (("forget", num), ("retain", 4 * num)):
        examples = world.audited[name].examples[:: max(1, len(world.audited[name]) // size)][:size]
        short = tuple(replace(one, perturbed=one.perturbed[:3]) for one in examples)
        kept[name] = replace(world.audited[name], examples=short)
    return Data(kept)


def columns(windows: list[int]) -> dict[str, Bound]:
    """The metrics compared, the common yardstick first."""
    specs = {
        "depth (oracle)": "unlearning_depth",
        **{f"depth (window {w})": {"use": "unlearning_depth_reference_free", "window": w} for w in windows},
        "lens": "logit_lens_extraction", "lens, original's head": {"use": "logit_lens_extraction", "head": "original"},
        "probe": "linear_probe", "extraction strength": "extraction_strength",
    }
    return {name: bind("metric", spec) for name, spec in specs.items()}


def spearman(a: np.ndarray, b: np.ndarray) -> str:
    """Rank correlation over models, with its interval."""

    def of(drawn: list[np.ndarray]) -> np.ndarray:
        one, other = (rankdata(values[drawn[0]], axis=1) for values in (a, b))
        one, other = (ranks - ranks.mean(1, keepdims=True) for ranks in (one, other))
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))

    value = float(of([np.arange(len(a))[None]])[0])
    found = bootstrap_of(of, [len(a)])
    return f"{value:+.2f}" + (f" [{found[0]:+.2f}, {found[1]:+.2f}]" if found else "")


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", help="folder with TOFU's published files")
    options.add_argument("--examples", type=int, default=24, help="forget examples; four times as many retained")
    options.add_argument("--windows", default="1,2,4", help="windows of the reference-free depth")
    asked = options.parse_args()
    world = tofu(_silent, data=asked.data, limit_authors=40)
    metrics = columns([int(size) for size in asked.windows.split(",")])
    begun = time.process_time()
    data, plan = fewer(world, asked.examples), Plan()
    for metric in metrics.values():
        plan.add("forget", needs_of(metric))
    partner = Partner(lambda: load(world.original))
    found: dict[str, Measured] = {}
    seconds = 0.0
    for name, subject in models(world):
        start = time.process_time()
        found[name] = measure(subject, data, plan, partner=partner)
        seconds += time.process_time() - start
    scores = {
        name: [score(metric, "forget", one, found["oracle"], found["original"]) for metric in metrics.values()]
        for name, one in found.items()
    }
    table(["model", *metrics], [
        [name, *("n/a" if one.value is None else f"{one.value:.3f}" for one in row)] for name, row in scores.items()
    ])
    values = np.array([[one.value for one in row] for row in scores.values()], dtype=np.float64)  # [models, metrics]
    names = list(metrics)
    table(["Spearman over models", "with depth (oracle)", "with extraction strength"], [
        [name, spearman(values[:, k], values[:, 0]), spearman(values[:, k], values[:, -1])]
        for k, name in enumerate(names)
    ])
    first = scores["original"]
    print(f"Original: probe {first[names.index('probe')].reason}.")
    print(f"Oracle: probe {scores['oracle'][names.index('probe')].reason}.")
    print(f"{len(found)} models, {asked.examples} forget examples; {time.process_time() - begun:.0f} CPU-seconds, "
          f"{seconds / len(found):.1f} a model to measure.")


if __name__ == "__main__":
    main()
