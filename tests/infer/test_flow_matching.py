"""Flow matching against regressions with a known minimiser, and continuous flows as guides from end to end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.objectives.flow_matching import optimal_assignment
from pyro_boltzmann.stochastic import RandomWalkTransform
from pyro_boltzmann.transforms import ContinuousTransform, ElementwiseAffine, InverseTransform, MLPField, VelocityField
from tests.diffusion.networks_at_random import at_random

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6
SHIFT = torch.tensor([1.5, -0.7])
LOG_Z = math.log(2 * math.pi)


def energy(x):
    """A Gaussian at SHIFT."""
    return 0.5 * (x - SHIFT).square().sum(-1)


def data(num=2000):
    return SHIFT + torch.randn(num, 2, generator=torch.Generator().manual_seed(1))


class Constant(VelocityField):
    """v = b, one time a call."""

    def __init__(self) -> None:
        super().__init__()
        self.velocity = nn.Parameter(torch.zeros(2))

    def forward(self, t, x):
        assert isinstance(t, float) or t.dim() == 0
        return self.velocity.expand(x.shape)

    def velocity_and_divergence(self, t, x):
        return self(t, x), x.new_zeros(x.shape[:-1])


def flow(field=None, seed=3, num_steps=5, after=(), **settings):
    model = pb.BoltzmannModel(energy, 2)
    torch.manual_seed(seed)
    field = MLPField(2, width=16, depth=1, num_frequencies=2, finest=3.0) if field is None else field
    blocks = [ContinuousTransform(field, 2, num_steps, **settings), *after]
    return model, pb.AutoStochasticFlow(model, lambda energy, dim: blocks)


def fit(model, guide, **settings):
    common = {"num_steps": 40, "num_particles": 64, "learning_rate": 0.02, "seed": 7, "progress": False}
    return pb.fit(model, guide, **(common | settings))


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["independent", "optimal"])
def test_loss_of_a_constant_field(pairing):
    r"""E|b - (x1 - x0)|^2 / d = 2 + |b - shift|^2 / d for independent pairs; with optimal ones only the second is left
    as the minibatch grows."""
    model, guide = flow(Constant())
    wrong = torch.tensor([0.5, 0.5])
    with torch.no_grad():
        guide.path.blocks[0].field.velocity.copy_(wrong)
    objective = pb.FlowMatching(data(20_000), num_particles=400, pairing=pairing)
    torch.manual_seed(2)
    losses = torch.tensor([objective.loss(model, guide) for _ in range(40)], dtype=torch.float64)
    excess = float((wrong - data(20_000).mean(0)).square().mean())
    if pairing == "independent":
        assert abs(losses.mean() - 2 - excess) < SIGMAS * losses.std() / math.sqrt(40)
    else:
        assert excess - 0.05 < losses.mean() < excess + 0.15


def test_gradient_vanishes_at_the_conditional_mean():
    """For Gaussians of equal width and independent pairs the minimiser is m + (2t - 1) (x - t m) / (1 - 2t + 2t^2)."""

    class Truth(VelocityField):
        takes_times_of_rows = True

        def __init__(self):
            super().__init__()
            self.error = nn.Parameter(torch.zeros(3))

        def forward(self, t, x):
            t = torch.as_tensor(t).unsqueeze(-1)
            slope = (2 * t - 1) / (1 - 2 * t + 2 * t * t)
            return SHIFT + self.error[0] + (slope + self.error[1] + self.error[2] * t) * (x - t * SHIFT)

    model, guide = flow(Truth())
    objective = pb.FlowMatching(SHIFT + torch.randn(100_000, 2), num_particles=256)
    gradients = []
    for _ in range(60):
        guide.zero_grad()
        objective.loss_and_grads(model, guide)
        gradients.append(guide.path.blocks[0].field.error.grad.double())
    mean, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / math.sqrt(60)
    assert bool((error < 0.05).all())
    assert bool((mean.abs() < SIGMAS * error).all()), mean / error


def test_flow_matching_learns_a_shift():
    model, guide = flow()
    before = pb.importance_sample(model, guide, num_samples=2000, seed=0)
    result = fit(model, guide, objective="flow_matching", data=data(), num_steps=150, num_particles=128)
    assert result.evaluations.values == 0
    after = pb.importance_sample(model, guide, num_samples=2000, seed=0)
    assert before.ess < 0.3 and after.ess > 0.9
    assert abs(after.log_normalizer - LOG_Z) < SIGMAS * after.log_normalizer_error


def test_fields_of_one_time_a_call_and_lines_of_some_width():
    model, guide = flow(Constant())
    objective = pb.FlowMatching(data(), num_particles=50, num_times=7, sigma=0.1, align=lambda x0, x1: -x0)
    fit(model, guide, objective=objective, num_steps=60, learning_rate=0.1)
    assert (guide.path.blocks[0].field.velocity - SHIFT).norm() < 0.3


def test_more_times_near_the_data():
    r"""A field that is the time itself tells the mean times: with x1 - x0 = 0 the loss is :math:`E[t^2]`, which for
    :math:`t = 1 - (1 - s)^2` is 8/15, and 1/3 for even times. Stratified, its error is below 1e-3."""

    class Time(torch.nn.Module):
        takes_times_of_rows = True

        def forward(self, t, x):
            return t.unsqueeze(-1).expand_as(x)

    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ContinuousTransform(Time(), dim)])
    for power, exact in ((1.0, 1.0 / 3.0), (2.0, 8.0 / 15.0)):
        still = pb.FlowMatching(torch.zeros(1, 2), num_particles=2000, time_power=power)
        still.pairs = lambda flow: (torch.zeros(2000, 2), torch.zeros(2000, 2))
        assert still.loss(model, guide) == pytest.approx(exact, abs=1e-3)


def test_optimal_pairs_on_a_line_are_sorted():
    x0, x1 = torch.randn(50, 1), torch.randn(50, 1)
    paired = x0[optimal_assignment(x0, x1)]
    assert paired[x1.squeeze(-1).argsort()].squeeze(-1).equal(x0.squeeze(-1).sort().values)


def test_pairs_are_aligned_and_keep_base_and_data():
    _, guide = flow(Constant())
    rows = data(30)

    def align(x0, x1):
        return x0 * torch.where((x0 * x1).sum(-1, keepdim=True) < 0, -1.0, 1.0)

    x0, x1 = pb.FlowMatching(rows, num_particles=500, align=align).pairs(guide)
    assert bool(((x0 * x1).sum(-1) >= 0).all())
    assert bool((x1.unsqueeze(1) == rows).all(-1).any(-1).all())
    lengths = []
    for num_rounds in (1, 2, 5):
        torch.manual_seed(4)
        x0, x1 = pb.FlowMatching(rows, None, 200, pairing="optimal", align=align, num_rounds=num_rounds).pairs(guide)
        lengths.append(float((x0 - x1).square().sum()))
    assert lengths[0] > lengths[1] >= lengths[2]
    draws = pb.FlowMatching(rows, num_particles=500, pairing="optimal").pairs(guide)[0]
    assert abs(float(draws.mean())) < SIGMAS / math.sqrt(1000)


def test_weighted_data_are_drawn_by_weight():
    _, guide = flow(Constant())
    rows = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    x1 = pb.FlowMatching(rows, torch.tensor([-torch.inf, 0.0]), num_particles=20).pairs(guide)[1]
    assert x1.equal(torch.full((20, 2), 4.0))


def test_blocks_behind_the_flow_are_left_alone():
    walk = RandomWalkTransform(2, 0.1)
    model, guide = flow(Constant(), after=[walk])
    fit(model, guide, objective="flow_matching", data=data(), num_steps=60, learning_rate=0.1)
    assert (guide.path.blocks[0].field.velocity - SHIFT).norm() < 0.3


def test_bad_input():
    model, guide = flow()
    with pytest.raises(ValueError, match="flow_matching needs data"):
        fit(model, guide, objective="flow_matching")
    with pytest.raises(ShapeError, match=r"data must have shape \(n, 2\)"):
        pb.FlowMatching(torch.zeros(4, 3)).loss(model, guide)
    with pytest.raises(ShapeError, match="align must return the shape"):
        pb.FlowMatching(data(), align=lambda x0, x1: x0[:1]).loss(model, guide)
    with pytest.raises(TypeError, match=r"data must be a tensor \(n, latent_dim\), got ndarray"):
        pb.FlowMatching(data().numpy())
    with pytest.raises(ValueError, match=r"move the data beforehand"):
        fit(model, guide, objective="flow_matching", data=data(), augment=lambda rows: rows)
    for settings in ({"pairing": "best"}, {"sigma": -1.0}, {"time_power": 0.0}, {"num_times": 0}, {"num_rounds": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            pb.FlowMatching(data(), **settings)
    for blocks in ([], [ElementwiseAffine(2)], [InverseTransform(ContinuousTransform(MLPField(2), 2))]):
        other = pb.AutoStochasticFlow(model, lambda energy, dim, blocks=blocks: blocks)
        with pytest.raises(TypeError, match=r"a guide that is a ContinuousTransform.*got"):
            pb.FlowMatching(data()).loss(model, other)


# Guides --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "jacobian"])
def test_untrained_flows_give_unbiased_weights(divergence):
    """A random flow's log Z is right within its error, whatever trains it."""
    model, guide = flow(num_steps=6, divergence=divergence)
    at_random(guide.path.blocks[0].field, scale=0.5)
    draws = pb.importance_sample(model, guide, num_samples=3000, seed=0)
    assert abs(draws.log_normalizer - LOG_Z) < SIGMAS * draws.log_normalizer_error
    assert draws.info["diverged"] == 0


