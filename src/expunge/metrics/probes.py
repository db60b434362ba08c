"""Linear probes: can a straight cut through a layer's states tell true answers from false ones?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.stats import Floats, Indices, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

FOLDS = 5
BUCKETS = 2048  # of the bag of words: token ids modulo this
CONTROLS = 5  # permutations of the labels
UNIT, RANGE = "accuracy difference", (-1.0, 1.0)


def ridge(x: Floats, y: Floats, penalty: float) -> Floats:
    """beta = (X^T X + penalty I)^-1 X^T y, [D], from X [N, D]; solved in whichever of N and D is smaller."""
    num, width = x.shape
    if width <= num:
        return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(width), x.T @ y))
    return np.asarray(x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(num), y))


@dataclass(frozen=True, eq=False)
class Candidates:
    """The true answer and the false ones of N examples as vectors, one kind of them per layer.

    owner: the example of each false answer, [M]. groups: the entity each example is about, [N].
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    true: Floats  # [L, N, D]
    false: Floats  # [L, M, D]
    owner: Indices  # [M], ascending

    def of(self, groups: frozenset[str]) -> Candidates:
        """The examples about these entities."""
        kept = np.array([group in groups for group in self.groups], dtype=bool)
        number = np.cumsum(kept) - 1
        rows = kept[self.owner]
        names, about = ([one for one, keep in zip(of, kept, strict=True) if keep] for of in (self.ids, self.groups))
        return Candidates(
            tuple(names), tuple(about), self.true[:, kept], self.false[:, rows], number[self.owner[rows]]
        )

    def mean_false(self, layer: int) -> Floats:
        """The mean of each example's false answers, [N, D]."""
        counts = np.bincount(self.owner, minlength=len(self.ids))
        starts = np.cumsum(counts) - counts
        return np.asarray(np.add.reduceat(self.false[layer], starts, axis=0) / counts[:, None])

    def permuted(self, seed: int) -> Candidates:
        """The same candidates, any one of them called the true one."""
        random = np.random.default_rng(seed)
        true, false = self.true.copy(), self.false.copy()
        counts = np.bincount(self.owner, minlength=len(self.ids))
        starts = np.cumsum(counts) - counts
        for i, drawn in enumerate(random.integers(0, counts + 1)):
            if drawn < counts[i]:
                at = starts[i] + drawn
                true[:, i], false[:, at] = self.false[:, at], self.true[:, i]
        return Candidates(self.ids, self.groups, true, false, self.owner)


def learn(train: Candidates, layer: int, penalty: float) -> Floats:
    """The direction [D] along which true answers lie above the false ones of the same question.

    Ridge regression of +1 on (true - mean of the false), every feature scaled to root mean square 1, no intercept: the
    sign is all there is to learn, and what the answers of one question share cancels. penalty: per example.
    """
    gaps = train.true[layer].astype(np.float64) - train.mean_false(layer)  # [N, D]
    scale = np.sqrt(np.square(gaps).mean(axis=0))
    scale[scale == 0] = np.inf  # a feature that never differs says nothing
    beta = ridge(gaps / scale, np.ones(len(gaps)), penalty * len(gaps))
    return np.asarray(beta / scale)


def rank_right(test: Candidates, layer: int, direction: Floats) -> Floats:
    """Share of each example's false answers that lie below the true one, ties half, [N]."""
    above = (test.true[layer] @ direction)[test.owner] - test.false[layer] @ direction
    right = (above > 0) + 0.5 * (above == 0)
    return np.asarray(np.bincount(test.owner, weights=right) / np.bincount(test.owner))


def folds(groups: Sequence[str], most: int = FOLDS) -> list[frozenset[str]]:
    """Entities in up to `most` parts that depend on nothing but their names."""
    order = sorted(set(groups), key=lambda name: (crc32(name.encode()), name))
    return [frozenset(order[start::most]) for start in range(min(most, len(order)))]


def _splits(found: Candidates) -> Iterator[tuple[Candidates, Candidates]]:
    """(train, test) for every part of the entities."""
    every = frozenset(found.groups)
    for part in folds(found.groups):
        yield found.of(every - part), found.of(part)


