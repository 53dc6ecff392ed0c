"""Rules between the fields of a config. Each rule reads the raw tree and yields (path, what)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from tvd_gen.config.document import Fault
from tvd_gen.config.faults import choices, shown
from tvd_gen.config.generation import idle_fields
from tvd_gen.config.schema import Split
from tvd_gen.config.training import lower_is_better
from tvd_gen.data.spec import DataSpec
from tvd_gen.models.spec import ModelSpec, TokenizerSpec
from tvd_gen.tasks import TASKS, Task

Tree = Mapping[str, Any]
Rule = Callable[[Tree], Iterator[Fault]]
SPLITS = get_args(Split)


def section(tree: Tree, name: str) -> Mapping[str, Any]:
    """The section, or an empty one where it is missing or no mapping (another fault says so)."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def task_of(tree: Tree) -> Task | None:
    """The task, where it is a known one."""
    name = tree.get("task")
    return TASKS.get(name) if isinstance(name, str) else None


def _given(fields: Mapping[str, Any], *names: str) -> list[str]:
    return [name for name in names if fields.get(name) is not None]


def _changed(fields: Mapping[str, Any], spec: type, *names: str) -> list[str]:
    """The names given another value than the spec's default, which a dumped config holds."""
    defaults = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(spec)
    }
    return [name for name in _given(fields, *names) if fields[name] != defaults[name]]


def _exactly_one(tree: Tree, home: str, *names: str) -> Iterator[Fault]:
    found = _given(section(tree, home), *names)
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    if not found and isinstance(tree.get(home), dict):
        yield Fault((home,), f"needs one of {listed}")
    for name in found[1:]:
        yield Fault((home, name), f"give only one of {listed}; {found[0]} is given too")


def one_source_of_rows(tree: Tree) -> Iterator[Fault]:
    """Rows come from one place."""
    yield from _exactly_one(tree, "data", "source", "files", "hub")


def one_model(tree: Tree) -> Iterator[Fault]:
    """A model is pretrained or new."""
    yield from _exactly_one(tree, "model", "pretrained", "architecture")


def fields_that_need_another(tree: Tree) -> Iterator[Fault]:
    """A field that has no effect without another one is a mistake."""
    needs = (
        ("data", DataSpec, "hub", ("subset", "revision", "splits")),
        ("data", DataSpec, "streaming", ("shuffle_buffer",)),
        ("model", ModelSpec, "pretrained", ("revision", "config")),
        ("model", ModelSpec, "architecture", ("tokenizer",)),
    )
    for home, spec, needed, names in needs:
        fields = section(tree, home)
        for name in _changed(fields, spec, *names) if not fields.get(needed) else ():
            yield Fault((home, name), f"has no effect without {home}.{needed}; remove it")


def architecture(tree: Tree) -> Iterator[Fault]:
    """A new model needs its kind and a tokenizer."""
    fields = section(tree, "model")
    given = fields.get("architecture")
    if given is None:
        return
    if fields.get("tokenizer") is None:
        yield Fault(
            ("model", "tokenizer"), "is missing; an architecture needs one, e.g. {type: bpe}"
        )
    if isinstance(given, dict) and not isinstance(given.get("model_type"), str):
        yield Fault(("model", "architecture", "model_type"), "is missing; e.g. model_type: gpt2")


def tokenizer(tree: Tree) -> Iterator[Fault]:
    """A tokenizer is pretrained or trained."""
    fields = section(section(tree, "model"), "tokenizer")
    yield from _separate(tree, fields)
    if fields.get("pretrained") is None:
        return
    for name in _changed(fields, TokenizerSpec, "type", "vocab_size", "lowercase", "separate"):
        yield Fault(
            ("model", "tokenizer", name), "has no effect on a pretrained tokenizer; remove it"
        )


def _separate(tree: Tree, fields: Mapping[str, Any]) -> Iterator[Fault]:
    task, path = task_of(tree), ("model", "tokenizer", "separate")
    if fields.get("separate") is not True:
        return
    if task and not task.has_source:
        yield Fault(path, f"needs sources and targets; {task.name} has none")
    if fields.get("type", "bpe") != "bpe":
        yield Fault(path, "only bpe can be parted into two vocabularies; set type: bpe")


def shipped_corpus(tree: Tree) -> Iterator[Fault]:
    """The name of a corpus is one that ships."""
    from tvd_gen.data.corpora import shipped_corpora

    name = section(tree, "data").get("source")
    if isinstance(name, str) and name not in shipped_corpora():
        what = f"no corpus {name!r} ships with tvd-gen; {choices(name, shipped_corpora())}"
        yield Fault(("data", "source"), what)


