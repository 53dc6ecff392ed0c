"""The head of a transformers model: what it is, a check of that, and how it is intercepted."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tvd_gen.head import LossOutput, capped, linear_objective_loss, logits_loss
from tvd_gen.objectives import TokenObjective

IGNORE = -100
logger = logging.getLogger("tvd_gen")


def take_targets(inputs: dict[str, Any], *, shift: bool) -> Tensor | None:
    """Take the labels out of `inputs`, as targets (B, T): target t belongs to hidden state t.

    `shift_labels` are aligned already; `labels` of a decoder-only model (shift) are the tokens
    themselves, so that position t predicts label t + 1. None where there are no labels.
    """
    labels: Tensor | None = inputs.pop("labels", None)
    aligned: Tensor | None = inputs.pop("shift_labels", None)
    if aligned is not None or labels is None:
        return aligned
    return F.pad(labels, (0, 1), value=IGNORE)[..., 1:] if shift else labels


class UnknownHead(Exception):
    """The model's head is not one that can be described; `str(error)` says why."""


@dataclass(frozen=True)
class OutputHead:
    """From last hidden states to logits: cap(scale * (hidden @ weight.T + bias))."""

    linear: nn.Linear
    bias_buffer: Tensor | None = None
    """(1, V) `final_logits_bias` of the BART family, added after the linear layer"""
    scale: float = 1.0
    softcap: float | None = None

    @property
    def bias(self) -> Tensor | None:
        """(V,) everything that is added to hidden @ weight.T."""
        if self.bias_buffer is None:
            return self.linear.bias
        buffer = self.bias_buffer.reshape(-1)
        return buffer if self.linear.bias is None else buffer + self.linear.bias

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        objective: TokenObjective,
        *,
        label_smoothing: float,
        backend: str,
    ) -> LossOutput:
        """(N, D) hidden states and (N,) targets -> the sums of the objective."""
        return linear_objective_loss(
            hidden,
            self.linear.weight,
            targets,
            objective,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            ignore_index=IGNORE,
            label_smoothing=label_smoothing,
            backend=backend,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), as this description says."""
        return capped(F.linear(hidden, self.linear.weight, self.bias), self.scale, self.softcap)


def describe_head(model: Any) -> OutputHead:
    """The head as the model's config tells it; UnknownHead where it is no plain linear layer."""
    find = getattr(model, "get_output_embeddings", None)
    linear = find() if find is not None else None
    if type(linear) is not nn.Linear:
        kind = (
            "no output embeddings" if linear is None else f"a {type(linear).__name__} as its head"
        )
        raise UnknownHead(f"{type(model).__name__} has {kind}")
    config = model.config.get_text_config(decoder=True)
    scale = _number(config, "logit_scale") or 1.0  # Cohere
    divisor = _number(config, "logits_scaling") or 1.0  # Granite
    cap = _number(config, "final_logit_softcapping") or _number(config, "logits_soft_cap")
    return OutputHead(linear, getattr(model, "final_logits_bias", None), scale / divisor, cap)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return None if value is None else float(value)


# At the size of untrained logits a missing soft cap would not show; every cap in use bends 300.
LOUD = 300.0


def check_head(model: nn.Module, head: OutputHead, inputs: Mapping[str, Any]) -> None:
    """Raise UnknownHead unless `head` gives the model's own logits, also where they are large."""
    plain = _run_head(model, head, inputs, 1.0)
    factor = LOUD / (plain[0].float() @ head.linear.weight.float().T).abs().max().clamp(min=1e-6)
    loud = _run_head(model, head, inputs, factor.item())
    for hidden, own in (plain, loud):
        ours = head.logits(hidden).float()
        if ours.shape != own.shape:
            raise UnknownHead(f"its logits are {tuple(own.shape)}, not {tuple(ours.shape)}")
        error = (ours - own.float()).norm() / own.float().norm().clamp(min=1e-6)
        if not error < max(4 * _rounding(hidden), 1e-3):
            raise UnknownHead(f"its own logits differ from what its config says by {error:.1%}")


