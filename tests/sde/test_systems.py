"""The named systems: coefficients against other computations, invariants of their motion."""

import copy
import math
import pickle

import pytest
import torch
from scipy import special

from pyro_boltzmann.sde import simulate
from pyro_boltzmann.sde.systems import (
    SYSTEMS,
    Collisions,
    RunawayElectrons,
    abc_flow,
    abc_truncated_normal,
    absorbed_brownian_motion,
    brownian_motion,
    double_well_diffusion,
    gradient_diffusion,
    ornstein_uhlenbeck,
    runaway_electrons,
)


@pytest.fixture(params=sorted(SYSTEMS))
def system(request):
    return SYSTEMS[request.param]()


def test_every_system_runs_from_all_its_laws(system):
    assert system.name in SYSTEMS
    for law in (system.initial, *system.tests.values()):
        x0 = law.sample((50,))
        assert x0.shape == (50, system.sde.event_dim) and x0.dtype == torch.float32
        assert law.log_prob(x0).shape == (50,)
        end = simulate(system.sde, x0, 2 * system.step_size, step_size=system.step_size, seed=0)
        assert end.state.isfinite().all()


@pytest.mark.parametrize("make", [lambda: brownian_motion(2, 0.7), lambda: ornstein_uhlenbeck(2, 0.8, 0.7)])
def test_exact_laws_belong_to_their_equations(make):
    # d/dt E f = E [b f' + s^2 f'' / 2] at small times: the law's moments against the coefficients.
    system = make()
    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    drift, diffusion = system.sde.coefficients(x)
    mean, variance = system.transition.moments(x, 1e-6)
    torch.testing.assert_close((mean - x) / 1e-6, drift, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance / 1e-6, torch.full_like(x, diffusion**2), rtol=1e-5, atol=0)


def test_abc_velocity_has_no_divergence_and_is_its_own_curl():
    x = torch.rand(20, 3, dtype=torch.float64) * 6.0
    drift = abc_flow(peclet=3.0).sde.drift
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: drift(row[None])[0], row) for row in x])
    torch.testing.assert_close(jacobian.diagonal(dim1=1, dim2=2).sum(-1), torch.zeros(20, dtype=torch.float64))
    curl = torch.stack(
        [jacobian[:, (k + 2) % 3, (k + 1) % 3] - jacobian[:, (k + 1) % 3, (k + 2) % 3] for k in range(3)], -1
    )
    torch.testing.assert_close(curl, drift(x))


def test_abc_keeps_the_uniform_law_on_the_torus():
    # The flow has no divergence, so the law of positions modulo the cell stays uniform up to the steps' error.
    system, n = abc_flow(), 20_000
    x = simulate(system.sde, system.initial.sample((n,)), 0.2, step_size=0.02, scheme="runge_kutta", seed=0).state
    for wave in (x.sin(), x.cos(), (2 * x).sin(), (x[:, :1] - x[:, 1:]).cos()):
        assert (wave.double().mean(0).abs() < 4.5 / math.sqrt(2 * n)).all()


def test_truncated_normal_of_the_abc_flow():
    law = abc_truncated_normal(1.5 * math.pi, math.pi, math.pi)
    x = torch.tensor([[4.0, 3.0, 3.0], [5.0, 2.0, 3.5]])
    scale = math.pi * torch.tensor([1 / 3, 1 / 5, 1 / 4])
    published = -((x - math.pi * torch.tensor([1.5, 1.0, 1.0])) / scale).square().sum(-1)
    torch.testing.assert_close(law.log_prob(x).diff(), published.diff())
    x = law.sample((1000,))
    assert (x >= 0).all() and (x <= 2 * math.pi).all()


def test_the_absorbed_system_against_its_exact_law():
    system, n = absorbed_brownian_motion(), 20_000
    x0 = system.initial.sample((n,)).double()
    for time in (0.1, 3.0):
        end = simulate(system.sde, x0, time, step_size=0.05, seed=1)
        survival = system.transition.survival(x0, time)
        error = (survival * (1.0 - survival)).sum().sqrt()
        assert abs((~end.exited).sum() - survival.sum()) < 4.5 * error


def test_gradient_diffusion_keeps_its_stationary_law_and_detailed_balance():
    system, n = double_well_diffusion(barrier=1.0), 40_000
    grid = torch.linspace(-3.0, 3.0, 60_001, dtype=torch.float64)
    density = (-((grid**2 - 1.0) ** 2)).exp()
    generator = torch.Generator().manual_seed(1)
    x = grid[torch.multinomial(density[::10], n, replacement=True, generator=generator) * 10, None]
    y = simulate(system.sde, x, 0.5, step_size=0.01, scheme="runge_kutta", seed=2).state
    exact = [float((density * grid**k).sum() / density.sum()) for k in range(9)]
    for k in (1, 2, 4):
        error = 4.5 * math.sqrt((exact[2 * k] - exact[k] ** 2) / n)
        assert abs((y**k).mean() - exact[k]) < error
    # Forwards and backwards cannot be told apart: f(x) g(y) - g(x) f(y) has the mean 0.
    difference = (x * y**3 - x**3 * y)[:, 0]
    assert abs(difference.mean()) < 4.5 * difference.std() / math.sqrt(n)


