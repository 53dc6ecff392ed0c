"""The row program of objectives that see every logit: autograd on a few rows at a time."""

import torch
from torch import Tensor

from tvd_gen.head.problem import Options
from tvd_gen.head.reference import capped
from tvd_gen.head.rows import Rows, RowStats, in_tiles, row_max, tile_rows
from tvd_gen.objectives import DistributionObjective, Predictions
from tvd_gen.objectives.base import unreduced


class DistributionProgram:
    """As `TileProgram`, for a DistributionObjective; maths in float32, float64 for float64."""

    def __init__(
        self, rows: int, vocabulary: int, bias: Tensor | None, options: Options, like: Tensor
    ) -> None:
        """For any number of rows; bias (V,)."""
        self.bias, self.options, self.dtype = bias, options, like.dtype
        self.size = tile_rows(vocabulary, like)

    def __call__(self, rows: Rows, slopes: Tensor | None) -> RowStats:
        """The rows' numbers and, where it is given, `slopes` (n, V); it may be the logits."""
        return in_tiles(self._tile, self.size, rows, slopes)

    def _tile(self, rows: Rows, slopes: Tensor | None) -> RowStats:
        options, objective, targets = self.options, self.options.objective, rows.given.targets
        assert isinstance(objective, DistributionObjective)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = rows.logits.to(self.dtype, copy=True)
            if rows.rest is not None:
                leaf.scatter_(-1, targets.unsqueeze(-1), rows.rest.unsqueeze(-1))
            leaf.requires_grad_(slopes is not None)
            logits = self._finished(leaf, rows)
            predictions = Predictions(
                logits, targets, rows.previous, rows.reference, options.embeddings
            )
            losses = unreduced(objective, objective.loss(predictions), targets)
            logp = predictions.logp
            if slopes is not None:
                total = self._total(losses, logits, rows)
                (slope,) = torch.autograd.grad(total, leaf)
                slopes.copy_(slope)
        with torch.no_grad():
            best, top = row_max(logits)
            shift = 0.0 if rows.centre is None or options.softcap else rows.centre * options.scale
            return RowStats(
                logp=predictions.of_targets(logp),
                lse=best - logp.gather(-1, top.unsqueeze(-1)).squeeze(-1) + shift,
                entropy=-torch.linalg.vecdot(logp.exp(), logp),
                top=top,
                mean=logits.mean(-1) + shift if options.label_smoothing else None,
                loss=losses.detach(),
                weight=objective.weight(predictions).detach(),
            )

    def _finished(self, leaf: Tensor, rows: Rows) -> Tensor:
        """The final logits; without a cap less what was taken off each row of them."""
        logits = leaf if self.bias is None else leaf + self.bias
        if rows.centre is not None and self.options.softcap is not None:
            logits = logits + rows.centre.unsqueeze(-1)
        return capped(logits, self.options.scale, self.options.softcap)

    def _total(self, losses: Tensor, logits: Tensor, rows: Rows) -> Tensor:
        """() what is differentiated."""
        options, given = self.options, rows.given
        if given.factors is not None:
            losses = losses * given.factors
        if options.label_smoothing:
            eps = options.label_smoothing
            losses = (1.0 - eps) * losses + eps * (logits.logsumexp(-1) - logits.mean(-1))
        if options.z_loss:
            whole = logits.logsumexp(-1)
            if rows.centre is not None and options.softcap is None:
                whole = whole + rows.centre * options.scale
            losses = losses + options.z_loss * whole**2
        return (losses if given.token_weights is None else losses * given.token_weights).sum()
