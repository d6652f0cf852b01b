"""Metrics against closed forms, and the floors of the double well recomputed with the library's own code."""

import math

import numpy as np
import pytest

from pyro_boltzmann.diagnostics import (
    ProfileBins,
    delta_f,
    energy_w2,
    exact_profile,
    free_energy_profile,
    mode_mass_tv,
    mode_masses,
    modes_found,
    profile_error,
    published_profile_error,
    sampling_floor,
    virial,
)
from pyro_boltzmann.exceptions import ShapeError

GRID = np.linspace(-4.0, 4.0, 40_001)


def marginal(x):
    return -0.5 * x - 6 * x**2 + x**4


def double_well(size, rng):
    """Exact draws of the double well by the inverse cumulative distribution of x on a fine grid."""
    mass = np.exp(-marginal(0.5 * (GRID[1:] + GRID[:-1])))
    cumulative = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    return np.stack([np.interp(rng.random(size), cumulative, GRID), rng.normal(size=size)], 1)


def energy(x):
    return marginal(x[:, 0]) + 0.5 * x[:, 1] ** 2


def proposal(size, rng):
    """Two Gaussians of equal weight, and exact log weights for the double well."""
    centre = np.where(rng.random(size) < 0.5, -1.7, 1.7)
    x = np.stack([centre + 0.5 * rng.normal(size=size), rng.normal(size=size)], 1)
    log_q = np.logaddexp(*(-0.5 * ((x[:, 0] - c) / 0.5) ** 2 for c in (-1.7, 1.7))) - 0.5 * x[:, 1] ** 2
    return x, -energy(x) - log_q


def test_delta_f_of_the_double_well_from_exact_weights():
    x, log_weights = proposal(200_000, np.random.default_rng(0))
    value, error = delta_f(x[:, 0] > 0, x[:, 0] < 0, log_weights)
    assert error < 0.01
    assert abs(value + 1.6906308) < 4.5 * error


def test_delta_f_error_is_that_of_a_binomial():
    """Unweighted: Var(log(p/(1-p))) = 1/(N p (1-p))."""
    in_a = np.arange(1000) < 300
    value, error = delta_f(in_a, ~in_a)
    assert value == pytest.approx(-math.log(3 / 7))
    assert error == pytest.approx(1 / math.sqrt(1000 * 0.3 * 0.7))


def test_delta_f_of_a_missed_region():
    some, none = np.ones(5, bool), np.zeros(5, bool)
    assert delta_f(some, none) == (-math.inf, math.inf)
    assert delta_f(none, some) == (math.inf, math.inf)


def test_delta_f_does_not_depend_on_the_scale_of_the_weights():
    x, log_weights = proposal(1000, np.random.default_rng(0))
    right = x[:, 0] > 0
    assert delta_f(right, ~right, log_weights + 1e4) == pytest.approx(delta_f(right, ~right, log_weights), rel=1e-9)


def test_energy_w2_of_a_shift_and_a_scale():
    rng = np.random.default_rng(0)
    a = rng.normal(size=1000)
    assert energy_w2(a, rng.permutation(a) + 3.0) == pytest.approx(3.0)
    assert energy_w2(a, 2 * a) == pytest.approx(math.sqrt((a**2).mean()))
    assert energy_w2(a, np.repeat(a, 7)) == pytest.approx(0.0, abs=1e-7)


def test_energy_w2_equals_the_sorted_formula():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=777), rng.exponential(size=777)
    assert energy_w2(a, b) == pytest.approx(math.sqrt(((np.sort(a) - np.sort(b)) ** 2).mean()))


