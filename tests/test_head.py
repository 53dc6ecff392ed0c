"""The head: the fast programs equal the slow one in every precision, and torch where torch has
it."""

import itertools
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tvd_gen import (
    CrossEntropy,
    GammaCrossEntropyLoss,
    TaiLr,
    TokenObjective,
    linear_objective_loss,
    linear_target_logp,
    objective_loss,
    objectives,
)
from tvd_gen.head import BACKENDS, chunked, rows
from tvd_gen.head.problem import Given, Operands, Options
from tvd_gen.objectives import DFT, GCE, Focal, MixCE, Poly1, TaylorCE, Threshold

OBJECTIVES = [
    CrossEntropy(), TaiLr(1e-7, 0.2), TaiLr(0.1, 0.3), TaiLr(0.8, 0.2), DFT(), GCE(0.7), Focal(2.0),
    MixCE(0.3), Poly1(1.0), TaylorCE(2), Threshold(0.1),
]  # fmt: skip
OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.125},
    "softcap": {"softcap": 5.0},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-2},
    "weights": {"token_weights": True},
    "low rank": {"low_rank": True},
}
OPTIONS["all"] = {**{k: v for o in OPTIONS.values() for k, v in o.items()}, "scale": 1.7}
# V is no multiple of anything, and 700 rows are three chunks at the smallest chunk of 256.
N, D, V = 700, 24, 301


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks of several tiles, the last of them shorter."""
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 1)
    monkeypatch.setattr(rows, "tile_rows", lambda *_: 100)


def _inputs(dtype, options, ignored=0.3):
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=make).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=make) * 0.6).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=make)
    targets[torch.rand(N, generator=make) < ignored] = -100
    options = dict(options)
    if "bias" in options:
        options["bias"] = torch.randn(V, generator=make).to(dtype).requires_grad_()
    if "token_weights" in options:
        options["token_weights"] = torch.rand(N, generator=make)
    if "low_rank" in options:
        sizes = ((N, 3), (V, 3))
        options["low_rank"] = tuple(
            torch.randn(size, generator=make).to(dtype).requires_grad_() for size in sizes
        )
    return hidden, weight, targets, options


def _dense_logits(hidden, weight, *, bias=None, low_rank=None, scale=1.0, softcap=None):
    """The docstring's logits, on whatever dtype they are given."""
    logits = F.linear(hidden, weight, bias)
    logits = (logits if low_rank is None else logits + low_rank[0] @ low_rank[1].T) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _dense(hidden, weight, targets, objective, **options):
    """The docstring's slow program."""
    names = ("bias", "low_rank", "scale", "softcap")
    logits = _dense_logits(hidden, weight, **{k: v for k, v in options.items() if k in names})
    rest = {k: v for k, v in options.items() if k not in names}
    return objective_loss(logits, targets, objective, reduction="sum", **rest)


def _leaves(hidden, weight, options):
    return [hidden, weight, *([options["bias"]] if "bias" in options else []),
            *options.get("low_rank", ())]  # fmt: skip


def _gradients(loss, hidden, weight, options, upstream=0.37):
    upstream = upstream if torch.is_tensor(upstream) else torch.full_like(loss, upstream)
    return torch.autograd.grad(loss, _leaves(hidden, weight, options), upstream)


def _double(hidden, weight, options):
    def wide(value):
        if isinstance(value, tuple):
            return tuple(map(wide, value))
        if not torch.is_tensor(value):
            return value
        return value.detach().double().requires_grad_(value.requires_grad)

    return wide(hidden), wide(weight), {k: wide(v) for k, v in options.items()}


