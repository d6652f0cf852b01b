"""iDEM, EnDEM and BEnDEM: targets and gradients in closed form, the teacher, the buffer, bad energies."""

from __future__ import annotations

import copy
import math
import re
import warnings

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.diffusion import EnergyMLP, GeometricSchedule, PreconditionedEnergy, ScoreMLP
from pyro_boltzmann.exceptions import EnergyError, NonFiniteEnergyError
from pyro_boltzmann.guides.auto_diffusion import Frame
from pyro_boltzmann.infer.objectives.denoising import bendem as bendem_module
from pyro_boltzmann.infer.objectives.denoising import bootstrap_gate, clip_scores, teacher_times
from pyro_boltzmann.infer.objectives.denoising.bendem import mixture
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import NoisedBatch, _by_precision
from pyro_boltzmann.infer.objectives.denoising.endem import EnergyEstimate
from pyro_boltzmann.transforms.mean_free import MeanFreeBasis
from tests.infer.denoising_gaussians import (
    MEAN,
    MIXTURE_LOG_Z,
    SCALE,
    SIGMAS,
    diffusion,
    exact_gaussian,
    mixture_energy,
    noised_gaussian,
)

PLAIN = {"trained_spread": False, "time_law": "log_variance"}
EVERY = {"idem": pb.IDEM, "endem": pb.EnDEM, "bendem": pb.BEnDEM}


def kind_of(name):
    return "score" if name == "idem" else "energy"


def batch(guide, n, dim, seed=0):
    """States around draws of the Gaussian, with the guide's own noise."""
    generator = torch.Generator().manual_seed(seed)
    x0 = MEAN + SCALE * torch.randn(n, dim, generator=generator)
    h = guide.schedule.random_variances((n,), generator=generator)
    return NoisedBatch(x0, x0 + h.sqrt().float().unsqueeze(-1) * torch.randn(n, dim, generator=generator), h)


def assert_zero_mean(values):
    values = values.double()
    assert abs(values.mean()) < SIGMAS * values.std() / len(values) ** 0.5


def bootstrapping(monkeypatch=None, **settings):
    """A BEnDEM that has begun, with a gate that is always open where there is ``monkeypatch``."""
    objective = pb.BEnDEM(64, **{"num_noise": 400, "guess_log_z": False, **PLAIN, **settings})
    if monkeypatch is not None:
        monkeypatch.setattr(bendem_module, "bootstrap_gate", lambda loss, *_: torch.ones_like(loss, dtype=torch.bool))
    return objective


# Optima -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["score", "energy"])
def test_exact_score_has_no_idem_loss(kind):
    """On an isotropic Gaussian the mixture of both forms has next to no variance, so the loss all but vanishes."""
    model, guide = exact_gaussian(2, kind)
    objective = pb.IDEM(256, num_noise=500, form="mixture", **PLAIN)
    least = objective.loss(model, guide)
    with torch.no_grad():
        guide.field.center.add_(0.5)
    assert 100 * least < objective.loss(model, guide)


def test_idem_gradient_in_closed_form():
    """With the centre of an otherwise exact score moved by a, the gradient of the network's last bias is
    2 E[lambda(h) (alpha / sqrt(h + c^2)) a / (h + s^2)] / d, up to 4.5 s.e. and the bias 1/K of the target."""
    _, guide = exact_gaussian(1, "score", schedule=GeometricSchedule(0.1, 1.0))
    field, shift = guide.field, 0.3
    field.center.add_(shift)
    objective = pb.IDEM(256, num_noise=1000, form="mixture", weight_offset=0.1, **PLAIN)
    found, truth = [], []
    for seed in range(3):
        guide.zero_grad()
        torch.manual_seed(seed)
        drawn = batch(guide, 256, 1, seed)
        objective._guide = None
        objective._meet(guide)
        objective._regress(guide, drawn).square.mean().backward()
        found.append(float(field.network.last.bias.grad))
        h = drawn.variance
        slope = field.amplitude(h) * (h + field.gate_scale.double().square()).rsqrt()
        truth.append(float((2 * (h + 0.1) * slope * shift / (h + SCALE**2)).mean()))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(truth), rtol=1e-3, atol=1e-5)