def test_energy_w2_counts_weights_as_copies():
    a, b = np.array([0.0, 1.0, 5.0]), np.array([0.3, 2.0])
    copies = np.repeat(a, [2, 3, 1])
    weighted = energy_w2(a, b, np.log([2.0, 3.0, 1.0]) + 100.0)
    assert weighted == pytest.approx(energy_w2(copies, b))
    assert energy_w2(b, a, None, np.log([2.0, 3.0, 1.0])) == pytest.approx(weighted)
    # Zero weights do not count, whatever energy they have.
    assert energy_w2([0.0, 1.0, math.inf], [0.0, 1.0], [0.0, 0.0, -math.inf]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "floor", "spread"), [(1000, 0.126, 0.038), (2000, 0.092, 0.023), (10_000, 0.051, 0.022)]
)
def test_floors_of_the_double_well(size, floor, spread):
    """The published floors (mean and sd over repeats): ours agree within 4.5 standard errors of 60 repeats of ours
    and, taken as about 20, of theirs."""
    rng = np.random.default_rng(size)
    found, _ = sampling_floor(energy_w2, lambda: energy(double_well(size, rng)), 60)
    assert abs(found - floor) < 4.5 * spread * math.sqrt(1 / 60 + 1 / 20)


def test_floor_of_mode_masses():
    """Forty equal modes, two samples of N = 1000: E|p - q| of each is sqrt(2 p (1-p)/N) * sqrt(2/pi)."""
    rng = np.random.default_rng(0)

    def distance(a, b):
        return mode_mass_tv(a, mode_masses(b, 40))

    found, spread = sampling_floor(distance, lambda: rng.integers(0, 40, 1000), 100)
    expected = 0.5 * 40 * math.sqrt(2 * 0.025 * 0.975 / 1000) * math.sqrt(2 / math.pi)
    # The normal approximation of counts near 25 is good to about one per cent.
    assert abs(found - expected) < 4.5 * spread / 10 + 0.01 * expected


def test_mode_masses():
    labels = [0, 0, 2, 2]
    assert mode_mass_tv(labels, [0.5, 0.25, 0.25]) == pytest.approx(0.25)
    assert modes_found(labels, 3) == 2
    assert mode_mass_tv(labels, [0.5, 0.25, 0.25], np.log([1.0, 1.0, 1.0, 1e-300])) == pytest.approx(
        1 / 3 - 0.25 + 1 / 6
    )
    with pytest.raises(ShapeError):
        mode_masses([0, 3], 3)


def test_virial_counts_degrees_of_freedom():
    rng = np.random.default_rng(4)
    x = double_well(100_000, rng)
    gradient = np.stack([-0.5 - 12 * x[:, 0] + 4 * x[:, 0] ** 3, x[:, 1]], 1)
    value, error = virial(x, gradient)
    assert abs(value - 2) < 4.5 * error
    y, log_weights = proposal(100_000, rng)
    gradient = np.stack([-0.5 - 12 * y[:, 0] + 4 * y[:, 0] ** 3, y[:, 1]], 1)
    value, error = virial(y, gradient, log_weights)
    assert abs(value - 2) < 4.5 * error < 0.2


def test_virial_of_particles_is_about_the_centre_of_mass():
    """Harmonic pair energy of 4 particles in the plane: 6 degrees of freedom, wherever the centre of mass is."""
    rng = np.random.default_rng(5)
    free = rng.normal(size=(50_000, 4, 2))
    free -= free.mean(1, keepdims=True)
    gradient = free.reshape(-1, 8)
    moved = (free + 10 * rng.normal(size=(50_000, 1, 2))).reshape(-1, 8)
    value, error = virial(moved, gradient, particle_dim=2)
    assert abs(value - 6) < 4.5 * error < 0.1


def test_exact_profile_is_the_integral_over_each_bin():
    bins = ProfileBins()
    profile = exact_profile(marginal, bins)
    fine = np.linspace(bins.edges[7], bins.edges[8], 100_001)
    values = np.exp(-marginal(fine))
    integral = (0.5 * (values[1:] + values[:-1])).sum() * (fine[1] - fine[0])
    assert profile[7] == pytest.approx(-math.log(integral), abs=1e-8)
    assert np.exp(-profile).sum() == pytest.approx(11784.509265, rel=1e-6)
    assert bins.scored.sum() == 22


