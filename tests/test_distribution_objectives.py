"""Distribution objectives against torch's own losses and loops by their sources; head and dense."""

import dataclasses
import math

import numpy
import pytest
import torch
import torch.nn.functional as F

from tvd_gen import CrossEntropy, linear_objective_loss, objective_loss
from tvd_gen.head import chunked, distribution
from tvd_gen.objectives import (
    ASFT,
    DFT,
    EAFT,
    GEM,
    OBJECTIVES,
    ConfidencePenalty,
    D2GPo,
    DistributionObjective,
    Embeddings,
    Predictions,
    Unlikelihood,
)


@dataclasses.dataclass(frozen=True)
class Brier(DistributionObjective):
    """One of somebody's own, which nothing of ours has been made for."""

    share: float = 1.0

    def loss(self, predictions):
        p = predictions.logits.softmax(-1)
        return self.share * ((p * p).sum(-1) - 2 * predictions.of_targets(p) + 1)


FAMILY = [
    ConfidencePenalty(),
    ConfidencePenalty(0.7),
    Unlikelihood(),
    Unlikelihood(0.3),
    D2GPo(),
    D2GPo(0.5, 0.2, 2.0),
    D2GPo(0.3, 0.01, 0.05),
    GEM(),
    GEM(0.4, 1.0),
    EAFT(),
    EAFT(0.5, 5),
    ASFT(),
    ASFT(0.8),
    Brier(0.7),
]
by_repr = pytest.mark.parametrize("objective", FAMILY, ids=repr)
N, V, L, E = 7, 31, 5, 6


def predictions(dtype=torch.float64, size=3.0):
    make = torch.Generator().manual_seed(0)
    logits = (size * torch.randn(N, V, generator=make, dtype=torch.float64)).to(dtype)
    targets = torch.randint(V, (N,), generator=make)
    previous = torch.randint(-1, V, (N, L), generator=make)
    previous[0], previous[1, 0] = -1, targets[1]  # nothing before; the target itself
    previous[2, :2] = previous[2, 0].clamp(min=0)  # twice the same
    reference = torch.randn(N, V, generator=make, dtype=torch.float64).to(dtype) * 2
    embeddings = F.normalize(torch.randn(V, E, generator=make, dtype=torch.float64), dim=-1)
    embeddings = Embeddings(embeddings.to(dtype))
    return Predictions(logits.requires_grad_(), targets, previous, reference, embeddings)


def unlikelihood(x, objective):
    p, losses = x.logits.softmax(-1), []
    for i, y in enumerate(x.targets.tolist()):
        candidates = set(x.previous[i].tolist()) - {-1, y}
        pushed = sum(math.log(max(1 - p[i, c].item(), 1e-5)) for c in candidates)
        losses.append(-math.log(p[i, y].item()) - objective.alpha * pushed)
    return losses


def d2gpo(x, objective):
    """By sorting the whole vocabulary, as the published preparation does."""
    losses = []
    vectors = x.embeddings.weight.numpy()
    for i, y in enumerate(x.targets.tolist()):
        cosine = vectors @ vectors[y] / numpy.linalg.norm(vectors, axis=1)
        cosine[y] = numpy.inf
        density = numpy.empty(V)
        ranks = numpy.arange(V) / objective.std
        density[numpy.argsort(-cosine)] = (
            numpy.exp(-(ranks**2) / 2) / objective.std / math.sqrt(2 * math.pi)
        )
        prior = torch.from_numpy(density / objective.temperature).softmax(-1)
        logp = x.logits[i].log_softmax(-1)
        far = F.kl_div(logp, prior, reduction="sum")
        share = objective.alpha
        losses.append(-(1 - share) * logp[y] + share * objective.temperature**2 * far)
    return losses


