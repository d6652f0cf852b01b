"""Log-variance and trajectory balance against closed forms and finite differences."""

from __future__ import annotations

import math

import pyro
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import SVI

import pyro_boltzmann as pb
from pyro_boltzmann.guides.path_ends import sample_ends, weigh_ends
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform
from tests.infer.gaussian_flows import (
    LOC,
    LOG_SCALE,
    LOG_Z,
    MEAN,
    SCALE,
    SIGMAS,
    NeverDifferentiated,
    closed_gradient,
    gaussian_energy,
    gaussian_flow,
    gradient,
    half_variance,
    repeat,
)

OBJECTIVES = [pb.LogVariance, pb.TrajectoryBalance]


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("law", ["own", "wide", "data", "mixture", "replay"])
def test_exact_model_has_no_loss_and_no_gradient_on_any_paths(make, law):
    """Each weight is Z there, path by path, so both vanish without noise."""
    data = 3 * torch.randn(50, 2, dtype=torch.float64)
    settings = {"own": {}, "wide": {"spread": 3.0}, "mixture": {"data": data}, "replay": {"replay": 100}}
    settings["data"] = {"data": data, "data_share": 1.0}
    model, guide = gaussian_flow(MEAN, SCALE.log())
    objective = make(40, **settings[law])
    assert abs(objective.loss(model, guide)) < 1e-10
    tolerance = 1e-12 if make is pb.LogVariance else 1e-5  # log Z is a float32 parameter
    assert gradient(objective, model, guide).abs().max() < tolerance
    if make is pb.TrajectoryBalance:
        assert abs(objective.log_z - LOG_Z) < 1e-6


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_value_and_gradient_in_closed_form(spread):
    """Half the variance of a quadratic under the guide's own law or a wider one, which is held fixed while the
    parameters move (4.5 s.e.)."""
    model, guide = gaussian_flow()
    objective = pb.LogVariance(200, spread=spread)
    law = (LOC, spread * LOG_SCALE.exp())
    mean, error = repeat(300, lambda: objective.loss(model, guide))
    assert abs(mean - half_variance(LOC, LOG_SCALE, *law)) < SIGMAS * error
    truth = closed_gradient(lambda loc, log_scale: half_variance(loc, log_scale, *law))
    mean, error = repeat(300, lambda: gradient(objective, model, guide))
    assert ((mean - truth).abs() < SIGMAS * error).all()
    assert (truth.abs() > 10 * error).all()


def test_value_and_gradient_on_weighted_data():
    """Backward paths from draws whose weights turn N(0, 2^2) into N(1, 0.8^2) (4.5 s.e.)."""
    draws = 2 * torch.randn(200_000, 2, dtype=torch.float64)
    log_weights = -0.5 * ((draws - 1) / 0.8).square().sum(-1) + 0.5 * (draws / 2).square().sum(-1)
    model, guide = gaussian_flow()
    objective = pb.LogVariance(200, data=draws, log_weights=log_weights, data_share=1.0)
    law = (torch.tensor(1.0), torch.tensor(0.8))
    # 200 x 200 draws from an effective 40,000 (the ESS is 23 %): the sample's own error doubles the variance.
    widened = SIGMAS * math.sqrt(1 + 40_000 / (200_000 * 0.23))
    mean, error = repeat(200, lambda: objective.loss(model, guide))
    assert abs(mean - half_variance(LOC, LOG_SCALE, *law)) < widened * error
    truth = closed_gradient(lambda loc, log_scale: half_variance(loc, log_scale, *law))
    mean, error = repeat(200, lambda: gradient(objective, model, guide))
    assert ((mean - truth).abs() < widened * error).all()


