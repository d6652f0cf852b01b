"""Preconditioned energies and scores: their ends, their gradients, and what they cost."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from pyro_boltzmann.diffusion import (
    EnergyMLP,
    EquivariantNetwork,
    InvariantNetwork,
    PreconditionedEnergy,
    PreconditionedScore,
    ScoreMLP,
)
from pyro_boltzmann.energies import count_evaluations, energy_and_gradient
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import ShapeError
from tests.diffusion.networks_at_random import at_random, configurations, orthogonal

HUGE = 1e14


def wells(x):
    return (x.square() - 1).square().sum(-1) + 0.3 * x[..., 0]


def energy_model(energy=wells, dim=2, **options):
    options = {"gate_scale": 0.4, "data_scale": 1.3, "center": 0.2, "log_z": 1.7, **options}
    model = PreconditionedEnergy(EnergyMLP(dim, 16, 2), energy, dim, **options)
    return at_random(model)


def score_model(energy=wells, dim=2, **options):
    options = {"gate_scale": 0.4, "data_scale": 1.3, "center": 0.2, **options}
    return at_random(PreconditionedScore(ScoreMLP(dim, 16, 2), energy, dim, **options))


@pytest.fixture
def x():
    return 1.5 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def test_without_noise_it_is_the_target(x):
    model = energy_model()
    for h in (0.0, torch.zeros(40)):
        assert model.energy(x, h).equal(wells(x))
        _, gradient = energy_and_gradient(wells, x)
        torch.testing.assert_close(model.score(x, h), -gradient)
    torch.testing.assert_close(score_model(max_force=None).score(x, 0.0), -gradient)
    bounded = -gradient / (1 + gradient.square().sum(-1, keepdim=True) / 9.0).sqrt()
    torch.testing.assert_close(score_model(max_force=3.0).score(x, 0.0), bounded)


def test_with_much_noise_it_is_the_gaussian(x):
    far = x * HUGE**0.5
    h = HUGE + 1.3**2
    model = energy_model()
    network = model.network(far, HUGE).abs().max()
    gaussian = (far - 0.2).square().sum(-1) / (2 * h) + math.log(2 * math.pi * h) - model.log_z
    assert network > 1e-2
    torch.testing.assert_close(model.energy(far, HUGE), gaussian, rtol=1e-5, atol=1e-5)
    # In units of the noise; what the network adds has shrunk by s / sigma.
    score = model.score(far, HUGE) * HUGE**0.5
    torch.testing.assert_close(score, -(far - 0.2) / HUGE**0.5, rtol=1e-5, atol=1e-5)
    score = score_model().score(far, HUGE) * HUGE**0.5
    torch.testing.assert_close(score, -(far - 0.2) / HUGE**0.5, rtol=1e-5, atol=1e-5)


def test_between_it_is_the_formula(x):
    h = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = energy_model()
    gate, amplitude = model.gate(h), model.amplitude(h)
    assert gate.dtype == torch.float64 and ((gate > 0) & (gate < 1)).all()
    sigma, wide = h.sqrt(), h + 1.3**2
    torch.testing.assert_close(amplitude, sigma / (sigma + 0.4) * 1.3 / wide.sqrt())
    gaussian = (x - 0.2).square().sum(-1) / (2 * wide) + (2 * math.pi * wide).log() - model.log_z
    inputs = ((x - 0.2) / 1.3, h / 1.3**2)  # the network sees units of the target's spread
    expected = gate * wells(x) + (1 - gate) * gaussian + amplitude * model.network(*inputs)
    torch.testing.assert_close(model.energy(x, h), expected.float(), rtol=1e-5, atol=1e-5)
    assert model(x, h).equal(model.energy(x, h))
    model = score_model(max_force=None)
    gate = model.gate(h)[:, None]
    _, gradient = energy_and_gradient(wells, x)
    expected = -gate * gradient - (1 - gate) * (x - 0.2) / wide[:, None]
    expected += (amplitude / (h + 0.16).sqrt())[:, None] * model.network(*inputs)
    torch.testing.assert_close(model(x, h), expected.float(), rtol=1e-5, atol=1e-5)


def test_an_untrained_gate_is_the_stated_one():
    model = PreconditionedEnergy(EnergyMLP(2), wells, 2, gate_scale=0.5, data_scale=1.0)
    h = torch.tensor([0.0, 0.1, 1.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(model.gate(h), torch.tensor([1.0, math.exp(-0.4), math.exp(-4.0), 0.0]).double())
    assert (energy_model().gate(torch.logspace(-4, 0, 40)).diff() <= 0).sum() > 30


def test_a_gaussian_target_is_exact_at_both_ends():
    """u = |x|^2 / 2 has Z = 2 pi, and under noise it becomes |x|^2 / (2 (1 + h)) + log(1 + h)."""
    model = PreconditionedEnergy(
        EnergyMLP(2), lambda x: 0.5 * x.square().sum(-1), 2, gate_scale=0.5, data_scale=1.0, log_z=math.log(2 * math.pi)
    )
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    for h in (0.0, 30.0):
        truth = x.square().sum(-1) / (2 * (1 + h)) + math.log(1 + h)
        torch.testing.assert_close(model.energy(x, h), truth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.score(x, h), -x / (1 + h))


def test_score_is_minus_the_gradient(x):
    h = torch.logspace(-6, 2, 40)
    for energy in (wells, catalogue["gmm40"].energy):
        model = energy_model(energy)
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.energy(y, h).sum(), y)
        torch.testing.assert_close(model.score(x, h), -gradient, rtol=1e-4, atol=1e-5)
        u, score = model.energy_and_score(x, h)
        torch.testing.assert_close(u, model.energy(x, h), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(model.score(x, h), score, rtol=1e-5, atol=1e-5)


def test_no_graph_without_gradients_and_one_with(x):
    for model in (energy_model(), score_model()):
        with torch.no_grad():
            score = model.score(x, 0.05)
        assert not score.requires_grad
        assert all(p.grad is None for p in model.parameters()) and x.grad is None
        gradients = torch.autograd.grad(
            sum(part.square().sum() for part in model.score_and_spread(x, 0.05)),
            list(model.parameters()),
            allow_unused=True,
        )
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            # A score does not know the constants of an energy.
            constant = name in ("log_z", "network.last.bias") and isinstance(model, PreconditionedEnergy)
            assert constant or gradient.count_nonzero() > 0, name
    energy = energy_model()
    for name, p in energy.named_parameters():
        if name.startswith("spread_of_noise"):
            continue  # no part of the energy
        (gradient,) = torch.autograd.grad(energy.energy(x, 0.05).square().sum(), p)
        assert gradient.count_nonzero() > 0, name


def test_gradients_of_scores_in_double_precision():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    h = torch.tensor([0.01, 0.1, 2.0])
    for model in (energy_model().double(), score_model().double()):
        assert torch.autograd.gradcheck(lambda x, model=model: model.score(x, h), x, fast_mode=True)


def test_batch_shapes(x):
    h = torch.rand(5, 1, generator=torch.Generator().manual_seed(4))
    stacked = x.view(5, 8, 2)
    for model in (energy_model(), score_model()):
        score = model.score(stacked, h)
        assert score.shape == (5, 8, 2)
        torch.testing.assert_close(score[3, 2], model.score(stacked[3, 2], h[3]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.score(x, 0.3), model.score(x, torch.full((40,), 0.3)), rtol=1e-4, atol=1e-5)
    assert energy_model().energy(stacked, h).shape == (5, 8)
    assert energy_model().energy(x[0], 0.1).shape == ()


def test_infinite_energies_stay_finite(x):
    def walled(x):
        return torch.where(x[..., 0] > 0, 1.0 / (x[..., 0].abs() - x[..., 0].abs()), wells(x))

    inside = x[:, 0] > 0
    assert walled(x)[inside].isinf().all() and inside.any()
    for h in (0.0, 0.01, 1.0, 1e6):
        model = energy_model(walled)
        u, score = model.energy_and_score(x, h)
        assert u.isfinite().all() and score.isfinite().all()
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.energy(y, h).sum(), y)
        torch.testing.assert_close(score, -gradient, rtol=1e-4, atol=1e-5)
        assert score_model(walled).score(x, h).isfinite().all()


def test_energies_above_the_limit_grow_as_their_logarithm(x):
    model = energy_model(lambda x: 100 * wells(x), max_energy=50.0)
    u = 100 * wells(x)
    expected = torch.where(u > 50, 50 + 50 * (u.clamp_min(50) / 50).log(), u)
    torch.testing.assert_close(model.energy(x, 0.0), expected)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_bent(y).sum(), y)
    torch.testing.assert_close(model.score(x, 0.0), -gradient, rtol=1e-4, atol=1e-4)


def _bent(x):
    u = 100 * wells(x)
    return torch.where(u > 50, 50 + 50 * (u.clamp_min(50) / 50).log(), u)


def test_particles_that_collide():
    target = catalogue["lj13"]
    particles = configurations(13, 3, 6, seed=1)
    particles[0, 1] = particles[0, 0]
    particles[1, 1] = particles[1, 0] + 1e-3
    particles[2] = 0.0
    x = target.from_particles(particles)
    options = {"gate_scale": 0.1, "data_scale": 1.0}
    energy = at_random(PreconditionedEnergy(InvariantNetwork(13, 3, 16), target.energy, 36, **options))
    score = at_random(PreconditionedScore(EquivariantNetwork(13, 3, 16), target.energy, 36, **options))
    for h in (0.0, 1e-3, 1.0):
        assert energy.energy(x, h).isfinite().all()
        for model in (energy, score):
            s = model.score(x, h)
            assert s.isfinite().all()
        # F bounds the target's part, whatever the energy of the collision.
        if h == 0.0:
            assert s.norm(dim=-1).max() < 1e3 * (1 + 1e-5)
    u, s = energy.energy_and_score(x, 0.0)
    assert u.max() < 1e4 * (1 + math.log(1e32 / 1e4))
    # Close particles are pushed apart by b grad log u = -12 b / r at most.
    push = target.to_particles(s)[1]
    assert ((push[1] - push[0]) * (particles[1, 1] - particles[1, 0])).sum() > 0


def test_symmetries_of_particles():
    target = catalogue["dw4"]
    particles = 2 * configurations(4, 2, 30, dtype=torch.float64)
    q = orthogonal(2, 3, -1)
    order = [2, 0, 3, 1]
    x, moved = target.from_particles(particles), target.from_particles((particles @ q)[:, order])
    options = {"gate_scale": 0.3, "data_scale": 2.0}
    energy = at_random(PreconditionedEnergy(InvariantNetwork(4, 2, 16), target.energy, 6, **options)).double()
    score = at_random(PreconditionedScore(EquivariantNetwork(4, 2, 16), target.energy, 6, **options)).double()
    h = torch.logspace(-3, 1, 30)
    torch.testing.assert_close(energy.energy(moved, h), energy.energy(x, h), rtol=1e-9, atol=1e-9)
    for model in (energy, score):
        expected = target.from_particles((target.to_particles(model.score(x, h)) @ q)[:, order])
        torch.testing.assert_close(model.score(moved, h), expected, rtol=1e-8, atol=1e-8)


def test_evaluations_are_counted_and_saved_where_the_gate_is_closed(x):
    energy, score = energy_model(), score_model()
    closed = 0.16 * 1e4
    for call, values, gradients in [
        (lambda h: energy.energy(x, h), 40, 0),
        (lambda h: energy.score(x, h), 40, 40),
        (lambda h: score.score(x, h), 40, 40),
    ]:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                with count_evaluations() as count:
                    call(0.01)
                assert (count.values, count.gradients) == (values, gradients)
                with count_evaluations() as count:
                    call(closed)
                assert (count.values, count.gradients) == (0, 0)


def test_without_a_target(x):
    model = score_model(None)
    with count_evaluations() as count:
        score = model.score(x, 0.0)
    assert count.values == count.gradients == 0
    assert model.gate(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]
    expected = -(x - 0.2) / 1.3**2 + model.network((x - 0.2) / 1.3, 0.0) / 0.4
    torch.testing.assert_close(score, expected)
    assert not any(name.startswith(("gate_rate", "gate_embedding")) for name in model.state_dict())


def test_scalars_of_the_network_come_through(x):
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(6))
    network = EquivariantNetwork(4, 2, 16, num_scalars=1)
    model = at_random(PreconditionedScore(network, None, 6, gate_scale=0.3, data_scale=2.0))
    score, scalars = model.score_and_scalars(z, 0.2)
    assert score.equal(model.score(z, 0.2)) and scalars.equal(network(z / 2.0, 0.2 / 4.0)[1])
    assert score_model().score_and_scalars(x, 0.2)[1] is None


class Trainable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * wells(x)


@pytest.mark.parametrize("build", [energy_model, score_model])
def test_the_target_is_outside_the_module_tree(build, x):
    energy = Trainable()
    model = build(energy)
    assert not any(p is energy.weight for p in model.parameters())
    assert not any("target" in name for name in model.state_dict())
    model.score(x, 0.01).sum().backward()
    clone = copy.deepcopy(model)
    assert clone.target.energy is energy
    twin = build(Trainable())
    at_random(twin, seed=5)
    twin.load_state_dict(model.state_dict())
    for other in (clone, pickle.loads(pickle.dumps(model)), twin):
        assert other.score(x, 0.01).equal(model.score(x, 0.01))
    assert model.double().score(x.double(), 0.01).dtype == torch.float64


def test_errors(x):
    with pytest.raises(ValueError, match="gate_scale > 0"):
        energy_model(gate_scale=0.0)
    with pytest.raises(ValueError, match="max_energy"):
        energy_model(max_energy=0.0)
    with pytest.raises(ValueError, match="max_force"):
        score_model(max_force=-1.0)
    with pytest.raises(TypeError, match="callable"):
        energy_model(3.0)
    with pytest.raises(ShapeError, match="center"):
        energy_model(center=torch.zeros(3))
    with pytest.raises(ShapeError, match=r"\(\*batch, 2\), got \(40, 1\)"):
        energy_model().energy(x[:, :1], 0.1)
    with pytest.raises(ShapeError, match="one number for each row"):
        PreconditionedEnergy(ScoreMLP(2), wells, 2, gate_scale=1.0, data_scale=1.0).energy(x, 0.1)
    with pytest.raises(ShapeError, match="a score the shape of x"):
        PreconditionedScore(EnergyMLP(2), wells, 2, gate_scale=1.0, data_scale=1.0).score(x, 0.1)
