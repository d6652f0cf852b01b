"""Pairs of prior and data: the shortest by brute force, the same rows, the same law."""

import itertools
import math

import pytest
import torch

from pyro_boltzmann.diagnostics import aligned_squared_distances
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer import align_particles, pair_by_transport, smc
from pyro_boltzmann.transforms import MeanFreeBasis, ParticleSymmetry

BASIS = MeanFreeBasis(4, 2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a, b):
    return (a - b).square().sum(-1)


@pytest.mark.parametrize(("particles", "dim"), [(4, 2), (3, 3), (13, 3)])
def test_a_moved_copy_is_moved_back(particles, dim):
    basis = MeanFreeBasis(particles, dim)
    x = normal(20, basis.dim)
    back = align_particles(ParticleSymmetry(particles, dim).augment(x), x, basis)
    torch.testing.assert_close(back, x)


def test_no_random_element_comes_closer():
    symmetry = ParticleSymmetry(4, 2)
    x0, x1 = normal(1, 6), 2 * normal(1, 6, seed=1)
    found = gap(align_particles(x0, x1, BASIS), x1)
    tried = gap(symmetry.augment(x0.expand(200_000, 6)), x1).min()
    assert found <= tried < found + 0.1


def test_alignment_is_invariant_in_the_prior_and_equivariant_in_the_data():
    symmetry = ParticleSymmetry(4, 2)
    x0, x1 = normal(50, 6), 2 * normal(50, 6, seed=1)
    found = align_particles(x0, x1, BASIS)
    torch.testing.assert_close(align_particles(symmetry.augment(x0), x1, BASIS), found)
    g = symmetry.random(50, like=x0)
    torch.testing.assert_close(align_particles(x0, symmetry.act(g, x1), BASIS), symmetry.act(g, found))


def test_dw4_pairs_become_three_times_shorter():
    """The number is that of the data: E|x0 - x1|^2 = 6 + E|x1|^2 without alignment, a third of it with."""
    target = catalogue["dw4"]
    draws = smc(target, dim=6, proposal=math.sqrt(6.0), num_samples=2000, num_moves=4, seed=0, progress=False)
    x1 = draws.samples["x"].double()[torch.multinomial(draws.log_weights.softmax(0), 2000, replacement=True)]
    x0 = normal(2000, 6)
    plain, aligned = gap(x0, x1).mean(), gap(align_particles(x0, x1, BASIS), x1).mean()
    assert abs(plain - 6 - x1.square().sum(-1).mean()) < 4.5 * 2 * x1.norm(dim=-1).max() / math.sqrt(2000)
    assert 10 < aligned < 12 < 30 < plain


def test_transport_is_the_best_pairing_of_a_block():
    x0, x1 = normal(5, 6), 2 * normal(5, 6, seed=1)
    found = gap(pair_by_transport(x0, x1, BASIS), x1).sum()
    cost = torch.from_numpy(aligned_squared_distances(*(BASIS.to_particles(x).numpy() for x in (x1, x0))))
    best = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    torch.testing.assert_close(found, best)


def test_without_particles_rows_are_exchanged_within_blocks_and_nothing_else():
    x0, x1 = normal(20, 3), normal(20, 3, seed=1)
    paired = pair_by_transport(x0, x1, block=8)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        assert {tuple(row) for row in paired[part].tolist()} == {tuple(row) for row in x0[part].tolist()}
    lengths = [float(gap(pair_by_transport(x0, x1, block=block), x1).sum()) for block in (1, 5, 10, 20)]
    assert lengths[0] == pytest.approx(float(gap(x0, x1).sum()))
    assert all(longer > shorter for longer, shorter in itertools.pairwise(lengths))


def test_dtype_is_kept_and_no_graph():
    x0, x1 = normal(6, 36).float().requires_grad_(), normal(6, 36, seed=1).float()
    found = pair_by_transport(x0, x1, catalogue["lj13"].basis)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.norm(dim=-1).sort().values, x0.detach().norm(dim=-1).sort().values)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"\(n, 6\).*\(3, 8\)"):
        align_particles(torch.zeros(3, 8), torch.zeros(3, 8), BASIS)
    with pytest.raises(ShapeError, match="as many draws as data"):
        pair_by_transport(torch.zeros(3, 6), torch.zeros(4, 6), BASIS)
    with pytest.raises(ValueError, match="1 of 3 pairs"):
        align_particles(torch.zeros(3, 6), torch.tensor([[0.0], [torch.nan], [0.0]]).expand(3, 6), BASIS)
    with pytest.raises(ValueError, match="block"):
        pair_by_transport(torch.zeros(3, 6), torch.zeros(3, 6), BASIS, block=0)
