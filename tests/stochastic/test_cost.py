"""What a path costs: energies and forces are evaluated once per state, and none twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann import AnnealedEnergy, NormalEnergy, catalogue, count_evaluations
from pyro_boltzmann.energies.evaluation import EvaluationCount
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    PathTransform,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)
from pyro_boltzmann.transforms import InverseTransform

N = 10


def u(x: torch.Tensor) -> torch.Tensor:
    return double_well(x)


double_well = catalogue["double_well"]


def annealed(position: float) -> AnnealedEnergy:
    # The reference is an anonymous function, counted like the target.
    return AnnealedEnergy(reference, u, position)


normal = NormalEnergy()


def reference(x: Tensor) -> Tensor:
    """A reference that is counted, because it does not say that it is one."""
    return normal(x)


# name: blocks, then energy values and gradients for one particle. A gradient brings its value along.
COSTS: dict[str, tuple[Callable[[], list[Any]], int, int]] = {
    "langevin": (lambda: [LangevinTransform(u, 2, 0.01, num_steps=7)], 8, 8),
    "leapfrog": (lambda: [LeapfrogTransform(u, 2, 0.01, num_steps=5, num_trajectories=3)], 16, 16),
    "baoab": (lambda: [UnderdampedLangevinTransform(u, 2, 0.01, num_steps=5, num_trajectories=2)], 11, 11),
    "obabo": (lambda: [UnderdampedLangevinTransform(u, 2, 0.01, num_steps=5, scheme="OBABO")], 6, 6),
    "random_walk": (lambda: [RandomWalkTransform(2, 0.1, num_steps=9)], 1, 0),  # that of the weight
    "metropolis": (lambda: [MetropolisAdjusted(RandomWalkTransform(2, 0.1, num_steps=9), u)], 10, 0),
    "mala": (lambda: [MetropolisAdjusted(LangevinTransform(u, 2, 0.1, num_steps=9), u)], 10, 10),
    "hmc": (lambda: [MetropolisAdjusted(LeapfrogTransform(u, 2, 0.1, 4, num_trajectories=2), u)], 9, 9),
    "blocks_on_one_energy": (lambda: [LangevinTransform(u, 2, 0.01, num_steps=3) for _ in range(4)], 13, 13),
    "flow_between": (
        lambda: [LangevinTransform(u, 2, 0.01), T.AffineTransform(0.0, 1.1), LangevinTransform(u, 2, 0.01)],
        4,
        4,
    ),
    # Two energies a state; a change of lambda costs nothing.
    "annealed": (lambda: [LangevinTransform(annealed(p), 2, 0.01, num_steps=3) for p in (0.3, 0.6)], 14, 14),
    "annealed_metropolis": (
        lambda: [MetropolisAdjusted(RandomWalkTransform(2, 0.1, num_steps=3), annealed(p)) for p in (0.3, 0.6)],
        14,
        0,
    ),
    "annealed_ends": (  # at 0 the reference alone, then one value of the target, at 1 the target alone
        lambda: [MetropolisAdjusted(RandomWalkTransform(2, 0.1, num_steps=3), annealed(p)) for p in (0.0, 1.0)],
        8,
        0,
    ),
    "inverse": (lambda: [InverseTransform(LangevinTransform(u, 2, 0.01, num_steps=5))], 6, 6),
}


@pytest.mark.parametrize("name", COSTS)
def test_sampling_with_weights_evaluates_each_state_once(name: str) -> None:
    """n Langevin steps cost n + 1 forces, n Metropolis steps n + 1 energies, and the final weight nothing."""
    blocks, values, gradients = COSTS[name]
    guide = pb.AutoStochasticFlow(pb.BoltzmannModel(u, 2), lambda energy, dim: blocks())
    with torch.no_grad():
        guide.sample_paths(1)
        with count_evaluations() as count:
            guide.sample_paths(N)
    assert count == EvaluationCount(N * values, N * gradients)


@pytest.mark.parametrize("name", COSTS)
def test_backward_paths_cost_the_same(name: str) -> None:
    """The weight's energy is at their start, where a first force brings it along."""
    blocks, values, gradients = COSTS[name]
    guide = pb.AutoStochasticFlow(pb.BoltzmannModel(u, 2), lambda energy, dim: blocks())
    z = torch.randn(N, 2)
    with torch.no_grad():
        guide.reverse_paths(z)
        with count_evaluations() as count:
            guide.reverse_paths(z)
    assert count == EvaluationCount(N * values, N * gradients)


def test_a_counted_gradient_is_a_true_one() -> None:
    """The counter is not fooled: the energy function itself is called as often as the counter says."""
    calls = 0

    def counted(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += x[..., 0].numel()
        return double_well(x)

    path = PathTransform([LangevinTransform(counted, 2, 0.01, num_steps=6)], 2)
    with torch.no_grad(), count_evaluations() as count:
        path.stream(torch.randn(N, 2))
    assert calls == 7 * N
    assert count == EvaluationCount(7 * N, 7 * N)


def test_no_graph_is_kept_while_sampling() -> None:
    guide = pb.AutoStochasticFlow(
        pb.BoltzmannModel(u, 2),
        lambda energy, dim: [
            T.affine_coupling(dim, hidden_dims=[4]),
            LangevinTransform(energy, dim, 0.01, learnable=True),
        ],
    )
    with torch.no_grad():
        paths = guide.sample_paths(N)
    assert not paths.z.requires_grad and not paths.log_weight.requires_grad
    assert paths.log_weight.dtype == torch.float64


def test_references_are_not_counted() -> None:
    """The base and a flow's own density cost no evaluations of the target."""
    flow = [T.AffineTransform(0.0, 1.5)]
    with torch.no_grad(), count_evaluations() as count:
        x = torch.randn(N, 2)
        for energy in (NormalEnergy(), pb.transforms.PushforwardEnergy(NormalEnergy(), flow)):
            pb.energies.energy_value(energy, x)
            pb.energies.energy_and_gradient(energy, x)
    assert count == EvaluationCount(0, 0)
