"""What a head is asked: the operands of its products, what is given of each row, the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvd_gen.objectives import DistributionObjective, Embeddings, TokenObjective


class Operands(NamedTuple):
    """Tensors of logits = hidden @ weight.T + low_hidden @ low_weight.T + bias, rows compacted."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    bias: Tensor | None = None
    """(V,)"""
    low_hidden: Tensor | None = None
    """(N, r)"""
    low_weight: Tensor | None = None
    """(V, r)"""

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The products, as (hidden, weight)."""
        pairs = [(self.hidden, self.weight)]
        if self.low_hidden is not None and self.low_weight is not None:
            pairs.append((self.low_hidden, self.low_weight))
        return pairs


class Given(NamedTuple):
    """What is given of each row, not differentiable."""

    targets: Tensor
    """(N,)"""
    token_weights: Tensor | None = None
    """(N,), or () for one weight of all"""
    factors: Tensor | None = None
    """(N,) multiplies the objective alone, not what is added to it"""

    def at(self, rows: Tensor | slice) -> "Given":
        """Of some rows."""
        parts: list[Any] = [part if part is None or not part.dim() else part[rows] for part in self]
        return Given(*parts)


@dataclass(frozen=True)
class Options:
    """The numbers of a head's loss; none of them is differentiable.

    loss_i = token_weight_i ((1 - eps) factor_i objective(log p_i) + eps mean over v of -log p_iv
                             + z lse_i^2)
    """

    objective: TokenObjective | DistributionObjective
    scale: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0
    """eps"""
    z_loss: float = 0.0
    """z, the weight of the squared log-sum-exp of the row's logits"""
    row_budget: float = 0.0
    """the share of the gradient's L1 norm on the logits that may be left out, row by row"""
    previous: Callable[[Tensor], Tensor] | None = None
    """rows (n,) -> (n, L) the targets before each in its sequence, negative where there is none"""
    reference: Callable[[Tensor], Tensor] | None = None
    """rows (n,) -> the reference model's logits there (n, V)"""
    embeddings: Embeddings | None = None
    """of the reference model's input"""

    def looked_up(self, rows: slice, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of some rows: what stands before them (n, L), and the reference's logits (n, V)."""
        if self.previous is self.reference is None:
            return None, None
        places = torch.arange(rows.start, rows.stop, device=like.device)
        return (
            None if self.previous is None else self.previous(places),
            None if self.reference is None else self.reference(places).to(like.dtype),
        )
