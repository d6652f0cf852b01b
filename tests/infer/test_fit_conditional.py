"""Training on pairs: what an epoch is, which rows are held out, exact resume; a flow learns Brownian motion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_boltzmann.exceptions import CheckpointError, PyroBoltzmannError, ShapeError
from pyro_boltzmann.infer import fit_conditional, load_checkpoint
from pyro_boltzmann.transforms import PseudoReversibleFlow


class Recorder(nn.Module):
    """Its loss is the mean of x0 times a parameter; it keeps the rows that it was shown."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.trained, self.tested = [], []

    def loss(self, x0, y):
        (self.trained if torch.is_grad_enabled() else self.tested).append(x0[:, 0].tolist())
        return (x0[:, 0] * (1 + self.slope)).mean()


def numbers(n=103):
    x0 = torch.arange(float(n))[:, None]
    return x0, x0.clone()


def test_every_row_adds_to_an_epoch_exactly_once():
    """Defect 1: the published loop keeps the last minibatch of each epoch, and of the held-out rows."""
    model = Recorder()
    x0, y = numbers()
    result = fit_conditional(
        model, x0, y, num_epochs=3, batch_size=10, held_out=0.2, learning_rate=0.0, seed=0, progress=False
    )
    held = sorted(result.held_out.tolist())
    assert len(held) == 21 and len(model.trained) == 3 * 9
    for epoch in range(3):
        seen = [row for batch in model.trained[9 * epoch : 9 * epoch + 9] for row in batch]
        tested = [row for batch in model.tested[3 * epoch : 3 * epoch + 3] for row in batch]
        assert sorted(tested) == held
        assert sorted(seen + tested) == x0[:, 0].tolist()
    assert model.trained[:9] != model.trained[9:18]  # another order each time
    train = [row for row in range(103) if row not in held]
    # Means over rows, not over minibatches of different sizes.
    assert result.history["loss"] == pytest.approx([sum(train) / 82] * 3)
    assert result.history["validation"] == pytest.approx([sum(held) / 21] * 3)


def test_units_come_from_the_training_rows_alone():
    flow = PseudoReversibleFlow(1, hidden_dims=(4,))
    x0 = torch.randn(100, 1)
    y = x0 + 1
    result = fit_conditional(flow, x0, y, num_epochs=1, held_out=0.3, seed=0, progress=False)
    train = torch.ones(100, dtype=torch.bool)
    train[result.held_out] = False
    torch.testing.assert_close(flow.units.mean, y[train].mean(0))
    torch.testing.assert_close(flow.context_units.scale, x0[train].std(0))


def pairs(n=400):
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(n, 1, generator=generator)
    return x0, x0 + torch.randn(n, 1, generator=generator)


def small_fit(num_epochs, **settings):
    torch.manual_seed(5)
    flow = PseudoReversibleFlow(1, hidden_dims=(8, 8))
    settings = {"batch_size": 64, "schedule": "constant", "weight_decay": 1e-3, "seed": 2, "progress": False} | settings
    return flow, fit_conditional(flow, *pairs(), num_epochs=num_epochs, **settings)


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    flow, result = small_fit(6)
    file = tmp_path / "run.safetensors"
    small_fit(2, checkpoint=file)
    torch.manual_seed(99)
    other, resumed = small_fit(6, checkpoint=file)
    for name, tensor in flow.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for name in ("loss", "validation", "epoch"):
        assert result.history[name] == resumed.history[name]
    assert torch.equal(result.held_out, resumed.held_out)


def test_an_interrupted_epoch_is_begun_again(tmp_path, monkeypatch):
    flow, _ = small_fit(4)
    file = tmp_path / "run.safetensors"
    whole, calls = PseudoReversibleFlow.loss, []

    def broken(self, *rows):
        calls.append(1)
        if len(calls) == 16:  # in the third epoch of six updates and one held-out batch
            raise KeyboardInterrupt
        return whole(self, *rows)

    monkeypatch.setattr(PseudoReversibleFlow, "loss", broken)
    with pytest.raises(KeyboardInterrupt):
        small_fit(4, checkpoint=file)
    monkeypatch.setattr(PseudoReversibleFlow, "loss", whole)
    assert load_checkpoint(file)[1]["counts"]["epochs"] == 2
    other, _ = small_fit(4, checkpoint=file)
    for name, tensor in flow.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    flow, _ = small_fit(1, checkpoint=file)
    x0, y = pairs()
    with pytest.raises(CheckpointError, match="another run"):
        fit_conditional(flow, x0, y + 1, num_epochs=2, batch_size=64, checkpoint=file, progress=False)


