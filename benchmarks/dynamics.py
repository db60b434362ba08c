"""When does a model know its texts by heart, and how fast are they gone again? Four sizes on children's stories.

    python benchmarks/dynamics.py TEXT_FOLDER [--out runs/dynamics]

256 stories (their first 360 characters) are learned from nothing by models of four sizes under AdamW at one rate. After
24 epochs 32 stories that were never seen are shown for 16 updates, and training goes on for 12 epochs without them;
32 further stories never are. M, T(N, tau), the forgetting curve, the order of the word classes; then, without a visit,
the same with "document ID <number>" before each story (two sizes), with two other rates and with a quarter of the
stories (one size each). Every cell is a run folder that an interrupted study goes on from; a finished study only prints
its tables and writes OUT/dynamics.html.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge import machine

machine.prepare()
machine.set_threads()

from expunge import dynamics  # noqa: E402
from expunge.data.scratch import new_model  # noqa: E402
from expunge.dynamics import Curve  # noqa: E402
from expunge.dynamics.chapters import HIDDEN, order_sheet  # noqa: E402
from expunge.forget import forget  # noqa: E402
from expunge.registry import term  # noqa: E402
from expunge.report.chapters import Chapter, Chart, Line, Sheet  # noqa: E402
from expunge.report.lines import page  # noqa: E402
from expunge.run import Run, write_json, write_text  # noqa: E402
from expunge.types import Data, Example, Role, Stream  # noqa: E402
from expunge.watch import watched  # noqa: E402

CHARACTERS, BATCH_SIZE, RATE = 360, 8, 2e-3
VISIT, AFTER, UPDATES = 24, 12, 16  # epochs before and after the visit, steps of the visit
HELD, SPECIAL, CONTROL, TRAIN = (0, 64), (64, 96), (96, 128), 128  # rows of the file; training stories from TRAIN on
TAUS = (0.4, 0.6, 0.8, 0.9)
FEW, GAP = 60, 0.3  # word pieces a class must have; how far above held-out stories counts as learned by heart


@dataclass(frozen=True)
class Cell:
    """One training of the study."""

    name: str
    width: int
    layers: int
    rate: float = RATE
    stories: int = 256
    on: str = "train"
    visit: bool = False

    @property
    def epochs(self) -> int:
        return VISIT + AFTER if self.visit else VISIT


SIZES = ((32, 2), (64, 2), (128, 3), (192, 4))
MAIN = [Cell(f"{width}x{layers}", width, layers, visit=True) for width, layers in SIZES]
NAMED = [Cell(f"{width}x{layers}-identified", width, layers, on="train:identified") for width, layers in SIZES[1:3]]
RATES = [Cell(f"64x2-rate-{rate:g}", 64, 2, rate=rate) for rate in (5e-4, 8e-3)]
FEWER = [Cell("64x2-64-stories", 64, 2, stories=64)]


def streams(folder: Path, stories: int) -> Data:
    """Training, held-out, special and control stories; the same rows for every cell."""
    texts = json.loads((folder / "tinystories_1000.json").read_text(encoding="utf-8"))

    def stream(name: str, role: Role, start: int, end: int) -> Stream:
        rows = [(i, " ".join(texts[i].split())[:CHARACTERS].rsplit(" ", 1)[0]) for i in range(start, end)]
        return Stream(name, role, tuple(Example(f"{name}/{i}", "", text) for i, text in rows))

    return Data(
        train=stream("train", "retain", TRAIN, TRAIN + stories), heldout=stream("heldout", "probe", *HELD),
        special=stream("special", "forget", *SPECIAL), control=stream("control", "holdout", *CONTROL),
    )


def work(cell: Cell, folder: Path, out: Path) -> dict[str, Any]:
    """Train a cell under the watch, or go on with it; what it took."""
    done = out / "done.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    begun = time.process_time()
    data, whole = streams(folder, cell.stories), streams(folder, 256)
    subject = new_model(whole, 0, width=cell.width, layers=cell.layers)  # one tokenizer for all cells
    per_epoch = cell.stories // BATCH_SIZE
    schedule: dict[str, Any] = {"use": "once"}
    if cell.visit:
        schedule = {"use": "inject", "stream": "special", "at": VISIT * per_epoch, "updates": UPDATES}
    stage = forget(
        terms=[term("nll", on=cell.on)], optimizer={"use": "adamw", "warmup": 0.03, "decay": "constant"}, lr=cell.rate,
        steps=cell.epochs * per_epoch + (UPDATES if cell.visit else 0), batch_size=BATCH_SIZE, schedule=schedule,
    )
    probes = [cell.on, "heldout", *(("special", "control") if cell.visit else ())]
    run = Run(out, resume=True, save_every=10 * per_epoch)
    watched(stage, {"use": "dynamics", "on": probes, "most": 96})(subject, data, run)
    parameters = sum(one.numel() for one in subject.model.parameters())
    result = {"parameters": parameters, "cpu_seconds": round(time.process_time() - begun, 1)}
    write_json(done, result)
    return result


def curves(cell: Cell, out: Path) -> Mapping[str, Curve]:
    """Stream -> curve of a finished cell; what was trained on is called "train" in all of them."""
    ((_, found),) = dynamics.read(out / cell.name).items()
    return {name.partition(":")[0]: curve for name, curve in found.items()}


def plus(values: Iterable[float | None], form: str = "{:.1f}") -> tuple[str, ...]:
    """Numbers as texts; a value that was never reached is a dash."""
    return tuple("–" if value is None else form.format(value) for value in values)


def reach(curve: Curve) -> tuple[str, ...]:
    """Epochs to each level, by interpolation; in brackets where the curve ended instead."""
    end = curve.readings[-1].memorization
    found = dynamics.crossings(curve, TAUS)
    return tuple(f"({end:.2f})" if one.interpolated is None else f"{one.interpolated:.1f}" for one in found)


def left_over(found: Mapping[str, Curve], draws: int = 2000) -> tuple[float, float]:
    """95 % of what is left of the visit over resampled stories, at the step of the baseline."""
    gone = dynamics.forgetting_of(found)
    assert gone is not None
    visit = next(curve.visit for curve in found.values() if curve.visit)
    generator = np.random.default_rng(0)

    def change(name: str) -> np.ndarray:
        after, before = found[name].at(visit.at + visit.updates + gone.step), found[name].at(visit.at)
        assert after is not None
        assert before is not None
        rows = np.array([(after.each[one][0], before.each[one][0], after.each[one][1]) for one in after.each])
        sums = rows[generator.integers(0, len(rows), (draws, len(rows)))].sum(1)
        moved: np.ndarray = (sums[:, 0] - sums[:, 1]) / sums[:, 2]
        return moved

    low, high = np.percentile(change("special") - change("control"), [2.5, 97.5])
    return float(low), float(high)


def learning(out: Path, bills: Mapping[str, Any]) -> Chapter:
    """Levels by size."""
    found = {cell.name: curves(cell, out) for cell in MAIN}
    rows = []
    for name, one in found.items():
        best = dynamics.before_overfitting(one["train"], one["heldout"])
        at8 = dict(one["train"].points()).get(8.0)
        update = dynamics.crossings(one["train"], (0.9,))[0].updates
        rows.append((
            name, f"{bills[name]['parameters']:,}", *reach(one["train"]), "–" if update is None else f"{update:,}",
            *plus([at8, *((best[1],) if best else (None,)), one["heldout"].readings[-1].memorization], "{:.3f}"),
            "–" if best is None else f"{best[0]:g}", f"{bills[name]['cpu_seconds']:.0f}",
        ))
    head = ("size", "parameters", *(f"T({tau})" for tau in TAUS), "updates to .9", "M at epoch 8",
            "M before overfitting", "M of held-out stories, end", "epoch of least held-out loss", "CPU seconds")
    trained = tuple(Line(name, tuple(one["train"].points())) for name, one in found.items())
    held = tuple(Line(name, tuple(one["heldout"].points())) for name, one in found.items())
    marks = ((float(VISIT), "visit"),)
    return Chapter(
        "Larger models learn by heart sooner", "T in epochs, by interpolation; in brackets M at the end where a level "
        "was never reached.",
        (Chart("M of the stories that are trained on", "epochs", trained, marks=marks),
         Chart("M of stories that never are", "epochs", held, marks=marks)),
        (Sheet("Levels by size", head, tuple(rows)),),
    )


def forgetting(out: Path) -> Chapter:
    """What became of the special stories by size."""
    rows, lines = [], []
    for cell in MAIN:
        found = curves(cell, out)
        gone = dynamics.forgetting_of(found)
        assert gone is not None
        low, high = left_over(found)
        shares = plus([gone.before, gone.start, gone.baseline, gone.control, gone.excess, gone.left], "{:.3f}")
        rows.append((cell.name, *shares, f"{low:.3f} to {high:.3f}", f"{gone.half_time:,}", f"{gone.step:,}"))
        control = dict(found["control"].by_step())
        since = VISIT * cell.stories // BATCH_SIZE + UPDATES
        lines.append(Line(cell.name, tuple(
            (step - since, share - control[step]) for step, share in found["special"].by_step() if step >= since
        )))
    head = ("size", "before", f"after {UPDATES} updates", "baseline", "control, same step", "excess", "left",
            "95 % of left", "half gone after steps", "baseline at step")
    return Chapter(
        "What is left of stories that were shown for a while", "Excess: baseline minus control. Left: what of it was "
        "not there before the visit; its range is over resampled stories.",
        (Chart("M of the special stories minus M of the control", "steps since their last update", tuple(lines),
               doubling=True),),
        (Sheet("Forgetting by size", head, tuple(rows)),),
    )


def above(found: Mapping[str, Curve], tag: str) -> list[tuple[float, float]]:
    """(epoch, R(tag) of the training stories minus that of held-out ones)."""
    held = dict(found["heldout"].points(tag))
    return [(epoch, share - held[epoch]) for epoch, share in found["train"].points(tag)]


def word_classes(out: Path) -> Chapter:
    """Which words come first: by R(p), and by how far it is above that of stories that are never trained on."""
    found = {cell.name: curves(cell, out) for cell in MAIN}
    largest = found[MAIN[-1].name]
    sizes = {tag: num for tag, num in largest["train"].tags().items()
             if tag not in HIDDEN and min(num, largest["heldout"].tags().get(tag, 0)) >= FEW}
    shown = sorted(sizes, key=lambda tag: -sizes[tag])
    sheet = order_sheet({name: one["train"] for name, one in found.items()})
    rows = tuple((f"{tag} ({sizes[tag]:,})", *rest) for tag, *rest in sheet.rows if tag in sizes)
    gaps = {tag: [dynamics.interpolated_reach(above(one, tag), GAP) for one in found.values()] for tag in sizes}
    ordered = sorted(gaps, key=lambda tag: gaps[tag][-1] or np.inf)
    over = tuple((tag, *plus(gaps[tag])) for tag in ordered)
    return Chapter(
        "Which words come first", "Classes of the tagger without a model; in brackets word pieces of the 96 stories "
        "that are looked at. What is easy comes first by itself; the second table is about what is beyond that.",
        (Chart(f"R(p), {MAIN[-1].name}", "epochs", tuple(Line(t, tuple(largest["train"].points(t))) for t in shown)),
         Chart(f"R(p) minus R(p) of held-out stories, {MAIN[-1].name}", "epochs",
               tuple(Line(tag, tuple(above(largest, tag))) for tag in shown))),
        (Sheet(sheet.title, sheet.head, rows, sheet.note),
         Sheet(f"Epoch at which a word class was {GAP * 100:.0f} points above held-out stories",
               ("word class", *found), over)),
    )


def others(out: Path) -> Chapter:
    """Identifiers, rates, data."""
    plain = {cell.name: cell for cell in MAIN}
    pairs = [(named, plain[named.name.removesuffix("-identified")]) for named in NAMED]
    rows, lines = [], []
    for named, bare in pairs:
        for cell, what in ((bare, "without"), (named, "with a document ID")):
            curve = curves(cell, out)["train"]
            rows.append((f"{bare.name}, {what}", *reach(curve)))
            lines.append(Line(f"{bare.name} {what}", tuple(p for p in curve.points() if p[0] <= VISIT)))
    swept = [(f"rate {cell.rate:g}", cell) for cell in (RATES[0], plain["64x2"], RATES[1])]
    swept += [(f"{cell.stories} stories", cell) for cell in (*FEWER, plain["64x2"])]
    tables = tuple((f"64x2, {name}", *reach(curves(cell, out)["train"])) for name, cell in swept)
    head = ("", *(f"T({tau})" for tau in TAUS))
    return Chapter(
        "Identifiers, rates and data", "Brackets: M at the end where a level was never reached (epoch 24, with a visit "
        "epoch 36).",
        (Chart("With and without a document ID", "epochs", tuple(lines)),),
        (Sheet("Identifiers", head, tuple(rows)), Sheet("Learning rate and number of stories", head, tables)),
    )


def markdown(sheet: Sheet) -> str:
    lines = [sheet.head, ("---",) * len(sheet.head), *sheet.rows]
    return f"### {sheet.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("texts", type=Path, help="folder with tinystories_1000.json")
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics"))
    given = parser.parse_args()
    bills: dict[str, Any] = {}
    for cell in (*MAIN, *NAMED, *RATES, *FEWER):
        bills[cell.name] = work(cell, given.texts, given.out / cell.name)
        print(f"{cell.name}: {bills[cell.name]}", flush=True)
    found = [learning(given.out, bills), forgetting(given.out), word_classes(given.out), others(given.out)]
    for chapter in found:
        print("\n".join(markdown(sheet) for sheet in chapter.sheets))
    seconds = sum(bill["cpu_seconds"] for bill in bills.values())
    print(f"{seconds:.0f} CPU-seconds in all")
    title = "When is a text known by heart, and for how long?"
    write_text(given.out / "dynamics.html", page(title, found, over="Expunge study", meta=[
        ("Sizes", str(len(SIZES))), ("Stories", "256"), ("CPU seconds", f"{seconds:.0f}"),
    ]))


if __name__ == "__main__":
    main()