def _error(got, truth):
    return ((got.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()


def test_the_laws_are_of_every_token_objective():
    ours = {cls for cls in objectives.OBJECTIVES.values() if issubclass(cls, TokenObjective)}
    assert {type(objective) for objective in OBJECTIVES} == ours


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_loss_and_all_gradients_equal_the_dense_program_in_float64(objective, options, backend):
    """The gradients are written by hand; a wrong factor trains another objective in silence."""
    hidden, weight, targets, options = _inputs(torch.float64, options)
    truth = _dense(hidden, weight, targets, objective, **options)
    out = linear_objective_loss(hidden, weight, targets, objective, backend=backend, **options)
    torch.testing.assert_close(out.loss, truth, rtol=1e-12, atol=0)
    got = _gradients(out.loss, hidden, weight, options)
    for left, right in zip(got, _gradients(truth, hidden, weight, options), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("objective", [CrossEntropy(), TaiLr(0.8, 0.2)], ids=repr)
def test_the_chunked_head_is_no_less_exact_than_the_plain_path(objective, options, dtype):
    """Speed and memory may not be bought with precision."""
    hidden, weight, targets, options = _inputs(dtype, options)
    wide_hidden, wide_weight, wide_options = _double(hidden, weight, options)
    truth = _dense(wide_hidden, wide_weight, targets, objective, **wide_options)
    exact = [truth.detach(), *_gradients(truth, wide_hidden, wide_weight, wide_options)]
    errors = {}
    for name, program in (("plain", _dense), ("chunked", linear_objective_loss)):
        out = program(hidden, weight, targets, objective, **options)
        loss = out if torch.is_tensor(out) else out.loss
        got = [loss.detach(), *_gradients(loss, hidden, weight, options)]
        errors[name] = [_error(g, t) for g, t in zip(got, exact, strict=True)]
    ulp = torch.finfo(dtype).eps
    for plain, ours in zip(errors["plain"], errors["chunked"], strict=True):
        assert ours <= plain + ulp, errors


@pytest.mark.parametrize("upstream", [1 / 700, 2.0**14 / 700])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_weights_survive_half_precision_and_a_loss_scale(dtype, upstream):
    """Gradients made in forward are made before the loss scale: fp16 would flush them to 0."""
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 24, generator=make).to(dtype).requires_grad_()
    weight = (torch.randn(5000, 24, generator=make) * 0.3).to(dtype).requires_grad_()
    targets = torch.randint(5000, (64,), generator=make)
    objective = TaiLr(1.0)  # weight p, about 1 / 5000
    wide_hidden, wide_weight, _ = _double(hidden, weight, {})
    truth = _dense(wide_hidden, wide_weight, targets, objective)
    exact = _gradients(truth, wide_hidden, wide_weight, {}, upstream)
    out = linear_objective_loss(hidden, weight, targets, objective)
    ours = _gradients(out.loss, hidden, weight, {}, upstream)
    plain = _gradients(_dense(hidden, weight, targets, objective), hidden, weight, {}, upstream)
    for got, dense, right in zip(ours, plain, exact, strict=True):
        assert torch.isfinite(got).all()
        assert _error(got, right) <= _error(dense, right) + torch.finfo(dtype).eps


def test_the_number_of_tokens_is_not_rounded_to_bf16():
    """1 / 641 rounded to bf16 is off by 0.23 percent, and so would be the whole gradient."""
    hidden, weight, targets, _ = _inputs(torch.bfloat16, {})
    loss = linear_objective_loss(hidden, weight, targets, TaiLr(0.1)).loss
    once = _gradients(loss, hidden, weight, {}, 1.0)
    loss = linear_objective_loss(hidden, weight, targets, TaiLr(0.1)).loss
    mean = _gradients(loss, hidden, weight, {}, 1 / 641)
    for whole, part in zip(once, mean, strict=True):
        ratio = (part.double() * whole).sum() / (whole.double() * whole).sum()
        assert ratio.item() * 641 == pytest.approx(1.0, abs=5e-4)


def test_the_loss_may_be_divided_in_place():
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1))
    loss = out.loss
    loss /= out.tokens
    loss.backward()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_sums_beside_the_loss_are_what_they_say(backend):
    hidden, weight, targets, _ = _inputs(torch.float64, {})
    objective = TaiLr(0.8, 0.2)
    weights = torch.rand(N)
    out = linear_objective_loss(
        hidden, weight, targets, objective, backend=backend, token_weights=weights
    )
    kept = targets != -100
    logits = (hidden @ weight.T)[kept].detach()
    logp = -F.cross_entropy(logits, targets[kept], reduction="none")
    floored = logp.exp() < 0.2 * 0.8 / (1 - 0.2 * 0.2)
    expected = [-logp.sum(), kept.sum(), (logits.argmax(-1) == targets[kept]).sum()]
    expected += [objective.weight(logp).sum(), floored.sum()]
    expected += [torch.distributions.Categorical(logits=logits).entropy().sum()]
    got = [getattr(out, f.name) for f in fields(out)][1:]
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left.double(), right.double())
        assert not left.requires_grad
    assert 0 < out.floored < out.tokens
    torch.testing.assert_close(out.sums()[1:], torch.stack([e.double() for e in expected]))


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_only_inputs_that_ask_get_a_gradient(wanted):
    """A frozen head or body must cost no gradient, and break no graph."""
    hidden, weight, targets, options = _inputs(torch.float32, {"bias": True})
    leaves = [hidden, weight, options["bias"]]
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)
    loss = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), bias=options["bias"]).loss
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)