def test_endem_gradient_in_closed_form():
    """An exact energy but for log Z, off by delta: the derivative is 2 delta; and 0 at the optimum (4.5 s.e.)."""
    for delta in (0.0, 0.4):
        model, guide = exact_gaussian(2, "energy", schedule=GeometricSchedule(0.1, 1.0))
        with torch.no_grad():
            guide.field.log_z.add_(delta)
        objective = pb.EnDEM(128, num_noise=300, correction="jackknife", guess_log_z=False, **PLAIN)
        gradients = []
        for _ in range(20):
            guide.zero_grad()
            objective.begin()
            objective.loss_and_grads(model, guide)
            gradients.append(float(guide.field.log_z.grad))
        assert_zero_mean(torch.tensor(gradients) - 2 * delta)


def test_noiseless_term_and_its_weight():
    """w_0 (u_theta(x_0, 0) - u(x_0))^2: with log Z off by one, w_0 more than without."""
    losses = []
    for weight in (0.0, 0.5):
        model, guide = exact_gaussian(2, "energy")
        with torch.no_grad():
            guide.field.log_z.add_(1.0)
        torch.manual_seed(0)
        losses.append(pb.EnDEM(64, noiseless_weight=weight, guess_log_z=False, **PLAIN).loss(model, guide))
    assert abs(losses[1] - losses[0] - 0.5) < 1e-3


def test_bootstrapped_target_with_an_exact_teacher(monkeypatch):
    """It is the exact noised energy, on average (4.5 s.e., with the jackknife), outside the first stretch."""
    model, guide = exact_gaussian(2, "energy")
    objective = bootstrapping(monkeypatch, correction="jackknife")
    objective.loss(model, guide)
    drawn = batch(guide, 1500, 2)
    value = noised_gaussian(drawn.x, drawn.variance.float())
    objective.is_bootstrapping = True
    taught = objective._target(guide, drawn, value)
    error = taught.energy - value
    splits = guide.schedule.split_times(guide.schedule.max_variance / 10)
    _, interval = teacher_times(guide.schedule.time(drawn.variance), splits)
    assert objective.bootstrapped == pytest.approx(float((interval > 0).double().mean()), abs=1e-12)
    assert_zero_mean(error)


def test_variance_of_mixed_targets():
    """The delta method: means of two independent sets of weights, of unequal size and spread (4.5 s.e.). The next
    order, 5/2 of the relative variance 3e-5, is nothing beside that."""
    generator = torch.Generator().manual_seed(0)
    m, s, n = (1.0, 2.0), (0.02, 0.01), 20_000
    parts = [a + b * torch.randn(n, generator=generator, dtype=torch.float64) for a, b in zip(m, s, strict=True)]
    first, second = (EnergyEstimate(-w.log(), (b / w).square()) for w, b in zip(parts, s, strict=True))
    mixed = mixture(first, second, 0.75)
    torch.testing.assert_close(mixed.energy, -(0.25 * parts[0] + 0.75 * parts[1]).log())
    ratio = mixed.energy.var() / mixed.variance.mean()
    assert abs(ratio - 1) < SIGMAS * (2 / n) ** 0.5


def test_variance_weights():
    square, variance = torch.tensor([1.0, 1.0, 5.0]), torch.tensor([0.0, 0.03, torch.inf])
    found = _by_precision(square, variance, 0.1)
    torch.testing.assert_close(found[:2], torch.tensor([1.6, 0.4]))
    assert found[2] == torch.inf


# The teacher ------------------------------------------------------------------------------------------------------


