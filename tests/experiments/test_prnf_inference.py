"""Sources seen through diffusion: the quadrature, and both programs, against each other."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.experiments.inference_problems import PROBLEMS
from pyro_boltzmann.sde import FlowMap, TransitionData
from pyro_boltzmann.sde.exact import GaussianTransition

SIGMAS = 4.5


@pytest.mark.parametrize("name", ["brownian", "ornstein-uhlenbeck"])
def test_the_quadrature_agrees_with_importance_sampling(name: str) -> None:
    """Prior draws, weighted by the marginal likelihood."""
    problem = PROBLEMS[name]
    observed = problem.observations(1)
    exact = problem.exact(observed)
    assert exact is not None
    generator = torch.Generator().manual_seed(2)
    n = 200_000
    a = problem.prior_loc + problem.prior_scale * torch.randn(n, generator=generator, dtype=torch.float64)
    w = (math.log(0.7) + 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)).exp()
    assert isinstance(problem.system.transition, GaussianTransition)
    mean, variance = problem.system.transition.moments(torch.ones(1, 1, dtype=torch.float64), problem.system.time)
    sd = (float(mean) ** 2 * w.square() + float(variance) + problem.noise**2).sqrt()
    y = observed[:, :1].double()
    weight = torch.distributions.Normal(float(mean) * a, sd).log_prob(y).sum(0).exp()
    assert float(weight.mean()) == pytest.approx(math.exp(exact.log_z), abs=SIGMAS * float(weight.std()) / math.sqrt(n))
    for index, value in enumerate((a, w)):
        terms = weight / weight.mean() * (value - exact.mean[index])
        assert abs(float(terms.mean())) < SIGMAS * float(terms.std()) / math.sqrt(n)


def exact_map(name: str) -> FlowMap:
    """The least-squares fit, which is the whole law here."""
    problem = PROBLEMS[name]
    system = problem.system
    torch.manual_seed(0)
    x0 = system.initial.sample((20_000,))
    data = TransitionData(
        x0,
        torch.full((20_000,), system.time),
        system.transition.sample(x0, system.time),
        torch.zeros(20_000, dtype=torch.bool),
    )
    flow_map = FlowMap.for_sde(system.sde, system.time, width=16, coupling_width=16, drift_steps=2)
    flow_map.standardise(data)
    return flow_map.eval().requires_grad_(False)


def test_the_program_through_a_map_has_the_joint_density_of_the_exact_law() -> None:
    problem = PROBLEMS["brownian"]
    observed = problem.observations(1)
    trace = pyro.poutine.trace(problem.through_map(exact_map("brownian"))).get_trace(observed)
    trace.compute_log_prob()
    x0, x = (trace.nodes[site]["value"] for site in ("x0", "x"))
    assert x0.shape == (8, 1) and trace.nodes["y"]["log_prob"].shape == (8,)
    exact = problem.system.transition.log_prob(x, x0, problem.system.time)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], exact, atol=0.2, rtol=0.02)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_programs_are_batched_energies(name: str) -> None:
    """Each row's energy is that of the row alone, so guides can draw many at a time."""
    problem = PROBLEMS[name]
    observed = problem.observations(1)
    energy = pb.ModelEnergy(problem.through_simulator(), observed)
    z = torch.randn(3, energy.latent_dim, generator=torch.Generator().manual_seed(0))
    together = energy(z)
    assert together.shape == (3,) and bool(together.isfinite().all())
    torch.testing.assert_close(together, torch.stack([energy(row) for row in z]), rtol=1e-4, atol=1e-3)