def test_gradient_diffusion_at_another_temperature():
    sde = gradient_diffusion(lambda x: 0.5 * x.square().sum(-1), 2, temperature=0.5)
    assert sde.diffusion == pytest.approx(1.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        gradient_diffusion(lambda x: x.sum(-1), 2, temperature=0.0)


P = torch.linspace(0.2, 30.0, 400, dtype=torch.float64)


def test_collision_functions_against_scipy():
    collisions = Collisions()
    rates = collisions.rates(P)
    gamma = (1 + 2 * 3.0 * P**2 / 500).sqrt()
    x = P / (math.sqrt(0.05 / 3.0) * gamma)
    # psi = P(3/2, x^2) / 2 x^2 by the regularised incomplete gamma function.
    psi = torch.as_tensor(special.gammainc(1.5, x.numpy() ** 2)) / (2 * x**2)
    log = [14.9 - 0.5 * math.log(0.28) + math.log(t) for t in (0.05, 3.0)]
    nu = 60.0**1.5 * log[0] / log[1]
    vbar2 = 0.05 / 3.0
    torch.testing.assert_close(rates.gamma, gamma)
    torch.testing.assert_close(rates.c_a, nu * vbar2 * psi / x, rtol=1e-10, atol=0)
    torch.testing.assert_close(rates.c_f, 2 * nu * math.sqrt(vbar2) * psi, rtol=1e-10, atol=0)
    c_b = 0.5 * nu * vbar2 * (1 + x.erf() - psi + (2 * 0.05 / 500) ** 2 * x**2 / 2) / x
    torch.testing.assert_close(rates.c_b, c_b, rtol=1e-10, atol=0)


def test_the_slope_of_c_a_is_its_derivative():
    p = P.clone().requires_grad_()
    rates = Collisions().rates(p)
    (slope,) = torch.autograd.grad(rates.c_a.sum(), p)
    torch.testing.assert_close(rates.c_a_slope.detach(), slope, rtol=1e-9, atol=1e-12)
    # And in single precision, where a difference quotient would have two digits.
    single = Collisions().rates(P.float()).c_a_slope
    torch.testing.assert_close(single.double(), slope, rtol=1e-4, atol=1e-7)
    assert (rates.c_a > 1e-6).all() and (rates.c_b > 1e-6).all()


def test_radial_drift_is_the_slope_of_the_radial_diffusion():
    x = torch.rand(30, 3, dtype=torch.float64)
    x[:, 0] += 0.5
    x.requires_grad_()
    drift, diffusion = RunawayElectrons().coefficients(x)
    (slope,) = torch.autograd.grad((0.5 * diffusion[:, 2].square()).sum(), x)
    torch.testing.assert_close(drift[:, 2].detach(), slope[:, 2])


def test_runaway_electrons_stay_in_their_domain_and_leave_by_the_edge():
    system = runaway_electrons()
    end = simulate(system.sde, system.initial.sample((2000,)), 1.0, step_size=0.005, seed=0)
    p, xi, r = end.state.unbind(-1)
    assert (p >= 0.5).all() and (xi.abs() <= 1.0).all() and (r >= 0.0).all() and (r <= 1.0).all()
    assert (p == 0.5).any() and end.exited.any() and (r[end.exited] == 1.0).all() and (r[~end.exited] < 1.0).all()


def test_the_pitch_becomes_isotropic_without_a_field():
    # Only scattering is left, d xi = -2 xi D dt + sqrt(2 D (1 - xi^2)) dW, whose stationary law is uniform on [-1, 1].
    system = runaway_electrons()
    n, x0 = 20_000, system.initial.sample((20_000,))
    sde = RunawayElectrons(field=0.0, radiation_time=math.inf, radial_diffusion=0.0)
    xi = simulate(sde, x0, 0.1, step_size=0.001, seed=0).state[:, 1].double()
    assert abs(xi.mean()) < 4.5 / math.sqrt(3 * n)
    assert abs(xi.square().mean() - 1 / 3) < 4.5 * math.sqrt(4 / 45 / n)


def test_runaway_electrons_can_be_copied_and_pickled():
    sde, x = RunawayElectrons(), torch.tensor([[1.0, 0.2, 0.5]])
    for other in (copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
        assert torch.equal(other.coefficients(x)[0], sde.coefficients(x)[0])
