"""The synthetic experiment's settings: sizes, objectives, and the configs of its runs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvd_gen.objectives import OBJECTIVES

GAMMAS = (1e-7, 0.01, 0.1, 0.5, 0.8, 1.0)
MIN_WEIGHT = 0.2  # in all the published synthetic runs


@dataclass(frozen=True)
class Settings:
    """What decides a student's numbers beside its objective and its seed; the published ones."""

    width: int = 128
    oracle_epochs: int = 50
    epochs: int = 100
    after_ce_epochs: int = 10
    """of a student that begins with cross-entropy's; its last model is the one that is taken"""
    train: int = 10_000
    validation: int = 5_000
    test: int = 20_000
    """sentences of the oracle; as many are drawn from each student"""
    compared: int = 5_000
    """of the test's sentences: so many have the distances taken after every prefix of theirs"""
    captions: int | None = None
    """only the first so many"""
    caption_validation: int = 5_000
    longest: int = 50
    """words of a sentence"""
    learning_rate: float = 1e-3
    max_tokens: int = 4096
    dropout: float = 0.1
    window: int = 10_000
    """sentences by whose quantile loss truncation decides"""
    bf16: bool = True
    """published: fp16; all figures are taken in float32"""
    evaluations: int = 50
    """how often a run's nll is looked at, evenly spread, but not more often than once an epoch;
    published: after every epoch"""
    patience: int | None = None
    """stop a student after so many evaluations without a lower nll; None: never, as published"""


QUICK = Settings(
    width=32,
    oracle_epochs=3,
    epochs=3,
    after_ce_epochs=2,
    evaluations=3,
    train=400,
    window=200,
    validation=200,
    test=400,
    compared=100,
    captions=1_000,
    caption_validation=200,
    longest=24,
    learning_rate=1e-2,
)
"""Minutes, for a look at whether everything runs; its figures mean nothing."""


def objectives() -> dict[str, dict[str, Any]]:
    """Name of a student -> the objective section of its config."""
    plain = {name: {"name": name} for name, cls in OBJECTIVES.items() if not _needs_numbers(cls)}
    tailr = {
        f"tailr-{gamma:g}": {"name": "tailr", "gamma": gamma, "min_weight": MIN_WEIGHT}
        for gamma in GAMMAS
    }
    return plain | tailr | MORE


MORE: dict[str, dict[str, Any]] = {
    "label-smoothing": {"name": "ce", "label_smoothing": 0.1},
    "ce-continued": {"name": "ce"},
    "ce-reseeded": {"name": "ce"},
    # as published (GOLD-p's: 5,000); their 10 epochs end before the copy is made anew
    "gold-lagged": {"name": "gold", "weights_from": "lagged", "weights_every": 3000},
    "gold_p-lagged": {"name": "gold_p", "weights_from": "lagged", "weights_every": 3000},
}
"""Whatever else is to be compared: one line each, in the words of a config."""


def _needs_numbers(cls: Any) -> bool:
    fields = dataclasses.fields(cls)
    return any(f.default is f.default_factory is dataclasses.MISSING for f in fields)


GOLDS = ("gold", "gold_p", "gold-lagged", "gold_p-lagged")
AFTER_CE = ("ce-continued", "dft", *GOLDS, "asft", "loss_truncation")
"""They begin from what cross-entropy has learned: published so, or no weight is left at the start.
The first of them is the control: as many steps, and no other objective."""

ORACLE = "oracle"
"""in the place of a student's name, where the oracle's own figures stand"""

RESEEDED = "ce-reseeded"
"""A control: oracle and students have one seed, as published, so they begin with the same weights;
this student has another."""


def needs_ce(name: str) -> bool:
    """Whether a student begins from, or looks at, its seed's student of cross-entropy."""
    return name in AFTER_CE or OBJECTIVES[objectives()[name]["name"]].looks_at_reference()


def oracle_config(settings: Settings, captions: Path, seed: int) -> dict[str, Any]:
    """The oracle: cross-entropy on the captions, with every word that occurs in them."""
    tokenizer = {"type": "word", "vocab_size": 1_000_000}
    tree = _config(settings, captions, tokenizer, settings.oracle_epochs)
    return {**tree, "seed": seed, "objective": {"name": "ce"}}


def student_config(
    settings: Settings,
    data: Path,
    oracle: Path,
    name: str,
    seed: int,
    ce: Path,
) -> dict[str, Any]:
    """A student: an objective, on the oracle's sentences, with the oracle's words.

    ce: the run folder of cross-entropy's student, which some begin from or look at.
    """
    epochs = settings.after_ce_epochs if name in AFTER_CE else settings.epochs
    tree = _config(settings, data, {"pretrained": str(oracle / "model")}, epochs)
    if name in AFTER_CE:  # the lowest nll is at its beginning
        tree["training"]["load_best_model_at_end"] = False
    elif settings.patience is not None:
        tree["training"]["early_stopping_patience"] = settings.patience
    objective = dict(objectives()[name])
    if OBJECTIVES[objective["name"]].looks_at_reference():
        objective["reference"] = str(ce / "model")
    if objective["name"] == "loss_truncation":
        objective |= {"min_count": settings.window, "window": settings.window}
    if name in AFTER_CE:
        tree["model"] = {"pretrained": str(ce / "model"), "config": {"dropout": settings.dropout}}
    if name == RESEEDED:
        seed += 1000
    return {**tree, "seed": seed, "objective": objective}


def _config(
    settings: Settings, data: Path, tokenizer: Mapping[str, Any], epochs: int
) -> dict[str, Any]:
    architecture = {
        "model_type": "lstm_seq2seq",
        "embedding_size": settings.width,
        "hidden_size": settings.width,
        "dropout": settings.dropout,
    }
    # a share of all steps; 1 would be a number of steps
    look = 1 / max(2, min(settings.evaluations, epochs))
    splits = {name: str(data / f"{name}.jsonl") for name in ("train", "validation")}
    training = {
        "max_tokens": settings.max_tokens,
        "num_train_epochs": epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "max_grad_norm": 0.1,
        "bf16": settings.bf16,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": look,
        "save_steps": look,
        "save_total_limit": 1,
        "logging_strategy": "epoch",
        "load_best_model_at_end": True,  # the lowest nll, as published
        "per_device_eval_batch_size": 250,
    }
    return {
        "task": "story_generation",
        "model": {"architecture": architecture, "tokenizer": dict(tokenizer)},
        "data": {"files": splits, "max_source_tokens": 2, "max_target_tokens": settings.longest + 1}
        | {"too_long": "skip"},
        "training": training,
        "evaluation": {"metrics": ["perplexity"], "split": "validation"},
    }
