"""The mixture of the two forms of a score: closed forms, both limits, no worse than either form, huge forces."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.diffusion import denoising_estimate, noised_score
from pyro_boltzmann.diffusion.ratio_estimate import mixed_score
from pyro_boltzmann.energies import energy_and_gradient
from pyro_boltzmann.energies.catalogue import GMM40

SIGMAS = 4.5
SPREAD = 1.5
WORSE = 1.05
"""What the mixture's error may be of that of the better form: the price of a share that is itself estimated."""
FORMS: tuple[Any, ...] = ("target", "tweedie", "mixture")
GMM = GMM40()


def gaussian(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1) / SPREAD


def three_scores(energy: Any, x: Tensor, variance: Any, k: int) -> list[Tensor]:
    """All from the same noise."""
    return [
        noised_score(energy, x, variance, k, form=form, generator=torch.Generator().manual_seed(7)) for form in FORMS
    ]


@pytest.mark.parametrize("k", [20, 200, 2000])
def test_the_mixture_has_no_variance_on_an_isotropic_gaussian(k: int) -> None:
    """With h / (s^2 + h) of Tweedie's form every point gives the truth, so the error is (lambda - h / (s^2 + h)) times
    the difference of the forms, exactly. The residuals by themselves would give that share, and the pseudo-observations
    move it by 3 (C + d) / (n^2 Q) times less than one, where C + d estimates E|a - z|^2 and Q, the sum of squared
    residuals, is at least half of that over n, since squared weights narrow the posterior by at most sqrt(2); with a
    factor of two for the fluctuations of both, by 12 / n."""
    x, h = torch.randn(200, 3, dtype=torch.float64), torch.rand(200, dtype=torch.float64) * 4.0 + 0.01
    target, tweedie, score = three_scores(gaussian, x, h, k)
    estimate = denoising_estimate(gaussian, x, h, k, generator=torch.Generator().manual_seed(7))
    off = estimate.mixing - h / (SPREAD + h)
    truth = -x / (SPREAD + h).unsqueeze(-1)
    torch.testing.assert_close(score - truth, off.unsqueeze(-1) * (tweedie - target), rtol=1e-6, atol=1e-9)
    assert (off.abs() < 12.0 / (k * estimate.ess)).all()


