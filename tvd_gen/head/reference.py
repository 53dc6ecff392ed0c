"""The slow program that the fast heads must equal: all logits, plain autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tvd_gen.head.logits import in_float32, objective_loss, target_logp
from tvd_gen.head.output import LossOutput
from tvd_gen.objectives import TokenObjective


def capped(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """cap(scale * logits) with cap(x) = softcap * tanh(x / softcap)."""
    scaled = logits if scale == 1.0 else logits * scale
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def logits_loss(
    logits: Tensor,
    targets: Tensor,
    objective: TokenObjective,
    *,
    label_smoothing: float = 0.0,
    token_weights: Tensor | None = None,
) -> LossOutput:
    """(N, V) logits and (N,) targets, none ignored -> the sums."""
    loss = objective_loss(
        logits,
        targets,
        objective,
        ignore_index=-1,  # no class number: the caller has dropped the ignored rows
        label_smoothing=label_smoothing,
        token_weights=token_weights,
        reduction="sum",
    )
    with torch.no_grad():
        logp = target_logp(in_float32(logits), targets)
        return LossOutput(
            loss=loss,
            nll=-logp.sum(),
            tokens=logp.new_full((), len(logp)),
            correct=(logits.argmax(-1) == targets).to(logp.dtype).sum(),
            weight=objective.weight(logp).sum(),
            floored=objective.floored(logp).to(logp.dtype).sum(),
        )


def reference_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None,
    objective: TokenObjective,
    *,
    scale: float,
    softcap: float | None,
    label_smoothing: float,
) -> LossOutput:
    """The dense head on rows none of which is ignored."""
    logits = capped(in_float32(F.linear(hidden, weight, bias)), scale, softcap)
    return logits_loss(
        logits, targets, objective, label_smoothing=label_smoothing, token_weights=token_weights
    )
