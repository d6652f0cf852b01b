"""Orders of the schemes without any statistical error: exact recursions, quadrature over the noise, common noise."""

import math

import numpy as np
import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import SCHEMES, SDE, OrnsteinUhlenbeckTransition, simulate
from pyro_boltzmann.sde.schemes import scheme_of

THETA, SIGMA, TIME = 1.3, 0.7, 1.0


def one(value):
    return torch.tensor([[value]], dtype=torch.float64)


def ou_errors(scheme, num_steps):
    """Errors of mean and variance: a step of a linear equation is linear in the state and in its noises."""
    sde = SDE(lambda x: -THETA * x, SIGMA, 1)
    dt, k = TIME / num_steps, scheme.num_normals

    def step(x, *noise):
        return scheme.step(sde, one(x), dt, tuple(one(z) for z in noise))[0].item()

    decay = step(1.0, *[0.0] * k)
    variance_of_step = sum(step(0.0, *[float(i == j) for j in range(k)]) ** 2 for i in range(k))
    mean, variance = 1.0, 0.0
    for _ in range(num_steps):
        mean, variance = mean * decay, variance * decay**2 + variance_of_step
    exact = OrnsteinUhlenbeckTransition(THETA, SIGMA).distribution(torch.ones(1, dtype=torch.float64), TIME)
    return np.array([mean - exact.mean.item(), variance - exact.variance.item()])


@pytest.mark.parametrize("name, order", [("euler", 1), ("milstein", 1), ("runge_kutta", 2)])
def test_weak_order_on_ornstein_uhlenbeck_by_richardson(name, order):
    coarse, fine = (ou_errors(SCHEMES[name], n) for n in (64, 128))
    assert np.abs(np.log2(np.abs(coarse / fine)) - order).max() < 0.06


@pytest.mark.parametrize("name, order", [("euler", 2), ("milstein", 2), ("runge_kutta", 3)])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_local_weak_error_on_a_nonlinear_drift(name, order, power):
    # E f(X_h) = f + h Lf + h^2 L^2 f / 2 + O(h^3) with Lf = b f' + s^2 f'' / 2; noise by Gauss-Hermite quadrature.
    scheme, sde, x0 = SCHEMES[name], SDE(torch.sin, SIGMA, 1), 0.8

    def generator(f):
        def lf(x):
            (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
            return x.sin() * slope + 0.5 * SIGMA**2 * curvature

        return lf

    def f(x):
        return x**power + 0.1 * x.cos()

    x = torch.tensor(x0, dtype=torch.float64, requires_grad=True)
    terms = [f(x).item(), generator(f)(x).item(), generator(generator(f))(x).item()]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    grid = np.meshgrid(*[nodes] * scheme.num_normals, indexing="ij")
    product = np.prod(np.meshgrid(*[weights] * scheme.num_normals, indexing="ij"), 0).ravel()
    noise = tuple(torch.tensor(axis.ravel()).unsqueeze(-1) for axis in grid)

    def error(h):
        y = scheme.step(sde, torch.full_like(noise[0], x0), h, noise)[0]
        mean = (f(y)[:, 0].numpy() * product).sum() / product.sum()
        return mean - terms[0] - h * terms[1] - (0.5 * h**2 * terms[2])

    rate = math.log2(abs(error(0.02) / error(0.01)))
    assert rate > order - 0.25


FINE = 1024


def common_paths(paths=1000):
    """Increments of Brownian paths over [0, 1], and the integrals of the paths within each fine step."""
    generator, h = torch.Generator().manual_seed(3), 1.0 / FINE
    xi, zeta = torch.randn(2, FINE, paths, 1, generator=generator, dtype=torch.float64)
    return math.sqrt(h) * xi, 0.5 * h**1.5 * (xi + zeta / math.sqrt(3.0))


def follow(name, sde, num_steps, dw, integral):
    scheme, m, dt = SCHEMES[name], FINE // num_steps, 1.0 / num_steps
    x = torch.ones(dw.shape[1:], dtype=torch.float64)
    for k in range(num_steps):
        part, inner = dw[k * m : (k + 1) * m], integral[k * m : (k + 1) * m]
        total = part.sum(0)
        area = inner.sum(0) + (part.cumsum(0) - part).sum(0) / FINE
        xi = total / math.sqrt(dt)
        zeta = math.sqrt(3.0) * (2.0 * area / dt**1.5 - xi)
        x, _ = scheme.step(sde, x, dt, (xi, zeta)[: scheme.num_normals])
    return x


def geometric(dw, integral):
    return (0.5 - 0.5 * 0.6**2 + 0.6 * dw.sum(0)).exp()


def decayed(dw, integral):
    # The stochastic integral of exp(-theta (1 - s)), to second order in each fine step.
    end = torch.arange(1, FINE + 1, dtype=torch.float64)[:, None, None] / FINE
    weight = (-THETA * (1.0 - end)).exp()
    return math.exp(-THETA) + SIGMA * (weight * (dw - THETA * integral)).sum(0)


BENT = SDE(lambda x: (3.0 * x).sin(), 1.0, 1)


@pytest.mark.parametrize(
    "name, order, sde, exact",
    [
        ("euler", 0.5, SDE(lambda x: 0.5 * x, lambda x: 0.6 * x, 1), geometric),
        ("milstein", 1.0, SDE(lambda x: 0.5 * x, lambda x: 0.6 * x, 1), geometric),
        ("euler", 1.0, SDE(lambda x: -THETA * x, SIGMA, 1), decayed),
        # The terms of order 3/2 vanish for a linear drift.
        ("runge_kutta", 2.0, SDE(lambda x: -THETA * x, SIGMA, 1), decayed),
        ("runge_kutta", 1.5, BENT, lambda *path: follow("runge_kutta", BENT, FINE, *path)),
    ],
)
def test_strong_order_on_common_paths(name, order, sde, exact):
    path = common_paths()
    coarse, fine = ((follow(name, sde, n, *path) - exact(*path)).square().mean().sqrt() for n in (32, 64))
    # Orders are multiples of one half: this tells the nearest.
    assert abs(math.log2(coarse / fine) - order) < 0.25


def test_milstein_is_euler_where_the_noise_is_constant():
    sde = SDE(torch.sin, torch.tensor([0.3, 0.4]), 2)
    x, noise = torch.randn(5, 2), (torch.randn(5, 2),)
    assert torch.equal(*(SCHEMES[name].step(sde, x, 0.1, noise)[0] for name in ("euler", "milstein")))


def test_general_noise_is_a_matrix():
    matrix = torch.tensor([[1.0, 0.5], [-0.2, 0.7]])
    x, noise = torch.randn(5, 2), torch.randn(5, 2)
    expected = x + 0.1 * x.sin() + math.sqrt(0.1) * noise @ matrix.T
    for diffusion in (matrix, lambda x: matrix.expand(len(x), 2, 2)):
        for dt in (0.1, torch.full((5, 1), 0.1)):
            y, _ = SCHEMES["euler"].step(SDE(torch.sin, diffusion, 2), x, dt, (noise,))
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    "diffusion", [0.3, torch.tensor([0.3, 0.3]), lambda x: torch.full_like(x, 0.3), 0.3 * torch.eye(2)]
)
@pytest.mark.parametrize("name", ["euler", "runge_kutta"])
def test_all_ways_to_say_the_same_noise(diffusion, name):
    x, noise = torch.randn(5, 2), (torch.randn(5, 2), torch.randn(5, 2))[: SCHEMES[name].num_normals]
    expected, _ = SCHEMES[name].step(SDE(torch.sin, 0.3, 2), x, 0.1, noise)
    y, _ = SCHEMES[name].step(SDE(torch.sin, diffusion, 2), x, torch.full((5, 1), 0.1), noise)
    torch.testing.assert_close(y, expected)


