"""The head in chunks of rows, for any device: 6NDV operations, one chunk of logits at a time.

The gradient of a token objective is known as soon as the chunk's logits are, so it is made in the
forward pass and the logits are dropped; backward only scales it. That is exact because the loss is
a sum of terms of one row each.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tvd_gen.head.distribution import DistributionProgram
from tvd_gen.head.output import LossOutput
from tvd_gen.head.problem import Given, Operands, Options
from tvd_gen.head.rows import (
    Rows,
    RowStats,
    TileProgram,
    compacted,
    exact_target_logits,
)
from tvd_gen.objectives import DistributionObjective

# So many logits, 128 MB in bfloat16 (a GPU's: 512), in so many rows: with fewer rows products slow
# down, with more a CPU's do as well.
CHUNK_LOGITS = {"cpu": 2**26, "cuda": 2**28}
CHUNK_ROWS = {"cpu": (256, 512), "cuda": (1024, 2048)}
# Of centred logits, a bfloat16 gradient rounded at so many additions is still closer to the truth
# than the plain path's, whose logits are rounded far from 0. All others are summed in float32.
ROUNDED_SUMS = 4

RowProgram = Callable[[Rows, Tensor | None], RowStats]
MakeProgram = Callable[[int, int, Tensor | None, Options, Tensor], RowProgram]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def chunked_loss(
    operands: Operands, given: Given, options: Options, program: MakeProgram = TileProgram
) -> LossOutput:
    """As `reference_loss`, a chunk of (N, V) at a time. First derivatives only."""
    if isinstance(options.objective, DistributionObjective):
        program = DistributionProgram
    # Inside a Function gradients are always off, so whether they are wanted is asked here.
    wanted = torch.is_grad_enabled()
    sums = _Loss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        *operands, given, options, program, wanted
    )
    return LossOutput(*sums)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def chunked_logp(
    operands: Operands, targets: Tensor, options: Options, program: MakeProgram = TileProgram
) -> Tensor:
    """(N,) log p of the targets; options hold cross-entropy. Backward makes the logits once more:
    8NDV in all."""
    logp: Tensor = _TargetLogp.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        *operands, targets, options, program
    )
    return logp


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low_hidden: Tensor | None,
        low_weight: Tensor | None,
        given: Given,
        options: Options,
        program: MakeProgram,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        operands = Operands(hidden, weight, bias, low_hidden, low_weight)
        needed = [wanted and need for need in ctx.needs_input_grad[: len(operands)]]
        # The dtype under this autocast: a second backward runs outside of it.
        ctx.settings = given, options, program, needed, _compute_dtype(hidden)
        ctx.dtypes = [None if operand is None else operand.dtype for operand in operands]
        ctx.save_for_backward(*operands)
        stats, made = _run(operands, *ctx.settings)
        ctx.grads = made
        sums = stats.sums(_wide(given, stats.logp.dtype), options)
        ctx.mark_non_differentiable(*sums[1:])
        ctx.set_materialize_grads(False)
        return sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        if grad_loss is None:
            return (None,) * 9
        # The gradients are given away, so that they may be scaled in place and become .grad; after
        # retain_graph=True they are made again.
        made, ctx.grads = ctx.grads, None
        if made is None:
            _, made = _run(Operands(*ctx.saved_tensors), *ctx.settings)
        scaled = (
            None if grad is None else _scaled(grad, grad_loss, dtype)
            for grad, dtype in zip(made, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


class _TargetLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low_hidden: Tensor | None,
        low_weight: Tensor | None,
        targets: Tensor,
        options: Options,
        program: MakeProgram,
    ) -> Tensor:
        operands = Operands(hidden, weight, bias, low_hidden, low_weight)
        ctx.options, ctx.program, ctx.dtype = options, program, _compute_dtype(hidden)
        ctx.save_for_backward(*operands, targets)
        nothing = [False] * len(operands)
        return _run(operands, Given(targets), options, program, nothing, ctx.dtype)[0].logp

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor) -> tuple[Tensor | None, ...]:
        """What cross-entropy's gradient is with the token weights -grad_logp."""
        _refuse_second_derivatives()
        *operands, targets = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[: len(operands)]]
        given = Given(targets, -grad_logp)
        settings = given, ctx.options, ctx.program, wanted, ctx.dtype
        _, grads = _run(Operands(*operands), *settings)
        cast = (
            None if grad is None else grad.to(operand.dtype)
            for grad, operand in zip(grads, operands, strict=True)
        )
        return (*cast, None, None, None)


