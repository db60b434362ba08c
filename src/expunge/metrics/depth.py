"""How deep a removal goes: does the model before it lose the answer when its stream is replaced by this model's?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.metrics.rows import by_id
from expunge.metrics.stats import Floats, mean_score
from expunge.registry import metric
from expunge.types import Needs, Score

Row = tuple[str, int]  # id, item


def drops(table: Table, column: str) -> dict[Row, Floats]:
    """What every replaced layer costs, clean - patched, nats per counted token: (id, item) -> [L].

    Raises: NotMeasured when a value is not finite.
    """
    if column not in table.arrow.column_names:
        raise NotMeasured(f"the table has no column '{column}'")
    clean = table.column("clean").astype(np.float64)
    rows = [clean[i] - row.astype(np.float64) for i, row in enumerate(table.rows(column))]
    if not all(np.isfinite(row).all() for row in rows):
        raise NotMeasured("a log-probability with a replaced layer is not finite")
    return dict(zip(zip(table.ids, table.items.tolist(), strict=True), rows, strict=True))


def depth_of(first: Floats, second: Floats, tau: float) -> float | None:
    """UDS of one text from the drops [L] of the yardstick and of this model; None where the yardstick loses nothing.

    sum_l d1_l clip(d2_l / d1_l, 0, 1) / sum_l d1_l over the layers with d1_l > tau >= 0.
    """
    holds = first > tau
    if not holds.any():
        return None
    return float(np.clip(second[holds], 0.0, first[holds]).sum() / first[holds].sum())


def _depth(first: Mapping[Row, Floats], second: Mapping[Row, Floats], tau: float, whose: str) -> Score:
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Score.missing(f"no example was measured on both this subject and {whose}", "share", "higher")
    if any(len(first[row]) != len(second[row]) for row in shared):
        return Score.missing(f"{whose} has another number of layers", "share", "higher")
    found = {row: depth_of(first[row], second[row], tau) for row in shared}
    kept = [(row, value) for row, value in found.items() if value is not None]
    left = len(shared) - len(kept)
    lost = f"replacing any layer by that of {whose} loses no more than {tau:g} nats a token"
    reason = f"{left} of {len(shared)} texts left out: {lost}" if left else ""
    values = by_id([row[0] for row, _ in kept], np.array([value for _, value in kept]))
    return mean_score(values, "share", "higher", reason=reason)


def _check(name: str, tau: float) -> None:
    if not tau >= 0:
        raise RecipeError(f"{name}.tau", f"got {tau!r}", "accepted: a number >= 0, nats per token", "Correct it")


@metric(
    "unlearning_depth", Needs("patched", columns=("patched",), subjects=("this", "oracle")), unit="share",
    better="higher", roles=("forget",),
)
def unlearning_depth(tables: Tables, *, tau: float = 0.05) -> Score:
    """Unlearning depth score: how far this model's layers have lost the answer, measured by those of the oracle.

    d1_l = what the model before the removal loses (nats per counted token) when its stream after block l is replaced
    by the oracle's at the positions that predict the counted tokens; d2_l the same with this model's stream.
    UDS = sum_l d1_l clip(d2_l / d1_l, 0, 1) / sum_l d1_l over the layers with d1_l > tau; mean over examples.

    Args:
        tables: patched tables of the answers, of this subject and of the oracle. Counted are the tokens of annotated
            spans where an example has any, else the whole answer.
        tau: smallest d1_l of a layer that holds the answer, nats per token, >= 0.
    Returns: mean in [0, 1]; 0 = every layer still carries the answer (the model before the removal), 1 = as lost as
        in a model that never saw it (the oracle, by construction). Examples without a layer above tau are left out
        and counted in `reason`.
    Raises: NotMeasured without oracle or original, and when their architectures or tokenizers differ.
    Cost: for this subject and the oracle 2 + (num_layers - 1) / 2 forwards per example.
    Fooled by: a stream that is merely rotated, scaled or noisy: the original cannot read it, whatever it carries; so
        damage scores like removal: look at utility too. An oracle trained from another start loses on every text for
        that reason, d1 is too large and UDS too small. Knowledge moved to other positions (the question's tokens) is
        not replaced and not seen.
    Source: Lee, Kim and Jo 2026 (arXiv 2605.24614) and its code (Apache-2.0). Differences: the last layer is replaced
        before the final norm (the code patches the normed state, which is then normed again); the whole answer
        where no entity is annotated, its end-of-text token included; the model's own template, not
        "Question: ... Answer: ..."; float32.
    """
    _check("unlearning_depth", tau)
    first = drops(tables.get("patched", subject="oracle"), "patched")
    return _depth(first, drops(tables.get("patched"), "patched"), tau, "the oracle")


@metric(
    "unlearning_depth_reference_free", Needs("patched", columns=("patched", "window:{window}")), unit="share",
    better="higher", roles=("forget",),
)
def unlearning_depth_reference_free(tables: Tables, *, tau: float = 0.05, window: int = 2) -> Score:
    """Unlearning depth without an oracle: measured by what the original knows of a text when it sees almost none of it.

    As `unlearning_depth`, but d1_l replaces the stream after block l by the one that the model before the removal
    itself has when it reads only the text's first token and the last `window` ones before the counted token. Such a
    state is at home in the model (the same weights made it), carries the grammar of the place, and cannot carry the
    answer: neither the question nor what was said of it is there.

    Args:
        tables: patched table of the answers with the column `window:WINDOW`.
        tau: smallest d1_l of a layer that holds the answer, nats per token, >= 0.
        window: tokens seen, >= 1. More of them know more of the answer by heart: d1 shrinks and scores rise.
    Returns: mean in [0, 1]; 0 = every layer still carries the answer, 1 = no more of it than in a state that has seen
        `window` tokens. An oracle is not at 1 by construction: at 0.99 on small TOFU models, at 0.5 where answers are
        two words of a kind the model knows. Examples without a layer above tau are left out and counted in `reason`.
    Raises: NotMeasured without the model before the removal, and when architecture or tokenizer differ.
    Cost: 2 + num_layers - 1 forwards per example, and the distinct windows once (window + 1 tokens each).
    Fooled by: what fools `unlearning_depth`, except a foreign oracle. The yardstick is ignorance of the whole text: a
        model that forgot a fact and still reads the question well stays a little below 1.
    Source: ours, after Lee, Kim and Jo 2026 (arXiv 2605.24614). On small TOFU models, where the default window was
        chosen too, three other yardsticks were tried: the mean state of the stream and states of other texts are
        foreign to the place and cost so much that the oracle scores 0.7 and 0.4; the states under another example's
        question learn the rest from the answer's own beginning, and a removal of depth 0.3 scores 0.9.
    """
    _check("unlearning_depth_reference_free", tau)
    table = tables.get("patched")
    return _depth(drops(table, f"window:{window}"), drops(table, "patched"), tau, "the windows")
