"""The toy of the paper: one Gaussian is fitted to a mixture of two, by KL and by TVD.

    python scripts/paper/toy.py        # runs/toy/toy.json, toy.svg, toy.png; seconds

The target is p = 0.8 N(1, 0.5^2) + 0.2 N(5, 0.4^2), the model q = N(mu, sd^2). No samples: sums
over a fine grid, and a search of (mu, sd) in ever smaller boxes.

    KL      sum p log(p / q)
    TVD     1/2 sum |p - q|

Two population forms of the gamma loss are our own addition:

    proxy   KL(p || gamma p + (1 - gamma) q) / (1 - gamma)

is TaiLr's proxy distribution with all of p where training has one sample of it. gamma = 0 is KL;
for any other, with TVD = TVD(p, q),

    2 (1 - gamma) TVD^2  <=  proxy  <=  -log(gamma) / (1 - gamma) TVD

Left is Pinsker's inequality, as TVD(p, gamma p + (1 - gamma) q) = (1 - gamma) TVD; right is what
bounds every f-divergence, f(0) + lim f(t) / t = -log gamma here. KL has no bound from above: in
that sense the proxy lies between KL and TVD. Its best fit need not: it jumps at one gamma, from
covering both parts to the first part alone.

    bins    sum over bins of P L(Q),    L(Q) = -log(gamma + (1 - gamma) Q) / (1 - gamma)

is what training minimises in expectation. There gamma stands beside a probability, so densities
need bins (of 0.1 here), as text has tokens. It is the likelihood of q over a flat background of
gamma / (1 - gamma) a bin, so it drops the second part as soon as that is cheaper than covering it.
For a gamma far above all Q it maximises sum P Q, which a single bin does best: it does not tend to
TVD, whose gradient has weight 1 wherever q < p, as nobody knows p.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from provenance import made_with
from tables import draw, number, table
from tvd_gen import TaiLr
from tvd_gen.run.folder import write_json

PARTS = ((0.8, 1.0, 0.5), (0.2, 5.0, 0.4))
"""weight, mean, standard deviation"""
MEANS, SDS = (-1.0, 7.0), (0.02, 4.0)
"""where a fit is looked for"""
STEP, BIN = 0.01, 0.1
GAMMAS = (1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.8, 0.99)
GRID = torch.arange(-6, 14, STEP, dtype=torch.float64) + STEP / 2
EDGES = torch.arange(-6, 14 + BIN / 2, BIN, dtype=torch.float64)

Divergence = Callable[[Tensor, Tensor], Tensor]
"""mu (M,), sd (M,) -> (M,) nats or a distance in 0..1"""


@dataclass(frozen=True)
class Fit:
    """The best Gaussian under one divergence, and how far it is from the target."""

    divergence: str
    gamma: float | None
    mu: float
    sd: float
    value: float
    """of what was minimised"""
    kl: float
    tvd: float

    @property
    def at_the_bound(self) -> bool:
        """Whether the search ended at the smallest deviation that it looks at: less would do."""
        return self.sd < 1.001 * SDS[0]


def log_density(mu: Tensor, sd: Tensor, x: Tensor = GRID) -> Tensor:
    """log N(x; mu, sd^2): (M,), (M,), (X,) -> (M, X)."""
    z = (x - mu.unsqueeze(-1)) / sd.unsqueeze(-1)
    return -0.5 * z**2 - sd.unsqueeze(-1).log() - 0.5 * math.log(2 * math.pi)


def mass(mu: Tensor, sd: Tensor) -> Tensor:
    """The probability of each bin: (M,), (M,) -> (M, bins)."""
    z = (EDGES - mu.unsqueeze(-1)) / sd.unsqueeze(-1)
    # From the nearer tail, and erfc, not ndtr: that is 0 from z = -8 on in torch.
    below, above = (torch.special.erfc(sign * z / math.sqrt(2)) / 2 for sign in (-1, 1))
    up, down = below.diff(dim=-1), -above.diff(dim=-1)
    return torch.where(z[..., 1:] > 0, down, up)


def mixed(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The target's density on the grid, or its mass in the bins."""
    weights, mu, sd = torch.tensor(PARTS, dtype=torch.float64).T
    return weights @ of(mu, sd)


TARGET, TARGET_MASS = mixed(lambda mu, sd: log_density(mu, sd).exp()), mixed(mass)


def kl(mu: Tensor, sd: Tensor) -> Tensor:
    """KL(p || q), in nats."""
    return STEP * (TARGET * (TARGET.log() - log_density(mu, sd))).sum(-1)


def tvd(mu: Tensor, sd: Tensor) -> Tensor:
    """TVD(p, q), in 0..1."""
    return STEP / 2 * (TARGET - log_density(mu, sd).exp()).abs().sum(-1)


