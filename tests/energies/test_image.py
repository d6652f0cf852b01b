"""The image density: one table, from which energy, draws and bin probabilities follow exactly."""

import math

import numpy as np
import pytest
import torch

from pyro_boltzmann.energies.catalogue import ImageDensity, catalogue
from pyro_boltzmann.energies.catalogue.contract import STANDARD_ERRORS
from pyro_boltzmann.energies.catalogue.image import EDGE, MARGIN
from pyro_boltzmann.exceptions import ShapeError


@pytest.fixture(scope="module")
def target() -> ImageDensity:
    return catalogue["image"]


def nodes_along_one_axis() -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre nodes and weights: three in each cell of the table, sixty in each margin."""
    inner, weight = np.polynomial.legendre.leggauss(3)
    centres = np.arange(700) / 100 - EDGE
    x, w = [(centres[:-1, None] + 0.005 + 0.005 * inner).ravel()], [np.tile(0.005 * weight, 699)]
    inner, weight = np.polynomial.legendre.leggauss(60)
    half = 5 * MARGIN
    for side in (-1, 1):
        x.append(side * (EDGE + half + half * inner))
        w.append(half * weight)
    return torch.tensor(np.concatenate(x)), torch.tensor(np.concatenate(w))


def test_log_z_and_mean_energy_by_quadrature(target):
    x, w = nodes_along_one_axis()
    z = energy = 0.0
    for rows, weights in zip(x.split(100), w.split(100), strict=True):
        u = target(torch.cartesian_prod(rows, x)).view(len(rows), -1)
        mass = (-u).exp() * weights.unsqueeze(-1) * w
        z, energy = z + mass.sum().item(), energy + (mass * u).sum().item()
    assert target.log_z == pytest.approx(math.log(z), abs=1e-10)
    assert target.mean_energy == pytest.approx(energy / z, abs=1e-10)


def test_bin_probabilities_are_integrals(target):
    fine, coarse = target.bin_probabilities(60), target.bin_probabilities(12)
    torch.testing.assert_close(fine.view(12, 5, 12, 5).sum((1, 3)), coarse, rtol=1e-12, atol=1e-15)
    assert fine.min() > 0 and 0.99 < fine.sum() < 1
    # One bin of seven, by Gauss-Legendre in cells of half a pixel, none of which is cut by a kink.
    inner, weight = np.polynomial.legendre.leggauss(2)
    cells = np.arange(200) * 0.005
    x = torch.tensor((cells[:, None] + 0.0025 + 0.0025 * inner).ravel())
    w = torch.tensor(np.tile(0.0025 * weight, 200))
    low_x, low_y = -0.5, 0.5
    density = (-target(torch.cartesian_prod(x + low_x, x + low_y)) - target.log_z).exp().view(400, 400)
    assert target.bin_probabilities(7)[3, 4].item() == pytest.approx((w @ density @ w).item(), rel=1e-10)
    with pytest.raises(ShapeError, match="num_bins=0"):
        target.bin_probabilities(0)


def test_draws_fall_into_bins_as_they_should(target):
    n, bins = 400_000, 25
    x = target.sample(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = target.bin_probabilities(bins)
    edges = np.linspace(-3.5, 3.5, bins + 1)
    counts = torch.from_numpy(np.histogram2d(*x.T.numpy(), bins=(edges, edges))[0])
    assert (counts.sum() / n - p.sum()).abs() < STANDARD_ERRORS * math.sqrt(p.sum() * (1 - p.sum()) / n)
    chi_square = ((counts - n * p).square() / (n * p)).sum()
    assert abs(chi_square - bins**2) < STANDARD_ERRORS * math.sqrt(2 * bins**2)
    # Half a pixel is too little for the bins to see: compare the energy itself, whose mean an offset would raise.
    u = target(x)
    assert abs(u.mean() - target.mean_energy) < STANDARD_ERRORS * u.std() / math.sqrt(n)


def test_draws_outside_fall_off_as_half_a_normal(target):
    x = target.sample(1_000_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    excess = (x.abs() - EDGE).flatten()
    excess = excess[excess > 0] / MARGIN
    # |N(0, 1)| has mean sqrt(2 / pi) and variance 1 - 2 / pi.
    error = math.sqrt((1 - 2 / math.pi) / len(excess))
    assert len(excess) > 2000
    assert abs(excess.mean() - math.sqrt(2 / math.pi)) < STANDARD_ERRORS * error


def test_the_table_stands_at_the_centres_of_pixels(target):
    index = torch.randint(0, 700, (1000, 2), generator=torch.Generator().manual_seed(3))
    u = target((index.double() + 0.5 - 350) / 100)
    torch.testing.assert_close(u, -target.heights[index[:, 0], index[:, 1]].log(), rtol=0, atol=1e-10)
    assert target.heights.max() == 1 and target.heights.min() > 0.01


def test_the_picture_stands_upright(target):
    # The stem of the k, a flame and the bright core of another, the paper beside them.
    stem, flame, core, paper = target(torch.tensor([[-1.25, -2.6], [-1.0, -0.5], [0.0, -0.8], [-2.5, 2.5]]).double())
    assert max(stem, flame) < 0.3 and min(core, paper) > 2
    assert target(torch.tensor([-1.25, 2.6]).double()) > 2


def test_energy_is_continuous_with_a_true_gradient_outside(target):
    generator = torch.Generator().manual_seed(4)
    x = 8 * torch.rand(20_000, 2, generator=generator, dtype=torch.float64) - 4
    y = x + 1e-6 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    u, gradient = target.energy_and_gradient(x)
    # Secants lie between the slopes on both sides of a kink; no jump is hidden.
    assert (target(y) - u).abs().max() < 1e-6 * 6 * gradient.norm(dim=-1).max()
    outside = torch.tensor([[4.0, 0.2], [0.2, -3.7], [3.6, 3.8]], dtype=torch.float64)
    edge = outside.clamp(-EDGE, EDGE)
    distance = (outside - edge).square().sum(-1)
    torch.testing.assert_close(target(outside) - target(edge), distance / (2 * MARGIN**2))
    _, gradient = target.energy_and_gradient(outside)
    is_out = outside.abs() > EDGE
    torch.testing.assert_close(gradient[is_out], ((outside - edge) / MARGIN**2)[is_out])


def test_nan_is_an_energy_of_nan_and_no_index(target):
    x = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0]])
    u, _ = target.energy_and_gradient(x)
    assert u[:2].isnan().all()
    assert not u[2] < math.inf


def test_nothing_is_drawn_before_it_is_needed():
    fresh = ImageDensity()
    assert fresh.target_hash == catalogue["image"].target_hash
    assert "heights" not in fresh._derived
