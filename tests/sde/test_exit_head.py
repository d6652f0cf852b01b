"""Exit odds and local widths: closed forms of Brownian motion, and noise that depends on the state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from pyro_boltzmann.infer import fit_flow_map
from pyro_boltzmann.sde import (
    SDE,
    AbsorbedBrownianTransition,
    Absorbing,
    FlowMap,
    Reflecting,
    TransitionData,
    crossing_logit,
    draw_transitions,
)
from pyro_boltzmann.sde.local_scale import LocalScale
from pyro_boltzmann.sde.systems import RunawayElectrons, absorbed_brownian_motion, runaway_initial
from pyro_boltzmann.sde.walls import Walls

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6


def test_the_odds_are_those_of_the_reflection_principle() -> None:
    """Far ends do not matter, so the law of one plane is the law of two with a distant second one."""
    distance = torch.tensor([0.05, 0.3, 1.0, 2.5], dtype=torch.float64)
    law = AbsorbedBrownianTransition(0.0, 100.0)
    exact = 1.0 - law.survival(distance.unsqueeze(-1), 0.7)
    found = crossing_logit(distance.unsqueeze(-1) / math.sqrt(0.7)).sigmoid()
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_the_odds_of_two_planes_are_right_for_short_times() -> None:
    x0 = torch.linspace(0.1, 5.9, 30, dtype=torch.float64).unsqueeze(-1)
    exact = 1.0 - AbsorbedBrownianTransition(0.0, 6.0).survival(x0, 0.1)
    ratios = torch.cat([x0, 6.0 - x0], -1) / math.sqrt(0.1)
    torch.testing.assert_close(crossing_logit(ratios).sigmoid(), exact, rtol=1e-9, atol=1e-11)


def test_extreme_ratios_have_finite_odds_and_gradients() -> None:
    ratios = torch.tensor([[0.0], [1e-8], [50.0]], requires_grad=True)
    logits = crossing_logit(ratios)
    logits.sum().backward()
    assert bool(logits.isfinite().all()) and bool(ratios.grad.isfinite().all())
    assert bool((logits.diff() <= 0.0).all())


def test_an_untrained_map_has_the_exits_of_brownian_motion() -> None:
    system = absorbed_brownian_motion()
    flow_map = FlowMap.for_sde(system.sde, 0.1)
    x0 = torch.linspace(0.2, 5.8, 40).unsqueeze(-1)
    with torch.no_grad():
        found = flow_map.exit_probability(x0, 0.1)
    torch.testing.assert_close(found, 1.0 - system.transition.survival(x0, 0.1), rtol=1e-4, atol=1e-6)


def test_widths_follow_the_noise() -> None:
    """dX = X dW: the width at x0 is |x0| sqrt(t), up to floor and cap; a matrix counts by the norms of its rows."""
    local = LocalScale(lambda x: x, 1, Walls([], 1), [])
    x0 = torch.tensor([[1.0], [2.0], [4.0]])
    t = torch.full((3,), 0.25)
    scale, ratios = local(x0, t, None, x0.unsqueeze(-2), torch.tensor([1e6]))
    torch.testing.assert_close(scale, 0.5 * x0)
    assert ratios.shape == (3, 0)
    capped, _ = local(x0, t, None, x0.unsqueeze(-2), torch.tensor([0.5]))
    torch.testing.assert_close(capped, (1.0 / (0.5 * x0).square() + 1.0).rsqrt())
    matrix = LocalScale(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), 2, Walls([], 2), [])
    variance = matrix.variance(torch.zeros(1, 2), torch.ones(1), None, torch.zeros(1, 1, 2))
    torch.testing.assert_close(variance.expand(1, 2), torch.tensor([[25.0, 4.0]]))


def test_the_trapezoidal_rule_is_exact_for_a_rate_that_is_linear_in_time() -> None:
    """Points at 1/4, 1/2 and 1 of the time, where the variance rate is x = 1 + 2 s."""
    local = LocalScale(lambda x: x.sqrt(), 1, Walls([], 1), [0.25, 0.5, 1.0])
    path = torch.tensor([[[1.5], [2.0], [3.0]]])
    assert float(local.variance(torch.ones(1, 1), torch.tensor([1.0]), None, path)) == pytest.approx(2.0)


def test_noise_that_depends_on_the_state_is_learned_at_once() -> None:
    """Geometric noise over a short time: the least-squares fit in local units has the spread at every state."""
    sde = SDE(lambda x: torch.zeros_like(x), lambda x: x, 1)
    generator = Generator().manual_seed(0)
    x0 = 0.2 + 5.0 * torch.rand(20_000, 1, generator=generator)
    y = x0 + 0.1 * x0 * torch.randn(20_000, 1, generator=generator)
    flow_map = FlowMap.for_sde(sde, 0.01, drift=None)
    flow_map.standardise(TransitionData(x0, torch.full((20_000,), 0.01), y, torch.zeros(20_000, dtype=torch.bool)))
    for place in (0.5, 4.0):
        draws = flow_map.sample(torch.full((20_000, 1), place), 0.01, generator=generator)
        assert float(draws.std()) == pytest.approx(0.1 * place, rel=0.12)


def runaway_pairs(n: int) -> TransitionData:
    return draw_transitions(RunawayElectrons(), runaway_initial(1.0), 0.2, n, step_size=0.04, seed=0)


def test_a_map_of_runaway_electrons_can_be_trained_and_kept() -> None:
    """All kinds of boundaries and a local scale in one map: losses fall, draws lie inside, the state dict is whole."""
    data = runaway_pairs(1000)
    settings = {"drift_steps": 2, "width": 16, "coupling_width": 16}
    flow_map = FlowMap.for_sde(RunawayElectrons(), 0.2, **settings)
    result = fit_flow_map(flow_map, data, num_steps=8, batch_size=256, validate_every=4, progress=False)
    assert result.validation < result.history["validation"][0]
    y = flow_map.sample(data.x0, 0.2)
    assert bool(flow_map.walls.contains(y).all())
    other = FlowMap.for_sde(RunawayElectrons(), 0.2, **settings)
    other.load_state_dict(flow_map.state_dict())
    other.eval()
    torch.testing.assert_close(other.exit_probability(data.x0, 0.2), flow_map.exit_probability(data.x0, 0.2))


def test_without_a_diffusion_the_head_starts_from_the_share_of_exits() -> None:
    x0 = torch.linspace(1.0, 3.0, 100).unsqueeze(-1)
    exited = torch.arange(100) < 30
    flow_map = FlowMap(1, 1.0, boundaries=[Absorbing(0, low=0.0)])
    state: Tensor = torch.where(exited.unsqueeze(-1), 0.0, x0 + 0.01 * torch.randn(100, 1))
    flow_map.standardise(TransitionData(x0, torch.ones(100), state, exited))
    assert flow_map.exit is not None and flow_map.exit.num_ends == 0
    assert float(flow_map.exit.net[-1].bias.detach()) == pytest.approx(math.log(30.5 / 70.5), abs=0.02)


def test_recentring_removes_a_wrong_drift() -> None:
    """A map with a latent drift that is linear in its embedding loses it; the density stays one law with the draws."""
    x0 = torch.randn(20_000, 1, generator=Generator().manual_seed(1))
    y = x0 + torch.randn(20_000, 1, generator=Generator().manual_seed(2))
    data = TransitionData(x0, torch.ones(20_000), y, torch.zeros(20_000, dtype=torch.bool))
    torch.manual_seed(0)
    flow_map = FlowMap(1, 1.0, width=16, coupling_width=16)
    flow_map.standardise(data)
    flow_map.centre_slope.normal_()
    flow_map.eval().recentre(data)
    at = torch.linspace(-1.5, 1.5, 7).unsqueeze(-1)
    with torch.no_grad():
        centre = flow_map.start(at, 1.0).centre
        assert float(torch.as_tensor(centre).abs().max()) < SIGMAS * math.sqrt(17 / 20_000)
        assert float(flow_map.round_trip(y[:500], x0[:500], 1.0).error.max()) < 1e-4
    with pytest.raises(ValueError, match="one preimage"):
        FlowMap(1, 1.0, boundaries=[Reflecting(0, low=0.0)]).recentre(data)
