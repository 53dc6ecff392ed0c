"""Schedules: a number as a function of progress in [0, 1], from a run's first step to its last.

A schedule knows nothing of steps, losses or optimizers, so a resumed run continues it exactly.

    >>> Linear(start=0.0, end=0.8)(0.5)
    0.4
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """value, always."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    begin: float = 0.0
    """progress at which the number leaves `start`"""
    until: float = 1.0
    """progress at which it reaches `end`"""

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.until <= 1.0:
            raise ValueError(f"need 0 <= begin < until <= 1, got {self.begin} and {self.until}")

    def _share(self, progress: float) -> float:
        return min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """start + (end - start) x, where x runs from 0 at `begin` to 1 at `until`."""

    def __call__(self, progress: float) -> float:
        x = self._share(progress)
        return (1.0 - x) * self.start + x * self.end


@dataclass(frozen=True)
class Cosine(_Ramp):
    """end + (start - end) (1 + cos(pi x)) / 2: flat at both ends."""

    def __call__(self, progress: float) -> float:
        x = (1.0 - math.cos(math.pi * self._share(progress))) / 2.0
        return (1.0 - x) * self.start + x * self.end


@dataclass(frozen=True)
class Step:
    """values[i] between boundaries[i - 1] and boundaries[i]; at a boundary the next value holds."""

    values: tuple[float, ...]
    """one more than boundaries"""
    boundaries: tuple[float, ...]
    """rising, in (0, 1)"""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                "need one value more than boundaries, "
                f"got {len(self.values)} and {len(self.boundaries)}"
            )
        edges = (0.0, *self.boundaries, 1.0)
        if any(left >= right for left, right in itertools.pairwise(edges)):
            raise ValueError(f"boundaries must rise within (0, 1), got {list(self.boundaries)}")

    def __call__(self, progress: float) -> float:
        return self.values[sum(progress >= edge for edge in self.boundaries)]


PROBES = (0.0, 1.0, *(i / 1000 for i in range(1, 1000)))
"""Points of progress at which a schedule's numbers are tried before a run starts."""

SCHEDULES: dict[str, type[Constant | Linear | Cosine | Step]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
}
