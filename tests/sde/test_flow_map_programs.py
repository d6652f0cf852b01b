"""Inference through a flow map, where the posterior is known in closed form.

An untrained map with the right scale is Brownian motion at all times, exactly.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import Absorbing, FlowMap, chapman_kolmogorov

LONGEST = 2.0


def brownian_map(dim: int = 1, **settings: object) -> FlowMap:
    flow_map = FlowMap(dim, (0.1, LONGEST), coupling_width=16, width=16, num_layers=dim, **settings)  # type: ignore[arg-type]
    flow_map.scale_unit.fill_(math.sqrt(LONGEST))
    return flow_map


def normal(loc: float | Tensor, scale: float, dim: int = 1) -> dist.TorchDistribution:
    return dist.Normal(loc, scale).expand([dim]).to_event(1)


def test_the_marginal_density_is_the_convolution() -> None:
    flow_map = brownian_map(2)
    y = 1.5 * torch.randn(50, 2)
    result = flow_map.marginal_log_prob(y, normal(0.5, 0.8, 2), 1.0, 4000)
    exact = normal(0.5, math.sqrt(0.64 + 1.0), 2).log_prob(y)
    # The same draws serve all y, so the mean error of these is one number, bounded by their largest.
    assert bool((result.std_error < 0.1).all())
    assert bool(((result.log_prob - exact).abs() < 4.5 * result.std_error).all())
    assert bool((result.effective > 100).all())


def test_the_effective_number_and_the_error_are_those_of_the_weights() -> None:
    flow_map = brownian_map()
    flow_map.scale_unit.fill_(1e-3 * math.sqrt(LONGEST))
    result = flow_map.marginal_log_prob(torch.zeros(1, 1), normal(0.0, 1.0), 0.5, 500)
    # A kernel far narrower than the initial law meets few of the draws, and says so.
    assert float(result.effective) < 5.0 and float(result.std_error) > 0.3


def test_pushed_draws_have_the_moments_of_the_convolution() -> None:
    n = 20_000
    pushed = brownian_map().push(normal(0.5, 0.8), 1.0, n)
    variance = 0.64 + 1.0
    assert abs(float(pushed.state.mean()) - 0.5) < 4.5 * math.sqrt(variance / n)
    assert abs(float(pushed.state.var()) - variance) < 4.5 * variance * math.sqrt(2.0 / n)
    assert not bool(pushed.exited.any()) and not bool(pushed.outside.any())


def test_two_steps_of_brownian_motion_are_one() -> None:
    result = chapman_kolmogorov(brownian_map(2), torch.randn(5000, 2), 0.7, 1.1)
    assert all(test.p_value is not None and test.p_value > 1e-5 for test in result.marginals)
    assert result.survival == (1.0, 1.0)


def test_and_two_steps_of_a_wrong_law_are_not() -> None:
    flow_map = brownian_map()
    with torch.no_grad():
        flow_map.linear.offset.fill_(1.0)  # a shift by the square root of the time
    result = chapman_kolmogorov(flow_map, torch.randn(5000, 1), 1.0, 1.0)
    assert result.marginals[0].p_value is not None and result.marginals[0].p_value < 1e-9


def test_exits_are_drawn_with_their_probability() -> None:
    flow_map = brownian_map(boundaries=[Absorbing(0, low=-20.0)])
    probability = flow_map.exit_probability(torch.zeros(1), 1.0).item()
    pushed = flow_map.push(normal(0.0, 1e-4), 1.0, 20_000)
    share = float(pushed.exited.double().mean())
    assert abs(share - probability) < 4.5 * math.sqrt(probability * (1.0 - probability) / 20_000) + 1e-4
    trace = pyro.poutine.trace(flow_map.model(normal(0.0, 1.0).expand([7]), 1.0)).get_trace()
    assert trace.stochastic_nodes == ["x0", "exited", "x"]
    trace.compute_log_prob()
    exited = trace.nodes["exited"]["value"].bool()
    assert torch.equal(trace.nodes["x"]["log_prob"] == 0.0, exited)


OBSERVED = 1.5
PRIOR, TIME, NOISE = 2.0, 1.0, 0.3


class Source:
    """A particle leaves an unknown place and is seen after a time, with noise."""

    def __init__(self) -> None:
        self.carry = brownian_map().model(normal(0.0, PRIOR), TIME)

    def __call__(self) -> None:
        x = self.carry()
        pyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=torch.tensor([OBSERVED]).expand(x.shape))


VARIANCE = TIME + NOISE**2
POSTERIOR_MEAN = OBSERVED * PRIOR**2 / (PRIOR**2 + VARIANCE)
POSTERIOR_VARIANCE = 1.0 / (1.0 / PRIOR**2 + 1.0 / VARIANCE)


@pytest.mark.slow
def test_nuts_finds_the_source() -> None:
    mcmc = MCMC(NUTS(Source(), max_tree_depth=4), num_samples=250, warmup_steps=80, disable_progbar=True)
    mcmc.run()
    x0 = mcmc.get_samples()["x0"][:, 0].double()
    size = float(mcmc.diagnostics()["x0"]["n_eff"])
    assert size > 50
    assert abs(float(x0.mean()) - POSTERIOR_MEAN) < 4.5 * math.sqrt(POSTERIOR_VARIANCE / size)
    assert abs(float(x0.var()) - POSTERIOR_VARIANCE) < 4.5 * POSTERIOR_VARIANCE * math.sqrt(2.0 / size)


def test_a_stochastic_flow_finds_the_source() -> None:
    model = Source()
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [T.affine_autoregressive(dim, hidden_dims=[16])])
    pb.fit(model, guide, num_steps=150, num_particles=64, learning_rate=0.02, seed=0, progress=False)
    draws = pb.importance_sample(model, guide, num_samples=4000, seed=1, progress=False)
    evidence = float(normal(0.0, math.sqrt(PRIOR**2 + VARIANCE)).log_prob(torch.tensor([OBSERVED])))
    assert draws.ess > 0.3
    assert abs(draws.log_normalizer - evidence) < 4.5 * draws.log_normalizer_error
    mean, error = draws.expectation(lambda sites: sites["x0"][..., 0])
    assert float(error) < 0.05 and abs(float(mean) - POSTERIOR_MEAN) < 4.5 * float(error)


def test_the_initial_law_must_fit() -> None:
    with pytest.raises(ShapeError, match=r"event shape \(1,\)"):
        brownian_map().model(dist.Normal(0.0, 1.0), 1.0)
