"""Resampling inside a path: unbiased whatever the intermediate density, and honest about its errors."""

import math

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.energies import AnnealedEnergy, NormalEnergy
from pyro_boltzmann.infer.path_resampling import PathResampler
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    RandomWalkTransform,
    ResamplingPoint,
)

LOG_Z = math.log(math.pi / 2)


def shifted(x):
    return 2.0 * (x - 1.5).square().sum(-1)


def rungs(energy, dim, positions, move):
    reference = NormalEnergy()
    return [move(AnnealedEnergy(reference, energy, position), dim) for position in positions]


def metropolis(energy, dim):
    return MetropolisAdjusted(RandomWalkTransform(dim, 0.8), energy)


def langevin(energy, dim):
    return LangevinTransform(energy, dim, 0.1)


def leapfrog(energy, dim):
    return MetropolisAdjusted(LeapfrogTransform(energy, dim, 0.3, 3), energy)


def guide_of(blocks, energy=shifted):
    model = pb.BoltzmannModel(energy, 2)
    return model, pb.AutoStochasticFlow(model, blocks)


def replicates(blocks, energy=shifted, number=200, length=60, below=0.7, **settings):
    """Estimates of Z / its true value from independent populations of one call."""
    model, guide = guide_of(blocks, energy)
    draws = pb.importance_sample(
        model, guide, num_samples=number * length, num_chains=number, resample_below=below, seed=3, **settings
    )
    log_z = draws.log_weights.reshape(number, length).logsumexp(-1) - math.log(length)
    return (log_z - LOG_Z).exp(), draws


@pytest.mark.parametrize("move", [metropolis, langevin, leapfrog])
@pytest.mark.parametrize("resampler", ["systematic", "multinomial"])
def test_unbiased_over_200_populations(move, resampler):
    ratio, draws = replicates(lambda u, d: rungs(u, d, (0.3, 0.6, 1.0), move), resampler=resampler)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 200**0.5
    assert sum(draws.info["resampled"].values()) > 100
    assert abs(draws.log_normalizer - LOG_Z) < 4.5 * draws.log_normalizer_error


def test_any_positive_density_will_do():
    # A learned density that is wrong, behind a flow layer, and a wrong one in front of everything.
    def blocks(u, d):
        return [
            ResamplingPoint(lambda x: 0.3 * (x - 1).square().sum(-1), d),
            T.AffineTransform(0.5, 0.8),
            ResamplingPoint(lambda x: x.abs().sum(-1), d),
            *rungs(u, d, (0.5, 1.0), metropolis),
        ]

    ratio, draws = replicates(blocks)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 200**0.5
    assert draws.info["resampled"][0] > 10
    assert draws.info["resampled"][2] > 10


class Noisy:
    """An energy with noise of its own: the estimate stays unbiased if each number is drawn once."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return 0.5 * x.square().sum(-1) + 1.5 * torch.randn(x.shape[:-1])


def test_a_random_density_is_drawn_once_and_reused():
    noisy = Noisy()
    ratio, draws = replicates(lambda u, d: [ResamplingPoint(noisy, d), *rungs(u, d, (0.5, 1.0), metropolis)])
    assert draws.info["resampled"][0] > 100
    assert noisy.calls == 200
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 200**0.5


def test_paths_may_return_from_behind_a_wall():
    # Unadjusted steps cross the wall in both directions: a path of zero density now may have a weight in the end.
    def wall(x):
        return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), torch.inf)

    ratio, draws = replicates(lambda u, d: rungs(u, d, (0.25, 0.5, 0.75, 1.0), langevin), wall, below=0.9)
    ratio = ratio / 2  # the half plane has the mass pi, twice that of the target that replicates() knows
    assert sum(draws.info["resampled"].values()) > 200
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 200**0.5


def test_without_need_nothing_is_resampled():
    model, guide = guide_of(lambda u, d: rungs(u, d, (0.5, 1.0), metropolis))
    plain = pb.importance_sample(model, guide, num_samples=500, batch_size=500, seed=1)
    never = pb.importance_sample(model, guide, num_samples=500, resample_below=1e-9, seed=1)
    assert torch.equal(plain.log_weights, never.log_weights)
    assert never.num_independent == pytest.approx(500 * never.ess)
    assert never.khat == plain.khat  # weights that were never resampled have a tail to look at
    assert never.info["path_ess"] == pytest.approx(plain.info["path_ess"])


def test_resampling_helps_where_weights_degenerate():
    # Thirty dimensions annealed in steps: without resampling the ESS is gone, with it the end states are usable.
    def energy(x):
        return 2.0 * (x - 1.0).square().sum(-1)

    def blocks(u, d):
        positions = [(k / 12) ** 2 for k in range(1, 13)]
        return rungs(u, d, positions, leapfrog)

    model = pb.BoltzmannModel(energy, 30)
    guide = pb.AutoStochasticFlow(model, blocks)
    plain = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    better = pb.importance_sample(model, guide, num_samples=8000, num_chains=8, resample_below=0.5, seed=0)
    assert plain.ess < 0.3 < better.ess
    truth = 15 * math.log(math.pi / 2)
    # t with 7 degrees of freedom: 9 errors are one false alarm in 2e4.
    assert abs(better.log_normalizer - truth) < 9 * better.log_normalizer_error
    assert better.log_normalizer_error < 0.2
    assert math.isnan(better.khat)
    assert 8 <= better.num_independent < 8000


def test_a_generator_of_its_own():
    _, guide = guide_of(lambda u, d: rungs(u, d, (0.5, 1.0), langevin))
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            resampler = PathResampler(0.9, generator=generator)
            ends.append(guide.sample_paths(100, generator=generator, resampler=resampler).z)
    assert sum(resampler.resampled.values()) > 0
    assert torch.equal(*ends)


def test_bad_settings():
    model, guide = guide_of(lambda u, d: rungs(u, d, (0.5, 1.0), metropolis))
    with pytest.raises(ValueError, match="resample_below"):
        pb.importance_sample(model, guide, resample_below=1.5)
    with pytest.raises(ValueError, match="divide"):
        pb.importance_sample(model, guide, num_samples=100, batch_size=30, resample_below=0.5)
    with pytest.raises(TypeError, match="AutoStochasticFlow"):
        pb.importance_sample(model, lambda: dist.Normal(0.0, 1.0), resample_below=0.5)
