"""The `training` section: transformers' TrainingArguments by name, checked before transformers.

Names and types are read from the installed transformers; the bounds, and the fields that tvd-gen
does not leave to a config, stand here.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from tvd_gen.metrics import LOWER_IS_BETTER

OWNED: Mapping[str, str] = {
    "output_dir": "the run folder holds everything; use --output",
    "run_name": "the run is called by the top-level name",
    "seed": "set the top-level seed",
    "data_seed": "set the top-level seed, which orders the data too",
    "label_smoothing_factor": "set objective.label_smoothing, which every objective knows",
    "generation_config": "use the generation section",
    "generation_max_length": "set generation.max_new_tokens",
    "generation_num_beams": "set generation.num_beams",
    "do_train": "use tvd-gen train",
    "do_eval": "use tvd-gen eval, or eval_strategy",
    "do_predict": "use tvd-gen eval",
    "resume_from_checkpoint": "tvd-gen train on the run's folder goes on with it",
    "local_rank": "the launcher sets it",
    "parallelism_config": "sequence and context parallelism use the model's own loss",
    "remove_unused_columns": "tvd-gen makes the columns",
    "label_names": "tvd-gen makes the labels",
    "length_column_name": "tvd-gen makes the column of lengths",
    "sortish_sampler": "set train_sampling_strategy: group_by_length, or max_tokens",
    "auto_find_batch_size": "a run whose batch size may change cannot be repeated",
    "disable_tqdm": "the command line draws the progress",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        "tvd-gen uploads nothing; push the run's model folder yourself",
    ),
}
"""Fields that a config may not set, and what to do instead."""

_FIXED: Mapping[str, tuple[Any, str]] = {
    "average_tokens_across_devices": (True, "the loss is the token mean over all devices"),
    "enable_jit_checkpoint": (False, "it loses the exact place of the run and exits with code 0"),
    "logging_nan_inf_filter": (False, "it logs a nan loss as 0"),
    "ignore_data_skip": (False, "a resumed run would see other rows"),
    "save_only_model": (False, "a run could not be resumed from such checkpoints"),
}
"""Fields with one value that tvd-gen can work with, and why."""

_WHOLE_FROM_0, _WHOLE_FROM_1 = (Ge(0),), (Ge(1),)
_BOUNDS: Mapping[str, tuple[Ge | Gt | Lt, ...]] = {
    "num_train_epochs": (Gt(0),),
    "learning_rate": (Gt(0), Lt(100)),
    "per_device_train_batch_size": _WHOLE_FROM_1,
    "per_device_eval_batch_size": _WHOLE_FROM_1,
    "gradient_accumulation_steps": _WHOLE_FROM_1,
    "weight_decay": (Ge(0), Lt(100)),
    "adam_beta1": (Ge(0), Lt(1)),
    "adam_beta2": (Ge(0), Lt(1)),
    "adam_epsilon": (Gt(0),),
    "max_grad_norm": (Ge(0),),
    "warmup_steps": (Ge(0),),
    "logging_steps": (Gt(0),),
    "eval_steps": (Gt(0),),
    "save_steps": (Gt(0),),
    "eval_delay": (Ge(0),),
    "save_total_limit": _WHOLE_FROM_1,
    "eval_accumulation_steps": _WHOLE_FROM_1,
    "torch_empty_cache_steps": _WHOLE_FROM_1,
    "neftune_noise_alpha": (Gt(0),),
    "dataloader_num_workers": _WHOLE_FROM_0,
    "dataloader_prefetch_factor": _WHOLE_FROM_1,
    "ddp_timeout": _WHOLE_FROM_1,
    "ddp_bucket_cap_mb": _WHOLE_FROM_1,
}
_STEPS = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("debug", "info", "warning", "error", "critical", "passive"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}


class TrainingSpec(BaseModel):
    """How to train: the fields below, and transformers' Seq2SeqTrainingArguments by their names.

    `arguments` holds those that were given, checked. load_best_model_at_end selects on nll unless
    metric_for_best_model says otherwise, and greater_is_better follows the metric.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """the padded tokens of a batch on one device; takes the place of per_device_train_batch_size"""
    num_processes: Annotated[int, Field(ge=1)] | None = None
    """how many processes a launcher must have started; default: however many there are"""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """how many steps may be left out because their loss or gradient is not finite"""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """stop after so many evaluations without a new best one"""

    @property
    def arguments(self) -> dict[str, Any]:
        """Fields for Seq2SeqTrainingArguments: those the config gives, without our own."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        # through JSON: strict, but a list may be a tuple and a word an enum's value
        checked = arguments_model().model_validate_json(json.dumps(given, default=str), strict=True)
        return _completed(checked.model_dump(exclude_unset=True))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = arguments_model().model_json_schema()
        open_to = {key: value for key, value in found["properties"].items() if key not in OWNED}
        return {**found, "properties": open_to, "title": cls.__name__}


def _completed(given: dict[str, Any]) -> dict[str, Any]:
    """Adds what follows from the fields given: how the best checkpoint is chosen, Liger off."""
    added: dict[str, Any] = {}
    if given.get("use_liger_kernel"):
        added["liger_kernel_config"] = _liger(given.get("liger_kernel_config"))
    if given.get("load_best_model_at_end") or given.get("metric_for_best_model"):
        metric = given.get("metric_for_best_model") or "nll"
        added["metric_for_best_model"] = metric
        added["greater_is_better"] = given.get("greater_is_better", not lower_is_better(metric))
    return {**given, **added}


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is a better one: nll, perplexity, ece."""
    return metric.endswith(LOWER_IS_BETTER)


