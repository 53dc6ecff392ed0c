"""Token objectives: what a training step makes of the log-probability of the right token.

Each is a frozen dataclass of numbers with two pure functions of `logp`, the log-probability that
the model gives to the target: `loss(logp)`, in nats, and `weight(logp) = -dloss/dlogp`, the factor
by which it scales cross-entropy's gradient. Both are elementwise and compute in float32 or float64,
in log space, so that they are finite and right from log p = -1e4 to log p = -1e-12.

    >>> import torch
    >>> TaiLr(gamma=0.1).weight(torch.tensor([0.5]).log())
    tensor([0.9091])
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tvd_gen.objectives.base import LARGEST, SMALLEST, Objective, check, check_whole


def _one_minus_p(logp: Tensor) -> Tensor:
    # expm1, not 1 - exp: near p = 1 float32 rounds 1 - exp(-1e-9) to 0.
    return -torch.expm1(logp)


@dataclass(frozen=True)
class TokenObjective(Objective, ABC):
    """A loss that is a function of the target's log-probability alone.

    A subclass is a frozen dataclass of numbers and gives `loss`; `weight` follows from it by
    autograd unless it is given in closed form. A loss must not increase with `logp`, so that the
    weight is never negative.
    """

    may_weigh_by: ClassVar[bool] = True

    @abstractmethod
    def loss(self, logp: Tensor) -> Tensor:
        """(N,) log-probabilities of the targets -> (N,) losses in nats, differentiable, not
        reduced."""

    def weight(self, logp: Tensor) -> Tensor:
        """(N,) -> (N,) -dloss/dlogp: what multiplies cross-entropy's gradient."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = logp.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(leaf).sum(), leaf)
        return -slope

    def floored(self, logp: Tensor) -> Tensor:
        """(N,) -> (N,) bool: which targets have their weight held up by a floor."""
        return torch.zeros_like(logp, dtype=torch.bool)


@dataclass(frozen=True)
class CrossEntropy(TokenObjective):
    """Cross-entropy, in nats.

        L(p) = -log p            weight = 1

    The limit of most of the family: TaiLr at gamma = 0, GCE as q -> 0, focal at focusing = 0.
    """

    name: ClassVar[str] = "ce"
    may_weigh_by: ClassVar[bool] = False

    def loss(self, logp: Tensor) -> Tensor:
        return -logp

    def weight(self, logp: Tensor) -> Tensor:
        return torch.ones_like(logp)


@dataclass(frozen=True)
class TaiLr(TokenObjective):
    """The gamma loss, from total variation distance, in nats.

        L(p) = -log(gamma + (1 - gamma) p) / (1 - gamma)
        weight = max(min_weight, p / (gamma + (1 - gamma) p))

    gamma = 0 is cross-entropy; gamma = 1 is 1 - p (the published form -p, shifted so that L >= 0).
    Where the floor holds the weight up, at p < p_b = b gamma / (1 - b (1 - gamma)), L goes on as a
    straight line in log p of slope -b: the primitive of the floored weight, continuous and monotone
    in p. Published settings (gamma / min_weight): stories 1e-7 / 0.2, translation 0.1 / 0.3,
    summarization 0.8 / 0.2. Source: Ji et al., ICLR 2023, "Tailoring Language Generation Models
    under Total Variation Distance".
    """

    gamma: float
    """0, or in [1e-30, 1]"""
    min_weight: float = 0.0
    """in [0, 1]"""
    name: ClassVar[str] = "tailr"

    def __post_init__(self) -> None:
        check("gamma", self.gamma, 0.0, 1.0)
        if 0.0 < self.gamma < SMALLEST:
            raise ValueError(f"gamma must be 0 or at least {SMALLEST:g}, got {self.gamma}")
        check("min_weight", self.min_weight, 0.0, 1.0)

    def loss(self, logp: Tensor) -> Tensor:
        if self._knee == -math.inf:
            return self._unfloored_loss(logp)
        above = logp.clamp(min=self._knee)
        return self._unfloored_loss(above) + self.min_weight * (above - logp)

    def weight(self, logp: Tensor) -> Tensor:
        if self.gamma == 0.0:
            return torch.ones_like(logp)
        # 1 / (gamma / p + 1 - gamma); 0 where 1 / p overflows, at log p = -88 in float32.
        rest = torch.exp(-logp).mul_(self.gamma).add_(1.0 - self.gamma)
        return rest.reciprocal_().clamp_(min=self.min_weight)

    def floored(self, logp: Tensor) -> Tensor:
        return logp < self._knee

    @property
    def _knee(self) -> float:
        """The log p below which the floor holds: p / (gamma + (1 - gamma) p) = min_weight."""
        gamma, floor = self.gamma, self.min_weight
        if gamma == 0.0 or floor == 0.0:
            return -math.inf  # the weight is 1, or has no floor
        if floor == 1.0:
            return 0.0  # the weight is 1 everywhere
        return math.log(floor) + math.log(gamma) - math.log1p(-floor * (1.0 - gamma))

    def _unfloored_loss(self, logp: Tensor) -> Tensor:
        if self.gamma == 1.0:
            return _one_minus_p(logp)
        return -self._log_mixture(logp) / (1.0 - self.gamma)

    def _log_mixture(self, logp: Tensor) -> Tensor:
        """log(gamma + (1 - gamma) p), with a small relative error where it is near 0 too."""
        if self.gamma == 0.0:
            return logp
        if self.gamma == 1.0:
            return torch.zeros_like(logp)
        # 1 - mixture; below 1/2 log1p keeps its digits (gamma or p near 1), above it logaddexp does
        # (both small).
        rest = (1.0 - self.gamma) * _one_minus_p(logp)
        log_p_part = logp + math.log1p(-self.gamma)
        log_gamma = logp.new_full((), math.log(self.gamma))
        return torch.where(
            rest < 0.5, torch.log1p(-rest.clamp(max=0.5)), torch.logaddexp(log_p_part, log_gamma)
        )


