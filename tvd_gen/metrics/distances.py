"""How far two known distributions are from each other: token by token, and over whole sequences.

For two models whose probabilities can be computed, as an oracle's and its student's, nothing has
to be estimated at a token, for every continuation is summed over; over sequences, which are too
many, the total variation is a mean over samples, without bias.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class TokenDistances(NamedTuple):
    """Distances of two next-token distributions p and q, one number for each row."""

    tvd: Tensor
    """(N,) total variation, 1/2 sum |p - q|, in [0, 1]"""
    kl: Tensor
    """(N,) KL(p || q) = sum p log(p / q), nats"""
    reverse_kl: Tensor
    """(N,) KL(q || p), nats"""


class Estimate(NamedTuple):
    """A mean over independent samples, and its standard error."""

    mean: float
    standard_error: float


def token_distances(logp: Tensor, logq: Tensor) -> TokenDistances:
    """(N, V) and (N, V) log-probabilities, rows that sum to 1 -> the distances of each row.

    A token that both give -inf (or so little that its exp is 0) counts nothing; one that only q
    gives -inf makes KL(p || q) infinite. ValueError for shapes that differ.
    """
    if logp.shape != logq.shape or logp.dim() != 2:
        raise ValueError(
            f"token_distances: needs two (N, V), got {tuple(logp.shape)} and {tuple(logq.shape)}"
        )
    p, q, ratio = logp.exp(), logq.exp(), logp - logq
    kl, reverse = torch.linalg.vecdot(p, ratio), -torch.linalg.vecdot(q, ratio)
    if torch.isnan(kl + reverse).any():  # 0 * -inf; looked for once, for passes over (N, V) cost
        ratio = torch.where((p == 0) & (q == 0), 0.0, ratio)
        kl = torch.where(p == 0, 0.0, p * ratio).sum(1)
        reverse = -torch.where(q == 0, 0.0, q * ratio).sum(1)
    return TokenDistances(torch.linalg.vector_norm(p.sub_(q), 1, 1) / 2, kl, reverse)


def sequence_tvd(logp: Tensor, logq: Tensor) -> Estimate:
    """Estimate the total variation of p and q over whole sequences, from samples of p.

        TVD(p, q) = 1 - sum over y of min(p(y), q(y)) = E_{y ~ p} [1 - min(1, q(y) / p(y))]

    logp, logq (N,): log-probabilities of sequences drawn from p. Without bias, and each term lies
    in [0, 1], so that no sample can spoil the mean. As TVD is symmetric, samples of q serve as
    well: sequence_tvd(logq, logp). ValueError for shapes that differ and for fewer than two
    samples.
    """
    if logp.shape != logq.shape or logp.dim() != 1 or len(logp) < 2:
        raise ValueError(
            f"sequence_tvd: needs two (N,) of 2 samples or more, got {tuple(logp.shape)} and "
            f"{tuple(logq.shape)}"
        )
    # expm1, not 1 - exp: near equal distributions float32 would round the term away
    terms = -torch.expm1((logq.double() - logp.double()).clamp(max=0.0))
    return Estimate(float(terms.mean()), float(terms.std()) / math.sqrt(len(terms)))