def _refuse_second_derivatives() -> None:
    # The gradient is no function of autograd's: a derivative of it would be 0, in silence.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the head gives first derivatives only: no create_graph=True, or backend='reference'"
        )


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype F.linear would compute in; autocast leaves float64 alone."""
    device = hidden.device.type
    dtype = hidden.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return dtype if device != "cpu" or multiplies(dtype) else torch.float32


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products in `dtype`; else they crawl."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return False
    known = torch.ops.mkldnn
    asked = (
        known._is_mkldnn_bf16_supported
        if dtype == torch.bfloat16
        else known._is_mkldnn_fp16_supported
    )
    return bool(asked())


def _wide(given: Given, dtype: torch.dtype) -> Given:
    """With its weights in `dtype`."""
    weights, factors = given.token_weights, given.factors
    return given._replace(
        token_weights=None if weights is None else weights.to(dtype),
        factors=None if factors is None else factors.to(dtype),
    )


def _chunks(rows: int, vocabulary: int, device: str, free: int = 0) -> Iterator[slice]:
    """Chunks of even size: of so many rows as cost nothing, or within the budget of logits and the
    bounds of rows where those are more."""
    kind = "cpu" if device not in CHUNK_LOGITS else device
    low, high = CHUNK_ROWS[kind]
    size = min(max(CHUNK_LOGITS[kind] // vocabulary, low), high)
    size = max(2 ** (size.bit_length() - 1), free)
    count = -(-rows // size)
    size = -(-rows // max(count, 1))
    for start in range(0, rows, max(size, 1)):
        yield slice(start, min(start + size, rows))


def _run(
    operands: Operands,
    given: Given,
    options: Options,
    program: MakeProgram,
    wanted: list[bool],
    dtype: torch.dtype,
) -> tuple[RowStats, tuple[Tensor | None, ...]]:
    """All chunks: each row's numbers, and the gradients that are wanted, in the operands' order."""
    with torch.no_grad(), torch.autocast(operands.hidden.device.type, enabled=False):
        return _Head(operands, given, options, wanted, dtype).run(program)


class _Head:
    """One pass over all chunks."""

    def __init__(
        self,
        operands: Operands,
        given: Given,
        options: Options,
        wanted: list[bool],
        dtype: torch.dtype,
    ) -> None:
        self.options, self.dtype = options, dtype
        self.device = operands.hidden.device
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        # A loss scale comes in backward, too late for what fp16 has flushed to 0 by then.
        self.narrow = torch.float32 if dtype == torch.float16 else dtype
        # On a GPU it would cost a pass over the logits in memory.
        self.centred = self.wide != dtype and self.device.type == "cpu"
        self.given = _wide(given, self.wide)
        # A banned token has the bias -inf, and 0 * -inf would be the entropy's nan.
        bias = operands.bias
        self.bias = None if bias is None else bias.to(self.wide).clamp(min=-1e30)
        self.vocabulary = len(operands.weight)
        want_hidden, want_weight, want_bias, *want_low = wanted
        free = self._free_rows(operands.weight) if want_weight else 0
        self.chunks = [*_chunks(len(given.targets), self.vocabulary, self.device.type, free)]
        wanted_pairs = [(want_hidden, want_weight), tuple(want_low)]
        self.pairs = [
            _Pair(hidden, weight, want, self)
            for (hidden, weight), want in zip(operands.pairs, wanted_pairs, strict=False)
        ]
        self.grad_bias = None
        if want_bias and self.bias is not None:
            self.grad_bias = torch.zeros_like(self.bias)
        self.any_wanted = any(wanted)

    def _free_rows(self, weight: Tensor) -> int:
        """Rows of a chunk that cost a GPU no memory. A gradient that is summed in float32 and
        rounded at the end takes 3 V D numbers of half precision then, and 2 V D before: a chunk of
        D rows is the rest. Not beside a reference's logits, which grow with a chunk."""
        rounded = self.dtype == self.narrow == weight.dtype != self.wide
        alone = self.options.reference is None
        return weight.shape[1] if rounded and alone and self.device.type == "cuda" else 0

    def run(self, make_program: MakeProgram) -> tuple[RowStats, tuple[Tensor | None, ...]]:
        """Each row's numbers and the gradients."""
        longest = max((rows.stop - rows.start for rows in self.chunks), default=0)
        logits = self._scratch(longest, self.dtype)
        slopes = None
        if self.any_wanted:
            same = self.narrow == self.dtype
            slopes = logits if same else self._scratch(longest, self.narrow)
        like = logits.new_empty(0, dtype=self.wide)
        program = make_program(longest, self.vocabulary, self.bias, self.options, like)
        none = RowStats(like, like, like, like.long(), loss=like, weight=like)
        stats = []
        for rows in self.chunks:
            count = rows.stop - rows.start
            part = None if slopes is None else slopes[:count]
            stats.append(program(self._logits(rows, logits[:count]), part))
            if part is not None:
                self._add_gradients(rows, part, stats[-1].mass)
        grads = [(pair.grad_hidden, pair.grad_weight) for pair in self.pairs] + [(None, None)]
        return RowStats.cat(stats or [none]), (*grads[0], self.grad_bias, *grads[1])

    def _scratch(self, rows: int, dtype: torch.dtype) -> Tensor:
        """(rows, V), the rows a little apart: where they begin at odd places products are slow."""
        padded = -(-self.vocabulary // _ALIGNED) * _ALIGNED
        return torch.empty(rows, padded, dtype=dtype, device=self.device)[:, : self.vocabulary]

    def _logits(self, rows: slice, out: Tensor) -> Rows:
        """The chunk's logits; in half precision less the target's, so that rounding is small where
        probability is."""
        given = self.given.at(rows)
        centre = rest = None
        operands = [(pair.hidden[rows], pair.weight) for pair in self.pairs]
        left, right = operands[0]
        if self.centred:
            exact = exact_target_logits(operands, given.targets)
            # float16 ends at 65504: what is large already is left where it is.
            far = exact.abs() > 1e4 if self.dtype == torch.float16 else None
            centre = (exact if far is None else exact.masked_fill(far, 0.0)).to(self.dtype)
            torch.addmm((-centre).unsqueeze(-1).expand_as(out), left, right.T, out=out)
            centre = centre.to(self.wide)
            rest = exact - centre
        else:
            torch.mm(left, right.T, out=out)
        for left, right in operands[1:]:
            out.addmm_(left, right.T)
        like = out.new_empty(0, dtype=self.wide)
        previous, reference = self.options.looked_up(rows, like)
        return Rows(out, given, centre, rest, previous, reference)

    def _add_gradients(self, rows: slice, slopes: Tensor, mass: Tensor | None) -> None:
        kept = None
        if mass is not None:
            slopes, kept = compacted(slopes, mass, self.options.row_budget)
        for pair in self.pairs:
            pair.add_gradients(rows, kept, slopes)
        if self.grad_bias is not None:
            self.grad_bias += slopes.sum(0, dtype=self.wide)


class _Pair:
    """One product hidden @ weight.T, in the head's dtype, and its gradients."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, wanted: tuple[bool, ...], head: _Head
    ) -> None:
        self.hidden, self.weight = hidden.to(head.dtype), weight.to(head.dtype)
        self.factors = self.hidden, self.weight
        if any(wanted):
            self.factors = self.hidden.to(head.narrow), self.weight.to(head.narrow)
        self.grad_hidden = self.grad_weight = None
        if wanted[0]:
            make = torch.zeros_like if head.options.row_budget else torch.empty_like
            self.grad_hidden = make(self.hidden, dtype=head.narrow)
        if wanted[1]:
            few = len(head.chunks) <= (ROUNDED_SUMS if head.centred else 1)
            total = head.narrow if few and weight.dtype == head.dtype else head.wide
            make = torch.empty_like if head.chunks else torch.zeros_like
            self.grad_weight = make(weight, dtype=total)
        self.started = False

    def add_gradients(self, rows: slice, kept: Tensor | None, slopes: Tensor) -> None:
        """slopes (n, V) on the logits of `rows`, or of rows[kept] alone."""
        hidden, weight = self.factors
        if self.grad_hidden is not None:
            out = self.grad_hidden[rows]
            if kept is None:
                torch.mm(slopes, weight, out=out)
            else:
                out[kept] = slopes @ weight
        if self.grad_weight is not None:
            right = hidden[rows] if kept is None else hidden[rows][kept]
            _add_product(self.grad_weight, slopes.T, right, first=not self.started)
            self.started = True


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total (+)= left @ right, summed in total's dtype."""
    if total.dtype == left.dtype:
        if first:
            torch.mm(left, right, out=total)
        else:
            total.addmm_(left, right)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, beta=0 if first else 1, out_dtype=total.dtype, out=total)
    else:
        for out, part in zip(torch.split(total, _BLOCK), torch.split(left, _BLOCK), strict=True):
            product = part @ right
            out.copy_(product) if first else out.add_(product)


_BLOCK = 1024  # rows of a weight: a temporary that stays in cache
_ALIGNED = 64  # numbers: 128 bytes in half precision


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor in `dtype`, over grad itself where that is its dtype."""
    # In float32: as a tensor of no dimensions 1 / tokens would be rounded to bf16, 0.4 percent off.
    if factor.device.type == "cpu":
        if factor != 1.0:
            grad.mul_(factor.item())
        return grad.to(dtype)
    out = grad if grad.dtype == dtype else torch.empty_like(grad, dtype=dtype)
    return torch.mul(grad, factor.reshape((1,) * grad.dim()), out=out)