def test_without_grad_no_gradient_work_is_done(monkeypatch):
    """Evaluation at three times its price would go unseen."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    monkeypatch.setattr(rows.TileProgram, "_slopes", pytest.fail)
    with torch.no_grad():
        linear_objective_loss(hidden, weight, targets, TaiLr(0.1))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_batch_with_no_target_is_zero_with_zero_gradients(backend):
    """0 / 0 in one packed batch would end the run."""
    hidden, weight, _, _ = _inputs(torch.float32, {})
    targets = torch.full((N,), -100)
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), backend=backend)
    assert out.loss.item() == 0
    assert out.tokens.item() == 0
    out.loss.backward()
    assert hidden.grad.abs().sum() == 0
    assert weight.grad.abs().sum() == 0


def test_ignored_rows_are_never_read():
    """Padding may hold anything; 0 * nan is nan."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    clean = linear_objective_loss(hidden, weight, targets, TaiLr(0.1)).loss
    with torch.no_grad():
        hidden[targets == -100] = float("nan")
    dirty = linear_objective_loss(hidden, weight, targets, TaiLr(0.1)).loss
    assert torch.equal(clean, dirty)
    dirty.backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_master_weights_get_full_precision_gradients(dtype):
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    grads = []
    for program in (_dense, linear_objective_loss):
        with torch.autocast("cpu", dtype=dtype):
            out = program(hidden, weight, targets, TaiLr(0.1))
        loss = out if torch.is_tensor(out) else out.loss
        assert loss.dtype == torch.float32
        grads.append(torch.autograd.grad(loss, [hidden, weight]))
    for plain, ours in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        assert _error(ours, plain.double()) < 4 * torch.finfo(dtype).eps


@dataclass(frozen=True)
class _Squared(TokenObjective):
    """A user's own objective: no weight given, no registration."""

    def loss(self, logp):
        return (1 - logp.exp()) ** 2 / 2


def test_a_users_own_objective_needs_only_a_loss():
    hidden, weight, targets, _ = _inputs(torch.float64, {})
    truth = _dense(hidden, weight, targets, _Squared())
    loss = linear_objective_loss(hidden, weight, targets, _Squared()).loss
    got, expected = (_gradients(x, hidden, weight, {}) for x in (loss, truth))
    torch.testing.assert_close(got, expected)
    with torch.inference_mode():
        linear_objective_loss(hidden, weight, targets, _Squared())


