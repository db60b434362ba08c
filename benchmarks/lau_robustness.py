"""Do forget steps under an adversary last longer? NPO against AdvNPO, equally deep and with equally much kept.

    python benchmarks/lau_robustness.py [--seeds 5] [--all]

A Llama of 4 blocks learns 48 key -> value facts by heart; 16 are to be forgotten by NPO (beta 0.1, 5 * likelihood on
the other 32). Every variant stops at the first step at which the clean forget loss is above 9 nats and the retain loss
at most 0.01, so that none is compared at another depth or with less kept. Then it is attacked, by the registered
attacks where there is one:

    random     a random suffix of 4 words behind every key (`dua`, its control)
    best of 64 the best of 64 such suffixes, one for all keys
    gcg        a suffix searched for on the very facts that are scored (`gcg`, 30 steps of 64)
    transfer   the same search on the model before the removal (`dua`, practicality: original)
    soft       4 vectors trained on 8 of the facts, the other 8 scored (`soft_prompt`, 60 steps)
    latent     the best latent push (radius 4, block 1, 12 steps)
    relearn    8 of the facts are taught again for 10 steps, the other 8 scored (`relearn`)

What is told is by how much the loss of a scored fact falls, in nats: smaller is better. A model that never learned the
16 facts is attacked too: what falls there is no memory. Intervals resample whole seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from expunge import machine
from expunge.attacks.shown import asked_like
from expunge.data.tokenise import collate
from expunge.forget import forget
from expunge.loop import Forget
from expunge.measure.forward import kept_logits, token_logp
from expunge.metrics.stats import bootstrap_ci
from expunge.models import blocks, clone
from expunge.perturb.latent import Push, entering, search, zeros
from expunge.registry import bind, term
from expunge.run import Run
from expunge.types import Data, Example, Movable, Stream, Subject, Wrapper

NUM_FACTS, NUM_FORGET, NUM_WORDS, NUM_VALUES = 48, 16, 160, 40
DEPTH, RETAINED, MOST_STEPS = 9.0, 0.01, 600
NUM_SUFFIXES, SUFFIX_WORDS = 64, 4
NEVER = "never learned them"
Facts = dict[str, tuple[float, bool]]  # loss in nats and whether it is predicted, by id

ADAM = {"use": "adamw", "weight_decay": 0.0, "decay": "constant"}
PUSH = {"use": "latent", "layer": 1}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "NPO": {},
    "AdvNPO eps 1, K 6": {"perturb": {**PUSH, "eps": 1.0}},
    "AdvNPO eps 4, K 6": {"perturb": {**PUSH, "eps": 4.0}},
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "AdvNPO eps 4, K 1": {"perturb": {**PUSH, "eps": 4.0, "steps": 1}},
    "AdvNPO eps 4, K 6, clean 0": {"perturb": {**PUSH, "eps": 4.0, "clean": 0.0}},
    "NPO + SAM rho 0.05": {"perturb": {"use": "sam", "rho": 0.05}},
    "CIR": {
        "perturb": {"use": "collapse", "norm": 1.0}, "scope": {"use": "layers", "match": "mlp"},
        "optimizer": {"use": "sgd"}, "lr": 0.1, "alpha": 0.5,
    },
}


def words_tokenizer() -> Any:
    """One token per word; nothing ends a text, so a value is all there is to predict."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "x", *(f"k{i}" for i in range(NUM_WORDS)), *(f"v{i}" for i in range(NUM_VALUES))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


def facts(seed: int) -> Data:
    """Keys of three words, values of one; the first 16 facts are to go."""
    random = np.random.default_rng([seed, 1])
    made = tuple(
        Example(str(i), " ".join(f"k{k}" for k in random.integers(0, NUM_WORDS, 3)), f"v{random.integers(NUM_VALUES)}")
        for i in range(NUM_FACTS)
    )
    return Data(
        forget=Stream("forget", "forget", made[:NUM_FORGET]), retain=Stream("retain", "retain", made[NUM_FORGET:])
    )