def test_replay_draws_from_the_target():
    """Paths of several guides, each weighed for its own: the draws have the target's moments (4.5 s.e.), and backward
    paths start from them once there are any."""
    objective = pb.LogVariance(2000, replay=20_000)
    for step in (0.0, 0.1, 0.2, 0.3):
        model, guide = gaussian_flow(LOC + step, SCALE.log() + 0.4)
        for _ in range(10):
            objective.loss(model, guide)
    assert len(objective.buffer) == 20_000
    assert len(objective.last_paths.z) == 1000
    rows = objective.buffer.rows
    weights = (rows.log_weights - LOG_Z).exp()
    assert abs(weights.mean() - 1) < SIGMAS * weights.std() / math.sqrt(20_000)
    for f, truth in ((rows.points, MEAN), ((rows.points - MEAN).square(), SCALE.square())):
        excess = weights.unsqueeze(-1) * (f - truth)
        assert (excess.mean(0).abs() < SIGMAS * excess.std(0) / math.sqrt(20_000)).all()


def langevin_behind(energy, dim):
    middle = pb.AnnealedEnergy(pb.NormalEnergy(), energy, 0.5, learnable=True)
    return [LangevinTransform(middle, dim, 0.2, num_steps=2, learnable=True)]


def test_gradient_on_own_paths_is_that_of_reverse_kl():
    """In expectation, through flow layers and Langevin steps alike (4.5 s.e.); trajectory balance at log Z = 0 gives
    twice that."""
    model, guide = gaussian_flow(after=langevin_behind)
    truth, error = repeat(100, lambda: gradient(pb.ReverseKL(500), model, guide))
    assert (truth.abs() > 2 * error).all()
    for objective, factor in ((pb.LogVariance(500), 1.0), (pb.TrajectoryBalance(500, log_z=LOG_Z - 0.3), 0.5)):
        mean, other = repeat(100, lambda o=objective: factor * gradient(o, model, guide))  # noqa: B023
        assert ((mean - truth).abs() < SIGMAS * (error.square() + other.square()).sqrt()).all()


def double_well(x):
    return 0.25 * (x[..., 0].square() - 2).square() + 0.5 * (x[..., 1] - 0.3 * x[..., 0]).square()


def mixed_flow():
    """Every kind of block: flow layers, Langevin steps, Metropolis tests with learnable scales and positions."""
    torch.manual_seed(4)
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)

    def blocks(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(), energy, 0.4, learnable=True)
        walk = MetropolisAdjusted(RandomWalkTransform(dim, 0.6, num_steps=3, learnable=True), middle)
        mala = MetropolisAdjusted(LangevinTransform(middle, dim, 0.1, learnable=True), middle)
        langevin = LangevinTransform(middle, dim, [0.1, 0.2], num_steps=2, learnable=True)
        return [T.affine_coupling(dim, [8]), langevin, walk, mala, T.affine_coupling(dim, [8])]

    return model, pb.AutoStochasticFlow(model, blocks, dtype=torch.float64)


def test_ends_have_the_density_of_the_guide():
    """Weighed forwards, backwards, and by Pyro's transformed distribution: the same numbers."""
    _, guide = mixed_flow()
    ends = sample_ends(guide, 200)
    paths = weigh_ends(guide, ends)
    torch.testing.assert_close(paths.log_q.detach(), ends.log_q, rtol=0, atol=1e-9)
    noise = ends.joint[:, 2:]
    with torch.no_grad():
        log_q = guide.get_posterior().log_prob(ends.joint) - guide.path.noise_log_prob(noise)
    torch.testing.assert_close(log_q, ends.log_q, rtol=0, atol=1e-9)
    torch.testing.assert_close(paths.energy, double_well(ends.joint[:, :2]), rtol=0, atol=1e-12)
    assert not paths.energy.requires_grad


