"""Diffusion samplers as guides."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights

import pyro_boltzmann as pb
from pyro_boltzmann import Frame
from pyro_boltzmann.diffusion import (
    EnergyMLP,
    EquivariantNetwork,
    EstimatedEnergy,
    GeometricSchedule,
    InvariantNetwork,
    LinearSchedule,
    ScoreMLP,
)
from pyro_boltzmann.stochastic import MetropolisAdjusted, ResamplingPoint

LOG_Z = 0.5 * math.log(2 * math.pi * 0.25) + math.log(2.0)


def line(x):
    """Twice a normal law of scale 1/2 about 1, with ripples that average out over exact weights."""
    return 2.0 * (x[..., 0] - 1.0).square() - math.log(2.0)


def model_of(energy=line, dim=1):
    return pb.BoltzmannModel(energy, dim)


def test_an_untrained_sampler_knows_z_exactly():
    model = model_of()
    # Without the target in its score it draws from the normal law of its frame, by noisy steps.
    guide = pb.AutoDiffusion(model, num_steps=5, use_target=False)
    draws = pb.importance_sample(model, guide, num_samples=30_000, seed=0)
    assert draws.khat < 0.5
    w = (draws.log_weights - LOG_Z).exp()
    assert abs(float(w.mean()) - 1.0) < 4.5 * float(w.std()) / math.sqrt(len(w))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "energy", "num_segments": 3},
        {"kind": "score", "num_segments": 3, "num_noise": 2},
        {"kind": "energy", "num_segments": 3, "num_moves": 1},
        {"kind": "score", "use_target": False},
    ],
)
def test_resampling_at_cuts_keeps_z_unbiased(settings):
    """By a learned density, by a random estimate with two points (pseudo-marginal), and with moves in between: the mean
    of Z over 150 populations of 60 paths, of a sampler that was not trained, within 4.5 standard errors."""
    model = model_of()
    torch.manual_seed(1)
    guide = pb.AutoDiffusion(model, num_steps=5, **settings)
    guide.place(Frame(torch.tensor([0.5]), torch.tensor([0.8]), 0.6))
    draws = pb.importance_sample(
        model, guide, num_samples=9000, num_chains=150, batch_size=60, resample_below=0.95, seed=2
    )
    z = (draws.log_weights - LOG_Z).exp().reshape(150, 60).mean(1)
    assert abs(float(z.mean()) - 1.0) < 4.5 * float(z.std()) / math.sqrt(150)
    if settings.get("num_segments"):
        assert sum(draws.info["resampled"].values()) > 50
        assert draws.num_independent < 9000


def test_the_trace_weight_is_the_path_weight():
    model = model_of()
    guide = pb.AutoDiffusion(model, num_steps=3)
    pyro.set_rng_seed(0)
    log_weights, _, guide_trace = vectorized_importance_weights(
        model, guide, num_samples=4000, max_plate_nesting=0, normalized=False
    )
    joint = guide_trace.nodes["_AutoDiffusion_latent"]["value"].reshape(4000, -1)
    path = guide.get_transform()
    start, ladj = path.inverse_and_ladj(joint)
    z0, noise = start[:, :1], start[:, 1:]
    base = dist.Normal(guide.base_loc, guide.base_scale).to_event(1)
    log_q = base.log_prob(z0) + path.noise_log_prob(noise) + ladj - path.noise_log_prob(joint[:, 1:])
    torch.testing.assert_close(log_weights, -line(joint[:, :1]) - log_q, rtol=1e-3, atol=1e-3)
    assert Trace_ELBO().differentiable_loss(model, guide).requires_grad


def test_a_guide_of_a_pyro_program_with_a_constraint():
    def program(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.tensor(3.0)
    guide = pb.AutoDiffusion(program, num_steps=10, latent_dim=1)
    objective = pb.TargetScoreMatching(128, num_draws=1000)
    pb.fit(program, guide, y, objective=objective, num_steps=150, learning_rate=3e-3, seed=0, progress=False)
    draws = pb.importance_sample(program, guide, y, num_samples=20_000, seed=0)
    assert draws.reliable
    # Gamma(2, 1) and Poisson: Z = 4! / (1! 3! 2^5), and the posterior is Gamma(5, 2).
    w = draws.log_weights.exp()
    assert abs(float(w.mean()) - 0.125) < 4.5 * float(w.std()) / math.sqrt(len(w))
    mean, error = draws.expectation(lambda rate: rate)
    assert abs(float(mean) - 2.5) < 4.5 * float(error)


def test_a_schedule_far_from_the_target_is_refused_with_the_range_that_fits():
    frame = Frame(torch.zeros(1), torch.full((1,), 20.0), 1.0)
    model = model_of()
    for schedule in (GeometricSchedule(0.01, 1.0), LinearSchedule(5.0, 100.0)):
        guide = pb.AutoDiffusion(model, schedule=schedule, num_steps=5)
        with pytest.raises(ValueError, match=r"sigma_min=0\.25, sigma_max=80"):
            guide.place(frame, check=True)
        guide.place(frame)  # allowed where nobody measured the target
    with pytest.raises(ValueError, match="must be positive"):
        guide.place(Frame(torch.zeros(1), torch.tensor([math.nan]), 1.0))


def test_the_frame_is_that_of_the_weighted_draws():
    guide = pb.AutoDiffusion(pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0]) + 2.0
    target = torch.tensor([0.5, 1.0], dtype=torch.float64)
    log_w = (z[:, 0] - 2) ** 2 / 2 - (z[:, 0] - 2) ** 2 / (2 * 0.25) + (z[:, 1] - 2) ** 2 / 18 - (z[:, 1] - 2) ** 2 / 2
    frame = guide.measure(z, (z - 2.0) / target**2, log_w)
    assert frame.center.tolist() == pytest.approx([2.0, 2.0], abs=0.02)
    assert frame.scale.tolist() == pytest.approx([0.5, 1.0], rel=0.02)
    assert frame.width == pytest.approx(math.sqrt(2 / (4.0 + 1.0)), rel=0.02)


def test_particles_have_no_preferred_direction():
    target = pb.catalogue["dw4"]
    guide = pb.AutoDiffusion(pb.BoltzmannModel(target.energy, target.dim), num_steps=3)
    assert guide.is_of_particles
    z = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) + 1.0
    frame = guide.measure(z, z)
    assert frame.center.abs().max() == 0 and frame.scale.unique().numel() == 1


def test_levels_and_scales_travel_with_copies_and_states():
    model = model_of()
    guide = pb.AutoDiffusion(model, num_steps=6, kind="energy", num_segments=2)
    frame = Frame(torch.tensor([1.0]), torch.tensor([3.0]), 0.2)
    guide.place(frame)
    fresh = pb.AutoDiffusion(model, num_steps=6, kind="energy", num_segments=2)
    fresh.load_state_dict(guide.state_dict())
    twin = copy.deepcopy(guide)
    guide.place(Frame(torch.tensor([0.0]), torch.tensor([1.0]), 1.0))
    for other in (fresh, twin):
        cut = next(b for b in other.path.stochastic_blocks if isinstance(b, ResamplingPoint))
        assert cut.energy.energy.variance == pytest.approx(float(other.variances[3]))
        assert cut.energy.energy.model is other.field
        assert float(other.variances[0]) == pytest.approx((4 * 3.0) ** 2 - (0.25 * 0.2) ** 2, rel=1e-5)
        assert float(other.field.data_scale) == 3.0 and float(other.field.gate_scale) == pytest.approx(0.2)
        assert float(other.base_loc) == 1.0
    assert float(guide.field.data_scale) == 1.0


def test_moves_stand_between_the_stretches_and_fit_the_noise():
    guide = pb.AutoDiffusion(model_of(), num_steps=6, kind="energy", num_segments=3, num_moves=1)
    moves = [b for b in guide.path.stochastic_blocks if isinstance(b, MetropolisAdjusted)]
    sizes = [float(b.proposal.log_step_size.exp()) for b in moves]
    assert len(moves) == 2 and sizes[0] > sizes[1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "flow"}, "kind must be"),
        ({"num_segments": 7, "num_steps": 5}, "num_segments must lie"),
        ({"num_moves": 1}, "need kind"),
        ({"num_moves": -1, "kind": "energy"}, "num_moves=-1"),
        ({"num_steps": 0}, "num_steps must be a positive integer, got 0"),
        ({"num_segments": 0}, "num_segments must be a positive integer"),
        ({"num_noise": 0}, "num_noise must be a positive integer"),
        ({"kind": "energy", "max_force": 10.0}, "leave max_force out"),
        ({"use_target": False, "max_force": None}, "leave max_force out"),
        ({"num_noise": 8}, "leave num_noise out"),
        ({"kind": "energy", "num_segments": 2, "num_noise": 8}, "leave num_noise out"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        pb.AutoDiffusion(model_of(), **settings)


def test_an_additive_constant_of_the_energy_changes_nothing():
    """Energies bend where they are far above what is usual, wherever that is."""
    draws = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for constant in (0.0, 2e5):
        model = pb.BoltzmannModel(lambda x, constant=constant: 0.5 * x.square().sum(-1) + constant, 2)
        torch.manual_seed(0)
        guide = pb.AutoDiffusion(model, kind="energy", num_steps=5, dtype=torch.float64)
        energy = 0.5 * draws.square().sum(-1) + constant
        guide.place(guide.measure(draws, draws, energy=energy))
        with torch.no_grad():
            found.append(guide.field.score(draws, 0.3))
        assert guide.field.energy(draws, 0.0).equal(energy)
    torch.testing.assert_close(found[0], found[1])


def test_levels_are_a_copy_and_survive_an_assignment():
    from pyro_boltzmann.diffusion import ReverseDiffusion

    levels = torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64)
    first, second = (ReverseDiffusion(model_of(), 1, levels) for _ in range(2))
    first.set_variances(torch.tensor([4.0, 2.0, 1.0]))
    assert levels[0] == 9.0 and second._levels_of(0) == (9.0, 1.0)
    second.load_state_dict(first.state_dict(), assign=True)
    assert second._levels_of(1) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2, -1.0), "got -1.0 and -1.0"), ((2, 1.0, 0.0), "got 1.0 and 0.0"), ((2, math.nan), "finite"), ((0,), "dim")],
)
def test_guesses_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Frame.guess(*arguments)


def test_a_frame_of_another_dimension_or_with_negative_scales():
    model = model_of(dim=1)
    with pytest.raises(pb.exceptions.ShapeError, match=r"shape \(1,\).*Frame.guess\(1"):
        pb.AutoDiffusion(model, frame=Frame.guess(2))
    guide = pb.AutoDiffusion(model, num_steps=2)
    with pytest.raises(pb.exceptions.ShapeError, match=r"got \(1,\) and \(3,\)"):
        guide.place(Frame(torch.zeros(1), torch.ones(3), 1.0))
    with pytest.raises(ValueError, match="must be positive"):
        guide.place(Frame(torch.zeros(1), torch.tensor([-1.0]), 1.0))
    assert guide.variances.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("score", EnergyMLP(2, 8, 1)),
        ("score", lambda dim: InvariantNetwork(3, 1, 8, 1)),
        ("energy", ScoreMLP(2, 8, 1)),
        ("energy", EquivariantNetwork(3, 1, 8, 1)),
    ],
)
def test_a_network_of_the_other_kind(kind, network):
    with pytest.raises(TypeError, match=f"kind='{kind}' needs a network"):
        pb.AutoDiffusion(model_of(dim=2), network, kind=kind, num_steps=2)


def test_a_network_of_another_dimension():
    with pytest.raises(pb.exceptions.ShapeError, match="2 unconstrained latents, the ScoreMLP was built for 3"):
        pb.AutoDiffusion(model_of(dim=2), ScoreMLP(3, 8, 1), num_steps=2)


def test_what_a_guide_does_not_know_before_it_has_met_its_model():
    guide = pb.AutoDiffusion(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), num_steps=2)
    questions = [
        lambda: guide.field,
        lambda: guide.schedule,
        lambda: guide.variances,
        lambda: guide.is_of_particles,
        lambda: guide.place(Frame.guess(1)),
        lambda: guide.get_transform(),
    ]
    for question in questions:
        with pytest.raises(ValueError, match=r"call guide.initialize\(...\)"):
            question()
    guide.initialize()
    assert guide.variances.shape == (3,)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_the_schedule_is_that_of_the_frame_for_any_number_of_steps(num_steps):
    guide = pb.AutoDiffusion(model_of(), frame=Frame.guess(1, 3.0, 0.8), num_steps=num_steps)
    assert guide.schedule == GeometricSchedule(0.2, 12.0)
    torch.testing.assert_close(guide.schedule.variances(num_steps), guide.variances, rtol=1e-6, atol=0.0)
    twin = pb.AutoDiffusion(model_of(), num_steps=num_steps)
    twin.load_state_dict(guide.state_dict())
    assert twin.schedule == guide.schedule


@pytest.mark.parametrize("settings", [{"kind": "score"}, {"kind": "energy"}, {"kind": "energy", "num_moves": 1}])
def test_the_field_of_all_stretches_is_saved_once(tmp_path, settings):
    from safetensors.torch import load_model, save_model

    def build():
        return pb.AutoDiffusion(model_of(), num_steps=6, num_segments=3, **settings)

    guide, whole = build(), pb.AutoDiffusion(model_of(), num_steps=6, kind=settings["kind"])
    numbers = sum(t.numel() for t in guide.state_dict().values())
    assert numbers < sum(t.numel() for t in whole.state_dict().values()) + 20
    assert len({t.data_ptr() for t in guide.state_dict().values()}) == len(guide.state_dict())
    guide.place(Frame.guess(1, 2.0))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1)
    save_model(guide, tmp_path / "guide.safetensors")
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    by_torch, by_safetensors = build(), build()
    by_torch.load_state_dict(torch.load(buffer))
    load_model(by_safetensors, tmp_path / "guide.safetensors")
    expected = guide.sample_paths(50, generator=torch.Generator().manual_seed(0)).log_weight
    for other in (by_torch, by_safetensors, copy.deepcopy(guide)):
        assert other.sample_paths(50, generator=torch.Generator().manual_seed(0)).log_weight.equal(expected)
        assert all(block._field is other.field for block in other._reverse_blocks)


def trained_a_little(**settings):
    """An energy guide whose network says something, with both kinds of ends of its gate inside the path."""
    torch.manual_seed(2)
    guide = pb.AutoDiffusion(model_of(wells, 2), num_steps=9, kind="energy", num_segments=3, **settings)
    with torch.no_grad():
        for parameter in guide.field.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return guide


def wells(x):
    return (x[..., 0].square() - 2.0).square() + 0.5 * x[..., 1].square()


@pytest.mark.parametrize(("num_moves", "saved_gradients"), [(0, 0), (2, 1)])
@pytest.mark.parametrize("resample_below", [None, 0.99])
def test_what_is_known_at_a_cut_is_not_computed_again(num_moves, saved_gradients, resample_below):
    """The same weights to the bit, for one value a cut less (and with moves one gradient)."""
    drawn = []
    for reuse in (True, False):
        guide = trained_a_little(num_moves=num_moves)
        if not reuse:
            for block in guide.path.stochastic_blocks:
                block._arriving, block.with_gradient = None, False
        drawn.append(pb.importance_sample(guide.model, guide, num_samples=100, seed=0, resample_below=resample_below))
    reused, twice = drawn
    assert reused.log_weights.equal(twice.log_weights)
    cuts_with_target = 200
    values, gradients = (
        twice.evaluations["sample"][k] - reused.evaluations["sample"][k] for k in ("values", "gradients")
    )
    is_asked = num_moves or resample_below
    assert values == (cuts_with_target if is_asked else 0)
    assert gradients == saved_gradients * cuts_with_target
    if resample_below:
        assert sum(reused.info["resampled"].values()) > 0


def test_reused_scores_leave_the_path_a_bijection_with_gradients():
    guide = trained_a_little(num_moves=1)
    path = guide.get_transform().double()
    joint = torch.randn(20, path.width, dtype=torch.float64).abs()
    with torch.no_grad():
        there, _ = path.call_and_ladj(joint)
        torch.testing.assert_close(path.inverse_and_ladj(there)[0], joint, rtol=1e-6, atol=1e-6)
    with_graph = path.call_and_ladj(joint.clone().requires_grad_())[0]
    # Rounding errors grow along the path, there and back alike; another score would differ by order one.
    torch.testing.assert_close(with_graph, there, rtol=1e-6, atol=1e-6)


def test_the_ess_along_the_path_is_known_where_it_costs_nothing():
    def path_ess(guide, resample_below):
        draws = pb.importance_sample(guide.model, guide, num_samples=500, seed=0, resample_below=resample_below)
        return draws.info["path_ess"], draws.evaluations["sample"]["values"]

    learned = trained_a_little()
    (without, cost), (asked, cost_asked) = (path_ess(learned, below) for below in (None, 1e-9))
    assert list(without) == [1, 3] and cost == cost_asked
    assert list(without.values()) == pytest.approx(list(asked.values()))
    estimated = pb.AutoDiffusion(learned.model, num_steps=9, num_segments=3, num_noise=2)
    (without, cost), (asked, cost_asked) = (path_ess(estimated, below) for below in (None, 1e-9))
    assert without == {} and list(asked) == [1, 3]
    assert cost_asked == cost + 2 * 2 * 500


def test_estimated_energies_follow_their_generator():
    x = torch.zeros(5, 2)
    first, second = (EstimatedEnergy(wells, 0.5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = first(x)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(7)
    assert second(x).equal(values) and not first(x).equal(values)


def test_resampling_by_estimates_follows_the_seed():
    guide = pb.AutoDiffusion(model_of(wells, 2), num_steps=6, num_segments=3, num_noise=2)
    weights = []
    for state in (0, 1):
        torch.manual_seed(state)
        draws = pb.importance_sample(guide.model, guide, num_samples=200, seed=5, resample_below=0.95)
        weights.append(draws.log_weights)
    assert weights[0].equal(weights[1])


def test_moves_are_not_adapted_beyond_the_limits():
    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    spent = []
    for limits in ({}, {"max_evaluations": 1}):
        guide = pb.AutoDiffusion(
            model, kind="energy", num_steps=4, num_segments=2, num_moves=1, frame=pb.Frame.guess(2)
        )
        objective = pb.EnDEM(8, num_noise=4, num_refresh=8)
        result = pb.fit(model, guide, objective=objective, num_steps=1, seed=0, progress=False, **limits)
        spent.append((result.steps, result.evaluations.values + result.evaluations.gradients))
    (steps, free), (_, bounded) = spent
    assert steps == 1 and bounded < free / 2
