"""A larger model, made and audited on one GPU within 25 minutes.

    python benchmarks/gpu_study.py prepare --data DATA --out gpu_data        # anywhere; writes tokens and TOFU's rows
    python benchmarks/gpu_study.py run --data gpu_data --out OUT             # on the GPU; writes OUT/gpu_study.md

A Llama of about 150 M parameters reads plain text (tokens carried as files), then all of TOFU; its oracle twin reads
TOFU without the forgotten authors. Five methods unlearn; each result and the oracle are audited under relearning,
rounding to 4 bits and a suffix search. Then Llamas shaped like those of 1 and 8 billion parameters, with random
weights, are unlearned with LoRA: tokens per second, memory, GPU-seconds per fact, and the share of the measured
matrix-product rate that this is.

`--tiny` runs all of it in seconds on a CPU; a test does that. A part that would begin after its share of `--minutes`
is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge import machine

machine.prepare()
machine.set_threads()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from expunge.audit import Audit  # noqa: E402
from expunge.data.benchmarks.tofu import tofu_data  # noqa: E402
from expunge.data.synthetic_base import build_tokenizer  # noqa: E402
from expunge.data.tokenise import Encoded, collate, encode, texts_of  # noqa: E402
from expunge.models import clone  # noqa: E402
from expunge.recipe import AuditSpec  # noqa: E402
from expunge.registry import bind  # noqa: E402
from expunge.report.numbers import seconds as told_seconds  # noqa: E402
from expunge.run import Run  # noqa: E402
from expunge.types import Data, Example, Stream, Subject, Wrapper  # noqa: E402

STREAMS = ("forget", "retain", "retain_train", "full", "real_authors")
METHODS = ("graddiff", "npo", "simnpo", "rmu", "undial")
METRICS = ("probability", "exact_memorization", "extraction_strength", "rouge", "truth_ratio")


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    width: int = 1024
    layers: int = 12
    heads: int = 16
    vocabulary: int = 16384
    block: int = 512  # tokens of a row of plain text
    rows: int = 64  # rows a step
    passes: float = 6.0  # over the plain text
    tofu_passes: int = 12
    tofu_rows: int = 64
    lr: float = 6e-4
    unlearn_epochs: int = 5
    unlearn_lr: float = 1e-5
    rmu_steps: int = 150
    examples: int = 400  # audited, of each stream
    most: int | None = None  # of each stream at all
    suffix_steps: int = 50
    suffix_width: int = 256
    relearn_steps: int = 20
    matmul: int = 8192
    shapes: tuple[str, ...] = ("1B", "8B")
    shape_steps: int = 12
    shape_batch: int = 16


TINY = Sizes(
    width=32, layers=2, heads=2, vocabulary=400, block=32, rows=4, passes=0.002, tofu_passes=2, tofu_rows=8,
    unlearn_epochs=1, unlearn_lr=1e-3, rmu_steps=2, examples=6, most=24, suffix_steps=1, suffix_width=4,
    relearn_steps=1, matmul=64,
    shapes=("tiny",), shape_steps=2, shape_batch=2,
)
# width, layers, heads, key-value heads, inner width, vocabulary
SHAPES = {
    "1B": (2048, 16, 32, 8, 8192, 128256), "8B": (4096, 32, 32, 8, 14336, 128256), "tiny": (32, 2, 4, 2, 64, 400),
}


# -- what is carried -----------------------------------------------------------------------------------------------
def prepare(source: Path, folder: Path, sizes: Sizes) -> None:
    """Tokenizer, plain text as 16-bit tokens, and TOFU's rows as lines of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    streams = tofu_data(source / "tofu", "forget10")
    texts = [Example(f"text/{i}", "", text) for i, text in enumerate(plain_texts(source)) if text.strip()]
    tokenizer = build_tokenizer([*texts, *streams["full"].examples], size=sizes.vocabulary)
    tokenizer.save_pretrained(str(folder))
    ids = tokenizer([one.answer for one in texts], add_special_tokens=False)["input_ids"]
    flat = [token for row in ids for token in [*row, tokenizer.eos_token_id]]
    np.save(folder / "text.npy", np.asarray(flat, dtype=np.uint16))
    for name in STREAMS:
        rows = [json.dumps(vars(one), ensure_ascii=False) for one in streams[name].examples]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(flat):,} tokens of text, {len(tokenizer):,} in the vocabulary, {size / 2**20:.1f} MiB in {folder}")


