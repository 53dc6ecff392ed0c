"""Sequence objectives: what a training step makes of the log p of all targets of a sequence.

The price is one more product with the head: the log p of all tokens come first, their gradient
follows from the slopes of the loss (8NDV operations in place of 6).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tvd_gen.objectives.base import LARGEST, Objective, check, check_whole

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sequences:
    """The targets of B sequences of up to T tokens."""

    logp: Tensor
    """(B, T) log p of the targets, 0 where there is none"""
    kept: Tensor
    """(B, T) bool, where there is a target"""
    old: Tensor | None = None
    """(B, T) log p under the model that weights come from; None for the trained model itself"""
    reference: Tensor | None = None
    """(B, T) log p under the frozen reference model, 0 where there is no target"""

    def means(self) -> Tensor:
        """(B,) mean of -log p over each sequence's targets, in nats."""
        return -self.logp.sum(-1) / self.kept.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class SequenceObjective(Objective, ABC):
    """A loss of the log p of whole sequences, with a state that a trainer keeps between steps.

    All sequences of a step meet the state that the step began with; `advance` sees them afterwards,
    of all micro-batches and processes, so that neither changes what is learned.
    """

    @abstractmethod
    def loss(self, sequences: Sequences, state: State) -> Tensor:
        """(B, T) losses in nats, differentiable in `sequences.logp`; 0 where there is no target."""

    def start(self) -> State:
        """The state before the first step."""
        return {}

    def advance(self, state: State, means: Tensor) -> State:
        """The state after a step on sequences with these means (B,) of -log p."""
        return state


@dataclass(frozen=True)
class LossTruncation(SequenceObjective):
    """Loss truncation, in nats: the least likely sequences are left out.

        L_t = -log p_t    if the sequence's mean of -log p is below the quantile 1 - drop, else 0

    The quantile is that of the last `window` sequences, found anew after every `window`, as soon as
    `min_count` have been seen; until then nothing is dropped. drop = 0 is cross-entropy. Label
    smoothing and z-loss, where they are added, go on for what is dropped. Meant to follow training
    by cross-entropy. Source: Kang & Hashimoto, ACL 2020 (drop 0.4, 10 000).
    """

    drop: float = 0.4
    """share of sequences, in [0, 1)"""
    min_count: int = 10_000
    """sequences"""
    window: int = 10_000
    """sequences, at most 2^24, for torch.quantile takes no more"""
    name: ClassVar[str] = "loss_truncation"

    def __post_init__(self) -> None:
        check("drop", self.drop, 0.0, 1.0)
        if self.drop == 1.0:
            raise ValueError("drop must lie in [0, 1), got 1.0")
        check_whole("min_count", self.min_count, 0)
        check_whole("window", self.window, 1)
        check("window", self.window, 1, 2**24)

    def loss(self, sequences: Sequences, state: State) -> Tensor:
        stays = sequences.means() < state["threshold"].to(sequences.logp.device)
        return -sequences.logp * stays.unsqueeze(-1)

    def start(self) -> State:
        return {
            "values": torch.zeros(0),
            "seen": torch.tensor(0),
            "since": torch.tensor(0),
            "threshold": torch.tensor(torch.inf),
        }

    def advance(self, state: State, means: Tensor) -> State:
        last, window = state["values"], int(self.window)
        values = torch.cat([last, means.to(last)])[-window:]
        seen, since = (int(state[name]) + len(means) for name in ("seen", "since"))
        threshold = state["threshold"]
        if seen >= self.min_count and since >= window:
            threshold = (
                torch.quantile(values, 1.0 - self.drop)
                if self.drop
                else threshold.new_full((), torch.inf)
            )
            since = 0
        return {
            "values": values,
            "seen": torch.tensor(seen),
            "since": torch.tensor(since),
            "threshold": threshold,
        }


@dataclass(frozen=True)
class GOLD(SequenceObjective):
    """GOLD-s, in nats: learning from demonstrations as off-policy reinforcement learning.

        L_t = -sg[max(min_weight, p_old(y_t)) Q_t] log p_t
        Q_t = sum over k = 0..suffix of discount^k max(min_reward, p_ref(y_{t+k}))

    p_old is the trained model itself, or one that lags behind (`weights_from`); p_ref is the frozen
    reference, trained by cross-entropy. Where there is no target, beyond a sequence's end or in a
    gap within it, p_ref counts as 1. In the published code it does so for a batch's longest
    sequence alone; in shorter ones the reference's p of padding counts there, so that their last
    tokens weigh less, and hang on the batch. suffix = 0 and min_reward = 1 leave DFT with a floor.
    Meant to start from the reference. Source: Pang & He, ICLR 2021 (IWSLT14: min_weight 0.2,
    min_reward 0.1, p_old copied every 3000 updates; XSum 0.15, 0.1, 5000).
    """

    min_weight: float = 0.2
    """in [0, 1]"""
    min_reward: float = 0.1
    """in [0, 1]"""
    suffix: int = 5
    """tokens after the target whose reward counts too"""
    discount: float = 1.0
    """in [0, 1]"""
    name: ClassVar[str] = "gold"
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    may_weigh_by: ClassVar[bool] = True
    most_reward: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check("min_weight", self.min_weight, 0.0, 1.0)
        check("min_reward", self.min_reward, 0.0, self.most_reward)
        check_whole("suffix", self.suffix, 0)
        check("discount", self.discount, 0.0, 1.0)

    def loss(self, sequences: Sequences, state: State) -> Tensor:
        old = sequences.logp if sequences.old is None else sequences.old
        weights = old.detach().exp().clamp(min=self.min_weight)
        return -(weights * self._returns(sequences)).detach() * sequences.logp * sequences.kept

    def _returns(self, sequences: Sequences) -> Tensor:
        """(B, T) the sums Q."""
        assert sequences.reference is not None
        steps = int(self.suffix)
        # Where there is no target the reference's log p is 0, which is a p of 1.
        padded = torch.nn.functional.pad(sequences.reference, (0, steps))
        rewards = self._reward(padded).clamp(min=self.min_reward)
        windows = rewards.unfold(-1, steps + 1, 1)  # (B, T, suffix + 1)
        return windows @ (self.discount ** torch.arange(steps + 1).to(rewards))

    def _reward(self, logp: Tensor) -> Tensor:
        return logp.exp()


@dataclass(frozen=True)
class GOLDP(GOLD):
    """GOLD-p, in nats: GOLD whose rewards are the reference's log p above a baseline.

        Q_t = sum over k = 0..suffix of discount^k max(min_reward, log(p_ref(y_{t+k}) + 1e-10) - b)

    b is `baseline`. Where there is no target the reward is -b; see GOLD. suffix = 0, b = 0 and
    min_reward = 1 leave DFT with a floor. Source: Pang & He, ICLR 2021 (CNN/DM: the defaults, p_old
    copied every 5000 updates).
    """

    min_weight: float = 0.0
    """in [0, 1]"""
    min_reward: float = 1.0
    """in nats, in [0, 1e30]"""
    baseline: float = -10.0
    """in nats, in [-1e30, 0]"""
    name: ClassVar[str] = "gold_p"
    most_reward: ClassVar[float] = LARGEST

    def __post_init__(self) -> None:
        super().__post_init__()
        check("baseline", self.baseline, -LARGEST, 0.0)

    def _reward(self, logp: Tensor) -> Tensor:
        return (logp.exp() + 1e-10).log() - self.baseline
