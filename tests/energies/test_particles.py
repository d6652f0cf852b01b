"""Particles with pair energies. Statistical checks: fixed seeds, 4.5 standard errors (false alarm about 1e-5 each)."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import integrate

from pyro_boltzmann import AutoStochasticFlow
from pyro_boltzmann.energies.catalogue import DW4, LennardJones, catalogue
from pyro_boltzmann.energies.catalogue.contract import STANDARD_ERRORS
from pyro_boltzmann.energies.catalogue.lennard_jones import FLOOR
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted

PAIR_TARGETS = ["dw2", "dw4", "lj13", "lj55", "lj13_half", "lj55_half"]


def test_dw4_energy_is_the_pair_sum_and_invariant():
    target = catalogue["dw4"]
    generator = torch.Generator().manual_seed(11)
    z = 3 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    particles = target.to_particles(z)
    torch.testing.assert_close(target.from_particles(particles), z)
    d = torch.stack([torch.nn.functional.pdist(p) for p in particles])
    u = target(z)
    torch.testing.assert_close(u, (0.9 * (d - 4) ** 4 - 4 * (d - 4) ** 2).sum(-1))
    for permutation in permutations(range(4)):
        torch.testing.assert_close(target(target.from_particles(particles[:, list(permutation)])), u)
    angle = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    reflection = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    for orthogonal in (rotation, reflection, rotation @ reflection):
        torch.testing.assert_close(target(target.from_particles(particles @ orthogonal)), u)
    torch.testing.assert_close(target(target.from_particles(particles + 5.0)), u)


def test_dw4_log_z_mean_energy_and_virial_by_annealed_importance_sampling():
    """Neal (2001): random-walk Metropolis from N(0, 6 I) along powers of the target; E[w] = Z without bias.

    Chains keep their weights through further moves at the target, over which the virial is averaged. They never
    meet, so weighted means have the standard error of independent weighted draws.
    """
    target = catalogue["dw4"]
    generator = torch.Generator().manual_seed(6)
    steps, further, n, variance = 400, 200, 20_000, 6.0

    def reference(x):
        return x.square().sum(-1) / (2 * variance)

    x = variance**0.5 * torch.randn(n, 6, generator=generator)
    u, v = target(x), reference(x)
    log_weight = torch.zeros(n, dtype=torch.float64)
    virials = []
    power = 0.0
    for step in range(steps + further):
        previous, power = power, min(1.0, (step + 1) / steps) ** 3
        log_weight += (power - previous) * (v - u).double()
        # Four widths serve the broad early and the narrow late laws alike.
        width = (0.12, 0.25, 0.5, 1.0)[step % 4] * min(2.4, (power**0.5 + 0.02) ** -0.7)
        y = x + width * torch.randn(x.shape, generator=generator)
        u_y, v_y = target(y), reference(y)
        rise = power * (u_y - u) + (1 - power) * (v_y - v)
        accept = torch.empty_like(u).exponential_(generator=generator) > rise
        x, u, v = torch.where(accept[:, None], y, x), torch.where(accept, u_y, u), torch.where(accept, v_y, v)
        if step >= steps and step % 10 == 0:
            with torch.no_grad():
                _, gradient = energy_and_gradient(target, x)
            virials.append((x * gradient).sum(-1))

    relative = (log_weight + 3 * math.log(2 * math.pi * variance) - target.log_z).exp()
    error = math.hypot(relative.std().item() / n**0.5, target.log_z_error)
    assert abs(relative.mean().item() - 1) < STANDARD_ERRORS * error
    assert error < 0.025
    weight = relative / relative.sum()
    for value, truth, truth_error, largest_error in (
        (u, target.mean_energy, target.mean_energy_error, 0.04),
        (torch.stack(virials).mean(0), target.virial_dof, 0.0, 0.25),
    ):
        mean = (weight * value).sum()
        error = math.hypot((weight * (value - mean)).square().sum().sqrt().item(), truth_error)
        assert abs(mean.item() - truth) < STANDARD_ERRORS * error
        assert error < largest_error


def test_double_well_pairs_have_the_published_minima_and_are_counted_once():
    # Minima at 4 +- 1.49071 of depth 4.4444; an offset of d0 = 1, once printed, would put them at 2.49 and below 0,
    # and the sum over ordered pairs would be twice as deep.
    target = catalogue["dw2"]
    distance = torch.tensor([4 - 1.490712, 4.0, 4 + 1.490712], dtype=torch.float64)
    x = target.from_particles(torch.stack([torch.zeros(3, 2), torch.stack([distance, torch.zeros(3)], -1)], 1).double())
    expected = torch.tensor([-40 / 9, 0.0, -40 / 9], dtype=torch.float64)
    torch.testing.assert_close(target(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(math.sqrt(2) * x.norm(dim=-1), distance, rtol=0, atol=1e-6)


def test_dw2_truths_by_quadrature_over_the_distance():
    target = catalogue["dw2"]

    def integral(function):
        pieces = zip((0.0, 2.0, 3.0, 4.0, 5.0, 6.0), (2.0, 3.0, 4.0, 5.0, 6.0, 12.0), strict=True)
        return [integrate.quad(function, a, b, epsabs=1e-12, epsrel=1e-12)[0] for a, b in pieces]

    def v(r):
        return 0.9 * (r - 4) ** 4 - 4 * (r - 4) ** 2

    mass = integral(lambda r: r * math.exp(-v(r)))
    assert target.log_z == pytest.approx(math.log(math.pi * sum(mass)), abs=1e-9)
    energy = sum(integral(lambda r: v(r) * r * math.exp(-v(r))))
    assert target.mean_energy == pytest.approx(energy / sum(mass), abs=1e-9)
    assert target.delta_f == pytest.approx(math.log(sum(mass[:3]) / sum(mass[3:])), abs=1e-9)


def test_dw2_draws_have_the_law_of_the_distance_at_a_uniform_angle():
    target = catalogue["dw2"]
    x = target.sample(100_000, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    distance = (math.sqrt(2) * x.norm(dim=-1)).numpy()
    grid = np.linspace(0.5, 8, 20_001)
    density = grid * np.exp(-0.9 * (grid - 4) ** 4 + 4 * (grid - 4) ** 2)
    cumulative = integrate.cumulative_trapezoid(density, grid, initial=0)
    u = np.sort(np.interp(distance, grid, cumulative / cumulative[-1]))
    # Kolmogorov: P(sqrt(n) D > 2.47) = 2 exp(-2 * 2.47^2) = 1e-5.
    steps = np.arange(len(u) + 1) / len(u)
    assert max(np.abs(u - steps[1:]).max(), np.abs(u - steps[:-1]).max()) < 2.47 / math.sqrt(len(u))
    for moment in (x.mean(0), (x[:, 0] * x[:, 1]).mean(), (x[:, 0].square() - x[:, 1].square()).mean()):
        # |x|^2 / 2 < 16 bounds the spread of every one of these.
        assert moment.abs().max() < STANDARD_ERRORS * 16 / math.sqrt(len(x))


@pytest.mark.parametrize(("name", "factor"), [("lj13", 2.0), ("lj13_half", 1.0), ("lj55", 2.0), ("lj55_half", 1.0)])
def test_lennard_jones_energy_is_the_pair_sum_with_its_factor_and_trap(name, factor):
    target = catalogue[name]
    generator = torch.Generator().manual_seed(18)
    particles = 2 * torch.randn(20, target.num_particles, 3, generator=generator, dtype=torch.float64)
    r = torch.stack([torch.nn.functional.pdist(p) for p in particles])
    centred = particles - particles.mean(-2, keepdim=True)
    truth = factor * (r**-12 - 2 * r**-6).sum(-1) + 0.5 * centred.square().sum((-1, -2))
    torch.testing.assert_close(target(target.from_particles(particles)), truth)
    assert target.pair_factor == factor and LennardJones(3).pair_factor == 2.0
    assert target.virial_dof == 3 * (target.num_particles - 1) == target.dim


def test_lennard_jones_ground_state_and_symmetries():
    # The icosahedron is the minimum of the pair sum, -44.3268 (Hoare and Pal 1971; centre to vertex 0.9636).
    particles = icosahedron(0.96360).double()
    target = LennardJones(13, 1.0)
    x = target.from_particles(particles)
    u = target(x)
    pairs = u - 0.5 * x.square().sum(-1)
    assert pairs.item() == pytest.approx(-44.3268, abs=1e-3)
    turned = particles[torch.randperm(13, generator=torch.Generator().manual_seed(0))].flip(-1) + 3.0
    torch.testing.assert_close(target(target.from_particles(turned)), u)


@pytest.mark.parametrize("name", ["lj13", "lj55"])
def test_lennard_jones_is_finite_wherever_particles_meet(name):
    target = catalogue[name]
    particles = torch.randn(8, target.num_particles, 3, generator=torch.Generator().manual_seed(19))
    for distance, config in zip((0.0, 1e-20, 1e-6, 1e-3, 9e-3, 1.1e-2, 0.1, 0.5), particles, strict=True):
        config[1] = config[0] + torch.tensor([distance, 0.0, 0.0])
    x = target.from_particles(particles).requires_grad_()
    u, by_graph = energy_and_gradient(target, x)
    with torch.no_grad():
        values, gradient = energy_and_gradient(target, x)
    assert u.isfinite().all() and gradient.isfinite().all() and by_graph.isfinite().all()
    (second,) = torch.autograd.grad(by_graph.sum(), x)
    assert not second.isnan().any()
    torch.testing.assert_close(values, u.detach())
    assert (values[:4] > 1e22).all()
    # Where particles meet the force is that of one pair among many, and pushes them apart.
    pushed = target.to_particles(-gradient)
    assert (pushed[2:, 1, 0] > pushed[2:, 0, 0])[:5].all()


def test_lennard_jones_goes_on_along_its_tangent():
    target = LennardJones(2)
    square = torch.tensor([FLOOR * (1 - 1e-9), FLOOR, FLOOR * (1 + 1e-9)], dtype=torch.float64).unsqueeze(0)
    square.requires_grad_()
    value = target.pair_energy(square)
    (slope,) = torch.autograd.grad(value.sum(), square)
    torch.testing.assert_close(value, value[1].expand(3), rtol=1e-7, atol=0)
    torch.testing.assert_close(slope[0], slope[0, 1].expand(3), rtol=1e-7, atol=0)
    closed, closed_slope = target.pair_energy_and_slope(square.detach().clone())
    torch.testing.assert_close(closed, value.detach())
    torch.testing.assert_close(closed_slope, 2 * slope)


@pytest.mark.parametrize("name", PAIR_TARGETS)
def test_large_batches_go_in_parts_with_equal_results(name, monkeypatch):
    target = catalogue[name]
    x = 2 * torch.randn(50, target.dim, generator=torch.Generator().manual_seed(20), dtype=torch.float64)
    whole = (target(x), *target.energy_and_gradient(x))
    monkeypatch.setattr("pyro_boltzmann.energies.catalogue.particles.WORKING_SET", 1)
    for one, other in zip(whole, (target(x), *target.energy_and_gradient(x)), strict=True):
        torch.testing.assert_close(one, other)


def test_guides_use_the_formula_of_the_gradient(monkeypatch):
    calls = []
    formula = DW4.closed_form
    monkeypatch.setattr(DW4, "closed_form", lambda self, x: calls.append(len(x)) or formula(self, x))
    guide = AutoStochasticFlow(
        DW4().model(), lambda energy, dim: [MetropolisAdjusted(LeapfrogTransform(energy, dim, 0.05, 3), energy)]
    )
    with torch.no_grad():
        guide.sample_paths(11)
    assert calls and set(calls) == {11}


def icosahedron(radius: float) -> torch.Tensor:
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = torch.tensor([p[k:] + p[:k] for p in corners for k in range(3)])
    return torch.cat([torch.zeros(1, 3), radius * corners / corners[0].norm()])


def test_lj13_virial_and_mean_energy_by_hamiltonian_monte_carlo():
    """The factor c = 2 and the trap belong together: <x . grad u> = 36 needs samples and forces of one convention.

    Independent chains start from the minimum; their means are the independent numbers behind each error.
    """
    target, half = catalogue["lj13"], catalogue["lj13_half"]
    generator = torch.Generator().manual_seed(21)
    chains = 200
    x = target.from_particles(icosahedron(1.0).expand(chains, 13, 3))
    x = x + 0.02 * torch.randn(x.shape, generator=generator)

    def hmc(trajectories):
        moves = LeapfrogTransform(target, 36, step_size=0.027, num_steps=11, num_trajectories=trajectories)
        return MetropolisAdjusted(moves, target)

    values = []
    with torch.no_grad():
        state = hmc(100).stream(x, generator=generator)
        block = hmc(5)
        for _ in range(40):
            state = block.stream(state.x, state.memo, generator)
            u, gradient = target.energy_and_gradient(state.x)
            _, wrong = half.energy_and_gradient(state.x)
            values.append(torch.stack([u, (state.x * gradient).sum(-1), (state.x * wrong).sum(-1)]).double())
    assert 0.3 < state.info.acceptance < 0.95
    by_chain = torch.stack(values).mean(0)
    (u, virial, wrong), errors = by_chain.mean(-1), by_chain.std(-1) / math.sqrt(chains)
    assert abs(virial - 36) < STANDARD_ERRORS * errors[1]
    assert abs(u - target.mean_energy) < STANDARD_ERRORS * math.hypot(errors[0], target.mean_energy_error)
    assert errors[1] < 1.0 and errors[0] < 0.25
    # The force of c = 1 on the law of c = 2 gives 27.
    assert abs(wrong - 36) > STANDARD_ERRORS * errors[2]


@pytest.mark.parametrize("name", ["dw2", "dw4", "lj13"])
def test_a_wrong_number_of_particles_is_told(name):
    target = catalogue[name]
    positions = torch.zeros(5, target.num_particles, target.spatial_dim + 1)
    more = torch.zeros(2, target.dim + target.spatial_dim)
    for wrong in (positions, more, torch.zeros(2, 2 * target.dim), torch.zeros(())):
        for evaluate in (target, lambda x: energy_and_gradient(target, x)):
            with pytest.raises(ShapeError, match=rf"\(\*batch, {target.dim}\) for {target.num_particles} particles"):
                evaluate(wrong)