def test_teacher_times_lie_in_the_interval_before():
    splits = torch.tensor([0.0, 0.5, 0.6, 0.9, 1.0], dtype=torch.float64)
    t = torch.rand(2000, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    u, k = teacher_times(t, splits)
    assert ((splits[k] < t) & (t <= splits[k + 1])).all()
    assert (u[k == 0] == 0).all()
    later = k > 0
    low, high = splits[k[later] - 1], splits[k[later]]
    assert ((u[later] >= low) & (u[later] <= high)).all()
    place = (u[later] - low) / (high - low)
    assert abs(place.mean() - 0.5) < SIGMAS / (12 * len(place)) ** 0.5


def test_teacher_at_a_ratio_of_variances():
    """A third of the student's noise, as long as the schedule has it; below that the target."""
    _, guide = exact_gaussian(2, "energy")
    objective = pb.BEnDEM(ratio=3.0)
    least = guide.schedule.sigma_min**2
    h = torch.tensor([1.0, 2.99, 3.01, 100.0], dtype=torch.float64) * least
    expected = torch.tensor([0.0, 0.0, 3.01 / 3, 100.0 / 3], dtype=torch.float64) * least
    torch.testing.assert_close(objective._teacher_variance(guide.schedule, h), expected)


def test_taught_at_a_ratio_of_variances(monkeypatch):
    """With an exact teacher and an open gate: right in the mean (4.5 s.e.; the jackknife leaves O(1 / K^2))."""
    model, guide = exact_gaussian(2, "energy")
    objective = bootstrapping(monkeypatch, ratio=3.0, correction="jackknife")
    objective.loss(model, guide)
    objective.is_bootstrapping = True
    drawn = batch(guide, 400, 2)
    truth = noised_gaussian(drawn.x, drawn.variance.float())
    off = objective._target(guide, drawn, truth).energy - truth
    assert objective.bootstrapped > 0.5
    assert abs(off.mean()) < SIGMAS * off.std() / len(off) ** 0.5


def test_gate_on_known_variances():
    """l = c h at both ends is the tie of the two levels; the factor (K_b - 1) / K_b is what tips it."""
    h, g, number = torch.tensor([4.0, 4.0, 4.0]), torch.tensor([1.0, 1.0, 1.0]), 5
    tie = 0.8 * 3.0 * g
    gate = bootstrap_gate(3.0 * h, tie * torch.tensor([0.99, 1.01, 1.3]), h, g, number)
    assert gate.tolist() == [True, False, False]
    bad = torch.tensor([torch.nan, torch.inf])
    assert bootstrap_gate(bad, torch.ones(2), torch.ones(2), torch.ones(2), 5).tolist() == [False, True]
    assert bootstrap_gate(torch.full((2,), torch.inf), bad, torch.ones(2), torch.ones(2), 5).tolist() == [False, False]


def test_gate_is_asked_with_errors_and_noise_of_both_levels(monkeypatch):
    seen = []

    def gate(*inputs):
        seen.append(inputs)
        return bootstrap_gate(*inputs)

    model, guide = exact_gaussian(2, "energy")
    objective = bootstrapping()
    objective.loss(model, guide)
    objective.is_bootstrapping = True
    monkeypatch.setattr(bendem_module, "bootstrap_gate", gate)
    drawn = batch(guide, 500, 2)
    objective._target(guide, drawn, noised_gaussian(drawn.x, drawn.variance.float()))
    student, teacher, h, g, number = seen[0]
    assert number == objective.num_bootstrap == 320 and ((g < h) & (g > 0)).all()
    # Both errors are of Monte Carlo alone, and less of it at less noise.
    assert teacher.mean() < student.mean() < 0.1


def test_bootstrapping_begins_when_the_loss_stops_falling():
    objective = pb.BEnDEM(check_every=2, patience=2, guess_log_z=False)
    started = []
    for value in (4.0, 4.0, 3.0, 3.0, 3.0, 3.5, 2.9, 2.9, 5.0, 5.0, 2.9, 2.9):
        objective._watch(torch.tensor([value, torch.inf]))
        started.append(objective.is_bootstrapping)
    assert started == [False] * 11 + [True]


def test_hand_over_gives_the_average():
    model, guide = exact_gaussian(1, "energy")
    objective = pb.BEnDEM(16, num_noise=10, decay=0.5, guess_log_z=False)
    with pytest.raises(ValueError, match="no average"):
        objective.hand_over(guide)
    objective.loss(model, guide)
    before = guide.field.log_z.item()
    with torch.no_grad():
        guide.field.log_z.add_(1.0)
    objective.loss(model, guide)
    objective.hand_over(guide)
    assert abs(guide.field.log_z.item() - before - 0.5) < 1e-6


# Points -----------------------------------------------------------------------------------------------------------


def test_buffer_starts_with_the_base_and_is_refreshed():
    model, guide = exact_gaussian(2, "score")
    objective = pb.IDEM(32, num_noise=10, refresh_every=3, num_refresh=4000, capacity=5000)
    wide = float(guide.base_scale[0])
    sizes, firsts = [], []
    for _ in range(4):
        objective.loss(model, guide)
        sizes.append(len(objective.buffer))
        firsts.append(objective.buffer.rows.points)
    assert sizes == [4000, 4000, 4000, 5000]
    assert abs(firsts[0].std() / wide - 1) < 0.05 and firsts[2] is firsts[0]
    # The exact reverse process ends in the target.
    assert abs(firsts[3][1000:].std() / SCALE - 1) < 0.1


def test_weighted_buffer_is_the_target():
    """A wrong field, and yet the mean over the buffer's weights is the target's: E[w x] = Z E[x] (4.5 s.e.)."""
    model, guide = exact_gaussian(1, "score")
    objective = pb.IDEM(32, num_noise=10, refresh_every=1, num_refresh=20_000, capacity=20_000, weighted=True)
    objective.loss(model, guide)
    guide.field.center.add_(0.4)
    objective.loss(model, guide)
    rows = objective.buffer.rows
    w = rows.log_weights.softmax(0)
    x = rows.points[:, 0].double()
    mean = float((w * x).sum())
    error = float((w.square() * (x - mean).square()).sum().sqrt())
    assert abs(mean - MEAN) < SIGMAS * error and abs(float(x.mean()) - MEAN) > SIGMAS * error


@pytest.mark.parametrize("options", [{"antithetic": True}, {"near_buffer": True}, {"by_variance": True}])
def test_options_keep_the_optimum(options):
    model, guide = exact_gaussian(2, "energy", schedule=GeometricSchedule(0.1, 1.0))
    objective = pb.EnDEM(64, num_noise=300, correction="jackknife", guess_log_z=False, **PLAIN, **options)
    gradients = []
    for _ in range(10):
        guide.zero_grad()
        objective.loss_and_grads(model, guide)
        gradients.append(float(guide.field.log_z.grad))
    # Weights by estimated variances are correlated with the estimates: a shift of order 1/K is admitted there.
    shift = 4e-3 if options.get("by_variance") else 0.0
    values = torch.tensor(gradients)
    assert abs(values.mean()) < SIGMAS * values.std() / len(values) ** 0.5 + shift


def test_log_z_is_guessed_from_the_base():
    """The mean of the base's own weights, within 4.5 s.e., for the guide and for the teacher."""
    model, guide = diffusion(lambda x: 0.5 * x.square().sum(-1) - 30.0, 1, "energy", frame=Frame.guess(1), num_steps=5)
    objective = pb.BEnDEM(8, num_noise=10, num_refresh=4000)
    torch.manual_seed(5)
    objective.differentiable_loss(model, guide)
    v = float(guide.base_scale) ** 2  # of the base: E w^2 / (E w)^2 = v / sqrt(2 v - 1) for a standard normal target
    error = ((v / (2 * v - 1) ** 0.5 - 1) / 4000) ** 0.5
    assert abs(guide.field.log_z.item() - 30.0 - 0.5 * math.log(2 * math.pi)) < SIGMAS * error
    assert objective.teacher.log_z.equal(guide.field.log_z)


def test_a_bad_guess_of_log_z_is_not_taken():
    """Few effective draws say at best that log Z is larger. A value is asked for without changing the guide."""
    target = lambda x: 0.5 * x.square().sum(-1) / 0.01 - 30.0  # noqa: E731
    model, guide = diffusion(target, 4, "energy", frame=Frame.guess(4, 1.0, 0.1), num_steps=5)
    truth = 30.0 + 2.0 * math.log(2 * math.pi * 0.01)
    with torch.no_grad():
        guide.field.log_z.fill_(truth)
    torch.manual_seed(0)
    objective = pb.EnDEM(16, num_noise=10)
    objective.loss(model, guide)
    assert guide.field.log_z.item() == pytest.approx(truth)
    objective.begin()
    objective.differentiable_loss(model, guide)
    assert guide.field.log_z.item() == pytest.approx(truth)
    with torch.no_grad():
        guide.field.log_z.fill_(-1e3)
    objective.begin()
    objective.loss(model, guide)
    assert guide.field.log_z.item() == -1e3
    objective.begin()
    objective.differentiable_loss(model, guide)
    # A lower bound in probability: above log Z + 12 once in 160,000 times.
    assert -1e3 < guide.field.log_z.item() < truth + 12.0


def test_clipping_of_particles_is_per_particle():
    basis = MeanFreeBasis(3, 2)
    forces = torch.tensor([[[30.0, 0.0], [-30.0, 0.4], [0.0, -0.4]]])
    clipped = basis.to_particles(clip_scores(basis.to_coordinates(forces), 1.0, basis))
    expected = torch.tensor([[[1.0, 0.0], [-0.99991, 0.01333], [0.0, -0.4]]])
    torch.testing.assert_close(clipped, expected - expected.mean(-2, keepdim=True), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", list(EVERY))
def test_particles(name):
    """Trained on particles, with the clipping that iDEM does per particle."""
    model = pb.BoltzmannModel(pb.catalogue["dw4"].energy, 6)
    guide = pb.AutoDiffusion(model, kind=kind_of(name), num_steps=5)
    settings = {"max_score": 20.0} if name == "idem" else {}
    objective = EVERY[name](8, num_noise=10, num_refresh=20, **settings)
    result = pb.fit(model, guide, objective=objective, num_steps=3, seed=0, progress=False)
    assert result.steps == 3 and result.skipped == 0


# In fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(EVERY))
def test_trained_on_two_wells(name):
    """Exact weights: log Z within 4.5 s.e.; regressed scores make the guide better within seconds."""
    frame = Frame.guess(1, 2.3, 0.6)
    options = {"schedule": GeometricSchedule(0.15, 6.0), "frame": frame, "num_steps": 60}
    model, guide = diffusion(mixture_energy, 1, kind_of(name), **options)
    before = pb.importance_sample(model, guide, num_samples=4000, seed=0).ess
    settings = {"num_noise": 100, "time_law": "log_variance", "refresh_every": 20, "num_refresh": 300}
    if name == "bendem":
        settings |= {"check_every": 20, "patience": 2, "decay": 0.9}
    if name == "idem":
        settings |= {"form": "mixture"}
    objective = EVERY[name](64, **settings)
    pb.fit(model, guide, objective=objective, num_steps=100, learning_rate=5e-3, seed=0, progress=False)
    draws = pb.importance_sample(model, guide, num_samples=4000, seed=0)
    assert abs(draws.log_normalizer - MIXTURE_LOG_Z) < SIGMAS * draws.log_normalizer_error
    if name == "idem":
        assert draws.ess > 1.5 * before


@pytest.mark.parametrize("name", list(EVERY))
def test_names_evaluations_and_errors(name):
    model, guide = exact_gaussian(2, kind_of(name))
    result = pb.fit(model, guide, objective=name, num_particles=4, num_steps=2, seed=0, progress=False)
    k = 500 if name == "idem" else 100
    of_base = 0 if name == "idem" else 1000
    expected = {"values": 2 * 4 * k + of_base, "gradients": 2 * 4 * k * (name == "idem")}
    assert result.evaluations.to_dict() == expected
    with pytest.raises(ValueError, match="no use for data"):
        pb.fit(model, guide, objective=name, data=torch.zeros(5, 2), progress=False)
    flow = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    with pytest.raises(TypeError, match="AutoDiffusion"):
        EVERY[name](4).loss(model, flow)


def test_energy_methods_refuse_a_score():
    model, guide = exact_gaussian(2, "score")
    with pytest.raises(TypeError, match='kind="energy"'):
        pb.EnDEM(4).loss(model, guide)


@pytest.mark.parametrize("name", list(EVERY))
def test_regions_of_infinite_energy(name):
    """Half of the line is a wall: states deep inside have no finite target, and the rest trains."""

    def energy(x):
        return torch.where(x[..., 0] > 0.0, 0.5 * x.square().sum(-1), torch.inf)

    model, guide = diffusion(energy, 1, kind_of(name), num_steps=10)
    objective = EVERY[name](64, num_noise=20, refresh_every=5, num_refresh=100)
    result = pb.fit(model, guide, objective=objective, num_steps=15, log_every=1, seed=0, progress=False)
    assert result.skipped == 0 and all(torch.tensor(result.history["loss"]).isfinite())
    assert all(bool(p.isfinite().all()) for p in guide.parameters())


@pytest.mark.parametrize("name", list(EVERY))
def test_energies_that_are_refused(name):
    def hole(x):
        return torch.where(x[..., 0] > 1.0, torch.nan, 0.5 * x.square().sum(-1))

    model, guide = diffusion(hole, 1, kind_of(name))
    with pytest.raises(NonFiniteEnergyError, match="noised points"):
        pb.fit(model, guide, objective=EVERY[name](64, num_noise=20), num_steps=3, progress=False)
    model, guide = diffusion(lambda x: x.sum(-1) * 0.0 + torch.inf, 1, kind_of(name))
    with pytest.raises(EnergyError, match="in a row"):
        pb.fit(model, guide, objective=EVERY[name](4, num_noise=4), num_steps=200, seed=0, progress=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pb.IDEM(num_noise=0), "num_noise"),
        (lambda: pb.IDEM(time_law="uniform"), "time_law"),
        (lambda: pb.IDEM(antithetic=True, near_buffer=True), "antithetic"),
        (lambda: pb.IDEM(antithetic=True, num_noise=5), "even"),
        (lambda: pb.IDEM(form="best"), "form"),
        (lambda: pb.IDEM(max_score=0.0), "max_score"),
        (lambda: pb.IDEM(weight_offset=-1.0), "weight_offset"),
        (lambda: pb.EnDEM(noiseless_weight=-1.0), "noiseless_weight"),
        (lambda: pb.EnDEM(correction="all"), "correction"),
        (lambda: pb.BEnDEM(num_noise=10, num_bootstrap=10), "both asked"),
        (lambda: pb.BEnDEM(decay=1.0), "decay"),
        (lambda: pb.BEnDEM(increment=0.0), "increment"),
        (lambda: pb.BEnDEM(ratio=1.0), "ratio must exceed 1"),
        (lambda: pb.BEnDEM(ratio=2.0, increment=1.0), "replaces increment"),
        (lambda: pb.BEnDEM(patience=0), "patience"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_plain_energy_network():
    """Without the target: no energy is asked for while sampling, and much noise gives the Gaussian."""
    _, guide = diffusion(mixture_energy, 1, "energy", num_steps=5, num_segments=2)
    guide.initialize()
    with torch.no_grad(), pb.count_evaluations() as count:
        guide.sample_paths(7)
    assert count.values == 7 and count.gradients == 0  # at the ends
    field = guide.field
    assert isinstance(field, PreconditionedEnergy) and field.target is None
    x = torch.randn(5, 1)
    value, spread = field.energy_and_spread(x, 0.3)
    assert value.equal(field.energy(x, 0.3)) and spread.equal(field.score_and_spread(x, 0.3)[1])
    assert copy.deepcopy(guide).schedule == guide.schedule


def test_frame_and_schedule_of_a_guide():
    model = pb.BoltzmannModel(mixture_energy, 1)
    guide = pb.AutoDiffusion(model, frame=Frame.guess(1, 3.0, 0.5), num_steps=8)
    assert abs(guide.schedule.sigma_max - 12.0) < 0.1 and abs(guide.schedule.sigma_min - 0.125) < 1e-6
    torch.testing.assert_close(guide.schedule.variances(8), guide.variances)
    assert float(guide.field.data_scale) == 3.0 and float(guide.field.gate_scale) == 0.5
    given = pb.AutoDiffusion(model, schedule=GeometricSchedule(0.1, 8.0), num_steps=8)
    assert given.schedule == GeometricSchedule(0.1, 8.0) and float(given.field.data_scale) == 2.0


def isotropic(scale):
    return lambda x: 0.5 * (x / scale).square().sum(-1)


@pytest.mark.parametrize(
    ("scale", "schedule", "expected"),
    [(20.0, GeometricSchedule(0.1, 1.0), "reach"), (0.2, GeometricSchedule(0.5, 2.0), "fineness"), (1.0, None, None)],
)
def test_a_schedule_that_cannot_fit_is_told_with_a_range(scale, schedule, expected):
    """By one warning within five batches of new points, with a range that is right within a factor of three."""
    torch.manual_seed(0)
    model = pb.BoltzmannModel(isotropic(scale), 2)
    guide = pb.AutoDiffusion(model, ScoreMLP(2, 32, 2), schedule=schedule, num_steps=20)
    objective = pb.IDEM(32, num_noise=20, refresh_every=20, num_refresh=400)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        pb.fit(model, guide, objective=objective, num_steps=101, seed=0, progress=False)
    messages = [str(warning.message) for warning in heard]
    if expected is None:
        assert messages == []
        return
    (message,) = messages
    assert "effective points" in message and "pb.Frame" in message
    low, high = (float(re.search(rf"sigma_{end}=([0-9.e+-]+)", message)[1]) for end in ("min", "max"))
    if expected == "fineness":
        assert 1 / 3 < low / (0.25 * scale) < 3 and 1 / 3 < high / (4 * scale) < 3
    else:  # it cannot have seen all of the target
        assert high > 4 * schedule.sigma_max


def test_looking_at_the_schedule_costs_a_gradient_a_point_and_no_random_number():
    model = pb.BoltzmannModel(isotropic(1.0), 2)
    costs, states = [], []
    for batches in (6, 7, 8):
        torch.manual_seed(0)
        guide = pb.AutoDiffusion(model, ScoreMLP(2, 8, 1), num_steps=4, use_target=False)
        objective = pb.IDEM(8, num_noise=4, refresh_every=1, num_refresh=50)
        with pb.count_evaluations() as count:
            for _ in range(batches):
                objective.loss(model, guide)
        costs.append(count.gradients)
        states.append(torch.get_rng_state())
    # Five looks at 50 points, and eight states with four points each an evaluation.
    assert costs == [5 * 50 + batches * 8 * 4 for batches in (6, 7, 8)]
    torch.manual_seed(0)
    guide = pb.AutoDiffusion(model, ScoreMLP(2, 8, 1), num_steps=4, use_target=False)
    objective = pb.IDEM(8, num_noise=4, refresh_every=1, num_refresh=50)
    objective._age = 6  # past the looks
    for _ in range(6):
        objective.loss(model, guide)
    assert torch.get_rng_state().equal(states[0])


def test_energies_without_gradients_are_not_asked_for_them():
    model = pb.BoltzmannModel(lambda x: isotropic(1.0)(x).detach(), 2)
    guide = pb.AutoDiffusion(model, EnergyMLP(2, 8, 1), kind="energy", num_steps=4, use_target=False)
    objective = pb.EnDEM(8, num_noise=4, refresh_every=1, num_refresh=10)
    with pb.count_evaluations() as count:
        for _ in range(7):
            objective.loss(model, guide)
    assert count.gradients == 0 and len(objective.buffer) == 70
