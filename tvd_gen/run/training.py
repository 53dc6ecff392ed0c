"""From a config to a run folder with a trained model."""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tvd_gen.checkpoints import Store, staged
from tvd_gen.config import RunConfig, dump_config
from tvd_gen.data import (
    Collator,
    Corpus,
    SplitReport,
    check_fits,
    encode_corpus,
    load_corpus,
)
from tvd_gen.errors import ConfigError, DataError, ModelError
from tvd_gen.metrics import as_scored, text_metrics
from tvd_gen.models import (
    ModelSpec,
    describe_model,
    load_model,
    most_new_tokens,
    reader_of,
    save,
)
from tvd_gen.process import is_first_process
from tvd_gen.run.folder import RunFolder, disk_faults, write_json, write_lines, write_text
from tvd_gen.run.resume import (
    State,
    check_config,
    check_data,
    check_processes,
    check_writable,
    facts,
    locked,
    state_of,
)
from tvd_gen.strict_json import to_json
from tvd_gen.tasks import TASKS
from tvd_gen.trainer import Seq2SeqObjectiveTrainer, check_finite

Say = Callable[[str], None]
Progress = Callable[[str, int, int, Mapping[str, float]], None]
LOGGED = (
    "step", "epoch", "loss", "nll", "mean_weight", "share_floored", "accuracy", "entropy",
    "gamma", "learning_rate", "grad_norm", "tokens_per_second",
)  # fmt: skip
"""What comes first in a line of log.jsonl, in this order."""


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether a position's logits do not hang on the tokens after it."""
    size = describe_model(model).vocabulary
    rows = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]], device=model.device) % size
    training, runs = model.training, model.train(False)
    first, second = runs(input_ids=rows, use_cache=False).logits[:, 0].float()
    model.train(training)
    return torch.allclose(first, second, rtol=1e-2, atol=1e-4)


@dataclass(frozen=True)
class Prepared:
    """Everything a trainer needs, with nothing written yet."""

    config: RunConfig
    corpus: Corpus
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoded: dict[str, Dataset | IterableDataset]
    reference: PreTrainedModel | None = None
    """what the objective looks at, where it is not the model itself"""

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model reads the source with an encoder."""
        return bool(self.model.config.is_encoder_decoder)


def prepare(config: RunConfig, *, say: Say, progress: Progress) -> Prepared:
    """Read and check the data, load the model, encode the splits. Writes nothing into a run."""
    task = TASKS[config.task]
    # The split that will be judged is read too: its faults, and its rows that are in train, are
    # better known now than after days of training.
    splits = dict.fromkeys(("train", "validation", config.evaluation.split))
    corpus = load_corpus(config.data, task.fields, splits=[*splits], seed=config.seed)
    if config.evaluation.split not in corpus.splits:
        say(
            f"there is no {config.evaluation.split} split: tvd-gen eval will need "
            "--set evaluation.split=..."
        )
    model, tokenizer = load_model(
        config.model,
        texts=corpus.texts("train"),
        seed=config.seed,
        say=say,
        progress=lambda done, total: progress("downloading", done, total, {}),
    )
    check_model(config, model)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    encoded = encode_corpus(
        corpus, task.kind, tokenizer, config.data, encoder_decoder=encoder_decoder
    )
    for split, report in corpus.report.splits.items():
        say(f"{split}: {report.rows_kept} rows{remarks(report)}")
    reference = load_reference(config, tokenizer, say)
    for name, each in {"the model": model, "the reference": reference}.items():
        if each is None:
            continue
        summary = describe_model(each)
        for split, rows in encoded.items():
            reads = each is model or split in ("train", "validation")
            if reads and isinstance(rows, Dataset):
                check_fits(
                    rows,
                    vocab_size=summary.vocabulary,
                    read_vocab_size=summary.read_vocabulary,
                    max_positions=summary.positions,
                    place=corpus.places.get(split),
                    name=name,
                )
    return Prepared(config, corpus, model, tokenizer, encoded, reference)


def load_reference(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, say: Say
) -> PreTrainedModel | None:
    """The objective's reference model; ModelError where it has another vocabulary."""
    name = config.objective.reference
    if name is None:
        return None
    spec = ModelSpec(pretrained=name, dtype=config.model.dtype)
    reference, its = load_model(spec, texts=None, seed=config.seed, say=say)
    sides = ((its, tokenizer), (reader_of(its), reader_of(tokenizer)))
    if any(theirs.get_vocab() != ours.get_vocab() for theirs, ours in sides):
        raise ModelError(f"objective.reference: {name} has another vocabulary than the model")
    return reference


