"""The mixin that makes a training run safe to kill: whole checkpoints, exact resumption, signals.

What transformers 5.23 does where this overrides it: checkpoints are written in place and taken by
their number alone; the running loss, an evaluation or an end of epoch that was due, and the
patience of early stopping are lost when a run resumes.
"""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from tvd_gen.checkpoints import Store, check_room, seal, staged, staging, verify
from tvd_gen.errors import CheckpointError, NonFiniteError, Stopped
from tvd_gen.models.load import quiet
from tvd_gen.strict_json import to_json
from tvd_gen.trainer import identity
from tvd_gen.trainer.finite import FiniteMixin, check_finite
from tvd_gen.trainer.stopping import (
    StopSignals,
    random_numbers,
    set_random_numbers,
    untouched_random_numbers,
)

_WITHOUT_BEST = (
    "put it back, or keep the last weights: load_best_model_at_end=false, metric_for_best_model as "
    "it was (on the command line with --allow-change)"
)


@dataclass
class _Resumption:
    """What a checkpoint holds beside transformers' files, until it has been put in place."""

    path: str
    progress: dict[str, Any]
    at_boundary: bool = False
    """whether its step was the last of an epoch"""


class _Leave(Exception):
    """Out of an evaluation that a signal has interrupted."""


class _EpochMark(TrainerCallback):
    """Tells the trainer whether the current step's epoch has been ended."""

    def __init__(self) -> None:
        self.ended = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.ended = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.ended = True


