"""The toy figure: the fits that can be known, and the bounds that its text claims."""

import json
import math
import sys

import pytest
import torch

import check
import tables
import toy


def places(count, seed=0):
    make = torch.Generator().manual_seed(seed)
    mu, sd = torch.rand(2, count, generator=make, dtype=torch.float64)
    return 6 * mu, 0.2 + 2 * sd


def test_the_fit_under_kl_matches_the_moments():
    """The one fit with a closed form: it judges the grid and the search."""
    mean = sum(w * mu for w, mu, _ in toy.PARTS)
    variance = sum(w * (sd**2 + (mu - mean) ** 2) for w, mu, sd in toy.PARTS)
    found = toy.fit("kl", toy.kl)
    assert found.mu == pytest.approx(mean, abs=1e-5)
    assert found.sd == pytest.approx(math.sqrt(variance), abs=1e-5)
    assert found.tvd == pytest.approx(0.51694, abs=1e-5)


def test_the_fit_under_tvd_is_the_known_one():
    found = toy.fit("tvd", toy.tvd)
    assert found.tvd == pytest.approx(0.199946, abs=1e-6)
    assert found.mu == pytest.approx(1.045, abs=0.02)
    assert found.sd == pytest.approx(0.62, abs=0.01)


@pytest.mark.parametrize("gamma", [1e-4, 0.1, 0.8])
def test_the_proxy_lies_between_its_bounds(gamma):
    """The text's derivation, where it could be wrong."""
    mu, sd = places(200)
    distance, proxy = toy.tvd(mu, sd), toy.proxy(gamma)(mu, sd)
    assert (proxy >= 2 * (1 - gamma) * distance**2).all()
    assert (proxy <= -math.log(gamma) / (1 - gamma) * distance).all()


def test_gamma_zero_is_kl_in_both_forms():
    mu, sd = places(20)
    sd = sd.clamp(min=0.6)
    torch.testing.assert_close(toy.proxy(0.0)(mu, sd), toy.kl(mu, sd))
    cross = toy.bins(0.0)(mu, sd)
    own = (toy.TARGET_MASS * toy.TARGET_MASS.clamp(min=1e-300).log()).sum()
    torch.testing.assert_close(cross + own, toy.kl(mu, sd), rtol=0.02, atol=0.02)


def test_the_largest_gamma_keeps_a_single_bin():
    """That the practised form does not tend to TVD is the text's strongest claim."""
    found = toy.fit("bins", toy.bins(0.99))
    assert found.sd < 0.05
    assert found.tvd > 0.9


@pytest.mark.parametrize("there", [True, False])
def test_the_figure_is_written_and_without_matplotlib_the_numbers_are(
    there, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(toy, "GAMMAS", (1e-3,))
    monkeypatch.setattr(sys, "argv", ["toy.py", "--output", str(tmp_path)])
    if not there:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    toy.main()
    written = json.loads((tmp_path / "toy.json").read_text())
    assert [each["divergence"] for each in written["fits"]] == ["kl", "tvd", "proxy", "bins"]
    names = {"toy.json", "toy.svg", "toy.png"} if there else {"toy.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tables.NO_PLOT in capsys.readouterr().out) is not there
    assert not list(check.faults_of_toy(tmp_path))
    for change, told in (
        ({"tvd": 0.7}, "kl: TVD 0.7 and KL"),
        ({"kl": 1.0}, "best fit by kl has 1"),
    ):
        spoilt = {**written, "fits": [{**written["fits"][0], **change}, *written["fits"][1:]]}
        spoilt["fits"][-1] = {**written["fits"][0], "divergence": "bins"}
        (tmp_path / "toy.json").write_text(json.dumps(spoilt))
        assert told in next(check.faults_of_toy(tmp_path))


def test_a_file_is_no_output_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["toy.py", "--output", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match=r"--output .*file: File exists"):
        toy.main()