class _Products(torch.utils._python_dispatch.TorchDispatchMode):
    """How many matrix products are made within."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm,
                                              torch.ops.aten.addmm_)  # fmt: skip
        return func(*args, **(kwargs or {}))


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The size of the largest tensor that is made within."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(x):
                self.size = max(self.size, x.numel())
        return out


def _is_one_chunk(numbers, targets):
    """Of two; its rows are a little apart, for each to begin at an even place."""
    rows = -(-int((targets != -100).sum()) // 2)
    return rows * V <= numbers < rows * (V + 64)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_no_tensor_of_rows_by_vocabulary_is_made(options):
    """The promise of the head: memory of one chunk, not of all logits; not with an adapter."""
    hidden, weight, targets, options = _inputs(torch.float32, options)
    with _Largest() as largest:
        linear_objective_loss(hidden, weight, targets, TaiLr(0.1), **options).loss.backward()
    assert _is_one_chunk(largest.size, targets)


LARGE = {"rows": 4096, "width": 4096, "weights": torch.bfloat16, "dtype": torch.bfloat16}
LARGE |= {"wanted": True, "reference": None}


GPU_CASES = {
    "as wide": ({}, 1),
    "more rows": ({"rows": 16_384}, 4),
    "narrow": ({"width": 768}, 2),
    "frozen": ({"wanted": False}, 2),
    "autocast": ({"weights": torch.float32}, 2),
    "float16": ({"weights": torch.float16, "dtype": torch.float16}, 2),
    "reference": ({"reference": lambda places: places}, 2),
}


@pytest.mark.parametrize(("change", "chunks"), GPU_CASES.values(), ids=GPU_CASES.keys())
def test_a_gpus_chunk_has_as_many_rows_as_cost_nothing(change, chunks):
    """With a gradient of the weight that is summed in float32 and rounded: as many as the weight is
    wide. Wherever there is no such peak to hide behind, longer chunks would take more memory."""
    case = LARGE | change
    with FakeTensorMode():
        make = {"device": "cuda", "dtype": case["weights"]}
        hidden, weight = (torch.empty(n, case["width"], **make) for n in (case["rows"], 128_256))
        targets = torch.empty(case["rows"], dtype=torch.long, device="cuda")
        options = Options(CrossEntropy(), reference=case["reference"])
        wanted = [True, case["wanted"], False, False, False]
        operands, given = Operands(hidden, weight), Given(targets)
        head = chunked._Head(operands, given, options, wanted, case["dtype"])
    assert len(head.chunks) == chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_logits_begin_at_even_places(dtype, monkeypatch):
    """A GPU's fast products want it; words number 50,257 or 50,265."""
    made, scratch = [], chunked._Head._scratch

    def noted(*args):
        made.append(scratch(*args))
        return made[-1]

    monkeypatch.setattr(chunked._Head, "_scratch", noted)
    hidden, weight, targets, _ = _inputs(dtype, {})
    linear_objective_loss(hidden, weight, targets, TaiLr(0.1)).loss.backward()
    assert made
    for each in made:
        assert each.shape[1] == V
        assert each.stride(0) * each.itemsize % 128 == 0


def test_one_token_weight_for_all_is_the_token_mean():
    """The trainers divide before backward; the gradient is then rounded once, not twice."""
    hidden, weight, targets, _ = _inputs(torch.float64, {})
    mean = 1.0 / (targets != -100).sum()
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), token_weights=mean)
    truth = _dense(hidden, weight, targets, TaiLr(0.1)) * mean
    torch.testing.assert_close(out.loss, truth)
    got, expected = (_gradients(x, hidden, weight, {}) for x in (out.loss, truth))
    torch.testing.assert_close(got, expected)


