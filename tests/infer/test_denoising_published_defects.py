"""What published code of denoising energy matching got wrong in training, each a test."""

from __future__ import annotations

import math
import weakref

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.diffusion import GeometricSchedule, ReverseDiffusion, noise_schedule
from pyro_boltzmann.infer.objectives.denoising import bendem as bendem_module
from pyro_boltzmann.infer.objectives.denoising import bootstrap_gate
from pyro_boltzmann.infer.objectives.denoising.denoising_objective import NoisedBatch
from tests.infer.denoising_gaussians import SIGMAS, diffusion, exact_gaussian, noised_gaussian


def test_the_total_energy_stands_in_the_exponential():
    """Two coupled particles: the target is -log of the mean of exp(-u), not a sum over particles of such logarithms,
    whose limit differs (4.5 s.e.)."""
    matrix = torch.tensor([[2.0, -1.2], [-1.2, 2.0]])

    def parts(x):
        return 0.5 * x * (x @ matrix)

    _, guide = diffusion(lambda x: parts(x).sum(-1), 2, "energy")
    guide.initialize()
    x, h = torch.tensor([[1.0, 0.5]]).expand(400, 2), torch.full((400,), 0.5, dtype=torch.float64)
    objective = pb.EnDEM(4, num_noise=500, correction="jackknife", trained_spread=False)
    found = objective._target(guide, NoisedBatch(x, x, h), x[:, 0]).energy.double()
    wide = torch.linalg.inv(matrix) + 0.5 * torch.eye(2)
    exact = 0.5 * x[0] @ torch.linalg.solve(wide, x[0]) - 0.5 * (torch.linalg.det(matrix @ wide)).reciprocal().log()
    error = SIGMAS * float(found.std()) / 20
    assert abs(float(found.mean()) - float(exact)) < error
    points = x[0] + 0.5**0.5 * torch.randn(200_000, 2)
    by_particle = -(-parts(points)).logsumexp(0).sub(math.log(len(points))).sum()
    assert abs(float(by_particle) - float(exact)) > 10 * error


def test_each_state_meets_its_own_teacher_time(monkeypatch):
    """Teacher times are repeated for the points of each state, not tiled."""
    seen = []
    model, guide = exact_gaussian(1, "energy")
    objective = pb.BEnDEM(8, num_noise=10, num_bootstrap=6, trained_spread=False)
    objective.loss(model, guide)
    monkeypatch.setattr(bendem_module, "bootstrap_gate", lambda loss, *_: torch.ones_like(loss, dtype=torch.bool))
    real = objective.teacher.energy
    monkeypatch.setattr(objective.teacher, "energy", lambda y, g: (seen.append((y, g)), real(y, g))[1])
    x = 100.0 * torch.arange(1, 21).unsqueeze(-1).float()
    h = torch.linspace(1.0, 3.9, 20, dtype=torch.float64)
    objective.is_bootstrapping = True
    objective._target(guide, NoisedBatch(x, x, h), noised_gaussian(x, h.float()))
    ((y, g),) = seen
    state = (y[:, 0] / 100.0).round().long()
    assert state.equal(torch.arange(1, 21).repeat_interleave(6))
    assert all(len(g[state == i].unique()) == 1 for i in range(1, 21)) and len(g.unique()) == 20
    # Less noise than the student's, from the stretch before by the guide's own schedule.
    schedule = guide.schedule
    splits = schedule.split_times(schedule.max_variance / 10)
    own = torch.searchsorted(splits, schedule.time(h)) - 1
    of_teacher = torch.searchsorted(splits, schedule.time(g.double()[::6]).contiguous()) - 1
    assert own.sub(1).equal(of_teacher)


def test_the_average_starts_as_a_copy_and_moves_at_every_evaluation():
    model, guide = exact_gaussian(1, "energy")
    objective = pb.BEnDEM(8, num_noise=10, decay=0.75)
    objective.loss(model, guide)
    teacher = dict(objective.teacher.named_parameters())
    start = {name: p.detach().clone() for name, p in guide.field.named_parameters()}
    assert teacher.keys() == start.keys() and all(teacher[name].equal(p) for name, p in start.items())
    assert not any(a is b for a, b in zip(teacher.values(), guide.field.parameters(), strict=True))
    with torch.no_grad():
        for p in guide.field.parameters():
            p.add_(1.0)
    for moved in (0.25, 0.4375):
        objective.loss(model, guide)
        for name, p in start.items():
            torch.testing.assert_close(teacher[name], p + moved)


