"""Minima of known surfaces, of DW-4 and of LJ-13, verified by their Hessians."""

import math

import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from pyro_boltzmann.energies import count_evaluations
from pyro_boltzmann.energies.catalogue import LennardJones, catalogue
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer import find_minima
from pyro_boltzmann.infer.descent import descend
from pyro_boltzmann.transforms import MeanFreeBasis, ParticleSymmetry


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def icosahedron(radius):
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = torch.tensor([p[k:] + p[:k] for p in corners for k in range(3)], dtype=torch.float64)
    return torch.cat([torch.zeros(1, 3).double(), radius * corners / corners[0].norm()])


def test_the_double_well_of_the_notes():
    found = find_minima(catalogue["double_well"], 2 * normal(200, 2))
    assert found.x[:, 0].tolist() == pytest.approx([1.752520, -1.710829], abs=1e-6)
    assert found.energy.tolist() == pytest.approx([-9.871173, -8.139247], abs=1e-6)
    # The valley is round along y with curvature 1, the smaller of the two.
    assert found.curvature.tolist() == pytest.approx([1.0, 1.0]) and found.is_minimum.all()
    assert found.count.sum() == 200 and (found.label == (found.x[found.label, 0] < 0)).all()


def test_a_minimum_at_the_origin_is_one():
    """It has no length of its own that ends of descents could be compared with."""
    found = find_minima(lambda x: x.square().sum(-1) + x.pow(4).sum(-1), normal(50, 3))
    assert len(found) == 1 and found.count.tolist() == [50] and found.is_minimum.all()
    assert found.x.abs().max() < 1e-5 and found.curvature.item() == pytest.approx(2.0)


def test_the_bound_and_the_loose_pair():
    target = catalogue["dw2"]
    found = find_minima(target, 2 * normal(100, 2), target.basis)
    assert found.energy.tolist() == pytest.approx([-40 / 9] * 2)
    distances = (math.sqrt(2) * found.x.norm(dim=-1)).sort().values
    assert distances.tolist() == pytest.approx([4 - math.sqrt(20 / 9), 4 + math.sqrt(20 / 9)])
    # v'' = 16 at both, and d = sqrt(2) r; the rotation is left out.
    assert found.curvature.tolist() == pytest.approx([32.0, 32.0])


def test_isomers_of_dw4_are_told_apart_whatever_their_orientation():
    target = catalogue["dw4"]
    x = 2.2 * normal(150, 6)
    found = find_minima(target, x, target.basis)
    assert len(found) == 5 and found.is_minimum.all() and (found.label >= 0).all()
    for start in found.x:
        scipy = minimize(lambda z: target(torch.from_numpy(z)).item(), start.numpy(), method="Nelder-Mead")
        assert scipy.fun == pytest.approx(target(start).item(), abs=1e-6)
    _, gradient = target.energy_and_gradient(found.x)
    assert gradient.norm(dim=-1).max() < 1e-5
    moved = find_minima(target, ParticleSymmetry(4, 2).augment(x.double()), target.basis)
    torch.testing.assert_close(moved.energy, found.energy)
    assert torch.equal(moved.count, found.count)


def test_the_ground_state_of_thirteen_particles():
    target = catalogue["lj13"]
    start = target.from_particles(icosahedron(0.9636))
    found = find_minima(target, start + 0.1 * normal(20, 36), target.basis)
    # One radius remains of the icosahedron under the trap.
    one = minimize_scalar(lambda r: target(target.from_particles(icosahedron(r))).item(), (0.9, 1.0), tol=1e-12)
    assert found.energy[0].item() == pytest.approx(one.fun, abs=1e-6)
    assert one.fun == pytest.approx(-83.0896, abs=1e-3)
    assert found.count[0] == 20 and found.curvature[0] > 100


def test_other_states_of_thirteen_particles_lie_above():
    target = catalogue["lj13"]
    with count_evaluations() as count:
        found = find_minima(target, normal(60, 36), target.basis)
    assert len(found) > 10 and found.is_minimum.all() and found.energy[0].item() == pytest.approx(-83.0896, abs=1e-3)
    assert (found.energy.diff() >= 0).all() and found.energy[1] > -77
    assert count.gradients < 300 * 60


def test_a_pair_in_space_has_two_rotations_not_three():
    """What is left is the stretching mode: twice the second derivative in the distance, r = sqrt(2) |z|."""
    target = LennardJones(2)
    found = find_minima(target, normal(10, 3), target.basis)
    assert len(found) == 1 and found.is_minimum.all()

    def energy(r):
        return target(torch.tensor([r / math.sqrt(2), 0.0, 0.0], dtype=torch.float64)).item()

    r, h = math.sqrt(2) * found.x[0].norm().item(), 1e-4
    second = 2 * (energy(r + h) - 2 * energy(r) + energy(r - h)) / h**2
    assert found.curvature[0].item() == pytest.approx(second, rel=1e-4)


def test_particles_on_a_line_have_no_rotations():
    basis = MeanFreeBasis(3, 1)

    def chain(z):
        x = basis.to_particles(z).squeeze(-1).sort(-1).values
        return (x.diff(dim=-1) - 1).square().sum(-1)

    found = find_minima(chain, normal(10, 2), basis)
    assert len(found) == 1 and found.is_minimum.all() and found.count.tolist() == [10]


def test_a_saddle_is_called_one():
    def saddle(x):
        return (x[..., 0].square() - 1).square() + x[..., 1].square()

    found = find_minima(saddle, torch.tensor([[0.0, 0.7], [0.3, 0.1], [-0.3, 0.1]]))
    assert found.energy.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-8)
    assert found.is_minimum.tolist() == [True, True, False] and found.curvature[2].item() == pytest.approx(-4.0)


def test_descents_that_do_not_end_are_not_counted():
    slope = lambda x: x.sum(-1)  # noqa: E731
    found = find_minima(slope, normal(5, 2), max_steps=20)
    assert len(found) == 0 and (found.label == -1).all() and found.count.numel() == 0
    holes = lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1), torch.nan)  # noqa: E731
    ends, u, converged = descend(holes, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double(), max_steps=50)
    assert not converged[1] and torch.equal(ends[1], torch.tensor([-1.0, 1.0]).double()) and u[1].isnan()
    assert u[0] < 2


def test_quadratics_converge_like_conjugate_gradients():
    curvature = torch.logspace(0, 3, 12, dtype=torch.float64)
    with count_evaluations() as count:
        ends, u, converged = descend(lambda x: 0.5 * (curvature * x.square()).sum(-1), normal(50, 12).double())
    assert converged.all() and u.max() < 1e-10 and ends.abs().max() < 1e-4
    assert count.gradients < 150 * 50


def test_bad_input():
    with pytest.raises(ShapeError, match=r"\(n, 6\)"):
        find_minima(catalogue["dw4"], torch.zeros(3, 8), catalogue["dw4"].basis)