def gem(x, objective):
    """Its slopes: the value has no meaning of its own."""
    z = x.logits.detach()
    ahead = z - z.gather(1, x.targets[:, None])
    pulls = torch.sigmoid(objective.slope * ahead) * (z / objective.beta).softmax(-1)
    logp = x.logits.log_softmax(-1)
    real = logp.gather(1, x.targets[:, None])
    return list(-(pulls * (real - logp)).sum(-1))


def eaft(x, objective):
    losses = []
    for row, y in zip(x.logits, x.targets, strict=True):
        best = torch.distributions.Categorical(
            logits=row.detach().sort(descending=True)[0][: objective.k]
        )
        weight = (best.entropy() / math.log(objective.k)) ** objective.alpha
        losses.append(weight * F.cross_entropy(row, y))
    return losses


def asft(x, objective):
    logp, p_ref = x.logits.log_softmax(-1), x.reference.softmax(-1)
    away = F.kl_div(logp, p_ref, reduction="none").sum(-1)
    p = logp.gather(1, x.targets[:, None]).squeeze(1).exp()
    return list(1 - p + objective.kl_weight * away)


def confidence_penalty(x, objective):
    entropy = torch.distributions.Categorical(logits=x.logits).entropy()
    nll = F.cross_entropy(x.logits, x.targets, reduction="none")
    return list(nll - objective.beta * entropy)


def brier(x, objective):
    hit = F.one_hot(x.targets, V)
    return list(objective.share * F.mse_loss(x.logits.softmax(-1), hit, reduction="none").sum(-1))


ORACLES = {
    Brier: brier,
    ConfidencePenalty: confidence_penalty,
    Unlikelihood: unlikelihood,
    D2GPo: d2gpo,
    GEM: gem,
    EAFT: eaft,
    ASFT: asft,
}


