"""Proposals from a buffer: no bias whatever it holds, and many more effective points at large noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.diffusion import BufferProposal, denoising_estimate, noised_energy
from pyro_boltzmann.energies.catalogue import GMM40
from pyro_boltzmann.exceptions import ShapeError

GMM = GMM40()
X = torch.tensor([5.0, -3.0])


def half_of_the_modes() -> Tensor:
    draws = GMM.sample(1000)
    return draws[GMM.mode_assignment(draws) < 20]


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("variance", [25.0**2, 1.0])
@pytest.mark.parametrize("lacking", [False, True])
def test_the_density_stays_unbiased(variance: float, share: float, lacking: bool) -> None:
    buffer = half_of_the_modes() if lacking else GMM.sample(1000)
    proposal = BufferProposal(buffer, torch.randn(len(buffer)), noise_share=share, num_centres=8)
    x = GMM.sample(1).expand(20_000, 2) if variance < 2.0 else X.expand(20_000, 2)
    density = (-noised_energy(GMM, x, variance, 20, proposal=proposal).double()).exp()
    truth = math.exp(-float(GMM.noised_energy(x[0].double(), variance)))
    assert abs(float(density.mean()) - truth) < 4.5 * float(density.std()) / len(density) ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("sigma", [0.5, 5.0, 50.0])
def test_effective_points_of_an_exact_buffer(sigma: float, share: float) -> None:
    """One point with the target's variance as bandwidth is the target N(c, s^2). Then no weight is above p_h / (1 - a),
    since the buffer's part is the posterior itself, and sum w^2 <= max w sum w gives, at each draw and without any
    error, ESS / K >= (1 - a) exp(u_h - E_K)."""
    spread, centre = 1.7, torch.tensor([1.0, -2.0], dtype=torch.float64)

    def noised(y: Tensor, h: float) -> Tensor:
        return 0.5 * (y - centre).square().sum(-1) / (spread + h) + math.log(2.0 * math.pi * (spread + h))

    proposal = BufferProposal(centre.unsqueeze(0), bandwidth=spread, noise_share=share)
    x = centre + math.sqrt(spread + sigma**2) * torch.randn(300, 2, dtype=torch.float64)
    found = denoising_estimate(lambda y: noised(y, 0.0), x, sigma**2, 100, form="tweedie", proposal=proposal)
    assert (found.ess * (found.energy - noised(x, sigma**2)).exp() > (1.0 - share) * (1.0 - 1e-9)).all()


@pytest.mark.parametrize("sigma", [15.0, 50.0])
def test_effective_points_at_large_noise(sigma: float) -> None:
    """Sign tests over independent states: if the buffer did not help, more effective points, and a smaller error of the
    energy, would each be even odds, and n / 2 + 4.5 sqrt(n) / 2 of n states are beyond that."""
    x = GMM.sample(200) + sigma * torch.randn(200, 2)
    proposal = BufferProposal(GMM.sample(1000))
    plain, better = (denoising_estimate(GMM, x, sigma**2, 500, proposal=each) for each in (None, proposal))
    bound = 0.5 * len(x) + 4.5 * 0.5 * math.sqrt(len(x))
    assert int((better.ess > plain.ess).sum()) > bound
    truth = GMM.noised_energy(x, sigma**2)
    assert int(((better.energy - truth).abs() < (plain.energy - truth).abs()).sum()) > bound


def test_scores_agree_with_the_exact_one() -> None:
    """Within 4.5 s.e. and the bias of a ratio, -Cov(numerator, denominator), which Cauchy and Schwarz bound by the
    product of the standard deviations of the score and of the energy."""
    x = X.expand(400, 2).clone().requires_grad_()
    (truth,) = torch.autograd.grad(-GMM.noised_energy(x, 25.0**2).sum(), x)
    forms: tuple[Any, ...] = ("target", "tweedie", "mixture")
    for form in forms:
        estimate = denoising_estimate(
            GMM, x.detach(), 25.0**2, 400, form=form, proposal=BufferProposal(GMM.sample(1000))
        )
        error = estimate.score.std(0) / len(x) ** 0.5
        allowed = 4.5 * error + estimate.score.std(0) * estimate.energy.std()
        assert ((estimate.score.mean(0) - truth[0]).abs() < allowed).all()


def test_weights_of_the_buffer_choose_its_points() -> None:
    points = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    proposal = BufferProposal(points, torch.tensor([0.0, -torch.inf]), bandwidth=0.01, noise_share=0.1)
    y, _ = proposal.draw(torch.tensor([[10.0, 0.0]]), torch.tensor([100.0]), 100, None)
    assert ((y[0, 10:] - points[0]).norm(dim=-1) < 1.0).all()


def test_the_bandwidth_is_that_of_a_mode() -> None:
    assert 0.05 < BufferProposal(GMM.sample(2000)).bandwidth < 1.3132**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": torch.zeros(3)}, r"shape \(M, dim\)"),
        ({"points": torch.full((3, 2), math.nan)}, "finite"),
        ({"log_weights": torch.zeros(2)}, r"shape \(3,\)"),
        ({"log_weights": torch.full((3,), -math.inf)}, "not all -inf"),
        ({"noise_share": 0.0}, "modes that the buffer lacks"),
        ({"num_centres": 0}, "at least 1"),
        ({"bandwidth": -1.0}, "positive and finite"),
        ({"points": torch.zeros(3, 2)}, "stand many times"),
        ({"points": torch.zeros(1, 2)}, "one point"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        BufferProposal(**{"points": torch.randn(3, 2), **arguments})


def test_wrong_uses_are_refused() -> None:
    proposal = BufferProposal(torch.randn(30, 2))
    with pytest.raises(ShapeError, match="dimension 2, but x has 3"):
        noised_energy(lambda y: y.sum(-1), torch.zeros(1, 3), 1.0, 4, proposal=proposal)
    with pytest.raises(ShapeError, match="antithetic"):
        noised_energy(GMM, torch.zeros(1, 2), 1.0, 4, proposal=proposal, antithetic=True)
    with pytest.raises(ShapeError, match="above zero"):
        noised_energy(GMM, torch.zeros(1, 2), 0.0, 4, proposal=proposal)
