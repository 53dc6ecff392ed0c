"""Distribution objectives: what a training step makes of all logits of a token.

A head computes them a chunk of rows at a time, gradients included: no (N, V) tensor, but several
passes over a chunk's logits where a token objective needs two.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from tvd_gen.objectives.base import LARGEST, SMALLEST, Objective, check, check_whole
from tvd_gen.objectives.embeddings import Embeddings


@dataclass(frozen=True)
class Predictions:
    """The logits of n tokens, and what an objective asks for beside."""

    logits: Tensor
    """(n, V) float32 or float64, finite"""
    targets: Tensor
    """(n,)"""
    previous: Tensor | None = None
    """(n, L) the targets before each in its sequence, negative where there is none"""
    reference: Tensor | None = None
    """(n, V) logits of the frozen reference model"""
    embeddings: Embeddings | None = None
    """(V, E) of the frozen reference model's input"""
    _made: dict[Callable[..., Tensor], Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def logp(self) -> Tensor:
        """(n, V) log-probabilities."""
        with torch.enable_grad():  # it is kept: whoever asks first may want no gradient of it
            return self.logits.log_softmax(-1)

    def of_targets(self, values: Tensor) -> Tensor:
        """(n, V) -> (n,)"""
        return values.gather(-1, self.targets.unsqueeze(-1)).squeeze(-1)

    def once(self, make: "Callable[[Predictions], Tensor]") -> Tensor:
        """make(self), without gradients; what a loss and its weight both need is made once."""
        if make not in self._made:
            with torch.no_grad():
                self._made[make] = make(self)
        return self._made[make]


@dataclass(frozen=True)
class DistributionObjective(Objective, ABC):
    """A loss of a token's logits."""

    is_weighted_nll: ClassVar[bool] = False

    @abstractmethod
    def loss(self, predictions: Predictions) -> Tensor:
        """(n,) losses in nats, differentiable in `predictions.logits`."""

    def weight(self, predictions: Predictions) -> Tensor:
        """(n,) what multiplies the gradient of -log p of the target, other terms aside."""
        return torch.ones_like(predictions.logits[:, 0])


def _entropy(logp: Tensor) -> Tensor:
    """(n,) of (n, V) log-probabilities, in nats."""
    return -(logp.exp() * logp).sum(-1)


@dataclass(frozen=True)
class ConfidencePenalty(DistributionObjective):
    """The confidence penalty, in nats.

        L = -log p(y) - beta H(p)

    beta = 0 is cross-entropy. Source: Pereyra et al., 2017, arXiv 1701.06548.
    """

    beta: float = 0.1
    """in [0, 1e30]"""
    name: ClassVar[str] = "confidence_penalty"

    def __post_init__(self) -> None:
        check("beta", self.beta, 0.0, LARGEST)

    def loss(self, predictions: Predictions) -> Tensor:
        logp = predictions.logp
        return -predictions.of_targets(logp) - self.beta * _entropy(logp)


@dataclass(frozen=True)
class Unlikelihood(DistributionObjective):
    """Token-level unlikelihood, in nats: what stands before in the sequence is pushed down.

        L = -log p(y_t) - alpha sum over c in {y_1 .. y_{t-1}} \\ {y_t} of log max(1 - p(c), 1e-5)

    alpha = 0 is cross-entropy. Source: Welleck et al., ICLR 2020 (alpha 1, previous context). The
    published code flattens the batch, so that the sequences before count as context too; here each
    sequence has its own.
    """

    alpha: float = 1.0
    """in [0, 1e30]"""
    name: ClassVar[str] = "unlikelihood"
    needs: ClassVar[frozenset[str]] = frozenset({"previous"})

    def __post_init__(self) -> None:
        check("alpha", self.alpha, 0.0, LARGEST)

    def loss(self, predictions: Predictions) -> Tensor:
        # The target stands first, and in for what is not there.
        targets, previous = predictions.targets.unsqueeze(-1), predictions.previous
        assert previous is not None
        places = torch.cat([targets, torch.where(previous >= 0, previous, targets)], -1)
        logp = predictions.logp.gather(-1, places)
        missed = (-torch.expm1(logp)).clamp(min=1e-5).log()
        pushed = torch.where(_is_first(places, predictions.logits), missed, 0.0)[:, 1:].sum(-1)
        return -logp[:, 0] - self.alpha * pushed


def _is_first(places: Tensor, logits: Tensor) -> Tensor:
    """(n, L) places among (n, V) logits -> (n, L) bool: of equal places in a row the first."""
    order = torch.arange(places.shape[-1], device=places.device, dtype=torch.int32)
    order = order.expand_as(places)
    first = torch.empty_like(logits, dtype=torch.int32)  # only what is written is read
    first.scatter_reduce_(-1, places, order, "amin", include_self=False)
    return first.gather(-1, places) == order


@dataclass(frozen=True)
class D2GPo(DistributionObjective):
    """The data-dependent Gaussian prior, in nats.

        L = -(1 - alpha) log p(y) + alpha T^2 KL(prior_y || p)
        prior_y = softmax(g / T),  g(v) = normal density of v's rank by similarity to y, std `std`

    T = `temperature`; ranks are 0 for y, 1 for the word of the closest embedding (cosine), and so
    on. alpha = 0 is cross-entropy. The density is at most 0.4, so at T = 2 the prior is nearly
    uniform: published so. The published embeddings are fastText's; ours the reference model's.
    Label smoothing, where it is added, leaves 1 - eps of all of L; published, of its first term.
    Source: Li et al., ICLR 2020 (alpha 0.1, T 2, std 1).
    """

    alpha: float = 0.1
    """in [0, 1]"""
    temperature: float = 2.0
    """in [0.001, 1000]"""
    std: float = 1.0
    """in ranks, in [0.001, 100]"""
    name: ClassVar[str] = "d2gpo"
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    def __post_init__(self) -> None:
        check("alpha", self.alpha, 0.0, 1.0)
        check("temperature", self.temperature, 1e-3, 1e3)
        check("std", self.std, 1e-3, 100.0)

    def loss(self, predictions: Predictions) -> Tensor:
        logp, size = predictions.logp, predictions.logits.shape[-1]
        embeddings = predictions.embeddings
        assert embeddings is not None
        if len(embeddings.weight) != size:
            raise ValueError(f"{len(embeddings.weight)} embeddings for logits of {size} words")
        # Ten standard deviations away the density is 1e-22, whose exp is 1 as that of 0 is.
        count = min(math.ceil(10.0 * self.std) + 1, size)
        near = logp.gather(-1, embeddings.nearest(predictions.targets, count))
        ranks = torch.arange(count).to(logp)
        density = torch.exp(-0.5 * (ranks / self.std) ** 2) / (self.std * math.sqrt(math.tau))
        scores = density / self.temperature
        # All words but the `count` nearest have the score 0, and so one probability, `even`.
        others = torch.tensor([size - count]).to(logp).log()
        log_total = torch.cat([scores, others]).logsumexp(0)
        prior, even = torch.exp(scores - log_total), torch.exp(-log_total)
        entropy = log_total - (prior * scores).sum()
        far = -even * logp.sum(-1) - (near * (prior - even)).sum(-1) - entropy
        return -(1.0 - self.alpha) * near[:, 0] + self.alpha * self.temperature**2 * far

    def weight(self, predictions: Predictions) -> Tensor:
        return torch.full_like(predictions.logits[:, 0], 1.0 - self.alpha)


@dataclass(frozen=True)
class GEM(DistributionObjective):
    """GEM, in nats: what a sharper copy of the model says is moved to the target.

        L = sum over v of sg[h(v) q(v)] (log p(v) - log p(y)),  q = softmax(logits / beta)
        h(v) = sigmoid(slope (logit_v - logit_y))

    At beta = 1 and slope = 0 its gradient is half of cross-entropy's. The published h is that of
    slope 0.01, or 1 ("linear", twice slope = 0). L is not bounded from below; only its gradient is
    meant. Source: Li et al., 2024, arXiv 2408.16673 (beta 0.7).
    """

    beta: float = 0.7
    """in [1e-30, 1]"""
    slope: float = 0.01
    """in [0, 1e30]"""
    name: ClassVar[str] = "gem"

    def __post_init__(self) -> None:
        check("beta", self.beta, SMALLEST, 1.0)
        check("slope", self.slope, 0.0, LARGEST)

    def loss(self, predictions: Predictions) -> Tensor:
        logp, pulls = predictions.logp, predictions.once(self._pulls)
        return (pulls * logp).sum(-1) - pulls.sum(-1) * predictions.of_targets(logp)

    def weight(self, predictions: Predictions) -> Tensor:
        return predictions.once(self._pulls).sum(-1)

    def _pulls(self, predictions: Predictions) -> Tensor:
        """(n, V) h q"""
        logits = predictions.logits
        ahead = logits - predictions.of_targets(logits).unsqueeze(-1)
        return torch.sigmoid(self.slope * ahead) * (logits / self.beta).softmax(-1)


@dataclass(frozen=True)
class EAFT(DistributionObjective):
    """Entropy-adaptive fine-tuning, in nats: what the model is sure of weighs little.

        L = -sg[(H_k / log k)^alpha] log p(y),  H_k = entropy of the k likeliest tokens

    (their probabilities made to sum to 1; the published code divides by 3.0 for log 20). alpha = 0
    is cross-entropy. Source: arXiv 2601.02151 (alpha 1, k 20).
    """

    alpha: float = 1.0
    """in [0, 1e30]"""
    k: int = 20
    """2, 3, ..."""
    name: ClassVar[str] = "eaft"
    is_weighted_nll: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check("alpha", self.alpha, 0.0, LARGEST)
        check_whole("k", self.k, 2)

    def loss(self, predictions: Predictions) -> Tensor:
        return -self.weight(predictions) * predictions.of_targets(predictions.logp)

    def weight(self, predictions: Predictions) -> Tensor:
        return predictions.once(self._weight)

    def _weight(self, predictions: Predictions) -> Tensor:
        logits = predictions.logits
        best = logits.topk(min(int(self.k), logits.shape[-1]), -1).values
        return (_entropy(best.log_softmax(-1)) / math.log(self.k)) ** self.alpha


@dataclass(frozen=True)
class ASFT(DistributionObjective):
    """Anchored supervised fine-tuning, in nats: DFT, held near the model that it began with.

        L = 1 - p(y) + kl_weight KL(p_ref || p)

    kl_weight = 0 is DFT (there -sg[p] log p, which has the same gradient). Source: arXiv
    2509.23753, ICLR 2026 (kl_weight 0.05 to 0.1).
    """

    kl_weight: float = 0.1
    """in [0, 1e30]"""
    name: ClassVar[str] = "asft"
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __post_init__(self) -> None:
        check("kl_weight", self.kl_weight, 0.0, LARGEST)

    def loss(self, predictions: Predictions) -> Tensor:
        assert predictions.reference is not None
        # A banned token's -inf times a probability of 0 would be nan.
        logp, anchor = predictions.logp, predictions.reference.clamp(min=-1e30).log_softmax(-1)
        away = (anchor.exp() * (anchor - logp)).sum(-1)
        return -torch.expm1(predictions.of_targets(logp)) + self.kl_weight * away

    def weight(self, predictions: Predictions) -> Tensor:
        return predictions.of_targets(predictions.logp).exp()
