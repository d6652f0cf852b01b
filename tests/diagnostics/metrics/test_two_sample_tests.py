"""Kolmogorov-Smirnov distance, maximum mean discrepancy, classifier test."""

import math
import sys

import numpy as np
import pytest
from scipy import stats

from pyro_boltzmann.diagnostics import c2st, ks_distance, ks_floor, ks_test, median_bandwidth, mmd_squared, mmd_test
from pyro_boltzmann.exceptions import ShapeError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_ks_equals_scipy_without_weights():
    x, y = normal(400), normal(300, seed=1) * 1.3
    one, two = ks_test(x, stats.norm.cdf), ks_test(x, y)
    assert one.distance == pytest.approx(stats.ks_1samp(x, stats.norm.cdf).statistic)
    assert two.distance == pytest.approx(stats.ks_2samp(x, y).statistic)
    assert two.p_value == pytest.approx(stats.ks_2samp(x, y).pvalue)
    ties = np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0])
    assert ks_distance(*ties) == pytest.approx(stats.ks_2samp(*ties).statistic)


def test_ks_of_shifted_uniforms_is_the_shift():
    even = (np.arange(1000) + 0.5) / 1000
    # Two lattices differ by one step of theirs, 1/1000, more or less.
    assert ks_distance(even, lambda t: np.clip(t - 0.25, 0, 1)) == pytest.approx(0.25, abs=1e-3)
    assert ks_distance(even, even + 0.25) == pytest.approx(0.25, abs=1.001e-3)


def test_ks_counts_weights_as_copies():
    x, y, counts = normal(6), normal(9, seed=1), np.array([1, 4, 0, 2, 2, 1])
    log_weights = np.where(counts > 0, np.log(np.maximum(counts, 1)), -np.inf) - 80.0
    copies = np.repeat(x, counts)
    assert ks_distance(x, y, log_weights) == pytest.approx(ks_distance(copies, y))
    assert ks_distance(y, x, None, log_weights) == pytest.approx(ks_distance(copies, y))
    assert ks_distance(x, stats.norm.cdf, log_weights) == pytest.approx(ks_distance(copies, stats.norm.cdf))
    result = ks_test(x, y, log_weights)
    assert result.p_value is None
    assert result.floor == pytest.approx(ks_floor(100 / 26, 9))  # Kish size (sum c)^2 / sum c^2


def test_ks_floor_is_the_mean_of_kolmogorovs_law():
    assert ks_floor(1.0) == pytest.approx(stats.kstwobign.mean(), rel=1e-9)
    rng, size, repeats = np.random.default_rng(0), 1000, 400
    values = [ks_distance(rng.random(size), lambda t: t) for _ in range(repeats)]
    expected = ks_floor(size) - 1 / (6 * size)
    assert abs(np.mean(values) - expected) < 4.5 * np.std(values, ddof=1) / math.sqrt(repeats)
    two = [ks_distance(rng.random(size), rng.random(500)) for _ in range(repeats)]
    # The lattice of two samples lowers the mean by about half its step.
    assert abs(np.mean(two) - ks_floor(size, 500)) < 4.5 * np.std(two, ddof=1) / math.sqrt(repeats) + 1 / 1000


def test_mmd_of_shifted_gaussians_has_its_closed_form():
    r"""MMD^2 = 2 (s / (s + 2))^(d/2) (1 - exp(-|m|^2 / (2 (s + 2)))) with s the squared bandwidth."""
    square, m, repeats = 2.0, np.array([0.6, 0.8]), 40
    rng = np.random.default_rng(0)
    values = [
        mmd_squared(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + m, bandwidth=math.sqrt(square))
        for _ in range(repeats)
    ]
    expected = 2 * (square / (square + 2)) * (1 - math.exp(-1 / (2 * (square + 2))))
    assert abs(np.mean(values) - expected) < 4.5 * np.std(values, ddof=1) / math.sqrt(repeats)


