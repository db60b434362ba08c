"""Objectives that compare log-probabilities with a reference or a threshold through a sigmoid."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.registry import objective
from expunge.types import View


@objective("npo", needs={"ref"})
def npo(forget: View, *, beta: float = 0.1, length_norm: bool = False) -> Tensor:
    """Negative preference optimisation: push the forget answers below the reference, with a brake.

    -(2/beta) * log sigmoid(beta * r),  r = NLL - NLL_ref, summed over counted answer tokens, in nats.
    Its gradient is 2 sigmoid(-beta r) times that of gradient ascent: 1 at the reference, 0 far below it.

    Args:
        beta: inverse temperature, > 0. Gradient ascent as beta -> 0. Paper: 0.1.
        length_norm: use the mean per token instead of the sum, so that long answers do not saturate first.
    Returns: loss per example [B]. At `now == ref` it equals (2/beta) * log 2.
    Cost: 1 forward+backward; the reference is one stored number per token.
    Source: Zhang et al. 2024 (arXiv 2404.05868). Difference: `length_norm` is ours, off by default.
    """
    r = forget.reference.sum_logp - forget.now.sum_logp
    if length_norm:
        r = r / forget.now.n.clamp(min=1)
    return -(2 / beta) * logsigmoid(beta * r)


@objective("simnpo")
def simnpo(forget: View, *, beta: float = 2.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference: the length-normalised loss is pushed above a threshold.

    -(2/beta) * log sigmoid(beta * (NLL/n - delta)).

    Args:
        beta: inverse temperature, > 0. TOFU forget05: 2.5, forget10: 4.5.
        delta: margin in nats per token, >= 0. The paper's gamma is beta * delta.
    Returns: loss per example [B]. At NLL = 0 and delta = 0 it equals (2/beta) * log 2.
    Cost: 1 forward+backward.
    Source: Fan et al. 2024 (arXiv 2410.07163). Difference: n counts shifted labels; the release counts unshifted
        ones, which differs for texts whose first token is counted.
    """
    mean = -forget.now.sum_logp / forget.now.n.clamp(min=1)
    return -(2 / beta) * logsigmoid(beta * (mean - delta))


@objective("dpo", needs={"ref"}, views=2)
def dpo(win: View, lose: View, *, beta: float = 0.1) -> Tensor:
    """Direct preference optimisation as unlearning: prefer the alternative answer to the forget answer.

    -(2/beta) * log sigmoid(beta * [(log p - log p_ref)(win) - (log p - log p_ref)(lose)]), sums over answer tokens.
    The win term is not bound in absolute value: both log-probabilities may fall; watch both.

    Args:
        win: the answers to prefer (refusals or alternatives), row by row with `lose`.
        lose: the forget answers.
        beta: inverse temperature, > 0. TOFU and AltPO: 0.1.
    Returns: loss per example [B]. Equal pairs give (2/beta) * log 2.
    Cost: 2 forward+backward; references stored.
    Source: Rafailov et al. 2023 (arXiv 2305.18290), as in TOFU's IdkDPO. Difference: the factor 2/beta of
        OpenUnlearning, NPO and AltPO, which TOFU's own release lacks.
    """
    gain = (win.now.sum_logp - win.reference.sum_logp) - (lose.now.sum_logp - lose.reference.sum_logp)
    return -(2 / beta) * logsigmoid(beta * gain)
