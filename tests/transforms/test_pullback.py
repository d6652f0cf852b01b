"""The pullback energy is the target in the coordinates of a flow's base: same evidence, simpler shape."""

from __future__ import annotations

import copy
import math

import pyro.distributions.transforms as T
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.energies import AnnealedEnergy, count_evaluations
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.stochastic import LeapfrogTransform, MetropolisAdjusted, PathTransform
from pyro_boltzmann.transforms import PullbackEnergy, PushforwardEnergy

double_well = pb.catalogue["double_well"]


def _flow() -> list[torch.distributions.Transform]:
    torch.manual_seed(1)
    return [T.spline_coupling(2, 1, [8], count_bins=4), T.Permute(torch.tensor([1, 0])), T.affine_coupling(2, [8])]


@torch.no_grad()
def test_pulling_back_the_flows_own_density_gives_the_base() -> None:
    flow, base = _flow(), pb.NormalEnergy()
    z = torch.randn(100, 2)
    ours = PullbackEnergy(PushforwardEnergy(base, flow), flow)(z)
    torch.testing.assert_close(ours, base(z), rtol=1e-4, atol=1e-4)


def test_evidence_is_the_targets() -> None:
    """Grid quadrature of exp(-u_F) over z against log Z (midpoint rule)."""
    stretch = [T.AffineTransform(torch.tensor([0.3, 0.0]), torch.tensor([1.5, 2.0]))]
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    energy = PullbackEnergy(double_well, stretch)(torch.cartesian_prod(axis, axis))
    log_z = (-energy).logsumexp(0) + 2 * math.log(axis[1] - axis[0])
    assert abs(float(log_z) - double_well.log_z) < 1e-3


def test_each_state_counts_once_as_an_evaluation_of_the_target() -> None:
    with count_evaluations() as count:
        energy_value(PullbackEnergy(double_well, _flow()), torch.zeros(7, 2))
    assert count.values == 7


def test_annealing_in_front_of_a_flow_keeps_weights_unbiased() -> None:
    """E[w] = Z on the double well, 4.5 standard errors (false alarm 1e-5), and the copied path follows its layers."""
    torch.manual_seed(2)
    model = double_well.model()

    def blocks(energy: pb.energies.Energy, dim: int) -> list[object]:
        flow = [T.AffineTransform(0.5, torch.tensor([1.7, 1.1])), T.affine_coupling(2, [4])]
        rungs = [AnnealedEnergy(pb.NormalEnergy(), PullbackEnergy(energy, flow), p) for p in (0.2, 0.6, 1.0)]
        return [MetropolisAdjusted(LeapfrogTransform(rung, dim, 0.3, 2), rung) for rung in rungs] + flow

    draws = pb.importance_sample(model, pb.AutoStochasticFlow(model, blocks), num_samples=40_000, seed=5)
    weights = (draws.log_weights - double_well.log_z).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05
    assert abs(float(weights.mean()) - 1) < 4.5 * error


def test_a_copied_path_pulls_back_through_its_own_layers() -> None:
    layer = T.affine_coupling(2, [4])
    rung = AnnealedEnergy(pb.NormalEnergy(), PullbackEnergy(double_well, [layer]), 0.5)
    path = PathTransform([MetropolisAdjusted(LeapfrogTransform(rung, 2, 0.1, 1), rung), layer], 2)
    clone = copy.deepcopy(path)
    held = clone.blocks[0].energy._ends[1]
    assert held.transforms[0] is clone.blocks[1] and held.transforms[0] is not layer
    assert held.energy.energy is double_well
    assert len(list(path.parameters())) == len(list(layer.parameters()))