@pytest.mark.parametrize("other", [{"skip": True}, {"penalty": 1.0}, {"probes": 2}])
def test_a_checkpoint_of_another_network_of_these_shapes_is_refused(tmp_path, other):
    file = tmp_path / "run.safetensors"
    small_fit(1, checkpoint=file)
    flow = PseudoReversibleFlow(1, hidden_dims=(8, 8), **other)
    settings = {"batch_size": 64, "schedule": "constant", "weight_decay": 1e-3, "seed": 2, "progress": False}
    with pytest.raises(CheckpointError, match="which differs in network;"):
        fit_conditional(flow, *pairs(), num_epochs=2, checkpoint=file, **settings)


class Bowl(nn.Module):
    """A loss that grows on held-out rows after the third epoch."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.tests = 0

    def loss(self, x0, y):
        if torch.is_grad_enabled():
            return -self.value
        self.tests += 1
        return torch.tensor(abs(self.tests - 3.0))


def test_the_best_epoch_is_kept_and_patience_ends_a_run():
    model = Bowl()
    result = fit_conditional(
        model,
        *numbers(20),
        num_epochs=50,
        patience=4,
        batch_size=100,
        learning_rate=1.0,
        schedule="constant",
        seed=0,
        progress=False,
    )
    assert (result.best_epoch, result.epochs, result.stopped) == (3, 7, "patience")
    assert float(model.value.detach()) == pytest.approx(3.0, abs=1e-4)  # Adam's steps of one


def test_updates_that_are_not_finite_are_skipped_and_too_many_end_the_run():
    class Sometimes(Recorder):
        def loss(self, x0, y):
            return super().loss(x0, y) * (math.nan if bool((x0 == 5).any()) else 1.0)

    result = fit_conditional(Sometimes(), *numbers(), num_epochs=2, batch_size=10, held_out=0, seed=0, progress=False)
    assert result.skipped == 2 and result.epochs == 2

    class Never(Recorder):
        def loss(self, x0, y):
            return super().loss(x0, y) * math.nan

    with pytest.raises(PyroBoltzmannError, match="50 updates in a row"):
        fit_conditional(Never(), *numbers(), num_epochs=99, batch_size=10, held_out=0, seed=0, progress=False)


def test_the_cosine_schedule_and_the_time_limit():
    result = fit_conditional(Recorder(), *numbers(), num_epochs=10, learning_rate=2.0, seed=0, progress=False)
    rates = result.history["learning_rate"]
    assert rates[0] == 2.0 and rates == sorted(rates, reverse=True) and rates[5] == pytest.approx(2.0 * 0.505)
    result = fit_conditional(Recorder(), *numbers(), num_epochs=10**6, max_seconds=0.01, seed=0, progress=False)
    assert result.stopped == "time"


def test_bad_arguments_are_refused():
    x0, y = numbers()
    for settings, error, message in (
        ({"held_out": 1.0}, ValueError, "held_out"),
        ({"schedule": "steps"}, ValueError, "schedule"),
        ({"patience": 3, "held_out": 0.0}, ValueError, "held-out rows"),
    ):
        with pytest.raises(error, match=message):
            fit_conditional(Recorder(), x0, y, **settings)
    with pytest.raises(ShapeError, match="equally many rows"):
        fit_conditional(Recorder(), x0, y[1:])
    with pytest.raises(ValueError, match="no parameter"):
        fit_conditional(nn.Module(), x0, y)


def test_a_pseudo_reversible_flow_learns_brownian_motion():
    """The density integrates to one, is close to N(x0, 1), and its polished samples invert it."""
    torch.manual_seed(0)
    x0 = 4 * torch.rand(8000, 1) - 2
    y = x0 + torch.randn(8000, 1)
    flow = PseudoReversibleFlow(1, hidden_dims=(32, 32), skip=True, penalty=10.0)
    fit_conditional(flow, x0, y, num_epochs=30, batch_size=400, learning_rate=1e-2, seed=0, progress=False)
    start = torch.tensor([[-1.5], [0.0], [1.5]])
    grid = torch.linspace(-9, 9, 4001)[:, None, None]
    with torch.no_grad():
        density = flow.log_prob(grid, start).double()
    exact = torch.distributions.Normal(start[:, 0].double(), 1.0).log_prob(grid[..., 0].double())
    step = float(grid[1, 0, 0] - grid[0, 0, 0])
    mass = density.exp().sum(0) * step
    assert bool(((mass - 1).abs() < 0.002).all())
    divergence = (exact.exp() * (exact - density)).sum(0) * step
    assert bool((divergence + mass - 1 < 0.01).all()) and bool((divergence + mass - 1 > 0).all())
    estimate = flow.mass(start, num_samples=4000)
    assert bool(((estimate.value - mass).abs() < 4.5 * estimate.std_error).all())
    assert flow.folds(y, x0).minority == 0
    result = flow.polish(torch.randn(500, 1), x0[:500])
    assert float(result.accepted.float().mean()) > 0.99
    gap = flow.density_gap(start, 1000)
    assert float(gap.values.std()) < 0.2 and bool((gap.mean < 4.5 * gap.std / 1000**0.5 + (mass - 1).abs()).all())
