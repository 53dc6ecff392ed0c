"""Sequence objectives against loops that follow the published code."""

import math

import numpy
import pytest
import torch

from tvd_gen.objectives import (
    GOLD,
    GOLDP,
    OBJECTIVES,
    LossTruncation,
    SequenceObjective,
    Sequences,
)

B, T = 5, 9
LENGTHS = [9, 4, 1, 7, 0]


def sequences(dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    kept = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    logp, old, reference = (
        torch.where(kept, -4 * torch.rand(B, T, generator=make, dtype=dtype), 0.0) for _ in range(3)
    )
    return Sequences(logp.requires_grad_(), kept, old, reference)


def gold_loop(logp, old, reference, objective):
    """One sequence by itself, as the published code has the longest of a batch, token by token."""
    losses = []
    for t in range(len(logp)):
        reward = 0.0
        for k in range(objective.suffix + 1):
            p = math.exp(reference[t + k]) if t + k < len(logp) else 1.0
            if isinstance(objective, GOLDP):
                p = math.log(p + 1e-10) - objective.baseline
            reward += objective.discount**k * max(p, objective.min_reward)
        weight = max(math.exp(old[t]), objective.min_weight)
        losses.append(-weight * reward * logp[t])
    return losses


@pytest.mark.parametrize("given", [True, False], ids=["old", "own"])
@pytest.mark.parametrize(
    "objective",
    [
        *(GOLD(), GOLD(0.15, 0.3, 2, 0.7), GOLD(0.0, 0.0, 0)),
        *(GOLDP(), GOLDP(0.2, 0.1, 3, 0.9, -2.0)),
    ],
    ids=repr,
)
def test_gold_is_the_published_loop(objective, given):
    s = sequences()
    s = s if given else Sequences(s.logp, s.kept, None, s.reference)
    losses = objective.loss(s, {})
    old = s.old if given else s.logp.detach()
    for i, length in enumerate(LENGTHS):
        rows = (each[i, :length].tolist() for each in (s.logp, old, s.reference))
        expected = gold_loop(*rows, objective)
        torch.testing.assert_close(losses[i, :length].tolist(), expected, rtol=1e-12, atol=0)
        assert not losses[i, length:].any()
    # Weights and rewards are constants: the slope is loss / log p.
    (slope,) = torch.autograd.grad(losses.sum(), s.logp)
    torch.testing.assert_close((slope * s.logp).detach(), losses.detach())


LAWS = [GOLD(), GOLD(0.15, 0.3, 2, 0.7), GOLDP(), LossTruncation(0.4, 0, 4)]


def test_the_laws_are_of_every_sequence_objective():
    ours = {cls for cls in OBJECTIVES.values() if issubclass(cls, SequenceObjective)}
    assert {type(objective) for objective in LAWS} == ours


@pytest.mark.parametrize("objective", LAWS, ids=repr)
def test_the_loss_passes_gradcheck(objective):
    """With weights of another model: of its own, they are constants to the gradient alone."""
    s, state = sequences(), objective.start() | {"threshold": torch.tensor(2.0)}
    assert 0 < (s.means() < 2).sum() < B, "some sequences are dropped"

    def losses(logp):
        return objective.loss(Sequences(logp, s.kept, s.old, s.reference), state)

    assert torch.autograd.gradcheck(losses, s.logp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", LAWS, ids=repr)
def test_loss_and_gradient_are_finite_at_the_ends(objective, dtype):
    ends = torch.tensor([0.0, -1e-30, -1e-7, -88.0, -400.0, -1e4], dtype=dtype)
    logp, old, reference = torch.cartesian_prod(ends, ends, ends).unbind(-1)
    logp = logp[None].requires_grad_()
    kept = torch.ones_like(logp, dtype=torch.bool)
    for weighing in (old[None], None):
        s = Sequences(logp, kept, weighing, reference[None])
        losses = objective.loss(s, objective.start())
        (slope,) = torch.autograd.grad(losses.sum(), s.logp)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(slope).all()
        state = objective.advance(objective.start(), s.means().detach())
        assert all(
            torch.isfinite(each).all() for name, each in state.items() if name != "threshold"
        )


@pytest.mark.parametrize("objective", [GOLD(0.1, 1.0, 0), GOLDP(0.1, 1.0, 0, baseline=0.0)])
def test_gold_without_rewards_is_dft_with_a_floor(objective):
    s = sequences()
    losses = objective.loss(Sequences(s.logp, s.kept, None, s.reference), {})
    (slope,) = torch.autograd.grad(losses.sum(), s.logp)
    floored = s.logp.detach().exp().clamp(min=0.1) * s.kept
    torch.testing.assert_close(-slope, floored)


class Dropper:
    """Kang and Hashimoto's procedure, a batch at a time, with numpy's percentile."""

    def __init__(self, drop, min_count, window):
        self.keep, self.min_count, self.window = 1 - drop, min_count, window
        self.values, self.seen, self.since, self.threshold = [], 0, 0, math.inf

    def mask(self, means):
        return [mean < self.threshold for mean in means]

    def update(self, means):
        self.values = (self.values + means)[-self.window :]
        self.seen += len(means)
        self.since += len(means)
        if self.seen >= self.min_count and self.since >= self.window:
            self.threshold = numpy.percentile(self.values, self.keep * 100)
            self.since = 0


@pytest.mark.parametrize("numbers", [(0.4, 20, 20), (0.2, 31, 7), (0.6, 0, 50)], ids=str)
def test_loss_truncation_is_the_published_procedure(numbers):
    objective, dropper = LossTruncation(*numbers), Dropper(*numbers)
    state, dropped = objective.start(), 0
    for step in range(40):
        s = sequences(torch.float32, seed=step)
        s = Sequences(s.logp[:4], s.kept[:4])
        means = s.means().detach().tolist()
        losses = objective.loss(s, state)
        mask = torch.tensor(dropper.mask(means)).unsqueeze(1)
        torch.testing.assert_close(losses, torch.where(mask, -s.logp, 0.0))
        dropped += 4 - int(mask.sum())
        state = objective.advance(state, torch.tensor(means))
        dropper.update(means)
        assert float(state["threshold"]) == pytest.approx(dropper.threshold, rel=1e-6)
    assert dropped > 10, "the procedure was at work"


def test_more_sequences_than_the_window_leave_the_last_ones():
    objective = LossTruncation(0.5, 0, 4)
    state = objective.advance(objective.start(), torch.arange(11.0))
    assert sorted(state["values"].tolist()) == [7.0, 8.0, 9.0, 10.0]


def test_nothing_is_dropped_at_drop_0():
    objective, s = LossTruncation(0.0, 0, 1), sequences()
    state = objective.advance(objective.start(), s.means().detach())
    assert torch.equal(objective.loss(s, state), -s.logp)


BAD = [
    (LossTruncation, {"drop": 1.0}),
    (LossTruncation, {"drop": -0.1}),
    (LossTruncation, {"window": 0}),
    (LossTruncation, {"min_count": 1.5}),
    (GOLD, {"min_weight": 1.1}),
    (GOLD, {"min_reward": -1.0}),
    (GOLD, {"suffix": -1}),
    (GOLD, {"discount": 2.0}),
    (GOLDP, {"min_reward": -1.0}),
    (GOLDP, {"baseline": 1.0}),
    (GOLDP, {"baseline": -math.inf}),
]


@pytest.mark.parametrize(("cls", "values"), BAD)
def test_a_value_out_of_range_is_refused(cls, values):
    with pytest.raises(ValueError, match="must"):
        cls(**values)