def test_mmd_of_equal_laws_is_zero_on_average_also_reweighted():
    rng, repeats = np.random.default_rng(1), 60
    plain, weighted, raw = [], [], []
    for _ in range(repeats):
        y = rng.normal(size=(150, 1))
        plain.append(mmd_squared(rng.normal(size=(150, 1)), y, bandwidth=1.0))
        x = 1.3 * rng.normal(size=(300, 1))
        log_weights = -0.5 * x[:, 0] ** 2 * (1 - 1 / 1.69)
        weighted.append(mmd_squared(x, y, log_weights, bandwidth=1.0))
        raw.append(mmd_squared(x, y, bandwidth=1.0))
    for values in (plain, weighted):
        assert abs(np.mean(values)) < 4.5 * np.std(values, ddof=1) / math.sqrt(repeats)
    assert np.mean(raw) > 4.5 * np.std(raw, ddof=1) / math.sqrt(repeats)


def test_mmd_test_is_calibrated_and_has_power():
    """The p-value of equal laws is uniform on multiples of 1/100; a shift is found."""
    rng, repeats = np.random.default_rng(2), 150
    p_values = [
        mmd_test(rng.normal(size=(30, 2)), rng.normal(size=(40, 2)), num_permutations=99, seed=i).p_value
        for i in range(repeats)
    ]
    assert ks_distance(p_values, lambda t: t) < 2.5 / math.sqrt(repeats)  # 1e-5 of Kolmogorov's law, with its lattice
    found = mmd_test(normal(100, 2), normal(80, 2, seed=1) + 1.0)
    assert found.p_value == pytest.approx(1 / 501)
    assert found.squared == pytest.approx(
        mmd_squared(normal(100, 2), normal(80, 2, seed=1) + 1.0, bandwidth=found.bandwidth)
    )


def test_median_bandwidth():
    """Distances of two standard normal numbers: the median of |N(0, 2)|."""
    expected = math.sqrt(2) * stats.norm.ppf(0.75)
    assert median_bandwidth(normal(3000), normal(3000, seed=1)) == pytest.approx(expected, rel=0.05)
    with pytest.raises(ShapeError, match="bandwidth"):
        median_bandwidth([1.0, 1.0], [1.0])


def test_classifier_cannot_tell_equal_laws():
    pytest.importorskip("sklearn")
    assert abs(c2st(normal(5000, 2), normal(5000, 2, seed=1)) - 0.5) < 0.02


def test_classifier_finds_a_shift_and_a_correlation():
    """The best possible accuracy for N(0, I) against N(m, I) is Phi(|m| / 2)."""
    pytest.importorskip("sklearn")
    size = 1000
    best = stats.norm.cdf(1.0)
    found = c2st(normal(size, 2), normal(size, 2, seed=1) + np.array([2.0, 0.0]))
    assert best - 0.03 < found < best + 4.5 * math.sqrt(best * (1 - best) / (2 * size))
    x = normal(size, 2, seed=2)
    x[:, 1] = 0.95 * x[:, 0] + math.sqrt(1 - 0.95**2) * x[:, 1]
    assert c2st(normal(size, 2), x) > 0.7


def test_bad_input(monkeypatch):
    with pytest.raises(ShapeError, match="one coordinate"):
        ks_distance(normal(5, 2), normal(5))
    with pytest.raises(ShapeError):
        ks_floor(0)
    with pytest.raises(ShapeError, match="one dimension"):
        mmd_squared(normal(5, 2), normal(5))
    with pytest.raises(ShapeError, match="bandwidth"):
        mmd_squared(normal(5), normal(5), bandwidth=0.0)
    with pytest.raises(ShapeError):
        mmd_test(normal(5), normal(1))
    with pytest.raises(ShapeError, match="at least two"):
        mmd_squared(normal(5), normal(5), [0.0, -np.inf, -np.inf, -np.inf, -np.inf], bandwidth=1.0)
    with pytest.raises(ShapeError, match="one shape"):
        c2st(normal(100, 2), normal(90, 2))
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ImportError, match=r"pyro-boltzmann\[eval\]"):
        c2st(normal(100, 2), normal(100, 2))
