"""Biases and variances of the estimators beside their expansions in 1/K, whose coefficients come from quadrature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_boltzmann.diffusion import bootstrapped_energy, noised_energy, noised_score

SIGMAS = 4.5
X, NOISE = 1.5, 1.0
WELLS = ((0.3, -1.5), (0.7, 1.5))
"""Weights and means of a target in one dimension, whose components have the variance WIDTH."""
WIDTH = 0.25


def wells(y: Tensor, variance: float | Tensor = 0.0) -> Tensor:
    """The exact energy under noise."""
    total = torch.as_tensor(variance, dtype=y.dtype) + WIDTH
    logs = [math.log(p) - 0.5 * (y[..., 0] - m).square() / total for p, m in WELLS]
    return -torch.stack(logs).logsumexp(0) + 0.5 * (2.0 * math.pi * total).log()


class Quadrature(NamedTuple):
    """Nodes and probabilities of N(x, h) in one dimension; exact to rounding for densities that are not narrow."""

    y: Tensor
    p: Tensor

    def mean(self, values: Tensor) -> float:
        return float(self.p @ values)


def normal(x: float, h: float) -> Quadrature:
    z = torch.linspace(-9.0, 9.0, 20_001, dtype=torch.float64)
    p = torch.exp(-0.5 * z.square())
    return Quadrature((x + math.sqrt(h) * z).unsqueeze(-1), p / p.sum())


class Relative(NamedTuple):
    """Central moments 2 to 4 of exp(-u) / m, and the coefficients of the bias of E_K in 1/K, 1/K^2, 1/K^3."""

    second: float
    third: float
    fourth: float

    @property
    def bias(self) -> tuple[float, float, float]:
        """Of -log(1 + r) = -r + r^2/2 - ..., with r the mean of K independent deviations."""
        v, s, q = self
        return v / 2.0, 0.75 * v**2 - s / 3.0, 0.25 * (q - 3.0 * v**2) - 2.0 * v * s + 2.5 * v**3


def relative_moments(x: float) -> Relative:
    law = normal(x, NOISE)
    density = (-wells(law.y)).exp()
    off = density / law.mean(density) - 1.0
    return Relative(*(law.mean(off**power) for power in (2, 3, 4)))


def truth(x: float) -> float:
    return float(wells(torch.tensor([x], dtype=torch.float64), NOISE))


def states(x: float, number: int) -> Tensor:
    return torch.full((number, 1), x, dtype=torch.float64)


def error_of_mean(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def error_of_variance(values: Tensor) -> float:
    """From the fourth moment."""
    squares = (values - values.mean()).square()
    return float(squares.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("x", [0.0, 1.5])
@pytest.mark.parametrize("k", [16, 64])
def test_bias_and_variance_of_the_energy(x: float, k: int) -> None:
    """The bias is v / (2 m^2 K) and the variance v / (m^2 K) within 4.5 s.e. of 100,000 repeats. Both are compared
    with their next orders included, so that what is left, of relative order 1/K^2, is below the errors; and the bias
    is seen: the wrong factor 1 or 1/4 in place of 1/2 is outside."""
    moments = relative_moments(x)
    off = noised_energy(wells, states(x, 100_000), NOISE, k) - truth(x)
    first, second, third = moments.bias
    bound = SIGMAS * error_of_mean(off)
    assert abs(float(off.mean()) - (first / k + second / k**2 + third / k**3)) < bound < 0.5 * first / k
    variance = moments.second / k + (2.5 * moments.second**2 - moments.third) / k**2
    assert abs(float(off.var()) - variance) < SIGMAS * error_of_variance(off)


def test_jackknife_removes_the_first_order() -> None:
    """Of a bias B(K) = b_1/K + b_2/K^2 + b_3/K^3, K B(K) - (K - 1) B(K - 1) leaves
    -b_2 / (K (K - 1)) - b_3 (2K - 1) / (K (K - 1))^2, which is found within 4.5 s.e.; the plain bias is above four
    such bounds."""
    k = 16
    _, second, third = relative_moments(X).bias
    left = -second / (k * (k - 1)) - third * (2 * k - 1) / (k * (k - 1)) ** 2
    plain, off = (
        noised_energy(wells, states(X, 200_000), NOISE, k, correction=correction) - truth(X)
        for correction in ("none", "jackknife")
    )
    bound = SIGMAS * error_of_mean(off)
    assert abs(float(off.mean()) - left) < bound < 0.25 * float(plain.mean())


@pytest.mark.parametrize("form", ["target", "tweedie"])
@pytest.mark.parametrize("k", [50, 400])
def test_bias_and_error_of_the_score(form: Any, k: int) -> None:
    """With a = exp(-u) (f - S) / m, of mean zero, and r = exp(-u) / m - 1, S_K - S is the mean of a over one plus that
    of r. So its bias is -E[ar]/K + (E[ar^2] - 3 E[r^2] E[ar]) / K^2 and its mean square
    E[a^2]/K + (3 E[a^2] E[r^2] + 6 E[ar]^2 - 2 E[a^2 r]) / K^2, up to O(K^-3): both within 4.5 s.e."""
    law = normal(X, NOISE)
    y = law.y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wells(y).sum(), y)
    f = -gradient[:, 0] if form == "target" else (law.y[:, 0] - X) / NOISE
    density = (-wells(law.y)).exp()
    weight = density / law.mean(density)
    r, exact = weight - 1.0, law.mean(weight * f)
    a = weight * (f - exact)
    square, cross, v = law.mean(a**2), law.mean(a * r), law.mean(r**2)
    off = noised_score(wells, states(X, 20_000), NOISE, k, form=form)[:, 0] - exact
    bias = -cross / k + (law.mean(a * r**2) - 3.0 * v * cross) / k**2
    error = square / k + (3.0 * square * v + 6.0 * cross**2 - 2.0 * law.mean(a**2 * r)) / k**2
    assert abs(float(off.mean()) - bias) < SIGMAS * error_of_mean(off)
    assert abs(float(off.square().mean()) - error) < SIGMAS * error_of_mean(off.square())


def test_antithetic_pairs_cancel_what_is_odd() -> None:
    """Under a linear energy c.y, exp(-u) at +-z has the mean cosh(c.z). With q = |c|^2, K plain points give exp(-E_K)
    the variance (e^{2q} - e^q) / K, and K/2 pairs 2 e^q (cosh q - 1) / K, of order q^2: each within 4.5 s.e."""
    slope, k = torch.tensor([0.1, -0.2], dtype=torch.float64), 100
    q, x = float(slope.square().sum()), torch.zeros(20_000, 2, dtype=torch.float64)
    for antithetic, variance in (
        (False, math.exp(2.0 * q) - math.exp(q)),
        (True, 2.0 * math.exp(q) * (math.cosh(q) - 1.0)),
    ):
        densities = (-noised_energy(lambda y: y @ slope, x, 1.0, k, antithetic=antithetic)).exp()
        assert abs(float(densities.var()) - variance / k) < SIGMAS * error_of_variance(densities)


# Less noise in the bootstrapped estimate --------------------------------------------------------------------------

LEVEL = 4.0
"""The student's noise h; teachers are at shares of it."""


