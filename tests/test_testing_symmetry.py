"""The checks of symmetry find what breaks it, and only that."""

import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.testing import check_equivariance, check_invariance, is_equivariant, is_invariant
from pyro_boltzmann.transforms import MeanFreeBasis, ParticleSymmetry

BASIS = MeanFreeBasis(3, 2)
FULL = ParticleSymmetry(3, 2)
ROTATIONS = ParticleSymmetry(3, 2, reflections=False, permutations=False)
REFLECTIONS = ParticleSymmetry(3, 2, permutations=False)
PERMUTATIONS = ParticleSymmetry(3, 2, rotations=False)


def points(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def area(z):
    """Of the triangle, with its sign: kept by rotations, changed by reflections and odd permutations."""
    x = BASIS.to_particles(z)
    a, b = x[..., 1, :] - x[..., 0, :], x[..., 2, :] - x[..., 0, :]
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def test_each_part_of_the_group_is_told_apart():
    z = points(20, 4)
    assert is_invariant(area, ROTATIONS, z)
    assert not is_invariant(area, REFLECTIONS, z) and not is_invariant(area, PERMUTATIONS, z)
    assert is_invariant(lambda one: area(one).square(), FULL, z)
    weights = torch.tensor([1.0, 2.0, 3.0])
    heavy = lambda one: BASIS.to_particles(one).square().sum(-1) @ weights  # noqa: E731
    assert is_invariant(heavy, REFLECTIONS, z) and not is_invariant(heavy, PERMUTATIONS, z)
    along = lambda one: BASIS.to_particles(one)[..., 0].square().sum(-1)  # noqa: E731
    assert is_invariant(along, PERMUTATIONS, z) and not is_invariant(along, ROTATIONS, z)


def test_equivariance_is_not_invariance():
    z = points(20, 4)
    assert is_equivariant(lambda one: -2 * one, FULL, z)
    assert not is_equivariant(lambda one: one.norm(dim=-1, keepdim=True).expand_as(one), FULL, z)
    assert not is_equivariant(lambda one: one + 1, FULL, z)


def test_translations_of_positions():
    symmetry = ParticleSymmetry(3, 2, translation_scale=3.0)
    x = points(20, 3, 2)
    centred = lambda one: (one - one.mean(-2, keepdim=True)).square().sum((-2, -1))  # noqa: E731
    assert is_invariant(centred, symmetry, x)
    assert not is_invariant(lambda one: one.square().sum((-2, -1)), symmetry, x)
    # A flow moves along with a translation, a force does not.
    assert is_equivariant(lambda one: 2 * one - one.mean(-2, keepdim=True), symmetry, x)
    assert not is_equivariant(lambda one: one - one.mean(-2, keepdim=True), symmetry, x)
    assert is_equivariant(lambda one: one - one.mean(-2, keepdim=True), FULL, x)


def test_deviation_and_tolerance():
    z = points(20, 4).double()
    off = 1e-3
    wrong = lambda one: one.square().sum(-1) + off * one[..., 0]  # noqa: E731
    with pytest.raises(AssertionError, match=r"not invariant"):
        check_invariance(wrong, FULL, z)
    deviation = check_invariance(wrong, FULL, z, tolerance=0.1)
    assert 1e-4 < deviation < 2e-2
    with pytest.raises(AssertionError, match=r"not equivariant"):
        check_equivariance(torch.tanh, FULL, z)
    with pytest.raises(AssertionError, match="nan"):
        check_invariance(lambda one: one.sum(-1) * torch.nan, FULL, z)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"\(n, N, D\)"):
        check_invariance(area, FULL, points(4))
    with pytest.raises(ShapeError, match=r"must have the shape \(20, 4\)"):
        check_equivariance(area, FULL, points(20, 4))
    with pytest.raises(ValueError, match="num_elements"):
        check_invariance(area, FULL, points(20, 4), num_elements=0)