def remarks(report: SplitReport) -> str:
    """What is worth saying of a split's rows; nothing where all is well."""
    cut = sum(report.cut.values())
    counts = {"left out": report.rows_bad, "cut": cut, "also in train": report.in_train}
    return "".join(f", {count} {what}" for what, count in counts.items() if count)


def check_model(config: RunConfig, model: PreTrainedModel) -> None:
    """Raise ConfigError where the model cannot do the config's task."""
    if config.training.max_tokens is not None and config.data.streaming:
        raise ConfigError("training.max_tokens: needs all rows' lengths; not with data.streaming")
    if model.config.is_encoder_decoder:
        if config.task == "language_modeling":
            raise ConfigError(
                f"task: language_modeling needs a decoder-only model, not {model.config.model_type}"
            )
    elif not is_causal(model):
        raise ConfigError(
            f"model: {type(model).__name__} sees the tokens it is to predict; set is_decoder: true "
            "in its config, or take a decoder-only model"
        )
    elif config.training.arguments.get("predict_with_generate"):
        raise ConfigError(
            "training.predict_with_generate: needs an encoder-decoder model; select on nll, and "
            "generate with tvd-gen eval"
        )


def arguments(config: RunConfig, folder: Path, say: Say) -> Seq2SeqTrainingArguments:
    """The training section as transformers' arguments, with what tvd-gen decides itself."""
    accelerated = torch.accelerator.is_available()
    settings: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 10,
        "log_level": "error",
        "use_cpu": not accelerated,  # without an accelerator, bf16 wants it said
        "dataloader_pin_memory": accelerated,
    }
    settings |= config.training.arguments
    if settings["use_cpu"] and settings.get("bf16") and not has_bf16():
        say(
            "bf16: this processor has no fast instructions for it; float32 is used, which is faster"
        )
        settings["bf16"] = False
    settings |= {
        "output_dir": str(folder),
        "seed": config.seed,
        "data_seed": config.seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
    }
    with config_faults():
        return Seq2SeqTrainingArguments(**settings)


def has_bf16() -> bool:
    """Whether products in bf16 are faster than in float32 on this processor.

    AMX and AMD's AVX-512 are taken to be. By Intel's AVX-512 alone a training step was measured to
    take 1.6 times as long as in float32 (a Llama of 6 layers x 576, 8 x 128 tokens, torch 2.13.0).
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and not _is_intel()


def _is_intel() -> bool:
    linux = Path("/proc/cpuinfo")
    named = linux.read_text("utf-8") if linux.exists() else platform.processor()
    return "GenuineIntel" in named


def make_trainer(
    prepared: Prepared, folder: RunFolder, say: Say, progress: Progress
) -> Seq2SeqObjectiveTrainer:
    """The trainer of a prepared run, reporting into its folder and to `progress`."""
    config, model, tokenizer = prepared.config, prepared.model, prepared.tokenizer
    objective, schedules, additions = config.objective.build()
    set_generation(model, config)
    settings = arguments(config, folder.checkpoints, say)
    callbacks: list[TrainerCallback] = [Reporter(folder.log, say, progress)]
    if config.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.training.early_stopping_patience))
    with config_faults(RuntimeError):
        trainer = RunTrainer(
            model,
            settings,
            data_collator=Collator(tokenizer.pad_token_id, prepared.encoder_decoder),
            train_dataset=prepared.encoded["train"],
            eval_dataset=prepared.encoded.get("validation"),
            processing_class=tokenizer,
            compute_metrics=_scorer(config, tokenizer) if settings.predict_with_generate else None,
            callbacks=callbacks,
            objective=objective,
            schedules=schedules,
            max_tokens=config.training.max_tokens,
            max_skipped_steps=config.training.max_skipped_steps,
            reference=prepared.reference,
            **additions,
        )
    trainer.facts = facts(prepared.corpus.report, tokenizer)
    trainer.say, places = say, prepared.corpus.places.get("train")
    if places is not None:
        trainer.place = places
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def config_faults(*more: type[Exception]) -> Iterator[None]:
    """What transformers says of settings that do not go together, as a ConfigError."""
    kinds: tuple[type[Exception], ...] = (ValueError, KeyError, ImportError, *more)
    try:
        yield
    except kinds as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error


@contextmanager
def _worker_faults() -> Iterator[None]:
    """A loader's worker that has died, for want of memory as a rule, as a DataError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a worker that reads the data has died (out of memory?); lower "
            "training.dataloader_num_workers; the same command goes on from the last checkpoint"
        ) from error