def learned(data: Data, seed: int, streams: Sequence[str]) -> Subject:
    """A model that knows the facts of these streams."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = words_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )
    torch.manual_seed(seed)
    subject = Subject(LlamaForCausalLM(config).eval(), tokenizer, Wrapper("{prompt} {answer}"))
    every = Stream("all", "anchor", tuple(one for name in streams for one in data[name].examples))
    stage = forget(terms=[term("nll", on="all")], steps=150, lr=3e-3, batch_size=len(every), optimizer=ADAM)
    taught: Subject = stage(subject, Data(all=every), Run(seed=seed))
    return replace(taught, lineage=())


@torch.no_grad()
def asked(subject: Subject, examples: Sequence[Example]) -> Facts:
    """Every fact as this subject's wrapper asks it."""
    batch = collate(asked_like(subject, examples))
    keep = batch.positions("answer")
    logits, _ = kept_logits(subject.model, batch, keep)
    right = logits.argmax(-1) == batch.target_ids[:, 1:][keep]  # a value is one token
    found = zip((-token_logp(logits, batch, keep)[keep]).tolist(), right.tolist(), strict=True)
    return dict(zip(batch.ids, found, strict=True))


def mean_loss(facts: Facts) -> float:
    return statistics.mean(loss for loss, _ in facts.values())


def unlearned(start: Subject, data: Data, variant: Mapping[str, Any], seed: int) -> tuple[Subject, int, float]:
    """A copy at the matched point, the steps and the CPU-seconds of training it took; None of it when never reached."""
    subject, settings = clone(start), {"optimizer": ADAM, "lr": 3e-4, "alpha": 5.0, "scope": "all", **variant}
    movable: Movable = bind("scope", settings["scope"])(subject.model)
    terms = [term("npo", on="forget", beta=0.1), term("nll", on="retain", weight=settings["alpha"])]
    updater = bind("optimizer", settings["optimizer"])(movable, settings["lr"])
    perturb = bind("perturb", settings.get("perturb", "none"))()
    loop = Forget(subject, data, terms, movable, updater, MOST_STEPS, NUM_FACTS, seed, "cpu", perturb)
    spent, begun = 0.0, time.process_time()
    for record in loop.run():
        spent += time.process_time() - begun
        deep = mean_loss(asked(subject, data["forget"].examples)) > DEPTH
        if deep and mean_loss(asked(subject, data["retain"].examples)) <= RETAINED:
            return subject, record["step"] + 1, spent
        begun = time.process_time()
    return subject, -1, spent


SEARCH = {"length": SUFFIX_WORDS, "steps": 30, "width": 64}
_carried: dict[int, Wrapper] = {}


# -- attacks: what becomes of the facts that are scored ---------------------------------------------------------------
def by(name: str, **hyper: Any) -> Callable[[Subject, Data, int], Facts]:
    """A registered attack: the facts that it leaves to score, under the first subject it yields."""

    def attacked(subject: Subject, data: Data, seed: int) -> Facts:
        changed = next(bind("attack", {"use": name, "seed": seed, **hyper})(subject, data, Run(seed=seed)))
        return asked(changed, [one for one in data["forget"].examples if one.id not in changed.exposed])

    return attacked


def carried(subject: Subject, data: Data, seed: int) -> Facts:
    """Under the suffix found on the model before the removal, which is searched for once per seed."""
    if seed not in _carried:
        hyper = {"practicality": "original", "pairs": NUM_FORGET, "seed": seed, **SEARCH}
        *_, changed = bind("attack", {"use": "dua", **hyper})(subject, data, Run(seed=seed))
        _carried[seed] = changed.wrapper
    return asked(replace(subject, wrapper=_carried[seed]), data["forget"].examples)


def best_random(subject: Subject, data: Data, seed: int) -> Facts:
    random = np.random.default_rng([seed, 2])
    found = []
    for _ in range(NUM_SUFFIXES):
        suffix = " ".join(f"k{k}" for k in random.integers(0, NUM_WORDS, SUFFIX_WORDS))
        put = [replace(one, prompt=f"{one.prompt} {suffix}") for one in data["forget"].examples]
        found.append(asked(subject, put))
    return min(found, key=mean_loss)


def pushed(subject: Subject, data: Data, seed: int) -> Facts:
    batch = collate(asked_like(subject, data["forget"].examples))
    push = Push(batch, zeros, 4.0)
    search(subject.model, batch.positions("answer"), 1, push, 12)
    with entering(blocks(subject.model)[1][1], push.outer):
        return asked(subject, data["forget"].examples)


ATTACKS: Mapping[str, Callable[[Subject, Data, int], Facts]] = {
    "random": by("dua", length=SUFFIX_WORDS, pairs=NUM_FORGET),
    "best of 64": best_random,
    "gcg": by("gcg", num=NUM_FORGET, search={"early_stop": False}, **SEARCH),
    "transfer": carried,
    "soft": by("soft_prompt", length=4, steps=60, share=0.5),
    "latent": pushed,
    "relearn": by("relearn", steps=10, share=0.5, lr=3e-4, batch_size=8),
}


