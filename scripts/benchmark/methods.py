"""The heads that are compared: (hidden, weight, targets) -> the token mean of a loss.

Each imports what it needs when it is made, so that a missing peer is told as missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def hugging_face() -> Head:
    """transformers' ForCausalLMLoss: all logits, in float32, then torch's cross-entropy."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        count = (targets != -100).sum()
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum") / count

    return loss


def plain_tailr() -> Head:
    """The floored gamma loss as one would write it: all logits in float32, weight times nll."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kept = targets != -100
        logp = F.linear(hidden, weight).float().log_softmax(-1)
        logp = logp.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        p = logp.detach().exp()
        weights = (p / (0.1 + 0.9 * p)).clamp(min=0.3)
        return -(weights * logp * kept).sum() / kept.sum()

    return loss


def compiled() -> Head:
    """torch.compile of transformers' loss."""
    return torch.compile(hugging_face())


def torch_linear(**options: Any) -> Head:
    """torch.nn.functional.linear_cross_entropy with its chunked options."""
    chosen = torch.nn.LinearCrossEntropyOptions(**options)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.linear_cross_entropy(hidden, weight, targets, ignore_index=-100, options=chosen)

    return loss


def ours(objective: str, backend: str = "auto", **options: Any) -> Head:
    """tvd_gen.linear_objective_loss."""
    from tvd_gen import CrossEntropy, TaiLr, linear_objective_loss

    chosen = {"ce": CrossEntropy(), "tailr": TaiLr(0.1, 0.3)}[objective]

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        mean = 1.0 / (targets != -100).sum()  # as the trainers do: they know the batch's tokens
        return linear_objective_loss(
            hidden, weight, targets, chosen, token_weights=mean, backend=backend, **options
        ).loss

    return loss


def ours_dense(name: str) -> Head:
    """A distribution objective at its defaults through tvd_gen.linear_objective_loss.

    The reference model's head is the trained one's, moved a little; 64 targets came before. The
    nearest words are found in the first step and kept, as a run keeps them.
    """
    from tvd_gen import OBJECTIVES, linear_objective_loss
    from tvd_gen.objectives import Embeddings

    objective = OBJECTIVES[name]()
    frozen: list[Embeddings] = []

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        mean = 1.0 / (targets != -100).sum()
        given: dict[str, Any] = {}
        if "previous" in objective.needs:
            blocks = targets.view(-1, 64)
            given["previous"] = lambda rows: blocks[rows // 64]
        if "embeddings" in objective.needs:
            if not frozen:
                frozen.append(Embeddings(weight))
            given["embeddings"] = frozen[0]
        if "reference" in objective.needs:
            anchor = hidden.detach() * 0.9
            given["reference"] = lambda rows: anchor[rows] @ weight.detach().T
        return linear_objective_loss(
            hidden, weight, targets, objective, token_weights=mean, **given
        ).loss

    return loss


def ours_sequence() -> Head:
    """tvd_gen.linear_target_logp, of which sequence objectives are made: here their mean."""
    from tvd_gen import linear_target_logp

    return lambda hidden, weight, targets: -linear_target_logp(hidden, weight, targets).mean()


def trl() -> Head:
    """The fused head of TRL's trainers: log p by chunks of the vocabulary."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as SIZE

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kept = targets != -100
        logp, *_ = ChunkedLogProbFunction.apply(
            hidden[kept], weight, None, targets[kept], 1.0, SIZE, None, 1.0, ("log_probs",)
        )
        return -logp.sum() / kept.sum()

    return loss


def liger(**options: Any) -> Head:
    """Liger's fused linear cross-entropy; needs a GPU."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss(**options)
    return lambda hidden, weight, targets: fused(weight, hidden, targets)


def cut(impl: str) -> Head:
    """Apple's cut-cross-entropy; all but its torch_compile form need a GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, impl=impl)


def products() -> Head:
    """Not a loss: the three products that every head makes, and nothing else."""

    class Products(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
            logits = hidden @ weight.T
            ctx.grads = logits @ weight, logits.T @ hidden
            return logits[0, 0].float()

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.grads

    return lambda hidden, weight, _: Products.apply(hidden, weight)


DENSE = ("confidence_penalty", "unlikelihood", "d2gpo", "gem", "eaft", "asft")
LEVELS: dict[str, Callable[[], Head]] = {
    "ours sequence": ours_sequence,
    **{f"ours {name}": partial(ours_dense, name) for name in DENSE},
}
WITHOUT_TRUTH = {"products", *(f"ours {name}" for name in DENSE)}

METHODS: dict[str, Callable[[], Head]] = {
    "hf": hugging_face,
    "hf tailr": plain_tailr,
    "torch.compile": compiled,
    "torch auto": torch_linear,
    **{
        f"torch {policy} {rows}": partial(
            torch_linear, acc_policy=policy, chunking_method=None, batch_chunk_size=rows
        )
        for policy in ("compact", "balanced", "accurate")
        for rows in (256, 512, 1024)
    },
    "trl": trl,
    "liger": liger,
    "cce": partial(cut, "cce"),
    "cce compile": partial(cut, "torch_compile"),
    "ours ce": partial(ours, "ce"),
    "ours tailr": partial(ours, "tailr"),
    "ours chunked": partial(ours, "ce", "chunked"),
    "products": products,
    **LEVELS,
}
