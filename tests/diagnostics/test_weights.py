"""Weight statistics against closed forms. Statistical bounds are 4.5 standard errors (false alarm about 1e-5)."""

import math

import numpy as np
import pytest
import torch

from pyro_boltzmann.diagnostics import (
    bennett_log_normalizer,
    elbo,
    eubo,
    expectation,
    forward_ess,
    khat_limit,
    kish_ess,
    log_mean_exp,
    log_normalizer,
    log_normalizer_error,
    psis,
)
from pyro_boltzmann.exceptions import NonFiniteEnergyError, ShapeError

LOG_Z = 3.7


def gaussian_importance(size: int, scale: float = 1.5, shift: float = 0.5, seed: int = 0):
    """Draws from N(shift, scale^2) with weights for ``exp(LOG_Z) * N(0, 1)``, and the weights of draws from N(0, 1)."""
    rng = np.random.default_rng(seed)

    def log_weight(x):
        return LOG_Z - 0.5 * x**2 + 0.5 * ((x - shift) / scale) ** 2 + math.log(scale)

    forward, reverse = shift + scale * rng.normal(size=size), rng.normal(size=size)
    return forward, log_weight(forward), log_weight(reverse)


def exact_ess(scale: float = 1.5, shift: float = 0.5) -> float:
    """1 / E_q[(p/q)^2] by quadrature."""
    x = np.linspace(-15, 15, 30001)
    p = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    q = np.exp(-0.5 * ((x - shift) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return 1.0 / float((p**2 / q).sum() * (x[1] - x[0]))


def test_gaussian_importance_recovers_log_z_ess_and_moments():
    x, lw, reverse = gaussian_importance(100_000)
    truth = exact_ess()
    error = log_normalizer_error(lw)
    # The delta-method error is itself known: sqrt((1/ESS - 1)/N).
    assert error == pytest.approx(math.sqrt((1 / truth - 1) / 100_000), rel=0.02)
    assert abs(log_normalizer(lw) - LOG_Z) < 4.5 * error
    assert kish_ess(lw) == pytest.approx(truth, abs=0.01)
    assert forward_ess(reverse) == pytest.approx(truth, abs=0.01)
    assert forward_ess(reverse, LOG_Z) == pytest.approx(truth, abs=0.01)
    mean, error = expectation(lw, np.stack([x, x**2], 1))
    assert (np.abs(mean - [0.0, 1.0]) < 4.5 * error).all()


def test_errors_cover():
    """Over 400 repeats, squared standardised errors average 1 within 4.5 * sqrt(2 / 400) = 0.32."""
    scores = []
    for seed in range(400):
        x, lw, _ = gaussian_importance(500, seed=seed)
        mean, error = expectation(lw, x)
        scores.append([float(mean / error), (log_normalizer(lw) - LOG_Z) / log_normalizer_error(lw)])
    np.testing.assert_allclose(np.square(scores).mean(0), 1.0, atol=0.32)


def test_bounds_enclose_log_z_by_the_exact_divergences():
    _, lw, reverse = gaussian_importance(100_000)
    scale, shift = 1.5, 0.5
    kl_qp = 0.5 * (scale**2 + shift**2 - 1) - math.log(scale)
    kl_pq = math.log(scale) + (1 + shift**2) / (2 * scale**2) - 0.5
    (low, low_error), (high, high_error) = elbo(lw), eubo(reverse)
    assert abs(low - (LOG_Z - kl_qp)) < 4.5 * low_error
    assert abs(high - (LOG_Z + kl_pq)) < 4.5 * high_error
    assert low < LOG_Z < high


@pytest.mark.parametrize("shift", [-1e3, -700.0, 1e3, 1e5])
def test_statistics_do_not_depend_on_the_scale_of_the_weights(shift):
    x, lw, reverse = gaussian_importance(2000)
    moved = lw + shift
    assert kish_ess(moved) == pytest.approx(kish_ess(lw), rel=1e-8)
    assert log_normalizer(moved) - shift == pytest.approx(log_normalizer(lw), abs=1e-8)
    assert log_normalizer_error(moved) == pytest.approx(log_normalizer_error(lw), rel=1e-8)
    assert psis(moved)[1] == pytest.approx(psis(lw)[1], abs=1e-6)
    np.testing.assert_allclose(psis(moved)[0], psis(lw)[0], atol=1e-6)
    assert forward_ess(reverse + shift) == pytest.approx(forward_ess(reverse), rel=1e-8)
    np.testing.assert_allclose(expectation(moved, x), expectation(lw, x), rtol=1e-7)
    both, plain = bennett_log_normalizer(moved, reverse + shift), bennett_log_normalizer(lw, reverse)
    assert both[0] - shift == pytest.approx(plain[0], abs=1e-8)
    assert both[1] == pytest.approx(plain[1], rel=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_khat_of_pareto_draws(k):
    """Exact Pareto weights: k-hat averages k, shrunk towards 1/2 by ten pseudo-observations, within 4.5 s.e."""
    rng = np.random.default_rng(3)
    size, repeats = 20_000, 40
    khats = np.array([psis(-k * np.log(rng.random(size)))[1] for _ in range(repeats)])
    tail = 3 * math.sqrt(size)
    expected = (tail * k + 5) / (tail + 10)
    # The asymptotic sd of a GPD shape estimate is (1 + k)/sqrt(n); the empirical Bayes bias is of order 1/n.
    error = (1 + k) / math.sqrt(tail * repeats)
    assert abs(khats.mean() - expected) < 4.5 * error
    assert khats.std() < 2 * (1 + k) / math.sqrt(tail)


def test_smoothing_keeps_the_body_and_the_order_and_is_capped():
    lw = -0.6 * np.log(np.random.default_rng(1).random(3000))
    smoothed, khat = psis(lw)
    tail = np.argsort(lw)[-int(3 * math.sqrt(3000)) :]
    body = np.setdiff1d(np.arange(3000), np.argsort(lw)[-170:])
    assert np.logaddexp.reduce(smoothed) == pytest.approx(0.0, abs=1e-9)
    offset = smoothed[body] - lw[body]
    assert np.ptp(offset) < 1e-9
    assert (np.diff(smoothed[tail]) >= -1e-12).all()
    assert smoothed.max() - offset[0] <= lw.max() + 1e-9
    assert 0.4 < khat < 0.8


def test_zero_weights_count_as_draws_but_not_in_the_tail():
    lw = np.concatenate([np.zeros(300), np.full(700, -math.inf)])
    assert kish_ess(lw) == pytest.approx(0.3)
    assert log_normalizer(lw) == pytest.approx(math.log(0.3))
    # Bernoulli: Var(w)/E(w)^2/N = (1 - p)/(p N).
    assert log_normalizer_error(lw) == pytest.approx(math.sqrt(0.7 / 0.3 / 1000))
    assert psis(lw)[1] == 0.0
    assert elbo(lw) == (-math.inf, math.inf)
    values = np.concatenate([np.ones(300), np.full(700, math.nan)])
    assert expectation(lw, values)[0] == pytest.approx(1.0)
    pareto = -0.5 * np.log(np.random.default_rng(0).random(5000))
    padded, khat = psis(np.concatenate([pareto, np.full(1000, -math.inf)]))
    assert khat == pytest.approx(psis(pareto)[1], abs=1e-12)
    assert np.isneginf(padded[5000:]).all()


def test_too_few_draws_have_no_tail():
    assert psis(np.arange(10.0))[1] == math.inf
    dominated = np.full(1000, -1e4) + np.random.default_rng(0).normal(size=1000)
    dominated[0] = 0.0
    assert psis(dominated)[1] == math.inf


@pytest.mark.parametrize("statistic", [log_mean_exp, kish_ess, log_normalizer, log_normalizer_error, elbo, psis])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_raises_with_its_count(statistic, bad):
    with pytest.raises(NonFiniteEnergyError, match="2 of 4") as caught:
        statistic([0.0, bad, bad, 1.0])
    assert caught.value.count == 2


@pytest.mark.parametrize("statistic", [kish_ess, log_normalizer, psis])
def test_all_zero_weights_raise(statistic):
    with pytest.raises(NonFiniteEnergyError, match="all 5 weights are zero"):
        statistic(np.full(5, -math.inf))


@pytest.mark.parametrize("shape", [(0,), (3, 4), ()])
def test_wrong_shapes_raise(shape):
    with pytest.raises(ShapeError, match="shape"):
        kish_ess(np.zeros(shape))


def test_reverse_weights_of_unreachable_samples():
    reverse = np.array([0.0, math.inf])
    assert eubo(reverse) == (math.inf, math.inf)
    assert forward_ess(reverse) == 0.0
    with pytest.raises(NonFiniteEnergyError):
        eubo(np.array([0.0, -math.inf]))


def test_khat_limit():
    assert khat_limit(10) == pytest.approx(0.0)
    assert khat_limit(1000) == pytest.approx(1 - 1 / 3)
    assert khat_limit(10**7) == 0.7
    assert khat_limit(1) == -math.inf


def test_float32_tensors_are_summed_in_float64():
    lw = torch.full((1000,), 200.0)
    assert log_normalizer(lw) == pytest.approx(200.0, abs=1e-12)


@pytest.mark.parametrize("log_z", [-1e3, -5.0, 0.0, 1e3])
@pytest.mark.parametrize("sizes", [(20_000, 20_000), (30_000, 5_000)])
def test_bennett_equals_log_z_for_negative_and_huge_works(log_z, sizes):
    """Gaussian works obey the fluctuation theorem: N(log Z - s^2/2, s) forwards, N(log Z + s^2/2, s) backwards."""
    rng = np.random.default_rng(7)
    sigma = 2.0
    forward = rng.normal(log_z - 0.5 * sigma**2, sigma, sizes[0])
    reverse = rng.normal(log_z + 0.5 * sigma**2, sigma, sizes[1])
    value, error = bennett_log_normalizer(forward, reverse)
    assert 0 < error < 0.05
    assert abs(value - log_z) < 4.5 * error


def test_bennett_solves_its_equation_and_its_error_covers():
    rng = np.random.default_rng(2)
    scores = []
    for _ in range(200):
        forward, reverse = rng.normal(-1.5, 1.0, 400), rng.normal(-0.5, 1.0, 900)
        value, error = bennett_log_normalizer(forward, reverse)
        shifted = value + math.log(400 / 900)
        left = (1 / (1 + np.exp(shifted - forward))).sum()
        right = (1 / (1 + np.exp(reverse - shifted))).sum()
        assert left == pytest.approx(right, rel=1e-8)
        scores.append((value + 1.0) / error)
    # Mean square of 200 standard normals: 1 within 4.5 * sqrt(2/200) = 0.45.
    assert abs(np.square(scores).mean() - 1) < 0.45


def test_bennett_without_overlap_has_infinite_error():
    rng = np.random.default_rng(0)
    value, error = bennett_log_normalizer(rng.normal(-2000, 1, 100), rng.normal(2000, 1, 100))
    assert math.isfinite(value)
    assert error == math.inf


def test_bennett_allows_zero_forward_weights():
    """A hard wall halves the draws; the answer is unchanged by how that is written."""
    rng = np.random.default_rng(5)
    forward = np.where(rng.random(40_000) < 0.5, -math.inf, math.log(2.0))
    value, error = bennett_log_normalizer(forward, np.full(40_000, math.log(2.0)))
    assert abs(value) < 4.5 * error < 0.05