class ExactMixin(FiniteMixin):
    """A Trainer whose runs can be killed at any moment, and never lie: put it before any Trainer.

    ObjectiveMixin has it. `train(resume_from_checkpoint=True)` goes on from the newest checkpoint
    that is whole, and ends with the same bits as a run that nothing has stopped: weights,
    optimizer, log and evaluations, on the same machine and number of processes.

    Checkpoints are output_dir/step-000120, whole or not there, with a SHA-256 of every file. A run
    with other settings, other data, or altered files is a CheckpointError. On SIGTERM or SIGINT
    (`stop_signals`; set it to () for neither) the run saves at the end of the step and raises
    Stopped; a second signal stops at once. Numbers that are not finite: see FiniteMixin.
    Evaluations leave the random numbers of training alone. A full disk is a DiskError.

    place: row of the data set -> what messages call it, where batches have a column `row`.
    facts: what else must be the same when the run is resumed, by name: plain values.
    say: what takes a line of news (a logger's warning by default).
    """

    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._resume: _Resumption | None = None
        self._mark = _EpochMark()
        self._signals = StopSignals()
        self.facts: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}
        self._epoch, self._epoch_start = 0, 0
        self._epoch_random: dict[str, Any] = {}
        self._evaluation_due = False
        self._last_step: dict[str, Any] = {}
        self._saved_step: int | None = None
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint loses the exact place of the run: leave it off")
        if self.args.ignore_data_skip or self.args.auto_find_batch_size:
            raise ValueError(
                "ignore_data_skip and auto_find_batch_size resume with other rows: leave them off"
            )
        if self.args.save_only_model and self.args.save_strategy != "no":
            raise ValueError("save_only_model would leave checkpoints that no run can go on from")
        self.args.restore_callback_states_from_checkpoint = True
        self.add_callback(self._mark)

    # -- the run --------------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The stock training. resume_from_checkpoint: True for the newest checkpoint that is whole,
        or the path of one; False or None for a new run, whose output_dir must hold none."""
        # Before the stock trainer changes what it describes: the model's config, for one.
        self._identity = identity.plain(self.identity())
        path = self._from_first(lambda: self._find(resume_from_checkpoint))
        self._saved_step = None
        self._stop, self._evaluation_due, self._micro_batches = False, False, []
        self.skipped_steps = self._skipped_since_log = 0
        self._resume, eval_on_start = None, self.args.eval_on_start
        if path is not None:
            self._resume = self._read(path)
            self.args.eval_on_start = False  # it was, before the first step
        try:
            with self._signals.caught(self.stop_signals):
                output = super().train(path, *args, **kwargs)
            if self._signals.received is not None:
                self.say(f"{self._signals.received.name} came after the last step; the run is done")
            return output
        except _Leave:
            raise self._stopped("before the first step") from None
        finally:
            self.args.eval_on_start = eval_on_start
            self.is_in_train = False

    def _find(self, asked: str | bool | None) -> str | None:
        """The path of the checkpoint that is asked for, which is whole and of this run."""
        store = self._store()
        store.clean()
        if any(store.root.glob("checkpoint-*")):
            raise CheckpointError(
                f"{store.root}: holds another trainer's checkpoints, which cannot be checked; take "
                "another output_dir"
            )
        if not asked:
            if store.steps():
                raise CheckpointError(
                    f"{store.root}: holds checkpoints of an earlier run; go on with "
                    "resume_from_checkpoint=True, or take another output_dir"
                )
            return None
        found = store.newest(self.say) if asked is True else (Path(asked), verify(Path(asked)))
        if found is None:
            raise CheckpointError(f"{store.root}: there is no checkpoint to go on from")
        path, manifest = found
        self._check_identity(path, manifest)
        for later in store.set_aside(manifest.get("step", 0)):
            self.say(f"set aside: {later}")
        return str(path)

    def _check_identity(self, path: Path, manifest: dict[str, Any]) -> None:
        then, now = manifest.get("versions", {}), _versions()
        for name in sorted(now):
            if then.get(name) != now[name]:
                self.say(
                    f"{path}: made with {name} {then.get(name)}, this is {now[name]}; the run may "
                    "not end with the same bits"
                )
        changed = identity.differences(
            manifest.get("identity", {}), self._identity, same_version=then == now
        )
        if changed:
            raise CheckpointError("\n".join([f"{path}: is of another run", *changed]))

    def _read(self, path: str) -> _Resumption:
        with _loading(path):
            # The stock trainer reads it again, where nothing catches what a broken one raises.
            TrainerState.load_from_json(str(Path(path, TRAINER_STATE_NAME)))
            file = Path(path, self._progress_name)
            return _Resumption(path, torch.load(file, map_location="cpu", weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with _loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _loading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _loading(checkpoint):
            super()._load_rng_state(checkpoint)

    def identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed, by name; `facts` belong to it."""
        return {
            **identity.of_arguments(self.args),
            **identity.of_rows(self.train_dataset, self.args.dataloader_num_workers),
            **identity.of_model(self._own_model),
            "processes": self.args.world_size,
            **self.facts,
        }

    @property
    def _own_model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        max_steps, _, num_train_epochs, *_ = args
        epoch, batches = super()._init_training_state(*args, **kwargs)
        if self._resume is None:
            return epoch, batches
        self._saved_step = self.state.global_step
        if num_train_epochs == sys.maxsize:  # a stream without a length: stock counts one epoch
            progress = self._resume.progress
            steps = self.state.global_step - progress["epoch_start"]
            epoch, batches = progress["epoch"], steps * self.args.gradient_accumulation_steps
        else:
            self._resume.at_boundary = batches == 0
        rhythm: Any = self.state  # its methods carry no types
        rhythm.compute_steps(self.args, max_steps)  # stock goes on with the old one
        self._note_best(self._store())
        return epoch, batches

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self._epoch, self._epoch_start = kwargs["epoch"], self.state.global_step
        if self._resume is not None:
            self._go_on()
        if self.control.should_training_stop:
            return None
        if self._epoch_start == self.state.global_step:
            self._epoch_random = random_numbers()
        # A sampler may draw the epoch's order from them, before the batches that are skipped. Stock
        # loads the checkpoint's own after those.
        set_random_numbers(self._epoch_random)
        kwargs["model"].zero_grad()  # what a stream's last, short step has left
        self._micro_batches = []
        return super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._resume is not None:  # its last epoch was whole: no epoch was run
            self._go_on()
        self._check_best()
        return super()._finalize_training(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _go_on(self) -> None:
        """Put the checkpoint's progress in place, and do what its step had still to do: an
        evaluation, the end of its epoch."""
        assert self._resume is not None
        resume, self._resume = self._resume, None
        progress, last = resume.progress, resume.progress["last_step"]
        over = progress["training_over"] or self.state.global_step >= self.state.max_steps
        self._load_rng_state(resume.path)  # stock does so once more, when the data are skipped
        self.load_progress(progress)
        self._initial_global_step = self._globalstep_last_logged  # what train_loss is a mean from
        if not resume.at_boundary:
            self._epoch_start, self._epoch_random = (
                progress["epoch_start"],
                progress["epoch_random"],
            )
        rest = (self.model_wrapped, None, self._epoch, None, time.time(), last["learning_rate"])
        self.control.should_log = self.control.should_save = False
        self.control.should_evaluate = progress["evaluation_due"]
        if progress["evaluation_due"]:
            self._maybe_log_save_evaluate(self._tr_loss, last["grad_norm"], *rest)
            self._note_best(self._store())  # it may be this step; no checkpoint follows to say so
        over = over or self.control.should_training_stop
        if (resume.at_boundary or over) and not progress["epoch_ended"]:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(self._tr_loss, last["grad_norm"], *rest)
        if over:
            self.control.should_training_stop = True

    # -- what follows a step --------------------------------------------------------------------

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Tensor,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        norm = grad_norm.item() if isinstance(grad_norm, Tensor) else grad_norm
        self._last_step = {"grad_norm": norm, "learning_rate": learning_rate}
        stopping = self._stop or (self.args.world_size == 1 and self._signals.received is not None)
        if stopping:
            self._evaluation_due = self.control.should_evaluate
            self.control.should_evaluate, self.control.should_save = False, True
        try:
            super()._maybe_log_save_evaluate(
                *(tr_loss, norm, model, trial, epoch, ignore_keys_for_eval, start_time),
                learning_rate=learning_rate,
            )
        except _Leave:
            self._evaluation_due = stopping = True
            self._save_checkpoint(model, trial)
        if stopping:
            path = self._store(trial).path(self.state.global_step)
            raise self._stopped(f"at step {self.state.global_step}; saved: {path}")

    def _asks_to_stop(self) -> bool:
        return self._signals.received is not None

    def _last_saved(self) -> str:
        steps = self._store().steps()
        return str(self._store().path(steps[-1])) if steps else "none yet"

    def _stopped(self, where: str) -> Stopped:
        number = self._signals.received or signal.SIGTERM  # None: another process received one
        text = f"{number.name}: stopped {where}; the same command goes on from there"
        return Stopped(text, 128 + number)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The stock evaluation, which takes none of training's random numbers."""
        with untouched_random_numbers():
            return super()._evaluate(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """The stock step; an evaluation within training is left when a signal has come."""
        if self.is_in_train and self._agree(self._signals.received is not None)[0]:
            raise _Leave
        return super().prediction_step(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        name = self.args.metric_for_best_model
        if name is not None:
            value = metrics.get(name if name.startswith("eval_") else f"eval_{name}", 0.0)
            if not math.isfinite(value):
                self.say(f"step {self.state.global_step}: {name} is {value}: not the best")
                return False
        best = bool(super()._determine_best_metric(metrics, trial))
        if best and self.args.load_best_model_at_end:  # also where save_steps is several eval_steps
            self.control.should_save = True
        return best

    # -- saving and loading ---------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs that transformers does not save, of this process: tensors and
        plain values."""
        return {
            **super().progress(),
            "epoch": self._epoch,
            "epoch_start": self._epoch_start,
            "epoch_random": self._epoch_random,
            "epoch_ended": self._mark.ended,
            "evaluation_due": self._evaluation_due,
            "training_over": self.control.should_training_stop,
            "last_step": dict(self._last_step),
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Put back what `progress` gave."""
        super().load_progress(progress)
        self._evaluation_due = False

    def _store(self, trial: Any = None) -> Store:
        return Store(Path(self._get_output_dir(trial)))

    @property
    def _progress_name(self) -> str:
        return f"progress_{self.args.process_index}.pt"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A whole checkpoint of this step, by all processes; then the oldest ones go."""
        step, store = self.state.global_step, self._store(trial)
        if self._saved_step == step:  # what has come since comes again when it is resumed
            self._note_best(store)
            return
        check_finite(self._own_model, step)
        self.store_flos()
        final, writer = store.path(step), self.args.should_save
        if writer:
            store.root.mkdir(parents=True, exist_ok=True)
            check_room(store.root, store.size())
        with staged(final) if writer else nullcontext(staging(final)) as folder:
            self.accelerator.wait_for_everyone()
            self._write(str(folder))
            self.accelerator.wait_for_everyone()
            if writer:
                self._write_state(folder, store)
                facts = {"identity": self._identity, "versions": _versions()}
                seal(folder, step=step, **facts)
        self.accelerator.wait_for_everyone()
        self._saved_step = step
        self._note_best(store)
        if writer:
            store.retain(self.args.save_total_limit, step, self.state.best_global_step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _write(self, folder: str) -> None:
        """The files of every process: transformers' own, and the progress."""
        with quiet():
            self.save_model(folder, _internal_call=True)
        self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._save_rng_state(folder)
        torch.save(self.progress(), Path(folder, self._progress_name))

    def _write_state(self, folder: Path, store: Store) -> None:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        states: dict[str, list[Any]] = {}
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        several: Any = {name: each if len(each) > 1 else each[0] for name, each in states.items()}
        self.state.stateful_callbacks = several
        self._note_best(store)
        text = to_json(dataclasses.asdict(self.state), indent=2)
        (folder / TRAINER_STATE_NAME).write_text(text + "\n", encoding="utf-8")

    def _note_best(self, store: Store) -> None:
        """The best checkpoint's path, also where the run's folder was moved."""
        best = self.state.best_global_step
        there = best is not None and (best == self.state.global_step or store.path(best).is_dir())
        self.state.best_model_checkpoint = str(store.path(best)) if there and best else None

    def _check_best(self) -> None:
        """Raise where the best model is asked for at the end and there is none; stock takes the
        last in silence."""
        if not self.args.load_best_model_at_end or self.state.best_model_checkpoint is not None:
            return
        metric, store = self.args.metric_for_best_model, self._store()
        last = f"the last checkpoint: {store.path(store.steps()[-1])}" if store.steps() else ""
        if self.state.best_global_step is not None:
            path = store.path(self.state.best_global_step)
            raise CheckpointError(
                f"{path}: the best checkpoint is not there any more; {_WITHOUT_BEST}"
            )
        if any("eval_loss" in row for row in self.state.log_history):
            raise NonFiniteError(f"no evaluation gave a finite {metric}: there is no best; {last}")
        self.say("load_best_model_at_end: no evaluation was made; the last weights are kept")

    def _load_best_model(self) -> None:
        path = self.state.best_model_checkpoint
        assert path is not None
        try:
            self._from_first(lambda: verify(Path(path)))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_WITHOUT_BEST}") from None
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tensors that are missing or too many are another model's; tied ones are saved once, and
        what the architecture alone decides (sinusoidal positions) not at all."""
        own = self._own_model.state_dict(keep_vars=True)
        constant = getattr(self._own_model, "_keys_to_ignore_on_save", None) or ()
        absent = {name for name in load_result.missing_keys if name in own} - {*constant}
        loaded = {tensor.data_ptr() for name, tensor in own.items() if name not in absent}
        left = sorted(name for name in absent if own[name].data_ptr() not in loaded)
        left += sorted(load_result.unexpected_keys)
        if left:
            raise CheckpointError(f"the checkpoint is of another model: {', '.join(left[:5])}")


@contextmanager
def _loading(path: str | None) -> Iterator[None]:
    """What files that are whole, but not what they should be, make libraries raise: a
    CheckpointError. Nothing is ever loaded that could run code."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be loaded: {type(error).__name__}: {text}"
        ) from error


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}
