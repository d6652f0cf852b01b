"""Exact transition laws: moments, composition, detailed balance."""

import pytest
import torch
from scipy import integrate

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import BrownianTransition, OrnsteinUhlenbeckTransition

LAWS = [BrownianTransition(0.7), OrnsteinUhlenbeckTransition(0.8, 0.7)]


def number(value):
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS)
def test_chapman_kolmogorov(law):
    def product(z):
        return (law.log_prob(number(z), number(0.4), 0.3) + law.log_prob(number(-0.2), number(z), 0.9)).exp().item()

    composed = integrate.quad(product, -8.0, 8.0, points=[0.0], epsabs=1e-13)[0]
    assert composed == pytest.approx(law.log_prob(number(-0.2), number(0.4), 1.2).exp().item(), rel=1e-9)


def test_detailed_balance_of_ornstein_uhlenbeck():
    theta, sigma = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 0.3]).double()
    law = OrnsteinUhlenbeckTransition(theta, sigma)
    x, y = torch.randn(2, 50, 2, dtype=torch.float64)
    energy = [(theta * z**2 / sigma**2).sum(-1) for z in (x, y)]
    torch.testing.assert_close(law.log_prob(y, x, 0.7) - energy[0], law.log_prob(x, y, 0.7) - energy[1])


def test_small_rates_approach_brownian_motion():
    x0, y = torch.randn(2, 20, 3, dtype=torch.float64)
    near, free = OrnsteinUhlenbeckTransition(1e-9, 0.7), BrownianTransition(0.7)
    torch.testing.assert_close(near.log_prob(y, x0, 1.3), free.log_prob(y, x0, 1.3), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_shapes_times_and_entropy(law):
    x0, times = torch.randn(5, 4, 2), torch.rand(4) + 0.1
    y = law.sample(x0, times)
    assert y.shape == (5, 4, 2) and law.log_prob(y, x0, times).shape == law.entropy(x0, times).shape == (5, 4)
    for k in range(4):
        alone = law.log_prob(y[:, k], x0[:, k], times[k].item())
        torch.testing.assert_close(alone, law.log_prob(y, x0, times)[:, k])
    many = x0[:1, :1].expand(40_000, 1, 2)
    values = -law.log_prob(law.sample(many, 0.5, generator=torch.Generator().manual_seed(0)), many, 0.5)
    # The information content of a Gaussian in two dimensions has the variance 1.
    assert abs(values.mean() - law.entropy(many[:1], 0.5).item()) < 4.5 / 200


def test_bad_input_is_refused():
    for time in (0.0, -1.0, torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="positive and finite"):
            LAWS[0].log_prob(torch.zeros(2, 1), torch.zeros(2, 1), time)
    with pytest.raises(ValueError, match="use BrownianTransition"):
        OrnsteinUhlenbeckTransition(0.0, 1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        BrownianTransition(torch.tensor([1.0, -1.0]))
    with pytest.raises(ShapeError, match="dimension 2"):
        BrownianTransition(torch.ones(2)).sample(torch.zeros(1, 3), 1.0)
