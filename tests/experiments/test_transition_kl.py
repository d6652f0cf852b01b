"""KL divergences of transition laws: quadrature and Monte Carlo against closed forms of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from pyro_boltzmann.experiments.transition_grid import InitialNodes, LogDensity, TransitionGrid
from pyro_boltzmann.experiments.transition_kl import conditional_kl, draw_starts, marginal_kl
from pyro_boltzmann.sde.systems import ornstein_uhlenbeck

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6
SLOPE, SHIFT, WIDTH = 0.30, 0.05, 0.8
HALF_WIDTH = 6.0
TIME = 1.0
DECAY, VARIANCE = math.exp(-TIME), 0.5 * (1.0 - math.exp(-2.0 * TIME))


def learned(y: Tensor, x0: Tensor) -> Tensor:
    """A wrong law N(a x + b, s^2) of each coordinate."""
    return torch.distributions.Normal(SLOPE * x0 + SHIFT, WIDTH).log_prob(y).sum(-1)


def exact(dim: int) -> LogDensity:
    law = ornstein_uhlenbeck(dim).transition
    return lambda y, x0: law.log_prob(y, x0, TIME)


def gaussian_kl(mean: float, variance: float, mean_q: float, variance_q: float) -> float:
    return 0.5 * (math.log(variance_q / variance) + (variance + (mean - mean_q) ** 2) / variance_q - 1.0)


def conditional_truth(first: float, second: float) -> float:
    """From the moments E x and E x^2 of the initial law."""
    slope = DECAY - SLOPE
    mismatch = slope**2 * second - 2.0 * slope * SHIFT * first + SHIFT**2
    return 0.5 * (math.log(WIDTH**2 / VARIANCE) + (VARIANCE + mismatch) / WIDTH**2 - 1.0)


MOMENTS = {
    "normal": (0.0, 1.0),
    "uniform": (0.0, 1.0 / 3.0),
    "mixture": (0.0, 1.5**2 + 0.5**2),
    "gamma": (1.0, 1.5),
}


@pytest.fixture(scope="module")
def grid() -> TransitionGrid:
    return TransitionGrid.evaluate(exact(1), learned, half_width=HALF_WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("name", list(MOMENTS))
def test_nodes_know_the_moments_of_each_law(name: str) -> None:
    """To what lies outside [-6, 6]: of the gamma law 13 exp(-12) = 8e-5, with squares up to 40."""
    nodes = InitialNodes.within(HALF_WIDTH)
    weights = nodes.weights_of(ornstein_uhlenbeck(1).tests[name])
    first, second = MOMENTS[name]
    tolerance = 4e-3 if name == "gamma" else 1e-6
    assert float(weights @ nodes.x) == pytest.approx(first, abs=tolerance)
    assert float(weights @ nodes.x.square()) == pytest.approx(second, abs=tolerance)


@pytest.mark.parametrize("name", list(MOMENTS))
def test_conditional_kl_by_quadrature(grid: TransitionGrid, name: str) -> None:
    tolerance = 1e-4 if name == "gamma" else 1e-7
    law = ornstein_uhlenbeck(1).tests[name]
    assert grid.conditional_kl(law) == pytest.approx(conditional_truth(*MOMENTS[name]), abs=tolerance)
    assert grid.mass(law) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < grid.marginal_kl(law) <= grid.conditional_kl(law)


def test_marginal_kl_by_quadrature(grid: TransitionGrid) -> None:
    truth = gaussian_kl(0.0, VARIANCE + DECAY**2, SHIFT, WIDTH**2 + SLOPE**2)
    assert grid.marginal_kl(ornstein_uhlenbeck(1).tests["normal"]) == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("dim", [1, 3])
def test_both_by_monte_carlo(dim: int, is_normalised: bool) -> None:
    """Coordinates are independent, so divergences add up (4.5 s.e.). The bias that is left in the inner logarithm is of
    the order K^-2, 1e-5."""
    system, nodes = ornstein_uhlenbeck(dim), InitialNodes.within(HALF_WIDTH)
    law = ornstein_uhlenbeck(1).tests["normal"]
    generator = Generator().manual_seed(0)
    starts = draw_starts(nodes, law, 20_000, dim, generator=generator)
    settings = {"is_normalised": is_normalised, "generator": generator}
    kl = conditional_kl(system.transition, TIME, learned, starts, **settings)
    assert abs(kl.value - dim * conditional_truth(0.0, 1.0)) < SIGMAS * kl.std_error
    marginal = marginal_kl(
        system.transition, TIME, learned, nodes, law, dim, num_states=1500, num_starts=256, **settings
    )
    truth = dim * gaussian_kl(0.0, VARIANCE + DECAY**2, SHIFT, WIDTH**2 + SLOPE**2)
    assert abs(marginal.value - truth) < SIGMAS * marginal.std_error
    assert marginal.std_error < 0.5 * truth


def test_marginal_kl_of_a_law_without_closed_form() -> None:
    """Against the quadrature, under the gamma law (4.5 s.e.)."""
    system, law = ornstein_uhlenbeck(1), ornstein_uhlenbeck(1).tests["gamma"]
    grid = TransitionGrid.evaluate(exact(1), learned, half_width=HALF_WIDTH, dtype=torch.float64)
    found = marginal_kl(
        system.transition, TIME, learned, grid.nodes, law, 1,
        num_states=4000, num_starts=128, generator=Generator().manual_seed(1),
    )  # fmt: skip
    assert abs(found.value - grid.marginal_kl(law)) < SIGMAS * found.std_error


def test_nodes_need_room_for_the_edges() -> None:
    with pytest.raises(ValueError, match=r"half_width above 1\.0"):
        InitialNodes.within(0.5)


def test_a_known_mass_lowers_the_error() -> None:
    """Near the exact law, and both ways agree (4.5 s.e.)."""
    system = ornstein_uhlenbeck(2)

    def close(y: Tensor, x0: Tensor) -> Tensor:
        return torch.distributions.Normal(DECAY * x0 + 0.02, math.sqrt(VARIANCE)).log_prob(y).sum(-1)

    starts = torch.zeros(20_000, 2, dtype=torch.float64)
    plain, better = (
        conditional_kl(
            system.transition, TIME, close, starts, is_normalised=known, generator=Generator().manual_seed(3)
        )
        for known in (False, True)
    )
    truth = 2.0 * gaussian_kl(0.0, VARIANCE, 0.02, VARIANCE)
    assert abs(plain.value - truth) < SIGMAS * plain.std_error and abs(better.value - truth) < SIGMAS * better.std_error
    assert better.std_error < 0.1 * plain.std_error