def test_gradient_is_the_finite_difference_at_fixed_ends():
    """Along random directions of all parameters, accept and reject alike; every parameter takes part."""
    _, guide = mixed_flow()
    ends = sample_ends(guide, 100, spread=1.2)
    parameters = list(guide.parameters())
    start = [p.detach().clone() for p in parameters]

    def loss():
        return 0.5 * weigh_ends(guide, ends).log_weight.var()

    loss().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    accepted = [info.acceptance for info in weigh_ends(guide, ends).infos if info and info.accepted is not None]
    assert all(0.2 < rate < 1 for rate in accepted)
    for _ in range(3):
        direction = [torch.randn_like(p) for p in parameters]
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                for p, origin, d in zip(parameters, start, direction, strict=True):
                    p.copy_(origin + step * d)
                values.append(float(loss()))
        slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        assert abs((values[0] - values[1]) / 2e-6 - slope) < 1e-6 * (1 + abs(slope))


@pytest.mark.parametrize("make", OBJECTIVES)
def test_flow_layers_never_differentiate_the_energy(make):
    """One value a path and no gradient, forwards and from data; and the gradient is that of an ordinary energy."""
    data = torch.randn(50, 2, dtype=torch.float64)
    gradients = []
    for energy in (NeverDifferentiated.apply, gaussian_energy):
        model, guide = gaussian_flow(energy=energy)
        guide.initialize()
        objective = make(64, data=data, data_share=0.25, spread=1.3)
        torch.manual_seed(0)
        with pb.count_evaluations() as count:
            gradients.append(gradient(objective, model, guide))
        assert (count.values, count.gradients) == (64, 0)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_no_force_is_computed_twice_at_the_end():
    """K Langevin steps: K + 1 forces to draw, K more on the way back, since that at the end is known."""
    model, guide = gaussian_flow(after=lambda energy, dim: [LangevinTransform(energy, dim, 0.1, num_steps=3)])
    guide.initialize()
    with pb.count_evaluations() as count:
        pb.LogVariance(10).differentiable_loss(model, guide)
    assert (count.values, count.gradients) == (70, 70)
    data = torch.randn(20, 2)
    with pb.count_evaluations() as count:
        pb.LogVariance(10, data=data, data_share=1.0).differentiable_loss(model, guide)
    assert (count.values, count.gradients) == (40, 40)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_paths_behind_a_wall_are_left_out(value):
    def energy(x):
        return torch.where(x[..., 0] > 0, gaussian_energy(x), value)

    model, guide = gaussian_flow(energy=energy, after=langevin_behind)
    objective = pb.LogVariance(64)
    found = gradient(objective, model, guide)
    assert objective.left_out
    assert found.isfinite().all()
    assert found.abs().max() > 1e-3
    assert 0 < objective.last_paths.log_weight.isfinite().sum() < 64
    assert len(objective.last_paths.z) == 64


def test_trajectory_balance_is_twice_the_variance_at_the_mean():
    """On the same paths: at the batch's mean, the mean square is (n - 1) / n of the sample variance; elsewhere it
    grows by the square of the distance, whose gradient the normaliser gets."""
    model, guide = gaussian_flow()
    losses = []
    for objective in (pb.LogVariance(50), pb.TrajectoryBalance(50)):
        torch.manual_seed(0)
        losses.append(objective.loss(model, guide))
    assert abs(losses[1] - 2 * losses[0] * 49 / 50) < 1e-9
    shifted = pb.TrajectoryBalance(50, log_z=objective.log_z + 0.5)
    torch.manual_seed(0)
    assert abs(shifted.loss_and_grads(model, guide) - losses[1] - 0.25) < 1e-5
    assert abs(float(shifted.parameters()[0].grad) - 1.0) < 1e-5


@pytest.mark.parametrize("make", OBJECTIVES)
def test_pyro_svi_trains_through_the_objective(make):
    model, guide = gaussian_flow()
    objective = make(64, spread=1.3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), objective)
    losses = [svi.step() for _ in range(200)]
    assert losses[-1] < 1e-2 * losses[0]
    names = {"AutoStochasticFlow.path$$$blocks.0.shift", "AutoStochasticFlow.path$$$blocks.0.log_scale"}
    if make is pb.TrajectoryBalance:
        names.add("TrajectoryBalance.log_z")
        assert abs(objective.log_z - LOG_Z) < 0.1
        assert objective.log_z == float(pyro.param("TrajectoryBalance.log_z").detach())
    assert set(pyro.get_param_store().keys()) == names
    torch.testing.assert_close(guide.path.blocks[0].shift.detach(), MEAN, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["log_variance", "trajectory_balance"])