def test_token_weights_that_want_a_gradient_are_refused():
    """They would get none, in silence."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    weights = torch.rand(N, requires_grad=True)
    with pytest.raises(ValueError, match="detach"):
        linear_objective_loss(hidden, weight, targets, TaiLr(0.1), token_weights=weights)


@pytest.mark.parametrize("program", [linear_target_logp, linear_objective_loss])
def test_second_derivatives_are_refused(program):
    """A gradient penalty would be trained on a gradient of 0."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    options = [TaiLr(0.1)] if program is linear_objective_loss else []
    out = program(hidden, weight, targets, *options)
    loss = out if torch.is_tensor(out) else out.loss
    with pytest.raises(RuntimeError, match="first derivatives"):
        torch.autograd.grad(loss.sum(), hidden, create_graph=True)


@pytest.mark.parametrize(
    ("wanted", "products"), [((0, 0), 3), ((1, 0), 6), ((0, 1), 6), ((1, 1), 9)]
)
def test_only_the_wanted_products_are_made(wanted, products):
    """A frozen head that pays for its gradient all the same costs a third more, and is not seen."""
    hidden, weight, targets, _ = _inputs(torch.float64, {}, ignored=0.0)
    for leaf, want in zip((hidden, weight), wanted, strict=True):
        leaf.requires_grad_(bool(want))
    with _Products() as made:
        linear_objective_loss(hidden, weight, targets, TaiLr(0.1))
    assert made.count == products  # three chunks
    if any(wanted):
        with _Products() as made:
            linear_target_logp(hidden, weight, targets).sum().backward()
        assert made.count == 3 + products


def test_a_second_backward_gives_the_same_gradients():
    """The first one gives its tensors away; what is left must not be scaled twice, or missing."""
    hidden, weight, targets, options = _inputs(torch.float32, OPTIONS["all"])
    loss = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), **options).loss
    leaves = _leaves(hidden, weight, options)
    first = torch.autograd.grad(loss, leaves, torch.tensor(0.5), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves, torch.tensor(0.5)), first)


# -- half precision -----------------------------------------------------------------------------


def _confident(dtype, rows=600, width=64, vocabulary=2000):
    """Logits of a trained model: the target's large, one other near it, the rest far below 0."""
    make = torch.Generator().manual_seed(0)
    direction = torch.randn(width, generator=make)
    weight = torch.randn(vocabulary, width, generator=make) - direction
    weight[1::2] = weight[::2] + 0.1 * torch.randn(vocabulary // 2, width, generator=make)
    targets = torch.randint(vocabulary, (rows,), generator=make)
    hidden = weight[targets] / 6 + direction / 8 + torch.randn(rows, width, generator=make) / 4
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_the_truth_than_the_plain_path(dtype):
    """Logits are rounded after the target's is taken off: small numbers where probability is."""
    hidden, weight, targets = _confident(dtype)
    wide_hidden, wide_weight, _ = _double(hidden, weight, {})
    truth = _dense(wide_hidden, wide_weight, targets, TaiLr(0.1))
    exact = [truth.detach(), *_gradients(truth, wide_hidden, wide_weight, {})]
    errors = []
    for program in (_dense, linear_objective_loss):
        out = program(hidden, weight, targets, TaiLr(0.1))
        loss = out if torch.is_tensor(out) else out.loss
        got = [loss.detach(), *_gradients(loss, hidden, weight, {})]
        errors.append([_error(g, t) for g, t in zip(got, exact, strict=True)])
    for plain, ours in zip(*errors, strict=True):
        assert ours < 0.8 * plain, errors


def _error_of_many_chunks(monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_ROWS, "cpu", (16, 16))
    hidden, weight, targets = _confident(torch.bfloat16)
    wide_hidden, wide_weight, _ = _double(hidden, weight, {})
    exact = torch.autograd.grad(_dense(wide_hidden, wide_weight, targets, TaiLr(0.1)), wide_weight)
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1))
    return _error(torch.autograd.grad(out.loss, weight)[0], exact[0])