@dataclass(frozen=True)
class DFT(TokenObjective):
    """Dynamic fine-tuning, in nats.

        L(p) = 1 - p            weight = p

    TaiLr at gamma = 1; with a floor on the weight, as DFT's author advises, it is TaiLr(1,
    min_weight). Source: Wu et al., 2025, arXiv 2508.05629 (there written -sg[p] log p, which has
    the same gradient).
    """

    name: ClassVar[str] = "dft"

    def loss(self, logp: Tensor) -> Tensor:
        return _one_minus_p(logp)

    def weight(self, logp: Tensor) -> Tensor:
        return logp.exp()


@dataclass(frozen=True)
class GCE(TokenObjective):
    """Generalized cross-entropy, in nats.

        L(p) = (1 - p^q) / q            weight = p^q

    q -> 0 is cross-entropy; q = 1 is 1 - p. Source: Zhang & Sabuncu, NeurIPS 2018, eq. 6.
    """

    q: float = 0.7
    """in [1e-30, 1]"""
    name: ClassVar[str] = "gce"

    def __post_init__(self) -> None:
        check("q", self.q, SMALLEST, 1.0)

    def loss(self, logp: Tensor) -> Tensor:
        return -torch.expm1(self.q * logp) / self.q

    def weight(self, logp: Tensor) -> Tensor:
        return torch.exp(self.q * logp)


@dataclass(frozen=True)
class Focal(TokenObjective):
    """Focal loss, in nats: the opposite direction, hard tokens weigh more.

        L(p) = -(1 - p)^k log p            weight = (1 - p)^k - k p (1 - p)^(k - 1) log p

    k = `focusing` (gamma in the source); k = 0 is cross-entropy. Source: Lin et al., ICCV 2017.
    """

    focusing: float = 2.0
    """in [0, 1e30]"""
    name: ClassVar[str] = "focal"

    def __post_init__(self) -> None:
        check("focusing", self.focusing, 0.0, LARGEST)

    def loss(self, logp: Tensor) -> Tensor:
        return -(self._miss(logp) ** self.focusing) * logp

    def weight(self, logp: Tensor) -> Tensor:
        miss = self._miss(logp)
        return miss**self.focusing * (1.0 - self.focusing * logp.exp() * (logp / miss))

    @staticmethod
    def _miss(logp: Tensor) -> Tensor:
        # Never 0: at p = 1 a power below 1 has an infinite slope, and 0 * inf is nan.
        return _one_minus_p(logp).clamp(min=torch.finfo(logp.dtype).tiny)