@by_repr
def test_it_is_its_published_formula(objective):
    x = predictions()
    losses = objective.loss(x)
    oracle = ORACLES[type(objective)]
    expected = torch.tensor([torch.as_tensor(each).detach() for each in oracle(x, objective)])
    torch.testing.assert_close(losses, expected.to(losses), rtol=1e-6, atol=1e-9)
    if isinstance(objective, Unlikelihood):
        return  # its oracle has no gradient; gradcheck has
    (ours,) = torch.autograd.grad(losses.sum(), x.logits)
    (theirs,) = torch.autograd.grad(sum(oracle(x, objective)), x.logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_family_is_every_distribution_objective():
    ours = {cls for cls in OBJECTIVES.values() if issubclass(cls, DistributionObjective)}
    assert {type(objective) for objective in FAMILY} == ours | {Brier}


@by_repr
def test_gradcheck(objective):
    """What GEM and EAFT weigh by is a constant to their gradients: here it is held still."""
    x = predictions(size=1.0)
    objective.loss(x)

    def loss(logits):
        moved = Predictions(logits, x.targets, x.previous, x.reference, x.embeddings)
        moved._made.update(x._made)
        return objective.loss(moved)

    assert torch.autograd.gradcheck(loss, x.logits)


LIMITS = [
    (ConfidencePenalty(0.0), CrossEntropy(), 1.0),
    (Unlikelihood(0.0), CrossEntropy(), 1.0),
    (D2GPo(alpha=0.0), CrossEntropy(), 1.0),
    (EAFT(alpha=0.0), CrossEntropy(), 1.0),
    (ASFT(kl_weight=0.0), DFT(), 1.0),
    (GEM(beta=1.0, slope=0.0), CrossEntropy(), 0.5),
]


@pytest.mark.parametrize(("objective", "sibling", "share"), LIMITS, ids=repr)
def test_at_its_limit_it_is_a_sibling(objective, sibling, share):
    x = predictions()
    (ours,) = torch.autograd.grad(objective.loss(x).sum(), x.logits)
    theirs = objective_loss(x.logits, x.targets, sibling, reduction="sum")
    (expected,) = torch.autograd.grad(theirs, x.logits)
    torch.testing.assert_close(ours, share * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@by_repr
def test_it_is_finite_where_probabilities_are_not(objective, dtype):
    """p of 0 and of 1, as trained models have them."""
    x = predictions(dtype, size=1.0)
    with torch.no_grad():
        x.logits[0, x.targets[0]], x.logits[1, x.targets[1]] = 400.0, -400.0
        x.logits[2, x.previous[2, 0]] = 300.0
        x.reference[3, 4], x.reference[4, x.targets[4]] = 500.0, -500.0
    losses = objective.loss(x)
    (slopes,) = torch.autograd.grad(losses.sum(), x.logits)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(slopes).all()
    assert torch.isfinite(objective.weight(x)).all()


HEAD = {"label_smoothing": 0.1, "z_loss": 1e-2, "scale": 1.7, "token_weights": True, "bias": True}
OPTIONS = {"plain": {}, "softcap": {"softcap": 5.0, "factors": True}, "all": HEAD}
ROWS, D, WORDS = 700, 12, 301


def problem(dtype, options):
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, D, generator=make).to(dtype).requires_grad_()
    weight = (torch.randn(WORDS, D, generator=make) * 0.6).to(dtype).requires_grad_()
    targets = torch.randint(WORDS, (ROWS,), generator=make)
    targets[torch.rand(ROWS, generator=make) < 0.3] = -100
    options = dict(options)
    if options.pop("bias", False):
        options["bias"] = torch.randn(WORDS, generator=make).to(dtype).requires_grad_()
    for name in ("token_weights", "factors"):
        if options.pop(name, False):
            options[name] = torch.rand(ROWS, generator=make)
    side = {
        "previous": torch.randint(-1, WORDS, (ROWS, L), generator=make),
        "reference": torch.randn(ROWS, WORDS, generator=make).to(dtype),
        "embeddings": torch.randn(WORDS, E, generator=make).to(dtype),
    }
    return hidden, weight, targets, options, side


def dense(hidden, weight, targets, objective, *, bias=None, scale=1.0, softcap=None, **rest):
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return objective_loss(logits, targets, objective, reduction="sum", **rest)


def fused(hidden, weight, targets, objective, *, previous, reference, **rest):
    looks = {"previous": previous.__getitem__, "reference": reference.__getitem__}
    return linear_objective_loss(hidden, weight, targets, objective, **looks, **rest)


def gradients(loss, hidden, weight, options):
    leaves = [hidden, weight, *([options["bias"]] if "bias" in options else [])]
    return torch.autograd.grad(loss, leaves, torch.full_like(loss, 0.37))


@pytest.fixture
def _small(monkeypatch):
    """Several chunks of several tiles, the last of them shorter."""
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 1)
    monkeypatch.setattr(distribution, "tile_rows", lambda *_: 100)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@by_repr
def test_the_head_equals_the_dense_program_in_float64(objective, options, backend):
    hidden, weight, targets, options, side = problem(torch.float64, options)
    truth = dense(hidden, weight, targets, objective, **options, **side)
    out = fused(hidden, weight, targets, objective, **options, **side, backend=backend)
    torch.testing.assert_close(out.loss, truth, rtol=1e-11, atol=0)
    pairs = zip(
        gradients(out.loss, hidden, weight, options),
        gradients(truth, hidden, weight, options),
        strict=True,
    )
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@by_repr
def test_the_head_is_no_less_exact_than_the_plain_path(objective, dtype):
    hidden, weight, targets, options, side = problem(dtype, HEAD)
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    more = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
            for k, v in (options | side).items()}  # fmt: skip
    more["bias"] = more["bias"].detach().requires_grad_()
    truth = dense(*wide, targets, objective, **more)
    exact = [truth.detach(), *gradients(truth, *wide, more)]
    errors = {}
    for name, program in (("plain", dense), ("fused", fused)):
        out = program(hidden, weight, targets, objective, **options, **side)
        loss = out if torch.is_tensor(out) else out.loss
        got = [loss.detach(), *gradients(loss, hidden, weight, options)]
        errors[name] = [
            ((g.double() - e).norm() / e.norm()).item() for g, e in zip(got, exact, strict=True)
        ]
    slack = 2e-6 if dtype == torch.float32 else 3e-4
    for plain, ours in zip(errors["plain"], errors["fused"], strict=True):
        assert ours <= 1.1 * plain + slack, errors