def test_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    """Summed in bfloat16 over hundreds of chunks they stall: others' users saw training diverge."""
    monkeypatch.setattr(chunked, "multiplies", lambda dtype: True)  # on any processor
    ours = _error_of_many_chunks(monkeypatch)
    monkeypatch.setattr(chunked, "ROUNDED_SUMS", 10**9)
    assert ours < 0.75 * _error_of_many_chunks(monkeypatch)


def test_a_processor_without_half_precision_products_computes_in_float32(monkeypatch):
    """There a product in bfloat16 takes many times as long as one in float32."""
    hidden, weight, targets, options = _inputs(torch.bfloat16, OPTIONS["all"])
    wide_hidden, wide_weight, wide_options = _double(hidden, weight, options)
    truth = _dense(wide_hidden, wide_weight, targets, TaiLr(0.1), **wide_options)
    monkeypatch.setattr(chunked, "multiplies", lambda dtype: False)
    loss = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), **options).loss
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    exact = _gradients(truth, wide_hidden, wide_weight, wide_options)
    for got, right in zip(_gradients(loss, hidden, weight, options), exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert _error(got, right) < torch.finfo(torch.bfloat16).eps / 2  # rounded once, at the end


def test_a_banned_token_leaves_the_numbers_finite():
    """A bias of -inf bans a token; 0 * -inf in one row would make the logged entropy nan."""
    hidden, weight, targets, options = _inputs(torch.float32, {"bias": True})
    with torch.no_grad():
        options["bias"][7] = -torch.inf
    targets[targets == 7] = 8
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), **options)
    assert torch.isfinite(out.sums()).all()
    truth = _dense(hidden, weight, targets, TaiLr(0.1), **options)
    torch.testing.assert_close(out.loss, truth)
    got, expected = (_gradients(x, hidden, weight, options) for x in (out.loss, truth))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_float16_logits_near_its_end_stay_finite():
    """A target's logit of 4e4 taken off one of -4e4 is no float16 any more."""
    hidden = torch.tensor([[200.0], [-200.0]], dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[200.0], [-200.0], [1.0]], dtype=torch.float16, requires_grad=True)
    out = linear_objective_loss(hidden, weight, torch.tensor([1, 2]), TaiLr(0.1), scale=1e-3)
    truth = _dense(hidden, weight, torch.tensor([1, 2]), TaiLr(0.1), scale=1e-3)
    torch.testing.assert_close(out.loss, truth, rtol=1e-2, atol=0)
    assert torch.isfinite(out.sums()).all()


def test_master_weights_get_gradients_that_were_never_rounded_to_half_precision():
    """Summed in bfloat16 the low bits of a float32 gradient are all 0."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1))
    (grad,) = torch.autograd.grad(out.loss, weight)
    assert (grad != grad.bfloat16().float()).float().mean() > 0.5


# -- the largest logit --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [7, 1024, 1280, 5000])
def test_the_largest_logit_is_torchs_argmax(width):
    """By blocks, the tail and equal maxima are easily got wrong."""
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(0)).round()  # many equal
    x[0], x[1, -1], x[2, 0] = 0.0, 9.0, 9.0
    values, places = rows.row_max(x)
    assert torch.equal(places, x.argmax(-1))
    assert torch.equal(values, x.amax(-1))


def test_a_head_of_zeros_is_not_always_right():
    """All logits are equal: to count each as the largest would log an accuracy of 1."""
    targets = torch.arange(40)
    out = linear_objective_loss(torch.randn(40, 8), torch.zeros(3000, 8), targets, CrossEntropy())
    assert out.correct.item() == 1


# -- log p of every target ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("name", ["plain", "bias", "scale", "softcap", "low rank"])
def test_log_p_and_its_gradients_equal_the_dense_program(name, backend):
    """Objectives of whole sequences weigh each token by what comes of all of them."""
    hidden, weight, targets, options = _inputs(torch.float64, OPTIONS[name])
    logits = _dense_logits(hidden, weight, **options)
    truth = -F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    logp = linear_target_logp(hidden, weight, targets, backend=backend, **options)
    torch.testing.assert_close(logp, truth)
    upstream = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got, expected = (_gradients(x, hidden, weight, options, upstream) for x in (logp, truth))
    torch.testing.assert_close(got, expected)


def test_an_objective_by_way_of_log_p_is_the_objective():
    """Both levels of the head must be one head; this one under autocast."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp = linear_target_logp(hidden, weight, targets)
        out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1))
    loss = TaiLr(0.1).loss(logp[targets != -100]).sum()
    torch.testing.assert_close(loss, out.loss)
    got, expected = (_gradients(x, hidden, weight, {}) for x in (loss, out.loss))
    for left, right in zip(got, expected, strict=True):
        assert _error(left, right.double()) < 4 * torch.finfo(torch.bfloat16).eps


