"""The mixin that puts a token objective into any transformers Trainer, and the two trainers made of
it."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from transformers.trainer_utils import EvalLoopOutput

from tvd_gen.data.batches import MaxTokensBatchSampler
from tvd_gen.errors import NonFiniteError
from tvd_gen.head import BACKENDS, check_additions
from tvd_gen.metrics import LOWER_IS_BETTER
from tvd_gen.objectives import OBJECTIVES, DistributionObjective, Objective
from tvd_gen.schedules import PROBES, Schedule
from tvd_gen.trainer.conventions import (
    IGNORE,
    asks_for_router_loss,
    check_z_loss,
    complete_inputs,
    is_encoder_decoder,
    language_model,
    router_loss,
    shifts,
    take_targets,
)
from tvd_gen.trainer.interception import Interceptor, LossRequest, LossSettings, intercept
from tvd_gen.trainer.meter import Meter, perplexity
from tvd_gen.trainer.remembering import RememberingMixin

Inputs = dict[str, Any]


class ObjectiveMixin(RememberingMixin):
    """Trains and evaluates on an objective of any level: put it before any Trainer.

        class Mine(ObjectiveMixin, SFTTrainer): ...
        Mine(model=..., args=..., objective=TaiLr(gamma=0.1, min_weight=0.3))

    The loss is the token mean over the global batch: accumulation, padding, devices and the order
    of batches change nothing. Labels never reach the model and logits are not made unless they are
    asked for (`compute_metrics`, or `compute_loss(return_outputs=True)`).

    objective: an Objective, or a name of OBJECTIVES that needs no numbers.
    schedules: field of the objective -> Schedule of progress, e.g. {"gamma": Linear(0.0, 0.8)}.
    label_smoothing: eps of an unweighted uniform term; args.label_smoothing_factor is taken too.
    z_loss: weight of each token's squared log-sum-exp (PaLM: 1e-4), 0 for none.
    row_budget: share of the head's gradient that may be left out, token by token, for speed; 0 for
        none. See linear_objective_loss.
    weights_from, weights_every, weights_decay, normalize_weights, reference: see RememberingMixin.
    head_backend: auto | reference | chunked | triton, or logits for the model's own logits.
    max_skipped_steps: how many steps may be left out because their loss or gradient is not finite.
    max_tokens: a budget of padded tokens (rows * longest) for each training batch of a device, in
        place of a number of rows; the training set needs a column `length`, which the collator
        gets too.

    The log gains nll, mean_weight, share_floored, accuracy, entropy (token means since the last
    log), the objective's fields and tokens_per_second; evaluation gains nll, perplexity, accuracy,
    entropy, mean_weight and share_floored, and its loss is the token mean. Raises ValueError for
    settings that would change the loss in silence, NonFiniteError at a log whose loss is not
    finite.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective | str = "ce",
        schedules: Mapping[str, Schedule] | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        row_budget: float = 0.0,
        head_backend: str = "auto",
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective: Objective = _objective(objective)
        self.schedules: dict[str, Schedule] = dict(schedules or {})
        self.loss_settings = LossSettings(label_smoothing, z_loss, row_budget, head_backend)
        self.max_tokens = max_tokens
        self._train_meter, self._eval_meter = Meter(), Meter()
        self._interceptor: Interceptor | None = None
        self._keep_logits: bool | None = None
        self._trained_objective = self.objective
        self._token_batches: MaxTokensBatchSampler | None = None
        self._check_objective()
        super().__init__(*args, **kwargs)
        self._check_arguments()
        self.label_smoother = None
        # These two make the stock trainer count the targets that take_targets gives.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = self._shifts

    def _check_objective(self) -> None:
        fields = {f.name for f in dataclasses.fields(self.objective)}
        if unknown := ", ".join(sorted(set(self.schedules) - fields)):
            raise ValueError(f"schedules: {type(self.objective).__name__} has no field {unknown}")
        for progress in PROBES if self.schedules else (0.0,):
            self._objective_at(progress)
        settings, known = self.loss_settings, ("auto", *BACKENDS, "logits")
        if settings.backend not in known:
            raise ValueError(
                f"head_backend must be one of {', '.join(known)}, got {settings.backend!r}"
            )
        check_additions(settings.label_smoothing, settings.z_loss, settings.row_budget)
        if settings.backend in ("logits", "reference") and settings.row_budget:
            raise ValueError(f"row_budget needs the fast head, not {settings.backend!r}")
        if settings.row_budget and isinstance(self.objective, DistributionObjective):
            raise ValueError(f"row_budget is for token objectives, not {self.objective}")

    def _check_arguments(self) -> None:
        if not hasattr(self._language_model, "config"):
            raise ValueError(
                f"{type(self._language_model).__name__} has no config: a model of transformers is "
                "needed, which says how labels and logits belong together"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func and an objective are two losses: give one")
        if not self.args.average_tokens_across_devices:
            raise ValueError("average_tokens_across_devices=False would weigh ranks, not tokens")
        if self.args.n_gpu > 1:
            raise ValueError(
                "DataParallel is not supported: start with torchrun, one process a GPU"
            )
        best = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if best in LOWER_IS_BETTER and self.args.greater_is_better:
            raise ValueError(f"metric_for_best_model={best!r} needs greater_is_better=False")
        generates = getattr(self.args, "predict_with_generate", False)
        if generates and not is_encoder_decoder(self._language_model):
            raise ValueError(
                "predict_with_generate needs an encoder-decoder: a decoder's inputs hold the target"
            )
        if self.args.label_smoothing_factor:
            if self.loss_settings.label_smoothing:
                raise ValueError("label smoothing is given twice: drop args.label_smoothing_factor")
            self.loss_settings = dataclasses.replace(
                self.loss_settings, label_smoothing=self.args.label_smoothing_factor
            )
        if self.normalize_weights:
            self._check_normalized()
        check_z_loss(self._language_model)

    def _check_normalized(self) -> None:
        """ValueError where something else than weighted -log p would be divided."""
        settings = self.loss_settings
        others = {
            f"{self.objective}": not self.objective.is_weighted_nll,
            "label smoothing": settings.label_smoothing,
            "z_loss": settings.z_loss,
            "output_router_logits": asks_for_router_loss(self._language_model),
        }
        if found := [name for name, there in others.items() if there]:
            raise ValueError(
                f"normalize_weights would divide more than weights of -log p: {', '.join(found)}"
            )

    # -- the objective --------------------------------------------------------------------------

    def current_objective(self) -> Objective:
        """The objective at the current global step, on which alone its schedules hang."""
        last = max(self.state.max_steps - 1, 1)
        return self._objective_at(min(self.state.global_step / last, 1.0))

    def _objective_at(self, progress: float) -> Objective:
        numbers = {name: schedule(progress) for name, schedule in self.schedules.items()}
        return dataclasses.replace(self.objective, **numbers) if numbers else self.objective

    # -- the loss -------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's sum over this micro-batch, over the targets of the global batch."""
        inputs = dict(inputs)
        targets = take_targets(inputs, shift=self._shifts)
        if targets is None:
            if model.training:
                raise ValueError(
                    f"the batch has no labels, only {', '.join(inputs)}: the objective is taken of "
                    "`labels` or `shift_labels`"
                )
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        complete_inputs(inputs, targets, self._language_model)
        keep = return_outputs if self._keep_logits is None else self._keep_logits
        objective = self.current_objective()
        weight = self._token_weight(targets, num_items_in_batch)
        request = LossRequest(targets, objective, weight, self._current_state(), keep_logits=keep)
        self._look_around(request, inputs)
        with self._intercepting(model, inputs).serving(request):
            outputs = model(**inputs)
        assert request.output is not None
        if model.training:
            self._train_meter.add(request.output, weight)
            self._trained_objective = objective
            self._note(request)
        else:
            self._eval_meter.add(request.output, weight)
        loss = self._with_auxiliary(outputs)
        return (loss, outputs) if return_outputs else loss

    def _token_weight(self, targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """What makes a sum over this micro-batch its part of the mean over the global batch's
        targets. Known before the forward pass, so that gradients are made at their final size."""
        if num_items_in_batch is None:
            count, ranks = (targets != IGNORE).sum(), 1
        else:
            count = torch.as_tensor(num_items_in_batch, device=targets.device)
            # Gradients are averaged over ranks, and the count is that of all ranks.
            ranks = self.accelerator.num_processes // self.get_tp_size()
        return ranks / count.clamp(min=1).float()

    def _with_auxiliary(self, outputs: Any) -> Tensor:
        """The loss, with that of a mixture of experts."""
        loss: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs["loss"]
        if (added := router_loss(self._language_model, outputs)) is not None:
            # A mean over each micro-batch: it is shared out, as it is not divided by tokens.
            steps = self.current_gradient_accumulation_steps if self.is_in_train else 1
            loss = loss + added / steps
        return loss

    def _intercepting(self, model: nn.Module, inputs: Inputs) -> Interceptor:
        """The interceptor of the current model, made and checked on its first rows."""
        bare = self.accelerator.unwrap_model(model)
        if self._interceptor is None or self._interceptor.model is not bare:
            if self._interceptor is not None:
                self._interceptor.remove()
            with self.accelerator.autocast():
                self._interceptor = intercept(
                    bare, self._language_model, inputs, self.loss_settings
                )
        return self._interceptor

    @property
    def _language_model(self) -> Any:
        """The transformers model itself, without what wraps it."""
        return language_model(self.accelerator.unwrap_model(self.model))

    @property
    def _shifts(self) -> bool:
        """Whether position t predicts label t + 1; a subclass may know its labels better."""
        return shifts(self._language_model)

    # -- the batches ----------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The stock loader, or one whose batches keep to `max_tokens`."""
        if self.max_tokens is None:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        if "length" not in (getattr(dataset, "column_names", None) or ()):
            raise ValueError("max_tokens needs a train_dataset with a column `length`")
        read = self._remove_unused_columns(dataset, description="training").column_names
        own = [name for name in ("length", "row") if name in dataset.column_names]
        dataset = dataset.select_columns(list(dict.fromkeys([*read, *own])))
        sampler = MaxTokensBatchSampler(
            dataset["length"],
            self.max_tokens,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            processes=self.args.world_size,
        )
        self._token_batches = sampler
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self._token_batches is not None:
            # The stock set_epoch does not reach through accelerate's wrappers when a run resumes.
            self._token_batches.set_epoch(kwargs["epoch"])
        return super()._run_epoch(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The stock count of targets, also where a collator gives them aligned only; without the
        rows that fill up several ranks' last batch, which the stock trainer trains on twice."""
        if batch_samples and self.is_in_train and self._token_batches is None:
            batch_samples[-1] = self._unrepeated(batch_samples[-1])
        if (
            batch_samples
            and "labels" not in batch_samples[0]
            and "shift_labels" in batch_samples[0]
        ):
            batch_samples = [{**batch, "labels": batch["shift_labels"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    # -- the numbers ----------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The stock training; afterwards the model is without hooks again."""
        self._train_meter = Meter()
        self._release()  # a copy has no hooks
        self._start_memory()  # before a checkpoint is loaded
        try:
            return super().train(*args, **kwargs)
        finally:
            self._release()

    def _release(self) -> None:
        if self._interceptor is not None:
            self._interceptor.remove()
            self._interceptor = None

    def identity(self) -> dict[str, Any]:
        """The objective is part of what a run is."""
        return {
            **super().identity(),
            "objective": repr(self.objective),
            "schedules": repr(self.schedules),
            "loss": repr(self.loss_settings),
            "max_tokens": self.max_tokens,
        }

    def progress(self) -> dict[str, Any]:
        """With the sums since the last log."""
        sums = self._train_meter.sums
        return {
            **super().progress(),
            "sums": None if sums is None else sums.clone(),
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """As above."""
        super().load_progress(progress)
        sums = progress["sums"]
        self._train_meter.sums = None if sums is None else sums.to(self.args.device)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: transformers keeps its own objective, a number, where this trainer has its."""
        raise ValueError("hyperparameter_search would overwrite the objective: loop over trainers")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the stock trainer does, a training log with the objective's numbers."""
        if "loss" in logs and (numbers := self._train_meter.read(self._over_ranks)):
            tokens, seconds = numbers.pop("tokens"), numbers.pop("seconds")
            # The stock loss is the mean over steps, and knows what a subclass has added; ours only
            # guards it.
            if not math.isfinite(numbers.pop("loss")):
                raise NonFiniteError(
                    f"step {self.state.global_step}: the loss is not finite; look at the rows "
                    "since the last log, lower the learning rate or clip with max_grad_norm"
                )
            logs.update(numbers)
            fields = dataclasses.asdict(self._trained_objective)
            logs.update({name: value for name, value in fields.items() if name not in logs})
            logs["tokens_per_second"] = tokens / seconds
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The stock loop; loss, nll, perplexity, accuracy are token means whatever the batches."""
        start = time.perf_counter()
        self._eval_meter = Meter()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        numbers = self._eval_meter.read(self._over_ranks)
        if numbers:
            tokens = numbers.pop("tokens")
            del numbers["seconds"]
            numbers["perplexity"] = perplexity(numbers["nll"])
            if not tokens:  # of nothing; 0 would be the best of all
                numbers = dict.fromkeys(numbers, math.nan)
            assert output.metrics is not None
            output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in numbers.items()})
        self._train_meter.pause(time.perf_counter() - start)
        if not self.is_in_train:
            self._release()
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The stock step on the objective; logits are made only where they are returned."""
        if "labels" not in inputs and "shift_labels" in inputs:
            inputs = {**inputs, "labels": inputs["shift_labels"]}  # or the stock step sees none
        with self._keeping_logits(not prediction_loss_only):
            found: tuple[Tensor | None, Tensor | None, Tensor | None] = super().prediction_step(
                model, self._unrepeated(inputs), prediction_loss_only, ignore_keys, **kwargs
            )
            return found

    @contextmanager
    def _keeping_logits(self, keep: bool) -> Iterator[None]:
        self._keep_logits = keep
        try:
            yield
        finally:
            self._keep_logits = None

    def _unrepeated(self, inputs: Inputs) -> Inputs:
        """Inputs without the targets of rows that fill up the last batch of several ranks."""
        state, ranks = self.accelerator.gradient_state, self.accelerator.num_processes
        if ranks == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return inputs
        masked = dict(inputs)
        for name in ("labels", "shift_labels"):
            if name in inputs:
                rows = len(inputs[name])
                kept = max(0, state.remainder - rows * self.accelerator.process_index)
                masked[name] = inputs[name].clone()
                masked[name][kept:] = IGNORE
        return masked


def _objective(objective: Objective | str) -> Objective:
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    try:
        return OBJECTIVES[objective]()
    except TypeError:
        cls = OBJECTIVES[objective]
        fields = ", ".join(f.name for f in dataclasses.fields(cls))
        raise ValueError(
            f"objective {objective!r} needs numbers: pass {cls.__name__}({fields})"
        ) from None


class ObjectiveTrainer(ObjectiveMixin, Trainer):
    """transformers.Trainer on a token objective; see ObjectiveMixin."""


class Seq2SeqObjectiveTrainer(ObjectiveMixin, Seq2SeqTrainer):
    """transformers.Seq2SeqTrainer on a token objective, also while it evaluates by generating."""

    args: Seq2SeqTrainingArguments

    def prediction_step(  # type: ignore[override]  # transformers' two trainers disagree on it
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Generate where asked to; the loss is the objective's (the stock trainer would take the
        model's own)."""
        generates = self.args.predict_with_generate and not prediction_loss_only
        if not generates or "labels" not in inputs:
            return super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys, **kwargs
            )
        inputs = self._prepare_inputs(self._unrepeated(inputs))
        count = self._get_num_items_in_batch([inputs], self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=count)
        hidden = ("labels", "decoder_input_ids", "decoder_attention_mask")
        prompt = {k: v for k, v in inputs.items() if k not in hidden}
        _, tokens, _ = super().prediction_step(model, prompt, False, ignore_keys, **kwargs)
        return loss, tokens, inputs["labels"]
