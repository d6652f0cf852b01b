"""Simulation against exact laws, its bookkeeping, and what it costs in memory."""

import math
import resource

import pytest
import torch

from pyro_boltzmann.exceptions import ShapeError, SolverError
from pyro_boltzmann.sde import SDE, Absorbing, BrownianTransition, OrnsteinUhlenbeckTransition, Reflecting, simulate


def assert_standard(z):
    """Means, variances and correlations of standard normal columns, by 4.5 standard errors."""
    n = len(z)
    assert (z.mean(0).abs() < 4.5 / math.sqrt(n)).all()
    assert ((z.square().mean(0) - 1.0).abs() < 4.5 * math.sqrt(2.0 / n)).all()
    products = (z.T @ z / n).fill_diagonal_(0.0)
    assert (products.abs() < 4.5 / math.sqrt(n)).all()


def test_brownian_motion_is_exact_for_any_step():
    law, x0 = BrownianTransition(torch.tensor([0.5, 2.0])), torch.tensor([1.0, -1.0]).expand(20_000, 2).double()
    sde = SDE(torch.zeros_like, law.scale, 2)
    for step_size in (3.0, 0.7):
        y = simulate(sde, x0, 3.0, step_size=step_size, seed=0).state
        assert_standard((y - x0) / (law.scale * math.sqrt(3.0)))


def test_times_of_their_own():
    # Times from 0 to 2, in all orders; chunks smaller than the batch.
    n = 20_000
    times = 2.0 * torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times[:3] = torch.tensor([0.0, 1e-9, 2.0])
    x0 = torch.full((n, 1), 0.5, dtype=torch.float64)
    y = simulate(SDE(torch.zeros_like, 1.0, 1), x0, times, step_size=0.1, seed=1, chunk_size=3000).state
    assert y[0] == 0.5
    assert_standard((y[1:] - 0.5) / times[1:, None].sqrt())
    # Each trajectory ends at its own time: without noise the decay tells which.
    still = simulate(SDE(lambda x: -x, 0.0, 1), x0, times, step_size=0.01).state[:, 0]
    # Euler's error is 0.5 t exp(-t) h / 2, at most h / 10.
    torch.testing.assert_close(still, 0.5 * (-times).exp(), rtol=0, atol=1e-3)


def test_ornstein_uhlenbeck_with_the_higher_order_scheme():
    theta = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    law, x0 = OrnsteinUhlenbeckTransition(theta, 0.7), torch.ones(20_000, 3, dtype=torch.float64)
    y = simulate(SDE(lambda x: -theta * x, 0.7, 3), x0, 1.0, step_size=0.02, scheme="runge_kutta", seed=4).state
    exact = law.distribution(x0, 1.0).base_dist
    assert_standard((y - exact.mean) / exact.stddev)


def test_parameters_reach_drift_and_diffusion_row_by_row():
    sde = SDE(lambda x, c: c[..., :1].expand_as(x), lambda x, c: c[..., 1:].expand_as(x), 2, param_dim=2)
    params = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    x0, times = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([1.0, 3.0, 2.0])
    y = simulate(sde, x0, times, step_size=0.25, params=params).state
    torch.testing.assert_close(y, (params[:, 0] * times)[:, None].expand(3, 2))
    # One for all.
    assert simulate(sde, x0, 2.0, step_size=0.25, params=params[0]).state.tolist() == [[2.0, 2.0]] * 3


def test_batch_shapes_and_dtypes():
    sde = SDE(lambda x: -x, 0.1, 2, boundaries=[Absorbing(0, high=5.0)])
    for dtype in (torch.float32, torch.float64):
        end = simulate(sde, torch.ones(4, 3, 2, dtype=dtype), 1.0, step_size=0.25, seed=0, keep_trajectory=True)
        assert end.state.shape == (4, 3, 2) and end.exited.shape == end.exit_time.shape == (4, 3)
        assert end.trajectory.shape == (5, 4, 3, 2)
        assert end.state.dtype == end.exit_time.dtype == end.trajectory.dtype == dtype
    assert simulate(sde, torch.ones(2), 1.0, step_size=0.25).state.shape == (2,)
    assert simulate(sde, torch.ones(0, 2), 1.0, step_size=0.25).state.shape == (0, 2)


