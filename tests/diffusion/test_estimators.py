"""Estimators of noised energies and scores against closed forms: bias, rates, mixtures, variances, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.diffusion import (
    bootstrapped_energy,
    bootstrapped_estimate,
    denoising_estimate,
    noised_energy,
    noised_score,
)
from pyro_boltzmann.energies import EvaluationCount, count_evaluations
from pyro_boltzmann.energies.catalogue import GMM40, LennardJones
from pyro_boltzmann.exceptions import EnergyError, NonFiniteEnergyError, ShapeError

SPREAD = 1.5  # variance of the Gaussian target
NOISE = 1.0
GMM = GMM40()


def gaussian(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1) / SPREAD + 0.5 * x.shape[-1] * math.log(2.0 * math.pi * SPREAD)


def noised_gaussian(x: Tensor, variance: Tensor) -> Tensor:
    total = SPREAD + variance
    return 0.5 * x.square().sum(-1) / total + 0.5 * x.shape[-1] * (2.0 * math.pi * total).log()


def assert_mean(draws: Tensor, truth: float) -> None:
    error = float(draws.double().std()) / math.sqrt(len(draws))
    assert abs(float(draws.double().mean()) - truth) < 4.5 * error


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 10.0])
def test_the_density_is_unbiased(sigma: float, antithetic: bool) -> None:
    x = GMM.constants["means"][4].float() + 1.0  # type: ignore[index]
    estimate = noised_energy(GMM, x.expand(40_000, 2), sigma**2, 4, antithetic=antithetic)
    assert_mean((-estimate).exp(), math.exp(-float(GMM.noised_energy(x.double(), sigma**2))))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("form", ["target", "tweedie", "mixture"])
def test_estimated_variances_are_those_of_repeats(form: Any, antithetic: bool) -> None:
    """Mean estimated variances are those over repeats, within 4.5 s.e. of their ratio: with n repeats of kurtosis k the
    relative s.e. of a variance is sqrt((k - 1) / n), to which that of the mean estimate is added in squares. For the
    score, whose variance is a trace, the same with squared distances from the mean. The bias of a jackknifed variance
    is of order 1 / ESS, here below 1e-2, where the bound is above 0.1."""
    x = torch.tensor([15.0, 24.0]).expand(3000, 2)
    estimate = denoising_estimate(GMM, x, 2.0, 500, form=form, antithetic=antithetic)
    for variances, draws in (
        (estimate.energy_variance, estimate.energy.unsqueeze(-1)),
        (estimate.score_variance, estimate.score),
    ):
        squares = (draws.double() - draws.double().mean(0)).square().sum(-1)
        known = [each.double() for each in (variances, squares)]
        error = math.sqrt(sum(float(each.var() / len(each) / each.mean().square()) for each in known))
        assert abs(float(known[0].mean() / known[1].mean()) - 1.0) < 4.5 * error


def test_effective_sample_size() -> None:
    estimate = denoising_estimate(lambda y: 0.0 * y.sum(-1), torch.zeros(3, 2), 1.0, 10)
    assert torch.allclose(estimate.ess, torch.ones(3)) and torch.allclose(estimate.energy_variance, torch.zeros(3))


def test_one_point_knows_no_variance() -> None:
    estimate = denoising_estimate(gaussian, torch.ones(3, 2), 1.0, 1)
    assert estimate.energy_variance.isinf().all() and estimate.score_variance.isinf().all()
    assert estimate.score.isfinite().all()


def test_without_noise_the_target_itself_remains() -> None:
    x = torch.randn(5, 2)
    estimate = denoising_estimate(gaussian, x, 0.0, 3)
    assert torch.allclose(estimate.energy, gaussian(x)) and torch.allclose(estimate.score, -x / SPREAD)
    assert torch.equal(estimate.mixing, torch.zeros(5))


# Shapes, chunks, counts ------------------------------------------------------------------------------------------


def test_variances_broadcast_to_the_batch() -> None:
    x = torch.zeros(2, 3, 4)
    for variance in (1.0, torch.tensor(1.0), torch.rand(3), torch.rand(2, 1), torch.rand(2, 3)):
        estimate = denoising_estimate(gaussian, x, variance, 5)
        assert estimate.energy.shape == estimate.ess.shape == (2, 3) and estimate.score.shape == x.shape
    assert noised_energy(gaussian, torch.zeros(4), 1.0, 5).shape == ()
    assert noised_score(gaussian, torch.zeros(0, 4), 1.0, 5).shape == (0, 4)


@pytest.mark.parametrize("dim", [3, 40])
def test_each_state_keeps_its_own_noise_across_blocks(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_boltzmann.diffusion.estimators.WORKING_SET", 2000 * dim)
    x, h = torch.randn(50, dim, dtype=torch.float64), torch.logspace(-3, 0, 50, dtype=torch.float64)
    estimate = denoising_estimate(gaussian, x, h, 400)
    assert torch.allclose(estimate.score[:17], -x[:17] / (SPREAD + h[:17]).unsqueeze(-1), atol=1e-3)
    off = (estimate.energy - noised_gaussian(x, h)).abs()
    assert (off[:17] < 6.0 * estimate.energy_variance[:17].sqrt() + 1e-3).all()


def test_evaluations_are_counted() -> None:
    x = torch.zeros(7, 2)
    for call, gradients in (
        (lambda: noised_energy(gaussian, x, 1.0, 5), 0),
        (lambda: noised_score(gaussian, x, 1.0, 5, form="tweedie"), 0),
        (lambda: denoising_estimate(gaussian, x, 1.0, 5), 35),
    ):
        with count_evaluations() as count:
            call()
        assert count == EvaluationCount(values=35, gradients=gradients)
    with count_evaluations() as count:
        bootstrapped_energy(noised_gaussian, x, 1.0, 0.5, 5)
    assert count == EvaluationCount()


def test_generators_reproduce() -> None:
    first, second = (
        noised_score(gaussian, torch.zeros(3, 2), 1.0, 5, form="target", generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)


# Bootstrap -------------------------------------------------------------------------------------------------------


def test_an_exact_teacher_gives_the_exact_noised_density() -> None:
    x, h, g = torch.tensor([10.0, 20.0]).expand(40_000, 2), 16.0, 10.0
    bootstrapped = bootstrapped_energy(GMM.noised_energy, x, h, g, 4)
    truth = float(GMM.noised_energy(x[0].double(), h))
    assert_mean((-bootstrapped).exp(), math.exp(-truth))


def test_a_teacher_of_the_same_noise_is_returned() -> None:
    x, h = torch.randn(6, 2), torch.rand(6)
    estimate = bootstrapped_estimate(noised_gaussian, x, h, h, 3)
    assert torch.allclose(estimate.energy, noised_gaussian(x, h))
    assert torch.allclose(estimate.score, -x / (SPREAD + h).unsqueeze(-1))


# Walls and bad input ---------------------------------------------------------------------------------------------


def lens(x: Tensor) -> Tensor:
    """The product of max(0, 1 - x_i^2); its gradient outside is NaN."""
    return -(1.0 - x.square()).clamp(min=0.0).log().sum(-1)


def test_walls_have_weight_zero() -> None:
    x, h = torch.tensor([0.5, -2.0], dtype=torch.float64), 0.7
    grid = torch.linspace(-1.0, 1.0, 2001, dtype=torch.float64).unsqueeze(-1)
    density = (1.0 - grid**2) * torch.exp(-0.5 * (grid - x) ** 2 / h) / math.sqrt(2.0 * math.pi * h)
    truth = float(torch.trapezoid(density, dx=1e-3, dim=0).prod())
    assert_mean((-noised_energy(lens, x.expand(20_000, 2), h, 50)).exp(), truth)


@pytest.mark.parametrize("form", ["target", "tweedie", "mixture"])
def test_all_points_inside_walls(form: Any) -> None:
    x = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    estimate = denoising_estimate(lens, x, 0.01, 20, form=form, correction="jackknife")
    assert estimate.energy.isinf().tolist() == [False, True] and estimate.score.isfinite().all()
    assert torch.equal(estimate.score[1], torch.zeros(2)) and estimate.ess[1] == 0.0
    assert estimate.energy_variance[1].isinf() and estimate.score_variance[1].isinf()


def test_gradients_are_not_read_where_the_weight_is_zero() -> None:
    def walled(x: Tensor) -> Tensor:
        return x.square().sum(-1) - x[..., 0].clamp(min=0.0).log()

    assert noised_score(walled, torch.zeros(3, 2), 1.0, 50, form="target").isfinite().all()
    with pytest.raises(NonFiniteEnergyError, match="gradient is NaN or infinite at 12 of 12"):
        noised_score(lambda x: (x - x).norm(dim=-1).sqrt(), torch.zeros(3, 2), 1.0, 4, form="target")


def test_lennard_jones_at_zero_distance() -> None:
    target = LennardJones(3)
    x = target.from_particles(torch.zeros(4, 3, 3))
    for h in (0.0, 1e-12, 1.0):
        estimate = denoising_estimate(target, x, h, 50)
        assert estimate.energy.isfinite().all() and estimate.score.isfinite().all()

    def naive(y: Tensor) -> Tensor:
        r = y.square().sum(-1)
        return r**-6 - r**-3

    with pytest.raises(NonFiniteEnergyError, match=r"NaN or -inf at 6 of 6 noised points.*clamp r") as caught:
        noised_energy(naive, torch.zeros(2, 3), 0.0, 3)
    assert caught.value.count == 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variance": -1.0}, ShapeError, "not negative"),
        ({"variance": math.nan}, ShapeError, "finite"),
        ({"variance": torch.ones(5)}, ShapeError, r"broadcast to the batch shape \(3,\)"),
        ({"num_noise": 0}, ShapeError, "at least 1"),
        ({"num_noise": 3, "antithetic": True}, ShapeError, "positive and even"),
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, ShapeError, "floating-point"),
        ({"form": "stein"}, EnergyError, "'target', 'tweedie' or 'mixture'"),
        ({"correction": "delta"}, EnergyError, "'none' or 'jackknife'"),
        ({"form": "tweedie", "variance": 0.0}, ShapeError, "above zero"),
        ({"energy": lambda x: x}, EnergyError, "batch shape"),
        ({"energy": lambda x: x.sum(-1) * math.nan}, NonFiniteEnergyError, "at 12 of 12"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"energy": gaussian, "x": torch.zeros(3, 2), "variance": 1.0, "num_noise": 4, **arguments}
    with pytest.raises(error, match=message):
        denoising_estimate(**given)


def test_a_teacher_of_more_noise_is_refused() -> None:
    with pytest.raises(ShapeError, match="above variance, but it is for 1 of 3"):
        bootstrapped_energy(noised_gaussian, torch.zeros(3, 2), 1.0, torch.tensor([0.5, 1.5, 1.0]), 4)
