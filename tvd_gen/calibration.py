"""What a model thinks of a reference text: likelihood, accuracy, and whether it knows its errors.

Logits in, sums out. Sums of batches or of ranks can be added; nothing here grows with the data.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tvd_gen.errors import NonFiniteError

IGNORE = -100
_CHUNK_NUMBERS = 2**22  # 16 MiB of float32 at a time


class TokenScores(NamedTuple):
    """One number for each kept token, in order; float32 and bool, on the logits' device."""

    logp: Tensor  # (K,) log p of the target, nats
    confidence: Tensor  # (K,) the highest probability, of whatever token
    correct: Tensor  # (K,) whether the target is the argmax


class Bin(NamedTuple):
    """One bar of a reliability diagram: tokens whose confidence lies in (low, high]."""

    low: float
    high: float
    tokens: int
    confidence: float
    accuracy: float


@torch.no_grad()
def score_tokens(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE) -> TokenScores:
    """Score every target under its row of logits; rows with `ignore_index` are left out.

        logp = logits[target] - logsumexp(logits)        confidence = exp(max - logsumexp)

    logits (N, V) of any float type, targets (N,), already aligned. Rows are read in chunks and each
    made float32 by itself, so no second (N, V) tensor exists. ValueError for other shapes.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"score_tokens: needs logits (N, V) and targets (N,), "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    kept = (targets != ignore_index).nonzero().squeeze(1)
    size = max(1, _CHUNK_NUMBERS // max(1, logits.shape[1]))
    starts = range(0, max(1, len(kept)), size)
    chunks = [kept[start : start + size] for start in starts]
    scores = [_score_rows(logits[rows].float(), targets[rows]) for rows in chunks]
    return TokenScores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))


def _score_rows(logits: Tensor, targets: Tensor) -> TokenScores:
    total = logits.logsumexp(dim=1)
    highest, first = logits.max(dim=1)
    logp = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - total
    return TokenScores(logp, (highest - total).exp(), first == targets)


class Calibration:
    """A histogram of confidence against accuracy, in `bins` bins (low, high] of equal width.

        ECE = sum over bins of |correct - confidence| / tokens
        MCE = max over bins of |correct - confidence| / the bin's tokens

    `sums` (3, bins), float64 on the CPU, holds counts, confidence and correct: to join ranks, add
    or all-reduce it. Source: Guo et al., ICML 2017.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ValueError(f"calibration: bins must be at least 1, got {bins}")
        self.bins = bins
        self.sums = torch.zeros(3, bins, dtype=torch.float64)

    @property
    def tokens(self) -> int:
        """How many tokens have been counted."""
        return int(self.sums[0].sum())

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Count tokens: the probability of the model's first choice, and whether it is right.

        Shapes are equal and otherwise free. ValueError for a confidence outside 0..1, or nan.
        """
        sure = confidence.detach().flatten().cpu().double()
        right = correct.detach().flatten().cpu().double()
        if sure.shape != right.shape:
            raise ValueError(f"calibration: {len(sure)} confidences, {len(right)} correct")
        if not ((sure >= 0) & (sure <= 1)).all():
            raise ValueError("calibration: every confidence must be in 0..1")
        rows = torch.bucketize(sure, self._edges()[1:-1])
        for into, numbers in zip(self.sums, (torch.ones_like(sure), sure, right), strict=True):
            into += torch.bincount(rows, numbers, minlength=self.bins)

    def add(self, other: "Calibration") -> None:
        """Take in what another has counted; ValueError for another number of bins."""
        if other.bins != self.bins:
            raise ValueError(f"calibration: cannot add {other.bins} bins to {self.bins}")
        self.sums += other.sums

    def ece(self) -> float:
        """Give the expected calibration error, in 0..1; ValueError before the first token."""
        _, confidence, correct = self._counted()
        return float((correct - confidence).abs().sum() / self.tokens)

    def mce(self) -> float:
        """Give the largest gap of any bin that holds tokens; ValueError before the first token."""
        counts, confidence, correct = self._counted()
        held = counts > 0
        return float(((correct - confidence)[held].abs() / counts[held]).max())

    def accuracy(self) -> float:
        """Give the share of tokens whose first choice was right; ValueError before the first."""
        return float(self._counted()[2].sum() / self.tokens)

    def diagram(self) -> list[Bin]:
        """Give the bins that hold tokens, lowest first: their edges, counts and the two means."""
        edges = self._edges().tolist()
        columns = enumerate(self.sums.T.tolist())
        return [
            Bin(edges[i], edges[i + 1], int(count), confidence / count, correct / count)
            for i, (count, confidence, correct) in columns
            if count
        ]

    def _edges(self) -> Tensor:
        return torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)

    def _counted(self) -> Tensor:
        if not self.tokens:
            raise ValueError("calibration: no tokens to judge")
        return self.sums


@dataclass
class TokenMetrics:
    """The sums behind nll, perplexity, accuracy and ece of reference texts, over any batches.

    `nll` is the sum of -log p in nats; tokens and correct are in `calibration`. Over ranks: add
    `nll` and `calibration.sums`. Batches may have any size: every token weighs the same.
    """

    nll: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)

    def update(self, scores: TokenScores) -> None:
        """Take in the tokens of a batch; NonFiniteError where one has no finite log p."""
        nll = -float(scores.logp.cpu().double().sum())
        if not math.isfinite(nll):
            raise NonFiniteError(f"evaluation: the nll of a batch is {nll}: non-finite logits")
        self.nll += nll
        self.calibration.update(scores.confidence, scores.correct)

    def add(self, other: "TokenMetrics") -> None:
        """Take in another's sums, as of another rank."""
        self.nll += other.nll
        self.calibration.add(other.calibration)

    def compute(self) -> dict[str, float]:
        """Give nll (nats a token), perplexity = exp(nll), accuracy and ece (0..1).

        perplexity stops at exp(700), near the largest float, to stay a JSON number. ValueError for
        no tokens.
        """
        accuracy = self.calibration.accuracy()
        nll = self.nll / self.calibration.tokens
        perplexity = math.exp(min(nll, 700.0))
        ece = self.calibration.ece()
        return {"nll": nll, "perplexity": perplexity, "accuracy": accuracy, "ece": ece}
