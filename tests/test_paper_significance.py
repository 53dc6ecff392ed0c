"""The statistics of the result tables: known values, exact identities, and coverage."""

import math

import mpmath
import numpy as np
import pytest

from significance import (
    Sums,
    average,
    bootstrap,
    difference,
    mean_of,
    mean_sd,
    paired_t,
    ratio_of,
    sign_flip,
    student_p,
)


def values(n, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def test_mean_and_deviation_are_the_textbooks():
    mean, sd = mean_sd([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (mean, sd) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    assert math.isnan(mean_sd([1.0])[1])


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, -1.0, 2.776, 9.0])
def test_student_is_the_incomplete_beta_function(freedom, t):
    """The finite sums are easily off by one term."""
    truth = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
    assert student_p(t, freedom) == pytest.approx(float(truth), abs=1e-12)


def test_known_p_values_over_seeds():
    """Student's own data (sleep, 1908): t = 4.062 with 9 degrees of freedom, p = 0.002833."""
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert paired_t(sleep) == pytest.approx(0.002833, abs=1e-6)
    assert sign_flip([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32
    assert sign_flip([1.0, -1.0]) == 1.0
    # Fisher's of Darwin's maize (The Design of Experiments, section 21): 1726 of 32768
    maize = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sign_flip(maize) == pytest.approx(1726 / 32768)


def test_equal_seeds_differ_by_nothing():
    assert paired_t([0.0, 0.0, 0.0]) == sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(paired_t([1.0]))


def test_equal_runs_have_p_one():
    """Rounding in the sums of two equal columns must not look like a difference."""
    own = values(503)
    made = [mean_of(own), mean_of(own.copy())]
    for pair in (made, [average(made), made[0]], [ratio_of(own, own**2 + 1)] * 2):
        found = bootstrap(difference(*pair), resamples=999)
        assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_order_of_items_does_not_matter():
    first, second = values(90), values(90, 1, 0.2)
    order = np.random.default_rng(3).permutation(90)
    found = [
        bootstrap(difference(mean_of(first[rows]), mean_of(second[rows])), resamples=999)
        for rows in (np.arange(90), order)
    ]
    assert vars(found[0]) == pytest.approx(vars(found[1]), rel=1e-9)


def test_the_interval_of_a_mean_is_the_normal_one():
    own = values(400, shift=0.3)
    found = bootstrap(mean_of(own))
    half = 1.96 * mean_sd(own)[1] / math.sqrt(400)
    assert found.value == pytest.approx(own.mean())
    assert [found.low, found.high] == pytest.approx(
        [own.mean() - half, own.mean() + half], abs=6e-3
    )


def test_the_p_agrees_with_the_interval_and_with_student():
    for seed in range(40):
        own = values(60, seed, 0.25)
        found = bootstrap(mean_of(own), resamples=1999)
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)
        assert found.p == pytest.approx(paired_t(own), abs=0.03)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 % of 500 simulated comparisons, the two systems being correlated as real ones are."""
    covered = false_alarms = 0
    for seed in range(500):
        random = np.random.default_rng(seed)
        hard = random.gamma(2.0, 1.0, 100)
        first = hard + random.normal(0, 0.5, 100)
        second = hard + 0.1 + random.normal(0, 0.5, 100)
        gap = difference(mean_of(first), mean_of(second))
        found = bootstrap(gap, resamples=399, seed=seed)
        covered += found.low <= 0.1 <= found.high
        false_alarms += bootstrap(gap, null=0.1, resamples=399, seed=seed).p <= 0.05
    assert 0.92 <= covered / 500 <= 0.975
    assert false_alarms == 500 - covered


def test_a_ratio_weighs_items_by_their_denominators():
    assert ratio_of([1.0, 9.0], [1, 3]).value == 2.5
    assert difference(ratio_of([1.0, 9.0], [1, 3]), mean_of([4.0, 6.0])).value == 2.5
    assert average([mean_of([1.0, 2.0]), mean_of([3.0, 4.0])]).value == 2.5


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="at least 2 items"):
        bootstrap(mean_of([1.0]))
    with pytest.raises(ValueError, match="39 resamples"):
        bootstrap(mean_of([1.0, 2.0]), resamples=20)
    with pytest.raises(ValueError, match="at most 20"):
        sign_flip([1.0] * 21)


def test_large_corpora_are_drawn_in_parts(monkeypatch):
    import significance

    own = Sums(np.ones((50, 1)), lambda sums: sums[:, 0])
    monkeypatch.setattr(significance, "_DRAWS", 500)
    found = bootstrap(own, resamples=99)
    assert (found.low, found.high) == (50.0, 50.0)
