"""The laws of every token objective, against mpmath, torch and the published criterion."""

import dataclasses
import json
from pathlib import Path

import mpmath
import pytest
import torch

from tvd_gen import CrossEntropy, TaiLr, TokenObjective, objective_loss
from tvd_gen.objectives import (
    DFT,
    GCE,
    OBJECTIVES,
    DistributionObjective,
    Focal,
    MixCE,
    Poly1,
    SequenceObjective,
    TaylorCE,
    Threshold,
)

mpmath.mp.dps = 60

FAMILY = [
    CrossEntropy(),
    TaiLr(0.0),
    TaiLr(1e-7),
    TaiLr(1e-7, 0.2),
    TaiLr(0.1, 0.3),
    TaiLr(0.8, 0.2),
    TaiLr(1 - 1e-7),
    TaiLr(1.0),
    TaiLr(1.0, 0.1),
    TaiLr(0.5, 1.0),
    DFT(),
    GCE(1e-6),
    GCE(0.7),
    GCE(1.0),
    Focal(0.0),
    Focal(0.5),
    Focal(2.0),
    MixCE(0.3),
    Poly1(1.0),
    Poly1(-0.5),
    TaylorCE(1),
    TaylorCE(2),
    TaylorCE(6),
    Threshold(0.1),
    Threshold(0.0, 0.9),
]
LOGPS = [-1e-12, -1e-9, -1e-4, -0.03, -0.3, -0.9, -2.0, -5.0, -16.2, -40.0, -80.0, -200.0, -1e4]
by_repr = pytest.mark.parametrize("objective", FAMILY, ids=repr)


def mp_loss(objective: TokenObjective, logp: mpmath.mpf) -> mpmath.mpf:
    """Each formula as its source writes it, in 60 digits."""
    p, q = mpmath.exp(logp), -mpmath.expm1(logp)
    match objective:
        case CrossEntropy():
            return -logp
        case TaiLr(gamma=gamma, min_weight=floor):
            return mp_tailr(mpmath.mpf(gamma), mpmath.mpf(floor), logp)
        case DFT():
            return q
        case GCE(q=k):
            return (1 - mpmath.power(p, k)) / k
        case Focal(focusing=k):
            return -mpmath.power(q, k) * logp
        case MixCE(eta=eta):
            return -eta * logp + (1 - mpmath.mpf(eta)) * q
        case Poly1(epsilon=epsilon):
            return -logp + epsilon * q
        case TaylorCE(order=order):
            return mpmath.fsum(q**i / i for i in range(1, order + 1))
        case Threshold(min_p=low, max_p=high):
            return -mpmath.log(min(max(p, low), high))
    raise AssertionError(f"no oracle for {objective}")


def mp_tailr(gamma: mpmath.mpf, floor: mpmath.mpf, logp: mpmath.mpf) -> mpmath.mpf:
    def free(x: mpmath.mpf) -> mpmath.mpf:
        p = mpmath.exp(x)
        return 1 - p if gamma == 1 else -mpmath.log(gamma + (1 - gamma) * p) / (1 - gamma)

    knee = floor * gamma / (1 - floor * (1 - gamma))
    if knee == 0 or mpmath.exp(logp) >= knee:
        return free(logp)
    return free(mpmath.log(knee)) + floor * (mpmath.log(knee) - logp)


def mp_weight(objective: TokenObjective, logp: mpmath.mpf) -> mpmath.mpf:
    # One-sided towards certainty, where log p cannot go on; a step far below any curvature at 60
    # digits.
    step = mpmath.mpf(10) ** -25 * max(1, abs(logp))
    return (mp_loss(objective, logp - step) - mp_loss(objective, logp)) / step


@by_repr
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_values_and_weights_equal_60_digit_arithmetic(objective, dtype, tolerance):
    """A formula that loses its digits near p = 0 or p = 1 trains on rounding noise."""
    logp = torch.tensor(LOGPS, dtype=dtype)
    losses, weights = objective.loss(logp), objective.weight(logp)
    smallest = torch.finfo(dtype).tiny
    for x, loss, weight in zip(logp.tolist(), losses.tolist(), weights.tolist(), strict=True):
        exact = mpmath.mpf(x)
        assert loss == pytest.approx(float(mp_loss(objective, exact)), rel=tolerance, abs=smallest)
        assert weight == pytest.approx(
            float(mp_weight(objective, exact)), rel=max(tolerance, 1e-7), abs=max(1e-20, smallest)
        )


