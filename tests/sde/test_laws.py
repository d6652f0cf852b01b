"""Initial laws: densities that integrate to one, samples that follow them, tails that lose no digits."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import biject_to

from pyro_boltzmann.sde import MaxwellianMomentum, ProductLaw, TruncatedNormal

N = 20_000


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


LAWS = {
    "wide": (TruncatedNormal(*double(0.5, 2.0, -1.0, 4.0)), -1.0, 4.0),
    "far above": (TruncatedNormal(*double(0.0, 1.0, 12.0, 13.0)), 12.0, 13.0),
    "far below": (TruncatedNormal(*double(0.0, 1.0, -13.0, -12.0)), -13.0, -12.0),
    "maxwellian": (MaxwellianMomentum(*double(1.0, 0.5, 5.0)), 0.5, 5.0),
    "cold maxwellian": (MaxwellianMomentum(*double(0.05, 0.5, 5.0)), 0.5, 0.6),
    "open maxwellian": (MaxwellianMomentum(*double(1.0, 0.0, math.inf)), 0.0, 12.0),
}


@pytest.mark.parametrize("law, low, high", LAWS.values(), ids=LAWS)
def test_samples_follow_a_density_of_mass_one(law, low, high):
    def density(value):
        return law.log_prob(torch.tensor(value, dtype=torch.float64)).exp().item()

    assert integrate.quad(density, low, high, epsabs=0.0)[0] == pytest.approx(1.0, abs=1e-7)
    grid = torch.linspace(low, high, 20_001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(law.log_prob(grid).exp(), dx=(high - low) / 20_000)
    x = law.sample((N,))
    assert (x >= low).all() and (x <= high).all() and x.dtype == torch.float64
    # Rows between two points of the grid are off by less than 1e-3; the level of the rest is 1e-5.
    at = ((x - low) / (high - low) * 20_000).long().clamp_max(19_999)
    assert stats.kstest(cumulative[at].numpy(), "uniform").statistic < 2.5 / math.sqrt(N) + 1e-3


@pytest.mark.parametrize(
    "law",
    [
        TruncatedNormal(torch.zeros(3, 1), 1.0, torch.zeros(2), 1.0),
        MaxwellianMomentum(torch.ones(3, 1), 0.5, torch.full((2,), 5.0)),
    ],
)
def test_shapes_and_validation(law):
    assert law.batch_shape == (3, 2) and law.sample((4,)).shape == (4, 3, 2)
    wide = law.expand([5, 3, 2])
    assert wide.batch_shape == (5, 3, 2) and wide.log_prob(law.sample()).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="support"):
        type(law)(1.0, 0.5, 2.0, validate_args=True).log_prob(torch.tensor(9.0)) if isinstance(
            law, MaxwellianMomentum
        ) else TruncatedNormal(0.0, 1.0, 0.0, 1.0, validate_args=True).log_prob(torch.tensor(9.0))
    with pytest.raises(ValueError, match="low < high"):
        MaxwellianMomentum(1.0, 2.0, 1.0)


def test_truncated_samples_are_differentiable_in_the_parameters():
    loc, scale = torch.tensor([0.3, 0.8], dtype=torch.float64).requires_grad_().unbind(0)
    x = TruncatedNormal(loc, scale, *double(-1.0, 2.0)).rsample((50,))
    # Along a path of fixed probability dx/dm = -F_m / p, here by finite differences of F.
    (gradient,) = torch.autograd.grad(x.sum(), loc)

    def cdf(m):
        return torch.as_tensor(stats.truncnorm.cdf(x.detach(), (-1 - m) / 0.8, (2 - m) / 0.8, loc=m, scale=0.8))

    slope = -(cdf(0.3 + 1e-6) - cdf(0.3 - 1e-6)) / 2e-6
    density = stats.truncnorm.pdf(x.detach(), (-1 - 0.3) / 0.8, (2 - 0.3) / 0.8, loc=0.3, scale=0.8)
    assert gradient.item() == pytest.approx((slope / torch.as_tensor(density)).sum().item(), rel=1e-6)


def test_a_product_adds_the_densities_of_its_coordinates():
    laws = [MaxwellianMomentum(1.0, 0.5, 5.0), dist.Uniform(-1.0, 1.0), dist.Normal(torch.zeros(3), 1.0)]
    product = ProductLaw(laws)
    assert product.batch_shape == (3,) and product.event_shape == (3,)
    x = product.sample((4,))
    assert x.shape == (4, 3, 3)
    expected = sum(law.log_prob(x[..., k]) for k, law in enumerate(laws))
    torch.testing.assert_close(product.log_prob(x), expected)
    assert product.expand([2, 3]).sample().shape == (2, 3, 3)
    # The unconstrained space that NUTS uses leads back into the support.
    inside = biject_to(product.support)(10.0 * torch.randn(7, 3, 3))
    assert product.support.check(inside).all() and product.log_prob(inside).isfinite().all()
    with pytest.raises(ValueError, match="distribution of numbers"):
        ProductLaw([dist.Normal(torch.zeros(2), 1.0).to_event(1)])
