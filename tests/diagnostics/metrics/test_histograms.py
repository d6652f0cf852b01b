"""Histogram divergences: interatomic distances, images, the plane, torsions."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_boltzmann.diagnostics import (
    DistanceBins,
    PlaneBins,
    distance_tv,
    histogram_tv,
    image_kl,
    image_kl_floor,
    pair_distances,
    plug_in_kl_floor,
    torsion_kl,
)
from pyro_boltzmann.exceptions import ShapeError

UNIT = ((0.0, 1.0), (0.0, 1.0))


def pairs(distances):
    """Two particles on a line, that far apart."""
    distances = np.asarray(distances, dtype=float)
    return np.stack([np.zeros_like(distances), distances], 1)[..., None]


def test_distance_tv_of_known_histograms():
    bins = DistanceBins(0.0, 4.0, 4)
    a, b = pairs([0.5, 0.5, 1.5, 2.5]), pairs([0.5, 1.5, 3.5, 3.5])
    assert distance_tv(a, b, bins=bins) == pytest.approx(0.5)
    # Weighted: masses 1/2, 1/4, 1/8, 1/8 against 1/4 each.
    log_weights = np.log([4.0, 2.0, 1.0, 1.0])
    apart = pairs([0.5, 1.5, 2.5, 3.5])
    assert distance_tv(apart, apart, log_weights, bins=bins) == pytest.approx(0.25)


def test_out_of_range_distances_count():
    """Published code drops them: of draws of which half flew apart it sees a perfect half. Total variation is 1/2."""
    reference = pairs(np.linspace(1.0, 2.0, 1001))
    flown = pairs(np.where(np.arange(1001) % 2 == 0, np.linspace(1.0, 2.0, 1001), 50.0))
    assert distance_tv(flown, reference) == pytest.approx(0.5, abs=0.1 + 1 / 1001)
    assert distance_tv(flown, reference, bins=DistanceBins(1.0, 2.0, 10)) == pytest.approx(0.5, abs=2 / 1001)
    collapsed = pairs(np.zeros(1001))
    assert distance_tv(collapsed, reference) == pytest.approx(1.0)
    assert DistanceBins(1.0, 2.0).masses(pair_distances(flown)).sum() == pytest.approx(1.0)


def test_all_pairs_of_a_configuration_are_pooled():
    x = np.random.default_rng(0).normal(size=(5, 4, 3))
    found = pair_distances(x)
    assert found.shape == (5, 6)
    by_hand = sorted(math.dist(x[2, i], x[2, j]) for i in range(4) for j in range(i))
    assert sorted(found[2]) == pytest.approx(by_hand)


def test_distance_tv_floor_of_two_uniform_sets():
    """Equal bins, N pairs each: every |p - q| / 2 is half-normal with variance 2 p (1 - p) / N."""
    rng, size, bins = np.random.default_rng(1), 4000, DistanceBins(0.0, 1.0, 20)
    values = [distance_tv(pairs(rng.random(size)), pairs(rng.random(size)), bins=bins) for _ in range(60)]
    expected = 0.5 * 20 * math.sqrt(2 * 0.05 * 0.95 / size) * math.sqrt(2 / math.pi)
    # Counts near 200: the normal law of a count is good to well below a per cent.
    assert abs(np.mean(values) - expected) < 4.5 * np.std(values, ddof=1) / math.sqrt(60) + 0.005 * expected


def test_image_kl_floor_is_the_bias_of_a_plug_in_estimate():
    bins = PlaneBins(UNIT, (10, 10))
    masses = np.random.default_rng(0).uniform(0.5, 1.5, (10, 10))
    size, repeats = 20_000, 40
    value, spread = image_kl_floor(masses, size, pseudo_count=0.0, num_repeats=repeats)
    # The next order of the bias, sum(1/p) / (12 N^2), is one part in 600.
    assert abs(value - plug_in_kl_floor(100, size)) < 4.5 * spread / math.sqrt(repeats) + value / 200
    # Draws from the bins themselves score as simulated.
    rng = np.random.default_rng(1)
    chosen = rng.choice(100, p=(masses / masses.sum()).ravel(), size=size)
    x = (np.stack(np.unravel_index(chosen, (10, 10)), 1) + rng.random((size, 2))) / 10
    assert abs(image_kl(x, masses, bins, pseudo_count=0.0) - value) < 4.5 * spread * math.sqrt(1 + 1 / repeats)


def test_image_kl_of_known_masses():
    bins = PlaneBins(((0.0, 4.0), (0.0, 1.0)), (4, 1))
    x = np.array([[0.5, 0.5], [0.5, 0.5], [1.5, 0.5], [2.5, 0.5]])
    masses = np.full((4, 1), 0.25)
    a = 0.5
    q = (np.array([2, 1, 1, 0]) + a) / (4 + 4 * a)
    assert image_kl(x, masses, bins, pseudo_count=a) == pytest.approx((0.25 * np.log(0.25 / q)).sum())
    assert image_kl(x, masses, bins, pseudo_count=0.0) == math.inf
    # A draw outside counts in N but in no bin.
    q = (np.array([2, 1, 1, 0]) + a) / (5 + 4 * a)
    assert image_kl(np.vstack([x, [9.0, 9.0]]), masses, bins, pseudo_count=a) == pytest.approx(
        (0.25 * np.log(0.25 / q)).sum()
    )


def test_image_kl_with_weights():
    """Weights that turn uniform draws into the target bring the divergence to the floor of their Kish size."""
    rng, bins = np.random.default_rng(2), PlaneBins(UNIT, (8, 8))
    x = rng.random((40_000, 2))
    masses = bins.exact_masses(lambda z: -np.log(0.5 + z[..., 0]), num_nodes=2)
    log_weights = np.log(0.5 + x[:, 0])
    size = 40_000 / (13 / 12)
    found = image_kl(x, masses, bins, log_weights, pseudo_count=0.0)
    # A chi-squared of 63 degrees of freedom, over 2 N, up to the spread of the weights within the columns.
    assert abs(found * 2 * size - 63) < 4.5 * math.sqrt(2 * 63) * 1.1
    assert image_kl(x, masses, bins) > 0.02


def test_bin_centres_not_grid_ends():
    """Exact draws of a Gaussian: masses at bin centres are right to O(h^2), at the ends of a grid they are shifted."""
    box, size = ((-3.0, 3.0), (-3.0, 3.0)), 400_000
    bins = PlaneBins(box, (50, 50))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2 * size, 2))
    x = x[np.abs(x).max(1) < 3][:size]

    def energy(z):
        return 0.5 * np.square(z).sum(-1)

    floor, spread = image_kl_floor(bins.exact_masses(energy, 4), size)
    integrated = image_kl(x, bins.exact_masses(energy, 4), bins)
    centres = image_kl(x, bins.exact_masses(energy), bins)
    grid = np.linspace(-3.0, 3.0, 50)
    ends = image_kl(x, np.exp(-0.5 * (grid[:, None] ** 2 + grid**2)), bins)
    assert abs(integrated - floor) < 4.5 * spread * math.sqrt(1 + 1 / 20)
    assert abs(centres - integrated) < 0.1 * floor
    # 50 points from end to end are 50/49 of a bin apart: the masses are those of a Gaussian 2% narrower in the bins.
    scale = 50 / 49
    assert ends - integrated == pytest.approx(2 * (math.log(scale) + (1 / scale**2 - 1) / 2), rel=0.5)
    assert ends > centres + 5 * spread


def test_exact_masses_are_integrals():
    bins = PlaneBins(((-1.0, 2.0), (0.0, 3.0)), (3, 6))
    expected = np.outer(np.diff(stats.norm.cdf(bins.edges[0])), np.diff(stats.norm.cdf(bins.edges[1])))
    found = bins.exact_masses(lambda z: 0.5 * np.square(z).sum(-1), num_nodes=12)
    assert found == pytest.approx(expected / expected.sum(), abs=1e-12)


def test_plane_histogram_refuses_bins_that_exact_samples_cannot_fill():
    """1000 draws in 200 x 200 bins: two exact samples differ by 0.8, which is why this is refused."""
    rng = np.random.default_rng(0)
    x, y = rng.random((1000, 2)), rng.random((1000, 2))
    with pytest.raises(ShapeError, match="at most N / 50 = 20 bins"):
        histogram_tv(x, y, PlaneBins(UNIT, (200, 200)))
    assert histogram_tv(x, y, PlaneBins(UNIT, (5, 4))) < 0.15
    # The Kish size, not the number of draws, fills bins.
    log_weights = np.where(np.arange(1000) < 100, 0.0, -50.0)
    with pytest.raises(ShapeError, match="100 effective"):
        histogram_tv(x, y, PlaneBins(UNIT, (5, 4)), log_weights)


def test_plane_histogram_of_known_masses_and_outsiders():
    bins = PlaneBins(((0.0, 2.0), (0.0, 1.0)), (2, 1))
    left, right = np.tile([[0.5, 0.5]], (100, 1)), np.tile([[1.5, 0.5]], (100, 1))
    assert histogram_tv(np.vstack([left, left, right, right]), np.vstack([left, right, right, right]), bins) == (
        pytest.approx(0.25)
    )
    assert histogram_tv(left, left + 10.0, bins) == pytest.approx(1.0)
    assert histogram_tv(left, np.vstack([left, left + 10.0]), bins) == pytest.approx(0.5)


def test_torsion_kl_is_in_nats_and_has_its_floor():
    """Probabilities, not densities smoothed by a kernel: two known histograms, and the bias (B - 1) / (2 N)."""
    half, full = np.array([-1.0] * 3 + [1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
    assert torsion_kl(half, full) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert torsion_kl(half, full + 4 * math.pi) == pytest.approx(torsion_kl(half, full))
    assert torsion_kl([1.0], full) == math.inf
    rng, size = np.random.default_rng(0), 10_000
    even = (np.arange(50_000) + 0.5) / 50_000 * 2 * math.pi - math.pi
    values = [torsion_kl(rng.uniform(-math.pi, math.pi, size), even) for _ in range(40)]
    spread = np.std(values, ddof=1) / math.sqrt(40)
    # Next order of the bias: (sum 1/p) / (12 N^2) = 2500 / 1.2e9.
    assert abs(np.mean(values) - plug_in_kl_floor(50, size)) < 4.5 * spread + 1e-5


def test_bad_input():
    with pytest.raises(ShapeError):
        DistanceBins(1.0, 1.0)
    with pytest.raises(ShapeError):
        pair_distances(np.zeros((3, 1, 2)))
    with pytest.raises(ShapeError):
        PlaneBins(((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(ShapeError, match="bin masses"):
        image_kl(np.zeros((3, 2)), np.ones((2, 2)), PlaneBins(UNIT))
    with pytest.raises(ShapeError, match="pseudo_count"):
        image_kl(np.zeros((3, 2)), np.ones((50, 50)), PlaneBins(UNIT), pseudo_count=-1.0)
    with pytest.raises(ShapeError, match="plane"):
        histogram_tv(np.zeros((300, 3)), np.zeros((300, 3)), PlaneBins(UNIT, (1, 1)))
