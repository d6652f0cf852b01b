"""Exact, sliced and entropic transport against closed forms."""

import itertools
import math
import sys

import numpy as np
import pytest

from pyro_boltzmann.diagnostics import sample_w2, sinkhorn_divergence, sliced_w2
from pyro_boltzmann.diagnostics.metrics.transport import optimal_cost
from pyro_boltzmann.exceptions import ShapeError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def gaussian_coupling(size):
    """A sample, and its image under the optimal map from N(0, I) to N(m, A A), A symmetric positive: A x + m."""
    x, a, m = normal(size, 2), np.array([[2.0, 0.3], [0.3, 0.7]]), np.array([1.0, -2.0])
    return x, x @ a + m


def test_the_monotone_image_of_a_sample_is_its_optimal_transport():
    """The gradient of a convex function is optimal (Brenier), so the distance of a sample to its image is known."""
    x, y = gaussian_coupling(300)
    assert sample_w2(x, np.random.default_rng(1).permutation(y)) == pytest.approx(
        math.sqrt(np.square(x - y).sum(1).mean())
    )


def test_shift_of_a_gaussian():
    """W2(N(0, I), N(m, I)) = |m|: by the triangle inequality two samples differ from it by at most their own floors."""
    x, y, m = normal(600, 2, seed=1), normal(600, 2, seed=2), np.array([3.0, 4.0])
    assert sample_w2(x, x + m) == pytest.approx(5.0)
    assert abs(sample_w2(x, y + m) - 5.0) <= sample_w2(x, y) < 0.4


def test_equals_brute_force_over_all_plans():
    x, y = normal(6, 3), normal(6, 3, seed=1)
    best = min(np.square(x - y[list(p)]).sum(1).mean() for p in itertools.permutations(range(6)))
    assert sample_w2(x, y) == pytest.approx(math.sqrt(best))


def test_one_dimension_is_the_sorted_formula_in_every_way():
    x, y = normal(80), normal(80, seed=3) ** 3
    expected = math.sqrt(np.square(np.sort(x) - np.sort(y)).mean())
    assert sample_w2(x, y) == pytest.approx(expected)
    assert sliced_w2(x, y) == pytest.approx(expected)


def test_weights_count_as_copies():
    pytest.importorskip("ot")
    x, y = normal(4, 2), normal(7, 2, seed=1)
    counts = np.array([3, 0, 1, 3])
    log_weights = np.where(counts > 0, np.log(np.maximum(counts, 1)), -np.inf) + 50.0
    assert sample_w2(x, y, log_weights) == pytest.approx(sample_w2(np.repeat(x, counts, axis=0), y), abs=1e-9)
    assert sample_w2(y, x, None, log_weights) == pytest.approx(sample_w2(x, y, log_weights), abs=1e-9)
    assert sliced_w2(x, y, log_weights) == pytest.approx(sliced_w2(np.repeat(x, counts, axis=0), y), abs=1e-9)


def test_assignment_and_network_simplex_agree():
    pytest.importorskip("ot")
    cost, mass = np.square(normal(20, 20)), np.full(20, 0.05)
    other = mass.copy()
    other[:2] += [1e-13, -1e-13]  # not quite uniform, so that the general solver is used
    assert optimal_cost(cost, mass, other) == pytest.approx(optimal_cost(cost, mass, mass), abs=1e-9)


def test_a_reweighted_sample_comes_to_the_floor():
    """Draws of N(0, 1.5^2 I) weighted to N(0, I), as many as have the Kish size of the floor."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    ess = 1.0 / (1.5**4 / (2 * 1.5**2 - 1))  # the chi-squared divergence of two Gaussians, in the plane
    floors, found = [], []
    for _ in range(8):
        x = 1.5 * rng.normal(size=(round(300 / ess), 2))
        log_weights = -0.5 * np.square(x).sum(1) * (1 - 1 / 1.5**2)
        found.append(sample_w2(x, rng.normal(size=(300, 2)), log_weights))
        floors.append(sample_w2(rng.normal(size=(300, 2)), rng.normal(size=(300, 2))))
    error = math.sqrt((np.var(floors, ddof=1) + np.var(found, ddof=1)) / 8)
    assert abs(np.mean(found) - np.mean(floors)) < 4.5 * error
    x = 1.5 * rng.normal(size=(300, 2))
    assert sample_w2(x, rng.normal(size=(300, 2))) > 1.5 * np.mean(floors)


def test_it_is_w2_and_not_w1():
    """Published "data W2" was W1. Scaling x by 2 moves each draw by |x|: W2 has the root mean square, W1 the mean."""
    x = normal(200, 1)
    assert sample_w2(x, 2 * x) == pytest.approx(math.sqrt(np.square(x).mean()))
    assert sample_w2(x, 2 * x) > 1.2 * np.abs(x).mean()
    # All plans of this pair are optimal for W1 = 1; only one is for W2 = 1.
    assert sample_w2([0.0, 1.0], [2.0, 1.0]) == pytest.approx(1.0)


def test_particles_lose_their_centre_of_mass_and_nothing_else():
    x, y = normal(30, 4, 2), normal(30, 4, 2, seed=1)
    moved = y + 10 * normal(30, 1, 2, seed=2)
    assert sample_w2(x, moved) == pytest.approx(sample_w2(x, y))
    assert sample_w2(x, x[:, ::-1]) > 0.5


def test_sliced_shift():
    """E (theta . m)^2 = |m|^2 / d; its spread over directions for d = 4 is that of the beta law."""
    x, m = normal(100, 4), np.array([2.0, 0.0, 0.0, 0.0])
    number = 2000
    spread = 4.0 * math.sqrt(2 * (4 - 1) / (4**2 * (4 + 2)) / number)
    assert abs(sliced_w2(x, x + m, num_projections=number) ** 2 - 1.0) < 4.5 * spread
    assert sliced_w2(x, x[::-1]) == pytest.approx(0.0, abs=1e-7)
    assert sliced_w2(x, normal(100, 4, seed=1)) <= sample_w2(x, normal(100, 4, seed=1))


def test_sinkhorn_divergence_of_a_shift():
    """Debiased entropic transport of a shift is |m|^2 for any epsilon, where plain entropic transport is not zero."""
    pytest.importorskip("ot")
    x = normal(40, 2)
    for epsilon in (0.3, 3.0):
        assert sinkhorn_divergence(x, x + np.array([0.6, 0.8]), epsilon) == pytest.approx(1.0, abs=1e-5)
        assert sinkhorn_divergence(x, x[::-1], epsilon) == pytest.approx(0.0, abs=1e-6)


def test_bad_input(monkeypatch):
    with pytest.raises(ShapeError, match="one dimension"):
        sample_w2(normal(3, 2), normal(3, 1))
    with pytest.raises(ShapeError, match="finite"):
        sample_w2([0.0, math.nan], [0.0, 1.0])
    with pytest.raises(ShapeError, match="one log weight"):
        sample_w2([0.0, 1.0], [0.0, 1.0], [0.0])
    with pytest.raises(ShapeError):
        sliced_w2([0.0], [0.0], num_projections=0)
    with pytest.raises(ShapeError):
        sinkhorn_divergence([0.0], [0.0], 0.0)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pyro-boltzmann\[eval\]"):
        sample_w2([0.0, 1.0], [0.0])
    assert sample_w2([0.0], [1.0]) == 1.0
