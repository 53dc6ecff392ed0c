"""Laws of teacher-forced scores and calibration, against plain numpy and torch's own functions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tvd_gen import calibration
from tvd_gen.calibration import Calibration, TokenMetrics, score_tokens
from tvd_gen.errors import NonFiniteError

STREAMS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def counted(rows: list[tuple[float, bool]], bins: int = 15) -> Calibration:
    made = Calibration(bins)
    made.update(
        torch.tensor([sure for sure, _ in rows], dtype=torch.float64),
        torch.tensor([right for _, right in rows]),
    )
    return made


def direct(rows: list[tuple[float, bool]], bins: int) -> tuple[float, float]:
    """Guo et al.'s definition, bin by bin, with masks: no histogram and no bucketize."""
    sure = np.array([row[0] for row in rows])
    right = np.array([row[1] for row in rows], float)
    edges = np.linspace(0, 1, bins + 1)
    gaps, weights = [], []
    for i in range(bins):
        inside = (sure > edges[i]) & (sure <= edges[i + 1])
        inside |= (sure == 0) & (i == 0)
        if inside.any():
            gaps.append(abs(right[inside].mean() - sure[inside].mean()))
            weights.append(inside.mean())
    return float(np.dot(gaps, weights)), max(gaps)


@settings(deadline=None)
@given(STREAMS, st.integers(1, 20))
def test_ece_and_mce_are_those_of_the_definition(rows: list[tuple[float, bool]], bins: int) -> None:
    """A wrong edge or weight makes every reported calibration wrong."""
    ece, mce = direct(rows, bins)
    assert counted(rows, bins).ece() == pytest.approx(ece, abs=1e-12)
    assert counted(rows, bins).mce() == pytest.approx(mce, abs=1e-12)


def test_ece_has_the_value_worked_out_by_hand() -> None:
    """The definition and the code could share one mistake."""
    rows = [(0.95, True), (0.95, False), (0.15, False), (0.15, True)]
    # two bins of two: gaps 0.5 - 0.95 and 0.5 - 0.15
    assert counted(rows, 10).ece() == pytest.approx((0.45 + 0.35) / 2)
    assert counted(rows, 10).mce() == pytest.approx(0.45)
    # 0.5 is in the lower of two bins, (0, 0.5]: one bin, gap 0.5 - 0.45
    assert counted([(0.5, True), (0.4, False)], 2).ece() == pytest.approx(0.05)


