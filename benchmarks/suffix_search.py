"""The suffix search against the public nanogcg package: candidates per second, and loss against CPU-seconds.

    EXPUNGE_THREADS=1 python benchmarks/suffix_search.py TOFU_FOLDER --peer PYTHON_A --peer PYTHON_B

Each peer is the interpreter of an environment with nanogcg (0.2.3 beside transformers 5, where its prefix cache does
not work and is off; 0.3.0 needs transformers <= 4.47). Every peer runs for a few seconds with batches of 64 and of all
candidates at once; the fastest setting is the one compared with. Same model, prompt, target, start, seeds and width;
one thread; times are CPU-seconds of the process, without loading. Losses at the start must agree.

Two models: the Llama of `tofu_suite.py` (taught all of TOFU; the target is a false answer to a question it knows, after
two other questions), and one with random weights (6 layers, 256 wide, vocabulary 8,192).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WIDTH, TOP_K, LENGTH, TARGET = 512, 256, 20, 12
Trail = list[tuple[float, float, int]]  # CPU-seconds, best loss so far, candidates read


# -- the peer's side: runs in its own interpreter, without expunge -------------------------------------------------
class Over(Exception):
    """The time is up."""


def peer(job: dict[str, Any]) -> dict[str, Any]:
    """One run of nanogcg: its version, and how its loss fell."""
    from importlib.metadata import version

    import nanogcg.gcg as theirs
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    folder = Path(job["model"])
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False, **job["special"]
    )
    tokenizer.chat_template = job["template"]
    trail: Trail = []
    state = {"begun": 0.0, "candidates": 0, "best": float("inf")}
    name = "_compute_candidates_loss_original" if hasattr(
        theirs.GCG, "_compute_candidates_loss_original"
    ) else "compute_candidates_loss"
    read, add = getattr(theirs.GCG, name), theirs.AttackBuffer.add

    def counted(self: Any, size: int, embeds: Any) -> Any:
        state["candidates"] += len(embeds)
        return read(self, size, embeds)

    def told(self: Any, loss: Any, ids: Any) -> None:
        add(self, loss, ids)
        state["best"] = min(state["best"], float(loss))
        trail.append((time.process_time() - state["begun"], state["best"], int(state["candidates"])))
        if trail[-1][0] >= job["seconds"]:
            raise Over

    setattr(theirs.GCG, name, counted)
    theirs.AttackBuffer.add = told
    config = theirs.GCGConfig(
        num_steps=10**6, optim_str_init=job["start"], search_width=job["width"], topk=job["top_k"], seed=job["seed"],
        use_prefix_cache=version("nanogcg") >= "0.3", batch_size=job["batch_size"] or None, verbosity="ERROR",
    )
    state["begun"] = time.process_time()
    with suppress(Over):
        theirs.run(model, tokenizer, job["prompt"], job["target"], config)
    return {"name": f"nanogcg {version('nanogcg')}", "trail": trail}


def ask(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """A peer's run, in its interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        told, found = Path(folder) / "job.json", Path(folder) / "found.json"
        told.write_text(json.dumps(job), encoding="utf-8")
        subprocess.run([python, __file__, "--job", str(told), str(found)], check=True, env=environment)
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return result


# -- our side --------------------------------------------------------------------------------------------------------
def ours(folder: str, example: Any, *, seconds: float, seed: int, random: float = 0.1) -> Trail:
    """One run of our search; random: share of candidates not drawn by gradient (theirs: 0)."""
    from expunge.attacks.suffix.problem import problems_of
    from expunge.attacks.suffix.search import Settings, search
    from expunge.models import load
    from expunge.run import Run

    problems = problems_of(load(folder), [example], length=LENGTH, num_target=TARGET)
    settings = Settings(steps=10**6, width=WIDTH, top_k=TOP_K, early_stop=False, seed=seed, random=random)
    trail: Trail = []
    begun = time.process_time()
    for step in search(problems, settings, Run()):
        trail.append((time.process_time() - begun, step.loss, step.cost.queries))
        if trail[-1][0] >= seconds:
            break
    return trail


