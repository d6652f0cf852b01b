"""Absorption against the method of images: nothing is left of the step size where the bridge is exact."""

import math

import pytest
import torch
from scipy import integrate, special, stats

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import SDE, AbsorbedBrownianTransition, Absorbing, simulate

N = 40_000
LAW = AbsorbedBrownianTransition(0.0, 6.0)


def brownian(scale=1.0, bridge=True, **ends):
    return SDE(torch.zeros_like, scale, 1, boundaries=[Absorbing(0, **ends, bridge=bridge)])


def within(frequency, probability, n=N):
    return abs(frequency - probability) < 4.5 * math.sqrt(probability * (1.0 - probability) / n)


def test_exits_through_one_plane_are_exact_in_one_step():
    # P(tau < t) = erfc(a / sqrt(2 s^2 t)), and the time of exit has the Levy law.
    x0, s = torch.full((N, 1), 1.5, dtype=torch.float64), 0.8
    end = simulate(brownian(s, high=2.0), x0, 3.0, step_size=3.0, seed=0)
    levy = stats.levy(scale=(0.5 / s) ** 2)
    assert within(end.exited.double().mean(), levy.cdf(3.0))
    times = end.exit_time[end.exited]
    assert (end.state[end.exited] == 2.0).all() and (end.state[~end.exited] < 2.0).all()
    assert end.exit_time[~end.exited].isinf().all()
    # Kolmogorov-Smirnov at a level of 1e-5.
    uniform = levy.cdf(times.numpy()) / levy.cdf(3.0)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("drift", [-0.7, 0.4])
def test_a_constant_drift_leaves_the_bridge_exact(drift):
    # Given both ends of a step the bridge knows nothing of the drift.
    sde = SDE(lambda x: torch.full_like(x, drift), 1.0, 1, boundaries=[Absorbing(0, high=2.0)])
    end = simulate(sde, torch.full((N, 1), 1.5, dtype=torch.float64), 3.0, step_size=1.5, seed=6)

    def cdf(t):
        again = math.exp(2.0 * drift * 0.5) * stats.norm.cdf((-0.5 - drift * t) / t**0.5)
        return stats.norm.cdf((drift * t - 0.5) / t**0.5) + again

    assert within(end.exited.double().mean(), cdf(3.0))
    assert stats.kstest(cdf(end.exit_time[end.exited].numpy()) / cdf(3.0), "uniform").pvalue > 1e-5


def test_survivors_of_one_plane_have_the_law_of_images():
    x0 = torch.full((N, 1), 1.5, dtype=torch.float64)
    end = simulate(brownian(high=2.0), x0, 1.0, step_size=0.5, seed=1)
    y = end.state[~end.exited, 0].numpy()
    survival = 1.0 - special.erfc(0.5 / math.sqrt(2.0))

    def cdf(v):
        return (stats.norm.cdf(v - 1.5) - stats.norm.cdf(v - 2.5)) / survival

    assert stats.kstest(y, cdf).pvalue > 1e-5


@pytest.mark.parametrize("start, time", [(3.0, 3.0), (1.0, 3.0), (5.5, 0.3)])
def test_exits_between_two_planes(start, time):
    x0 = torch.full((N, 1), start)
    end = simulate(brownian(low=0.0, high=6.0), x0, time, step_size=0.1, seed=2)
    assert within(1.0 - end.exited.double().mean(), LAW.survival(x0[0], time).item())


def test_without_the_bridge_exits_are_missed():
    x0 = torch.full((N, 1), 1.0)
    exits = [
        simulate(brownian(low=0.0, high=6.0, bridge=b), x0, 3.0, step_size=0.1, seed=3).exited for b in (True, False)
    ]
    truth = 1.0 - LAW.survival(x0[0], 3.0).item()
    error = math.sqrt(truth * (1.0 - truth) / N)
    assert abs(exits[0].double().mean() - truth) < 4.5 * error < truth - exits[1].double().mean()


def test_exit_times_of_their_own_end_and_general_noise():
    # One plane of a correlated motion: its coordinate alone is a Brownian motion of variance 1.
    matrix = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    sde = SDE(torch.zeros_like, matrix, 2, boundaries=[Absorbing(0, low=0.0)])
    x0 = torch.tensor([0.7, 5.0], dtype=torch.float64).expand(N, 2)
    times = torch.linspace(0.1, 3.0, N, dtype=torch.float64)[torch.randperm(N)]
    end = simulate(sde, x0, times, step_size=0.4, seed=4)
    assert (end.exit_time[end.exited] <= times[end.exited] + 1e-9).all()
    probability = torch.special.erfc(0.7 / (2.0 * times).sqrt())
    error = (probability * (1.0 - probability)).sum().sqrt()
    assert abs(end.exited.sum() - probability.sum()) < 4.5 * error