@settings(deadline=None)
@given(STREAMS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_batches_order_and_merging_change_nothing(rows, random, cut) -> None:
    """The batch size or the number of ranks would change the reported figure."""
    shuffled = list(rows)
    random.shuffle(shuffled)
    first, second = counted(shuffled[:cut]), counted(shuffled[cut:])
    first.add(second)
    assert first.tokens == len(rows)
    assert first.ece() == pytest.approx(counted(rows).ece(), abs=1e-12)


def test_a_calibrated_stream_has_an_ece_near_0_and_an_overconfident_one_has_not() -> None:
    """A constant, or a figure that only falls with accuracy, would pass for calibration."""
    sure = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = torch.rand(200_000, generator=torch.Generator().manual_seed(1)) < sure
    calibrated, sharpened = Calibration(), Calibration()
    calibrated.update(sure, right)
    sharpened.update(sure.sqrt(), right)
    assert calibrated.ece() < 0.005
    assert sharpened.ece() == pytest.approx(1 / 6, abs=0.005)  # the integral of sqrt(x) - x


def test_the_sums_of_ten_million_tokens_stay_exact() -> None:
    """float32 sums stop growing at 2^24 and the ece of a long evaluation drifts."""
    made = Calibration(1)
    sure, right = torch.full((1_000_000,), 0.1, dtype=torch.float64), torch.ones(1_000_000)
    for _ in range(30):
        made.update(sure, right)
    assert made.tokens == 30_000_000
    assert made.ece() == pytest.approx(0.9, abs=1e-9)


def test_the_diagram_holds_every_token_once_between_its_edges() -> None:
    """A confidence of exactly 0, 1 or an edge falls out of the plot."""
    edges = [i / 10 for i in range(11)]
    made = counted([(edge, True) for edge in edges], 10)
    bars = made.diagram()
    assert sum(bar.tokens for bar in bars) == 11
    assert all(bar.low - 1e-12 <= bar.confidence <= bar.high + 1e-12 for bar in bars)
    assert all(bar.accuracy == 1 for bar in bars)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_a_confidence_outside_0_to_1_is_refused(bad: float) -> None:
    """Logits passed for probabilities would be filed in the last bin in silence."""
    with pytest.raises(ValueError, match=r"confidence must be in 0\.\.1"):
        counted([(bad, True)])


def test_no_tokens_other_bins_and_other_lengths_are_refused() -> None:
    """0 / 0 would reach metrics.json as nan."""
    with pytest.raises(ValueError, match="no tokens"):
        Calibration().ece()
    with pytest.raises(ValueError, match="no tokens"):
        TokenMetrics().compute()
    with pytest.raises(ValueError, match="cannot add 10 bins to 15"):
        Calibration().add(Calibration(10))
    with pytest.raises(ValueError, match="2 confidences, 3 correct"):
        Calibration().update(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="at least 1"):
        Calibration(0)


def drawn(rows: int, words: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(rows)
    logits = 5 * torch.randn(rows, words, generator=source, dtype=torch.float64)
    return logits.to(dtype), torch.randint(words, (rows,), generator=source)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numbers", [1, 1000, 2**22])
def test_scores_are_those_of_log_softmax_whatever_the_chunks(
    dtype: torch.dtype, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that lose or swap rows, or half precision kept inside, shift every figure."""
    monkeypatch.setattr(calibration, "_CHUNK_NUMBERS", numbers)
    logits, targets = drawn(97, 31, dtype)
    truth = torch.log_softmax(logits.double(), 1)
    scores = score_tokens(logits, targets)
    torch.testing.assert_close(
        scores.logp.double(), truth[range(97), targets], atol=5e-6, rtol=1e-6
    )
    highest = truth.max(1)
    torch.testing.assert_close(
        scores.confidence.double(), highest.values.exp(), atol=5e-6, rtol=1e-6
    )
    assert scores.logp.dtype == scores.confidence.dtype == torch.float32
    assert torch.equal(scores.correct, highest.indices == targets)


def test_no_float32_block_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float32 copy of bf16 logits is what runs an evaluation out of memory."""
    blocks, score_rows = [], calibration._score_rows
    monkeypatch.setattr(calibration, "_CHUNK_NUMBERS", 100)
    monkeypatch.setattr(
        calibration, "_score_rows", lambda x, y: blocks.append(x.numel()) or score_rows(x, y)
    )
    score_tokens(*drawn(97, 31, torch.bfloat16))
    assert max(blocks) <= 100
    assert sum(blocks) == 97 * 31


def test_ignored_targets_are_left_out_wherever_they_stand() -> None:
    """Padding that counts as tokens lowers perplexity and fakes calibration."""
    logits, targets = drawn(20, 7, torch.float32)
    kept = torch.arange(20) % 3 > 0
    masked = torch.where(kept, targets, -100)
    some, all_of_them = score_tokens(logits, masked), score_tokens(logits[kept], targets[kept])
    assert all(torch.equal(a, b) for a, b in zip(some, all_of_them, strict=True))
    assert [len(part) for part in score_tokens(logits, torch.full((20,), -100))] == [0, 0, 0]


def test_scores_build_no_graph_and_leave_the_logits_alone() -> None:
    """An evaluation that keeps graphs runs out of memory."""
    logits, targets = drawn(4, 5, torch.float32)
    before = logits.clone()
    assert not score_tokens(logits.requires_grad_(), targets).logp.requires_grad
    assert torch.equal(logits.detach(), before)


def test_a_sure_model_has_log_p_0_and_confidence_1_at_most() -> None:
    """A probability that rounding lifts over 1 would be refused by the histogram."""
    logits = torch.full((64, 300), 17.3)
    logits[torch.arange(64), torch.arange(64)] += torch.linspace(5, 200, 64)
    scores = score_tokens(logits, torch.arange(64))
    assert scores.logp.max() <= 0
    assert scores.confidence.max() <= 1
    assert scores.correct.all()
    Calibration().update(scores.confidence, scores.correct)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """A (B, T, V) batch read as (N, V) would score the wrong axis."""
    with pytest.raises(ValueError, match=r"logits \(N, V\) and targets \(N,\), got \(2, 3, 4\)"):
        score_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))


def test_token_metrics_are_token_weighted_and_match_cross_entropy() -> None:
    """A mean over batches changes with the batch size; perplexities would not compare."""
    logits, targets = drawn(50, 11, torch.float32)
    whole, parts = TokenMetrics(), TokenMetrics()
    whole.update(score_tokens(logits, targets))
    for rows in torch.arange(50).split([1, 30, 19]):
        part = TokenMetrics()
        part.update(score_tokens(logits[rows], targets[rows]))
        parts.add(part)
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-12)
    cross_entropy = float(torch.nn.functional.cross_entropy(logits.double(), targets))
    assert whole.compute()["nll"] == pytest.approx(cross_entropy, abs=1e-6)
    assert whole.compute()["perplexity"] == pytest.approx(math.exp(cross_entropy), rel=1e-5)
    accuracy = float((logits.argmax(1) == targets).double().mean())
    assert whole.compute()["accuracy"] == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_stop_the_evaluation(bad: float) -> None:
    """nan in metrics.json is no JSON, and a nan perplexity is no result."""
    logits, targets = drawn(3, 4, torch.float32)
    logits[1, 2] = bad
    with pytest.raises(NonFiniteError, match="non-finite logits"):
        TokenMetrics().update(score_tokens(logits, targets))


def test_an_absurd_nll_gives_a_finite_perplexity() -> None:
    """exp(1000) overflows and the evaluation dies after its work is done."""
    made = TokenMetrics()
    made.update(score_tokens(torch.tensor([[0.0, 1000.0]]), torch.tensor([0])))
    assert made.compute()["nll"] == pytest.approx(1000)
    assert math.isfinite(made.compute()["perplexity"])
