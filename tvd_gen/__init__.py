"""tvd-gen: train text generation with robust token objectives."""

from tvd_gen.head import (
    GammaCrossEntropyLoss,
    LossOutput,
    linear_objective_loss,
    objective_loss,
)
from tvd_gen.objectives import OBJECTIVES, CrossEntropy, TaiLr, TokenObjective

__version__ = "0.1.0"
__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "GammaCrossEntropyLoss",
    "LossOutput",
    "TaiLr",
    "TokenObjective",
    "linear_objective_loss",
    "objective_loss",
]
