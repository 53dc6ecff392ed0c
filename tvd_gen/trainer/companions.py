"""Models that a loss looks at beside the one it trains: older weights, a frozen reference."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tvd_gen.objectives import Embeddings
from tvd_gen.trainer.conventions import is_encoder_decoder
from tvd_gen.trainer.interception import Look
from tvd_gen.trainer.output_head import OutputHead, describe, evaluating

Source = Literal["model", "eval", "ema", "lagged"]


@dataclass(frozen=True)
class WeightSource:
    """Where an objective's weights come from; their gradient is never taken.

    model: the forward pass that is trained on, dropout included, as in the published code.
    eval: the trained model without dropout. ema: an average, w <- decay w + (1 - decay) model after
    each step. lagged: a copy that is made anew after every `every` steps.
    """

    kind: Source = "model"
    every: int = 3000
    decay: float = 0.999

    def __post_init__(self) -> None:
        if self.kind not in get_args(Source):
            known = ", ".join(get_args(Source))
            raise ValueError(f"weights_from must be one of {known}, got {self.kind!r}")
        if self.every < 1:
            raise ValueError(f"weights_every must be at least 1, got {self.every}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"weights_decay must lie in [0, 1), got {self.decay}")


class Companion:
    """A language model that is looked at: without dropout, gradients or updates of its own."""

    def __init__(self, model: Any, core: Any) -> None:
        """model: what is called; core: the transformers model in it, whose head it is."""
        self.model, self.core = model, core
        self.head: OutputHead | None = None
        self.described = False

    @torch.no_grad()
    def look(self, inputs: Mapping[str, Any], backend: str) -> Look:
        """What it says of a batch, as the trained model gets it."""
        if not self.described:
            self.head, self.described = describe(self.model, self.core, inputs, backend), True
        seen: list[Tensor] = []

        def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(args[0])
            return (args[0][:, :0], *args[1:])

        head = self.head
        hook = None if head is None else head.module.register_forward_pre_hook(take)
        try:
            with evaluating(self.model):
                outputs = self.model(**inputs)
        finally:
            if hook is not None:
                hook.remove()
        return Look(outputs.logits if head is None else seen[0], head, still=True)

    @cached_property
    def embeddings(self) -> Embeddings:
        """Of what its decoder reads; of a model that changes no more."""
        decoder = self.core.get_decoder() if is_encoder_decoder(self.core) else None
        of: Any = decoder if hasattr(decoder, "get_input_embeddings") else self.core
        return Embeddings(of.get_input_embeddings().weight)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of its own weights that nothing trains, without hooks."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return copied


@torch.no_grad()
def follow(copied: nn.Module, model: nn.Module, decay: float) -> None:
    """w <- decay w + (1 - decay) model, for parameters; buffers are copied."""
    for mine, weight in zip(copied.parameters(), model.parameters(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(weight.to(mine), 1.0 - decay)
        else:  # quantised, and so not trained
            mine.copy_(weight)
    for own, buffer in zip(copied.buffers(), model.buffers(), strict=True):
        own.copy_(buffer)