def test_profile_error_of_exact_and_shifted_profiles():
    exact = exact_profile(marginal)
    score = profile_error(np.stack([exact + 5.0, exact - 3.0]), exact)
    assert score.rms == pytest.approx(0.0, abs=1e-12)
    tilt = 0.1 * ProfileBins().centres
    score = profile_error(np.stack([exact + tilt, exact - tilt]), exact)
    scored = tilt[ProfileBins().scored]
    # Repeats that err in opposite directions have no bias, but an rms and a spread.
    assert score.bias == pytest.approx(0.0, abs=1e-12)
    assert score.rms == pytest.approx(math.sqrt((scored**2).mean()))
    assert score.std == pytest.approx(np.abs(scored).mean())
    hole = exact.copy()
    hole[15] = math.inf
    assert profile_error(hole, exact).rms == math.inf
    # On top of the barrier 100,000 exact draws expect 1.5 in a bin: not scored at that size, scored at a larger one.
    score = profile_error(hole, exact, num_samples=100_000)
    assert score.rms == pytest.approx(0.0, abs=1e-12) and score.num_bins < 22
    assert profile_error(hole, exact, num_samples=10_000_000).rms == math.inf
    assert profile_error(exact, exact, num_samples=5).rms == math.inf


def test_reweighted_profile_approaches_the_exact_one():
    rng = np.random.default_rng(0)
    x, log_weights = proposal(400_000, rng)
    exact = exact_profile(marginal)
    raw = profile_error(free_energy_profile(x[:, 0]), exact)
    weighted = profile_error(free_energy_profile(x[:, 0], log_weights), exact)
    assert weighted.rms < 0.2 < raw.rms


def test_unaligned_edges_inflate_the_published_metric():
    """Defect 12: edges taken from each sample turn one outlier into an error of the whole profile.

    All repeats are the *same* draws but for one far point, so that their spread must vanish on fixed bins.
    """
    x = double_well(100_000, np.random.default_rng(1))[:, 0]
    x = x[np.abs(x) < 2.6]
    repeats = [np.append(x, -outlier) for outlier in (2.7, 3.2, 3.7, 4.2)]
    aligned = [np.append(x, 3.0) for _ in range(4)]
    exact = exact_profile(marginal)
    ours = profile_error([free_energy_profile(r) for r in repeats], exact)
    published = published_profile_error(repeats, marginal)
    assert ours.std < 1e-3 * published.std
    assert published.std > 0.2
    assert published.err == pytest.approx(math.hypot(published.bias, published.std))
    assert published_profile_error(aligned, marginal).std == pytest.approx(0.0, abs=1e-12)


def test_signed_means_cancel_in_the_published_bias():
    """Defect 12: an error of +0.4 kT on the right and -0.4 kT on the left has a published bias of zero."""
    centres, scored = ProfileBins().centres, ProfileBins().scored
    # The middle is left alone, so that the minimum (to which the published code aligns) stays where it is.
    error = np.where(np.abs(centres) > 1.0, 0.4 * np.sign(centres), 0.0)
    # One draw a bin, and two of no weight that fix the published edges to ours.
    x = np.concatenate([centres, [-3.0, 3.0]])
    log_weights = np.concatenate([-(centres**2) - error, [-60.0, -60.0]])
    published = published_profile_error([x], np.square, [log_weights])
    ours = profile_error(free_energy_profile(x, log_weights), centres**2)
    assert published.bias == pytest.approx(0.0, abs=1e-9)
    assert ours.bias == pytest.approx(np.abs(error[scored]).mean())


def test_bad_shapes():
    with pytest.raises(ShapeError):
        free_energy_profile(np.zeros((3, 2)))
    with pytest.raises(ShapeError):
        profile_error(np.zeros(29), np.zeros(30))
    with pytest.raises(ShapeError):
        virial(np.zeros((3, 2)), np.zeros((3, 3)))
    with pytest.raises(ShapeError):
        energy_w2([1.0, 2.0], [1.0], [0.0])
