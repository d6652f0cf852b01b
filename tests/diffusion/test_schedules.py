"""Noise schedules: closed forms, inverses and grids. The one statistical check has 4.5 standard errors."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch

from pyro_boltzmann.diffusion import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    PowerSchedule,
    QuadraticSchedule,
    noise_schedule,
)

NAMES = ["geometric", "linear", "quadratic", "power", "cosine"]


@pytest.fixture(params=NAMES)
def schedule(request):
    return noise_schedule(request.param, 0.01, 3.0)


def test_every_schedule_is_built_from_the_same_arguments(schedule):
    # The published linear, quadratic and power configurations cannot be built at all.
    assert (schedule.sigma_min, schedule.sigma_max) == (0.01, 3.0)
    assert type(schedule)(sigma_min=0.01, sigma_max=3.0) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.sigma_max = 1.0


def test_closed_forms():
    t = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    a, b = 0.01, 3.0
    expected = {
        GeometricSchedule(a, b): a**2 * ((b / a) ** (2 * t) - 1),
        LinearSchedule(a, b): b**2 * t,
        QuadraticSchedule(a, b): (b * t) ** 2,
        PowerSchedule(a, b, power=5.0): b**2 * t**5,
        CosineSchedule(a, b): b**2 * torch.sin(math.pi * t / 2) ** 2,
    }
    for schedule, h in expected.items():
        torch.testing.assert_close(schedule.variance(t), h, rtol=1e-13, atol=1e-16)


def test_ends_monotony_and_dtype(schedule):
    t = torch.linspace(0, 1, 501)
    h = schedule.variance(t)
    assert h.dtype == schedule.rate(t).dtype == schedule.time(h.float()).dtype == torch.float64
    assert h[0] == 0.0 and (h.diff() > 0).all()
    assert h[-1].item() == pytest.approx(schedule.max_variance, rel=1e-14)
    geometric = isinstance(schedule, GeometricSchedule)
    assert schedule.max_variance == pytest.approx(9.0 - (1e-4 if geometric else 0.0), rel=1e-14)


def test_rate_is_the_derivative(schedule):
    t = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1].requires_grad_()
    (derivative,) = torch.autograd.grad(schedule._variance(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t.detach()), derivative, rtol=1e-12, atol=1e-12)
    assert (schedule.rate(torch.tensor([0.0, 1.0])) >= 0).all()


def test_time_is_the_inverse(schedule):
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.variance(t)), t, rtol=0, atol=1e-12)
    h = schedule.variances(50)
    torch.testing.assert_close(schedule.variance(schedule.time(h)), h, rtol=1e-12, atol=0)
    assert schedule.time(schedule.max_variance) == pytest.approx(1.0, abs=1e-14)
    # The largest variance rounded to float32 may lie above it.
    assert schedule.time(torch.tensor(schedule.max_variance).float()) <= 1.0


def test_variances_even_in_their_logarithm(schedule):
    h = schedule.variances(20)
    assert h.shape == (21,) and h.dtype == torch.float64
    assert h[0] == schedule.max_variance and h[-1] == 0.0 and (h.diff() < 0).all()
    assert h[-2].item() == pytest.approx(1e-4, rel=1e-12)
    factors = h[1:-1] / h[:-2]
    torch.testing.assert_close(factors, factors[:1].expand(19), rtol=1e-11, atol=0)
    assert schedule.variances(20, smallest=0.02)[-2].item() == pytest.approx(0.02, rel=1e-12)
    assert schedule.variances(1).tolist() == [schedule.max_variance, 0.0]


def test_variances_even_in_time(schedule):
    h = schedule.variances(20, "time")
    assert h[0] == schedule.max_variance and h[-1] == 0.0
    torch.testing.assert_close(schedule.time(h), torch.arange(20, -1, -1).double() / 20, rtol=0, atol=1e-12)


# The end of the first interval and the number of times in GMM-40, DW-4, LJ-13 and LJ-55.
@pytest.mark.parametrize(
    "sigma_min, sigma_max, increment, first, num_times",
    [
        (1e-3, 1.0, 0.1, 0.834, 11),
        (1e-4, 3.0, 0.1, 0.782, 69),
        (1e-4, 6.0, 0.1, 0.733, 130),
        (0.5, 4.0, 0.6, 0.295, 27),
    ],
)
def test_split_times_of_the_published_experiments(sigma_min, sigma_max, increment, first, num_times):
    schedule = GeometricSchedule(sigma_min, sigma_max)
    tau = schedule.split_times(increment)
    assert len(tau) == num_times and tau[0] == 0.0 and tau[-1] == 1.0
    assert tau[1].item() == pytest.approx(first, abs=1e-12)
    torch.testing.assert_close(tau, (tau * 1000).round() / 1000, rtol=0, atol=0)
    h = schedule.variance(tau)
    before = schedule.variance(tau[1:] - 1e-3)
    # All but the last reach the increment, and one cell earlier none did.
    assert (h.diff()[:-1] >= increment * (1 - 1e-9)).all()
    assert (before - h[:-1] < increment).all()


def test_split_times_of_equal_steps():
    tau = LinearSchedule(0.1, 1.0).split_times(0.1)
    torch.testing.assert_close(tau, torch.arange(11).double() / 10, rtol=0, atol=1e-15)
    assert LinearSchedule(0.1, 1.0).split_times(7.0).tolist() == [0.0, 1.0]


def test_random_variances_follow_their_law(schedule):
    n = 20_000
    for law in ("log_variance", "time"):
        h = schedule.random_variances((n,), law, generator=torch.Generator().manual_seed(5))
        assert h.dtype == torch.float64 and (h > 0).all() and (h <= schedule.max_variance).all()
        log_range = math.log(schedule.max_variance / 1e-4)
        uniform = schedule.time(h) if law == "time" else (h / 1e-4).log() / log_range
        # A Kolmogorov-Smirnov distance above 2.47 / sqrt(n) has probability 2 exp(-2 2.47^2) = 1e-5.
        rank = torch.arange(n) / n
        distance = (uniform.sort().values - rank).abs().max()
        assert distance < 2.47 / n**0.5 + 1 / n
    again = schedule.random_variances((n,), law, generator=torch.Generator().manual_seed(5))
    assert again.equal(h) and schedule.random_variances((2, 3)).shape == (2, 3)


def test_errors(schedule):
    for sigma_min, sigma_max in [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf)]:
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            type(schedule)(sigma_min, sigma_max)
    with pytest.raises(ValueError, match="lower sigma_min"):
        GeometricSchedule(0.9, 1.0)
    with pytest.raises(ValueError, match=r"a time must lie in \[0, 1\], got 1.5"):
        schedule.variance(torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="a variance must lie in"):
        schedule.time(10.0)
    with pytest.raises(ValueError, match="a time must lie"):
        schedule.rate(torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="at least one step"):
        schedule.variances(0)
    with pytest.raises(ValueError, match="'log_variance' or 'time', got 'sigma'"):
        schedule.variances(3, "sigma")
    with pytest.raises(ValueError, match="leave it out"):
        schedule.variances(3, "time", smallest=0.1)
    with pytest.raises(ValueError, match="smallest must lie"):
        schedule.variances(3, smallest=9.5)
    with pytest.raises(ValueError, match="'log_variance' or 'time'"):
        schedule.random_variances((3,), "sigma")
    with pytest.raises(ValueError, match="must be positive"):
        schedule.split_times(0.0)
    with pytest.raises(ValueError, match="choose one of cosine, geometric"):
        noise_schedule("sigmoid", 0.1, 1.0)
    with pytest.raises(ValueError, match="power"):
        PowerSchedule(0.1, 1.0, power=0.0)
