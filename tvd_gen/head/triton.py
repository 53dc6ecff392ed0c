"""The row program of a GPU: one pass over a chunk's logits for the numbers, one for the slopes.

Between the passes is torch on (n,) tensors, so that any objective is served. A row belongs to one
program, without atomics, and nothing waits for the GPU but the first chunk of a kind, on which
Triton measures which block is the fastest.
"""
# mypy: disallow-untyped-decorators=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tvd_gen.head.problem import Options
from tvd_gen.head.rows import Rows, RowStats, coefficients, is_plain, plain_mass

# The kernels use the language's builtins alone: those of its functions that are kernels themselves
# (tl.sum, tl.zeros) do not run in the interpreter when triton was imported before it was asked for.
INTERPRETED: bool = triton.knobs.runtime.interpret
WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}
# Stands for -inf: the difference of two of them is 0, not nan.
FLOOR = tl.constexpr(-1e30)

SIZES = [(4096, 8), (2048, 4), (2048, 8), (4096, 16), (8192, 16)]  # (columns, warps)
if INTERPRETED:
    SIZES = [(64, 4)]  # several blocks in a test's small vocabulary
# Measuring keeps a copy of what is written over: of so many rows, not of a chunk.
MEASURED_ROWS = 4 if INTERPRETED else 512
CONFIGS = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in SIZES]


def _reproducible(configs: list[Any], *_: Any, **__: Any) -> list[Any]:
    """Sums are grouped by block: a block chosen by the clock may differ from run to run."""
    return configs[:1] if torch.are_deterministic_algorithms_enabled() else configs


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """(1 - exp(-2 |x|)) / (1 + exp(-2 |x|)); near 0, where that cancels, its series."""
    size = tl.abs(x)
    exp = tl.exp(-2.0 * size)
    tanh = (1.0 - exp) / (1.0 + exp)
    if x.dtype == tl.float32:  # in float64 the series' 1e-8 would be the larger error
        y = x * x
        near = size * (1.0 - y * (1 / 3 - y * (2 / 15 - y * (17 / 315 - y * (62 / 2835)))))
        tanh = tl.where(size < 0.25, near, tanh)
    return tl.where(x < 0.0, -tanh, tanh)