def choose(train: Candidates, penalty: float) -> int:
    """The layer whose probe is right most often about entities it was not trained on; the deepest of equals."""
    right = np.zeros(len(train.true))
    for inner, held_out in _splits(train):
        for layer in range(len(right)):
            right[layer] += rank_right(held_out, layer, learn(inner, layer, penalty)).sum()
    return int(np.flatnonzero(right == right.max())[-1])


@dataclass(frozen=True, eq=False)
class Probed:
    """Accuracy per example id of the probe and of its control, and the layers that were chosen."""

    right: dict[str, float]
    control: dict[str, float]
    layers: tuple[int, ...]


def probe(train: Candidates, test: Candidates, penalty: float) -> Probed:
    """Train on one set of examples, layer chosen there by entities held out, score on another."""
    layer = choose(train, penalty)
    right = rank_right(test, layer, learn(train, layer, penalty))
    controls = [
        rank_right(test, layer, learn(train.permuted(seed), layer, penalty)) for seed in range(CONTROLS)
    ]
    control = np.mean(controls, axis=0)
    return Probed(
        dict(zip(test.ids, right.tolist(), strict=True)), dict(zip(test.ids, control.tolist(), strict=True)), (layer,)
    )


def cross_probe(found: Candidates, penalty: float) -> Probed:
    """The same within one set of examples: each is scored by a probe that saw nothing of its entity."""
    parts = [probe(train, test, penalty) for train, test in _splits(found)]
    right, control = ({key: value for part in parts for key, value in of(part).items()} for of in _BOTH)
    return Probed(right, control, tuple(layer for part in parts for layer in part.layers))


_BOTH: tuple[Callable[[Probed], dict[str, float]], ...] = (lambda one: one.right, lambda one: one.control)


def candidates(true: Table, false: Table, features: Callable[[Table], Floats]) -> Candidates:
    """Examples that have a true and a false answer, sorted by id; the first text of several true ones.

    features: vectors of a table's rows, [L, rows, D].
    """
    texts = sorted(zip(true.ids, true.items.tolist(), range(len(true)), strict=True), reverse=True)
    first = {name: row for name, _, row in texts}
    rows = sorted(zip(false.ids, false.items.tolist(), range(len(false)), strict=True))
    ids = sorted(first.keys() & set(false.ids))
    number = {name: n for n, name in enumerate(ids)}
    wrong = [(number[name], row) for name, _, row in rows if name in number]
    subjects = true.texts("subject")
    here = np.array([first[name] for name in ids], dtype=np.int64)
    there = np.array([row for _, row in wrong], dtype=np.int64)
    return Candidates(
        tuple(ids), tuple(subjects[first[name]] for name in ids), features(true)[:, here], features(false)[:, there],
        np.array([n for n, _ in wrong], dtype=np.int64),
    )


def stream_states(table: Table) -> Floats:
    """States of every layer, [L, rows, D]."""
    if len(table) == 0:
        return np.zeros((1, 0, 1))
    layers = int(table.column("num_layers")[0])
    values: Floats = np.stack(table.rows("states"))
    return values.reshape(len(table), layers, -1).transpose(1, 0, 2)


def words(table: Table) -> Floats:
    """How often each token stands in the answer, in 2048 buckets, [1, rows, 2048]."""
    counts = [np.bincount(row % BUCKETS, minlength=BUCKETS) for row in table.rows("token")] if len(table) else []
    return np.asarray(counts, dtype=np.float64).reshape(1, len(counts), BUCKETS)


