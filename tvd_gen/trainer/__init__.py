"""Token objectives in Hugging Face training runs."""

from tvd_gen.trainer.exact import MAY_CHANGE, ExactMixin
from tvd_gen.trainer.mixin import (
    ObjectiveMixin,
    ObjectiveTrainer,
    Seq2SeqObjectiveTrainer,
    check_finite,
)
from tvd_gen.trainer.output_head import target_logits

__all__ = [
    "MAY_CHANGE",
    "ExactMixin",
    "ObjectiveMixin",
    "ObjectiveTrainer",
    "Seq2SeqObjectiveTrainer",
    "check_finite",
    "target_logits",
]
