"""Flow maps of the experiments: the bare one, exact data, and training that is taken up again."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from pyro_boltzmann.experiments.prnf_models import (
    BareFlowMap,
    density_of,
    exact_transitions,
    in_chunks,
    learn_flow_map,
    learn_pair,
)
from pyro_boltzmann.experiments.prnf_pairs import pair_rows
from pyro_boltzmann.sde.systems import brownian_motion, ornstein_uhlenbeck
from pyro_boltzmann.transforms import PseudoReversibleFlow

SIGMAS = 4.5


def test_the_bare_map_is_told_nothing() -> None:
    """Untrained, its law is one Gaussian with the moments of all final states, whatever the initial state; trained, it
    depends on that, and there and back is the identity."""
    data = exact_transitions(brownian_motion(), 1.0, 4000, seed=0)
    flow_map = BareFlowMap(1, 1.0, width=16, coupling_width=16, num_layers=1)
    flow_map.standardise(data)
    law = torch.distributions.Normal(data.state.mean(), data.state.std())
    y = torch.linspace(-5.0, 5.0, 7).unsqueeze(-1)
    for start in (-3.0, 3.0):
        with torch.no_grad():
            log_prob = flow_map.log_prob(y, torch.full((7, 1), start), 1.0)
        assert torch.allclose(log_prob, law.log_prob(y[:, 0]), atol=1e-5)
    trained, cost = learn_flow_map(
        lambda: BareFlowMap(1, 1.0, width=16, coupling_width=16, num_layers=1),
        data,
        checkpoint=None,
        seed=0,
        num_steps=60,
        batch_size=512,
        learning_rate=1e-2,
    )
    log_prob = density_of(trained, 1.0)
    gain = log_prob(data.state, data.x0) - law.log_prob(data.state[:, 0])
    assert cost.updates == 60
    assert float(gain.mean()) > SIGMAS * float(gain.std()) / math.sqrt(len(gain))
    assert float(trained.round_trip(data.state, data.x0, 1.0).error.max()) < 1e-5
    x0 = torch.full((20_000, 1), 3.0)
    torch.manual_seed(1)
    z = (trained.sample(x0, 1.0) - trained.sample(-x0, 1.0))[:, 0]
    assert float(z.mean()) > SIGMAS * float(z.std()) / math.sqrt(len(z))


def test_exact_transitions_follow_the_law() -> None:
    """Residuals of mean and variance within 4.5 s.e.; times lie in the interval."""
    system, n = ornstein_uhlenbeck(2), 20_000
    data = exact_transitions(system, (0.2, 0.9), n, seed=3)
    mean, variance = system.transition.moments(data.x0, data.time)
    z = (data.state - mean) / variance.sqrt()
    assert bool((z.mean(0).abs() < SIGMAS / math.sqrt(n)).all())
    assert bool(((z.square().mean(0) - 1.0).abs() < SIGMAS * math.sqrt(2.0 / n)).all())
    assert 0.2 <= float(data.time.min()) < 0.21 and 0.89 < float(data.time.max()) <= 0.9


def test_training_is_taken_up_from_its_checkpoint(tmp_path: Path) -> None:
    data = exact_transitions(brownian_motion(), 1.0, 500, seed=0)
    pairs = [
        learn_pair(
            lambda: PseudoReversibleFlow(1, hidden_dims=(8, 8)),
            data,
            checkpoint=tmp_path / "pair.safetensors",
            seed=0,
            batch_size=128,
            num_epochs=2,
        )
        for _ in range(2)
    ]
    assert pairs[0][1] == pairs[1][1] and pairs[0][1].updates == 8
    first, second = (density_of(flow, 1.0)(data.state, data.x0) for flow, _ in pairs)
    assert torch.equal(first, second)


def test_rows_of_a_pair() -> None:
    """Both ways of a pair with a skip connection and zero last layers are the identity: no gap, mass one, no fold."""
    flow = PseudoReversibleFlow(2, hidden_dims=(8,), skip=True)
    for network in (flow.h, flow.g):
        for parameter in list(network.parameters())[-2:]:
            torch.nn.init.zeros_(parameter)
    torch.manual_seed(0)
    rows = pair_rows(flow, torch.randn(300, 2), torch.randn(300, 2))
    assert rows["round_trip"].value < 1e-6 and abs(rows["gap_mean"].value) < 1e-6 and rows["gap_sd"].value < 1e-6
    assert rows["folds"].value == 0.0 and rows["polished_refused"].value == 0.0
    assert abs(rows["mass"].value - 1.0) < SIGMAS * rows["mass"].std_error


def test_chunks_are_rows_in_order() -> None:
    x = torch.arange(40_000.0).unsqueeze(-1)
    assert torch.equal(in_chunks(lambda a, b: (a + b)[:, 0], x, x), 2.0 * x[:, 0])
