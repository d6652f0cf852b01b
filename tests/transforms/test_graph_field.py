"""The graph network's velocity, and the flow that it makes: symmetries in single precision, smoothness, gradients."""

import itertools
import math

import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.testing import check_gradients, check_round_trip
from pyro_boltzmann.transforms import ContinuousTransform, GraphField, MeanFreeBasis
from tests.diffusion.networks_at_random import at_random, configurations, orthogonal


def moved(basis, x, seed, determinant):
    """Coordinates of rotated or mirrored, shifted and permuted positions (n, N, D), and that action on coordinates."""
    matrix = orthogonal(basis.spatial_dim, seed, determinant).to(x)
    order = torch.randperm(basis.num_particles, generator=torch.Generator().manual_seed(seed))

    def act(z):
        return basis.to_coordinates((basis.to_particles(z) @ matrix.mT)[:, order])

    return basis.to_coordinates((x @ matrix.mT)[:, order] + 3.0), act


@pytest.mark.parametrize("num_particles, spatial_dim", [(2, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("determinant", [1, -1])
def test_flow_keeps_the_symmetries_of_particles(num_particles, spatial_dim, determinant):
    """The map is equivariant and log q invariant, to 1e-5 in single precision."""
    basis = MeanFreeBasis(num_particles, spatial_dim)
    field = at_random(GraphField(num_particles, spatial_dim, width=16, depth=2), scale=0.7)
    transform = ContinuousTransform(field, basis.dim, 5)
    x = configurations(num_particles, spatial_dim, 20, seed=num_particles)
    z = basis.to_coordinates(x)
    z_moved, act = moved(basis, x, num_particles, determinant)
    with torch.no_grad():
        for direction in (transform.call_and_ladj, transform.inverse_and_ladj):
            y, ladj = direction(z)
            y_moved, ladj_moved = direction(z_moved)
            assert (y - z).abs().max() > 0.1
            torch.testing.assert_close(y_moved, act(y), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ladj_moved, ladj, rtol=1e-5, atol=1e-5)
        log_q, log_q_moved = (-0.5 * y.square().sum(-1) + ladj for y, ladj in ((y, ladj), (y_moved, ladj_moved)))
        torch.testing.assert_close(log_q_moved, log_q, rtol=1e-5, atol=1e-5)


def test_log_determinant_is_that_of_the_map():
    field = at_random(GraphField(3, 2, width=8, depth=2), scale=0.7).double()
    z = MeanFreeBasis(3, 2).to_coordinates(configurations(3, 2, 4, dtype=torch.float64))
    gaps = []
    for num_steps in (20, 40):
        transform = ContinuousTransform(field, 4, num_steps)
        with torch.no_grad():
            ladj = transform.call_and_ladj(z)[1]
            gap = ladj - transform.configure(divergence="jacobian").call_and_ladj(z)[1]
        gaps.append(float(gap.square().mean().sqrt()))
    assert 3.3 < math.log2(gaps[0] / gaps[1]) < 4.7, gaps
    check_round_trip(ContinuousTransform(field, 4, 80), z, tolerance=1e-4)


def test_untrained_flow_moves_nothing():
    y, ladj = ContinuousTransform(GraphField(4, 2), 6, 2).call_and_ladj(torch.ones(3, 6))
    assert y.equal(torch.ones(3, 6)) and ladj.count_nonzero() == 0


def test_every_parameter_receives_a_gradient():
    field = at_random(GraphField(3, 2, width=8, depth=2))
    assert check_gradients(ContinuousTransform(field, 4, 3), torch.randn(5, 4)) > 0


def test_coincident_particles_are_finite():
    field = at_random(GraphField(4, 2, width=8))
    velocity, divergence = field.velocity_and_divergence(0.5, torch.zeros(2, 6))
    assert velocity.abs().max() < 1e-6 and bool(divergence.isfinite().all())


def test_times_of_rows_and_smoothness_in_time():
    field = at_random(GraphField(3, 2, width=8)).double()
    z = torch.randn(2, 5, 4, dtype=torch.float64)
    t = torch.rand(2, 5, dtype=torch.float64)
    whole = field(t, z)
    for i, j in itertools.product(range(2), range(5)):
        torch.testing.assert_close(field(float(t[i, j]), z[i, j]), whole[i, j])
    for end in (0.0, 0.5, 1.0):
        time = torch.tensor(end, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t: field(t, z[0, :2]), time)
        assert torch.autograd.gradgradcheck(lambda t: field(t, z[0, :2]), time)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"expected mean-free coordinates of shape \(\*batch, 6\) for 4 particles"):
        GraphField(4, 2)(0.5, torch.zeros(5, 8))
    with pytest.raises(ShapeError, match="works in dimension 6, the transform in 8"):
        ContinuousTransform(GraphField(4, 2), 8)
    with pytest.raises(ValueError, match="width >= 1"):
        GraphField(4, 2, width=0)
    with pytest.raises(ValueError, match="depth >= 1"):
        GraphField(4, 2, depth=0)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "settings", [{}, {"divergence": "jacobian"}, {"solver": "otd"}, {"divergence": "hutchinson"}], ids=str
)
def test_flow_on_a_gpu(cuda, settings):
    transform = ContinuousTransform(at_random(GraphField(4, 2, width=16), scale=0.5), 6, 10, **settings)
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, ladj = transform.call_and_ladj(z)
        y_cuda, ladj_cuda = transform.to(cuda).call_and_ladj(z.to(cuda))
    torch.testing.assert_close(y_cuda.cpu(), y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ladj_cuda.cpu(), ladj, rtol=1e-3, atol=1e-3)
    y, ladj = transform.call_and_ladj(z.to(cuda))
    (y.square().sum() - ladj.sum()).backward()
    assert all(parameter.grad is not None for parameter in transform.parameters())