def _rounding(hidden: Tensor) -> float:
    """The relative rounding of a product with these hidden states, autocast's where it is on."""
    device = hidden.device.type
    dtypes = [hidden.dtype]
    if torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in dtypes)


@torch.no_grad()
def _run_head(
    model: nn.Module, head: OutputHead, inputs: Mapping[str, Any], factor: float
) -> tuple[Tensor, Tensor]:
    """The head's input, times factor, and the logits that the model makes of it."""
    seen: list[Tensor] = []

    def amplify(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not args:
            raise UnknownHead("its head is called by keyword")
        seen.append(args[0] * factor)
        return (seen[-1], *args[1:])

    hook = head.linear.register_forward_pre_hook(amplify)
    training = [module for module in model.modules() if module.training]
    model.eval()  # no dropout: it would spend random numbers, and a resumed run would differ
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
        for module in training:
            module.training = True
    if len(seen) != 1:
        raise UnknownHead(f"its head runs {len(seen)} times in one forward pass")
    return seen[0], logits


@dataclass
class LossRequest:
    """What one forward pass is to compute beside its outputs; `output` is filled in by the pass."""

    targets: Tensor
    """(B, T) aligned with the last T positions of the hidden states"""
    objective: TokenObjective
    label_smoothing: float = 0.0
    keep_logits: bool = False
    output: LossOutput | None = None


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
    backend: str
    request: LossRequest | None = None
    hooks: list[RemovableHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.head is not None:
            self.hooks.append(self.head.linear.register_forward_pre_hook(self._at_the_head))
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
        if self.request is None or self.head is None:
            return None
        hidden, request = args[0], self.request
        length = request.targets.shape[1]  # prompt tuning puts virtual tokens before the input
        request.output = self.head.loss(
            hidden[:, -length:].reshape(-1, hidden.shape[-1]),
            request.targets.reshape(-1),
            request.objective,
            label_smoothing=request.label_smoothing,
            backend=self.backend,
        )
        return None if request.keep_logits else (hidden[:, :0], *args[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def _at_the_end(self, _: nn.Module, __: Any, outputs: Any) -> Any:
        if self.request is None:
            return None
        if self.request.output is None:
            self.request.output = self._from_logits(outputs, self.request)
        loss = self.request.output.loss
        if isinstance(outputs, tuple):
            return (loss, *outputs)
        outputs["loss"] = loss
        return outputs

    def _from_logits(self, outputs: Any, request: LossRequest) -> LossOutput:
        logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
        kept = request.targets != IGNORE
        return logits_loss(
            logits[:, -request.targets.shape[1] :][kept],
            request.targets[kept],
            request.objective,
            label_smoothing=request.label_smoothing,
        )


def intercept(
    model: nn.Module, core: nn.Module, inputs: Mapping[str, Any], backend: str
) -> Interceptor:
    """An interceptor on `model`, whose language model is `core`, checked on the rows of `inputs`.

    A head that cannot be described or differs from its description runs through its own logits, and
    the log says why.
    """
    if backend == "logits":
        return Interceptor(model, None, backend)
    try:
        head = describe_head(core)
        check_head(model, head, inputs)
    # Not only UnknownHead: two rows may be no batch for this model; a real fault comes up again.
    except (
        UnknownHead,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as reason:
        logger.warning(
            "the loss is taken from the model's own logits (slower, more memory): %s", reason
        )
        return Interceptor(model, None, "logits")
    return Interceptor(model, head, backend)


@torch.no_grad()
def target_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The model's own logits where there is a target: (N, V), and the targets (N,).

    `batch` holds labels in transformers' convention. Only the rows with a target pass through the
    head, so that a long prompt costs no logits.
    """
    inputs = dict(batch)
    targets = take_targets(inputs, shift=not model.config.is_encoder_decoder)
    assert targets is not None
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=targets)
    kept = targets != IGNORE

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][kept].unsqueeze(0), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits.squeeze(0), targets[kept]
