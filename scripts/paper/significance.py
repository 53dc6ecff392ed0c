"""Whether a difference is one: means over seeds, the bootstrap over items, tests over seeds.

A score of a test set is a function of sums over its items (`Sums`): a mean, a ratio of two totals,
corpus BLEU. Resampling the items then means resampling rows of numbers, for every score alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 9999  # (RESAMPLES + 1) / 40 is whole: the interval's ends are resamples
_DRAWS = 4_000_000  # items drawn at a time: 32 MiB


@dataclass(frozen=True)
class Sums:
    """A score that depends on the items only through the sum of their rows."""

    rows: Array
    """(n, K), one row for each item"""
    score: Callable[[Array], Array]
    """(R, K) sums -> (R,) scores"""

    @property
    def value(self) -> float:
        """The score of the items as they are."""
        return float(self.score(self.rows.sum(0, keepdims=True))[0])


def mean_of(values: Sequence[float]) -> Sums:
    """The mean over items."""
    return ratio_of(values, np.ones(len(values)))


def ratio_of(numerators: Sequence[float] | Array, denominators: Sequence[float] | Array) -> Sums:
    """The ratio of two totals, as nll over tokens: items weigh by their denominators."""
    rows = np.stack([numerators, denominators], 1).astype(np.float64)
    return Sums(rows, lambda sums: sums[:, 0] / sums[:, 1])


def joined(parts: Sequence[Sums], combine: Callable[..., Array]) -> Sums:
    """A score made of several scores of the same items; `combine` takes and gives (R,)."""
    ends = np.cumsum([part.rows.shape[1] for part in parts])[:-1]

    def score(sums: Array) -> Array:
        cut = np.split(sums, ends, axis=1)
        return combine(*(part.score(own) for part, own in zip(parts, cut, strict=True)))

    return Sums(np.concatenate([part.rows for part in parts], 1), score)


def average(parts: Sequence[Sums]) -> Sums:
    """The mean of scores of the same items, as of one objective's seeds."""
    return joined(parts, lambda *scores: np.mean(scores, 0))


def difference(first: Sums, second: Sums) -> Sums:
    """second - first, on the same items."""
    return joined([first, second], _minus)


def _minus(first: Array, second: Array) -> Array:
    gap = second - first
    # Two equal columns may be summed in different orders: their difference is rounding, not a sign.
    return np.where(np.abs(gap) <= 1e-12 * (np.abs(first) + np.abs(second)), 0.0, gap)


@dataclass(frozen=True)
class Estimate:
    """A score, its 95 % interval, and the two-sided p of its being the null value in truth."""

    value: float
    low: float
    high: float
    p: float


def bootstrap(
    sums: Sums, *, null: float = 0.0, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The percentile bootstrap over items; of a `difference` it is the paired one.

        p = min(1, 2 min((1 + #{s* <= null}) / (R + 1), (1 + #{s* >= null}) / (R + 1)))

    s* are the scores of R resamples of the n items, drawn with replacement. The interval is from
    the k-th smallest s* to the k-th largest, k = (R + 1) / 40, so that p <= 0.05 exactly where it
    has not the null value inside. The items' order does not matter. With few items (under about
    30) it is too narrow. ValueError for fewer than 2. Source: Efron & Tibshirani 1993, ch. 13; for
    the pairs Koehn, EMNLP 2004.
    """
    if len(sums.rows) < 2:
        raise ValueError(f"a bootstrap needs at least 2 items, got {len(sums.rows)}")
    if resamples < 39:
        raise ValueError(f"a 95 % interval needs at least 39 resamples, got {resamples}")
    scores = np.sort(
        np.concatenate([sums.score(each) for each in _resampled(sums, resamples, seed)])
    )
    k = max(1, (resamples + 1) // 40)
    tail = 1 + min(int((scores <= null).sum()), int((scores >= null).sum()))
    p = min(1.0, 2 * tail / (resamples + 1))
    return Estimate(sums.value, float(scores[k - 1]), float(scores[-k]), p)


def _resampled(sums: Sums, resamples: int, seed: int) -> Iterator[Array]:
    """The sums of resamples, some (r, K) at a time."""
    rows = sums.rows[np.lexsort(sums.rows.T)]
    n, random = len(rows), np.random.default_rng(seed)
    for start in range(0, resamples, size := max(1, _DRAWS // n)):
        r = min(size, resamples - start)
        drawn = random.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64) @ rows


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the standard deviation with n - 1, of seeds; the latter is nan for one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


def paired_t(differences: Sequence[float]) -> float:
    """Student's two-sided p of a mean difference of 0, over seeds; nan for one seed.

        t = mean / (sd / sqrt(n)),   n - 1 degrees of freedom

    It supposes normal differences. All equal: 1 where they are 0, else 0.
    """
    mean, sd = mean_sd(differences)
    if math.isnan(sd):
        return math.nan
    if sd <= 1e-12 * abs(mean) or sd == 0.0:
        return float(mean == 0.0)
    return student_p(mean / (sd / math.sqrt(len(differences))), len(differences) - 1)


def student_p(t: float, freedom: int) -> float:
    """P(|T| >= |t|) for whole degrees of freedom, by the finite sums of Abramowitz & Stegun.

    26.7.3 for odd, 26.7.4 for even ones, with theta = atan(t / sqrt(freedom)).
    """
    theta = math.atan2(abs(t), math.sqrt(freedom))
    cosine, total = math.cos(theta), 0.0
    odd = freedom % 2
    term = cosine if odd else 1.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return max(0.0, 1.0 - inside)


def sign_flip(differences: Sequence[float]) -> float:
    """The exact two-sided p of differences whose signs are coin tosses, over seeds.

    The share of the 2^n choices of signs whose sum is at least as far from 0: never below
    2 / 2^n, so that 5 seeds cannot go under 0.0625. Source: Fisher 1935. ValueError for over 20.
    """
    if len(differences) > 20:
        raise ValueError(f"sign_flip goes through 2^n choices: at most 20, got {len(differences)}")
    bound = abs(math.fsum(differences))
    slack = 1e-12 * math.fsum(map(abs, differences))
    sums = [
        abs(math.fsum(sign * x for sign, x in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(each >= bound - slack for each in sums) / len(sums)