@pytest.mark.usefixtures("_small")
def test_the_numbers_beside_the_loss_are_those_of_cross_entropy():
    """They are compared between objectives."""
    hidden, weight, targets, _, side = problem(torch.float32, {})
    ours = fused(hidden, weight, targets, EAFT(), **side)
    other = linear_objective_loss(hidden, weight, targets, CrossEntropy())
    for name in ("nll", "tokens", "correct", "entropy"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=1e-5, atol=0)
    logits = F.linear(hidden, weight)[targets >= 0]
    expected = EAFT().weight(Predictions(logits, targets[targets >= 0])).sum()
    torch.testing.assert_close(ours.weight, expected, rtol=1e-5, atol=0)


def test_the_nearest_words_are_found_once_for_all_that_are_coming(monkeypatch):
    """A look at all embeddings for each few rows took a minute where this takes a second."""
    weight = torch.randn(V, E, generator=torch.Generator().manual_seed(2))
    found, find = [], Embeddings._find

    def count(self, words, table):
        found.append(words.tolist())
        find(self, words, table)

    monkeypatch.setattr(Embeddings, "_find", count)
    frozen = Embeddings.of(weight, torch.tensor([5, 3, 5, 7]))
    first = frozen.nearest(torch.tensor([5]), 4)
    with torch.inference_mode():  # an evaluation
        frozen.nearest(torch.tensor([9, 3]), 4)
    assert torch.equal(frozen.nearest(torch.tensor([7, 5, 9]), 4)[1], first[0])
    assert found == [[3, 5, 7], [9]]
    assert Embeddings.of(frozen, torch.tensor([8])) is frozen
    similar = F.cosine_similarity(weight[9], weight, dim=-1).argsort(descending=True)
    assert torch.equal(frozen.nearest(torch.tensor([9]), V)[0], similar)


def test_embeddings_of_another_vocabulary_are_refused():
    x = predictions()
    other = dataclasses.replace(x, embeddings=Embeddings(torch.zeros(V + 1, E)))
    with pytest.raises(ValueError, match="32 embeddings for logits of 31 words"):
        D2GPo().loss(other)


@pytest.mark.parametrize("objective", [GEM(), EAFT()], ids=repr)
def test_what_a_loss_and_its_weight_need_is_made_once(objective, monkeypatch):
    name = "_pulls" if isinstance(objective, GEM) else "_weight"
    made, make = [], getattr(type(objective), name)
    monkeypatch.setattr(type(objective), name, lambda *args: made.append(0) or make(*args))
    x = predictions()
    objective.loss(x)
    objective.weight(x)
    assert made == [0]


