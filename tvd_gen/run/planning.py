"""What a run would do, before it does it."""

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tvd_gen.config import ObjectiveConfig, RunConfig
from tvd_gen.data import MaxTokensBatchSampler
from tvd_gen.models import describe_model, reader_of
from tvd_gen.objectives import OBJECTIVES
from tvd_gen.run.training import Prepared, Progress, Say, prepare

IGNORE = -100
ADAM_NUMBERS = 2  # float32 moments beside each trained parameter


@dataclass(frozen=True)
class Plan:
    """Sizes, steps, memory and examples of a run. Memory leaves out activations."""

    name: str
    objective: str
    data: dict[str, dict[str, Any]]
    model: dict[str, Any]
    steps: dict[str, Any]
    memory_mib: dict[str, float]
    disk_mib: dict[str, float]
    examples: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        return dataclasses.asdict(self)


def plan(config: RunConfig, *, say: Say, progress: Progress) -> Plan:
    """Read the data, build the model, count; no run folder is made."""
    prepared = prepare(config, say=say, progress=progress)
    summary, steps = describe_model(prepared.model), _steps(prepared)
    disk = _disk(prepared, steps)
    if disk["needed"] > disk["free"]:
        say(
            f"the run needs {disk['needed']:.0f} MiB on the disk, {disk['free']:.0f} MiB are free; "
            "set training.save_total_limit, or make room"
        )
    return Plan(
        name=config.name,
        objective=str(config.objective.build()[0]),
        data={name: _counts(report) for name, report in prepared.corpus.report.splits.items()},
        model=dataclasses.asdict(summary),
        steps=steps,
        memory_mib=_memory(prepared),
        disk_mib=disk,
        examples=list(_examples(prepared)),
    )


def _counts(report: Any) -> dict[str, Any]:
    return {
        "rows": report.rows_kept,
        "left_out": report.rows_bad,
        "cut": dict(report.cut),
        "tokens": dict(report.tokens),
        "in_train": report.in_train,
    }


def _steps(prepared: Prepared) -> dict[str, Any]:
    """Batches and optimizer steps of each process, and the share of padding where it is fixed."""
    given = prepared.config.training.arguments
    steps, accumulate = given.get("max_steps", -1), given.get("gradient_accumulation_steps", 1)
    if not isinstance(prepared.encoded["train"], Dataset):
        return {"steps": steps, "epochs": None}
    batches, padding = _batches(prepared)
    steps_per_epoch = max(math.ceil(batches / accumulate), 1)
    if steps <= 0:
        steps = math.ceil(given.get("num_train_epochs", 3.0) * steps_per_epoch)
    return {
        "batches_per_epoch": batches,
        "steps": steps,
        "epochs": steps / steps_per_epoch,
        "padding_share": padding,
    }


def _batches(prepared: Prepared) -> tuple[int, float | None]:
    training, lengths = prepared.config.training, prepared.encoded["train"]["length"]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if training.max_tokens is None:
        rows = training.arguments.get("per_device_train_batch_size", 8) * processes
        return math.ceil(len(lengths) / rows), None  # padding depends on the order
    seed = prepared.config.seed
    sampler = MaxTokensBatchSampler(lengths, training.max_tokens, seed=seed, processes=processes)
    batches = list(sampler)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return math.ceil(len(batches) / processes), 1.0 - sum(lengths) / padded


def _memory(prepared: Prepared) -> dict[str, float]:
    """What is held through the whole run, on one device."""
    objective = prepared.config.objective
    copies = OBJECTIVES[objective.name].looks_at_reference() + _keeps_old_weights(objective)
    parameters = list(prepared.model.parameters())
    weights = sum(p.nbytes for p in parameters)
    gradients = sum(p.nbytes for p in parameters if p.requires_grad)
    return {
        "weights": weights / 2**20,
        "other_models": copies * weights / 2**20,
        "gradients": gradients / 2**20,
        "adam": ADAM_NUMBERS * gradients / 2**20,
        "sum": (weights * (1 + copies) + gradients * (1 + ADAM_NUMBERS)) / 2**20,
    }


def _keeps_old_weights(objective: ObjectiveConfig) -> bool:
    return objective.weights_from in ("ema", "lagged")


def _disk(prepared: Prepared, planned: dict[str, Any]) -> dict[str, float]:
    """Of the model, a checkpoint, and all of the run; and what is free where runs/ is made."""
    given, memory = prepared.config.training.arguments, _memory(prepared)
    one = memory["weights"] * (1 + _keeps_old_weights(prepared.config.objective)) + memory["adam"]
    steps, epochs = planned["steps"], planned["epochs"] or 1  # a stream's epoch may have no end
    each, strategy = given.get("save_steps", 500), given.get("save_strategy", "steps")
    if given.get("load_best_model_at_end"):  # every evaluation may be the best, and is then saved
        each = given.get("eval_steps") or given.get("logging_steps", 500)
    if strategy == "steps":
        saves = math.ceil(steps / (each if each >= 1 else max(1, math.ceil(each * steps))))
    else:
        saves = 0 if strategy == "no" else math.ceil(epochs)
    limit = given.get("save_total_limit")
    kept = saves if limit is None else min(saves, limit + bool(given.get("load_best_model_at_end")))
    # While one is saved, the one that will go for it is still there.
    most = one * (kept + (saves > kept)) + memory["weights"]
    return {
        "model": memory["weights"],
        "one_checkpoint": one,
        "checkpoints_kept": kept,
        "needed": most,
        "free": shutil.disk_usage(".").free / 2**20,
    }


def _examples(prepared: Prepared, count: int = 3) -> Iterator[dict[str, str]]:
    """The first rows as the model will see them."""
    for index, row in enumerate(prepared.encoded["train"]):
        if index == count:
            return
        yield _shown(row, prepared.tokenizer)


def _shown(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    learned = [token for token in row["labels"] if token != IGNORE]
    return {
        "reads": str(reader_of(tokenizer).decode(row["input_ids"])),
        "learns": str(tokenizer.decode(learned)),
        "tokens": f"{len(row['input_ids'])} read, {len(learned)} learned",
    }