MIXTURE = [pb.Phase(15, 0, 1), pb.Phase(15, 0.5, 0.5)]
NOISY = {"divergence": "hutchinson", "checkpointed": True}


@pytest.mark.parametrize(
    ("objective", "settings"),
    [("reverse_kl", {}), ("forward_kl", {}), (MIXTURE, {}), ("forward_kl", NOISY)],
    ids=["reverse", "forward", "mixture", "forward-noisy"],
)
def test_continuous_flows_train_by_likelihood_and_energy(objective, settings):
    model, guide = flow(num_steps=3, **settings)
    chosen = {"num_steps": None if objective is MIXTURE else 30, "learning_rate": 0.03}
    fit(model, guide, objective=objective, data=data(), **chosen)
    draws = pb.importance_sample(model, guide, num_samples=1000, seed=0)
    assert draws.ess > 0.75
    assert abs(draws.log_normalizer - LOG_Z) < SIGMAS * draws.log_normalizer_error


def test_the_adjoint_trains_too():
    model, guide = flow(solver="otd", rtol=1e-3, atol=1e-3)
    fit(model, guide, num_steps=20)
    assert pb.importance_sample(model, guide, num_samples=500, seed=0).ess > 0.5


def test_paths_that_overflow_have_weight_zero():
    class Steep(VelocityField):
        def forward(self, t, x):
            return -torch.where(x.norm(dim=-1, keepdim=True) > 2.0, 1e4, 0.1) * x

        def velocity_and_divergence(self, t, x):
            return self(t, x), -2 * torch.where(x.norm(dim=-1) > 2.0, 1e4, 0.1)

    model, guide = flow(Steep(), num_steps=20)
    with pytest.warns(UserWarning, match="left the range of floats"):
        draws = pb.importance_sample(model, guide, num_samples=200, seed=0)
    lost = draws.info["diverged"]
    assert 0 < lost < 200
    assert int((draws.log_weights == -torch.inf).sum()) == lost
    assert bool(draws.log_weights[draws.log_weights > -torch.inf].isfinite().all())


class Stop(Exception):
    """Ends a run from within."""


@pytest.mark.parametrize("objective", ["flow_matching", "forward_kl"])
def test_resumed_runs_end_with_the_same_bits(objective, tmp_path):
    settings = {"objective": objective, "data": data(), "num_steps": 20, "log_every": 5}

    def stop(result):
        if result.steps >= 10:
            raise Stop

    def start():
        return flow(divergence="hutchinson")

    model, whole = start()
    fit(model, whole, **settings)
    model, broken = start()
    with pytest.raises(Stop):
        fit(model, broken, checkpoint=tmp_path / "run", callback=stop, **settings)
    model, resumed = start()
    at_random(resumed.path, seed=5)
    torch.manual_seed(99)
    fit(model, resumed, checkpoint=tmp_path / "run", **settings)
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name]), name
