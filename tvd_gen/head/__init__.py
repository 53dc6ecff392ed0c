"""The head of a language model: hidden states, a weight matrix and an objective -> one loss."""

from tvd_gen.head.linear import BACKENDS, linear_objective_loss, linear_target_logp
from tvd_gen.head.logits import (
    GammaCrossEntropyLoss,
    check_additions,
    objective_loss,
    target_logp,
)
from tvd_gen.head.output import LossOutput
from tvd_gen.head.problem import Given, Options
from tvd_gen.head.reference import capped, logits_loss

__all__ = [
    "BACKENDS",
    "GammaCrossEntropyLoss",
    "Given",
    "LossOutput",
    "Options",
    "capped",
    "check_additions",
    "linear_objective_loss",
    "linear_target_logp",
    "logits_loss",
    "objective_loss",
    "target_logp",
]
