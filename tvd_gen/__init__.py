"""tvd-gen: train text generation with robust token objectives."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvd_gen.head import (
        GammaCrossEntropyLoss,
        LossOutput,
        linear_objective_loss,
        linear_target_logp,
        objective_loss,
    )
    from tvd_gen.objectives import OBJECTIVES, CrossEntropy, TaiLr, TokenObjective
    from tvd_gen.trainer import (
        ExactMixin,
        ObjectiveMixin,
        ObjectiveTrainer,
        Seq2SeqObjectiveTrainer,
    )

__version__ = "0.1.0"
__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "ExactMixin",
    "GammaCrossEntropyLoss",
    "LossOutput",
    "ObjectiveMixin",
    "ObjectiveTrainer",
    "Seq2SeqObjectiveTrainer",
    "TaiLr",
    "TokenObjective",
    "linear_objective_loss",
    "linear_target_logp",
    "objective_loss",
]

# Looked up in this order; torch and transformers load only when a name of theirs is asked for, so
# that the command line answers at once.
_ROOMS = ("tvd_gen.objectives", "tvd_gen.head", "tvd_gen.trainer")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = import_module(room)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
