"""Orbit coordinates: the volume against closed forms and quadrature, permutations against their share."""

import math

import pytest
import torch
from scipy import integrate
from torch.distributions import Chi2, Normal

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer import smc
from pyro_boltzmann.testing import STANDARD_ERRORS, check_invariance
from pyro_boltzmann.transforms import ParticleGauge, ParticleSymmetry

SYSTEMS = [(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3), (13, 3)]


def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bartlett_log_prob(s, dim, rank):
    """Of the slice coordinates of standard normal z: T_ii^2 is chi-squared with D - i + 1, the rest is normal."""
    diagonal = s[..., :rank].exp()
    freedom = torch.arange(dim, dim - rank, -1, dtype=torch.float64)
    # d(T^2) = 2 T^2 d(log T).
    log_diagonal = Chi2(freedom).log_prob(diagonal.square()) + (2 * diagonal.square()).log()
    above = Normal(0.0, 1.0).log_prob(s[..., rank:])
    return log_diagonal.sum(-1) + above.sum(-1)


@pytest.mark.parametrize(("particles", "dim"), SYSTEMS)
def test_the_volume_turns_bartletts_law_into_the_normal_density(particles, dim):
    """Pointwise, hence Jacobian and group volume exactly: Bartlett's decomposition of a Gaussian matrix."""
    gauge = ParticleGauge(particles, dim)
    z = double(200, gauge.basis.dim)
    rank = min(dim, particles - 1)
    assert gauge.dim == gauge.basis.dim - (rank * dim - rank * (rank + 1) // 2)
    found = gauge.log_prob(z, lambda s: bartlett_log_prob(s, dim, rank))
    torch.testing.assert_close(found, Normal(0.0, 1.0).log_prob(z).sum(-1), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("particles", "dim"), SYSTEMS)
def test_slices_and_orbits_lead_back(particles, dim):
    gauge = ParticleGauge(particles, dim)
    z = double(50, gauge.basis.dim)
    s = gauge.to_slice(z)
    torch.testing.assert_close(gauge.to_slice(gauge.to_coordinates(s)), s)
    torch.testing.assert_close(gauge.to_slice(gauge.spread(s)), s, rtol=1e-8, atol=1e-8)
    check_invariance(gauge.to_slice, ParticleSymmetry(particles, dim, permutations=False), z, tolerance=1e-8)
    # The representative is a rotation of the configuration: all scalar products are kept.
    rows, turned = (one.unflatten(-1, (-1, dim)) for one in (z, gauge.to_coordinates(s)))
    torch.testing.assert_close(turned @ turned.mT, rows @ rows.mT)


@pytest.mark.parametrize(
    ("particles", "dim", "volume"), [(2, 2, 2 * math.pi), (4, 2, 4 * math.pi), (4, 3, 16 * math.pi**2)]
)
def test_known_group_volumes(particles, dim, volume):
    gauge = ParticleGauge(particles, dim)
    assert gauge.log_volume(torch.zeros(gauge.dim).double()).exp().item() == pytest.approx(volume)
    ordered = ParticleGauge(particles, dim, permutations=True)
    expected = volume * math.factorial(particles)
    assert ordered.log_volume(torch.zeros(gauge.dim).double()).exp().item() == pytest.approx(expected)


def test_log_z_of_dw2_by_quadrature_over_the_radius():
    target = catalogue["dw2"]
    energy = ParticleGauge(2, 2).energy(target)

    def density(log_radius):
        return math.exp(-energy(torch.tensor([log_radius], dtype=torch.float64)).item())

    # d = sqrt(2) r lies between 1 and 8.
    z, _ = integrate.quad(density, math.log(0.7), math.log(5.7), limit=500, epsabs=0, epsrel=1e-10)
    assert math.log(z) == pytest.approx(target.log_z, abs=1e-8)


@pytest.mark.parametrize("permutations", [False, True])
def test_log_z_of_dw4_is_that_of_its_slice(permutations):
    target = catalogue["dw4"]
    gauge = ParticleGauge(4, 2, permutations=permutations)
    draws = smc(
        gauge.energy(target), dim=5, proposal=2.0, num_samples=4000, num_chains=4, num_moves=4, seed=1, progress=False
    )
    error = math.hypot(draws.log_normalizer_error, target.log_z_error)
    assert error < 0.3 and abs(draws.log_normalizer - target.log_z) < STANDARD_ERRORS * error


def test_a_share_of_one_in_n_factorial_is_in_order():
    gauge = ParticleGauge(4, 2, permutations=True)
    plain = ParticleGauge(4, 2)
    number = 50_000
    inside = gauge.is_ordered(plain.to_slice(double(number, 6)))
    expected = 1 / 24
    assert abs(inside.double().mean() - expected) < STANDARD_ERRORS * math.sqrt(expected * (1 - expected) / number)
    energy = gauge.energy(lambda z: 0.5 * z.square().sum(-1))
    s = plain.to_slice(double(1000, 6, seed=1))
    assert torch.equal(energy(s).isfinite(), gauge.is_ordered(s))


def test_numbered_particles_have_the_same_slice():
    gauge = ParticleGauge(4, 2, permutations=True)
    z = double(50, 6)
    s = gauge.to_slice(z)
    assert gauge.is_ordered(s).all()
    check_invariance(gauge.to_slice, ParticleSymmetry(4, 2), z, tolerance=1e-8)
    torch.testing.assert_close(gauge.to_slice(gauge.spread(s)), s, rtol=1e-8, atol=1e-8)


def test_energies_of_slices_have_gradients():
    energy = ParticleGauge(13, 3).energy(catalogue["lj13"])
    s = double(3, 33).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: energy(one) * 1e-20, s * 0.1 + 1.0)
    energy(s).sum().backward()
    assert s.grad.isfinite().all() and (s.grad != 0).all()


def test_bad_input():
    gauge = ParticleGauge(4, 2)
    with pytest.raises(ShapeError, match=r"\(\*batch, 5\)"):
        gauge.to_coordinates(torch.zeros(3, 6))
    with pytest.raises(ShapeError, match=r"\(\*batch, 6\)"):
        gauge.to_slice(torch.zeros(3, 5))
    line = gauge.basis.to_coordinates(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
    with pytest.raises(ValueError, match="1 configurations have no frame"):
        gauge.to_slice(line.unsqueeze(0))