# -- the table -------------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """What was found of one variant: per seed how it was made, per attack and (seed, id) the drop and whether right."""

    made: list[tuple[float, ...]] = field(default_factory=list)  # updates, CPU-seconds, forget loss, retain loss
    drops: dict[str, dict[tuple[int, str], float]] = field(default_factory=dict)
    right: dict[str, dict[tuple[int, str], float]] = field(default_factory=dict)
    missed: int = 0

    def take(self, subject: Subject, data: Data, seed: int, made: tuple[float, float]) -> None:
        clean = asked(subject, data["forget"].examples)
        self.made.append((*made, mean_loss(clean), mean_loss(asked(subject, data["retain"].examples))))
        for name, attacked in {"none": lambda *_: clean, **ATTACKS}.items():
            for key, (loss, right) in attacked(subject, data, seed).items():
                self.drops.setdefault(name, {})[seed, key] = clean[key][0] - loss
                self.right.setdefault(name, {})[seed, key] = float(right)


def measured(seeds: int, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    found = {name: Row() for name in (*variants, NEVER)}
    for seed in range(seeds):
        data = facts(seed)
        start = learned(data, seed, ("forget", "retain"))
        print(f"seed {seed}: loss {mean_loss(asked(start, data['forget'].examples)):.4f} before", flush=True)
        helpers = {"original": start}
        found[NEVER].take(replace(learned(data, seed, ("retain",)), helpers=helpers), data, seed, (0, 0))
        for name, variant in variants.items():
            subject, steps, spent = unlearned(start, data, variant, seed)
            if steps < 0:
                found[name].missed += 1
                continue
            begun = time.process_time()
            found[name].take(replace(subject, helpers=helpers), data, seed, (steps, spent))
            told = [f"{attack} {statistics.mean(v for (s, _), v in drops.items() if s == seed):.2f}"
                    for attack, drops in found[name].drops.items()]
            print(f"  {name}: {steps} updates; {', '.join(told)}; {time.process_time() - begun:.0f} s", flush=True)
    return found


def interval(values: Mapping[tuple[int, str], float]) -> str:
    """Mean and 95 % interval over seeds."""
    ci = bootstrap_ci(list(values.values()), groups=[str(seed) for seed, _ in values])
    mean = statistics.mean(values.values())
    shown = [f"{round(value, 2) + 0.0:.2f}" for value in (mean, *(ci or ()))]  # + 0.0: no minus before a zero
    return shown[0] if ci is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def difference(mine: Mapping[tuple[int, str], float], other: Mapping[tuple[int, str], float]) -> str:
    """Mine less the other's, fact by fact where both are there."""
    return interval({key: value - other[key] for key, value in mine.items() if key in other})


def table(heads: Sequence[str], lines: Iterator[tuple[str, Sequence[str]]]) -> None:
    print("\n| | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    for name, cells in lines:
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--all", action="store_true", help="SAM, CIR and two more ways of AdvNPO as well")
    given = options.parse_args()
    machine.prepare()
    machine.set_threads()
    found = measured(given.seeds, {**VARIANTS, **(OTHERS if given.all else {})})
    heads = ("updates", "CPU s", "forget loss", "retain loss", "runs")
    rows = {name: row for name, row in found.items() if row.made}
    table(heads, (
        (name, [*(f"{statistics.mean(column):.3g}" for column in zip(*row.made, strict=True)),
                f"{len(row.made)} of {len(row.made) + row.missed}"])
        for name, row in found.items() if row.made
    ))
    print("\nNats by which the loss of a scored fact falls:")
    table(list(ATTACKS), ((name, [interval(row.drops[attack]) for attack in ATTACKS]) for name, row in rows.items()))
    print("\nThe same, less what falls with NPO:")
    table(list(ATTACKS), (
        (name, [difference(row.drops[attack], rows["NPO"].drops[attack]) for attack in ATTACKS])
        for name, row in rows.items() if name != "NPO"
    ))
    print("\nShare of the scored facts that are right:")
    every = ("none", *ATTACKS)
    table(every, ((name, [interval(row.right[attack]) for attack in every]) for name, row in rows.items()))


if __name__ == "__main__":
    main()
