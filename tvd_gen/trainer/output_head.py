"""The head of a transformers model: what it is, a check of that, and how it is intercepted."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvd_gen.head import (
    Given,
    LossOutput,
    Options,
    capped,
    linear_objective_loss,
    linear_target_logp,
)

SLOW = "the loss is taken from the model's own logits (slower, more memory, no row budget)"
logger = logging.getLogger("tvd_gen")


class UnknownHead(Exception):
    """The model's head is not one that can be described; `str(error)` says why."""


@dataclass(frozen=True)
class OutputHead:
    """From last hidden states to logits: cap(scale * (hidden @ weight.T + bias)).

    The weight is that of `linear`, with a LoRA adapter's product where `module` has one.
    """

    module: nn.Module
    """what the model calls"""
    linear: nn.Linear
    """module itself, or the linear layer under its adapter"""
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

    def holds(self) -> bool:
        """Whether the model's adapters are still ones that can be described; merged ones are taken
        out where they are switched off, as the layer itself does when it runs."""
        layer: Any = self.module
        if layer is self.linear:
            return True
        if layer.disable_adapters and layer.merged:
            layer.unmerge()
        return _is_plain_lora(layer)

    def low_rank(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """a (N, r) and b (V, r): the active adapters add a @ b.T to the logits."""
        layer: Any = self.module
        if layer is self.linear or layer.disable_adapters or layer.merged:
            return None
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        if not names:
            return None
        ups = [layer.lora_B[name].weight for name in names]
        downs = []
        for name in names:
            down = layer.lora_A[name]
            dropped = layer.lora_dropout[name](hidden.to(down.weight.dtype))
            downs.append(down(dropped) * layer.scaling[name])
        return torch.cat(downs, -1), torch.cat(ups, -1)

    def loss(
        self, hidden: Tensor, given: Given, options: Options, backend: str = "auto"
    ) -> LossOutput:
        """(N, D) hidden states of rows none of which is ignored -> the sums of the objective."""
        return linear_objective_loss(
            hidden,
            self.linear.weight,
            given.targets,
            options.objective,
            **self._described(hidden),
            label_smoothing=options.label_smoothing,
            z_loss=options.z_loss,
            token_weights=given.token_weights,
            factors=given.factors,
            previous=options.previous,
            reference=options.reference,
            embeddings=options.embeddings,
            row_budget=options.row_budget,
            backend=backend,
        )

    def target_logp(self, hidden: Tensor, targets: Tensor, backend: str = "auto") -> Tensor:
        """(N, D) hidden states and (N,) targets, none ignored -> (N,)"""
        weight = self.linear.weight
        return linear_target_logp(
            hidden, weight, targets, **self._described(hidden), backend=backend
        )

    def _described(self, hidden: Tensor) -> dict[str, Any]:
        return {
            "bias": self.bias,
            "low_rank": self.low_rank(hidden),
            "scale": self.scale,
            "softcap": self.softcap,
            "ignore_index": None,
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), as this description says."""
        logits = F.linear(hidden, self.linear.weight, self.bias)
        if (low := self.low_rank(hidden)) is not None:
            logits = logits + F.linear(*low)
        return capped(logits, self.scale, self.softcap)


def describe_head(model: Any) -> OutputHead:
    """The head as the model's config tells it; UnknownHead where it is no plain linear layer."""
    find = getattr(model, "get_output_embeddings", None)
    module = find() if find is not None else None
    if module is None:
        raise UnknownHead(f"{type(model).__name__} has no output embeddings")
    module = _trained_copy(module)
    linear = module.base_layer if _is_plain_lora(module) else module
    if type(linear) is not nn.Linear:
        kind = f"{type(module).__module__}.{type(module).__name__}"
        raise UnknownHead(f"{type(model).__name__} has a {kind} as its head")
    config = model.config.get_text_config(decoder=True)
    scale = _number(config, "logit_scale") or 1.0  # Cohere
    divisor = _number(config, "logits_scaling") or 1.0  # Granite
    cap = _number(config, "final_logit_softcapping") or _number(config, "logits_soft_cap")
    bias = getattr(model, "final_logits_bias", None)
    return OutputHead(module, linear, bias, scale / divisor, cap)


def _trained_copy(module: Any) -> Any:
    """The copy of a whole module that PEFT trains in its place (`modules_to_save`), or itself."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return module
    active = [name for name in module.active_adapters if name in copies]
    return copies[active[0]] if active else module


def _is_plain_lora(module: Any) -> bool:
    """Whether it is PEFT's LoRA of a linear layer, without its variants (DoRA and others)."""
    return (
        hasattr(module, "lora_A")
        and hasattr(module, "base_layer")
        and not getattr(module, "lora_variant", None)
        and all(up.bias is None for up in module.lora_B.values())
    )


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return None if value is None else float(value)


# At the size of untrained logits a missing soft cap would not show; every cap in use bends 300.
LOUD = 300.0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_head(model: nn.Module, head: OutputHead, inputs: Mapping[str, Any]) -> None:
    """Raise UnknownHead unless `head` gives the model's own logits, also where they are large."""
    plain = _run_head(model, head, inputs, 1.0)
    factor = LOUD / (plain[0].float() @ head.linear.weight.float().T).abs().max().clamp(min=1e-6)
    loud = _run_head(model, head, inputs, factor.item())
    for hidden, own in (plain, loud):
        with evaluating(head.module):  # as the model was
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

    hook = head.module.register_forward_pre_hook(amplify)
    try:
        # Dropout would spend random numbers, and a resumed run would differ.
        with evaluating(model):
            logits = model(**inputs).logits
    finally:
        hook.remove()
    if len(seen) != 1:
        raise UnknownHead(f"its head runs {len(seen)} times in one forward pass")
    return seen[0], logits


def describe(
    model: nn.Module, core: nn.Module, inputs: Mapping[str, Any], backend: str
) -> OutputHead | None:
    """The head of `model`, whose language model is `core`, checked on two rows of `inputs`.

    None where it cannot be described or differs from its description, and the log says why: the
    loss is taken from the model's own logits.
    """
    if backend == "logits":
        return None
    try:
        head = describe_head(core)
        two = {k: v[:2] if torch.is_tensor(v) and v.dim() else v for k, v in inputs.items()}
        check_head(model, head, two)
    # Not only UnknownHead: two rows may be no batch for this model; a real fault comes up again.
    except (
        UnknownHead,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as reason:
        logger.warning("%s: %s", SLOW, reason)
        return None
    return head
