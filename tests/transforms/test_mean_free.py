import copy
import pickle

import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis, helmert_basis


@pytest.mark.parametrize("num_particles", [2, 3, 4, 13, 55])
def test_helmert_is_an_orthonormal_basis_of_the_mean_free_vectors(num_particles):
    h = helmert_basis(num_particles, torch.float64)
    eye = torch.eye(num_particles, dtype=torch.float64)
    torch.testing.assert_close(h @ h.mT, eye[1:, 1:], atol=1e-14, rtol=0)
    torch.testing.assert_close(h.mT @ h, eye - 1 / num_particles, atol=1e-14, rtol=0)


def test_helmert_rows_are_the_published_ones():
    # Lancaster (1965): row k is (1, ..., 1, -k, 0, ..., 0) / sqrt(k (k + 1)).
    expected = torch.tensor([[1.0, -1, 0, 0], [1, 1, -2, 0], [1, 1, 1, -3]]).double()
    expected = expected / torch.tensor([2.0, 6, 12]).double().sqrt().unsqueeze(-1)
    torch.testing.assert_close(helmert_basis(4, torch.float64), expected, atol=1e-15, rtol=0)
    assert helmert_basis(4).dtype == torch.float32


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_coordinates_are_an_isometry(batch):
    basis = MeanFreeBasis(5, 3)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(*batch, basis.dim, generator=generator, dtype=torch.float64)
    x = basis.to_particles(z)
    assert x.shape == (*batch, 5, 3)
    torch.testing.assert_close(x.mean(-2), torch.zeros(*batch, 3).double(), atol=1e-14, rtol=0)
    torch.testing.assert_close(x.square().sum((-2, -1)), z.square().sum(-1))
    torch.testing.assert_close(basis.to_coordinates(x), z)


def test_translation_is_projected_out_and_layout_is_particle_major():
    basis = MeanFreeBasis(2, 2)
    x = torch.tensor([[1.0, 2.0], [5.0, 9.0]])
    # For two particles z = (x_1 - x_2) / sqrt(2), axis by axis.
    expected = (x[0] - x[1]) / 2**0.5
    torch.testing.assert_close(basis.to_coordinates(x), expected)
    torch.testing.assert_close(basis.to_coordinates(x + torch.tensor([3.0, -7.0])), expected)


def test_errors_name_the_shapes():
    basis = MeanFreeBasis(4, 2)
    with pytest.raises(ShapeError, match=r"\(\*batch, 6\).*\(5, 8\)"):
        basis.to_particles(torch.zeros(5, 8))
    with pytest.raises(ShapeError, match=r"\(\*batch, 4, 2\).*\(8,\)"):
        basis.to_coordinates(torch.zeros(8))
    with pytest.raises(ShapeError, match="at least 2"):
        helmert_basis(1)
    with pytest.raises(ShapeError, match="spatial_dim"):
        MeanFreeBasis(4, 0)


def test_copies():
    basis = MeanFreeBasis(4, 2)
    z = torch.ones(6)
    for other in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis))):
        assert torch.equal(other.to_particles(z), basis.to_particles(z))
