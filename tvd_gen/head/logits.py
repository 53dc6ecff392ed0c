"""Objectives on logits that are there anyway: the plain programs."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tvd_gen.objectives import (
    DistributionObjective,
    Embeddings,
    Predictions,
    SequenceObjective,
    TaiLr,
    TokenObjective,
)
from tvd_gen.objectives.base import unreduced

Reduction = Literal["none", "sum", "mean"]


def in_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_additions(label_smoothing: float, z_loss: float = 0.0, row_budget: float = 0.0) -> None:
    """Raise ValueError for what may not be added to an objective."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must lie in [0, inf), got {z_loss}")
    if not 0.0 <= row_budget < 1.0:
        raise ValueError(f"row_budget must lie in [0, 1), got {row_budget}")


def check_objective(objective: object) -> None:
    """Raise TypeError where a name or a class was given in place of a value."""
    if isinstance(objective, SequenceObjective):
        raise TypeError(
            f"{objective!r} needs whole sequences: give its loss the log p of linear_target_logp"
        )
    if not isinstance(objective, (TokenObjective, DistributionObjective)):
        raise TypeError(f"objective must be one such as TaiLr(gamma=0.1), got {objective!r}")


def check_needs(objective: TokenObjective | DistributionObjective, **given: object) -> None:
    """Raise ValueError where an objective lacks what it asks for."""
    lacking = ", ".join(name for name in sorted(objective.needs) if given.get(name) is None)
    if lacking:
        raise ValueError(f"{objective!r} needs {lacking}")


def objective_loss(
    logits: Tensor,
    targets: Tensor,
    objective: TokenObjective | DistributionObjective,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    token_weights: Tensor | None = None,
    factors: Tensor | None = None,
    previous: Tensor | None = None,
    reference: Tensor | None = None,
    embeddings: Tensor | Embeddings | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The objective of each target, for any classification problem.

        loss_i = token_weight_i * ((1 - eps) objective(log p_i) + eps / V * sum over v of -log p_iv
                                   + z_loss * lse_i^2)

    logits (..., V), targets (...) of class numbers, token_weights (...); eps = label_smoothing,
    whose term is not weighted by the objective (as in the published code); lse is the log-sum-exp
    of a row's logits; factors (...) multiply the objective alone. A DistributionObjective gets what
    it `needs`: previous (..., L), reference logits (..., V), embeddings (V, E).

    Returns nats: (...) with 0 at ignored targets for "none", else the sum, or the sum over the
    number of kept targets (0 where none is kept). Maths in float32, float64 for float64
    logits. Raises ValueError for shapes that do not fit.

        >>> from tvd_gen import CrossEntropy
        >>> objective_loss(torch.zeros(2, 4), torch.tensor([1, -100]), CrossEntropy())
        tensor(1.3863)
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} need targets {tuple(logits.shape[:-1])}, "
            f"got {tuple(targets.shape)}"
        )
    for name, each in (("token_weights", token_weights), ("factors", factors)):
        if each is not None and each.shape != targets.shape:
            raise ValueError(
                f"{name} must have targets' shape {tuple(targets.shape)}, got {tuple(each.shape)}"
            )
    check_objective(objective)
    check_needs(objective, previous=previous, reference=reference, embeddings=embeddings)
    check_additions(label_smoothing, z_loss)
    kept = targets != ignore_index
    rows, classes = in_float32(logits[kept]), targets[kept]
    before = None if previous is None else previous[kept]
    anchor = None if reference is None else reference[kept].to(rows.dtype)
    # A banned token's -inf times a probability of 0 would be nan.
    finite = rows.clamp(min=-1e30) if isinstance(objective, DistributionObjective) else rows
    frozen = Embeddings.of(embeddings, classes)
    predictions = Predictions(finite, classes, before, anchor, frozen)
    losses = prediction_losses(predictions, objective)
    if factors is not None:
        losses = losses * factors[kept]
    if label_smoothing:
        uniform = rows.logsumexp(-1) - rows.mean(-1)  # mean over v of -log p_v
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    if z_loss:
        losses = losses + z_loss * rows.logsumexp(-1) ** 2
    if token_weights is not None:
        losses = losses * token_weights[kept]
    if reduction == "none":
        return losses.new_zeros(targets.shape).masked_scatter(kept, losses)
    return _reduced(losses, reduction, kept.sum())


def _reduced(losses: Tensor, reduction: Reduction, denominator: Tensor) -> Tensor:
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / torch.where(denominator == 0, 1, denominator)
    raise ValueError(f"reduction must be none, sum or mean, got {reduction!r}")


def target_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) logits, (N,) targets -> (N,) log p of the targets, without a second (N, V) tensor."""
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def prediction_losses(
    predictions: Predictions, objective: TokenObjective | DistributionObjective
) -> Tensor:
    """(n,) losses of either level."""
    if isinstance(objective, TokenObjective):
        losses = objective.loss(target_logp(predictions.logits, predictions.targets))
    else:
        losses = objective.loss(predictions)
    return unreduced(objective, losses, predictions.targets)


class GammaCrossEntropyLoss(nn.Module):
    """The gamma loss with the interface of torch.nn.CrossEntropyLoss; gamma = 0 is that loss.

    input (N, C), (N, C, d1, ...) or (C,), target of class numbers (N), (N, d1, ...) or (); `weight`
    (C,) rescales the classes. For "mean" the sum is divided by the kept targets' class weights, as
    torch does; where no target is kept the result is 0, not nan. Returns float32 (float64 for
    float64 input).

        >>> GammaCrossEntropyLoss(gamma=1.0)(torch.zeros(1, 4), torch.tensor([2]))
        tensor(0.7500)

    Source of the loss: `tvd_gen.TaiLr`.
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float,
        min_weight: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_additions(label_smoothing)
        self.objective = TaiLr(gamma, min_weight)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Input (N, C, ...) logits, target (N, ...) class numbers -> the loss."""
        logits = input.movedim(1, -1) if input.dim() > 1 else input
        if self.weight is None:
            return objective_loss(
                logits,
                target,
                self.objective,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                reduction=self.reduction,
            )
        if self.weight.shape != logits.shape[-1:]:
            raise ValueError(
                f"weight must be ({logits.shape[-1]},), one for each class, got "
                f"{tuple(self.weight.shape)}"
            )
        return self._class_weighted(logits, target, in_float32(self.weight))

    def _class_weighted(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        kept = target != self.ignore_index
        rows, classes = in_float32(logits[kept]), target[kept]
        losses = weight[classes] * self.objective.loss(target_logp(rows, classes))
        if self.label_smoothing:
            # torch weighs the smoothing term by each class's own weight, not by the target's.
            uniform = -(rows.log_softmax(-1) * weight).mean(-1)
            losses = (1.0 - self.label_smoothing) * losses + self.label_smoothing * uniform
        if self.reduction == "none":
            return losses.new_zeros(target.shape).masked_scatter(kept, losses)
        return _reduced(losses, self.reduction, weight[classes].sum())
