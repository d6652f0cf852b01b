"""The alpha-2 objective and its buffer against closed forms and against gradients through the draws."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import EnergyError, ShapeError
from pyro_boltzmann.infer import PrioritizedBuffer
from pyro_boltzmann.infer.objectives.squared_ratio import SquaredRatioAnnealing, SquaredRatioEnergy
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform
from tests.infer.gaussian_flows import (
    LOC,
    LOG_SCALE,
    LOG_Z,
    MEAN,
    SCALE,
    SIGMAS,
    closed_gradient,
    flat_gradient,
    gaussian_energy,
    gaussian_flow,
    gradient,
    log_alpha2,
    repeat,
)

ONE_BATCH = {"refresh_every": 1, "max_correction": None}


def fresh(objective, model, guide):
    """The gradient on an empty buffer, filled for this evaluation alone."""
    objective.begin()
    return gradient(objective, model, guide)


def test_closed_form_is_the_integral():
    """log int p^2 / q by the trapezoidal rule, one dimension after the other."""
    grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    total = 0.0
    for i in range(2):
        p = torch.distributions.Normal(MEAN[i], SCALE[i]).log_prob(grid)
        q = torch.distributions.Normal(LOC[i], LOG_SCALE[i].exp()).log_prob(grid)
        total += float(torch.trapezoid((2 * p - q).exp(), grid).log())
    assert abs(total - float(log_alpha2(LOC, LOG_SCALE))) < 1e-9


@pytest.mark.parametrize("num_rungs", [0, 1, 4])
def test_gradient_in_closed_form(num_rungs):
    """That of log int p^2 / q, from weights alone and from annealed draws (4.5 s.e.; the bias of normalising the
    weights of 4 x 2000 draws is smaller by an order of magnitude than the error)."""
    model, guide = gaussian_flow()
    objective = pb.Alpha2(2000, num_rungs=num_rungs, num_leapfrog=3, capacity=8000, step_size=0.3, **ONE_BATCH)
    mean, error = repeat(20, lambda: fresh(objective, model, guide))
    truth = closed_gradient(log_alpha2)
    assert ((mean - truth).abs() < SIGMAS * error).all()
    assert (truth.abs() > 10 * error).sum() >= 3


def test_exact_model_has_no_gradient():
    """There p^2 / q is q, and the gradient is its score: zero in expectation (4.5 s.e.), on either side it is not."""
    for step, is_zero in ((0.0, True), (0.2, False), (-0.2, False)):
        model, guide = gaussian_flow(MEAN + step, SCALE.log() + step)
        objective = pb.Alpha2(500, num_rungs=1, num_leapfrog=2, **ONE_BATCH)
        mean, error = repeat(60, lambda o=objective, m=model, g=guide: fresh(o, m, g))
        assert bool((mean.abs() < SIGMAS * error).all()) is is_zero


def test_buffer_corrects_for_what_the_guide_has_learned():
    """Points weighed for one guide and used for another: the gradient is that of the divergence of the new guide over
    the value for the old one, grad D(new) / D(old) (4.5 s.e.), and the new weights are those of the new guide."""
    model, guide = gaussian_flow()
    layer = guide.path.blocks[0]
    moved = (LOC + 0.15, LOG_SCALE + 0.1)
    objective = pb.Alpha2(4000, num_rungs=0, capacity=16_000, refresh_every=10**6, max_correction=None)

    def after_a_move():
        objective.begin()
        objective.loss(model, guide)
        with torch.no_grad():
            layer.shift.copy_(moved[0]), layer.log_scale.copy_(moved[1])
        found = gradient(objective, model, guide)
        with torch.no_grad():
            layer.shift.copy_(LOC), layer.log_scale.copy_(LOG_SCALE)
        return found

    mean, error = repeat(40, after_a_move)
    ratio = (log_alpha2(*moved) - log_alpha2(LOC, LOG_SCALE)).exp()
    truth = ratio * closed_gradient(log_alpha2, *moved)
    assert ((mean - truth).abs() < SIGMAS * error).all()
    uncorrected = -(mean - truth).abs() + (closed_gradient(log_alpha2) - truth).abs()
    assert (uncorrected > 0).any()
    # Each point is weighed for the guide that last drew it: 2 log p - 2 log q of the first, corrected or not.
    rows = objective.buffer.rows
    first = torch.distributions.Normal(LOC, LOG_SCALE.exp()).log_prob(rows.points).sum(-1)
    torch.testing.assert_close(rows.log_weights, -2 * gaussian_energy(rows.points) - first - rows.log_q)
    second = torch.distributions.Normal(moved[0], moved[1].exp()).log_prob(rows.points).sum(-1)
    is_new = (rows.log_q - second).abs() < 1e-9
    assert 0.05 < is_new.double().mean() < 0.6
    torch.testing.assert_close(rows.log_q[~is_new], first[~is_new])


def squared_weight_gradient(guide, num_particles):
    r"""The gradient of log E[w^2] through the draws: pathwise, and by the score of the branches taken."""
    guide.zero_grad()
    paths = guide.sample_paths(num_particles)
    squared = (2 * (paths.log_weight - LOG_Z)).exp()
    objective = pb.ReverseKL(num_particles)
    loss = objective._surrogate(squared, paths)
    (loss / loss.detach()).backward()
    return flat_gradient(guide)


@pytest.mark.parametrize("kind", ["langevin", "score", "pathwise"])
def test_gradient_on_paths_with_stochastic_blocks(kind):
    """Against the derivative of the second moment of the weights through the draws (4.5 s.e.). Metropolis tests need
    the score of their branches: left out, the gradient is another."""

    def after(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(0.0, 1.5), energy, 0.5)
        if kind == "langevin":
            return [LangevinTransform(middle, dim, 0.1, learnable=True)]
        return [MetropolisAdjusted(RandomWalkTransform(dim, 1.0, learnable=True), middle, gradient=kind)]

    def score_twin(energy, dim):
        middle = pb.AnnealedEnergy(pb.NormalEnergy(0.0, 1.5), energy, 0.5)
        return [MetropolisAdjusted(RandomWalkTransform(dim, 1.0, learnable=True), middle, gradient="score")]

    model, guide = gaussian_flow(after=after)
    objective = pb.Alpha2(4000, capacity=16_000, **ONE_BATCH)
    mean, error = repeat(25, lambda: fresh(objective, model, guide))
    _, twin = gaussian_flow(after=score_twin) if kind == "pathwise" else (model, guide)
    truth, other = repeat(25, lambda: squared_weight_gradient(twin, 16_000))
    agrees = (mean - truth).abs() < SIGMAS * (error.square() + other.square()).sqrt()
    assert bool(agrees.all()) is (kind != "pathwise")
    assert (truth.abs() > 5 * other).sum() >= 4


def test_annealing_weighs_the_squared_ratio():
    """E[w] = Z^2 int p^2 / q and E[w x] / E[w] is its mean, both in closed form (4.5 s.e.), however short the steps;
    annealed weights vary less than those of the draws themselves."""
    guide = gaussian_flow()[1].initialize()
    annealing = SquaredRatioAnnealing(guide, 4, 3, 0.3)
    for _ in range(20):
        annealing.draw(500)
    drawn = annealing.draw(50_000)
    weights = (drawn.log_weight - 2 * LOG_Z - log_alpha2(LOC, LOG_SCALE)).exp()
    assert abs(weights.mean() - 1) < SIGMAS * weights.std() / math.sqrt(50_000)
    precision = 2 / SCALE.square() - (-2 * LOG_SCALE).exp()
    mean = (2 * MEAN / SCALE.square() - LOC * (-2 * LOG_SCALE).exp()) / precision
    excess = weights.unsqueeze(-1) * (drawn.z - mean)
    assert (excess.mean(0).abs() < SIGMAS * excess.std(0) / math.sqrt(50_000)).all()
    plain = 2 * drawn.starts.log_weight
    assert drawn.log_weight.std() < 0.6 * plain.std()
    log_q = torch.distributions.Normal(LOC, LOG_SCALE.exp()).log_prob(drawn.z).sum(-1)
    torch.testing.assert_close(drawn.log_q, log_q)
    torch.testing.assert_close(drawn.starts.energy, gaussian_energy(drawn.starts.z))


def test_energies_of_the_annealing():
    u, v = gaussian_energy, lambda x: x.sum(-1).cos()
    x = torch.randn(7, 2, dtype=torch.float64)
    for beta in (0.0, 0.25, 0.5, 1.0):
        expected = (1 - 2 * beta) * v(x) + 2 * beta * u(x)
        torch.testing.assert_close(SquaredRatioEnergy(v, u, beta)(x), expected)
        torch.testing.assert_close(copy.deepcopy(SquaredRatioEnergy(v, u, beta))(x), expected)


def test_evaluations_of_the_annealing():
    """K trajectories of L steps ask for K L + 1 forces of the energy, and nothing else does."""
    model, guide = gaussian_flow()
    guide.initialize()
    objective = pb.Alpha2(10, num_rungs=3, num_leapfrog=2, refresh_every=3)
    with pb.count_evaluations() as count:
        objective.loss_and_grads(model, guide)
    assert (count.values, count.gradients) == (4 * 70, 4 * 70)
    costs = []
    for _ in range(6):
        with pb.count_evaluations() as count:
            objective.loss_and_grads(model, guide)
        costs.append(count.values)
    assert costs == [0, 0, 70, 0, 0, 70]
    plain = pb.Alpha2(10, num_rungs=0)
    with pb.count_evaluations() as count:
        plain.loss_and_grads(model, guide)
    assert (count.values, count.gradients) == (40, 0)


def test_two_modes_are_found_where_reverse_kl_keeps_one():
    """A guide that starts inside one of two modes: the broad Gaussian of least alpha 2 has the variance of both."""
    centres = torch.tensor([[-2.5, 0.0], [2.5, 0.0]], dtype=torch.float64)

    def energy(x):
        return -(-0.5 * (x.unsqueeze(-2) - centres).square().sum(-1)).logsumexp(-1)

    spreads = {}
    for name in ("alpha_2", "reverse_kl"):
        model, guide = gaussian_flow(centres[0], torch.zeros(2, dtype=torch.float64), energy)
        run = {"num_steps": 300, "num_particles": 128, "learning_rate": 0.03, "seed": 2, "progress": False}
        result = pb.fit(model, guide, objective=name, **run)
        spreads[name] = float(guide.path.blocks[0].log_scale[0].detach().exp())
        assert all(math.isfinite(elbo) for elbo in result.history["elbo"])
    assert spreads["reverse_kl"] < 1.3
    assert spreads["alpha_2"] > 2.3


def test_fit_trains_to_the_exact_model():
    model, guide = gaussian_flow()
    result = pb.fit(
        model, guide, objective="alpha_2", num_steps=300, num_particles=128, learning_rate=0.03, seed=0, progress=False
    )
    torch.testing.assert_close(guide.path.blocks[0].shift.detach(), MEAN, rtol=0, atol=0.2)
    torch.testing.assert_close(guide.path.blocks[0].log_scale.detach(), SCALE.log(), rtol=0, atol=0.15)
    assert abs(result.history["elbo"][-1] - LOG_Z) < 0.1
    assert result.history["ess"][-1] > 0.9


def test_pyro_svi_trains_through_the_objective():
    model, guide = gaussian_flow()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.04}), pb.Alpha2(128, num_rungs=2, num_leapfrog=2))
    for _ in range(200):
        svi.step()
    torch.testing.assert_close(guide.path.blocks[0].shift.detach(), MEAN, rtol=0, atol=0.2)


def test_another_guide_starts_an_empty_buffer():
    objective = pb.Alpha2(16, num_rungs=0)
    model, guide = gaussian_flow()
    objective.loss(model, guide)
    objective.loss(model, guide)
    assert len(objective.buffer) == 64
    old = objective.buffer.rows.points
    objective.loss(*gaussian_flow())
    assert len(objective.buffer) == 64
    assert not torch.isin(old, objective.buffer.rows.points).any()


@pytest.mark.parametrize("num_rungs", [0, 3])
def test_points_of_zero_weight_stay_out(num_rungs):
    def energy(x):
        return torch.where(x[..., 0] > 0, gaussian_energy(x), torch.inf)

    model, guide = gaussian_flow(energy=energy)
    objective = pb.Alpha2(64, num_rungs=num_rungs)
    assert gradient(objective, model, guide).isfinite().all()
    assert objective.left_out
    assert 0 < len(objective.buffer) < 256
    assert (objective.buffer.rows.points[:, 0] > 0).all()


def test_energy_that_is_infinite_everywhere():
    model, guide = gaussian_flow(energy=lambda x: x.sum(-1) * 0 + torch.inf)
    assert pb.Alpha2(8).loss_and_grads(model, guide) == math.inf  # annealed
    with pytest.raises(EnergyError, match="100 updates in a row"):
        pb.fit(model, guide, objective=pb.Alpha2(8, num_rungs=0), num_steps=200, progress=False)


# The buffer ------------------------------------------------------------------------------------------------------


def filled(log_weights):
    buffer = PrioritizedBuffer(100)
    count = len(log_weights)
    buffer.add(torch.arange(float(count)).unsqueeze(-1), log_weights, torch.zeros(count))
    return buffer


def test_buffer_draws_in_proportion_to_weights():
    weights = torch.tensor([0.1, 0.2, 0.0, 0.7])
    index, rows = filled(weights.log() + 500).draw(200_000)
    frequency = rows.points.flatten().long().bincount(minlength=4) / 200_000
    assert frequency[2] == 0
    assert ((frequency - weights).abs() <= SIGMAS * (weights * (1 - weights) / 200_000).sqrt()).all()
    assert index.max() == 2  # the row of weight zero was never stored


def test_buffer_keeps_the_newest():
    buffer = PrioritizedBuffer(5)
    for start in range(0, 12, 3):
        buffer.add(torch.arange(start, start + 3.0).unsqueeze(-1), torch.zeros(3), torch.zeros(3))
    assert buffer.rows.points.flatten().tolist() == [7, 8, 9, 10, 11]


def test_buffer_takes_finite_points_only():
    buffer = PrioritizedBuffer(10)
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    buffer.add(torch.zeros(4, 1), bad, torch.zeros(4))
    buffer.add(bad.unsqueeze(-1), torch.zeros(4), torch.zeros(4))
    buffer.add(torch.zeros(4, 1), torch.zeros(4), bad)
    assert len(buffer) == 3
    before = buffer.rows
    buffer.reweigh(torch.tensor([0, 1]), torch.tensor([math.nan, 2.0]), torch.tensor([0.0, 3.0]))
    assert buffer.rows.log_weights.tolist() == [1.0, 2.0, 0.0]
    assert buffer.rows.log_q.tolist() == [0.0, 3.0, 1.0]
    assert before.log_weights.tolist() == [1.0, 0.0, 0.0]  # what was read before stays as it was


def test_buffer_errors():
    with pytest.raises(ValueError, match="positive integer, got 0"):
        PrioritizedBuffer(0)
    with pytest.raises(ValueError, match="empty; add points"):
        PrioritizedBuffer(1).draw(1)
    with pytest.raises(ShapeError, match=r"points \(n, width\) of one width .* got \(2, 3\), \(2,\) and \(2,\)"):
        filled(torch.zeros(2)).add(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ShapeError, match=r"got \(2, 1\), \(3,\) and \(2,\)"):
        filled(torch.zeros(2)).add(torch.zeros(2, 1), torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh_every": 0}, "refresh_every >= 1, num_rungs >= 0 and num_leapfrog >= 1, got 0, 4 and 5"),
        ({"num_rungs": -1}, "got 4, -1 and 5"),
        ({"step_size": 0.0}, "step_size and max_correction must be positive, got 0.0"),
        ({"max_correction": 0.0}, "max_correction=None does not clip"),
        ({"capacity": 0}, "capacity of a buffer must be a positive integer"),
        ({"num_particles": 0}, "num_particles must be positive"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        pb.Alpha2(**settings)


def test_data_are_refused():
    with pytest.raises(ValueError, match="alpha_2 anneals its own draws and has no use for data"):
        pb.fit(*gaussian_flow(), objective="alpha_2", data=torch.zeros(3, 2), progress=False)
