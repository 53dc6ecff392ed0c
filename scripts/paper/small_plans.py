"""What small_tasks.py runs: objectives and their grids, tasks, and the config of each run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from small_data import files_of
from tvd_gen.objectives import OBJECTIVES
from tvd_gen.run.folder import RunFolder

Tree = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """An objective and the one number of it that is tuned; None where it has none."""

    label: str
    objective: str
    tuned: str | None = None
    grid: tuple[float, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    after_ce: bool = False
    """starts from the model of cross-entropy"""

    @property
    def values(self) -> tuple[float | None, ...]:
        """What is tried; one None where nothing is tuned."""
        return self.grid or (None,)

    @property
    def middle(self) -> tuple[float, ...]:
        """The grid's middle alone."""
        return self.grid[len(self.grid) // 2 :][:1]

    @property
    def looks_at_ce(self) -> bool:
        """Whether the objective compares the model with another one."""
        return OBJECTIVES[self.objective].looks_at_reference()


# GOLD's weights as published, of a copy made anew every 3,000 steps (GOLD-p's: 5,000, which is no
# matter before); "gold" and "gold_p" weigh by the model that is trained.
LAGGED = {"weights_from": "lagged", "weights_every": 3000}
SWEEPS = (
    Sweep("ce", "ce"),
    Sweep("label smoothing", "ce", "label_smoothing", (0.05, 0.1, 0.2)),
    Sweep("tailr", "tailr", "gamma", (0.01, 0.1, 0.8)),
    Sweep("tailr near 0", "tailr", "gamma", (1e-5, 1e-4, 1e-3)),
    Sweep("gce", "gce", "q", (0.1, 0.3, 0.7)),
    Sweep("mixce", "mixce", "eta", (0.9, 0.7, 0.5)),
    Sweep("focal", "focal", "focusing", (0.5, 1.0, 2.0)),
    Sweep("poly1", "poly1", "epsilon", (-0.5, 1.0, 2.0)),
    Sweep("taylor_ce", "taylor_ce", "order", (8, 64, 512)),
    Sweep("threshold", "threshold", "min_p", (1e-5, 1e-4, 1e-3)),
    Sweep("unlikelihood", "unlikelihood", "alpha", (0.25, 0.5, 1.0)),
    Sweep("confidence_penalty", "confidence_penalty", "beta", (0.05, 0.1, 0.2)),
    Sweep("gem", "gem", "beta", (0.5, 0.7, 0.9)),
    Sweep("eaft", "eaft", "alpha", (0.25, 0.5, 1.0)),
    Sweep("d2gpo", "d2gpo", "alpha", (0.05, 0.1, 0.2)),
    Sweep("ce continued", "ce", after_ce=True),
    Sweep("loss_truncation", "loss_truncation", "drop", (0.1, 0.2, 0.4), after_ce=True),
    Sweep("gold", "gold", "min_weight", (0.1, 0.2, 0.4), after_ce=True),
    Sweep("gold_p", "gold_p", "min_weight", (0.0, 0.2, 0.4), after_ce=True),
    Sweep("gold lagged", "gold", "min_weight", (0.1, 0.2, 0.4), LAGGED, after_ce=True),
    Sweep("gold_p lagged", "gold_p", "min_weight", (0.0, 0.2, 0.4), LAGGED, after_ce=True),
    Sweep("dft", "dft", after_ce=True),
    Sweep("asft", "asft", "kl_weight", (0.05, 0.1, 0.3), after_ce=True),
)


@dataclass(frozen=True)
class Task:
    """What is trained, how long, and by which metric of the validation set it is tuned."""

    name: str
    chosen_by: str
    columns: tuple[str, ...]
    """of the table"""
    min_weight: float
    """TaiLr's, as published for the task"""
    steps: int
    learning_rate: float
    data: Tree
    config: Tree
    lead_steps: int = 0
    """for so many steps, by cross-entropy, the source's first sentence is learned beforehand"""


COMMON = ["perplexity", "accuracy", "calibration", "diversity", "repetition"]
# Measured once with cross-entropy, on one core that was shared: translation of Tatoeba in 298 s of
# processor time, BLEU 27.1 and chrF 41.7; summarization, with --descriptions of 55,775 packages, in
# 203 s at 2,500 steps after 150 s for the leads, ROUGE-L 25.7 (the lead itself has 28.6; without
# having learned the leads, 13.0 after 265 s).
TRANSLATION = Task(
    "translation",
    "bleu",
    ("bleu", "chrf", "nll", "accuracy", "ece", "distinct_2", "rep_16"),
    0.3,
    4000,
    2.0e-3,
    {"max_source_tokens": 24, "max_target_tokens": 24},
    {
        "training": {"max_tokens": 512},
        "generation": {"num_beams": 4, "max_new_tokens": 24},
        "evaluation": {"metrics": ["bleu", "chrf", *COMMON], "batch_size": 50},
    },
)
SUMMARIZATION = Task(
    "summarization",
    "rougeL",
    ("rouge1", "rouge2", "rougeL", "nll", "accuracy", "ece", "distinct_2", "rep_16"),
    0.2,
    3500,
    1.0e-3,
    {"max_source_tokens": 32, "max_target_tokens": 24, "limit": {"validation": 500, "test": 1000}},
    {
        "training": {"max_tokens": 768},
        "generation": {"num_beams": 4, "no_repeat_ngram_size": 3, "max_new_tokens": 24},
        "evaluation": {"metrics": ["rouge", *COMMON], "batch_size": 50},
    },
    lead_steps=1500,
)
TASKS = {task.name: task for task in (TRANSLATION, SUMMARIZATION)}
MOST_WORDS = 7  # of Tatoeba's sentences: what the model can learn in a few minutes
SIZES = {"validation": 500, "test": 1000}
BUILT_IN: dict[str, Tree] = {
    "translation": {"source": "debian-translations", "columns": {"source": "de", "target": "en"}},
    "summarization": {"source": "debian-descriptions"},
}


@dataclass(frozen=True)
class Size:
    """Of the model, and of the quick twin's."""

    width: int = 128
    inner: int = 512
    layers: int = 2
    vocabulary: int = 3000
    rows: Mapping[str, int] = field(default_factory=dict)
    """split -> at most so many rows"""


QUICK = Size(32, 64, 1, 400, {"train": 300, "validation": 20, "test": 20})
QUICK_STEPS, QUICK_GRID = 12, 2


@dataclass(frozen=True)
class Settings:
    """What all runs of an output folder share."""

    output: Path
    seeds: tuple[int, ...]
    size: Size
    steps: Mapping[str, int]
    """task -> of each run"""
    data: Mapping[str, Tree]
    """task -> the place of its rows"""


@dataclass(frozen=True)
class Plan:
    """One run: an objective at a value, with a seed."""

    task: str
    label: str
    value: float | None
    seed: int
    folder: Path
    tree: Tree
    """the config"""


def architecture(size: Size) -> Tree:
    """A post-norm Transformer, as small as it must be."""
    sides = {f"{side}_layers": size.layers for side in ("encoder", "decoder")}
    sides |= {f"{side}_ffn_dim": size.inner for side in ("encoder", "decoder")}
    sides |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    return {
        "model_type": "marian",
        "d_model": size.width,
        **sides,
        "activation_function": "relu",
        "dropout": 0.1,
        "scale_embedding": True,
        "init_std": size.width**-0.5,
        "share_encoder_decoder_embeddings": True,
        "max_position_embeddings": 128,
    }


def plan(settings: Settings, task: Task, sweep: Sweep, value: float | None, seed: int) -> Plan:
    """The run's folder and its whole config."""
    folder, reference = folder_of(settings, task, sweep, value, seed), _ce(settings, task, seed)
    objective: Tree = {"name": sweep.objective, **sweep.fixed}
    if sweep.tuned:
        objective[sweep.tuned] = value
    if sweep.objective == "tailr":
        objective["min_weight"] = task.min_weight
    if sweep.looks_at_ce:
        objective["reference"] = reference
    model = _fresh(settings.size)
    if task.lead_steps:
        model = {"pretrained": str(RunFolder(lead_folder(settings, task)).model)}
    if sweep.after_ce:
        model = {"pretrained": reference}
    steps, rate = settings.steps[task.name], task.learning_rate
    tree = _config(settings, task, folder.name, seed, steps, rate) | {
        "objective": objective,
        "model": model,
        "data": data_section(settings, task, settings.data[task.name]),
    }
    return Plan(task.name, sweep.label, value, seed, folder, tree)


def plan_lead(settings: Settings, task: Task) -> Plan:
    """The run that all others of the task begin with, on rows that `write_leads` writes."""
    folder, seed = lead_folder(settings, task), settings.seeds[0]
    steps = min(task.lead_steps, settings.steps[task.name])
    tree = _config(settings, task, folder.name, seed, steps, 2.0e-3) | {
        "objective": {"name": "ce"},
        "model": _fresh(settings.size),
        "data": data_section(settings, task, {"files": files_of(settings.output / "leads")}),
    }
    return Plan(task.name, "lead", None, seed, folder, tree)


def lead_folder(settings: Settings, task: Task) -> Path:
    """Of the run that all others of the task begin with."""
    return settings.output / task.name / "lead"


def _fresh(size: Size) -> Tree:
    vocabulary = {"type": "bpe", "vocab_size": size.vocabulary, "lowercase": True}
    return {"architecture": architecture(size), "tokenizer": vocabulary}


def data_section(settings: Settings, task: Task, place: Tree) -> Tree:
    """The task's rows of a place, as many as the size has."""
    limits = task.data.get("limit", {}) | dict(settings.size.rows)
    return {**place, **task.data, "limit": limits}


def _config(settings: Settings, task: Task, name: str, seed: int, steps: int, rate: float) -> Tree:
    """What does not hang on the objective."""
    training = {
        **task.config["training"],
        "max_steps": steps,
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": steps // 12,
        "adam_beta2": 0.98,
        "logging_steps": max(1, steps // 40),
        "save_steps": max(1, steps // 4),
        "save_total_limit": 1,
    }
    base = {"name": name, "task": task.name, "seed": seed}
    return base | task.config | {"training": training}


def folder_of(settings: Settings, task: Task, sweep: Sweep, value: float | None, seed: int) -> Path:
    """Named by what it is: translation/tailr-0.1-seed1."""
    label = sweep.label.replace(" ", "_") + ("" if value is None else f"-{value:g}")
    return settings.output / task.name / f"{label}-seed{seed}"


def _ce(settings: Settings, task: Task, seed: int) -> str:
    """The model of cross-entropy, of the same seed."""
    return str(RunFolder(folder_of(settings, task, SWEEPS[0], None, seed).absolute()).model)
