"""Token objectives in Hugging Face training runs."""

from tvd_gen.trainer.mixin import (
    ObjectiveMixin,
    ObjectiveTrainer,
    Seq2SeqObjectiveTrainer,
)
from tvd_gen.trainer.output_head import target_logits

__all__ = ["ObjectiveMixin", "ObjectiveTrainer", "Seq2SeqObjectiveTrainer", "target_logits"]