def splits(tree: Tree) -> Iterator[Fault]:
    """Splits are train, validation and test, and training needs the first."""
    data = section(tree, "data")
    for field in ("files", "splits", "limit"):
        for name in section(data, field):
            if name not in SPLITS:
                yield Fault(("data", field, name), f"unknown split; one of {', '.join(SPLITS)}")
    for field in ("files", "splits"):
        if section(data, field) and "train" not in section(data, field):
            yield Fault(("data", field), "has no train split; add train: ...")


def columns(tree: Tree) -> Iterator[Fault]:
    """Columns are given for the fields of the task."""
    task = task_of(tree)
    for name in section(section(tree, "data"), "columns") if task else ():
        if task and name not in task.fields:
            known = " and ".join(task.fields)
            what = f"{task.name} has no field {name}; its fields: {known}"
            yield Fault(("data", "columns", name), what)


def pairs_of_files(tree: Tree) -> Iterator[Fault]:
    """A pair of parallel files is a pair, and for tasks with a source and a target."""
    task = task_of(tree)
    for split, files in section(section(tree, "data"), "files").items():
        path = ("data", "files", split)
        if isinstance(files, list) and len(files) != 2:
            yield Fault(path, f"must be one file, or a pair (source, target), got {len(files)}")
        elif isinstance(files, list) and task and not task.has_source:
            yield Fault(path, f"{task.name} reads one file, not a pair")


def language_modeling(tree: Tree) -> Iterator[Fault]:
    """Blocks are for texts; prompts and source lengths for tasks with a source."""
    task = task_of(tree)
    if task is None:
        return
    data = section(tree, "data")
    foreign = ("prompt", "max_source_tokens") if not task.has_source else ("block_size",)
    for name in _changed(data, DataSpec, *foreign):
        yield Fault(("data", name), f"has no meaning for {task.name}; remove it")


def prompt(tree: Tree) -> Iterator[Fault]:
    """A prompt has a place for the source."""
    given = section(tree, "data").get("prompt")
    if isinstance(given, str) and "{source}" not in given:
        yield Fault(("data", "prompt"), "must contain {source}, where the source goes")


def streaming(tree: Tree) -> Iterator[Fault]:
    """A stream has no length, so the run needs one."""
    steps = section(tree, "training").get("max_steps", -1)
    if section(tree, "data").get("streaming") is True and steps == -1:
        what = "is missing; streamed data has no length, so say how many steps to train"
        yield Fault(("training", "max_steps"), what)


def generation(tree: Tree) -> Iterator[Fault]:
    """A generation setting that has no effect is a mistake."""
    task = task_of(tree)
    given = section(tree, "generation")
    if len(_given(given, "max_length", "max_new_tokens")) == 2:
        yield Fault(("generation", "max_length"), "give it or max_new_tokens, not both")
    for name, why in idle_fields(given, task.generation if task else {}):
        yield Fault(("generation", name), why)


def metrics(tree: Tree) -> Iterator[Fault]:
    """Texts without a source are judged by the model's probabilities."""
    from tvd_gen.metrics import METRICS

    task = task_of(tree)
    names = section(tree, "evaluation").get("metrics")
    if task is None or task.has_source or not isinstance(names, list):
        return
    for index, name in enumerate(names):
        if not isinstance(name, str) or name not in METRICS or METRICS[name].needs != "tokens":
            known = ", ".join(key for key, group in METRICS.items() if group.needs == "tokens")
            what = f"{task.name} has no references to compare texts with; one of {known}"
            yield Fault(("evaluation", "metrics", index), what)


def batches(tree: Tree) -> Iterator[Fault]:
    """A batch is a number of tokens or a number of rows."""
    training = section(tree, "training")
    if training.get("max_tokens") is None:
        return
    reasons = {
        "per_device_train_batch_size": "max_tokens sets the size of a batch; remove one of them",
        "train_sampling_strategy": "max_tokens already groups rows by length; remove one of them",
    }
    for name in _given(training, *reasons):
        yield Fault(("training", name), reasons[name])


