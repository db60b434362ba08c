"""The whole TOFU suite, measured once, against one pass per metric: CPU-seconds, counts and agreement, in one run.

    EXPUNGE_THREADS=1 python benchmarks/tofu_suite.py --data TOFU_FOLDER [--examples 400] [--epochs 4]

Forget, its paraphrased and five false answers, retain, real authors and world facts with theirs; what the model
answers on all four; five memberships of forget against as many other rows. The model is a Llama, 256 wide, 4 layers,
vocabulary 4,096, taught all of TOFU for a few passes; the oracle of the comparison is one with random weights (what
it costs to measure does not depend on what it knows, what it costs to generate does, and it is not asked to).
TOFU holds nobody out: "holdout" are other rows of the full set, enough for timing and for nothing else.

The plain side is one pass per metric, batches of 32 as they come, right padding, no gradients, generation with keys
and values kept and no longer than ours.
"""

from __future__ import annotations

import argparse
import statistics
import time

from expunge import machine

machine.prepare()
machine.set_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from baselines import PerMetric  # noqa: E402
from scipy.stats import ks_2samp  # noqa: E402

from expunge.benches.world import Architecture, trained  # noqa: E402
from expunge.data.benchmarks.tofu import tofu_data  # noqa: E402
from expunge.data.synthetic_base import build_model  # noqa: E402
from expunge.measure import plan as planning  # noqa: E402
from expunge.measure.plan import Measured, Plan, measure  # noqa: E402
from expunge.models import load  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.scoring import label, needs_of, score  # noqa: E402
from expunge.types import Data, Stream, Subject  # noqa: E402

ON_FORGET = (
    "probability", "memorization_accuracy", "exact_memorization", "extraction_strength", "rouge", "truth_ratio",
    "forget_quality", "membership", {"use": "membership", "score": "zlib"}, {"use": "membership", "score": "min_k"},
    {"use": "membership", "score": "min_k_plus_plus"}, "membership_reference",
)
OF_THE_ORACLE = ("forget_quality", "membership_reference")
KEPT = ("retain", "real_authors", "world_facts")
Found = dict[str, float]


def suite(folder: str, num: int) -> Data:
    streams = tofu_data(folder, "forget10")
    seen = {one.id for name in ("forget", "retain") for one in streams[name].examples}
    others = [one for one in streams["full"].examples if one.id not in seen][::7]
    found = Data({
        name: Stream(name, streams[name].role, streams[name].examples[:num]) for name in ("forget", *KEPT)
    })
    found["holdout"] = Stream("holdout", "holdout", tuple(others[:num]))
    return found


def wanted(specs: tuple[object, ...], utility: bool) -> Plan:
    plan = Plan()
    for spec in specs:
        plan.add("forget", needs_of(bind("metric", spec)))
    if utility:
        plan.add("retain", needs_of(bind("metric", "model_utility")))
    return plan


def ours(subject: Subject, oracle: Subject, data: Data) -> tuple[Found, Measured]:
    planning._encoded.clear()  # nothing is kept from an earlier round
    measured = measure(subject, data, wanted(ON_FORGET, utility=True))
    twin = measure(oracle, data, wanted(OF_THE_ORACLE, utility=False))
    metrics = [(bind("metric", spec), "forget") for spec in ON_FORGET] + [(bind("metric", "model_utility"), "retain")]
    found = {label(metric): score(metric, stream, measured, twin).value for metric, stream in metrics}
    return {name: value for name, value in found.items() if value is not None}, measured


