"""Aligned distances of particles: symmetries, brute force, the bound above and below, speed."""

import itertools
import time

import numpy as np
import pytest

from pyro_boltzmann.diagnostics import aligned_squared_distances, aligned_w2, sample_w2
from pyro_boltzmann.diagnostics.metrics import aligned
from pyro_boltzmann.exceptions import ShapeError


def configurations(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def moved(x, seed):
    """Each configuration under its own permutation, rotation or reflection, and translation."""
    rng = np.random.default_rng(seed)
    n, particles, dim = x.shape
    orthogonal = np.linalg.qr(rng.normal(size=(n, dim, dim)))[0]
    orthogonal[::2, 0] *= -1
    order = rng.permuted(np.broadcast_to(np.arange(particles), (n, particles)), axis=1)
    return np.take_along_axis(x, order[..., None], 1) @ orthogonal + rng.normal(size=(n, 1, dim))


def brute_force(a, b):
    """Permutations by enumeration, rotations by a fine grid of angles, both with and without a reflection."""
    a, b = a - a.mean(0), b - b.mean(0)
    angles = np.linspace(0, 2 * np.pi, 20_001)
    rotation = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    best = np.inf
    for order in itertools.permutations(range(len(b))):
        for reflection in (1.0, -1.0):
            turned = (b[list(order)] * [1.0, reflection]) @ rotation
            best = min(best, np.square(a - turned).sum((1, 2)).min())
    return best


def test_equals_brute_force_in_the_plane():
    """The grid's angle is off by at most 1.6e-4, which raises the minimum by at most |a| |b| times its square."""
    x, y = configurations(3, 4, 2), configurations(2, 4, 2, seed=1)
    found = aligned_squared_distances(x, y)
    expected = np.array([[brute_force(a, b) for b in y] for a in x])
    assert found == pytest.approx(expected, abs=1e-6)


def test_kabsch_in_space_equals_a_search_over_rotations():
    """Three dimensions: no random rotation of any permutation comes below, and the best of many comes close."""
    x, y = configurations(1, 4, 3), configurations(1, 4, 3, seed=1)
    found = aligned_squared_distances(x, y)[0, 0]
    a, b = x[0] - x[0].mean(0), y[0] - y[0].mean(0)
    rotations = np.linalg.qr(np.random.default_rng(2).normal(size=(20_000, 3, 3)))[0]
    tried = min(
        np.square(a - b[list(order)] @ rotations).sum((1, 2)).min() for order in itertools.permutations(range(4))
    )
    assert found <= tried < found + 0.2


@pytest.mark.parametrize(("particles", "dim"), [(4, 2), (4, 3), (3, 1), (7, 2), (13, 3)])
def test_invariance_under_the_group_acting_on_either_argument(particles, dim):
    x, y = configurations(12, particles, dim), configurations(11, particles, dim, seed=1)
    found = aligned_squared_distances(x, y)
    assert aligned_squared_distances(moved(x, 2), y) == pytest.approx(found, abs=1e-9)
    assert aligned_squared_distances(x, moved(y, 3)) == pytest.approx(found, abs=1e-9)
    assert aligned_squared_distances(moved(x, 4), x).diagonal() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("particles", "dim"), [(4, 2), (13, 3)])
def test_a_moved_copy_of_a_set_is_at_distance_zero(particles, dim):
    x = configurations(20, particles, dim)
    copy = np.random.default_rng(5).permutation(moved(x, 6))
    assert aligned_w2(x, copy) == pytest.approx(0.0, abs=1e-6)
    assert sample_w2(x, copy) > 1.0


def test_is_a_bound_between_the_minimum_and_the_plain_distance(monkeypatch):
    """Five particles by the bound and by enumeration: never below the exact minimum, never above the unaligned cost."""
    x, y = configurations(6, 5, 2), configurations(6, 5, 2, seed=1)
    bound = aligned_squared_distances(x, y, num_alternations=10)
    with monkeypatch.context() as patch:
        patch.setattr(aligned, "MOST_PERMUTATIONS", 120)
        exact = aligned_squared_distances(x, y)
    assert (bound > exact - 1e-9).all()
    assert (bound < exact + 1e-9).mean() > 0.3
    centred = [z - z.mean(1, keepdims=True) for z in (x, y)]
    plain = np.square(centred[0][:, None] - centred[1][None]).sum((2, 3))
    assert (bound < plain).all()


def test_more_alternations_never_raise_the_bound():
    x, y = configurations(15, 13, 3), configurations(15, 13, 3, seed=1)
    costs = [aligned_squared_distances(x, y, num_alternations=k) for k in (1, 2, 4, 12)]
    for worse, better in itertools.pairwise(costs):
        assert (better <= worse + 1e-9).all()
    assert costs[1].mean() < 0.9 * costs[0].mean()


def test_a_thousand_pairs_squared_of_four_particles():
    start = time.process_time()
    distance = aligned_w2(configurations(1000, 4, 2), configurations(1000, 4, 2, seed=1))
    assert 0.2 < distance < 0.5
    assert time.process_time() - start < 30


def test_bad_input():
    with pytest.raises(ShapeError, match="one shape"):
        aligned_w2(configurations(3, 4, 2), configurations(3, 5, 2))
    with pytest.raises(ShapeError, match="configurations"):
        aligned_w2(configurations(3, 8), configurations(3, 8))
    with pytest.raises(ShapeError, match="num_alternations"):
        aligned_squared_distances(configurations(3, 5, 2), configurations(3, 5, 2), num_alternations=0)
