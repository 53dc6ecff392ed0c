"""Token objectives in Hugging Face training runs."""

from tvd_gen.trainer.conventions import take_targets
from tvd_gen.trainer.exact import ExactMixin
from tvd_gen.trainer.finite import check_finite
from tvd_gen.trainer.identity import may_change
from tvd_gen.trainer.interception import target_logits
from tvd_gen.trainer.mixin import (
    ObjectiveMixin,
    ObjectiveTrainer,
    Seq2SeqObjectiveTrainer,
)

__all__ = [
    "ExactMixin",
    "ObjectiveMixin",
    "ObjectiveTrainer",
    "Seq2SeqObjectiveTrainer",
    "check_finite",
    "may_change",
    "take_targets",
    "target_logits",
]