def test_log_p_makes_no_tensor_of_rows_by_vocabulary():
    hidden, weight, targets, _ = _inputs(torch.float32, {})
    with _Largest() as largest:
        linear_target_logp(hidden, weight, targets).sum().backward()
    assert _is_one_chunk(largest.size, targets)


# -- the row budget -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "softcap", "smoothing", "z-loss", "weights", "signed"])
@pytest.mark.parametrize("budget", [1e-2, 0.2])
def test_a_row_budget_leaves_out_at_most_its_share(budget, name):
    """What is left out is bounded, or it is no budget. With the identity as weight, the gradient on
    the hidden states is the gradient on the logits itself."""
    known = {**OPTIONS, "signed": {"token_weights": True}}
    hidden, _, targets, options = _inputs(torch.float64, known[name], ignored=0.0)
    if name == "signed":
        options["token_weights"] -= 0.5
    hidden = (hidden.detach() * 4).requires_grad_()
    eye, targets = torch.eye(D, dtype=torch.float64), targets % D
    grads = []
    for share in (0.0, budget):
        out = linear_objective_loss(hidden, eye, targets, TaiLr(0.1), row_budget=share, **options)
        grads.append(torch.autograd.grad(out.loss, hidden)[0])
    whole, part = grads
    left_out = (part == 0).all(-1)
    assert torch.equal(part[~left_out], whole[~left_out])
    lost, total = whole[left_out].abs().sum(), whole.abs().sum()
    assert 0 < lost <= budget * total
    assert lost > 0.8 * budget * total  # it is used


def test_a_row_budget_changes_neither_the_loss_nor_the_other_gradients_rows():
    hidden, weight, targets, options = _inputs(torch.float32, {"bias": True})
    exact = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), **options)
    out = linear_objective_loss(hidden, weight, targets, TaiLr(0.1), row_budget=0.1, **options)
    assert torch.equal(out.sums(), exact.sums())
    grads = _gradients(out.loss, hidden, weight, options)
    kept = grads[0].abs().sum(-1) > 0
    only = linear_objective_loss(hidden[kept], weight, targets[kept], TaiLr(0.1), **options).loss
    torch.testing.assert_close(grads[1:], _gradients(only, hidden, weight, options)[1:])


def test_the_head_runs_inside_a_compiled_function():
    """A compiled step of a user's own must not trace into the chunks, nor lose their gradients."""
    hidden, weight, targets, _ = _inputs(torch.float32, {})

    def step(h):
        return linear_objective_loss(h * 2.0, weight, targets, TaiLr(0.1)).loss / 3.0

    compiled = torch.compile(step, backend="aot_eager")(hidden)
    expected = step(hidden)
    got, right = (_gradients(x, hidden, weight, {}) for x in (compiled, expected))
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(3, 4, 5)}, "hidden"),
        ({"targets": torch.zeros(4, dtype=torch.long)}, "targets"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"token_weights": torch.zeros(2)}, "token_weights"),
        ({"softcap": 0.0}, "softcap"),
        ({"low_rank": (torch.zeros(3, 2), torch.zeros(7, 1))}, "low_rank"),
        ({"low_rank": (torch.zeros(2, 2), torch.zeros(7, 2))}, "low_rank"),
        ({"z_loss": -1.0}, "z_loss"),
        ({"row_budget": 1.0}, "row_budget"),
        ({"row_budget": 0.1, "backend": "reference"}, "row_budget"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"backend": "fast"}, "backend"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    given = {
        "hidden": torch.zeros(3, 5),
        "weight": torch.zeros(7, 5),
        "targets": torch.zeros(3, dtype=torch.long),
        "objective": CrossEntropy(),
    }
    with pytest.raises(ValueError, match=message):
        linear_objective_loss(**(given | changes))


