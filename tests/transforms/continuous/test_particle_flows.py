"""Flows of every field of particles, with weights that move draws: symmetric in single precision, and normalised."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_boltzmann.testing import STANDARD_ERRORS, check_equivariance, check_invariance
from pyro_boltzmann.transforms import (
    ContinuousTransform,
    EmbeddedAtomField,
    FieldSum,
    GraphField,
    KernelField,
    ParticleSymmetry,
    SplineKernels,
)
from tests.diffusion.networks_at_random import at_random


def kernels():
    return SplineKernels(24, 10.0)


def moved(field, scale):
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return field


FIELDS = {
    "kernel": lambda n, d: moved(KernelField(n, d, kernels=kernels()), 0.1),
    "embedded atoms": lambda n, d: moved(EmbeddedAtomField(n, d, kernels=kernels()), 0.05),
    "sum": lambda n, d: moved(
        FieldSum([KernelField(n, d, kernels=kernels()), EmbeddedAtomField(n, d, kernels=kernels())]), 0.05
    ),
    "graph": lambda n, d: at_random(GraphField(n, d, width=8, depth=1), scale=0.4),
}


def flow(name, num_particles, dim, num_steps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ContinuousTransform(FIELDS[name](num_particles, dim), (num_particles - 1) * dim, num_steps)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_prob(transform, x):
    z, ladj = transform.inverse_and_ladj(x)
    return -0.5 * z.square().sum(-1) - 0.5 * transform.width * math.log(2.0 * math.pi) + ladj


@pytest.mark.parametrize("name", FIELDS)
def test_map_and_density_keep_the_symmetries_in_single_precision(name):
    transform, symmetry, z = flow(name, 4, 2, 5), ParticleSymmetry(4, 2), normal(20, 6)
    with torch.no_grad():
        assert (transform(z) - z).abs().max() > 0.05
        check_equivariance(lambda x: transform.call_and_ladj(x)[0], symmetry, z, tolerance=1e-5, num_elements=3)
        check_invariance(lambda x: log_prob(transform, x), symmetry, z, tolerance=1e-5, num_elements=3)


@pytest.mark.parametrize("name", FIELDS)
def test_density_integrates_to_one(name):
    """An importance estimate with wider draws, for three particles in the plane."""
    transform, x = flow(name, 3, 2, 8), 1.6 * normal(900, 4)
    with torch.no_grad():
        log_q = log_prob(transform, x)
        assert (log_q + 0.5 * x.square().sum(-1)).std() > 0.1  # it is not that of the base
    log_p = -0.5 * (x / 1.6).square().sum(-1) - 2.0 * math.log(2.0 * math.pi * 1.6**2)
    weights = (log_q - log_p).double().exp()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.1 and abs(weights.mean() - 1.0) < STANDARD_ERRORS * error


@pytest.mark.parametrize("name", FIELDS)
def test_density_of_two_particles_on_a_line_by_quadrature(name):
    transform, x = flow(name, 2, 1, 12).double(), torch.linspace(-9.0, 9.0, 1801, dtype=torch.float64)
    with torch.no_grad():
        density = log_prob(transform, x.unsqueeze(-1)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(density, density.flip(0), rtol=1e-6, atol=1e-12)
    assert (density - torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)).abs().max() > 1e-2
