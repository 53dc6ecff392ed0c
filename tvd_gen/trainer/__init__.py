"""Token objectives in Hugging Face training runs."""

from tvd_gen.trainer.mixin import (
    ObjectiveMixin,
    ObjectiveTrainer,
    Seq2SeqObjectiveTrainer,
    take_targets,
)

__all__ = ["ObjectiveMixin", "ObjectiveTrainer", "Seq2SeqObjectiveTrainer", "take_targets"]
