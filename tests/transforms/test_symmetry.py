"""The group of identical particles: its law, its measure, and the catalogue's energies under it."""

import itertools
import math

import pytest
import torch

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.testing import STANDARD_ERRORS, check_equivariance, check_invariance
from pyro_boltzmann.transforms import ParticleElement, ParticleSymmetry, random_orthogonal

SYSTEMS = [(2, 1), (2, 2), (4, 2), (3, 3), (13, 3)]


def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def element(symmetry, number, seed=0):
    return symmetry.random(number, generator=torch.Generator().manual_seed(seed), like=double(1))


def assert_within(values, expected):
    """The mean of independent rows, coordinate by coordinate, within 4.5 standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() <= STANDARD_ERRORS * error).all()


@pytest.mark.parametrize(("particles", "dim"), SYSTEMS)
def test_the_action_is_the_one_of_the_formula(particles, dim):
    symmetry = ParticleSymmetry(particles, dim, translation_scale=2.0)
    g, x = element(symmetry, 3), double(3, particles, dim)
    moved = symmetry.act_on_particles(g, x)
    for n, i in itertools.product(range(3), range(particles)):
        truth = g.rotation[n] @ x[n, g.order[n, i]] + g.translation[n]
        torch.testing.assert_close(moved[n, i], truth)
    # Helmert coordinates feel all of it but the translation.
    torch.testing.assert_close(symmetry.act(g, symmetry.basis.to_coordinates(x)), symmetry.basis.to_coordinates(moved))


@pytest.mark.parametrize(("particles", "dim"), SYSTEMS)
def test_it_is_a_group_of_orthogonal_maps(particles, dim):
    symmetry = ParticleSymmetry(particles, dim, translation_scale=1.0)
    g, h = element(symmetry, 5), element(symmetry, 5, seed=1)
    x = double(5, particles, dim)
    act = symmetry.act_on_particles
    torch.testing.assert_close(act(g @ h, x), act(g, act(h, x)))
    torch.testing.assert_close(act(g.inverse(), act(g, x)), x)
    one = element(symmetry, None)
    torch.testing.assert_close(act(g @ one, x), act(g, act(one, x)))
    width = symmetry.basis.dim
    matrix = symmetry.act(one, torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("proper", [False, True])
def test_rotations_follow_the_haar_measure(dim, proper):
    """Moments of Haar matrices; the plain Q of LAPACK fails the first, having a sign for the first column."""
    generator = torch.Generator().manual_seed(3)
    q = random_orthogonal((40_000,), dim, proper=proper, generator=generator, like=double(1))
    eye = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(q @ q.mT, eye.expand_as(q))
    determinant = torch.linalg.det(q)
    if proper:
        torch.testing.assert_close(determinant, torch.ones_like(determinant))
    else:
        assert_within(determinant, 0.0)
    if dim > 1 or not proper:
        assert_within(q.flatten(1), 0.0)
    if dim > 1:
        assert_within(q.square().flatten(1), 1.0 / dim)
        # E[tr^2] is the number of invariants in R^D (x) R^D: the scalar product, in the plane SO(2)'s area too.
        trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert_within(trace.square(), 2.0 if dim == 2 and proper else 1.0)


def test_permutations_are_uniform():
    symmetry = ParticleSymmetry(3, 2)
    order = symmetry.random(60_000, generator=torch.Generator().manual_seed(4)).order
    number = order @ torch.tensor([9, 3, 1])
    counts = torch.unique(number, return_counts=True)[1]
    assert len(counts) == 6
    # Chi-squared with 5 degrees of freedom: P(> 31) = 1e-5.
    assert ((counts - 10_000).double().square() / 10_000).sum() < 31


def test_parts_of_the_group():
    z = double(6, 6)
    still = ParticleSymmetry(4, 2, rotations=False, permutations=False)
    assert torch.equal(element(still, 6).rotation, torch.eye(2, dtype=torch.float64).expand(6, 2, 2))
    torch.testing.assert_close(still.act(element(still, 6), z), z)
    turning = element(ParticleSymmetry(4, 2, reflections=False, permutations=False), 50)
    assert (torch.linalg.det(turning.rotation) > 0).all() and (turning.order == torch.arange(4)).all()


@pytest.mark.parametrize("name", ["dw2", "dw4", "lj13", "lj55"])
def test_catalogue_energies_are_invariant_and_their_forces_equivariant(name):
    target = catalogue[name]
    symmetry = ParticleSymmetry(target.num_particles, target.spatial_dim)
    z = 2 * double(10, target.dim)
    check_invariance(target, symmetry, z, tolerance=1e-10)
    check_equivariance(lambda one: energy_and_gradient(target, one)[1], symmetry, z, tolerance=1e-10)


def test_augmented_data_have_a_round_covariance_and_follow_the_seed():
    symmetry = ParticleSymmetry(4, 2)
    z = double(1, 6).expand(40_000, 6)
    torch.manual_seed(5)
    moved = symmetry.augment(z)
    # A mean over O(D) x S_N of a vector is zero, that of its square |z|^2 / 6: the representation is irreducible.
    assert_within(moved, 0.0)
    assert_within(
        moved.unsqueeze(-1).mul(moved.unsqueeze(-2)).flatten(1), (z[0].square().mean() * torch.eye(6)).flatten()
    )
    torch.manual_seed(5)
    assert torch.equal(symmetry.augment(z), moved)


def test_errors_name_the_shapes():
    symmetry = ParticleSymmetry(4, 2)
    g = symmetry.random()
    with pytest.raises(ShapeError, match=r"\(\*batch, 6\).*\(3, 8\)"):
        symmetry.act(g, torch.zeros(3, 8))
    with pytest.raises(ShapeError, match=r"\.act\(g, z\)"):
        symmetry.act_on_particles(g, torch.zeros(3, 6))
    with pytest.raises(ShapeError, match=r"\(n, 6\)"):
        symmetry.augment(torch.zeros(6))
    assert isinstance(g, ParticleElement) and g.order.shape == (4,)
