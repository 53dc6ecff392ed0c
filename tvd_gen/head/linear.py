"""The head's one public function; its backends are programs for the same sums."""

from torch import Tensor

from tvd_gen.head.chunked import chunked_loss
from tvd_gen.head.logits import check_smoothing
from tvd_gen.head.output import LossOutput
from tvd_gen.head.reference import reference_loss
from tvd_gen.objectives import TokenObjective

BACKENDS = {"auto": chunked_loss, "reference": reference_loss, "chunked": chunked_loss}


def linear_objective_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objective: TokenObjective,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    token_weights: Tensor | None = None,
    backend: str = "auto",
) -> LossOutput:
    """The objective summed over tokens, from hidden states, without keeping an (N, V) tensor.

    Equals objective_loss(F.linear(hidden, weight, bias), ..., reduction="sum").

    hidden (N, D), weight (V, D), bias (V,), targets (N,), token_weights (N,), not differentiable;
    logits = cap(scale * (hidden @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap).
    Rows whose target is ignore_index are dropped before the first product. Maths on logits in
    float32 (float64 for float64 inputs), products in hidden's dtype or autocast's. Only inputs that
    require a gradient cost one. backend: auto | reference | chunked. Raises ValueError for shapes,
    dtypes or a backend that do not fit.
    """
    _check(hidden, weight, targets, bias, token_weights, softcap)
    check_smoothing(label_smoothing)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    kept = (targets != ignore_index).nonzero().squeeze(-1)
    return BACKENDS[backend](
        hidden.index_select(0, kept),
        weight,
        bias,
        targets.index_select(0, kept),
        None if token_weights is None else token_weights.index_select(0, kept),
        objective,
        scale=scale,
        softcap=softcap,
        label_smoothing=label_smoothing,
    )


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    token_weights: Tensor | None,
    softcap: float | None,
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "need hidden (N, D) and weight (V, D), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    expected = {
        "targets": (targets, len(hidden)),
        "token_weights": (token_weights, len(hidden)),
        "bias": (bias, len(weight)),
    }
    for name, (tensor, size) in expected.items():
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0, got {softcap}")
