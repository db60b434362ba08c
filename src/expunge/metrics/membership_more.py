"""Membership scores that read more than one table: of other texts, of another model, of gradients."""

from __future__ import annotations

from typing import Literal

from expunge.errors import RecipeError
from expunge.measure.tables import NotMeasured, Tables
from expunge.metrics.membership import separated
from expunge.metrics.membership_scores import (
    gradient_scores,
    lowercase_scores,
    neighbourhood_scores,
    recall_scores,
    reference_scores,
)
from expunge.metrics.shift import NEEDS_TEXTS
from expunge.registry import metric
from expunge.types import Needs, Score

SETS = ("stream", "{against}")
ANSWER = Needs("tokens", columns=("token", "logp"), sets=SETS)


@metric(
    "membership_lowercase", ANSWER, Needs("tokens", variant="lowercase", sets=SETS), NEEDS_TEXTS,
    unit="AUC", better="oracle", roles=("forget",),
)
def membership_lowercase(tables: Tables, *, against: str = "holdout") -> Score:
    """Membership inference by lower case: a text known as it is written suffers more from being rewritten.

    AUC of -NLL(x) / NLL(lower-cased x), NLL = mean negative log-likelihood per counted token, nats.

    Args:
        tables: token tables of the texts as they are and in lower case, of this stream and of `against`.
        against: the stream of non-members.
    Returns: as `membership`; the score of a text is -1 where nothing changes and at most 0.
    Fooled by: texts with few capitals, whose score is -1 whatever is known; otherwise as `membership`.
    Cost: 2 forwards per example, one of them shared.
    Source: Carlini et al. 2021 (arXiv 2012.07805). Prompt and answer are lower-cased both.
    """
    found = [
        lowercase_scores(tables.get("tokens", set=name), tables.get("tokens", "lowercase", set=name))
        for name in ("stream", against)
    ]
    return separated(tables, found[0].values, found[1].values, score="lowercase", against=against)


@metric(
    "membership_reference",
    Needs("tokens", columns=("token", "logp"), sets=SETS, subjects=("this", "oracle", "original")), NEEDS_TEXTS,
    unit="AUC", better="oracle", roles=("forget",),
)
def membership_reference(
    tables: Tables, *, reference: Literal["oracle", "original"] = "oracle", against: str = "holdout"
) -> Score:
    """Membership inference against a reference model: what this model knows of a text beyond how easy the text is.

    AUC of LL - LL_reference, LL = mean log-likelihood per counted token, nats.

    Args:
        tables: token tables of this model and of the reference, of this stream and of `against`, and their texts.
        reference: "oracle" (a twin that never saw the data: what remains) or "original" (the model before the
            removal: what was taken away; removed texts then score lowest, and AUC falls under 0.5).
        against: the stream of non-members.
    Returns: as `membership`. A model against itself scores 0 everywhere: 0.5. Where the two tokenizers cut the texts
        into other tokens, log-likelihoods are sums per byte of the answer, and `reason` says so.
    Fooled by: a reference that saw the data too, or that differs in more than the data; otherwise as `membership`,
        though a shift of the split that both models feel alike cancels.
    Cost: 1 forward per example and model, shared.
    Source: Carlini et al. 2021 (arXiv 2012.07805); Watson et al. 2022 (arXiv 2111.08440).
    """
    found = [
        reference_scores(
            tables.get("tokens", set=name), tables.get("tokens", set=name, subject=reference), _bytes(tables, name)
        )
        for name in ("stream", against)
    ]
    remarks = list(dict.fromkeys(one.remark for one in found if one.remark))
    if len(remarks) != 0 and any(not one.remark for one in found):
        raise NotMeasured("one stream is cut into the same tokens by both models and the other is not")
    return separated(
        tables, found[0].values, found[1].values, score="reference", against=against, remarks=remarks
    )


def _bytes(tables: Tables, name: str) -> dict[str, int]:
    """Bytes of every answer in UTF-8, where the texts are known."""
    try:
        table = tables.get("texts", set=name)
    except NotMeasured:
        return {}
    return {key: len(text.encode("utf-8")) for key, text in zip(table.ids, table.texts("answer"), strict=True)}


