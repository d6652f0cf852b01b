"""Walls: laws on the line brought onto a domain keep their mass, and density and draws agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, biject_to

from pyro_boltzmann.sde import Absorbing, Boundary, Clamped, Periodic, Reflecting, Walls

SCALE = torch.tensor([0.4], dtype=torch.float64)
LAW = Normal(torch.tensor(0.7, dtype=torch.float64), 0.5)

CASES: dict[str, tuple[list[Boundary], float, float]] = {
    "mirror below": ([Reflecting(0, low=0.2)], 0.2, 8.0),
    "mirror above": ([Reflecting(0, high=0.9)], -8.0, 0.9),
    "two mirrors": ([Reflecting(0, 0.0, 1.0)], 0.0, 1.0),
    "circle": ([Periodic(0, 0.0, 1.0)], 0.0, 1.0),
    "absorbed below": ([Absorbing(0, low=0.2)], 0.2, 8.0),
    "absorbed above": ([Absorbing(0, high=0.9)], -8.0, 0.9),
    "absorbed on both sides": ([Absorbing(0, 0.0, 1.5)], 0.0, 1.5),
    "mirror below, absorbed above": ([Reflecting(0, low=0.0), Absorbing(0, high=1.0)], 0.0, 1.0),
    "clamped below": ([Clamped(0, low=0.5)], 0.5, 8.0),
    "clamped on both sides": ([Clamped(0, 0.2, 1.2)], 0.2, 1.2),
    "clamped below, absorbed above": ([Clamped(0, low=0.2), Absorbing(0, high=1.2)], 0.2, 1.2),
}


def log_density(walls: Walls, y: Tensor) -> Tensor:
    preimages = walls.unfold(y, SCALE)
    return (LAW.log_prob(preimages.u).sum(-1) + preimages.log_weight).logsumexp(0)


@pytest.mark.parametrize("name", CASES)
def test_mass_inside_and_on_the_ends_is_one(name: str) -> None:
    boundaries, low, high = CASES[name]
    walls = Walls(boundaries, 1, num_images=3, num_nodes=24)
    # Gauss-Legendre nodes in pieces stay off the ends.
    edges = torch.linspace(low, high, 401, dtype=torch.float64)
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(8))
    half = 0.5 * edges.diff().unsqueeze(-1)
    y = (edges[:-1].unsqueeze(-1) + half * (nodes + 1.0)).reshape(-1, 1)
    mass = float((log_density(walls, y).exp() * (half * weights).reshape(-1)).sum())
    atoms = [end for boundary in boundaries if isinstance(boundary, Clamped) for end in boundary.ends.values()]
    for end in atoms:
        mass += float(log_density(walls, torch.tensor([[end]], dtype=torch.float64)).exp())
    assert mass == pytest.approx(1.0, abs=2e-5)
    assert (len(atoms) > 0) == walls.has_atoms


@pytest.mark.parametrize("name", CASES)
def test_draws_lie_inside_and_follow_the_density(name: str) -> None:
    boundaries, low, high = CASES[name]
    walls = Walls(boundaries, 1, num_images=3)
    y = walls.fold(LAW.sample((20_000, 1)), SCALE)
    assert bool(walls.contains(y).all())
    assert float(y.min()) >= low and float(y.max()) <= high
    # Probabilities of the lower half by quadrature against the share of draws; atoms counted by hand.
    middle = 0.5 * (low + high) if math.isfinite(high - low) and high - low < 5 else 0.7
    grid = torch.linspace(low, middle, 4001, dtype=torch.float64)
    grid = (0.5 * (grid[1:] + grid[:-1])).unsqueeze(-1)
    exact = float(log_density(walls, grid).exp().sum() * (middle - low) / 4000)
    if any(isinstance(boundary, Clamped) for boundary in boundaries):
        exact += float(log_density(walls, torch.tensor([[low]], dtype=torch.float64)).exp())
    share = float((y < middle).double().mean())
    assert abs(share - exact) < 4.5 * math.sqrt(exact * (1.0 - exact) / 20_000) + 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_support_has_its_ends_and_nothing_beyond(name: str) -> None:
    """Atoms lie on the ends, so a distribution that validates must take them."""
    boundaries = CASES[name][0]
    walls = Walls(boundaries, 1)
    for boundary in boundaries:
        for side, end in boundary.ends.items():
            beyond = end - 1e-3 if side == "low" else end + 1e-3
            checked = walls.support.check(torch.tensor([[end], [beyond]], dtype=torch.float64))
            assert checked.tolist() == [True, False]
    y = biject_to(walls.support)(torch.linspace(-3.0, 3.0, 7, dtype=torch.float64).unsqueeze(-1))
    assert bool(walls.contains(y).all()) and bool((y[1:] != y[:-1]).all())


def test_no_mass_outside() -> None:
    walls = Walls([Reflecting(0, 0.0, 1.0)], 1)
    y = torch.tensor([[-0.01], [1.01], [math.nan], [0.5]], dtype=torch.float64)
    assert log_density(walls, y[:2]).tolist() == [-math.inf, -math.inf]
    assert walls.contains(y).tolist() == [False, False, False, True]


@pytest.mark.parametrize("name", ["absorbed below", "absorbed above", "absorbed on both sides"])
def test_the_bijection_of_absorbing_ends_has_its_derivative(name: str) -> None:
    walls = Walls(CASES[name][0], 1)
    u = torch.linspace(-3.0, 4.0, 301, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    v = walls.fold(u, SCALE)
    (slope,) = torch.autograd.grad(v.sum(), u)
    preimages = walls.unfold(v.detach(), SCALE)
    torch.testing.assert_close(preimages.u[0], u.detach(), rtol=0, atol=1e-7)
    torch.testing.assert_close(preimages.log_weight[0], -slope[:, 0].log(), rtol=0, atol=1e-7)


def test_the_reflected_brownian_motion_is_the_sum_of_its_images() -> None:
    """Against the cosine series of the heat equation with Neumann ends."""
    walls = Walls([Reflecting(0, 0.0, 1.0)], 1, num_images=4)
    y = torch.linspace(0.0, 1.0, 21, dtype=torch.float64).unsqueeze(-1)
    density = log_density(walls, y).exp()
    k = torch.arange(1, 60, dtype=torch.float64) * math.pi
    series = 1.0 + 2.0 * ((k * 0.7).cos() * (k * y).cos() * (-0.5 * k.square() * 0.25).exp()).sum(-1)
    torch.testing.assert_close(density, series, rtol=0, atol=1e-6)


def test_dequantised_atoms_lie_beyond_their_end() -> None:
    walls = Walls([Clamped(0, low=0.5)], 1)
    y = torch.tensor([0.5, 0.9], dtype=torch.float64).repeat(20_000).unsqueeze(-1)
    spread = walls.dequantise(y, SCALE.expand(y.shape))
    assert torch.equal(spread[1::2], y[1::2])
    steps = 0.5 - spread[::2]
    assert float(steps.min()) >= 0.0
    assert abs(float(steps.mean()) - 0.4) < 4.5 * 0.4 / math.sqrt(20_000)


def test_one_coordinate_cannot_be_clamped_and_reflected() -> None:
    with pytest.raises(ValueError, match="on one coordinate"):
        Walls([Clamped(0, low=0.0), Reflecting(0, high=1.0)], 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_puts_no_state_outside(name: str, dtype: torch.dtype) -> None:
    """Absorbing ends come from a difference of two large numbers where a state lies far beyond both."""
    boundaries, _, _ = CASES[name]
    walls = Walls(boundaries, 1)
    torch.manual_seed(0)
    u = 100.0 * torch.randn(200_000, 1, dtype=dtype) * torch.rand(200_000, 1, dtype=dtype).square()
    y = walls.fold(u, 10.0 ** (2.0 * torch.rand(200_000, 1, dtype=dtype) - 1.5))
    assert walls.contains(y).all()
    assert torch.isfinite(walls.unfold(y[:1000], SCALE.to(dtype)).u).all()
