"""What every objective is, whatever it sees."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

SMALLEST, LARGEST = 1e-30, 1e30
"""of what must be above 0, and of what has no other end: products of smaller and larger numbers
with 1 / p or logits leave float32's range where they still count"""


def check(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError where a number is out of [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def check_whole(name: str, value: float, low: int) -> None:
    """Raise ValueError where a number is not a whole one, or below `low`."""
    if not math.isfinite(value) or value < low or value != int(value):
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value}")


def unreduced(objective: "Objective", values: Tensor, like: Tensor) -> Tensor:
    """The values, if they are one for each target; ValueError where they were reduced."""
    if values.shape != like.shape:
        raise ValueError(
            f"{type(objective).__name__}: losses and weights must not be reduced: "
            f"{tuple(like.shape)} expected, got {tuple(values.shape)}"
        )
    return values


@dataclass(frozen=True)
class Objective:
    """A loss of what a language model says of its targets; a frozen dataclass of numbers.

    What it may see is its level, and sets its price: `TokenObjective` the log p of each target,
    `SequenceObjective` those of whole sequences, `DistributionObjective` every logit.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    """what it must be given beside, of `reference`, `embeddings` and `previous`"""
    may_weigh_by: ClassVar[bool] = False
    """whether its weights may come from another model's log p of the targets"""
    is_weighted_nll: ClassVar[bool] = True
    """whether its gradient is that of -w log p of the targets, w a constant to it: what can be
    divided by the mean w"""

    @classmethod
    def looks_at_reference(cls) -> bool:
        """Whether it needs anything of a frozen reference model."""
        return not cls.needs.isdisjoint({"reference", "embeddings"})
