"""The GPU's row program equals the CPU's. Without a GPU its kernels run in Triton's interpreter."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tvd_gen import (
    CrossEntropy,
    TaiLr,
    TokenObjective,
    linear_objective_loss,
    linear_target_logp,
)
from tvd_gen.head.problem import Given, Options
from tvd_gen.head.rows import Rows, RowStats, TileProgram

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as _patch:
    if DEVICE == "cpu":  # asked once, when the kernels are decorated
        _patch.setenv("TRITON_INTERPRET", "1")
    kernels = importlib.import_module("tvd_gen.head.triton")

CASES = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.125},
    "softcap": {"softcap": 5.0},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "weights": {"weights": "many"},
    "one weight": {"weights": "one", "label_smoothing": 0.1},
    "centre": {"centre": True},
    "budget": {"weights": "many", "row_budget": 0.01},
}
ALL = {k: v for case in CASES.values() for k, v in case.items()}
ALL |= {"scale": 1.7, "weights": "many"}
CASES |= {
    "all": ALL,
    "all but the cap": ALL | {"softcap": None},
    "all but the centre": ALL | {"centre": False},
}
TAILR = TaiLr(0.3, 0.2)
N, V = 6, 97  # the interpreter's blocks have 64 columns


class _Problem(NamedTuple):
    rows: Rows
    bias: Tensor | None
    options: Options

    def to(self, device: str, dtype: torch.dtype | None = None) -> "_Problem":
        """A copy, its logits too."""

        def moved(part):
            if part is None:
                return None
            if isinstance(part, Given):
                return Given(*map(moved, part))
            return part.to(device, dtype if part.is_floating_point() else None, copy=True)

        return _Problem(Rows(*map(moved, self.rows)), moved(self.bias), self.options)


def _problem(dtype, case, objective=TAILR, vocabulary=V):
    case, wide = dict(case), torch.promote_types(dtype, torch.float32)
    make = torch.Generator().manual_seed(0)
    logits = (torch.randn(N, vocabulary, generator=make) * 4).to(dtype)
    targets = torch.randint(vocabulary, (N,), generator=make)
    targets[0] = logits[0].argmax()
    weights = torch.rand(N, generator=make, dtype=wide)
    weights = {None: None, "one": weights[0], "many": weights}[case.pop("weights", None)]
    bias = torch.randn(vocabulary, generator=make, dtype=wide)
    bias = bias if case.pop("bias", False) else None
    centre = rest = None
    if case.pop("centre", False):
        centre = torch.randn(N, generator=make, dtype=wide)
        rest = logits.gather(1, targets[:, None])[:, 0].to(wide) + 0.3  # not the rounded one
    return _Problem(
        Rows(logits, Given(targets, weights), centre, rest), bias, Options(objective, **case)
    )


def _answer(program, problem: _Problem, slopes: Tensor | None) -> tuple[RowStats, Tensor | None]:
    rows, bias, options = problem
    wide = torch.promote_types(rows.logits.dtype, torch.float32)
    like = rows.logits.new_empty(0, dtype=wide)
    stats = program(*rows.logits.shape, bias, options, like)(rows, slopes)
    cpu = [None if part is None else part.cpu() for part in (*stats, slopes)]
    return RowStats(*cpu[:-1]), cpu[-1]


def _apart(program, problem: _Problem) -> tuple[RowStats, Tensor]:
    """The slopes in a tensor of their own, in the dtype that the head gives it."""
    narrow = torch.float32 if problem.rows.logits.dtype == torch.float16 else None
    slopes = torch.full_like(problem.rows.logits, float("nan"), dtype=narrow)
    return _answer(program, problem, slopes)


def _assert_as_on_the_cpu(problem: _Problem) -> None:
    """Against the CPU's program in float64, on the same rounded logits."""
    truth, true_slopes = _apart(TileProgram, problem.to("cpu", torch.float64))
    stats, slopes = _apart(kernels.TritonProgram, problem.to(DEVICE))
    wide = stats.logp.dtype
    rtol, atol = (1e-9, 1e-12) if wide == torch.float64 else (1e-5, 1e-5)
    for name, got, expected in zip(stats._fields, stats, truth, strict=True):
        assert (got is None) == (expected is None), name
        if got is not None:
            assert got.dtype == (torch.int64 if name == "top" else wide)
            torch.testing.assert_close(got, expected.to(got.dtype), rtol=rtol, atol=atol)
    # A whole unit in the last place: the interpreter cuts bfloat16 off where a GPU rounds it.
    rtol = max(rtol, torch.finfo(slopes.dtype).eps)
    torch.testing.assert_close(slopes.double(), true_slopes, rtol=rtol, atol=atol / 10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numbers_and_slopes_are_those_of_the_cpus_program(case):
    """A GPU would train another loss than the one that is tested on a CPU."""
    _assert_as_on_the_cpu(_problem(torch.float32, case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["plain", "all", "all but the cap"])
def test_logits_of_every_precision(name, dtype):
    """Maths in the logits' own half precision would lose the small probabilities."""
    _assert_as_on_the_cpu(_problem(dtype, CASES[name]))


@dataclass(frozen=True)
class _Squared(TokenObjective):
    """A user's own objective: no weight given."""

    def loss(self, logp):
        return (1 - logp.exp()) ** 2 / 2


@pytest.mark.parametrize("objective", [CrossEntropy(), TaiLr(1e-7, 0.2), _Squared()], ids=repr)
def test_any_objective(objective):
    """A user's own objective must not need a kernel of its own."""
    _assert_as_on_the_cpu(_problem(torch.float32, ALL, objective))


SIZES = [1, 3, 64, 700] + ([8192, 50_257, 128_256] if DEVICE == "cuda" else [])


@pytest.mark.parametrize("vocabulary", SIZES)
def test_any_vocabulary(vocabulary):
    """No vocabulary is a multiple of a block for the tests' sake."""
    _assert_as_on_the_cpu(_problem(torch.float32, ALL, vocabulary=vocabulary))


@pytest.mark.parametrize("name", ["all", "all but the cap"])
def test_slopes_are_the_derivatives_of_the_loss(name):
    """Two programs by one hand may be wrong in the same way; autograd is another's."""
    problem = _problem(torch.float64, CASES[name])
    (logits, (targets, weights, *_), centre, rest, *_), bias, options = problem
    own = targets[:, None]
    x = (logits.scatter(1, own, rest[:, None]) + centre[:, None] + bias).requires_grad_()
    final = x * options.scale
    if options.softcap is not None:
        final = options.softcap * torch.tanh(final / options.softcap)
    logps, lse = final.log_softmax(-1), final.logsumexp(-1)
    losses = 0.9 * options.objective.loss(logps.gather(1, own)[:, 0])
    losses = losses - 0.1 * logps.mean(-1) + 0.01 * lse**2
    (expected,) = torch.autograd.grad((losses * weights).sum(), x)
    stats, slopes = _apart(kernels.TritonProgram, problem.to(DEVICE))
    torch.testing.assert_close(slopes, expected)
    torch.testing.assert_close(stats.mass, expected.abs().sum(-1))
    torch.testing.assert_close(stats.lse, lse.detach())
    torch.testing.assert_close(stats.entropy, -(logps.exp() * logps).sum(-1).detach())


def test_the_first_of_equal_maxima_is_the_top():
    """Half precision makes logits equal, and backends would differ in accuracy."""
    problem = _problem(torch.bfloat16, {}, vocabulary=700)
    for row, places in enumerate([(699, 3), (131, 66, 130), (64, 63), (0, 64), (69, 5, 4)]):
        problem.rows.logits[row, list(places)] = 50.0
    problem.rows.logits[5] = -7.0
    stats, _ = _answer(kernels.TritonProgram, problem.to(DEVICE), None)
    assert stats.top.tolist() == [3, 66, 63, 0, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slopes_may_take_the_logits_place(dtype):
    """The head has no second chunk; a logit written over before it is read is lost."""
    problem = _problem(dtype, ALL, vocabulary=301)
    apart = _apart(kernels.TritonProgram, problem.to(DEVICE))
    moved = problem.to(DEVICE)
    in_place = _answer(kernels.TritonProgram, moved, moved.rows.logits)
    torch.testing.assert_close(in_place, apart, rtol=0, atol=0)


def test_without_slopes_the_logits_stay_and_no_mass_is_made():
    """An evaluation would pay for gradients."""
    problem = _problem(torch.float32, ALL)
    moved = problem.to(DEVICE)
    stats, _ = _answer(kernels.TritonProgram, moved, None)
    assert stats.mass is None
    assert torch.equal(moved.rows.logits.cpu(), problem.rows.logits)
    with_slopes, _ = _apart(kernels.TritonProgram, problem.to(DEVICE))
    torch.testing.assert_close(stats, with_slopes._replace(mass=None), rtol=0, atol=0)


def test_nothing_beside_the_rows_is_used_or_written():
    """Chunks are slices of one buffer, targets may be a column of another."""
    problem = _problem(torch.float32, ALL)
    expected = _apart(kernels.TritonProgram, problem.to(DEVICE))
    moved = problem.to(DEVICE)
    logits, out = (torch.full((N, V + width), float("nan"), device=DEVICE) for width in (5, 40))
    logits[:, :V] = moved.rows.logits
    targets = torch.stack([moved.rows.given.targets, moved.rows.given.targets * 0], 1)[:, 0]
    given = moved.rows.given._replace(targets=targets)
    rows = moved.rows._replace(logits=logits[:, :V], given=given)
    got = _answer(kernels.TritonProgram, moved._replace(rows=rows), out[:, :V])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert out[:, V:].isnan().all()


def test_a_nan_is_not_lost_and_a_banned_token_is_no_nan():
    """A diverged model must show in the loss; a bias of -inf bans a token, and is no divergence."""
    problem = _problem(torch.float32, {"bias": True})
    rows, bias = problem.rows, problem.bias
    banned = (rows.given.targets.max() + 1) % V
    assert banned not in rows.given.targets
    bias[banned] = -float("inf")
    rows.logits[1, 3] = float("nan")
    rows.given.targets[2], rows.given.targets[3] = -100, V
    stats, slopes = _apart(kernels.TritonProgram, problem.to(DEVICE))
    assert stats.logp.isnan().tolist() == [False, True, True, True, False, False]
    assert slopes[1].isnan().all()
    assert torch.isfinite(stats.entropy[[0, 4, 5]]).all()
    assert torch.isfinite(slopes[[0, 4, 5]]).all()
    assert (slopes[[0, 4, 5], banned] == 0).all()


def test_logp_is_never_above_zero():
    """log1p(-p) of an objective would be nan."""
    problem = _problem(torch.float32, {"softcap": 30.0, "scale": 0.3})
    problem.rows.logits[torch.arange(N), problem.rows.given.targets] = torch.linspace(
        90.0, 250.0, N
    )
    stats, _ = _answer(kernels.TritonProgram, problem.to(DEVICE), None)
    assert (stats.logp <= 0).all()


@pytest.mark.skipif(DEVICE == "cuda", reason="there the tuner itself has run")
def test_tuning_leaves_the_logits_for_the_run_that_counts(monkeypatch):
    """Each measurement writes slopes over the logits: the next would read slopes."""
    problem = _problem(torch.float32, ALL)
    expected = _apart(kernels.TritonProgram, problem.to(DEVICE))
    configs = [kernels.triton.Config({"BLOCK": block}) for block in (64, 128)]
    measured = []

    def measure(call, quantiles):
        measured.append(call())
        return [1.0, 1.0, 1.0]

    for kernel in (kernels._stats_kernel, kernels._slope_kernel):
        monkeypatch.setattr(kernel, "configs", configs)
        monkeypatch.setattr(kernel, "cache", {})
        monkeypatch.setitem(vars(kernel), "do_bench", measure)
    clone, copied = Tensor.clone, []
    monkeypatch.setattr(
        Tensor, "clone", lambda self, *_, **__: copied.append(self.shape) or clone(self)
    )
    moved = problem.to(DEVICE)
    in_place = _answer(kernels.TritonProgram, moved, moved.rows.logits)
    assert len(measured) == 4
    assert set(copied) == {(kernels.MEASURED_ROWS, V)}  # not all rows of a chunk
    torch.testing.assert_close(in_place, expected)


def test_deterministic_algorithms_choose_no_block_by_the_clock():
    """Two runs of one seed would differ in the last digits."""
    torch.use_deterministic_algorithms(True)
    try:
        assert kernels._reproducible([1, 2, 3], {}, V=V) == [1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernels._reproducible([1, 2, 3], {}, V=V) == [1, 2, 3]


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    """Triton's own error speaks of a pointer argument."""
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match="needs a GPU"):
        _answer(kernels.TritonProgram, _problem(torch.float32, {}), None)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language import float32
from tvd_gen.head.triton import CONFIGS, _slope_kernel, _stats_kernel

bare = dict(bias=None, centre=None, rest=None, even=None, mass=None)
bare |= dict(V=50257, SCALE=1.0, CAP=None, MEAN=False, WIDE=float32, **CONFIGS[0].kwargs)
full = dict(SCALE=1.7, CAP=30.0, MEAN=True)
full |= {name: "*fp32" for name in ("bias", "centre", "rest", "even", "mass")}
types = {name: "*fp32" for name in ("numbers", "best", "rate", "pull")}
types |= dict(stride="i32", slope_stride="i32", count="i32", targets="*i64", tops="*i64")
for logits in ("*bf16", "*fp32"):
    for case in (bare, bare | full):
        for kernel in (_stats_kernel, _slope_kernel):
            given = types | case | dict(logits=logits, slopes=logits)
            given = {name: given[name] for name in kernel.arg_names}
            fixed = {k: v for k, v in given.items() if not isinstance(v, str)}
            signature = {k: "constexpr" if k in fixed else v for k, v in given.items()}
            source = ASTSource(kernel.fn, signature, fixed)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            print(len(made.asm["cubin"]))
"""


def test_the_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    """The interpreter takes Python that the compiler refuses; no GPU is needed to see that."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == 8
    assert min(sizes) > 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_whole_head_on_the_kernels_is_the_head(dtype):
    """Each part right, and put together wrong, trains another loss."""
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 8, generator=make).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(V, 8, generator=make).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(V, (9,), generator=make).to(DEVICE)
    targets[3] = -100
    low = tuple(torch.randn(n, 2, generator=make).to(DEVICE, dtype) for n in (9, V))
    options = {"low_rank": low, "softcap": 20.0, "z_loss": 0.01}
    found = []
    for backend in ("reference", "triton"):
        out = linear_objective_loss(hidden, weight, targets, TAILR, backend=backend, **options)
        logp = linear_target_logp(hidden, weight, targets, backend=backend, softcap=20.0)
        grads = torch.autograd.grad(out.loss + logp.sum(), [hidden, weight])
        found.append([out.sums(), logp, *(grad.float() for grad in grads)])
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=rtol, atol=rtol * 2)
