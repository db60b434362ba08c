"""The default audit of 400 examples, measured once, against one pass per metric: seconds and agreement, in one run.

    python benchmarks/audit_once.py MODEL ORACLE [--examples 400] [--rounds 3] [--data TOFU_FOLDER]

MODEL and ORACLE are folders, for example those of `expunge demo --out DIR` (DIR/run/model and DIR/oracle), measured
on as many embedded people; with --data, on TOFU's forget10 (all 400) instead. Both sides compute the same scores;
ours also computes every interval.
"""

from __future__ import annotations

import argparse
import statistics
import time

from expunge import machine

machine.prepare()
machine.set_threads()

from baselines import PerMetric  # noqa: E402

from expunge.data.synthetic import synthetic  # noqa: E402
from expunge.measure import plan  # noqa: E402
from expunge.measure.plan import measure  # noqa: E402
from expunge.models import load  # noqa: E402
from expunge.presets import METRICS  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.scoring import applies, label, plan_for, score_all  # noqa: E402
from expunge.types import Data, Stream, Subject  # noqa: E402


def people(num: int) -> Data:
    """`num` examples in all: half to forget, a quarter each retained and held out."""
    share = {"forget": num // 2, "retain": num // 4, "holdout": num // 4}
    return Data(
        {
            part: Stream(part, part, tuple(synthetic(part=part, num_people=-(-size // 10)))[:size])  # type: ignore[arg-type]
            for part, size in share.items()
        }
    )


def tofu(folder: str, num: int) -> Data:
    """The forget stream of forget10; TOFU holds nobody out, so membership is n/a on both sides."""
    from expunge.data.benchmarks.tofu import tofu_data

    return Data(forget=Stream("forget", "forget", tofu_data(folder, "forget10")["forget"].examples[:num]))


def ours(subject: Subject, oracle: Subject, data: Data) -> dict[tuple[str, str], float | None]:
    plan._encoded.clear()  # nothing is kept from an earlier round
    metrics = [bind("metric", spec) for spec in METRICS["default"]]
    measured = measure(subject, data, plan_for(metrics, data))
    twin = measure(oracle, data, plan_for([bind("metric", "truth_ratio")], Data(forget=data["forget"])))
    return {key: found.value for key, found in score_all(metrics, data, measured, twin).items()}


def per_metric(subject: Subject, oracle: Subject, data: Data) -> dict[tuple[str, str], float | None]:
    plain = PerMetric(subject, data, oracle)
    out: dict[tuple[str, str], float | None] = {}
    for spec in METRICS["default"]:
        metric = bind("metric", spec)
        if metric.name == "membership" and "holdout" not in data:
            continue
        extra = (metric.hyper["score"],) if metric.name == "membership" else ()
        for stream in applies(metric, data):
            out[stream, label(metric)] = getattr(plain, metric.name)(stream, *extra)
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("oracle")
    options.add_argument("--examples", type=int, default=400)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--data")
    asked = options.parse_args()
    subject, oracle, data = (
        load(asked.model),
        load(asked.oracle),
        (tofu(asked.data, asked.examples) if asked.data else people(asked.examples)),
    )
    seconds: dict[str, list[float]] = {"ours": [], "per metric": []}
    scores = {}
    for _ in range(asked.rounds):
        for name, side in (("ours", ours), ("per metric", per_metric)):
            begun = time.perf_counter()
            scores[name] = side(subject, oracle, data)
            seconds[name].append(time.perf_counter() - begun)
    pairs = [(key, scores["ours"][key], scores["per metric"].get(key)) for key in scores["ours"]]
    worst = max((abs(a - b) / max(1.0, abs(b)), key) for key, a, b in pairs if a is not None and b is not None)
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["per metric"], strict=True))
    print("| | ours | one pass per metric | per metric / ours |\n|---|---:|---:|---:|")
    both = [statistics.median(values) for values in seconds.values()]
    print(f"| seconds | {both[0]:.2f} | {both[1]:.2f} | {ratio:.2f} |")
    print(f"\n{len(pairs)} scores; largest relative difference {worst[0]:.1e} ({worst[1][1]} on {worst[1][0]})")


if __name__ == "__main__":
    main()