def test_the_error_on_an_isotropic_gaussian_is_of_second_order() -> None:
    """The share that Stein's identity gives is off by O(n^-1/2), its part in the sums is O(1/n) and the forms differ by
    O(n^-1/2): times n^2, the error stays. From K = 250 to 4000 its root mean square falls by 256, not by the 64 of
    n^-3/2 nor by 1024: the logarithm of the ratio is within a quarter of the step to either, which is more than 4.5
    s.e. of the two root mean squares."""
    x, h = torch.randn(500, 3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    squares = []
    for k in (250, 4000):
        score = noised_score(gaussian, x, h, k)
        squares.append((score + x / (SPREAD + h)).square().sum(-1))
    ratio = 0.5 * math.log(float(squares[0].mean() / squares[1].mean()))
    error = 0.5 * math.sqrt(sum(float(s.var() / s.mean().square()) / len(s) for s in squares))
    assert SIGMAS * error < 0.5 * math.log(4.0)
    assert abs(ratio - math.log(256.0)) < SIGMAS * error


@pytest.mark.parametrize("k", [16, 100, 500])
@pytest.mark.parametrize("sigma", [0.25, 1.5, 5.0, 15.0, 50.0])
def test_the_mixture_is_no_worse_than_its_forms(sigma: float, k: int) -> None:
    """Mean squared errors at noised draws of the target: below 1.05^2 times that of the better form, by 4.5 s.e. of the
    paired difference. The best fixed share does better than one; that of each state is estimated from few points."""
    number = min(8000, 600_000 // k)
    x = GMM.sample(number) + sigma * torch.randn(number, 2)
    gradient = energy_and_gradient(lambda y: GMM.noised_energy(y, sigma**2), x.double())[1].detach()
    target, tweedie, mixture = ((each + gradient).square().sum(-1) for each in three_scores(GMM, x, sigma**2, k))
    best = min(target, tweedie, key=lambda squares: float(squares.mean()))
    excess = mixture - WORSE**2 * best
    assert float(excess.mean()) + SIGMAS * float(excess.std()) / math.sqrt(number) < 0.0


@pytest.mark.parametrize("k", [8, 100])
@pytest.mark.parametrize("sigma", [1e-4, 0.03, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("widths", [(1.0,) * 8, (0.1, 0.3, 1.0, 10.0)])
def test_no_worse_on_gaussians(widths: tuple[float, ...], sigma: float, k: int) -> None:
    """The same on Gaussians, whose score is -x / (s^2 + h), from next to no noise to more than their width."""
    square = torch.tensor(widths, dtype=torch.float64).square()
    number = 100_000 // k
    x = torch.randn(number, len(widths), dtype=torch.float64) * (square + sigma**2).sqrt()
    target, tweedie, mixture = (
        (each + x / (square + sigma**2)).square().sum(-1)
        for each in three_scores(lambda y: 0.5 * (y.square() / square).sum(-1), x, sigma**2, k)
    )
    best = min(target, tweedie, key=lambda squares: float(squares.mean()))
    excess = mixture - WORSE**2 * best
    assert float(excess.mean()) + SIGMAS * float(excess.std()) / math.sqrt(number) < 0.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_point_has_the_share_of_its_local_width(scale: float) -> None:
    """With one point the pseudo-observations are all there is: lambda = C / (C + d) with C = a.(a - z) if positive,
    from the target form (no noise) to Tweedie's (much)."""
    gradient, z = torch.randn(2, 50, 1, 3, dtype=torch.float64)
    scale = float(torch.tensor(scale))
    found = mixed_score(torch.ones(50, 1).to(z), gradient, z, torch.full((50,), scale).to(z), form="mixture")
    a = -scale * gradient
    curvature = (a * (a - z)).sum((1, 2)).clamp(min=0.0)
    torch.testing.assert_close(found.mixing, curvature / (curvature + 3.0), rtol=1e-12, atol=0.0)
    expected = (3.0 * a + curvature[:, None, None] * z) / (curvature[:, None, None] + 3.0) / scale
    torch.testing.assert_close(found.score, expected[:, 0], rtol=1e-9, atol=0.0)
    assert found.variance.isinf().all()


# Far from where the target is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1e4, 1e8, 1e30])
@pytest.mark.parametrize("form", FORMS)
def test_enormous_energies(form: Any, height: float) -> None:
    """In float32, with all energies and forces near ``height``: E_K lies between the least energy and that plus log K,
    exactly; the jackknife takes off no more than log(1 / epsilon); one point carries all weight, and what cannot be
    known is infinite, not NaN. The mixture is then Tweedie's form, in which no force is left."""
    seen = []

    def steep(y: Tensor) -> Tensor:
        u = height * (1.0 + y.square().sum(-1))
        seen.append(u.detach())
        return u

    k, rounding = 64, torch.finfo(torch.float32).eps
    x = torch.ones(20, 2)
    for correction, below in (("none", 0.0), ("jackknife", -math.log(rounding))):
        seen.clear()
        estimate = denoising_estimate(steep, x, 1.0, k, form=form, correction=correction)  # type: ignore[arg-type]
        least = seen[0].view(20, k).double().amin(-1)
        above = estimate.energy.double() - least
        slack = 2.0 * rounding * least
        assert (above <= math.log(k) + slack).all() and (above >= -below - slack).all()
        assert all(bool(each.isfinite().all()) for each in (estimate.energy, estimate.score, estimate.spread))
        assert not any(bool(each.isnan().any()) for each in estimate)
        alone = estimate.ess * k < 1.0 + rounding
        assert estimate.score_variance[alone].isinf().all() and bool(alone.any())
        if form == "mixture":
            # Of 64 draws none is further than 6 (e^-18 each); the force's share d / (C + d) takes it below one.
            assert (estimate.score[alone].norm(dim=-1) < 6.0 + 1.0).all() and (estimate.mixing[alone] > 0.9).all()


@pytest.mark.parametrize("form", FORMS)
def test_infinite_energies_among_enormous_ones(form: Any) -> None:
    """Where the energy is +inf, or overflows to it, the weight is zero; where it is so at all points, that is said."""

    def walled(y: Tensor) -> Tensor:
        return torch.where(y[..., 0] > 0.0, 1e8 * y.square().sum(-1), torch.inf)

    x = torch.tensor([[0.0, 0.0], [-1e3, 0.0], [1e20, 0.0]])
    estimate = denoising_estimate(walled, x, 1.0, 50, form=form, correction="jackknife")
    assert estimate.energy.isinf().tolist() == [False, True, True]
    assert estimate.score.isfinite().all() and not any(bool(each.isnan().any()) for each in estimate)
    assert torch.equal(estimate.score[1:], torch.zeros(2, 2)) and torch.equal(estimate.ess[1:], torch.zeros(2))
    assert estimate.energy_variance[1:].isinf().all() and estimate.score_variance[1:].isinf().all()