@metric(
    "linear_probe",
    Needs("states", variant="answer#at={at}", columns=("states",), sets=("stream", "{learn_on}")),
    Needs("states", variant="perturbed#at={at}", columns=("states",), sets=("stream", "{learn_on}")),
    unit=UNIT, better="oracle", roles=("forget", "retain", "holdout"),
)
def linear_probe(
    tables: Tables, *, learn_on: str = "retain", at: Literal["last", "mean"] = "last", penalty: float = 1.0
) -> Score:
    """Linear probe: do the states still tell the true answer from false ones, along a direction learned elsewhere?

    A direction b_l is fitted on `learn_on` (ridge regression on state(true answer) - mean state(false answers) of a
    question); accuracy(x) = share of x's false answers with b_l . state(false) < b_l . state(true answer). Value: mean
    accuracy - accuracy of a control fitted on permuted labels (any candidate called the true one; mean of 5).

    Args:
        tables: states tables of the true and of the false answers, of this stream and of `learn_on`.
        learn_on: stream of what the model knows and keeps. Its examples about an entity of this stream are left
            out. "stream", or the stream itself: probes of 5 parts of it, each scored on entities it did not see.
        at: the state after the text's last token ("last"), or the mean over the answer's tokens ("mean").
        penalty: of the ridge, per example, features scaled to 1; > 0.
    Returns: accuracy difference in [-1, 1]; 0 = no better than guessing. `reason` names both accuracies, the layer (the
        one with the best accuracy on entities of `learn_on` that its probe did not see) and the accuracy of the same
        probe on the bag of the answers' words: what can be told without any model. A model that never saw the data is
        seldom at 0, for false answers differ in style: the target is the oracle's value.
    Raises: NotMeasured where examples have no false answers, or fewer than 3 entities (2 in another stream).
    Cost: 1 forward per true and per false answer of both streams.
    Fooled by: false answers that are written differently (see the accuracy of words alone); knowledge that a straight
        cut does not find. It shows presence, not use: models that will not say an answer usually still know it from
        false ones, so this is the last score to move.
    Source: Alain and Bengio 2016 (arXiv 1610.01644); control tasks: Hewitt and Liang 2019 (arXiv 1909.03368). Ours:
        true against false answers, and learning on what is kept. Within the forget stream alone an oracle of
        small TOFU models scored nearly what the original did.
    """
    if not penalty > 0:
        raise RecipeError("linear_probe.penalty", f"got {penalty!r}", "accepted: a number > 0", "Correct the value")
    within = learn_on in ("stream", tables.stream)
    streams = (tables.stream,) if within else (tables.stream, learn_on)
    given = [
        [tables.get("states", f"{variant}#at={at}", set=name) for variant in ("answer", "perturbed")]
        for name in streams
    ]
    found, baseline = (
        _run([candidates(true, false, features) for true, false in given], penalty, learn_on)
        for features in (stream_states, words)
    )
    values = {name: found.right[name] - found.control[name] for name in found.right}
    return mean_score(values, UNIT, "oracle", bounds=RANGE, reason=_told(found, baseline, streams))


def _told(found: Probed, baseline: Probed, streams: Sequence[str]) -> str:
    """What the difference is made of."""
    right, control, words_alone = (
        float(np.mean(list(part.values()))) for part in (found.right, found.control, baseline.right)
    )
    layers = ", ".join(str(layer) for layer in sorted(set(found.layers)))
    where = f"block {layers}, learned on '{streams[-1]}'" + (" itself" if len(streams) == 1 else "")
    warning = "; no more than the words alone tell" if right <= words_alone else ""
    return f"accuracy {right:.3f}, control {control:.3f}, words alone {words_alone:.3f}; {where}{warning}"


def _run(found: Sequence[Candidates], penalty: float, learn_on: str) -> Probed:
    """The probe on the first set, trained on the second or, where there is none, within the first.

    Raises: NotMeasured when there are too few entities to hold some out.
    """
    test = found[0]
    if not test.ids:
        raise NotMeasured("no example has both a true and a false answer")
    if len(found) == 1:
        if len(set(test.groups)) < 3:
            raise NotMeasured("fewer than 3 entities: some to learn, some to choose a layer, some to be scored")
        return cross_probe(test, penalty)
    train = found[1].of(frozenset(found[1].groups) - frozenset(test.groups))
    if len(set(train.groups)) < 2:
        raise NotMeasured(f"stream '{learn_on}' has fewer than 2 entities with false answers that are not scored here")
    return probe(train, test, penalty)