def set_generation(model: PreTrainedModel, config: RunConfig) -> None:
    """Give the model the config's way to generate, so that it is saved with it."""
    longest, positions = config.data.max_target_tokens, describe_model(model).positions
    if positions is not None:
        longest = min(longest, positions // 2)  # the other half is for what is read
    settings = {"max_new_tokens": longest, "use_cache": True}
    for name, value in (settings | config.generation).items():
        setattr(model.generation_config, name, value)
    model.generation_config._from_model_config = False  # or generate() would rebuild it


class RunTrainer(Seq2SeqObjectiveTrainer):
    """Generates while it evaluates at the length that `tvd-gen eval` would."""

    @property
    def _shifts(self) -> bool:
        """Always of a decoder: this project's own rows have labels that are not shifted yet."""
        return not self._language_model.config.is_encoder_decoder

    def prediction_step(  # type: ignore[override]  # transformers' two trainers disagree on it
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.args.predict_with_generate:
            assert isinstance(self.model, PreTrainedModel)
            kwargs["max_new_tokens"] = most_new_tokens(self.model, inputs["input_ids"].shape[1])
        return super().prediction_step(model, inputs, *args, **kwargs)


def lowercases(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text comes back from its ids in lower case."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is not None:  # a tokenizer of words knows no "Aa"
        return "Aa" not in normalizer.normalize_str("Aa")
    ids = tokenizer(text_target="Aa", add_special_tokens=False)["input_ids"]
    return "Aa" not in str(tokenizer.decode(ids))


def _scorer(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> Callable[[EvalPrediction], dict[str, float]]:
    # Both sides come from ids: a tokenizer that lower-cases has done so to both.
    def texts(ids: Any) -> list[str]:
        filled = numpy.where(ids == -100, tokenizer.pad_token_id, ids)
        decoded = tokenizer.batch_decode(filled, skip_special_tokens=True)
        texts = (text.strip() for text in decoded)
        return as_scored(texts, strip=config.evaluation.strip, lower_cased=lowercases(tokenizer))

    def score(prediction: EvalPrediction) -> dict[str, float]:
        outputs, references = texts(prediction.predictions), texts(prediction.label_ids)
        return text_metrics(config.evaluation.metrics, outputs, references)

    return score


def _ordered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in LOGGED if key in row} | dict(row)


class Reporter(TrainerCallback):
    """Writes the log's lines and tells how far the run is."""

    def __init__(self, log: Path, say: Say, progress: Progress) -> None:
        self.log, self.say, self.progress = log, say, progress
        self.numbers: dict[str, float] = {}
        self.evaluated = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The log of a run that goes on ends where its checkpoint was made."""
        if state.is_world_process_zero and (state.log_history or self.log.exists()):
            write_lines(self.log, map(_ordered, state.log_history))
        if state.is_world_process_zero and state.global_step:
            self.say(f"going on from step {state.global_step} of {state.max_steps}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None or "train_loss" in logs:
            return
        row = _ordered({"step": state.global_step, **logs})
        with disk_faults(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
        self.numbers = {key: row[key] for key in ("loss", "nll", "eval_nll") if key in row}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.evaluated = 0
        if state.global_step == state.max_steps:
            control.should_log = True  # whatever logging_steps is: the log knows how it ended
        if state.is_world_process_zero:
            self.progress("training", state.global_step, state.max_steps, self.numbers)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        self.evaluated += 1
        if state.is_world_process_zero and eval_dataloader is not None:
            self.progress("validating", self.evaluated, len(eval_dataloader), {})


def train(
    config: RunConfig, run_dir: Path, *, say: Say, progress: Progress, allow_change: bool = False
) -> Path:
    """Train as the config says; the run folder gets config.yaml, data.json, log.jsonl and model/.

    A run that was started in the folder goes on from its newest whole checkpoint, and ends as if
    nothing had stopped it; one that is finished is left alone. Data and model are checked before a
    new folder is made, and a folder in which no step was made is removed.

    allow_change lets fields differ that change no weight. Raises ConfigError where the folder is in
    use or holds another run, DataError, ModelError, CheckpointError (no checkpoint is whole),
    NonFiniteError (before the update; a model that is not finite is not saved), DiskError, and
    Stopped after a signal.
    """
    folder, config = RunFolder(Path(run_dir)), _with_absolute_files(config)
    check_processes(config)
    state = state_of(folder)
    check_writable(folder)
    if state == "new":
        prepared = prepare(config, say=say, progress=progress)
        with _alone(folder):
            if is_first_process() and state_of(folder) != "new":  # loading took a while
                raise ConfigError(f"{folder.path}: another run was started in it meanwhile")
            return _train(folder, prepared, state, say, progress)
    with _alone(folder):
        check_config(folder, config, allow_change)
        if state == "finished":
            say(f"{folder.path}: the run is finished; nothing to do")
            return folder.path
        prepared = prepare(config, say=say, progress=progress)
        check_data(folder, prepared.corpus.report)
        return _train(folder, prepared, state, say, progress)


def _alone(folder: RunFolder) -> AbstractContextManager[None]:
    return locked(folder) if is_first_process() else nullcontext()


def _train(
    folder: RunFolder, prepared: Prepared, state: State, say: Say, progress: Progress
) -> Path:
    trainer, started = None, bool(Store(folder.checkpoints).steps())
    if state == "started" and not started:
        say(f"{folder.path}: there is no checkpoint yet; the run starts from its beginning")
    try:
        with disk_faults(folder.path):
            _write_inputs(folder, prepared)  # first: what has no config.yaml is no run
            trainer = make_trainer(prepared, folder, say, progress)
            _run_steps(trainer, say, resume=started)
    except BaseException:
        made = trainer is not None and trainer.state.global_step
        if is_first_process() and state == "new" and not made:
            folder.discard()
        raise
    check_finite(prepared.model, trainer.state.global_step)
    _write_inputs(folder, prepared)  # once more: a stream's counts have grown
    if is_first_process():
        prepared.model.config.use_cache = True  # the trainer had switched it off
        with disk_faults(folder.model), staged(folder.model) as part:
            save(prepared.model, prepared.tokenizer, part)
    return folder.path


def _with_absolute_files(config: RunConfig) -> RunConfig:
    """The config with its data files as absolute paths: a run is evaluated from any folder."""
    if config.data.files is None:
        return config
    files = {split: _absolute(given) for split, given in config.data.files.items()}
    return config.model_copy(update={"data": dataclasses.replace(config.data, files=files)})


def _absolute(given: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(given, str):
        return str(Path(given).expanduser().absolute())
    return tuple(str(Path(each).expanduser().absolute()) for each in given)


def _write_inputs(folder: RunFolder, prepared: Prepared) -> None:
    if is_first_process():
        write_text(folder.config, dump_config(prepared.config))
        write_json(folder.data, prepared.corpus.report.as_dict())


def _run_steps(trainer: Seq2SeqObjectiveTrainer, say: Say, *, resume: bool) -> None:
    began = time.monotonic()
    with config_faults(), _worker_faults():
        trainer.train(resume_from_checkpoint=resume)
    if not trainer.state.global_step:
        raise ConfigError("training: no step was made; there are fewer rows than a batch needs")
    say(f"{trainer.state.global_step} steps in {time.monotonic() - began:.0f} s")