def test_noise_that_does_not_allow_a_scheme_is_refused():
    x0 = torch.rand(4, 2)
    mixed = SDE(torch.sin, lambda x: x.flip(-1), 2)
    with pytest.raises(ValueError, match="'milstein' needs"):
        simulate(mixed, x0, 1.0, step_size=0.5, scheme="milstein")
    with pytest.raises(ValueError, match="'milstein' needs"):
        simulate(SDE(torch.sin, torch.eye(2), 2), x0, 1.0, step_size=0.5, scheme="milstein")
    with pytest.raises(ValueError, match="'runge_kutta' needs additive"):
        simulate(SDE(torch.sin, torch.cos, 2), x0, 1.0, step_size=0.5, scheme="runge_kutta")
    with pytest.raises(ValueError, match="choose one of euler, milstein, runge_kutta"):
        scheme_of("heun")


def test_wrong_shapes_are_refused():
    x0 = torch.rand(4, 2)
    with pytest.raises(ShapeError, match=r"drift must have shape \(4, 2\), got shape \(4,\)"):
        simulate(SDE(lambda x: x[:, 0], 1.0, 2), x0, 1.0, step_size=0.5)
    with pytest.raises(ShapeError, match=r"diffusion must have shape \(4, 2\) or \(4, 2, 2\), got shape \(2,\)"):
        simulate(SDE(torch.sin, lambda x: torch.ones(2), 2), x0, 1.0, step_size=0.5)
    with pytest.raises(ShapeError, match=r"diffusion must have shape \(2,\) or \(2, 2\), got shape \(3,\)"):
        SDE(torch.sin, torch.ones(3), 2)
    with pytest.raises(ShapeError, match=r"states must have shape \(\*batch, 2\), got \(4, 3\)"):
        simulate(SDE(torch.sin, 1.0, 2), torch.rand(4, 3), 1.0, step_size=0.5)
    with pytest.raises(ShapeError, match="no parameters"):
        simulate(SDE(torch.sin, 1.0, 2), x0, 1.0, step_size=0.5, params=torch.ones(1))
    with pytest.raises(ShapeError, match=r"params must have shape \(\*batch, 1\), got None"):
        simulate(SDE(lambda x, c: c * x, 1.0, 2, param_dim=1), x0, 1.0, step_size=0.5)
