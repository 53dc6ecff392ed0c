"""The head's public functions; its backends are programs for the same sums."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tvd_gen.head.chunked import chunked_logp, chunked_loss
from tvd_gen.head.logits import check_additions, check_needs, check_objective
from tvd_gen.head.output import LossOutput
from tvd_gen.head.problem import Given, Operands, Options
from tvd_gen.head.reference import reference_logp, reference_loss
from tvd_gen.objectives import CrossEntropy, DistributionObjective, Embeddings, TokenObjective

Look = Callable[[Tensor], Tensor]
"""places (n,) among the N rows -> what belongs to them (n, ...)"""

logger = logging.getLogger("tvd_gen")


@dataclass(frozen=True)
class _Backend:
    loss: Callable[[Operands, Given, Options], LossOutput]
    logp: Callable[[Operands, Tensor, Options], Tensor]


def _triton() -> _Backend:
    from tvd_gen.head.triton import TritonProgram

    return _Backend(
        partial(chunked_loss, program=TritonProgram), partial(chunked_logp, program=TritonProgram)
    )


BACKENDS: dict[str, Callable[[], _Backend]] = {
    "reference": lambda: _Backend(reference_loss, reference_logp),
    "chunked": lambda: _Backend(chunked_loss, chunked_logp),
    "triton": _triton,
}


def linear_objective_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objective: TokenObjective | DistributionObjective,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    token_weights: Tensor | float | None = None,
    factors: Tensor | None = None,
    previous: Look | None = None,
    reference: Look | None = None,
    embeddings: Tensor | Embeddings | None = None,
    row_budget: float = 0.0,
    backend: str = "auto",
) -> LossOutput:
    """The objective summed over tokens, from hidden states, without keeping an (N, V) tensor: a
    chunk of rows at a time (on a GPU of all, where that takes no more memory).

    Equals objective_loss(F.linear(hidden, weight, bias), ..., reduction="sum").

    hidden (N, D), weight (V, D), bias (V,), targets (N,); token_weights (N,), or one number for all
    (1 / count gives the mean, and gradients that are rounded once), not differentiable;
    logits = cap(scale * (hidden @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap).
    low_rank = (a (N, r), b (V, r)) adds a @ b.T to hidden @ weight.T, whose sum is never formed:
    an adapter on the head passes (dropout(hidden) @ A.T * scaling, B). z_loss adds z_loss * lse^2
    of each row (PaLM: 1e-4). factors (N,) multiply the objective alone, not what is added to it:
    weights of another model, or the slopes of a sequence objective.

    A DistributionObjective gets what it `needs`, of places (n,) among the N rows: previous(places)
    (n, L), the targets before each in its sequence, negative where there is none;
    reference(places), the reference model's logits (n, V); and embeddings (V, E), or Embeddings of
    them, which keeps what it has found. It costs a few passes more over each chunk's logits, and no
    (N, V) or (N, L) tensor either.

    Rows whose target is ignore_index are dropped before the first product; with ignore_index=None
    there are none, and a GPU is not waited for. Maths on logits in float32 (float64 for float64
    inputs), products in hidden's dtype or autocast's; in float32 for the gradients of float16, for
    which a loss scale would come too late, and on a CPU without instructions for half precision.
    Only inputs that require a gradient cost one. First derivatives only.

    row_budget leaves the smallest rows of each chunk out of the gradient, as long as they hold at
    most that share of the gradient's L1 norm on the logits (a row's is 2 |token_weight| weight
    (1 - p) for a plain objective); the loss and the other sums are exact. A GPU is waited for.

    backend: auto (triton on CUDA, else chunked) | reference | chunked | triton. Raises ValueError
    for shapes, numbers or a backend that do not fit.
    """
    operands = _operands(hidden, weight, targets, bias, low_rank, softcap)
    weights = _token_weights("token_weights", token_weights, hidden)
    given = Given(targets, weights, _token_weights("factors", factors, hidden))
    check_objective(objective)
    check_needs(objective, previous=previous, reference=reference, embeddings=embeddings)
    check_additions(label_smoothing, z_loss, row_budget)
    if row_budget and (backend == "reference" or isinstance(objective, DistributionObjective)):
        raise ValueError("row_budget is for token objectives on the fast head alone")
    additions = label_smoothing, z_loss, row_budget
    program = _backend(backend, hidden).loss
    if ignore_index is not None:
        kept = (targets != ignore_index).nonzero().squeeze(-1)
        operands, given = _compacted(operands, kept), given.at(kept)
        previous, reference = (_among(kept, each) for each in (previous, reference))
    looks = previous, reference, Embeddings.of(embeddings, given.targets)
    options = Options(objective, scale, softcap, *additions, *looks)
    return program(operands, given, options)


def _among(kept: Tensor, look: Look | None) -> Look | None:
    """A function of places among all rows as one of places among those that are kept."""
    return None if look is None else lambda places: look(kept[places])


def linear_target_logp(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    backend: str = "auto",
) -> Tensor:
    """(N,) log p of each target, differentiable, without keeping an (N, V) tensor.

    For objectives of whole sequences, whose weights hang on the log p of all their tokens: backward
    makes the logits once more, 8NDV operations in place of 6. Arguments, units and errors are those
    of linear_objective_loss; 0 at ignored targets. float32 (float64 for float64 inputs). First
    derivatives only.
    """
    operands = _operands(hidden, weight, targets, bias, low_rank, softcap)
    options = Options(CrossEntropy(), scale, softcap)
    program = _backend(backend, hidden).logp
    if ignore_index is None:
        return program(operands, targets, options)
    kept = (targets != ignore_index).nonzero().squeeze(-1)
    logp = program(_compacted(operands, kept), targets.index_select(0, kept), options)
    return logp.new_zeros(len(targets)).index_copy(0, kept, logp)


def _backend(name: str, hidden: Tensor) -> _Backend:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    if name == "auto":
        # Nobody trains in float64: it is for checks, and torch's own operations are the check.
        fits = hidden.device.type == "cuda" and hidden.dtype != torch.float64
        name = "triton" if fits and _has_triton() else "chunked"
    elif name == "triton" and not _has_triton():
        raise ValueError("backend='triton' needs the package triton, which CUDA's torch brings")
    return BACKENDS[name]()


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found and torch.cuda.is_available():
        logger.warning("triton is not installed: the head runs on torch's own operations (slower)")
    return found


def _compacted(operands: Operands, kept: Tensor) -> Operands:
    low = operands.low_hidden
    return operands._replace(
        hidden=operands.hidden.index_select(0, kept),
        low_hidden=None if low is None else low.index_select(0, kept),
    )


def _operands(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
    softcap: float | None,
) -> Operands:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "need hidden (N, D) and weight (V, D), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    _check_size("targets", targets, len(hidden))
    _check_size("bias", bias, len(weight))
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0, got {softcap}")
    if low_rank is None:
        return Operands(hidden, weight, bias)
    rows, columns = (tuple(part.shape) for part in low_rank)
    if rows[:-1] != (len(hidden),) or columns[:-1] != (len(weight),) or rows[-1] != columns[-1]:
        raise ValueError(
            f"low_rank must be ({len(hidden)}, r) and ({len(weight)}, r), got {rows} and {columns}"
        )
    return Operands(hidden, weight, bias, *low_rank)


def _token_weights(name: str, given: Tensor | float | None, hidden: Tensor) -> Tensor | None:
    """As a tensor (N,) or ()."""
    if given is None:
        return None
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    weights = torch.as_tensor(given, dtype=dtype, device=hidden.device)
    if weights.requires_grad:
        raise ValueError(f"{name} are not differentiable: detach them")
    if weights.dim():
        _check_size(name, weights, len(hidden))
    return weights


def _check_size(name: str, tensor: Tensor | None, size: int) -> None:
    if tensor is not None and tensor.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