def proxy(gamma: float) -> Divergence:
    """KL(p || gamma p + (1 - gamma) q) / (1 - gamma), in nats."""

    def divergence(mu: Tensor, sd: Tensor) -> Tensor:
        mixture = gamma * TARGET + (1 - gamma) * log_density(mu, sd).exp()
        return STEP * (TARGET * (TARGET / mixture).log()).sum(-1) / (1 - gamma)

    return divergence


def bins(gamma: float) -> Divergence:
    """The expected gamma loss over bins, in nats."""
    objective = TaiLr(gamma)
    return lambda mu, sd: objective.loss(mass(mu, sd).clamp(min=1e-300).log()) @ TARGET_MASS


def best(divergence: Divergence, points: int = 41, rounds: int = 40) -> tuple[float, float, float]:
    """mu, sd and the value at the least of it: a grid over all, then boxes that shrink by 0.7.

    Slowly, for TVD's valley is bent and flat: within 1e-6 of the least, mu and sd move by 0.005.
    """
    low = torch.tensor([MEANS[0], math.log(SDS[0])], dtype=torch.float64)
    high = torch.tensor([MEANS[1], math.log(SDS[1])], dtype=torch.float64)
    centre, half = (low + high) / 2, (high - low) / 2
    for turn in range(rounds):
        ends = zip((centre - half).clamp(low, high), (centre + half).clamp(low, high), strict=True)
        axes = [torch.linspace(*end, points, dtype=torch.float64) for end in ends]
        places = torch.cartesian_prod(*axes)
        values = divergence(places[:, 0], places[:, 1].exp())
        centre = places[values.argmin()]
        half = half * (0.15 if turn == 0 else 0.7)
        points = 15
    return float(centre[0]), float(centre[1].exp()), float(values.min())


def fit(name: str, divergence: Divergence, gamma: float | None = None) -> Fit:
    """The best Gaussian under a divergence."""
    mu, sd, value = best(divergence)
    place = torch.tensor([[mu], [sd]], dtype=torch.float64)
    return Fit(name, gamma, mu, sd, value, float(kl(*place)), float(tvd(*place)))


def fits() -> list[Fit]:
    """All of the figure."""
    found = [fit("kl", kl), fit("tvd", tvd)]
    for name, family in (("proxy", proxy), ("bins", bins)):
        found += [fit(name, family(gamma), gamma) for gamma in GAMMAS]
    return found


def paint(axes: Any, found: list[Fit]) -> None:
    """The densities, and how far the fits are for each gamma."""
    shown = (GRID > -2) & (GRID < 7.5)
    axes[0].fill_between(GRID[shown], TARGET[shown], color="0.85", label="target")
    several = {("kl", None), ("tvd", None), ("proxy", 0.1), ("bins", 1e-3), ("bins", 0.1)}
    for each in found:
        if (each.divergence, each.gamma) in several:
            place = torch.tensor([[each.mu], [each.sd]], dtype=torch.float64)
            label = each.divergence.upper() if each.gamma is None else _label(each)
            axes[0].plot(GRID[shown], log_density(*place)[0].exp()[shown], label=label)
    axes[0].set(xlabel="x", ylabel="density", title="the best single Gaussian")
    axes[0].legend()
    for name in ("proxy", "bins"):
        own = [each for each in found if each.divergence == name]
        axes[1].plot([f.gamma for f in own], [f.tvd for f in own], "o-", ms=3, label=name)
    for each, style in zip(found[:2], (":", "--"), strict=True):
        axes[1].axhline(each.tvd, color="0.4", ls=style, label=f"{each.divergence.upper()}'s fit")
    axes[1].set(xscale="log", xlabel="gamma", ylabel="TVD of the fit", ylim=(0, 1))
    axes[1].set_title("how far the fit is from the target")
    axes[1].legend()


def _label(each: Fit) -> str:
    return f"{each.divergence}, gamma {each.gamma:g}"


def main() -> None:
    """Fit, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/toy"))
    folder = parser.parse_args().output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"--output {folder}: {error.strerror}")
    found = fits()
    settings = {"target": PARTS, "grid_step": STEP, "bin": BIN, "versions": made_with()}
    write_json(folder / "toy.json", settings | {"fits": [asdict(each) for each in found]})
    rows = [
        [each.divergence, "" if each.gamma is None else f"{each.gamma:g}"]
        + [number(x, 4) for x in (each.mu, each.sd, each.kl)]
        + [number(each.tvd, 5)]
        for each in found
    ]
    print(table(["divergence", "gamma", "mu", "sd", "KL", "TVD"], rows))
    for each in found:
        if each.at_the_bound:
            print(f"{_label(each)}: sd {each.sd:g} is the least that is looked at; it tends to 0")
    draw(folder / "toy", lambda axes: paint(axes[0], found), columns=2)


if __name__ == "__main__":
    main()
