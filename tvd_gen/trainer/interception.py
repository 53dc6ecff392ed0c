"""What one forward pass is asked, and the hooks that answer it where the head runs."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tvd_gen.head import Given, LossOutput, Options, logits_loss, target_logp
from tvd_gen.objectives import (
    CrossEntropy,
    DistributionObjective,
    Embeddings,
    Objective,
    SequenceObjective,
    Sequences,
    State,
    TokenObjective,
)
from tvd_gen.objectives.base import unreduced
from tvd_gen.trainer.conventions import (
    IGNORE,
    complete_inputs,
    is_encoder_decoder,
    take_targets,
)
from tvd_gen.trainer.output_head import SLOW, OutputHead, describe, evaluating

logger = logging.getLogger("tvd_gen")


@dataclass(frozen=True)
class LossSettings:
    """What a run adds to its objective, and how the head is computed; see linear_objective_loss."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    row_budget: float = 0.0
    backend: str = "auto"
    """one of BACKENDS, auto, or logits for the model's own logits"""


@dataclass
class LossRequest:
    """What one forward pass is to compute beside its outputs; `output` is filled in by the pass."""

    targets: Tensor
    """(B, T) aligned with the last T positions of the hidden states"""
    objective: Objective
    token_weight: Tensor
    """() what the loss of each token is multiplied by"""
    state: State = field(default_factory=dict)
    """of a sequence objective"""
    old: "Look | None" = None
    """the model that the objective's weights come from, where it is not the trained one"""
    reference: "Look | None" = None
    embeddings: Embeddings | None = None
    keep_logits: bool = False
    output: LossOutput | None = None
    means: Tensor | None = None
    """(B,) mean -log p of each sequence, of a sequence objective"""
    kept: Tensor = field(init=False)
    """(N,) places in the flat targets that are not ignored; N is needed by the host, and found out
    here, before the body keeps a GPU busy"""

    def __post_init__(self) -> None:
        self.kept = (self.targets.reshape(-1) != IGNORE).nonzero().squeeze(-1)

    def rows(self, states: Tensor) -> Tensor:
        """(B, T or more, width) -> (N, width), where there is a target."""
        if states.shape[1] < self.targets.shape[1]:
            raise ValueError(
                f"the model made {states.shape[1]} positions for {self.targets.shape[1]} labels: "
                "leave logits_to_keep out of the batch"
            )
        states = states[:, -self.targets.shape[1] :]  # prompt tuning puts tokens before the input
        return states.reshape(-1, states.shape[-1]).index_select(0, self.kept)

    def kept_targets(self) -> Tensor:
        """(N,)"""
        return self.targets.reshape(-1).index_select(0, self.kept)

    def previous(self, places: Tensor) -> Tensor:
        """Of kept targets (n,) those before each in its sequence (n, T), IGNORE where none is."""
        kept, length = self.kept[places], self.targets.shape[1]
        before = torch.arange(length, device=kept.device) < (kept % length).unsqueeze(-1)
        return torch.where(before, self.targets.index_select(0, kept // length), IGNORE)

    def grid(self, values: Tensor) -> Tensor:
        """(N,) -> (B, T), 0 where there is no target."""
        flat = values.new_zeros(self.targets.numel())
        return flat.index_copy(0, self.kept, values).view_as(self.targets)


@dataclass(frozen=True)
class Look:
    """What a model says of a batch: what its head reads, and the head; or its own logits."""

    states: Tensor
    """(B, T or more, D), or (B, T or more, V) without a head"""
    head: OutputHead | None
    still: bool = False
    """whether its head runs without dropout, whatever mode it is in"""

    @contextmanager
    def _mode(self) -> Iterator[None]:
        with evaluating(self.head.module) if self.still and self.head else nullcontext():
            yield

    @torch.no_grad()
    def logp(self, request: LossRequest, backend: str) -> Tensor:
        """(N,) log p of the kept targets."""
        rows, targets = request.rows(self.states), request.kept_targets()
        if self.head is None:
            return target_logp(rows.float(), targets)
        with self._mode():
            return self.head.target_logp(rows, targets, backend)

    def logits(self, request: LossRequest) -> Callable[[Tensor], Tensor]:
        """Of the kept rows: places (n,) -> (n, V)."""
        rows, head = request.rows(self.states), self.head
        if head is None:
            return lambda places: rows[places]
        # States that autocast has made; inside of a head it is off.
        halved = rows.dtype != head.linear.weight.dtype

        def at(places: Tensor) -> Tensor:
            autocast = torch.autocast(rows.device.type, dtype=rows.dtype, enabled=halved)
            with autocast, self._mode():
                return head.logits(rows[places])

        return at

    def loss(self, request: LossRequest, settings: LossSettings) -> LossOutput:
        """The objective's sums, where this is what the trained model says."""
        objective, value, floored = request.objective, None, None
        given = Given(request.kept_targets(), request.token_weight)
        if isinstance(objective, SequenceObjective):
            factors, value = self._slopes(objective, request, settings.backend)
            given, objective = given._replace(factors=factors), CrossEntropy()
        elif request.old is not None:
            assert isinstance(objective, TokenObjective)
            logp, old = (look.logp(request, settings.backend) for look in (self, request.old))
            factors, floored = objective.weight(old), objective.floored(old).sum()
            value = (objective.loss(logp) + factors * logp).sum()
            given, objective = given._replace(factors=factors), CrossEntropy()
        reference = request.reference.logits(request) if request.reference else None
        assert isinstance(objective, (TokenObjective, DistributionObjective))
        options = Options(
            objective,
            label_smoothing=settings.label_smoothing,
            z_loss=settings.z_loss,
            row_budget=settings.row_budget,
            previous=request.previous if "previous" in objective.needs else None,
            reference=reference if "reference" in objective.needs else None,
            embeddings=request.embeddings,
        )
        rows = request.rows(self.states)
        if self.head is None:
            output = logits_loss(rows, given, options)
        else:
            output = self.head.loss(rows, given, options, settings.backend)
        if value is None:
            return output
        # The gradient is right; the value is that of factor * -log p, which may be another.
        share = (1.0 - settings.label_smoothing) * request.token_weight
        floored = output.floored if floored is None else floored.to(output.floored)
        return replace(output, loss=output.loss + (share * value).detach(), floored=floored)

    def _slopes(
        self, objective: SequenceObjective, request: LossRequest, backend: str
    ) -> tuple[Tensor, Tensor]:
        """(N,) what multiplies the gradient of -log p, and () the loss less what that gives."""
        logp = request.grid(self.logp(request, backend))
        old, reference = (
            None if look is None else request.grid(look.logp(request, backend))
            for look in (request.old, request.reference)
        )
        with torch.enable_grad():
            leaf = logp.clone().requires_grad_()
            sequences = Sequences(leaf, request.targets != IGNORE, old, reference)
            losses = unreduced(objective, objective.loss(sequences, request.state), leaf)
            (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        some = sequences.kept.any(-1)
        request.means = sequences.means().detach()[some]
        surplus = (losses.detach() - slopes * logp).sum()
        return -slopes.reshape(-1).index_select(0, request.kept), surplus


@dataclass
class Interceptor:
    """Computes the loss where the head runs, inside the model's forward pass, and skips the logits.

    There the weights are gathered (FSDP) and autocast is on; the loss leaves as `outputs.loss`,
    through whatever wraps the model. With `head` None the model makes its own logits and the loss
    is taken from them.
    """

    model: nn.Module
    """the model without wrappers: what is called as a module"""
    head: OutputHead | None
    settings: LossSettings
    request: LossRequest | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)
    warned: bool = False

    def __post_init__(self) -> None:
        if self.head is not None:
            self.hooks.append(self.head.module.register_forward_pre_hook(self._at_the_head))
        # First of the hooks: a wrapper's hook on the same module must find the loss in the outputs.
        self.hooks.append(self.model.register_forward_hook(self._at_the_end, prepend=True))

    def remove(self) -> None:
        """Give the model back as it was."""
        for hook in self.hooks:
            hook.remove()

    @contextmanager
    def serving(self, request: LossRequest) -> Iterator[None]:
        """Within, every forward pass of the model answers `request`."""
        self.request = request
        try:
            yield
        finally:
            self.request = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def _at_the_head(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.request is None or self.head is None or not self.head.holds():
            return None
        hidden, request = args[0], self.request
        request.output = Look(hidden, self.head).loss(request, self.settings)
        return None if request.keep_logits else (hidden[:, :0], *args[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def _at_the_end(self, _: nn.Module, __: Any, outputs: Any) -> Any:
        if self.request is None:
            return None
        if self.request.output is None:
            if self.head is not None and not self.warned:
                logger.warning("%s: the head is another one now", SLOW)
                self.warned = True
            logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
            self.request.output = Look(logits, None).loss(self.request, self.settings)
        loss = self.request.output.loss
        if isinstance(outputs, tuple):
            return (loss, *outputs)
        outputs["loss"] = loss
        return outputs


def intercept(
    model: nn.Module, core: nn.Module, inputs: Mapping[str, Any], settings: LossSettings
) -> Interceptor:
    """An interceptor on `model`, whose language model is `core`, checked on its rows."""
    return Interceptor(model, describe(model, core, inputs, settings.backend), settings)


@torch.no_grad()
def target_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The model's own logits where there is a target: (N, V), and the targets (N,).

    A decoder's `labels` are its tokens, not shifted, of whatever class it is. Only the rows with a
    target pass through the head, so that a long prompt costs no logits.
    """
    inputs = dict(batch)
    targets = take_targets(inputs, shift=not is_encoder_decoder(model))
    assert targets is not None
    complete_inputs(inputs, targets, model)
    kept = targets != IGNORE

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][kept].unsqueeze(0), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return logits.squeeze(0), targets[kept]