@metric(
    "membership_neighbourhood",
    ANSWER, Needs("tokens", variant="neighbours:{num}:{replaced}", sets=SETS), NEEDS_TEXTS,
    unit="AUC", better="oracle", roles=("forget",),
)
def membership_neighbourhood(
    tables: Tables, *, num: int = 10, replaced: float = 0.3, against: str = "holdout"
) -> Score:
    """Membership inference by neighbours: does a text stand out from texts that differ from it in a few words?

    AUC of LL(x) - mean over its neighbours of LL(neighbour), LL = mean log-likelihood per counted token, nats.
    Neighbours are word swaps: content words of the answer are replaced by other words of the same class that the
    stream's own answers hold (capitals, digits and their number, ending). They are *not* the substitutes of a masked
    language model of the paper: no second model is needed, but grammar may break, which makes every text stand out.

    Args:
        tables: token tables of the texts and of their neighbours, of this stream and of `against`.
        num: neighbours per text, >= 1. replaced: share of the words that can be replaced, in (0, 1], at least one.
        against: the stream of non-members.
    Returns: as `membership`. Texts without a word to replace are left out; `reason` counts them.
    Fooled by: streams whose texts are all alike (a neighbour of one is another one), and as `membership`.
    Cost: 1 + num forwards per example, one of them shared; questions are shared by the answers to them.
    Source: Mattern et al. 2023 (arXiv 2305.18462), with word swaps instead of a masked language model.
    """
    if num < 1:
        raise RecipeError("membership_neighbourhood.num", f"got {num}", "accepted: a number >= 1", "Correct the value")
    if not 0 < replaced <= 1:
        where = "membership_neighbourhood.replaced"
        raise RecipeError(where, f"got {replaced!r}", "accepted: a number in (0, 1]", "Correct the value")
    variant = f"neighbours:{num}:{replaced}"
    found = [
        neighbourhood_scores(tables.get("tokens", set=name), tables.get("tokens", variant, set=name))
        for name in ("stream", against)
    ]
    remarks = [f"up to {num} word swaps per text, not a masked language model", *(one.remark for one in found)]
    return separated(
        tables, found[0].values, found[1].values, score="neighbourhood", against=against, remarks=remarks
    )


@metric(
    "membership_recall",
    ANSWER, Needs("tokens", variant="conditioned:{against}:{shots}", columns=("token", "logp"), sets=SETS), NEEDS_TEXTS,
    unit="AUC", better="oracle", roles=("forget",),
)
def membership_recall(tables: Tables, *, shots: int = 5, against: str = "holdout") -> Score:
    """Membership inference by relative likelihood (ReCaLL): unseen text in front disturbs what is known more.

    AUC of LL(x | P) / LL(x), P = `shots` texts of `against` one after the other, LL = mean log-likelihood per token,
    nats, over the same tokens of x on both sides. Both are negative; known texts lose more, so their ratio is larger.

    Args:
        tables: token tables of the texts alone and after P, of this stream and of `against`.
        shots: texts in P, >= 1; the same ones for every text, which is itself left out and another one taken instead.
        against: the stream of non-members, from which P is taken as well.
    Returns: as `membership`; 1 per text where P changes nothing. A text that does not fit the model's context
        together with P makes this n/a: fewer `shots` are shorter.
    Fooled by: prefixes that resemble one side more than the other (P is unseen text of the kind of `against`);
        otherwise as `membership`.
    Cost: 2 forwards per example, one of them shared, the other over P as well.
    Source: Xie et al. 2024 (arXiv 2406.15968). The authors' code counts the first token of plain text after P only.
    """
    if shots < 1:
        raise RecipeError("membership_recall.shots", f"got {shots}", "accepted: a number >= 1", "Correct the value")
    variant = f"conditioned:{against}:{shots}"
    found = [
        recall_scores(tables.get("tokens", set=name), tables.get("tokens", variant, set=name))
        for name in ("stream", against)
    ]
    return separated(
        tables, found[0].values, found[1].values, score="recall", against=against,
        remarks=[one.remark for one in found],
    )


@metric(
    "membership_gradient", Needs("grads", variant="answer#p={p}", columns=("norm",), sets=SETS), NEEDS_TEXTS,
    unit="AUC", better="oracle", roles=("forget",),
)
def membership_gradient(tables: Tables, *, p: Literal[1, 2, "inf"] = 2, against: str = "holdout") -> Score:
    """Membership inference by the gradient: what was learned pulls at the weights no more.

    AUC of -mean over weight tensors of ||gradient of NLL(x)||_p, NLL = mean negative log-likelihood per counted token.

    Args:
        tables: gradient norms of this stream and of `against`.
        p: norm of each tensor: 1, 2 or "inf".
        against: the stream of non-members.
    Returns: as `membership`. Adapters are seen through: the gradient is that of the weights the model computes with.
    Fooled by: quantised or pruned weights, which stand off the minimum everywhere; otherwise as `membership`.
    Cost: 1 forward and 1 backward per example, one at a time, and a copy of all weights for the gradients.
    Source: Wang et al. 2024 (arXiv 2402.17012), as in mimir. In evaluation mode: no dropout.
    """
    variant = f"answer#p={p}"
    members, outside = (gradient_scores(tables.get("grads", variant, set=name)) for name in ("stream", against))
    return separated(tables, members.values, outside.values, score="gradient_norm", against=against)