@functools.cache
def argument_names() -> tuple[str, ...]:
    """The fields that a training section may hold, our own included."""
    return tuple(name for name in arguments_model().model_fields if name not in OWNED)


@functools.cache
def arguments_model() -> type[BaseModel]:
    """A pydantic model with TrainingSpec's own fields and those of Seq2SeqTrainingArguments."""
    # not at the top of the file: it imports torch, and `tvd-gen --help` reads this file
    from transformers import Seq2SeqTrainingArguments

    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    fields: dict[str, Any] = {
        field.name: (_checked(field.name, hints[field.name]), None)
        for field in dataclasses.fields(Seq2SeqTrainingArguments)
    }
    for name, field in TrainingSpec.model_fields.items():
        fields[name] = (field.rebuild_annotation(), field.default)
    return create_model("TrainingArguments", __config__=ConfigDict(extra="forbid"), **fields)


def _checked(name: str, hint: Any) -> Any:
    """The field's type as a config may give it, with its bounds."""
    if name in OWNED:
        return Annotated[Any, BeforeValidator(refuse(OWNED[name]))]
    kind = _choice(name, hint)
    bounds = _BOUNDS.get(name, ())
    if bounds and kind in (int, float):
        kind = Annotated[(kind, *bounds)]
    elif bounds:
        kind = Annotated[(_without_none(kind), *bounds)] | None
    if check := _CHECKS.get(name):
        kind = Annotated[kind, AfterValidator(check)]
    return kind


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else hint


def _choice(name: str, hint: Any) -> Any:
    """Enums, and the words that transformers compares strings with, as Literal types."""
    words: tuple[Any, ...] = _CHOICES.get(name, ())
    enums = [kind for kind in typing.get_args(hint) if _is_enum(kind)]
    if enums:
        words = tuple(member.value for member in enums[0])
    if not words:
        return hint
    literals: Any = Literal  # the words are not known to a type checker
    literal = literals[words]
    return literal | None if type(None) in typing.get_args(hint) else literal


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _fault(text: str) -> PydanticCustomError:
    # braces in the text are not a template's
    return PydanticCustomError("tvd_gen", "{text}", {"text": text})


def refuse(reason: str) -> Callable[[Any], Any]:
    """A validator that refuses every value, for a field that tvd-gen does not leave to a config."""

    def check(value: Any) -> Any:
        raise _fault(f"cannot be set here: {reason}")

    return check


def _fixed(allowed: Any, reason: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value != allowed:
            raise _fault(f"must stay {str(allowed).lower()}: {reason}")
        return value

    return check


def _whole_above_1(value: float | None) -> float | None:
    if value is not None and value > 1 and value != int(value):
        raise _fault(f"must be a whole number of steps, or a share below 1, got {value}")
    return value


def _max_steps(value: int) -> int:
    if value == 0 or value < -1:
        raise _fault(f"must be at least 1, or -1 for no limit, got {value}")
    return value


def _liger(given: dict[str, bool] | None) -> dict[str, bool]:
    ours = dict.fromkeys(("cross_entropy", "fused_linear_cross_entropy"), False)
    for name in ours:
        if (given or {}).get(name):
            raise _fault(f"{name} must be false: the loss is tvd-gen's own")
    return {**(given or {}), **ours}


def _deepspeed(value: Any) -> Any:
    if isinstance(value, dict) and "sequence_parallel_size" in value:
        raise _fault(
            "sequence parallelism uses the model's own loss; remove sequence_parallel_size"
        )
    return value


def _best_metric(value: str | None) -> str | None:
    if value is not None and value.removeprefix("eval_") == "loss":
        raise _fault("a loss changes with the objective; select on nll or a task's metric")
    return value


def _report_to(value: Any) -> Any:
    from transformers.integrations import integration_utils

    known = {"none", "all", *integration_utils.INTEGRATION_TO_CALLBACK}
    for name in [value] if isinstance(value, str) else value or ():
        if name not in known:
            raise _fault(f"unknown reporter {name!r}; one of {', '.join(sorted(known))}")
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    **{name: _fixed(*rule) for name, rule in _FIXED.items()},
    **dict.fromkeys(_STEPS, _whole_above_1),
    "max_steps": _max_steps,
    "liger_kernel_config": _liger,
    "deepspeed": _deepspeed,
    "metric_for_best_model": _best_metric,
    "report_to": _report_to,
}
