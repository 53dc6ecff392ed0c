"""The slow program that the fast heads must equal: all logits, plain autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tvd_gen.head.logits import in_float32, objective_loss, target_logp
from tvd_gen.head.output import LossOutput
from tvd_gen.head.problem import Given, Operands, Options
from tvd_gen.objectives import Predictions, TokenObjective


def capped(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """cap(scale * logits) with cap(x) = softcap * tanh(x / softcap)."""
    scaled = logits if scale == 1.0 else logits * scale
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def logits_loss(logits: Tensor, given: Given, options: Options) -> LossOutput:
    """(N, V) final logits of rows none of which is ignored -> the sums."""
    objective, targets, weights = options.objective, given.targets, given.token_weights
    previous, reference = options.looked_up(slice(0, len(targets)), in_float32(logits[:0]))
    loss = objective_loss(
        logits,
        targets,
        objective,
        ignore_index=-1,  # no class number: the caller has dropped the ignored rows
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
        token_weights=None if weights is None else weights.expand(len(targets)),
        factors=given.factors,
        previous=previous,
        reference=reference,
        embeddings=options.embeddings,
        reduction="sum",
    )
    with torch.no_grad():
        wide = in_float32(logits)
        logp = target_logp(wide, targets)
        if isinstance(objective, TokenObjective):
            weight, floored = objective.weight(logp), objective.floored(logp).to(logp.dtype)
        else:
            seen = Predictions(wide, targets, previous, reference, options.embeddings)
            weight, floored = objective.weight(seen), torch.zeros_like(logp)
        if given.factors is not None:
            weight = weight * given.factors
        return LossOutput(
            loss=loss,
            nll=-logp.sum(),
            tokens=logp.new_full((), len(logp)),
            correct=(logits.argmax(-1) == targets).to(logp.dtype).sum(),
            weight=weight.sum(),
            floored=floored.sum(),
            entropy=torch.special.entr(wide.softmax(-1)).sum(),
        )


def _final_logits(operands: Operands, options: Options) -> Tensor:
    """(N, V) logits in float32, float64 for float64."""
    logits = F.linear(operands.hidden, operands.weight, operands.bias)
    for hidden, weight in operands.pairs[1:]:
        logits = logits + F.linear(hidden, weight)
    return capped(in_float32(logits), options.scale, options.softcap)


def reference_loss(operands: Operands, given: Given, options: Options) -> LossOutput:
    """The dense head on rows none of which is ignored; it leaves no row out of the gradient."""
    return logits_loss(_final_logits(operands, options), given, options)


def reference_logp(operands: Operands, targets: Tensor, options: Options) -> Tensor:
    """(N,) log p of the targets, all logits kept."""
    return target_logp(_final_logits(operands, options), targets)