@pytest.mark.parametrize("with_data", [False, True])
def test_fit_trains_by_name(name, with_data):
    """To the exact model, with the ELBO in the history, log Z within reach, and nothing left on the objective."""
    model, guide = gaussian_flow()
    data = pb.WeightedSamples(MEAN + 2 * torch.randn(500, 2, dtype=torch.float64), torch.zeros(500))
    arguments = {"data": data} if with_data else {}
    run = {"num_steps": 250, "num_particles": 64, "learning_rate": 0.03, "seed": 0, "progress": False}
    result = pb.fit(model, guide, objective=name, **arguments, **run)
    torch.testing.assert_close(guide.path.blocks[0].shift.detach(), MEAN, rtol=0, atol=0.1)
    torch.testing.assert_close(guide.path.blocks[0].log_scale.detach(), SCALE.log(), rtol=0, atol=0.1)
    assert abs(result.history["elbo"][-1] - LOG_Z) < 0.05
    assert result.history["ess"][-1] > 0.95
    assert result.evaluations.gradients == 0
    assert result.evaluations.values == 250 * 64


def test_normaliser_learns_ten_times_as_fast_and_starts_anew():
    """Plain gradient steps say how far each parameter is moved: by its rate; and a second run forgets the first."""
    model, guide = gaussian_flow()
    objective = pb.TrajectoryBalance(32, log_z=5.0)
    run = {"objective": objective, "num_steps": 1, "learning_rate": 0.01, "clip_norm": None, "progress": False}
    for _ in range(2):
        pb.fit(model, guide, **run)
        assert abs(objective.log_z - 4.9) < 1e-4  # Adam's first step is its rate
    pb.fit(model, guide, optimizer=lambda p: torch.optim.Adam(p, lr=0.02), **run)
    assert abs(objective.log_z - 4.98) < 1e-4
    assert objective.parameters()[0].grad is None


def test_adaptive_scales_follow_own_paths():
    walk = []

    def after(energy, dim):
        walk.append(RandomWalkTransform(dim, 0.01))
        return [MetropolisAdjusted(walk[0], energy, adapt=True)]

    model, guide = gaussian_flow(after=after)
    pb.fit(model, guide, objective="log_variance", num_steps=20, seed=0, progress=False)
    assert float(walk[0].scale) > 0.015


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 1}, "num_particles >= 2, got 1"),
        ({"spread": 0.0}, "spread must be positive and finite, got 0.0"),
        ({"spread": math.inf}, "spread must be positive and finite, got inf"),
        ({"data_share": 0.5}, r"data_share must lie in \[0, 1\], above 0 only with data= or replay=.*, got 0.5"),
        ({"replay": 10, "data_share": 1.0}, "below 1 with replay=, got 1.0"),
        ({"replay": 10, "data": torch.zeros(3, 2)}, "data= or from a replay=, not from both"),
        ({"replay": 10, "spread": 1.5}, "spread=1.5 changes"),
        ({"replay": 0}, "positive integer, got 0"),
        ({"data": torch.zeros(3, 2), "data_share": 1.5}, r"data_share must lie in \[0, 1\]"),
        (
            {"data": torch.zeros(3, 2), "log_weights": torch.zeros(3), "weight_power": -1.0},
            "weight_power must be finite",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    for make in OBJECTIVES:
        with pytest.raises(ValueError, match=message):
            make(**settings)


@pytest.mark.parametrize("make", OBJECTIVES)
def test_other_guides_are_refused(make):
    with pytest.raises(TypeError, match=f"{make.__name__} runs .* needs an AutoStochasticFlow, got function"):
        make().loss(lambda: None, lambda: None)