@triton.jit
def _finished(
    logits: tl.tensor,
    bias: tl.tensor,
    centre: tl.tensor,
    rest: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    target: tl.tensor,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """cap(scale * (logits + bias)) of some columns; `logits` points at the row.

    The target's own logit is `rest` where there is one. A centre is added before a cap alone:
    without a cap it is the same for all columns and cancels.
    """
    x = tl.load(logits + columns, mask=inside, other=0.0).to(WIDE)
    if rest is not None:
        x = tl.where(columns == target, tl.load(rest + row), x)
    if bias is not None:
        x += tl.load(bias + columns, mask=inside, other=0.0)
    if CAP is None:
        x *= SCALE
    else:
        if centre is not None:
            x += tl.load(centre + row)
        x = _tanh(x * (SCALE / CAP)) * CAP
    return x


@triton.jit
def _merged(
    best: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    moment: tl.tensor,
    best2: tl.tensor,
    top2: tl.tensor,
    total2: tl.tensor,
    moment2: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """(max, its first place, sum of exp(d), sum of exp(d) d) of two sets as one; d = x - max."""
    ahead = best2 > best
    first = ahead | ((best2 == best) & (top2 < top))
    gap = -tl.abs(best2 - best)
    factor = tl.exp(gap)
    far = tl.where(ahead, total, total2)  # the sums of the set whose maximum is the lower one
    far_moment = tl.where(ahead, moment, moment2)
    return (
        tl.where(ahead, best2, best),
        tl.where(first, top2, top),
        tl.where(ahead, total2, total) + far * factor,
        tl.where(ahead, moment2, moment) + (far_moment + far * gap) * factor,
    )


@triton.jit
def _added(left: tl.tensor, right: tl.tensor) -> tl.tensor:
    return left + right


@triton.autotune(
    CONFIGS,
    key=["V"],
    prune_configs_by={"early_config_prune": _reproducible},
    cache_results=True,
)
@triton.jit(do_not_specialize=["count"])
def _stats_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    targets: tl.tensor,
    bias: tl.tensor,
    centre: tl.tensor,
    rest: tl.tensor,
    tops: tl.tensor,
    numbers: tl.tensor,
    count: tl.tensor,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    MEAN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """numbers (6, count) = logp, lse, entropy, mean, max and sum of exp(x - max) of each row.

    Every lane keeps the numbers of its own columns; the lanes are merged once, at the end.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), FLOOR, WIDE)
    top = lanes
    total = tl.full((BLOCK,), 0.0, WIDE)
    moment = tl.full((BLOCK,), 0.0, WIDE)
    plain = tl.full((BLOCK,), 0.0, WIDE)
    one = tl.full((BLOCK,), 1.0, WIDE)
    zero = tl.full((BLOCK,), 0.0, WIDE)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        inside = columns < V
        x = _finished(logits, bias, centre, rest, row, columns, inside, target, SCALE, CAP, WIDE)
        if MEAN:
            plain += tl.where(inside, x, 0.0)
        x = tl.where((x < FLOOR) | (columns >= V), FLOOR, x)  # nan stays nan
        best, top, total, moment = _merged(best, top, total, moment, x, columns, one, zero)
    best, top, total, moment = tl.reduce((best, top, total, moment), 0, _merged)
    known = (target >= 0) & (target < V)
    own = _finished(logits, bias, centre, rest, row, target, known, target, SCALE, CAP, WIDE)
    own = tl.where(known, own, float("nan"))  # an index error can be no louder from here
    # log p never above 0: the best logit may be rounded one way in the loop and another here.
    own = tl.where(own > best, best, own)
    log_total = tl.log(total)
    lse = best + log_total
    shifted = lse
    if CAP is None and centre is not None:
        shifted = lse + tl.load(centre + row) * SCALE
    numbers += row
    tl.store(tops + row, top)
    tl.store(numbers, own - best - log_total)
    tl.store(numbers + count, shifted)
    tl.store(numbers + 2 * count, log_total - moment / total)
    if MEAN:
        tl.store(numbers + 3 * count, tl.reduce(plain, 0, _added) / V + (shifted - lse))
    tl.store(numbers + 4 * count, best)
    tl.store(numbers + 5 * count, total)


@triton.autotune(
    CONFIGS,
    key=["V"],
    prune_configs_by={"early_config_prune": _reproducible},
    restore_value=["slopes"],  # the first measurement would overwrite the logits
    cache_results=True,
)
@triton.jit
def _slope_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    targets: tl.tensor,
    bias: tl.tensor,
    centre: tl.tensor,
    rest: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,
    pull: tl.tensor,
    even: tl.tensor,
    mass: tl.tensor,
    slopes: tl.tensor,
    slope_stride: tl.tensor,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """slopes = (rate exp(x - best) - pull onehot - even) dcap/dx, and each row's L1 norm of them.

    The slopes may be the logits: an element is read, then written, by the same lane.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slopes += row * slope_stride
    target = tl.load(targets + row)
    row_best = tl.load(best + row)
    row_rate = tl.load(rate + row).to(WIDE)
    row_pull = tl.load(pull + row).to(WIDE)
    lanes = tl.arange(0, BLOCK)
    sizes = tl.full((BLOCK,), 0.0, WIDE)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        inside = columns < V
        x = _finished(logits, bias, centre, rest, row, columns, inside, target, SCALE, CAP, WIDE)
        slope = tl.exp(x - row_best) * row_rate
        slope = tl.where(columns == target, slope - row_pull, slope)
        if even is not None:
            slope -= tl.load(even + row).to(WIDE)
        if CAP is not None:
            tanh = x * (1.0 / CAP)
            slope *= 1.0 - tanh * tanh
        if mass is not None:
            sizes += tl.where(inside, tl.abs(slope), 0.0)
        tl.store(slopes + columns, slope.to(slopes.dtype.element_ty), mask=inside)
    if mass is not None:
        tl.store(mass + row, tl.reduce(sizes, 0, _added))


class TritonProgram:
    """`TileProgram` on a GPU, a whole chunk at a time; under TRITON_INTERPRET=1 on a CPU too.

    Maths in float32 whatever the logits are rounded to (in float64 for float64). A target outside
    of the vocabulary has log p nan.
    """

    def __init__(
        self, rows: int, vocabulary: int, bias: Tensor | None, options: Options, like: Tensor
    ) -> None:
        """For any number of rows; bias (V,). ValueError for a CPU's tensors."""
        if like.device.type == "cpu" and not INTERPRETED:
            raise ValueError("the triton head needs a GPU, got tensors on a CPU; use chunked")
        self.bias = None if bias is None else bias.contiguous()
        self.options, self.dtype = options, like.dtype
        self.fixed = {
            "V": vocabulary,
            "SCALE": float(options.scale),
            "CAP": None if options.softcap is None else float(options.softcap),
            "WIDE": WIDE[like.dtype],
        }

    def __call__(self, rows: Rows, slopes: Tensor | None) -> RowStats:
        """The rows' numbers and, where it is given, `slopes` (n, V); it may be the logits."""
        # Triton launches on the current device, which in a model of several need not be the rows'.
        with torch.cuda.device_of(rows.logits):  # type: ignore[no-untyped-call]  # nor typed there
            stats, best, total = self._stats(rows)
            if slopes is None:
                return stats
            return stats._replace(mass=self._slopes(rows, stats, best, total, slopes))

    def _stats(self, rows: Rows) -> tuple[RowStats, Tensor, Tensor]:
        """All but the mass, with the max of the logits and the sum of exp(x - max)."""
        smooth = self.options.label_smoothing > 0
        targets = rows.given.targets
        numbers = rows.logits.new_empty(6, len(targets), dtype=self.dtype)
        top = torch.empty_like(targets, dtype=torch.int64)
        _stats_kernel[(len(top),)](
            *self._operands(rows), top, numbers, len(top), MEAN=smooth, **self.fixed
        )
        logp, lse, entropy, mean, best, total = numbers
        return RowStats(logp, lse, entropy, top, mean if smooth else None), best, total

    def _slopes(
        self, rows: Rows, stats: RowStats, best: Tensor, total: Tensor, slopes: Tensor
    ) -> Tensor | None:
        """Write the slopes; the L1 norm of each row of them for a row budget."""
        logp, options = stats.logp, self.options
        push, pull, even = coefficients(logp, stats.lse, rows.given, options, slopes.shape[-1])
        mass = torch.empty_like(logp) if options.row_budget and not is_plain(options) else None
        if even is not None:
            even = even.contiguous()  # one weight of all is expanded
        numbers = best, push / total, pull.contiguous(), even, mass, slopes
        for part in slice(MEASURED_ROWS), slice(MEASURED_ROWS, len(logp)):
            if count := len(logp[part]):
                own = [None if each is None else each[part] for each in numbers]
                _slope_kernel[(count,)](
                    *self._operands(rows.at(part)), *own, slopes.stride(0), **self.fixed
                )
        return plain_mass(pull, logp) if options.row_budget and mass is None else mass

    def _operands(self, rows: Rows) -> tuple[Tensor | int | None, ...]:
        logits, targets = rows.logits, rows.given.targets.contiguous()
        return logits, logits.stride(0), targets, self.bias, rows.centre, rows.rest
