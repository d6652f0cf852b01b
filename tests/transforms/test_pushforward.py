"""The pushforward energy is minus the log density of the flow, and follows its layers."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.energies import AnnealedEnergy
from pyro_boltzmann.stochastic import LangevinTransform, PathTransform
from pyro_boltzmann.transforms import PushforwardEnergy


def _flow() -> list[torch.distributions.Transform]:
    torch.manual_seed(1)
    return [T.spline_coupling(2, 1, [8], count_bins=4), T.Permute(torch.tensor([1, 0])), T.affine_coupling(2, [8])]


def test_equals_the_density_of_the_transformed_distribution() -> None:
    with torch.no_grad():
        flow = _flow()
        density = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), flow)
        x = density.sample((100,))
        ours = -PushforwardEnergy(pb.NormalEnergy(), flow)(x)
        torch.testing.assert_close(ours, density.log_prob(x), rtol=1e-4, atol=1e-4)


def test_is_normalised() -> None:
    """Grid quadrature of exp(-u_q) is one (midpoint rule, error below 1e-3 at this spacing)."""
    axis = torch.linspace(-8, 8, 801)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = (-PushforwardEnergy(pb.NormalEnergy(), _flow())(grid)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 2e-3


def test_annealing_behind_a_flow_keeps_weights_unbiased() -> None:
    """E[w] = Z on the double well, 4.5 standard errors, for Metropolis behind an untrained flow (false alarm 1e-5)."""
    torch.manual_seed(2)
    target = pb.catalogue["double_well"]
    model = target.model()

    def blocks(energy: pb.energies.Energy, dim: int) -> list[object]:
        flow = [T.AffineTransform(0.5, torch.tensor([1.7, 1.1])), T.affine_coupling(2, [4])]
        rungs = [AnnealedEnergy(PushforwardEnergy(pb.NormalEnergy(), flow), energy, p) for p in (0.3, 0.7, 1.0)]
        walk = [pb.stochastic.RandomWalkTransform(2, 0.4, num_steps=4) for _ in rungs]
        return flow + [pb.stochastic.MetropolisAdjusted(w, rung) for w, rung in zip(walk, rungs, strict=True)]

    draws = pb.importance_sample(model, pb.AutoStochasticFlow(model, blocks), num_samples=40_000, seed=5)
    weights = (draws.log_weights - target.log_z).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05
    assert abs(float(weights.mean()) - 1) < 4.5 * error


def test_a_copied_path_anneals_from_its_own_layers() -> None:
    torch.manual_seed(3)
    layer = T.affine_coupling(2, [4])
    energy = AnnealedEnergy(PushforwardEnergy(pb.NormalEnergy(), [layer]), lambda x: x.square().sum(-1), 0.5)
    path = PathTransform([layer, LangevinTransform(energy, 2, 0.1)], 2)
    clone = copy.deepcopy(path)
    joint = torch.randn(3, 4)
    before = path(joint).detach().clone()
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(0.5)
    torch.testing.assert_close(path(joint.clone()), before)
    copied_reference = clone.blocks[1].energy._ends[0]
    assert copied_reference.transforms[0] is clone.blocks[0]
    assert copied_reference.transforms[0] is not layer


def test_layers_are_registered_once() -> None:
    layer = T.affine_coupling(2, [4])
    energy = AnnealedEnergy(PushforwardEnergy(pb.NormalEnergy(), [layer]), lambda x: x.square().sum(-1), 0.5)
    path = PathTransform([layer, LangevinTransform(energy, 2, 0.1)], 2)
    names = [name for name, _ in path.named_parameters()]
    assert len(names) == len(list(layer.parameters())) and all(name.startswith("blocks.0") for name in names)