class Plain(PerMetric):
    """The suite, one pass per metric."""

    def ratios(self, subject: Subject, stream: str) -> np.ndarray:
        truth = "answer" if stream in ("real_authors", "world_facts") else "paraphrased_answer"
        true = np.array([-row.mean() for row in self._token_logp(subject, stream, truth)])
        false = np.array([-row.mean() for row in self._token_logp(subject, stream, "perturbed")])
        counts = [len(example.perturbed) for example in self.data[stream].examples]
        return np.exp(true - np.array([part.mean() for part in np.split(false, np.cumsum(counts)[:-1])]))

    def normalised(self, stream: str) -> float:
        right = np.array([np.exp(row.mean()) for row in self._token_logp(self.subject, stream)])
        if stream == "retain":
            return float(right.mean())
        wrong = np.array([np.exp(row.mean()) for row in self._token_logp(self.subject, stream, "perturbed")])
        counts = [len(example.perturbed) for example in self.data[stream].examples]
        sums = np.array([part.sum() for part in np.split(wrong, np.cumsum(counts)[:-1])])
        return float((right / (right + sums)).mean())

    def utility(self) -> float:
        parts = []
        for stream in KEPT:
            kept = np.maximum(0, 1 - self.ratios(self.subject, stream)).mean()
            parts += [self.normalised(stream), self.rouge(stream), float(kept)]
        return len(parts) / sum(1 / part for part in parts) if min(parts) > 0 else 0.0

    @torch.no_grad()
    def plus_plus(self, stream: str) -> list[float]:
        found = []
        for _, batch in self._batches(stream, "answer"):
            logits = self.subject.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
            every = logits.log_softmax(-1)
            mean = (every.exp() * every).sum(-1)
            spread = ((every.exp() * (every - mean[..., None]).square()).sum(-1)).sqrt().clamp(min=1e-6)
            own = every.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            for row, keep in zip((own - mean) / spread, batch.labels[:, 1:] != -100, strict=True):
                values = np.sort(row[keep].numpy())
                found.append(float(values[: max(1, int(0.2 * len(values)))].mean()))
        return found

    def reference(self, stream: str) -> list[float]:
        assert self.oracle is not None
        both = (self._token_logp(who, stream) for who in (self.subject, self.oracle))
        return [float(a.mean() - b.mean()) for a, b in zip(*both, strict=True)]

    def area(self, score_of: str) -> float:
        members, others = (np.asarray(getattr(self, score_of)(name)) for name in ("forget", "holdout"))
        return float((members[:, None] > others).mean() + (members[:, None] == others).mean() / 2)

    def all(self) -> Found:
        assert self.oracle is not None
        names = ("probability", "memorization_accuracy", "exact_memorization", "extraction_strength", "rouge")
        found = {name: getattr(self, name)("forget") for name in names}
        ratios = self.ratios(self.subject, "forget")
        found["truth_ratio"] = float(np.minimum(ratios, 1 / ratios).mean())
        pair = (self.ratios(self.subject, "forget"), self.ratios(self.oracle, "forget"))
        found["forget_quality"] = float(ks_2samp(*pair).pvalue)
        found["membership"] = self.membership("forget", "loss")
        found["membership(score=zlib)"] = self.membership("forget", "zlib")
        found["membership(score=min_k)"] = self.membership("forget", "min_k")
        found["membership(score=min_k_plus_plus)"] = self.area("plus_plus")
        found["membership_reference"] = self.area("reference")
        found["model_utility"] = self.utility()
        return found


def padding(subject: Subject, data: Data) -> tuple[int, int, float]:
    """Sequences, real tokens and the share of padding of the token instrument alone."""
    read = [0]

    def count(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        read[0] += given["input_ids"].numel()

    plan = wanted(ON_FORGET, utility=True)
    plan.wanted = {asked: columns for asked, columns in plan.wanted.items() if asked[1] == "tokens"}
    handle = subject.model.register_forward_pre_hook(count, with_kwargs=True)
    measured = measure(subject, data, plan)
    handle.remove()
    return measured.forwards, measured.tokens, 1 - measured.tokens / read[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True)
    options.add_argument("--examples", type=int, default=400)
    options.add_argument("--epochs", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=1)
    asked = options.parse_args()
    full = tofu_data(asked.data, "forget10")["full"].examples
    subject = load(str(trained(full, full, Architecture(width=256, epochs=asked.epochs))))
    oracle = Subject(build_model(subject.tokenizer, width=256, layers=4, seed=1).eval(), subject.tokenizer,
                     subject.wrapper, name="oracle")  # fmt: skip
    data, few, part = (suite(asked.data, num) for num in (asked.examples, 2, max(2, asked.examples // 4)))
    ours(subject, oracle, few)
    peaks = []
    for size in (part, data):
        ours(subject, oracle, size)
        peaks.append(machine.peak_memory_mb())
    Plain(subject, few, oracle).all()  # what the first call of a process costs is nobody's
    sequences, tokens, share = padding(subject, data)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(asked.rounds):
        begun = time.process_time()
        mine, _measured = ours(subject, oracle, data)
        seconds["ours"].append(time.process_time() - begun)
        begun = time.process_time()
        theirs = Plain(subject, data, oracle).all()
        seconds["plain"].append(time.process_time() - begun)
    both = {name: statistics.median(values) for name, values in seconds.items()}
    print("| | ours | one pass per metric | ratio |\n|---|---:|---:|---:|")
    print(f"| CPU-seconds | {both['ours']:.1f} | {both['plain']:.1f} | {both['plain'] / both['ours']:.2f} |")
    rows = [one for stream in data.values() for one in stream.examples]
    texts = sum(1 + len(one.perturbed) + (one.paraphrased_answer is not None) for one in rows)
    print(f"\n{texts} texts, {len(rows)} questions: {sequences} sequences, {tokens} tokens, {share:.1%} padding")
    print(f"peak memory: {peaks[0]:.0f} MB after a quarter of the examples, {peaks[1]:.0f} MB after all")
    worst = max((abs(mine[name] - theirs[name]) / max(1.0, abs(theirs[name])), name) for name in theirs)
    print(f"{len(theirs)} scores; largest difference {worst[0]:.1e} ({worst[1]})")
    for name in theirs:
        print(f"    {name:36} {mine[name]:.6f} {theirs[name]:.6f}")


if __name__ == "__main__":
    main()