def test_the_first_of_two_planes_counts():
    # Without noise, straight lines: the exit time and place are those of the nearer plane.
    sde = SDE(torch.ones_like, 0.0, 2, boundaries=[Absorbing(0, high=1.0), Absorbing(1, high=1.0)])
    x0 = torch.tensor([[0.5, 0.0], [0.25, 0.9], [-9.0, -9.0]], dtype=torch.float64)
    end = simulate(sde, x0, 3.0, step_size=3.0)
    assert end.exited.tolist() == [True, True, False]
    torch.testing.assert_close(end.exit_time[:2], torch.tensor([0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(end.state, torch.tensor([[1.0, 0.5], [0.35, 1.0], [-6.0, -6.0]], dtype=torch.float64))


def test_those_outside_at_the_start_have_left_already():
    end = simulate(
        brownian(low=0.0, high=6.0), torch.tensor([[-1.0], [0.0], [7.0], [3.0]]), 0.01, step_size=0.01, seed=0
    )
    assert end.exited.tolist() == [True, True, True, False] and end.exit_time[:3].tolist() == [0.0] * 3
    assert end.state[:3, 0].tolist() == [-1.0, 0.0, 7.0]


@pytest.mark.parametrize("time", [0.05, 1.0, 8.9, 9.1, 30.0])
def test_the_density_integrates_to_survival(time):
    x0 = torch.tensor([1.7], dtype=torch.float64)

    def density(y):
        return LAW.log_prob(torch.tensor([y], dtype=torch.float64), x0, time).exp().item()

    mass = integrate.quad(density, 0.0, 6.0, points=[1.7], limit=200)[0]
    assert mass == pytest.approx(LAW.survival(x0, time).item(), abs=1e-9)


def test_images_and_sines_agree_where_they_meet():
    # At L^2 / (4 s^2) the sums change; both sides must be the same function, and satisfy Chapman-Kolmogorov.
    x0, y = (
        torch.tensor([[0.3], [3.0], [5.0]], dtype=torch.float64),
        torch.tensor([[2.0], [0.1], [5.9]], dtype=torch.float64),
    )
    before, after = (LAW.log_prob(y, x0, 9.0 + e) for e in (-1e-9, 1e-9))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-8)
    before, after = (LAW.survival(x0, 9.0 + e) for e in (-1e-9, 1e-9))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-8)
    middle = torch.linspace(0.0, 6.0, 4001, dtype=torch.float64)[:, None, None]
    product = (LAW.log_prob(middle.expand(-1, 3, 1), x0, 5.0) + LAW.log_prob(y, middle, 6.0)).exp()
    composed = torch.trapezoid(product, dx=6.0 / 4000, dim=0)
    torch.testing.assert_close(composed, LAW.log_prob(y, x0, 11.0).exp(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("time", [1.0, 12.0])
def test_exact_draws_follow_the_density(time):
    x0 = torch.full((N, 1), 1.7, dtype=torch.float64)
    y, exited = LAW.sample(x0, time, generator=torch.Generator().manual_seed(5))
    survival = LAW.survival(x0[0], time).item()
    assert within(1.0 - exited.double().mean(), survival) and y[exited].isnan().all()
    grid = torch.linspace(0.0, 6.0, 2001, dtype=torch.float64)[:, None]
    cumulative = torch.cumulative_trapezoid(LAW.log_prob(grid, x0[0], time).exp(), dx=6.0 / 2000) / survival
    uniform = torch.cat([torch.zeros(1), cumulative])[(y[~exited, 0] / 6.0 * 2000).round().long()]
    assert stats.kstest(uniform.numpy(), "uniform").statistic < 2.5 / math.sqrt(len(uniform))


def test_outside_and_bad_input():
    at = torch.tensor([3.0])
    assert LAW.log_prob(torch.tensor([[-0.1], [6.1]]), at, 1.0).tolist() == [-math.inf] * 2
    assert LAW.survival(torch.tensor([[-1.0], [7.0]]), 1.0).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="positive and finite"):
        LAW.survival(at, 0.0)
    with pytest.raises(ShapeError, match=r"\(\*batch, 1\)"):
        LAW.survival(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="low < high"):
        AbsorbedBrownianTransition(1.0, 1.0)
