import pytest
import torch

from pyro_boltzmann.transforms import MeanFreeBasis
from pyro_boltzmann.transforms.continuous import PairColumns, pair_columns


@pytest.fixture(params=["matrices", "shifted views"])
def way(request, monkeypatch):
    if request.param == "shifted views":
        monkeypatch.setattr(pair_columns, "_FEW", 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_particles", [2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("dim", [1, 3])
def test_every_pair_once(way, num_particles, dim):
    pairs, z = PairColumns(num_particles, dim), normal(7, (num_particles - 1) * dim)
    difference = pairs.differences(z)
    assert difference.shape == (dim, 7, num_particles * (num_particles - 1) // 2)
    i, j = torch.triu_indices(num_particles, num_particles, offset=1)
    particles = MeanFreeBasis(num_particles, dim).to_particles(z)
    expected = (particles[:, i] - particles[:, j]).square().sum(-1)
    found = difference.square().sum(0)
    torch.testing.assert_close(found.sort(-1).values, expected.sort(-1).values)
    marks = normal(num_particles)
    both = pairs.of_both(marks.view(1, -1))[0]
    torch.testing.assert_close(both.sort().values, (marks[i] + marks[j]).sort().values)


@pytest.mark.parametrize("num_particles", [2, 3, 4, 5, 8, 13])
def test_sums_are_adjoint_to_gathers(way, num_particles):
    pairs, z = PairColumns(num_particles, 2), normal(7, (num_particles - 1) * 2).requires_grad_()
    difference = pairs.differences(z)
    vectors = normal(*difference.shape, seed=1)
    forces = pairs.forces(vectors, z)
    torch.testing.assert_close(torch.autograd.grad((difference * vectors).sum(), z)[0], forces)
    particles, numbers = normal(3, 7, num_particles, seed=2), normal(3, 7, pairs.num_pairs, seed=3)
    torch.testing.assert_close((pairs.of_both(particles) * numbers).sum(), (particles * pairs.of_each(numbers)).sum())
    basis = MeanFreeBasis(num_particles, 2)
    moved = basis.to_particles(forces.detach()).permute(2, 0, 1)
    torch.testing.assert_close(pairs.signed_of_each(vectors), moved)


@pytest.mark.parametrize("num_particles", [4, 5])
def test_gradients_of_sums(way, num_particles):
    pairs = PairColumns(num_particles, 2)
    particles = normal(2, 3, num_particles).requires_grad_()
    numbers = normal(2, 3, pairs.num_pairs).requires_grad_()
    assert torch.autograd.gradcheck(pairs.of_both, particles)
    assert torch.autograd.gradcheck(pairs.of_each, numbers)
    assert torch.autograd.gradgradcheck(pairs.signed_of_each, numbers)
