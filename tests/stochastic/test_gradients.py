"""Gradients of path weights against finite differences, and of the expected loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor, nn

import pyro_boltzmann as pb
from pyro_boltzmann import AnnealedEnergy, NormalEnergy, catalogue
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    PathTransform,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)

double_well = catalogue["double_well"]


def annealed() -> AnnealedEnergy:
    return AnnealedEnergy(NormalEnergy(), double_well, 0.4, learnable=True)


SMOOTH: dict[str, Callable[[], Any]] = {
    "langevin": lambda: LangevinTransform(double_well, 2, [0.02, 0.03], num_steps=2, learnable=True),
    "langevin_clipped": lambda: LangevinTransform(double_well, 2, 0.02, num_steps=2, learnable=True, max_force=3.0),
    "langevin_annealed": lambda: LangevinTransform(annealed(), 2, 0.02, num_steps=2, learnable=True),
    "leapfrog": lambda: LeapfrogTransform(annealed(), 2, 0.1, num_steps=3, learnable=True),
    "baoab": lambda: UnderdampedLangevinTransform(annealed(), 2, 0.1, 0.7, num_steps=2, learnable=True),
    "obabo": lambda: UnderdampedLangevinTransform(annealed(), 2, 0.1, 0.7, 2, scheme="OBABO", learnable=True),
    "random_walk": lambda: RandomWalkTransform(2, 0.3, learnable=True),
    # Within its branches a Metropolis step is smooth too; small differences do not cross a boundary here.
    "metropolis": lambda: MetropolisAdjusted(LangevinTransform(annealed(), 2, 0.02, learnable=True), annealed()),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradient_of_the_path_weight_is_its_finite_difference(name: str, inverse: bool) -> None:
    """For the parameters of the block and for a shift upstream of it, relative error 1e-5 in float64."""
    torch.manual_seed(0)
    shift = nn.Parameter(torch.tensor([0.2, -0.1], dtype=torch.float64))
    path = PathTransform([SMOOTH[name]()], 2).double()
    x = torch.randn(20, 2, dtype=torch.float64)

    def weight() -> Tensor:
        result = path.stream(x + shift, generator=torch.Generator().manual_seed(1), inverse=inverse)
        return (result.log_ratio - double_well(result.x)).sum()

    parameters = [shift, *path.parameters()]
    gradients = torch.autograd.grad(weight(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for i in range(flat.numel()):
            kept = float(flat[i])
            values = []
            for h in (1e-5, -1e-5):
                flat[i] = kept + h
                # With a graph, so that Metropolis tests take their threshold from the same numbers.
                values.append(float(weight().detach()))
            flat[i] = kept
            finite = (values[0] - values[1]) / 2e-5
            assert float(gradient.view(-1)[i]) == pytest.approx(finite, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", ["langevin", "leapfrog", "baoab"])
def test_gradient_of_the_expected_loss_in_the_step_size(kind: str) -> None:
    """Reverse KL: autograd on one half of the particles against a finite difference of the mean on the other half,
    within 4.5 standard errors."""
    blocks: dict[str, Callable[[Any], Any]] = {
        "langevin": lambda energy: LangevinTransform(energy, 2, 0.03, learnable=True),
        "leapfrog": lambda energy: LeapfrogTransform(energy, 2, 0.15, num_steps=2, learnable=True),
        "baoab": lambda energy: UnderdampedLangevinTransform(energy, 2, 0.15, num_steps=2, learnable=True),
    }
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)
    # A narrow base: from its tails the quartic would throw paths so far that no mean converges.
    guide = pb.AutoStochasticFlow(
        model, lambda energy, dim: [blocks[kind](energy)], base_scale=0.5, dtype=torch.float64
    )
    log_step = guide.path.blocks[0].log_step_size
    n, repeats = 4000, 20
    by_autograd = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        loss = pb.ReverseKL(num_particles=n).differentiable_loss(model, guide)
        by_autograd.append(float(torch.autograd.grad(loss, log_step)[0]))
    differences = []
    for seed in range(repeats):
        values = []
        for h in (1e-3, -2e-3):
            with torch.no_grad():
                log_step.add_(h)
                torch.manual_seed(1000 + seed)
                values.append(float(-guide.sample_paths(n).log_weight.mean()))
        with torch.no_grad():
            log_step.add_(1e-3)
        differences.append((values[0] - values[1]) / 2e-3)
    ours, theirs = torch.tensor(by_autograd), torch.tensor(differences)
    error = math.sqrt(float(ours.var() + theirs.var()) / repeats)
    assert abs(float(ours.mean() - theirs.mean())) < 4.5 * error
    assert abs(float(ours.mean())) > 4.5 * error  # and it is not zero


def test_pyro_and_the_streamed_objective_have_the_same_gradient_in_expectation() -> None:
    """Trace_ELBO differentiates the joint density, ReverseKL the streamed weight: means agree within 4.5 s.e."""
    from pyro.infer import Trace_ELBO

    torch.manual_seed(0)
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)
    guide = pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [
            T.affine_autoregressive(dim, hidden_dims=[8]),
            LangevinTransform(annealed(), dim, 0.02, num_steps=2, learnable=True),
        ],
        dtype=torch.float64,
    )
    parameters = list(guide.parameters())
    objectives = [
        Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=0),
        pb.ReverseKL(num_particles=500),
    ]
    means, errors = [], []
    for objective in objectives:
        rows = []
        for _ in range(30):
            loss = objective.differentiable_loss(model, guide)
            rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
        stacked = torch.stack(rows)
        means.append(stacked.mean(0))
        errors.append(stacked.var(0) / 30)
    deviation = (means[0] - means[1]) / (errors[0] + errors[1]).sqrt().clamp_min(1e-9)
    # 4.5 standard errors of Student's t with 29 degrees of freedom, one parameter at a time: allow 6 for the many.
    assert float(deviation.abs().max()) < 6
    assert float(means[0].abs().max()) > 0.1


def test_second_use_of_a_graph_is_possible() -> None:
    """The loss and a diagnostic may both be differentiated from one path."""
    path = PathTransform([LangevinTransform(double_well, 2, 0.02, num_steps=2, learnable=True)], 2)
    result = path.stream(torch.randn(5, 2))
    result.log_ratio.sum().backward(retain_graph=True)
    result.x.sum().backward()
