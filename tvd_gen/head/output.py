"""What a head's loss returns: sums, so that chunks, micro-batches and ranks can be added."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """Sums over the kept tokens; only `loss` is differentiable, and only it knows of token weights.

    Scalars, float32 (float64 for float64 inputs).
    """

    loss: Tensor
    """sum of token_weight * objective, label smoothing and z-loss included, in nats"""
    nll: Tensor
    """sum of -log p, in nats"""
    tokens: Tensor
    """count of kept tokens"""
    correct: Tensor
    """how many have argmax == target"""
    weight: Tensor
    """sum of the objective's weight(log p)"""
    floored: Tensor
    """how many have their weight at the objective's floor"""
    entropy: Tensor
    """sum of the entropies of the softmax, in nats"""

    def sums(self) -> Tensor:
        """(7,) all fields in order, detached, float64: what is accumulated and added over ranks."""
        values = [getattr(self, f.name).detach() for f in fields(self)]
        return torch.stack([v.to(torch.float64) for v in values])
