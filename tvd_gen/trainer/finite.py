"""No update from numbers that are not finite.

transformers 5.23 spreads a nan to all weights, and logs it as 0.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tvd_gen.errors import NonFiniteError
from tvd_gen.trainer.ranks import RanksMixin

Inputs = dict[str, Any]
logger = logging.getLogger("tvd_gen")

ROWS = "row"
"""A column of batches that says which rows of the data set they hold; no model sees it."""
SHOWN_ROWS = 8


class FiniteMixin(RanksMixin):
    """A Trainer that looks at loss and gradient between the backward pass and the update.

    One that is not finite raises NonFiniteError, which names the rows; `max_skipped_steps` such
    steps are left out instead and counted.
    """

    def __init__(self, *args: Any, max_skipped_steps: int = 0, **kwargs: Any) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.place: Callable[[int], str] = lambda row: f"row {row + 1}"
        self.say: Callable[[str], None] = logger.warning
        self.skipped_steps = self._skipped_since_log = 0
        self._micro_batches: list[tuple[Tensor, Any]] = []
        self._before_step: dict[str, Any] = {}
        self._stop = False
        super().__init__(*args, **kwargs)
        if max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps must be >= 0, got {max_skipped_steps}")
        self.args.logging_nan_inf_filter = False

    def _asks_to_stop(self) -> bool:
        """Whether this process wants all to stop after this step; asked with the numbers, so that
        the processes talk once a step."""
        return False

    def _last_saved(self) -> str:
        """Where a run can go on from, for a message."""
        return "none"

    def _prepare_inputs(self, inputs: Inputs) -> Inputs:
        inputs = {name: value for name, value in inputs.items() if name != ROWS}
        return super()._prepare_inputs(inputs)

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The stock step; its loss is kept to be looked at before the update."""
        if not self._micro_batches and self.max_skipped_steps:
            self._before_step = self.progress()
        rows = inputs.get(ROWS)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((loss.detach(), rows))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, after which the stock loop makes the update."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        micro_batches, self._micro_batches = self._micro_batches, []
        losses = torch.stack([loss.float() for loss, _ in micro_batches])
        finite = torch.isfinite(losses).all()
        # A loss scaler has its own way with such gradients.
        if getattr(self.accelerator, "scaler", None) is None:
            finite = finite & torch.isfinite(torch.as_tensor(norm, device=finite.device))
        broken, self._stop = self._agree(not bool(finite), self._asks_to_stop())
        if broken:
            self._leave_out(model, micro_batches, norm)
            return None
        return norm

    def _leave_out(
        self, model: nn.Module, micro_batches: list[tuple[Tensor, Any]], norm: Any
    ) -> None:
        """Count the step and drop its gradients, or raise NonFiniteError."""
        mine = self._what_is_broken(micro_batches, norm)
        texts = self._from_all(mine)
        what = next((text for text in texts if "loss" in text), texts[0])
        step = self.state.global_step + 1
        if self.skipped_steps >= self.max_skipped_steps:
            most = f" (after {self.skipped_steps} skipped)" if self.max_skipped_steps else ""
            raise NonFiniteError(
                f"step {step}: {what}{most}; no weight was touched; the last good checkpoint: "
                f"{self._last_saved()}; look at the rows, go on with max_skipped_steps, or start "
                "another run with a lower learning rate"
            )
        self.say(f"step {step}: {what}; the step is left out")
        # An optimizer passes over parameters without a gradient: no update, no decay, no moments.
        model.zero_grad(set_to_none=True)
        self.load_progress(self._before_step)
        self.skipped_steps += 1
        self._skipped_since_log += 1

    def _what_is_broken(self, micro_batches: list[tuple[Tensor, Any]], norm: Any) -> str:
        losses = [(loss.item(), rows) for loss, rows in micro_batches]
        bad = [(loss, rows) for loss, rows in losses if not math.isfinite(loss)]
        what = f"the loss is {bad[0][0]}" if bad else f"the gradient's norm is {float(norm)}"
        held = [rows for _, rows in (bad[:1] or losses) if rows is not None]
        numbers = [int(row) for rows in held for row in rows]
        if not numbers:
            return what
        places = ", ".join(self.place(row) for row in numbers[:SHOWN_ROWS])
        more = len(numbers) - SHOWN_ROWS
        return f"{what} (rows: {places}{f' and {more} more' if more > 0 else ''})"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the stock trainer does; a mean loss is over the steps that were made."""
        if "loss" in logs and self.skipped_steps:
            steps = self.state.global_step - self._logged_before
            made = steps - self._skipped_since_log
            logs["loss"] = logs["loss"] * steps / made if made else math.nan
            logs["skipped_steps"] = self.skipped_steps
            self._skipped_since_log = 0
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._logged_before = self._globalstep_last_logged
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def progress(self) -> dict[str, Any]:
        """What a step that is left out puts back: tensors and plain values."""
        return {
            "tr_loss": self._tr_loss.detach().clone(),
            "last_logged": self._globalstep_last_logged,
            "skipped_steps": self.skipped_steps,
            "skipped_since_log": self._skipped_since_log,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Put back what `progress` gave."""
        self._tr_loss = progress["tr_loss"].to(self.args.device)
        self._globalstep_last_logged = progress["last_logged"]
        self.skipped_steps = progress["skipped_steps"]
        self._skipped_since_log = progress["skipped_since_log"]


def check_finite(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError where a trained weight is nan or infinite: such a model is not saved."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"step {step}: {name} is not finite; lower the learning rate or clip with "
                "max_grad_norm; the model is not saved"
            )
