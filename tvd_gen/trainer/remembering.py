"""What an objective looks at beside the batch, and what it remembers from step to step."""

from typing import Any

import torch
from torch import Tensor, nn

from tvd_gen.objectives import DistributionObjective, Objective, SequenceObjective, State
from tvd_gen.trainer.companions import Companion, Source, WeightSource, follow, frozen_copy
from tvd_gen.trainer.conventions import is_encoder_decoder, language_model
from tvd_gen.trainer.exact import ExactMixin
from tvd_gen.trainer.identity import of_weights
from tvd_gen.trainer.interception import LossRequest, LossSettings

Inputs = dict[str, Any]


class RememberingMixin(ExactMixin):
    """The part of ObjectiveMixin that keeps other models and an objective's state.

    weights_from: where a token objective's weights, or GOLD's, come from: model (the pass that is
        trained on, as published), eval (without dropout), ema (an average of the model's weights
        that decays by weights_decay a step), lagged (a copy, made anew every weights_every steps).
    normalize_weights: divide each step's gradient by its mean weight, so that it is that of
        sum w (-log p) / sum w; the log's loss stays the objective's. ValueError where a term would
        be divided that has no such weight: label smoothing, z-loss, a mixture of experts' own, and
        objectives like ASFT. A term of a subclass is divided too.
    reference: a frozen model that GOLD, ASFT and D2GPo look at; by default the model as it is when
        training starts. ValueError for one of the trained model's own parameters, of another kind
        or of another vocabulary.
    """

    objective: Objective
    loss_settings: LossSettings

    def __init__(
        self,
        *args: Any,
        weights_from: Source = "model",
        weights_every: int = 3000,
        weights_decay: float = 0.999,
        normalize_weights: bool = False,
        reference: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.weight_source = WeightSource(weights_from, weights_every, weights_decay)
        self.normalize_weights = normalize_weights
        self._state: State = {}
        self._means: list[Tensor] = []
        self._weights: Tensor | None = None
        self._updated = False
        self._stepped: Objective = self.objective
        self._given_reference = reference
        self._old: Companion | None = None
        self._reference: Companion | None = None
        if weights_from != "model" and not self.objective.may_weigh_by:
            raise ValueError(
                f"weights_from={weights_from!r}: {self.objective} has no weights that could come "
                "from another model"
            )
        if reference is not None and not self.objective.looks_at_reference():
            raise ValueError(f"{self.objective} looks at no reference model")
        super().__init__(*args, **kwargs)
        copies = weights_from != "model" or (
            self.objective.looks_at_reference() and reference is None
        )
        if copies and self.model_init is not None:
            raise ValueError(
                "model_init makes another model when training starts, after copies were made of "
                "the first: give model, or a reference and weights_from='model'"
            )
        if reference is not None:
            self._check_reference(self.accelerator.unwrap_model(self.model), reference)
        asked = self.normalize_weights or weights_from != "model"
        if (asked or self.objective.looks_at_reference()) and (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        ):
            raise ValueError(
                "FSDP and DeepSpeed split a model: no weights_from, normalize_weights or reference"
            )

    def _start_memory(self) -> None:
        self._state, self._means, self._weights, self._updated = {}, [], None, False
        self._old = self._reference = None
        self._make_companions()

    def identity(self) -> dict[str, Any]:
        """Where weights come from, and the reference model, are part of what a run is."""
        return {
            **super().identity(),
            "weights": repr((self.weight_source, self.normalize_weights)),
            "reference": None if self._reference is None else of_weights(self._reference.model),
        }

    def progress(self) -> dict[str, Any]:
        """With the objective's state and older weights."""
        keeps = self._old is not None and self.weight_source.kind in ("ema", "lagged")
        return {
            **super().progress(),
            "objective": self._current_state(),
            "old": self._old.model.state_dict() if keeps and self._old is not None else None,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """As above."""
        super().load_progress(progress)
        self._state = progress["objective"]
        self._means, self._weights, self._updated = [], None, False
        if progress["old"] is not None and self._old is not None:
            self._old.model.load_state_dict(progress["old"])

    def _over_ranks(self, sums: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(sums, reduction="sum")
        return total

    def _current_state(self) -> State:
        if not self._state and isinstance(self.objective, SequenceObjective):
            self._state = self.objective.start()
        return self._state

    def _make_companions(self) -> None:
        """Copies of the model as it is now, where they are looked at."""
        model = self.accelerator.unwrap_model(self.model)
        source = self.weight_source.kind
        if self._old is None and source != "model":
            old = model if source == "eval" else frozen_copy(model)
            # In half precision the steps of an average would be rounded away.
            self._old = self._companion(old.float() if source == "ema" else old)
        if self._reference is None and self.objective.looks_at_reference():
            given = self._given_reference
            self._reference = self._companion(frozen_copy(model) if given is None else given)

    def _check_reference(self, model: Any, reference: Any) -> None:
        head = getattr(reference, "get_output_embeddings", None)
        if not hasattr(reference, "config") or head is None or head() is None:
            kind = type(reference).__name__
            raise ValueError(f"the reference must be a language model of transformers, not {kind}")
        mine = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if any(id(parameter) in mine for parameter in reference.parameters()):
            raise ValueError(
                "the reference has parameters that are trained, and would move with the model; "
                "leave it out for a copy of the model as training starts"
            )
        kinds = [is_encoder_decoder(each) for each in (reference, model)]
        if kinds[0] != kinds[1]:
            told = [("a decoder", "an encoder-decoder")[kind] for kind in kinds]
            raise ValueError(f"the reference model is {told[0]}, the trained one {told[1]}")
        own, other = (each.get_output_embeddings().weight.shape[0] for each in (model, reference))
        whole = isinstance(self.objective, DistributionObjective)
        if own > other or (whole and own != other):
            raise ValueError(
                f"the reference model has {other} tokens, the trained one {own}: {self.objective} "
                "needs as many"
            )

    def _companion(self, model: Any) -> Companion:
        return Companion(model.to(self.args.device), language_model(model))

    def _look_around(self, request: LossRequest, inputs: Inputs) -> None:
        """Let the other models read the batch."""
        self._make_companions()
        backend = self.loss_settings.backend
        with self.accelerator.autocast():
            if self._old is not None:
                request.old = self._old.look(inputs, backend)
            if "reference" in self.objective.needs and self._reference is not None:
                request.reference = self._reference.look(inputs, backend)
        if "embeddings" in self.objective.needs and self._reference is not None:
            request.embeddings = self._reference.embeddings

    def _note(self, request: LossRequest) -> None:
        """Keep what the end of the step needs of a micro-batch."""
        self._updated = True
        self._stepped = request.objective
        if request.means is not None:
            self._means.append(request.means)
        if self.normalize_weights:
            assert request.output is not None
            sums = torch.stack([request.output.tokens, request.output.weight]).detach()
            self._weights = sums if self._weights is None else self._weights + sums

    def _normalize(self, model: nn.Module) -> None:
        """Divide the gradients of a step by its mean weight."""
        if self._weights is None:
            return
        tokens, weights = self._over_ranks(self._weights)
        self._weights = None
        scale = torch.where(weights > 0, tokens / weights, 1.0)  # without weights, no gradient
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._normalize(model)
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._normalize(model)  # where nothing was clipped
        return super()._get_grad_norm(model, grad_norm)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._updated:
            self._updated = False
            self._remember()
        old, source = self._old, self.weight_source
        if old and source.kind == "lagged" and self.state.global_step % source.every == 0:
            # Also where the step itself was left out: the model is as the one before made it.
            follow(old.model, self.accelerator.unwrap_model(self.model), 0.0)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _remember(self) -> None:
        """After a step that was made: the objective's state and an average move on."""
        if self._means:
            means, self._means = torch.cat(self._means), []
            objective = self._stepped  # its numbers may have followed a schedule
            assert isinstance(objective, SequenceObjective)
            seen = [mean for each in self._from_all(means.tolist()) for mean in each]
            self._state = objective.advance(self._current_state(), torch.tensor(seen))
        if self._old is not None and self.weight_source.kind == "ema":
            model = self.accelerator.unwrap_model(self.model)
            follow(self._old.model, model, self.weight_source.decay)
