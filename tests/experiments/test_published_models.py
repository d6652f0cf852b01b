"""The experiments' models are what their pages say, and exact before any training."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.energies import AnnealedEnergy
from pyro_boltzmann.experiments import eight_schools, snf_double_well
from pyro_boltzmann.stochastic import MetropolisAdjusted

double_well = pb.catalogue["double_well"]


def test_the_training_chain_has_the_targets_law() -> None:
    """Mass of the right well and mean energy by batch means: 50 batches, 4.5 standard errors (false alarm 1e-4)."""
    chain = snf_double_well.metropolis_data(seed=3)
    assert chain.shape == (10_000, 2)
    for values, truth in (
        ((chain[:, 0] > 0).double(), float(double_well.mode_probabilities[1])),
        (double_well(chain).double(), double_well.mean_energy),
    ):
        batches = values.reshape(50, -1).mean(1)
        assert abs(float(batches.mean()) - truth) < 4.5 * float(batches.std()) / math.sqrt(50)


@pytest.mark.parametrize(("name", "steps"), [("rnvp", 0), ("nsf", 0), ("rnvp_mc", 80), ("nsf_mc", 80)])
def test_published_models(name: str, steps: int) -> None:
    """Three pairs of couplings; 20 Metropolis steps each at the prior, 0, 1/2 and the target."""
    guide = pb.AutoStochasticFlow(double_well.model(), snf_double_well.MODELS[name])
    blocks = [block for block in guide.path.blocks if isinstance(block, MetropolisAdjusted)]
    assert sum(block.num_repeats for block in blocks) == steps
    assert sum("oupling" in type(block).__name__ for block in guide.path.blocks) == 6
    positions = [block.energy.position for block in blocks if isinstance(block.energy, AnnealedEnergy)]
    assert positions == ([0.0, 0.0, 0.5, 1.0] if steps else [])


def test_learned_steps_start_where_the_paper_starts_and_can_learn() -> None:
    guide = pb.AutoStochasticFlow(double_well.model(), snf_double_well.MODELS["rnvp_mc_learned"])
    blocks = [block for block in guide.path.blocks if isinstance(block, MetropolisAdjusted)]
    assert all(block.gradient == "score" for block in blocks)
    for block in blocks:
        torch.testing.assert_close(block.proposal.scale, torch.full((20,), 0.05))
    pb.ReverseKL(64).loss_and_grads(guide.model, guide)
    # A block on the target changes no weight, whatever its steps: its gradient is noise; that of the middle one is not.
    assert all(block.proposal.log_scale.grad is not None for block in blocks[:3])


@pytest.mark.parametrize("name", ["eight_schools", "eight_schools_centered"])
def test_annealing_in_front_of_the_autoregressive_flow_is_invertible(name: str) -> None:
    """The inverse of the whole path, and its log-determinant, through the couplings of base, rungs and flow."""
    target = pb.catalogue[name]
    torch.manual_seed(0)
    flow = eight_schools.autoregressive(target.dim)
    guide = pb.AutoStochasticFlow(
        target.model(), lambda energy, dim: eight_schools.stochastic_layers(energy, dim, flow), latent_dim=target.dim
    )
    guide.double()
    guide.initialize()
    path = guide.get_transform()
    start = torch.randn(20, target.dim, dtype=torch.float64)
    joint = torch.cat([start, path.sample_noise((20,), start)], -1)
    end, ladj = path.call_and_ladj(joint)
    back, back_ladj = path.inverse_and_ladj(end)
    torch.testing.assert_close(back, joint, rtol=0, atol=1e-8)
    torch.testing.assert_close(back_ladj, -ladj, rtol=0, atol=1e-8)
