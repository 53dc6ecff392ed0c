"""From a chunk of logits to each row's numbers and, in the same pass, the gradient on the logits.

A token objective's gradient on row i's logits is  push_i softmax_i - pull_i onehot_i - even_i,  so
all that an objective changes is a few numbers a row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvd_gen.head.logits import in_float32
from tvd_gen.head.problem import Given, Options
from tvd_gen.objectives import TokenObjective
from tvd_gen.objectives.base import unreduced

# Of a scratch tile. On a CPU for each thread: two of them stay in a core's cache while one pass
# after another reads them. On a GPU a tile is so long that the start of its passes does not count.
TILE_BYTES = {"cpu": 2**20, "cuda": 2**27}


class Rows(NamedTuple):
    """The logits of some rows as the products gave them, and what belongs to them."""

    logits: Tensor
    """(n, V), less `centre` where there is one; bias, scale and cap are still to come"""
    given: Given
    centre: Tensor | None = None
    """(n,) what the products took off each row's logits before they were rounded"""
    rest: Tensor | None = None
    """(n,) the target's own logit less the centre, without that rounding"""
    previous: Tensor | None = None
    """(n, L) the targets before each"""
    reference: Tensor | None = None
    """(n, V) logits of the reference model"""

    def at(self, part: slice) -> "Rows":
        """Some of them."""
        more = (None if each is None else each[part] for each in self[2:])
        return Rows(self.logits[part], self.given.at(part), *more)

    def tiles(self, size: int) -> Iterator["Rows"]:
        """So many rows at a time."""
        for start in range(0, len(self.logits), size):
            yield self.at(slice(start, start + size))


class RowStats(NamedTuple):
    """(n,) numbers of each row, in float32 (float64 for float64 logits)."""

    logp: Tensor
    """log p of the target"""
    lse: Tensor
    """log-sum-exp of the logits"""
    entropy: Tensor
    """of the softmax, in nats"""
    top: Tensor
    """the first of the largest logits"""
    mean: Tensor | None = None
    """mean of the logits, for label smoothing"""
    mass: Tensor | None = None
    """L1 norm of the gradient on the row's logits, for a row budget"""
    loss: Tensor | None = None
    """of an objective that needs more than log p of the target"""
    weight: Tensor | None = None
    """likewise"""

    @staticmethod
    def cat(parts: Sequence["RowStats"]) -> "RowStats":
        """The rows of all parts."""
        columns: Iterator[tuple[Any, ...]] = zip(*parts, strict=True)
        whole: list[Any] = [None if c[0] is None else torch.cat(c) for c in columns]
        return RowStats(*whole)

    def sums(self, given: Given, options: Options) -> tuple[Tensor, ...]:
        """The fields of LossOutput, in its order."""
        eps, objective, logp = options.label_smoothing, options.objective, self.logp
        if isinstance(objective, TokenObjective):
            losses = unreduced(objective, objective.loss(logp), logp)
            weights = unreduced(objective, objective.weight(logp), logp)
            floored = objective.floored(logp)
        else:
            assert self.loss is not None
            assert self.weight is not None
            losses, weights, floored = self.loss, self.weight, torch.zeros_like(logp)
        if given.factors is not None:
            losses, weights = losses * given.factors, weights * given.factors
        losses = (1.0 - eps) * losses
        if self.mean is not None:
            losses = losses + eps * (self.lse - self.mean)
        if options.z_loss:
            losses = losses + options.z_loss * self.lse**2
        if given.token_weights is not None:
            losses = losses * given.token_weights
        correct, tokens = self.top == given.targets, torch.ones_like(logp)
        each = (losses, -logp, tokens, correct, weights, floored, self.entropy)
        return tuple(values.sum(dtype=logp.dtype) for values in each)


