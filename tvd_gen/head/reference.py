"""The slow program that the fast heads must equal: all logits, plain autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tvd_gen.head.logits import in_float32, objective_loss, target_logp
from tvd_gen.head.output import LossOutput
from tvd_gen.head.problem import Operands, Options
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
    z_loss: float = 0.0,
    token_weights: Tensor | None = None,
) -> LossOutput:
    """(N, V) logits and (N,) targets, none ignored -> the sums; token_weights (N,) or ()."""
    loss = objective_loss(
        logits,
        targets,
        objective,
        ignore_index=-1,  # no class number: the caller has dropped the ignored rows
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        token_weights=None if token_weights is None else token_weights.expand(len(targets)),
        reduction="sum",
    )
    with torch.no_grad():
        wide = in_float32(logits)
        logp = target_logp(wide, targets)
        return LossOutput(
            loss=loss,
            nll=-logp.sum(),
            tokens=logp.new_full((), len(logp)),
            correct=(logits.argmax(-1) == targets).to(logp.dtype).sum(),
            weight=objective.weight(logp).sum(),
            floored=objective.floored(logp).to(logp.dtype).sum(),
            entropy=torch.special.entr(wide.softmax(-1)).sum(),
        )


def _final_logits(operands: Operands, options: Options) -> Tensor:
    """(N, V) logits in float32, float64 for float64."""
    logits = F.linear(operands.hidden, operands.weight, operands.bias)
    for hidden, weight in operands.pairs[1:]:
        logits = logits + F.linear(hidden, weight)
    return capped(in_float32(logits), options.scale, options.softcap)


def reference_loss(
    operands: Operands, targets: Tensor, token_weights: Tensor | None, options: Options
) -> LossOutput:
    """The dense head on rows none of which is ignored; it leaves no row out of the gradient."""
    return logits_loss(
        _final_logits(operands, options),
        targets,
        options.objective,
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
        token_weights=token_weights,
    )


def reference_logp(operands: Operands, targets: Tensor, options: Options) -> Tensor:
    """(N,) log p of the targets, all logits kept."""
    return target_logp(_final_logits(operands, options), targets)
