"""Sums of losses over micro-batches and ranks, and the numbers that come of them."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tvd_gen.head import LossOutput


class Meter:
    """Adds up LossOutputs on their device; nothing is waited for until `read`."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.since = time.perf_counter()

    def add(self, output: LossOutput, token_weight: Tensor) -> None:
        """One micro-batch more, whose loss was multiplied by token_weight ()."""
        sums = replace(output, loss=output.loss.detach() / token_weight).sums()
        self.sums = sums if self.sums is None else self.sums + sums

    def read(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Token means since the last reading, with `tokens` and `seconds`; then start again."""
        seconds = time.perf_counter() - self.since
        sums, self.sums = self.sums, None
        self.since = time.perf_counter()
        if sums is None:
            return {}
        loss, nll, tokens, correct, weight, floored, entropy = over_ranks(sums).tolist()
        some = max(tokens, 1.0)
        return {
            "loss": loss / some,
            "nll": nll / some,
            "mean_weight": weight / some,
            "share_floored": floored / some,
            "accuracy": correct / some,
            "entropy": entropy / some,
            "tokens": tokens,
            "seconds": seconds,
        }

    def pause(self, seconds: float) -> None:
        """Leave so many seconds, spent on something else, out of the rate."""
        self.since += seconds


def perplexity(nll: float) -> float:
    """exp(nll); it stops at exp(700), near the largest float, to stay a JSON number."""
    return math.exp(min(nll, 700.0))