def coefficients(
    logp: Tensor, lse: Tensor, given: Given, options: Options, vocabulary: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(push, pull, even) of each row, for the gradient on hidden @ weight.T + bias before a cap."""
    assert isinstance(options.objective, TokenObjective)
    eps, z = options.label_smoothing, options.z_loss
    token = logp.new_full((), options.scale)
    if given.token_weights is not None:
        token = token * given.token_weights
    pull = options.objective.weight(logp) * token
    if given.factors is not None:
        pull = pull * given.factors
    if not (eps or z):
        return pull, pull, None
    pull = (1.0 - eps) * pull
    push = pull + (eps + 2.0 * z * lse) * token
    return push, pull, (eps / vocabulary * token).expand_as(pull) if eps else None


def is_plain(options: Options) -> bool:
    """Whether a row's gradient has the L1 norm 2 pull (1 - p): nothing but the objective."""
    return not (options.label_smoothing or options.z_loss or options.softcap)


def tile_rows(vocabulary: int, like: Tensor) -> int:
    """How many rows of numbers such as `like` are worked on at a time."""
    cpu = like.device.type == "cpu"
    size = TILE_BYTES["cpu"] * torch.get_num_threads() if cpu else TILE_BYTES["cuda"]
    return max(size // (vocabulary * like.itemsize), 4)


def in_tiles(
    tile: Callable[[Rows, Tensor | None], RowStats], size: int, rows: Rows, slopes: Tensor | None
) -> RowStats:
    """What a row program gives, so many rows at a time."""
    tiles = rows.tiles(size)
    if slopes is None:
        return RowStats.cat([tile(each, None) for each in tiles])
    pairs = zip(tiles, torch.split(slopes, size), strict=True)
    return RowStats.cat([tile(*pair) for pair in pairs])


class TileProgram:
    """The rows of a chunk, a few at a time, in scratch that stays in a CPU's cache.

    Maths in float32 whatever the logits are rounded to.
    """

    def __init__(
        self, rows: int, vocabulary: int, bias: Tensor | None, options: Options, like: Tensor
    ) -> None:
        """For chunks of up to so many rows; bias (V,); scratch like `like`."""
        self.bias, self.options = bias, options
        self.size = max(min(tile_rows(vocabulary, like), rows), 1)
        self.p = like.new_empty(self.size, vocabulary)
        self.x: Tensor | None = None  # for logits in half precision

    def __call__(self, rows: Rows, slopes: Tensor | None) -> RowStats:
        """The rows' numbers and, where it is given, `slopes` (n, V); it may be the logits, which
        are scratch in any case."""
        return in_tiles(self._tile, self.size, rows, slopes)

    def _tile(self, rows: Rows, slopes: Tensor | None) -> RowStats:
        targets, options = rows.given.targets.unsqueeze(-1), self.options
        x, shift = self._finished(rows, targets)
        best, top = row_max(x)
        best = best.unsqueeze(-1)
        exp = torch.sub(x, best, out=self.p[: len(x)]).exp_()
        total = exp.sum(-1, keepdim=True)
        log_total = total.log()  # not log p of the target alone: it may underflow
        logp = x.gather(-1, targets).sub_(best).sub_(log_total).squeeze(-1)
        lse = (best + log_total).squeeze(-1)
        own = lse if shift is None else lse + shift  # with what was taken off the logits
        mean = x.mean(-1) + (own - lse) if options.label_smoothing else None
        bend = None
        if slopes is not None and options.softcap is not None:
            bend = 1.0 - (x / options.softcap) ** 2  # d cap(x) / dx
        entropy = lse - x.mul_(exp).sum(-1) / total.squeeze(-1)
        mass = None
        if slopes is not None:
            numbers = coefficients(logp, own, rows.given, options, x.shape[-1])
            mass = self._slopes(exp, total, bend, numbers, targets, logp, slopes)
        return RowStats(logp, own, entropy, top, mean, mass)

    def _finished(self, rows: Rows, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows' final logits in float32, and what was taken off each row of them."""
        x, scale, cap = rows.logits, self.options.scale, self.options.softcap
        if x.dtype != self.p.dtype:
            self.x = torch.empty_like(self.p) if self.x is None else self.x
            x = self.x[: len(x)].copy_(x)
        if rows.rest is not None:
            x.scatter_(-1, targets, rows.rest.unsqueeze(-1))
        if self.bias is not None:
            x += self.bias
        if cap is None:
            x = x if scale == 1.0 else x.mul_(scale)
            return x, None if rows.centre is None else rows.centre * scale
        if rows.centre is not None:
            x += rows.centre.unsqueeze(-1)
        return x.mul_(scale / cap).tanh_().mul_(cap), None

    def _slopes(
        self,
        exp: Tensor,
        total: Tensor,
        bend: Tensor | None,
        numbers: tuple[Tensor, Tensor, Tensor | None],
        targets: Tensor,
        logp: Tensor,
        slopes: Tensor,
    ) -> Tensor | None:
        """Write the slopes; the L1 norm of each row of them for a row budget."""
        push, pull, even = numbers
        out = slopes if slopes.dtype == exp.dtype else exp
        torch.mul(exp, push.unsqueeze(-1) / total, out=out)
        out.scatter_add_(-1, targets, -pull.unsqueeze(-1))
        if even is not None:
            out -= even.unsqueeze(-1)
        if bend is not None:
            out *= bend
        mass = None
        if self.options.row_budget:
            plain = is_plain(self.options)
            mass = plain_mass(pull, logp) if plain else torch.linalg.vector_norm(out, 1, -1)
        if out is not slopes:
            slopes.copy_(out)
        return mass


def plain_mass(pull: Tensor, logp: Tensor) -> Tensor:
    """The L1 norm of the gradient on each row's logits, for plain options."""
    return 2.0 * pull.abs() * -torch.expm1(logp)


def row_max(x: Tensor, width: int = 256) -> tuple[Tensor, Tensor]:
    """x.max(-1) of (n, V), with the first of equal maxima: (n,) values and (n,) places.

    On a CPU by blocks, three times as fast: only the best block is searched for the place.
    """
    if x.device.type != "cpu" or x.shape[-1] < 4 * width:
        best = x.max(-1)
        return best.values, best.indices
    full = x.shape[-1] // width * width
    tops = x[:, :full].view(len(x), -1, width).amax(-1)
    if full < x.shape[-1]:
        tops = torch.cat([tops, x[:, full:].amax(-1, keepdim=True)], -1)
    values, block = tops.max(-1)
    places = block.unsqueeze(-1) * width + torch.arange(width)
    places.clamp_(max=x.shape[-1] - 1)
    inside = x.gather(-1, places).argmax(-1, keepdim=True)
    return values, places.gather(-1, inside).squeeze(-1)


def compacted(slopes: Tensor, mass: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """The slopes without the smallest rows, and the places of those that stay, in their order.

    The left out together have at most `budget` of all the mass; at least one stays. In place: rows
    from the end are moved into the gaps.
    """
    order = mass.argsort()
    share = mass[order].cumsum(0, dtype=torch.float64)
    dropped = min(int((share <= budget * share[-1]).sum()), len(mass) - 1)
    stays = torch.ones_like(order, dtype=torch.bool)
    stays[order[:dropped]] = False
    count = len(order) - dropped
    gaps = (~stays[:count]).nonzero().squeeze(-1)
    movers = count + stays[count:].nonzero().squeeze(-1)
    for gap, mover in zip(torch.split(gaps, 16), torch.split(movers, 16), strict=True):
        slopes[gap] = slopes[mover]
    places = torch.arange(count, device=order.device)
    places[gaps] = movers
    return slopes[:count], places


def exact_target_logits(pairs: list[tuple[Tensor, Tensor]], targets: Tensor) -> Tensor:
    """(n,) each target's own logit, its products summed in float32."""
    terms = (
        torch.linalg.vecdot(in_float32(hidden), in_float32(weight[targets]))
        for hidden, weight in pairs
    )
    total: Tensor = next(terms)
    for term in terms:
        total = total + term
    return total