class LooksFirst(DistributionObjective):
    """An objective of one's own, whose weight is asked for before its loss."""

    def loss(self, predictions):
        with torch.no_grad():
            weight = 1.0 - predictions.of_targets(predictions.logp).exp()
        return -weight * predictions.of_targets(predictions.logp)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_log_probabilities_that_were_looked_at_without_gradients_have_them(backend):
    """They are made once and kept."""
    hidden, weight, targets, _, _ = problem(torch.float64, {})
    out = linear_objective_loss(hidden, weight, targets, LooksFirst(), backend=backend)
    logp = F.linear(hidden, weight)[targets >= 0].log_softmax(-1)
    own = logp.gather(-1, targets[targets >= 0].unsqueeze(-1)).squeeze(-1)
    truth = -((1.0 - own.detach().exp()) * own).sum()
    for ours, theirs in zip(
        torch.autograd.grad(out.loss, (hidden, weight)),
        torch.autograd.grad(truth, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("need", ["previous", "reference"])
def test_what_belongs_to_the_rows_is_made_a_chunk_at_a_time(need):
    """An (N, L) tensor of a batch of long sequences would be larger than a chunk's logits."""
    hidden, weight, targets, _, side = problem(torch.float32, {})
    asked = []

    def look(places):
        asked.append(places)
        return side[need][places]

    objective = Unlikelihood() if need == "previous" else ASFT()
    linear_objective_loss(hidden, weight, targets, objective, **{need: look}).loss.backward()
    assert len(asked) > 1
    assert torch.equal(torch.cat(asked), (targets >= 0).nonzero().squeeze(-1))


def test_what_an_objective_needs_is_asked_for():
    hidden, weight, targets, _, _ = problem(torch.float32, {})
    for objective, name in ((ASFT(), "reference"), (Unlikelihood(), "previous")):
        with pytest.raises(ValueError, match=f"needs {name}"):
            linear_objective_loss(hidden, weight, targets, objective)
        with pytest.raises(ValueError, match=f"needs {name}"):
            objective_loss(hidden @ weight.T, targets, objective)
    with pytest.raises(ValueError, match="token objectives"):
        linear_objective_loss(hidden, weight, targets, GEM(), row_budget=0.1)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@by_repr
def test_no_rows_are_no_loss(objective, backend):
    """The last batch of a process may hold nothing but what others have counted."""
    hidden, weight, targets, _, side = problem(torch.float32, {})
    out = fused(hidden, weight, torch.full_like(targets, -100), objective, backend=backend, **side)
    assert out.loss == out.tokens == out.weight == 0
    (grad,) = torch.autograd.grad(out.loss, weight)
    assert not grad.any()


def test_a_reference_that_bans_a_token_is_no_nan():
    x = predictions(torch.float32)
    x.reference[:, 3] = -torch.inf
    loss = ASFT().loss(x).sum()
    assert torch.isfinite(torch.autograd.grad(loss, x.logits)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_reference_is_read_in_the_precision_of_the_logits(dtype):
    """float32, or float64 for float64 logits: what the reference is stored in decides nothing."""
    x = predictions(torch.float64)
    reference = x.reference.to(torch.float16)  # the same numbers in all
    for logits in (x.logits.float(), x.logits):
        given, exact = reference.to(dtype), reference.to(logits.dtype)
        loss = objective_loss(logits, x.targets, ASFT(), reference=given)
        assert loss.dtype == logits.dtype
        assert torch.equal(loss, objective_loss(logits, x.targets, ASFT(), reference=exact))


def test_a_banned_token_is_no_nan():
    x = predictions(torch.float32)
    with torch.no_grad():
        x.logits[:, (x.targets.max() + 1) % V] = -torch.inf
    for objective in (GEM(), ConfidencePenalty(), EAFT()):
        loss = objective_loss(x.logits, x.targets, objective)
        assert torch.isfinite(torch.autograd.grad(loss, x.logits)[0]).all()


BAD = [
    (ConfidencePenalty, {"beta": -1.0}),
    (Unlikelihood, {"alpha": -1.0}),
    (D2GPo, {"alpha": 1.5}),
    (D2GPo, {"temperature": 0.0}),
    (D2GPo, {"temperature": 1e-40}),
    (D2GPo, {"temperature": 1e20}),
    (D2GPo, {"std": 0.0}),
    (D2GPo, {"std": 1e-4}),
    (GEM, {"beta": 0.0}),
    (GEM, {"beta": 1e-40}),
    (GEM, {"slope": -1.0}),
    (EAFT, {"k": 1}),
    (ASFT, {"kl_weight": -0.1}),
]


@pytest.mark.parametrize(("cls", "values"), BAD)
def test_a_value_out_of_range_is_refused(cls, values):
    with pytest.raises(ValueError, match="must"):
        cls(**values)