@pytest.mark.parametrize("objective", [TaiLr(1e-30), TaiLr(1e-30, 0.2), GCE(1e-30)], ids=repr)
def test_at_the_smallest_numbers_they_are_cross_entropy(objective):
    logp = torch.tensor(LOGPS)
    losses, weights = objective.loss(logp), objective.weight(logp)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(weights).all()
    likely = logp > -40
    torch.testing.assert_close(losses[likely], -logp[likely], rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(weights[likely], torch.ones(int(likely.sum())))


@by_repr
def test_weight_is_minus_the_derivative_of_the_loss(objective):
    """The fused head trains on `weight`, plain autograd on `loss`: they must be one objective."""
    logp = torch.tensor(LOGPS, dtype=torch.float64)
    closed, derived = objective.weight(logp), TokenObjective.weight(objective, logp)
    torch.testing.assert_close(closed, derived, rtol=1e-7, atol=1e-12)


@by_repr
def test_the_loss_passes_gradcheck(objective):
    """Autograd through the branches must not leak the slope of the branch not taken."""
    logp = torch.tensor([-0.01, -0.3, -1.7, -6.0, -30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(objective.loss, logp)


@by_repr
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_weight_and_gradient_are_finite_at_the_ends(objective, dtype):
    """One nan in a batch is a lost model."""
    logp = torch.tensor([0.0, -1e-12, -1e4], dtype=dtype, requires_grad=True)
    loss = objective.loss(logp)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    for values in (loss, objective.weight(logp), grad):
        assert torch.isfinite(values).all(), values


@by_repr
def test_the_loss_is_monotone_and_never_negative(objective):
    """A loss that falls as p falls rewards forgetting: what weight * nll, held constant, would
    do."""
    logp = -torch.logspace(-6, 4, 400, dtype=torch.float64)
    loss = objective.loss(logp)
    assert (loss >= 0).all()
    assert (loss.diff() >= -1e-12).all()
    assert (objective.weight(logp) >= 0).all()


def test_limits_tie_the_siblings():
    logp = torch.tensor(LOGPS, dtype=torch.float64)
    ce, dft = CrossEntropy().loss(logp), DFT().loss(logp)
    for objective in (TaiLr(0.0), Focal(0.0), MixCE(1.0), Poly1(0.0), Threshold(0.0, 1.0)):
        torch.testing.assert_close(objective.loss(logp), ce)
    for objective in (TaiLr(1.0), GCE(1.0), MixCE(0.0), TaylorCE(1)):
        torch.testing.assert_close(objective.loss(logp), dft)
    near = logp[logp > -30]
    torch.testing.assert_close(TaylorCE(5000).loss(near[:6]), -near[:6], rtol=1e-6, atol=0)
    torch.testing.assert_close(GCE(1e-9).loss(near), -near, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("gamma", "floor"), [(1e-7, 0.2), (0.1, 0.3), (0.8, 0.2), (1.0, 0.1)])
def test_the_floored_primitive_is_continuous_at_its_knee(gamma, floor):
    """A jump would make the reported loss depend on which side of the knee a token fell."""
    objective = TaiLr(gamma, floor)
    knee = torch.tensor(objective._knee, dtype=torch.float64)
    around = torch.stack([knee - 1e-9, knee + 1e-9])
    below, above = objective.loss(around).tolist()
    assert below == pytest.approx(above, abs=1e-8)
    assert objective.floored(around).tolist() == [True, False]
    assert objective.weight(around).tolist() == pytest.approx([floor, floor], abs=1e-8)


GOLDEN = json.loads((Path(__file__).parent / "golden/published_tailr.json").read_text())["cases"]


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['gamma']}-{c['min_weight']}-{c['label_smoothing']}"
)
def test_gradients_and_sums_equal_the_published_criterion(case):
    """We claim the published method: the update must be the published update."""
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(case["targets"])
    objective = TaiLr(case["gamma"], case["min_weight"])
    eps, ignore = case["label_smoothing"], case["ignore_index"]
    loss = objective_loss(
        logits, targets, objective, ignore_index=ignore, label_smoothing=eps, reduction="sum"
    )
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(
        grad, torch.tensor(case["grad"], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )

    kept = targets != ignore
    logps = logits.detach()[kept].log_softmax(-1)
    logp = logps.gather(-1, targets[kept].unsqueeze(-1)).squeeze(-1)
    surrogate = (1 - eps) * (objective.weight(logp) * -logp).sum() - eps * logps.mean(-1).sum()
    assert surrogate.item() == pytest.approx(case["loss_sum"], abs=1e-9)
    assert -logp.sum().item() == pytest.approx(case["nll_sum"], abs=1e-9)
    assert int(kept.sum()) == case["tokens"]


BAD = [
    (TaiLr, {"gamma": -0.1}),
    (TaiLr, {"gamma": 1.1}),
    (TaiLr, {"gamma": 1e-40}),
    (TaiLr, {"gamma": float("nan")}),
    (TaiLr, {"gamma": 0.5, "min_weight": 2.0}),
    (GCE, {"q": 0.0}),
    (GCE, {"q": 1e-40}),
    (Focal, {"focusing": -1.0}),
    (Focal, {"focusing": float("inf")}),
    (MixCE, {"eta": 1.5}),
    (Poly1, {"epsilon": -2.0}),
    (Poly1, {"epsilon": 1e39}),
    (TaylorCE, {"order": 0}),
    (TaylorCE, {"order": 1.5}),
    (TaylorCE, {"order": float("inf")}),
    (Threshold, {"min_p": 0.9, "max_p": 0.1}),
]


@pytest.mark.parametrize(("cls", "values"), BAD)
def test_a_value_out_of_range_is_refused(cls, values):
    with pytest.raises(ValueError, match="must"):
        cls(**values)


def test_objectives_lists_every_objective_as_a_frozen_dataclass_of_numbers():
    """Configs, schedules and fingerprints treat an objective as a value."""
    levels = TokenObjective, SequenceObjective, DistributionObjective
    concrete = {cls for level in levels for cls in level.__subclasses__()}
    concrete |= {below for cls in concrete for below in cls.__subclasses__()}
    ours = {cls for cls in concrete if cls.__module__.startswith("tvd_gen.objectives")}
    assert set(OBJECTIVES.values()) == ours
    for name, cls in OBJECTIVES.items():
        assert cls.name == name
        assert cls.__dataclass_params__.frozen
        assert {f.type for f in dataclasses.fields(cls)} <= {float, int}
    tokens = {cls for cls in OBJECTIVES.values() if issubclass(cls, TokenObjective)}
    assert {type(objective) for objective in FAMILY} == tokens


DEFAULTS = {
    "ce": ({}, ""),
    "tailr": ({"min_weight": 0.0}, "thu-coai/TaiLr: --density-min-weight; its gamma has none here"),
    "dft": ({}, ""),
    "gce": ({"q": 0.7}, "Zhang & Sabuncu, NeurIPS 2018"),
    "focal": ({"focusing": 2.0}, "Lin et al., ICCV 2017"),
    "mixce": ({"eta": 0.5}, "ours: the source searches 0 to 1"),
    "poly1": ({"epsilon": 1.0}, "ours: the source tunes it for each task"),
    "taylor_ce": ({"order": 2}, "ours: the least that is not dft"),
    "threshold": ({"min_p": 0.1, "max_p": 1.0}, "ProFit: prob_threshold 0.1, higher"),
    "loss_truncation": (
        {"drop": 0.4, "min_count": 10_000, "window": 10_000},
        "ddkang/loss_dropper: dropc, min_count, recompute",
    ),
    "gold": (
        {"min_weight": 0.2, "min_reward": 0.1, "suffix": 5, "discount": 1.0},
        "yzpang/gold-off-policy-text-gen-iclr21, run_iwslt_golds.sh: --iw-min, --trunc-min",
    ),
    "gold_p": (
        {"min_weight": 0.0, "min_reward": 1.0, "suffix": 5, "discount": 1.0, "baseline": -10.0},
        "the same, run_cnndm_goldp.sh: the code's own defaults",
    ),
    "confidence_penalty": ({"beta": 0.1}, "Pereyra et al., 2017, arXiv 1701.06548"),
    "unlikelihood": ({"alpha": 1.0}, "facebookresearch/unlikelihood_training: --rank-alpha"),
    "d2gpo": (
        {"alpha": 0.1, "temperature": 2.0, "std": 1.0},
        "Li et al., ICLR 2020; its criterion's --d2gpo-alpha, --d2gpo-temperature",
    ),
    "gem": ({"beta": 0.7, "slope": 0.01}, "liziniu/GEM: gem_beta, gem_h logsigmoid"),
    "eaft": ({"alpha": 1.0, "k": 20}, "PRIS-CV/EAFT; axolotl's eaft_alpha and eaft_k"),
    "asft": ({"kl_weight": 0.1}, "zhuchichi56/ASFT: 0.05 to 0.1"),
}
"""What an objective is if nothing but its name is given, and who says so."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_by_its_name_alone_is_the_published_one(name):
    """Comparisons name a baseline and take its numbers on trust."""
    given = {
        field.name: field.default
        for field in dataclasses.fields(OBJECTIVES[name])
        if field.default is not dataclasses.MISSING
    }
    assert given == DEFAULTS[name][0]