def test_no_draws_of_the_target_are_looked_at():
    """Neither when to bootstrap nor anything else is decided by a test set or by the target's own sampler."""

    class Target:
        def __call__(self, x):
            return 0.5 * x.square().sum(-1)

        def sample(self, *_):
            raise AssertionError("a draw of the target was asked for")

    model, guide = diffusion(Target(), 1, "energy")
    base = guide.base_loc.clone(), guide.base_scale.clone(), guide.variances
    objective = pb.BEnDEM(16, num_noise=10, check_every=1, patience=1, refresh_every=3, num_refresh=20)
    pb.fit(model, guide, objective=objective, num_steps=12, seed=0, progress=False)
    assert objective.is_bootstrapping
    assert all(map(torch.equal, base, (guide.base_loc, guide.base_scale, guide.variances)))


def test_gate_divides_both_losses():
    """Dividing one and multiplying the other by the noise says the opposite here."""
    h, g = torch.tensor([4.0]), torch.tensor([2.0])
    student, teacher = torch.tensor([1.0]), torch.tensor([0.6])
    assert bool(student * h * 0.9 > teacher / g)
    assert not bool(bootstrap_gate(student, teacher, h, g, 10))


def test_loss_has_no_constant():
    """It is the mean squared error and nothing else."""
    model, guide = exact_gaussian(1, "energy")
    with torch.no_grad():
        guide.field.log_z.add_(2.0)
    objective = pb.BEnDEM(64, num_noise=500, trained_spread=False)
    objective.loss(model, guide)
    drawn = objective._draw(guide)
    torch.manual_seed(0)
    square = objective._regress(guide, drawn).square
    torch.manual_seed(0)
    value = guide.field.energy(drawn.x, drawn.variance)
    expected = (value - objective._target(guide, drawn, value.detach()).energy).square()
    torch.testing.assert_close(square, expected)


def test_splits_belong_to_the_schedule_of_the_guide(monkeypatch):
    asked = []
    split_times = GeometricSchedule.split_times
    monkeypatch.setattr(
        GeometricSchedule, "split_times", lambda self, *rest: (asked.append(self), split_times(self, *rest))[1]
    )
    model, guide = exact_gaussian(1, "energy", schedule=GeometricSchedule(0.03, 1.7))
    objective = pb.BEnDEM(8, num_noise=10)
    objective.loss(model, guide)
    objective.is_bootstrapping = True
    objective.loss(model, guide)
    assert asked == [GeometricSchedule(0.03, 1.7)]


@pytest.mark.parametrize("name", ["geometric", "linear", "quadratic", "power", "cosine"])
def test_every_schedule_trains(name):
    model, guide = diffusion(lambda x: 0.5 * x.square().sum(-1), 1, "score", schedule=noise_schedule(name, 0.1, 2.0))
    for law in ("time", "log_variance"):
        objective = pb.IDEM(16, num_noise=20, time_law=law)
        result = pb.fit(model, guide, objective=objective, num_steps=3, seed=0, progress=False)
        assert result.skipped == 0


@pytest.mark.parametrize("kind", ["score", "energy"])
def test_sampling_keeps_neither_graph_nor_trajectory(kind, monkeypatch):
    model, guide = diffusion(lambda x: 0.5 * x.square().sum(-1), 1, kind, num_steps=30)
    objective = pb.IDEM(16, num_noise=20, refresh_every=1, num_refresh=10)
    objective.loss(model, guide)
    states, alive = [], []
    kernel = ReverseDiffusion._forward_kernel

    def watched(block, x, index):
        assert not torch.is_grad_enabled()
        states.append(weakref.ref(x))
        alive.append(sum(state() is not None for state in states))
        mean, scale, step = kernel(block, x, index)
        assert not mean.requires_grad and not scale.requires_grad
        return mean, scale, step

    monkeypatch.setattr(ReverseDiffusion, "_forward_kernel", watched)
    objective._refresh(guide, learning=True)
    assert len(states) == 30 and max(alive) <= 3