def job_of(folder: str, example: Any, seed: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """What a peer is told: the same texts, cut where we cut them. batch_size 0: all candidates at once."""
    from expunge.attacks.suffix.problem import problems_of
    from expunge.models import load

    subject = load(folder)
    one = problems_of(subject, [example], length=LENGTH, num_target=TARGET)[0]
    tokenizer = subject.tokenizer
    return {
        "model": folder, "template": tokenizer.chat_template, "prompt": example.prompt + "{optim_str}",
        "special": {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token},
        "start": one.put(one.start).text, "target": tokenizer.decode(one.target), "width": WIDTH, "top_k": TOP_K,
        "seed": seed, "seconds": seconds, "batch_size": batch_size,
    }


def trained_model(data: str) -> tuple[str, Any]:
    """The model of the TOFU suite, and a question with a false answer."""
    from dataclasses import replace

    from expunge.benches.world import Architecture, trained
    from expunge.data.benchmarks.tofu import tofu_data

    streams = tofu_data(data, "forget10")
    full = streams["full"].examples
    folder = trained(full, full, Architecture(width=256, epochs=4.0))
    asked, *others = streams["forget"].examples[:3]
    prompt = " ".join(one.prompt for one in (*others, asked))
    return str(folder), replace(asked, prompt=prompt, answer=asked.perturbed[0], spans=())


def random_model(place: str, tokenizer_of: str) -> str:
    """Random weights in the shape of the dossier's timing, with the tokenizer of the other model."""
    from dataclasses import replace

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from expunge.models import load, save

    subject = load(tokenizer_of)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None, pad_token_id=0, eos_token_id=1,
    )
    torch.manual_seed(0)
    return str(save(replace(subject, model=LlamaForCausalLM(config).eval()), place))


# -- the comparison --------------------------------------------------------------------------------------------------
def rate(trail: Trail) -> float:
    """Candidates per CPU-second after the start was scored."""
    return (trail[-1][2] - trail[0][2]) / (trail[-1][0] - trail[0][0])


def loss_at(trail: Trail, seconds: float) -> float:
    return min(loss for at, loss, _ in trail if at <= seconds or at == trail[0][0])


def fastest(peers: list[str], folder: str, example: Any, seconds: float) -> tuple[str, int]:
    """The interpreter and batch size with which nanogcg reads most candidates a second."""
    found = []
    for python in peers:
        for size in (64, 0):
            told = ask(python, job_of(folder, example, 0, seconds, size))
            found.append((rate(told["trail"]), python, size))
            print(f"    {told['name']}, batches of {size or 'all'}: {found[-1][0]:.0f} candidates/s", flush=True)
    _, python, size = max(found)
    return python, size


def compare(name: str, model: tuple[str, Any], peers: list[str], seconds: float, seeds: int) -> None:
    """One table: what each read and reached, a run per seed."""
    print(f"\n## {name}\n", flush=True)
    python, size = fastest(peers, *model, seconds=min(8.0, seconds))
    runs: dict[str, list[Trail]] = {"ours": [], "ours, no random candidates": [], "": []}
    for seed in range(seeds):
        told = ask(python, job_of(*model, seed, seconds, size))
        runs[""].append(told["trail"])
        for who, share in (("ours", 0.1), ("ours, no random candidates", 0.0)):
            runs[who].append(ours(*model, seconds=seconds, seed=seed, random=share))
            start = runs[who][-1][0][1], told["trail"][0][1]
            assert abs(start[0] - start[1]) < 1e-3, f"the losses at the start differ: {start}"
    runs[f"{told['name']}, batches of {size or 'all'}"] = runs.pop("")
    marks = [seconds / 8, seconds / 4, seconds / 2, seconds]
    print("\n| | candidates/s | steps |" + "".join(f" loss at {mark:g} s |" for mark in marks))
    print("|---|---:|---:|" + "---:|" * len(marks))
    for who, trails in runs.items():
        shown = [" / ".join(f"{loss_at(trail, mark):.2f}" for trail in trails) for mark in marks]
        steps = sum(map(len, trails)) / seeds - 1
        print(f"| {who} | {mean_rate(trails):.0f} | {steps:.0f} |" + "".join(f" {text} |" for text in shown))
    *_, theirs = runs.values()
    print(f"\nratio of candidates/s: {mean_rate(runs['ours']) / mean_rate(theirs):.2f}", flush=True)


def mean_rate(trails: list[Trail]) -> float:
    return sum(map(rate, trails)) / len(trails)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", nargs="?", help="folder of TOFU")
    options.add_argument("--peer", action="append", default=[])
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.job:
        job = json.loads(Path(asked.job[0]).read_text(encoding="utf-8"))
        Path(asked.job[1]).write_text(json.dumps(peer(job)), encoding="utf-8")
        return
    from expunge import machine

    machine.prepare()
    machine.set_threads()
    folder, example = trained_model(asked.data)
    compare("trained, 4.3 M parameters", (folder, example), asked.peer, asked.seconds, asked.seeds)
    with tempfile.TemporaryDirectory() as place:
        other = random_model(place, folder)
        compare("random weights, 8.9 M parameters", (other, example), asked.peer, asked.seconds / 2, 1)


if __name__ == "__main__":
    sys.exit(main())
