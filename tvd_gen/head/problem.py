"""What a head is asked: the operands of its products and the numbers of its loss."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tvd_gen.objectives import TokenObjective


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


@dataclass(frozen=True)
class Options:
    """The numbers of a head's loss; none of them is differentiable.

    loss_i = token_weight_i ((1 - eps) objective(log p_i) + eps mean over v of -log p_iv
                             + z lse_i^2)
    """

    objective: TokenObjective
    scale: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0
    """eps"""
    z_loss: float = 0.0
    """z, the weight of the squared log-sum-exp of the row's logits"""
    row_budget: float = 0.0
    """the share of the gradient's L1 norm on the logits that may be left out, row by row"""