def taught_moments(x: float, share: float) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of p_g(y), y ~ N(x, h - g)."""
    law = normal(x, (1.0 - share) * LEVEL)
    density = (-wells(law.y, share * LEVEL)).exp()
    mean = law.mean(density)
    return mean, law.mean((density - mean) ** 2), law.mean((density - mean) ** 4)


def test_quadrature_of_one_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Gaussian with a = s^2 + g and b = h - g, E p_g^2 = N(x; 0, b + a/2) / (2 sqrt(pi a)),
    and E p_g = N(x; 0, a + b)."""

    def density(x: float, variance: float) -> float:
        return math.exp(-0.5 * x**2 / variance) / math.sqrt(2.0 * math.pi * variance)

    monkeypatch.setattr("tests.diffusion.test_estimator_rates.WELLS", ((1.0, 0.0),))
    for share in (0.0, 0.25, 0.9):
        a, b = WIDTH + share * LEVEL, (1.0 - share) * LEVEL
        mean, variance, _ = taught_moments(X, share)
        expected = density(X, b + 0.5 * a) / (2.0 * math.sqrt(math.pi * a)) - density(X, a + b) ** 2
        assert mean == pytest.approx(density(X, a + b), rel=1e-9) and variance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("x", [0.0, 1.5, 4.0])
def test_a_teacher_of_more_noise_leaves_less_variance(x: float) -> None:
    """Rao-Blackwell: p_g(y_g) is the mean of exp(-u) given y_g, so v_tu falls from v_t0 to zero as g rises to h. The
    variance of exp(-E_K) is v_tu / K, and the s.e. of an estimate of it from n repeats is
    sqrt(kappa_4 / (K^3 n) + 2 (v / K)^2 / (n - 1)), all in closed form: found within 4.5 of them at each g, and lower
    than at the g before by more than 4.5 s.e. of the difference."""
    k, repeats, before = 4, 40_000, None
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        mean, v, fourth = taught_moments(x, share)
        energy = bootstrapped_energy(wells, states(x, repeats), LEVEL, share * LEVEL, k)
        densities = (-energy).exp()
        variance = float((densities / mean).var())
        expected = v / k / mean**2
        square = (fourth - 3.0 * v**2) / (k**3 * repeats) / mean**4 + 2.0 * expected**2 / (repeats - 1)
        assert abs(float(densities.mean()) / mean - 1.0) < SIGMAS * math.sqrt(expected / repeats)
        assert abs(variance - expected) < SIGMAS * math.sqrt(square)
        if before is not None:
            assert before[0] - variance > SIGMAS * math.sqrt(before[1] + square)
        before = variance, square
        if share == 0.0:
            plain = (-noised_energy(wells, states(x, repeats), LEVEL, k)).exp() / mean
            assert abs(float(plain.var()) - expected) < SIGMAS * math.sqrt(square)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_bootstrapped_energy_converges_to_that_of_the_student(share: float) -> None:
    """With an exact teacher E_K tends to u_h at the rate of the first order: its mean is u_h + v_tu / (2 m^2 K), with
    the next order (3 v^2 / 4 - kappa_3 / 3) / K^2 below the s.e., within 4.5 s.e. of 20,000 repeats."""
    k = 500
    mean, v, _ = taught_moments(X, share)
    energy = bootstrapped_energy(wells, states(X, 20_000), LEVEL, share * LEVEL, k)
    off = energy - float(wells(torch.tensor([X], dtype=torch.float64), LEVEL))
    assert abs(float(off.mean()) - v / (2.0 * mean**2 * k)) < SIGMAS * error_of_mean(off)