def plain_texts(source: Path) -> Iterator[str]:
    """Every plain text file of the data folders, a paragraph or story at a time."""
    for path in sorted([*(source / "text").rglob("*.txt"), *(source / "harry").glob("*.txt")]):
        yield from path.read_text(encoding="utf-8", errors="replace").split("\n\n")
    for path in sorted((source / "text").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        yield from (text for text in found if isinstance(text, str))


def carried(folder: Path) -> tuple[Any, np.ndarray, Data]:
    """Tokenizer, tokens and streams of a prepared folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    roles = {"forget": "forget", "retain": "retain"}
    data = Data()
    for name in STREAMS:
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(line).items()} for line in lines]
        data[name] = Stream(name, roles.get(name, "probe"), tuple(Example(**row) for row in rows))  # type: ignore[arg-type]
    return tokenizer, np.load(folder / "text.npy"), data


# -- a model from nothing ------------------------------------------------------------------------------------------
def new_model(tokenizer: Any, sizes: Sizes, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.width, intermediate_size=sizes.width * 11 // 4,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads,
        max_position_embeddings=max(512, sizes.block), tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device)


def text_batches(tokens: np.ndarray, sizes: Sizes, device: str) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Rows of a step: blocks of tokens from seeded places."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        starts = np.random.default_rng([0, step]).integers(0, len(tokens) - sizes.block, sizes.rows)
        rows = np.stack([tokens[start : start + sizes.block] for start in starts]).astype(np.int64)
        ids = torch.from_numpy(rows).to(device)
        return ids, ids

    return batch


def tofu_batches(encoded: Sequence[Encoded], sizes: Sizes, device: str) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Questions and answers; answers count. Rows are padded to one length, so that one compiled graph serves."""
    width = max(len(one) for one in encoded)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        spots = np.arange(step * sizes.tofu_rows, (step + 1) * sizes.tofu_rows)
        order = np.random.default_rng([1, int(spots[0]) // len(encoded)]).permutation(len(encoded))
        made = collate([encoded[order[spot % len(encoded)]] for spot in spots], device=device)
        missing = width - made.input_ids.shape[1]
        pad = torch.nn.functional.pad
        return pad(made.input_ids, (0, missing)), pad(made.labels, (0, missing), value=-100)

    return batch


def train(
    model: Any, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int, lr: float, until: float
) -> dict[str, Any]:
    """AdamW, warm-up and cosine, bf16 where there is a GPU; float32 master weights. Stops when the clock says so."""
    cuda = model.device.type == "cuda"
    step_of = torch.compile(model) if cuda else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=cuda)
    begun, tokens, loss, done = time.perf_counter(), 0, math.nan, 0
    model.train()
    for step in range(steps):
        if time.perf_counter() > until:
            break
        rate = min((step + 1) / max(1, steps // 20), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        ids, labels = batch(step)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            found = step_of(input_ids=ids, labels=labels).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, done = tokens + ids.numel(), step + 1
        if step == min(20, steps // 2):  # compiled by now
            settle(model.device)
            begun, tokens = time.perf_counter(), 0
    loss = float(found.detach()) if done else math.nan
    settle(model.device)
    model.eval()
    took = time.perf_counter() - begun
    return {"steps": done, "loss": loss, "tokens_per_second": tokens / took if took else 0.0}


def settle(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else float("nan")


def matmul_rate(size: int, device: str) -> float:
    """Products of two square bf16 matrices, in TFLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    settle(device)
    begun, rounds = time.perf_counter(), 20
    for _ in range(rounds):
        a @ b
    settle(device)
    return 2 * size**3 * rounds / (time.perf_counter() - begun) / 1e12


# -- unlearn and audit ---------------------------------------------------------------------------------------------
def unlearned(subject: Subject, data: Data, method: str, sizes: Sizes, device: str) -> tuple[Subject, float]:
    """A copy after a method, and how long it took."""
    own = {"layer": sizes.layers // 2, "steps": sizes.rmu_steps} if method == "rmu" else {}
    spec = {"use": method, "lr": sizes.unlearn_lr, "epochs": sizes.unlearn_epochs, "batch_size": 32, **own}
    after, begun = clone(subject), time.perf_counter()
    for stage in bind("method", spec)():
        after = stage(after, data, Run(device=device))
    settle(device)
    return replace(after, lineage=()), time.perf_counter() - begun


def attacks(sizes: Sizes) -> list[dict[str, Any]]:
    return [
        {"use": "relearn", "steps": sizes.relearn_steps, "lr": 1e-5, "batch_size": 16},
        {"use": "quantize", "bits": 4},
        {"use": "gcg", "steps": sizes.suffix_steps, "width": sizes.suffix_width},
    ]


def study(data_folder: Path, out: Path, sizes: Sizes, device: str, minutes: float) -> str:
    """All parts, as one page of Markdown."""
    begun = time.perf_counter()
    left = lambda share: begun + 60 * minutes * share  # noqa: E731
    torch.set_float32_matmul_precision("high")
    tokenizer, tokens, data = carried(data_folder)
    data = Data({name: replace(one, examples=one.examples[: sizes.most]) for name, one in data.items()})
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    lines = [f"Device: {name}, torch {torch.__version__}", ""]
    rate = matmul_rate(sizes.matmul, device)
    lines += [f"Matrix products in bf16, {sizes.matmul} square: {rate:.1f} TFLOP/s", ""]
    model = new_model(tokenizer, sizes, device)
    number = sum(parameter.numel() for parameter in model.parameters())
    steps = max(2, round(sizes.passes * len(tokens) / (sizes.rows * sizes.block)))
    read = train(model, text_batches(tokens, sizes, device), steps, sizes.lr, left(0.2))
    twins = {}
    subject = Subject(model, tokenizer, Wrapper("chat"), name="study")
    for which, stream in (("original", "full"), ("oracle", "retain_train")):
        twin = clone(subject)
        encoded = encode(twin, texts_of(data[stream]), where=stream)
        steps = max(2, sizes.tofu_passes * len(data["full"]) // sizes.tofu_rows)  # as many steps for both
        found = train(twin.model, tofu_batches(encoded, sizes, device), steps, sizes.lr / 3, left(0.35))
        twins[which] = replace(twin, name=which)
        lines.append(f"{which}: {found['steps']} steps of TOFU, loss {found['loss']:.3f}, "
                     f"{found['tokens_per_second']:,.0f} tokens/s")
    used = 6 * number * read["tokens_per_second"] / 1e12
    lines.insert(4, f"Plain text: {number / 1e6:.0f} M parameters, {read['steps']} steps, loss {read['loss']:.3f}, "
                    f"{read['tokens_per_second']:,.0f} tokens/s ({used / rate:.0%} of the products' rate), "
                    f"{peak_gib(device):.1f} GiB")
    lines += ["", *audited(twins, data, sizes, device, left(0.75))]
    del model, subject, twins
    from gpu_shapes import shaped

    lines += ["", *shaped(sizes, device, rate, left(0.97))]
    lines += ["", f"Everything: {told_seconds(time.perf_counter() - begun)}"]
    text = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_study.md").write_text(text, encoding="utf-8")
    return text


def audited(twins: dict[str, Subject], data: Data, sizes: Sizes, device: str, until: float) -> list[str]:
    """Five methods, each under every attack beside the oracle: one row per condition."""
    some = slice(sizes.examples)
    streams = {role: replace(data[role], examples=data[role].examples[some]) for role in ("forget", "retain")}
    training = Data(forget=data["forget"], retain=replace(data["retain_train"], name="retain", role="retain"))
    spec = AuditSpec(
        tuple(bind("metric", one) for one in METRICS), tuple(bind("attack", one) for one in attacks(sizes))
    )
    audit = Audit(Data(streams), spec, device=device)
    audit.measure(twins["original"], "original")
    audit.measure(twins["oracle"], "oracle")
    for attack in spec.attacks:
        audit.attack(attack, twins["oracle"], "oracle")
    took: dict[str, float] = {}
    skipped = []
    for method in METHODS:
        if time.perf_counter() > until:
            skipped.append(method)
            continue
        after, took[method] = unlearned(twins["original"], training, method, sizes, device)
        audit.measure(after, method)
        for attack in spec.attacks:
            audit.attack(attack, after, method)
    return [*table(audit, took), *([f"Not reached in time: {', '.join(skipped)}"] if skipped else [])]


def table(audit: Audit, took: dict[str, float]) -> list[str]:
    columns = [("forget", metric) for metric in METRICS] + [("retain", "probability")]
    head = ["model", *(f"{metric} ({stream})" for stream, metric in columns), "seconds"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, state in audit.states.items():
        cells = []
        for column in columns:
            score = state.scores[column]
            ends = "" if score.ci is None else f" ({score.ci[0]:.2f}-{score.ci[1]:.2f})"
            cells.append("n/a" if score.value is None else f"{score.value:.2f}{ends}")
        cost = state.condition.cost.seconds if "+" in name else took.get(name)
        rows.append("| " + " | ".join([name, *cells, "" if cost is None else f"{cost:.1f}"]) + " |")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    sizes = TINY if given.tiny else Sizes()
    if given.what == "prepare":
        prepare(given.data, given.out, sizes)
    else:
        print(study(given.data, given.out, sizes, given.device, given.minutes))


if __name__ == "__main__":
    main()
