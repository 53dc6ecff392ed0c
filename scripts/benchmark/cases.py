"""What is measured: a head on given shapes, or a whole training step of a small GPT-2."""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class HeadCase:
    """Rows, width, vocabulary, dtype and the share of ignored rows."""

    rows: int = 2048
    width: int = 768
    vocabulary: int = 50257
    dtype: str = "bf16"
    ignored: float = 0.0
    device: str = "cpu"

    def __str__(self) -> str:
        name = f"{self.rows} x {self.width} x {self.vocabulary} {self.dtype}"
        return name + (f", {self.ignored:.0%} ignored" if self.ignored else "")

    def tensors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """hidden, weight and targets; the logits have the spread of a model that has learnt.

        A target's logit is about 10, the others' spread about 2, so that the nll is near 3. With
        `dtype`, the very same numbers in that dtype.
        """
        made = {"generator": torch.Generator(self.device).manual_seed(0), "device": self.device}
        weight = torch.randn(self.vocabulary, self.width, **made) / self.width**0.5
        targets = torch.randint(self.vocabulary, (self.rows,), **made)
        hidden = 10 * weight[targets] + 2 * torch.randn(self.rows, self.width, **made)
        targets[torch.rand(self.rows, **made) < self.ignored] = -100
        own = DTYPES[self.dtype]
        hidden, weight = (x.to(own).to(dtype or own).requires_grad_() for x in (hidden, weight))
        return hidden, weight, targets


@dataclass(frozen=True)
class StepCase:
    """A step of training a GPT-2 from scratch, with AdamW, through a Trainer."""

    layers: int = 6
    width: int = 384
    vocabulary: int = 50257
    rows: int = 8
    length: int = 256
    precision: str = "fp32"
    """fp32, or autocast for bfloat16"""
    device: str = "cpu"

    def __str__(self) -> str:
        size = f"{self.layers} layers x {self.width}, vocabulary {self.vocabulary}"
        return f"GPT-2 step, {size}, {self.rows} x {self.length} tokens, {self.precision}"