def best_checkpoint(tree: Tree) -> Iterator[Fault]:
    """The best checkpoint is one that was both saved and evaluated."""
    training = section(tree, "training")
    metric, greater = training.get("metric_for_best_model"), training.get("greater_is_better")
    if isinstance(metric, str) and lower_is_better(metric) and greater is True:
        yield Fault(("training", "greater_is_better"), f"a smaller {metric} is better; remove it")
    if isinstance(metric, str):
        yield from _measured_while_training(tree, metric.removeprefix("eval_"))
    if training.get("load_best_model_at_end") is not True:
        if training.get("early_stopping_patience") is not None:
            path = ("training", "early_stopping_patience")
            yield Fault(path, "needs load_best_model_at_end: true")
        return
    path = ("training", "load_best_model_at_end")
    evaluated, saved = training.get("eval_strategy", "no"), training.get("save_strategy", "steps")
    if evaluated == "no":
        yield Fault(path, "needs eval_strategy: epoch or steps")
    elif saved not in (evaluated, "best"):
        yield Fault(
            path, f"needs save_strategy: {evaluated}, as eval_strategy is, got {shown(saved)}"
        )
    elif evaluated == saved == "steps":
        yield from _step_multiple(training)


def _measured_while_training(tree: Tree, metric: str) -> Iterator[Fault]:
    """Texts are generated while training only if that is asked for; calibration is not measured."""
    from tvd_gen.metrics import METRICS

    path = ("training", "metric_for_best_model")
    group = next((name for name, group in METRICS.items() if metric in group.keys), None)
    if group is None or metric in ("nll", "perplexity", "accuracy"):
        return
    asked = section(tree, "evaluation").get("metrics", getattr(task_of(tree), "metrics", ()))
    if METRICS[group].needs == "tokens":
        yield Fault(path, f"{metric} is not measured while training; choose nll or accuracy")
    elif section(tree, "training").get("predict_with_generate") is not True:
        yield Fault(path, f"{metric} needs texts; add predict_with_generate: true")
    elif isinstance(asked, (list, tuple)) and group not in asked:
        yield Fault(path, f"{metric} is not measured; add {group} to evaluation.metrics")


def _step_multiple(training: Mapping[str, Any]) -> Iterator[Fault]:
    evaluated = training.get("eval_steps") or training.get("logging_steps", 500)
    saved = training.get("save_steps", 500)
    if not all(isinstance(steps, (int, float)) and steps > 0 for steps in (evaluated, saved)):
        return
    if (evaluated < 1) != (saved < 1):
        what = "and eval_steps must both be whole numbers or both shares, for the best checkpoint"
        yield Fault(("training", "save_steps"), what)
    elif evaluated >= 1 and saved % evaluated:
        what = (
            f"must be a multiple of eval_steps ({evaluated}), for the best checkpoint, got {saved}"
        )
        yield Fault(("training", "save_steps"), what)


def both_halves(tree: Tree) -> Iterator[Fault]:
    """One half precision at most."""
    training = section(tree, "training")
    for first, second in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if training.get(first) is True and training.get(second) is True:
            yield Fault(("training", second), f"give it or {first}, not both")


def warmup(tree: Tree) -> Iterator[Fault]:
    """Warm-up ends before training does."""
    training = section(tree, "training")
    steps, limit = training.get("warmup_steps"), training.get("max_steps")
    if isinstance(steps, (int, float)) and isinstance(limit, int) and 0 < limit < steps:
        yield Fault(("training", "warmup_steps"), f"must be <= max_steps ({limit}), got {steps}")


def other_models(tree: Tree) -> Iterator[Fault]:
    """What an objective looks at beside the model is there, and is looked at."""
    from tvd_gen.objectives import OBJECTIVES

    given = section(tree, "objective")
    objective = OBJECTIVES.get(str(given.get("name", "ce")))
    if objective is None:
        return
    looks = objective.looks_at_reference()
    path = ("objective", "reference")
    if looks and given.get("reference") is None and section(tree, "model").get("architecture"):
        what = "is missing; a new model is no reference: name the folder of a trained one"
        yield Fault(path, what)
    if not looks and given.get("reference") is not None:
        yield Fault(path, f"{objective.name} looks at no reference model; remove it")
    source = given.get("weights_from", "model")
    if source != "model" and not objective.may_weigh_by:
        what = f"{objective.name} has no weights that could come from another model; remove it"
        yield Fault(("objective", "weights_from"), what)
    for name, kind, default in (("weights_every", "lagged", 3000), ("weights_decay", "ema", 0.999)):
        if given.get(name, default) != default and source != kind:
            yield Fault(("objective", name), f"has no effect without weights_from: {kind}")


RULES: tuple[Rule, ...] = (
    one_source_of_rows,
    one_model,
    other_models,
    fields_that_need_another,
    architecture,
    tokenizer,
    shipped_corpus,
    splits,
    columns,
    pairs_of_files,
    language_modeling,
    prompt,
    streaming,
    generation,
    metrics,
    batches,
    best_checkpoint,
    both_halves,
    warmup,
)


def check_rules(tree: Tree) -> list[Fault]:
    """The faults of every rule."""
    return [fault for rule in RULES for fault in rule(tree)]
