"""The head in chunks of rows, for any device: 6NDV operations, one chunk of logits at a time.

The gradient of a token objective is known as soon as the chunk's logits are, so it is made in the
forward pass and the logits are dropped; backward only scales it. That is exact because the loss is
a sum of terms of one row each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tvd_gen.head.logits import in_float32
from tvd_gen.head.output import LossOutput
from tvd_gen.head.reference import capped
from tvd_gen.objectives import TokenObjective

# Of float32 logits: large enough for products at full speed, small beside the model.
CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class _Setting:
    objective: TokenObjective
    scale: float
    softcap: float | None
    label_smoothing: float
    differentiable: bool


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None,
    objective: TokenObjective,
    *,
    scale: float,
    softcap: float | None,
    label_smoothing: float,
) -> LossOutput:
    """As `reference_loss`, with no (N, V) tensor. First derivatives only."""
    # Inside a Function gradients are always off, so whether they are wanted is asked here.
    setting = _Setting(objective, scale, softcap, label_smoothing, torch.is_grad_enabled())
    sums = _ChunkedHead.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        hidden, weight, bias, targets, token_weights, setting
    )
    return LossOutput(*sums)


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = min(max(CHUNK_BYTES // (4 * vocabulary), 256), 1024)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype F.linear would compute in; autocast leaves float64 alone."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor | None,
        setting: _Setting,
    ) -> tuple[Tensor, ...]:
        dtype = _compute_dtype(hidden)
        wanted = [setting.differentiable and need for need in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            inputs = (hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
            sums, grads = _run(*inputs, targets, token_weights, setting, wanted)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.mark_non_differentiable(*sums[1:])
        ctx.set_materialize_grads(False)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 6
        # In grad_loss's own float32: rounded to bf16, 1 / tokens is off by up to 0.4 percent.
        grads = (
            None if g is None else (g.to(grad_loss.dtype) * grad_loss).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None,
    setting: _Setting,
    wanted: list[bool],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """All chunks: the six sums of LossOutput, and the gradients that are wanted."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    sums = torch.zeros(6, dtype=wide, device=hidden.device)
    # A loss scale comes in backward, too late for what fp16 has flushed to 0 by then.
    narrow = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    factors = (hidden.to(narrow), weight.to(narrow)) if any(wanted) else (hidden, weight)
    grad_hidden = torch.empty_like(hidden, dtype=narrow) if wanted[0] else None
    # float32 even for bf16: the sum over chunks would lose what each chunk adds.
    grad_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
    grad_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
    for rows in _chunks(len(hidden), len(weight)):
        logits = hidden[rows] @ weight.T
        if bias is not None:
            logits += bias
        logits = capped(in_float32(logits), setting.scale, setting.softcap)
        weights = None if token_weights is None else token_weights[rows].to(wide)
        chunk_sums, coefficients = _row_sums(logits, targets[rows], weights, setting)
        sums += chunk_sums
        if not any(wanted):
            continue
        slope = _slope_in_place(logits, targets[rows], *coefficients, setting).to(narrow)
        if grad_hidden is not None:
            torch.mm(slope, factors[1], out=grad_hidden[rows])
        if grad_weight is not None:
            _add_product(grad_weight, slope.T, factors[0][rows])
        if grad_bias is not None:
            grad_bias += slope.sum(0, dtype=wide)
    # Not views of one tensor: a caller may divide the loss in place.
    return tuple(value.clone() for value in sums.unbind()), (grad_hidden, grad_weight, grad_bias)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in total's dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _row_sums(
    logits: Tensor, targets: Tensor, token_weights: Tensor | None, setting: _Setting
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """One chunk's six sums, and (log-sum-exp, pull, push) of each row.

    The gradient on row i's logits is  push_i softmax_i - pull_i onehot_i - token_weight_i eps / V.
    """
    eps, objective = setting.label_smoothing, setting.objective
    lse = logits.logsumexp(-1)
    logp = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - lse
    losses, weights = objective.loss(logp), objective.weight(logp)
    correct = (logits.argmax(-1) == targets).sum()
    if eps:
        losses = (1.0 - eps) * losses + eps * (lse - logits.mean(-1))
    scale = torch.ones_like(logp) if token_weights is None else token_weights
    sums = torch.stack(
        [
            (scale * losses).sum(),
            -logp.sum(),
            logp.new_full((), len(logp)),
            correct.to(logp.dtype),
            weights.sum(),
            objective.floored(logp).sum().to(logp.dtype),
        ]
    )
    pull = scale * (1.0 - eps) * weights
    return sums, (lse, pull, scale)


def _slope_in_place(
    logits: Tensor, targets: Tensor, lse: Tensor, pull: Tensor, scale: Tensor, setting: _Setting
) -> Tensor:
    """dloss/d(hidden @ weight.T + bias), written over the logits."""
    eps, cap = setting.label_smoothing, setting.softcap
    bend = None if cap is None else 1.0 - (logits / cap) ** 2  # d cap(x) / dx
    slope = logits.sub_(lse.unsqueeze(-1)).exp_().mul_((pull + eps * scale).unsqueeze(-1))
    slope.scatter_add_(-1, targets.unsqueeze(-1), -pull.unsqueeze(-1))
    if eps:
        slope -= (eps / slope.shape[-1] * scale).unsqueeze(-1)
    if bend is not None:
        slope *= bend
    return slope if setting.scale == 1.0 else slope.mul_(setting.scale)
