"""What makes a run this run: what must be the same when it is resumed, and what may differ."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from tvd_gen.strict_json import to_json

_WITHOUT_EFFECT = frozenset(
    (
        *("output_dir", "run_name", "report_to", "disable_tqdm", "project", "trackio_space_id"),
        *("log_level", "log_level_replica", "log_on_each_node", "logging_dir"),
        *("logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter"),
        *("save_total_limit", "save_on_each_node", "do_train", "do_eval", "do_predict", "debug"),
        *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
        *("dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        *("include_num_input_tokens_seen", "include_for_metrics", "skip_memory_metrics"),
        *("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "local_rank"),
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"),
        *("hub_always_push", "hub_revision", "ddp_timeout", "load_best_model_at_end"),
    )
)
_OF_EVALUATIONS = frozenset(
    (
        *("eval_steps", "eval_strategy", "eval_delay", "eval_on_start", "batch_eval_metrics"),
        *("save_steps", "save_strategy", "per_device_eval_batch_size", "eval_accumulation_steps"),
    )
)
# The trainer, or a loader, sets these of a model's config on the way.
_VOLATILE = frozenset(
    (
        *("transformers_version", "_name_or_path", "use_cache", "_commit_hash"),
        *("architectures", "dtype"),  # save_pretrained fills them in
    )
)
_HASHED_BYTES = 2**31
_ROWS = 10_000


def may_change(name: str, *, best: bool) -> bool:
    """Whether a training argument changes no weight of training, so that a resumed run may have
    another.

    best: whether evaluations choose a model, a learning rate or the end (metric_for_best_model).
    """
    return name in _WITHOUT_EFFECT or (not best and name in _OF_EVALUATIONS)


def of_arguments(arguments: TrainingArguments) -> dict[str, Any]:
    """The arguments that must stay, by name."""
    every: dict[str, Any] = arguments.to_dict()  # type: ignore[no-untyped-call]
    best = arguments.metric_for_best_model is not None
    return {
        f"args.{name}": value for name, value in every.items() if not may_change(name, best=best)
    }


def of_rows(data: Any, workers: int) -> dict[str, Any]:
    """The number of rows, and the SHA-256 of a datasets.Dataset (of every nth part of a large one).

    A stream has none; its workers share out its shards, so their number belongs to it.
    """
    if not hasattr(data, "__len__"):
        return {"rows of train_dataset": None, "workers that read the stream": workers}
    found: dict[str, Any] = {"rows of train_dataset": len(data)}
    if isinstance(data, Dataset):
        stride = _ROWS * max(1, data.data.nbytes // _HASHED_BYTES)
        total = hashlib.sha256()
        arrow = data.with_format("arrow")
        for start in range(0, len(data), stride):
            table: pyarrow.Table = arrow[start : start + _ROWS].combine_chunks()
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            total.update(sink.getvalue())
        found["content of train_dataset"] = total.hexdigest()
    return found


def of_model(model: nn.Module) -> dict[str, Any]:
    """Its config, its adapters' configs, its size, and a sample of what is not trained."""
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    adapters = {
        name: each.to_dict() if hasattr(each, "to_dict") else each
        for name, each in getattr(model, "peft_config", {}).items()
    }
    return {
        **{f"model.{name}": value for name, value in settings.items() if name not in _VOLATILE},
        **({"adapters": adapters} if adapters else {}),
        "dtype": sorted({str(parameter.dtype) for parameter in model.parameters()}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "frozen parameters": _sample(model),
    }


def _sample(model: nn.Module) -> str | None:
    """Of what is not trained: an adapter's checkpoint has no base."""
    frozen = [each for each in model.named_parameters() if not each[1].requires_grad]
    return _hash_of(frozen) if frozen else None


def of_weights(model: nn.Module) -> str:
    """SHA-256 of each parameter's first numbers; without those of an adapter that adds nothing yet,
    which a run that is started again draws anew."""
    named = dict(model.named_parameters())
    idle = {
        name.replace(f"{one}.", f"{other}.")
        for one, other in (("lora_B", "lora_A"), ("lora_embedding_A", "lora_embedding_B"))
        for name, parameter in named.items()
        if f".{one}." in name and not parameter.any()
    }
    return _hash_of((name, each) for name, each in named.items() if name not in idle)


@torch.no_grad()
def _hash_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    total = hashlib.sha256()
    for name, parameter in parameters:
        numbers = parameter.flatten()[:16].float().tolist()
        total.update(repr((name, tuple(parameter.shape), numbers)).encode())
    return total.hexdigest()


def plain(value: Any) -> Any:
    """As JSON has it: sets in order, and no address in the name of a function or object."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", to_json(_ordered(value))))


def _ordered(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, Mapping):
        return {str(key): _ordered(each) for key, each in value.items()}
    return [*map(_ordered, value)] if isinstance(value, (list, tuple)) else value


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], *, same_version: bool
) -> list[str]:
    """A line for each name whose value is another; where the versions differ, of those that both
    have."""
    names = {*then, *now} if same_version else then.keys() & now.keys()
    return [
        f"{name}: was {then.get(name)}, now {now.get(name)}"
        for name in sorted(names)
        if then.get(name) != now.get(name)
    ]
