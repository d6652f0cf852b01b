"""The ABC flow experiment: z-scores on exact draws, carried densities, speeds, and a short run of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_boltzmann import cli
from pyro_boltzmann.experiments.abc_grid import compare_counts, count_in_rectangle, grid_centres, is_in_rectangle
from pyro_boltzmann.experiments.abc_page import FEW, MANY, PAIR, as_good
from pyro_boltzmann.experiments.abc_scores import Units, carried_densities, standardised_nll
from pyro_boltzmann.experiments.abc_speed import SCHEMES, conditional_distance, payback
from pyro_boltzmann.experiments.prnf_models import density_of, exact_transitions
from pyro_boltzmann.sde import FlowMap
from pyro_boltzmann.sde.systems import ornstein_uhlenbeck

SIGMAS = 4.5


def test_z_scores_of_exact_draws() -> None:
    """Binomial counts of equal probabilities: the mean of z^2 is one within 4.5 standard deviations of it; counts of
    others stand out."""
    generator = np.random.default_rng(0)
    p = generator.uniform(0.01, 0.3, (22, 22))
    first, second, other = (
        generator.binomial(n, chance) for n, chance in ((2000, p), (3000, p), (3000, np.clip(p + 0.03, 0.0, 1.0)))
    )
    found = compare_counts(first, 2000, second, 3000)
    assert found.num_cells == 484 and found.rms_error == pytest.approx(1.0 / math.sqrt(2 * 484))
    assert abs(found.rms - 1.0) < SIGMAS * found.rms_error
    apart = compare_counts(first, 2000, other, 3000)
    assert apart.rms > 1.0 + SIGMAS * apart.rms_error
    assert apart.bias == pytest.approx(0.03, rel=0.15)


def test_cells_without_counts_are_left_out() -> None:
    found = compare_counts(np.array([[0, 4], [0, 2]]), 10, np.array([[0, 2], [0, 2]]), 10)
    assert found.num_cells == 2 and found.plain()["z"][0][0] is None
    assert found.z[0, 1] == pytest.approx(0.2 / math.sqrt(0.3 * 0.7 * 0.2))


def test_counts_stand_where_their_centre_is() -> None:
    """A shift by one period in z: with the centre (pi, pi) a quarter of the draws ends inside, within 4.5 s.d."""
    assert grid_centres(3)[1] == (pytest.approx(math.pi), 0.0)
    inside = torch.tensor([[1.0, 0.0, 7.0], [1.0, 0.0, 1.0], [4.0, 0.0, 7.0]])
    assert is_in_rectangle(inside).tolist() == [True, False, False]

    def lifted(x0: Tensor) -> Tensor:
        return x0 + torch.tensor([0.0, 0.0, 2.0 * math.pi])

    counts = count_in_rectangle(lifted, 200, seed=0, number=3)
    assert counts[0, 0] == 200 and counts[2, 2] == 0
    assert counts[0, 2] == 0 and counts[2, 0] == 0
    assert abs(int(counts[1, 1]) - 50) < SIGMAS * math.sqrt(200 * 0.25 * 0.75)


def test_standardised_units() -> None:
    """log p of y / s is log p(y) + log s, column by column."""
    scale = torch.tensor([2.0, 5.0, 0.5])
    y = scale * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))

    def density(state: Tensor, _: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, scale).log_prob(state).sum(-1)

    units = Units(torch.zeros(3), scale)
    direct = -torch.distributions.Normal(0.0, 1.0).log_prob(y / scale).sum(-1).mean()
    assert standardised_nll(density, y, y, units).value == pytest.approx(float(direct), abs=1e-5)


def test_carried_densities_are_the_scored_ones() -> None:
    data = exact_transitions(ornstein_uhlenbeck(3), 1.0, 500, seed=0)
    flow_map = FlowMap.for_sde(ornstein_uhlenbeck(3).sde, 1.0, width=16, coupling_width=16)
    flow_map.standardise(data)
    with torch.no_grad():
        for parameter in flow_map.couplings.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(2))
    y, carried = carried_densities(flow_map, data.x0, 1.0, z)
    with torch.no_grad():
        assert torch.equal(y, flow_map.transport(z, data.x0, 1.0))
    assert torch.allclose(density_of(flow_map, 1.0)(y, data.x0), carried, atol=1e-4)


def test_conditional_distances() -> None:
    """Equal laws are at the floor 0.8687 sqrt(2/n), a law that is shifted by 0.5 at 2 Phi(0.25) - 1 = 0.197."""

    def normal(x0: Tensor) -> Tensor:
        return x0 + torch.randn_like(x0)

    found = conditional_distance(
        {"reference": normal, "same": normal, "shifted": lambda x0: normal(x0) + 0.5}, torch.zeros(8, 2), 2000, seed=0
    )
    # One distance has a standard deviation of 0.26 sqrt(2/n), and 16 are averaged that share no draws.
    floor = 0.8687 * math.sqrt(2.0 / 2000)
    assert abs(found["same"] - floor) < SIGMAS * 0.26 * math.sqrt(2.0 / 2000) / 4.0
    assert found["shifted"] == pytest.approx(0.197, abs=0.02)


def test_payback_and_the_scheme_that_is_as_good() -> None:
    assert payback(90.0, 1000.0, 100.0, 1000).draws == pytest.approx(10_000.0)
    coarse, fine = SCHEMES[2].label, SCHEMES[0].label
    distances, speeds = {coarse: 0.05, fine: 0.01, "map": 0.02}, {coarse: 100.0, fine: 1.0, "map": 50.0}
    assert as_good(distances, speeds, "map") == fine
    assert as_good({**distances, "map": 0.005}, speeds, "map") is None


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    arguments = ["reproduce", "prnf-abc", "--seed", "0", "--minutes", "0.02", "--num-samples", "2000"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == MANY
    assert {"nll", "ks_uniform_1", "ks_truncated_3", "grid_rms_z", "round_trip", "gap_sd"} <= set(report["metrics"])
    assert {FEW, PAIR, "simulation", SCHEMES[0].label} <= set(report["models"])
    for name in ("prnf-abc.md", "marginals.png", "grid.png"):
        assert (tmp_path / name).exists()
    # A second call finds every part finished.
    before = (tmp_path / "parts.json").read_text()
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    assert (tmp_path / "parts.json").read_text() == before
