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


@pytest.mark.parametrize(("sigma", "factor"), [(15.0, 3.0), (50.0, 6.0)])
def test_effective_points_at_large_noise(sigma: float, factor: float) -> None:
    x = GMM.sample(200) + sigma * torch.randn(200, 2)
    proposal = BufferProposal(GMM.sample(1000))
    plain, better = (denoising_estimate(GMM, x, sigma**2, 500, proposal=each) for each in (None, proposal))
    assert better.ess.mean() > factor * plain.ess.mean()
    truth = GMM.noised_energy(x, sigma**2)
    rms = [float((each.energy - truth).square().mean().sqrt()) for each in (plain, better)]
    assert rms[1] < 0.4 * rms[0]


def test_scores_agree_with_the_exact_one() -> None:
    x = X.expand(400, 2).clone().requires_grad_()
    (truth,) = torch.autograd.grad(-GMM.noised_energy(x, 25.0**2).sum(), x)
    forms: tuple[Any, ...] = ("target", "tweedie", "mixture")
    for form in forms:
        estimate = denoising_estimate(
            GMM, x.detach(), 25.0**2, 400, form=form, proposal=BufferProposal(GMM.sample(1000))
        )
        error = estimate.score.std(0) / len(x) ** 0.5
        # Ratios have a bias of order 1 / ESS.
        allowed = 4.5 * error + 5.0 * estimate.score.std(0) / math.sqrt(400 * float(estimate.ess.mean()))
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