def test_a_name_in_place_of_an_objective_is_named():
    """The trainers take names; the head would fail deep inside, with an AttributeError."""
    hidden, weight, targets = torch.zeros(3, 5), torch.zeros(7, 5), torch.zeros(3).long()
    with pytest.raises(TypeError, match="got 'ce'"):
        linear_objective_loss(hidden, weight, targets, "ce")
    with pytest.raises(TypeError, match="TaiLr"):
        objective_loss(hidden, targets, TaiLr)


SHAPES = [((5,), ()), ((6, 5), (6,)), ((2, 5, 3), (2, 3)), ((2, 5, 3, 4), (2, 3, 4))]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize(("input_shape", "target_shape"), SHAPES)
def test_gamma_zero_is_torchs_cross_entropy(
    input_shape, target_shape, class_weights, smoothing, reduction
):
    """A drop-in that differs from torch at gamma = 0 is no drop-in."""
    make = torch.Generator().manual_seed(1)
    logits = torch.randn(input_shape, generator=make)
    target = torch.randint(5, target_shape, generator=make)
    if target.dim():
        target.flatten()[0] = -100
    options = {
        "weight": torch.rand(5, generator=make) if class_weights else None,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    ours = GammaCrossEntropyLoss(0.0, **options)(logits, target)
    torch.testing.assert_close(ours, torch.nn.CrossEntropyLoss(**options)(logits, target))


def test_the_gamma_loss_of_a_classifier_is_the_blogs_formula():
    logits, target = torch.randn(6, 5), torch.randint(5, (6,))
    p = logits.softmax(-1).gather(1, target[:, None])
    expected = (-(0.3 + 0.7 * p).log() / 0.7).mean()
    torch.testing.assert_close(GammaCrossEntropyLoss(0.3)(logits, target), expected)


def test_objective_loss_weighs_and_masks_tokens():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, -100, 2], [3, 4, -100]])
    weights = torch.rand(2, 3)
    each = objective_loss(logits, targets, CrossEntropy(), token_weights=weights, reduction="none")
    plain = F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")
    torch.testing.assert_close(each, plain * weights)
    mean = objective_loss(logits, targets, CrossEntropy(), token_weights=weights)
    torch.testing.assert_close(mean, each.sum() / 4)


def test_every_backend_is_tested_here():
    assert set(BACKENDS) == {"reference", "chunked", "triton"}


def test_class_weights_of_another_length_are_refused():
    """torch: weight tensor should be defined either for all 4 classes or no classes."""
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 0])
    for count in (1, 2, 9):
        with pytest.raises(ValueError, match=r"weight must be \(4,\)"):
            GammaCrossEntropyLoss(0.1, weight=torch.ones(count))(logits, target)


def test_class_weights_in_half_precision_are_summed_in_float32():
    """70,000 ones are infinitely many in float16, and a loss of 0."""
    logits, target = torch.randn(70_000, 3), torch.randint(3, (70_000,))
    weighted = GammaCrossEntropyLoss(0.5, weight=torch.ones(3)).half()
    torch.testing.assert_close(weighted(logits, target), GammaCrossEntropyLoss(0.5)(logits, target))
