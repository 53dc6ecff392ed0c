"""Distances of known distributions: by definition, by their bounds, and by enumeration."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tvd_gen.metrics.distances import sequence_tvd, token_distances


def distributions(rows, words, seed, scale=3.0):
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, words, generator=make, dtype=torch.float64) * scale
    return logits.log_softmax(2).unbind(0)


def test_token_distances_are_their_definitions():
    logp, logq = distributions(7, 11, seed=0)
    found = token_distances(logp, logq)
    p, q = logp.exp(), logq.exp()
    torch.testing.assert_close(found.tvd, torch.stack([
        sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 2 for x, y in zip(p, q, strict=True)
    ]))  # fmt: skip
    torch.testing.assert_close(found.kl, F.kl_div(logq, p, reduction="none").sum(1))
    torch.testing.assert_close(found.reverse_kl, F.kl_div(logp, q, reduction="none").sum(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 30.0))
def test_pinsker_symmetry_and_identity(seed, scale):
    """TVD <= sqrt(KL / 2), TVD(p, q) = TVD(q, p), and nothing is far from itself."""
    logp, logq = distributions(5, 8, seed, scale)
    there, back = token_distances(logp, logq), token_distances(logq, logp)
    assert (there.tvd <= (there.kl / 2).sqrt() + 1e-12).all()
    assert ((there.tvd >= 0) & (there.tvd <= 1 + 1e-12)).all()
    torch.testing.assert_close(there.tvd, back.tvd)
    torch.testing.assert_close(there.kl, back.reverse_kl)
    assert all(not each.abs().max() for each in token_distances(logp, logp))


def test_a_forbidden_word_counts_nothing_and_one_that_only_q_forbids_is_infinitely_far():
    logp = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    logq = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]).log()
    found = token_distances(logp, logq)
    assert found.tvd.tolist() == pytest.approx([0.25, 0.5])
    assert found.kl.tolist() == pytest.approx([math.log(2) / 2 + math.log(2 / 3) / 2, math.log(2)])
    assert found.reverse_kl[1] == math.inf
    assert torch.isfinite(found.reverse_kl[0])


def chain_logp(steps, length=4):
    """The log-probability of every sequence of a Markov chain that starts at word 0."""
    paths = itertools.product(range(len(steps)), repeat=length)
    return torch.stack([sum(steps[a, b] for a, b in itertools.pairwise((0, *y))) for y in paths])


def test_sequence_tvd_has_the_sum_over_all_sequences_for_its_expectation():
    """The oracle is not sampled: every sequence of two Markov chains is written out."""
    logp, logq = map(chain_logp, distributions(3, 3, seed=1, scale=1.0))
    exact = (logp.exp() - logq.exp()).abs().sum().item() / 2
    make = torch.Generator().manual_seed(0)
    for a, b in ((logp, logq), (logq, logp)):
        expectation = (a.exp() * -torch.expm1((b - a).clamp(max=0))).sum()
        assert expectation.item() == pytest.approx(exact)
        drawn = torch.multinomial(a.exp(), 200_000, replacement=True, generator=make)
        found = sequence_tvd(a[drawn], b[drawn])
        assert abs(found.mean - exact) < 4 * found.standard_error
        assert found.standard_error < 0.002


def test_sequence_tvd_reaches_its_ends():
    logp = torch.tensor([-40.0, -200.0])
    assert sequence_tvd(logp, logp).mean == 0.0
    assert sequence_tvd(logp, logp - math.inf).mean == 1.0
    assert sequence_tvd(logp, logp + 5).mean == 0.0
    small = sequence_tvd(logp, logp.double() - 1e-12).mean
    assert small == pytest.approx(1e-12, rel=1e-2)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((3,), (3,))])
def test_token_distances_refuse_other_shapes(shapes):
    with pytest.raises(ValueError, match="two"):
        token_distances(*map(torch.zeros, shapes))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((1,), (1,)), ((2, 2), (2, 2))])
def test_sequence_tvd_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="2 samples"):
        sequence_tvd(*map(torch.zeros, shapes))