@dataclass(frozen=True)
class MixCE(TokenObjective):
    """Mixture of forward and (approximate) reverse cross-entropy, in nats.

        L(p) = -eta log p + (1 - eta) (1 - p)            weight = eta + (1 - eta) p

    eta = 1 is cross-entropy; eta = 0 is 1 - p. The source writes the second term -(1 - eta) sg[p]
    log p, which has the same gradient. Source: Zhang et al., ACL 2023.
    """

    eta: float = 0.5
    """in [0, 1]"""
    name: ClassVar[str] = "mixce"

    def __post_init__(self) -> None:
        check("eta", self.eta, 0.0, 1.0)

    def loss(self, logp: Tensor) -> Tensor:
        return -self.eta * logp + (1.0 - self.eta) * _one_minus_p(logp)

    def weight(self, logp: Tensor) -> Tensor:
        return self.eta + (1.0 - self.eta) * logp.exp()


@dataclass(frozen=True)
class Poly1(TokenObjective):
    """Poly-1, in nats: cross-entropy with its first polynomial coefficient raised.

        L(p) = -log p + epsilon (1 - p)            weight = 1 + epsilon p

    epsilon = 0 is cross-entropy; below -1 the weight would change its sign. Source: Leng et al.,
    ICLR 2022.
    """

    epsilon: float = 1.0
    """in [-1, 1e30]"""
    name: ClassVar[str] = "poly1"

    def __post_init__(self) -> None:
        check("epsilon", self.epsilon, -1.0, LARGEST)

    def loss(self, logp: Tensor) -> Tensor:
        return -logp + self.epsilon * _one_minus_p(logp)

    def weight(self, logp: Tensor) -> Tensor:
        return 1.0 + self.epsilon * logp.exp()


@dataclass(frozen=True)
class TaylorCE(TokenObjective):
    """Taylor cross-entropy, in nats: -log p expanded around p = 1 and cut.

        L(p) = sum over i = 1..order of (1 - p)^i / i            weight = 1 - (1 - p)^order

    order = 1 is 1 - p; order -> inf is cross-entropy. Source: Feng et al., IJCAI 2020.
    """

    order: int = 2
    """1, 2, ..."""
    name: ClassVar[str] = "taylor_ce"

    def __post_init__(self) -> None:
        check_whole("order", self.order, 1)

    def loss(self, logp: Tensor) -> Tensor:
        miss = _one_minus_p(logp)
        total = torch.zeros_like(logp)
        for i in range(int(self.order), 0, -1):  # Horner: miss (1 + miss (1/2 + miss (1/3 + ...)))
            total = miss * (total + 1.0 / i)
        return total

    def weight(self, logp: Tensor) -> Tensor:
        # expm1 of log1p: for small p, 1 - (1 - p)^order loses every digit. log1p(-1) = -inf is
        # right at p = 1.
        return -torch.expm1(self.order * torch.log1p(-logp.exp()))


@dataclass(frozen=True)
class Threshold(TokenObjective):
    """Cross-entropy on the tokens whose probability lies in a band, in nats.

        L(p) = -log clip(p, min_p, max_p)            weight = 1 if min_p <= p <= max_p else 0

    min_p = 0 and max_p = 1 is cross-entropy. min_p > 0 ignores what the model thinks impossible
    (ProFit, arXiv 2601.09195); max_p < 1 ignores what it knows already. The constants keep L
    continuous.
    """

    min_p: float = 0.1
    """in [0, 1)"""
    max_p: float = 1.0
    """in (min_p, 1]"""
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        check("min_p", self.min_p, 0.0, 1.0)
        check("max_p", self.max_p, 0.0, 1.0)
        if self.min_p >= self.max_p:
            raise ValueError(f"min_p must be below max_p, got {self.min_p} and {self.max_p}")

    def loss(self, logp: Tensor) -> Tensor:
        return -logp.clamp(*self._band)

    def weight(self, logp: Tensor) -> Tensor:
        low, high = self._band
        return ((logp >= low) & (logp <= high)).to(logp.dtype)

    @property
    def _band(self) -> tuple[float, float]:
        return (math.log(self.min_p) if self.min_p > 0 else -math.inf), math.log(self.max_p)