def test_a_trajectory_is_what_is_followed():
    sde = SDE(lambda x: -x, 0.5, 2, boundaries=[Absorbing(0, high=1.0), Reflecting(1, low=0.0)])
    x0 = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    options = {"step_size": 0.05, "seed": 3, "chunk_size": 256}
    with_path = simulate(sde, x0, 2.0, keep_trajectory=True, **options)
    without = simulate(sde, x0, 2.0, **options)
    path = with_path.trajectory
    assert without.trajectory is None and torch.equal(without.state, with_path.state)
    assert path.shape == (41, 500, 2) and torch.equal(path[0], x0) and torch.equal(path[-1], without.state)
    # Those absorbed stay where they are from the end of their step on.
    assert with_path.exited.any() and not with_path.exited.all()
    after = torch.arange(41)[:, None] * 0.05 >= with_path.exit_time + 1e-6
    assert torch.equal(path[after], with_path.state.expand_as(path)[after])
    assert (path[..., 0][~after] < 1.0).all() and (path[..., 1] >= 0.0).all()


def test_the_seed_decides_and_nothing_else():
    sde, x0 = SDE(torch.sin, 1.0, 3), torch.zeros(1000, 3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = simulate(sde, x0, 1.0, step_size=0.1, seed=5).state
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, simulate(sde, x0, 1.0, step_size=0.1, seed=5).state)
    assert not torch.equal(first, simulate(sde, x0, 1.0, step_size=0.1, seed=6).state)
    torch.manual_seed(2)
    global_first = simulate(sde, x0, 1.0, step_size=0.1).state
    assert not torch.equal(global_first, simulate(sde, x0, 1.0, step_size=0.1).state)


def test_the_order_of_a_drift_in_memory_does_not_matter():
    def rows(x):
        return torch.stack([x[:, 1].sin(), x[:, 0].cos()], -1)

    def columns(x):
        return torch.stack([x[:, 1].sin(), x[:, 0].cos()], 0).movedim(0, -1)

    x0 = torch.randn(300, 2)
    ends = [simulate(SDE(f, 0.3, 2), x0, 1.0, step_size=0.1, seed=0).state for f in (rows, columns)]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("step", [1, 30])
def test_drift_that_is_not_a_number_is_one_clear_error(step):
    calls = 0

    def drift(x):
        nonlocal calls
        calls += 1
        return torch.where(x[:, :1] > 4.0, math.nan if calls >= step else 0.0, 0.0).expand_as(x)

    with pytest.raises(SolverError, match=r"1 of 5 trajectories became inf or NaN.*state \[9.0, 9.0\]; make step_size"):
        simulate(SDE(drift, 0.0, 2), torch.tensor([[0.0, 0.0]] * 4 + [[9.0, 9.0]]), 50.0, step_size=1.0)


def test_an_explosion_ends_early():
    calls = 0

    def drift(x):
        nonlocal calls
        calls += 1
        return x**3

    with pytest.raises(SolverError):
        simulate(SDE(drift, 0.0, 1), torch.full((2, 1), 10.0), 10_000.0, step_size=1.0)
    assert calls <= 16


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"time": -1.0}, "not negative"),
        ({"time": math.inf}, "finite"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"x0": torch.tensor([[math.nan]])}, "must be finite"),
        ({"x0": torch.tensor([[1.5]])}, r"1 of 1 initial states lie outside Reflecting.*1\.5; start inside"),
        ({"time": torch.ones(1, 2)}, "broadcast"),
        ({"x0": torch.tensor([[1]])}, "floating-point"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"x0": torch.zeros(2, 1), "time": torch.ones(2), "keep_trajectory": True}, "one time for all"),
    ],
)
def test_bad_input_is_refused(changes, words):
    arguments = {"x0": torch.zeros(1, 1), "time": 1.0, "step_size": 0.1} | changes
    sde = SDE(torch.sin, 1.0, 1, boundaries=[Reflecting(0, -1.0, 1.0)])
    with pytest.raises((ValueError, ShapeError), match=words):
        simulate(sde, **arguments)


def test_memory_does_not_grow_with_the_number_of_steps():
    # All states of this run would take 197 MB.
    x0 = torch.zeros(16_384, 3)
    sde = SDE(torch.zeros_like, 1.0, 3)
    simulate(sde, x0, 1.0, step_size=0.1, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    simulate(sde, x0, 1.0, step_size=0.001, seed=0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64


def test_progress_is_shown_when_asked_for(capsys):
    sde, x0 = SDE(torch.sin, 1.0, 1), torch.zeros(600, 1)
    simulate(sde, x0, 1.0, step_size=0.1, chunk_size=256)
    assert capsys.readouterr().err == ""
    simulate(sde, x0, 1.0, step_size=0.1, chunk_size=256, progress=True)
    assert "30/30" in capsys.readouterr().err
