"""A flow map is one law: normalised, invertible, periodic where it says so, and silent nowhere."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import Absorbing, Boundary, Clamped, FlowMap, OutsideDomainWarning, Periodic, Reflecting


def roughened(flow_map: FlowMap, size: float = 0.15) -> FlowMap:
    """A map that is far from affine, as training could leave it."""
    with torch.no_grad():
        for layer in flow_map.couplings.last:
            torch.nn.init.normal_(layer.weight, std=size)  # type: ignore[arg-type]
            torch.nn.init.normal_(layer.bias, std=size)  # type: ignore[arg-type]
        flow_map.linear.slope.normal_(std=0.3)
        flow_map.linear.off_diagonal.normal_(std=0.5)
        if flow_map.linear.of_time is not None:
            torch.nn.init.normal_(flow_map.linear.of_time[-1].weight, std=0.1)  # type: ignore[arg-type]
    return flow_map.eval()


def drift(x: Tensor) -> Tensor:
    return -x.sin()


@pytest.mark.parametrize("time", [0.1, 1.0])
def test_the_density_in_one_dimension_integrates_to_one(time: float) -> None:
    flow_map = roughened(FlowMap(1, (0.1, 1.0), drift=drift)).double()
    y = torch.linspace(-12.0, 12.0, 8001, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        mass = torch.trapezoid(flow_map.log_prob(y, torch.tensor([0.3], dtype=torch.float64), time).exp(), y[:, 0])
    assert float(mass) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_mass_is_one_by_importance_sampling(dim: int) -> None:
    flow_map = roughened(FlowMap(dim, (0.1, 1.0)))
    mass = flow_map.mass(torch.zeros(2, dim), torch.tensor([0.2, 1.0]), 20_000)
    assert mass.value.shape == (2,)
    assert bool((mass.std_error < 0.03).all())
    assert bool(((mass.value - 1.0).abs() < 4.5 * mass.std_error).all())


def test_draws_follow_the_density() -> None:
    """The probability integral transform by quadrature is uniform."""
    flow_map = roughened(FlowMap(1, 1.0, drift=drift))
    x0 = torch.tensor([0.5])
    grid = torch.linspace(-12.0, 12.0, 20_001).unsqueeze(-1)
    with torch.no_grad():
        density = flow_map.log_prob(grid, x0, 1.0).double().exp()
    cdf = torch.cumulative_trapezoid(density, grid[:, 0].double())
    y = flow_map.sample(x0.expand(20_000, 1), 1.0)[:, 0]
    uniform = cdf[((y + 12.0) / 24.0 * 20_000).long().clamp(0, 19_999)].numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
@pytest.mark.parametrize("time", [1.0, (0.05, 1.0)])
def test_round_trips_end_where_they_began(dim: int, time: float | tuple[float, float]) -> None:
    flow_map = roughened(FlowMap(dim, time, drift=drift))
    x0 = torch.randn(2000, dim)
    t = torch.ones(2000) if isinstance(time, float) else torch.linspace(*time, 2000)
    y = flow_map.sample(x0, t)
    assert float(flow_map.round_trip(y, x0, t).error.square().mean().sqrt()) < 3e-6
    y, x0, t = y.double(), x0.double(), t.double()
    assert float(flow_map.double().round_trip(y, x0, t).error.max()) < 1e-10


def test_the_law_of_the_increment_has_the_period() -> None:
    period = 2.0 * math.pi
    flow_map = roughened(FlowMap(2, 1.0, drift=drift, periods=[period, None])).double()
    x0, y = torch.randn(50, 2, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    shift = torch.tensor([3.0 * period, 0.0], dtype=torch.float64)
    with torch.no_grad():
        here, there = flow_map.log_prob(y, x0, 1.0), flow_map.log_prob(y + shift, x0 + shift, 1.0)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-10)


def test_a_wrapped_coordinate_is_a_circle() -> None:
    flow_map = roughened(FlowMap(1, 0.1, boundaries=[Periodic(0, 0.0, 1.0)])).double()
    flow_map.scale_unit.fill_(0.3)
    y = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        density = flow_map.log_prob(y, torch.tensor([0.9], dtype=torch.float64), 0.1).exp()
    left_out = float(flow_map.left_out(torch.tensor([0.9], dtype=torch.float64), 0.1))
    assert float(torch.trapezoid(density, y[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert left_out == 0.0
    assert float(density[0]) == pytest.approx(float(density[-1]), rel=1e-3)


def test_mirrors_keep_all_mass_inside() -> None:
    flow_map = roughened(FlowMap(2, 1.0, boundaries=[Reflecting(1, low=0.0)]))
    x0 = torch.tensor([[0.0, 0.2]])
    y = flow_map.sample(x0.expand(5000, 2), 1.0)
    assert float(y[:, 1].min()) >= 0.0
    mass = flow_map.mass(x0, 1.0, 20_000)
    assert abs(float(mass.value) - 1.0) < 4.5 * float(mass.std_error)
    assert flow_map.log_prob(torch.tensor([[0.0, -0.1]]), x0, 1.0).item() == -math.inf


def test_an_untrained_map_is_brownian_motion_at_all_times() -> None:
    flow_map = FlowMap(2, (0.1, 2.0)).double()
    flow_map.scale_unit.fill_(math.sqrt(2.0))
    x0, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 2.0, 20, dtype=torch.float64)
    exact = torch.distributions.Normal(x0, t.sqrt().unsqueeze(-1)).log_prob(y).sum(-1)
    torch.testing.assert_close(flow_map.log_prob(y, x0, t).detach(), exact)


def test_exits_and_survivors_share_one_likelihood() -> None:
    flow_map = roughened(FlowMap(1, 1.0, boundaries=[Absorbing(0, 0.0, 1.0)])).double()
    x0 = torch.tensor([0.4], dtype=torch.float64)
    y = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)[1:-1].unsqueeze(-1)
    stays = torch.zeros(len(y), dtype=torch.bool)
    with torch.no_grad():
        density = flow_map.joint_log_prob(y, stays, x0, 1.0).exp()
        exit_mass = flow_map.joint_log_prob(y[:1], ~stays[:1], x0, 1.0).exp()
        probability = flow_map.exit_probability(x0, 1.0)
    assert float(exit_mass) == pytest.approx(float(probability))
    assert float(torch.trapezoid(density, y[:, 0])) == pytest.approx(1.0 - float(probability), abs=1e-5)


class Data:
    def __init__(self, n: int = 200) -> None:
        self.x0 = torch.linspace(-1.0, 1.0, n).unsqueeze(-1)
        self.time = torch.linspace(0.5, 1.0, n)
        self.state = self.x0 + torch.randn(n, 1)
        self.exited = None
        self.params = torch.linspace(2.0, 3.0, n).unsqueeze(-1)


def test_questions_outside_the_training_domain_are_refused() -> None:
    flow_map = FlowMap(1, (0.5, 1.0), param_dim=1)
    flow_map.standardise(Data())
    x0, c = torch.zeros(4, 1), torch.full((4, 1), 2.5)
    flow_map.sample(x0, 0.7, c)
    with pytest.raises(ValueError, match=r"x0\[0\] lies outside .* in 25.000% of the rows \(values from 3 to 3\)"):
        flow_map.sample(torch.tensor([[0.0], [0.5], [3.0], [-0.5]]), 0.7, c)
    with pytest.raises(ValueError, match="time lies outside"):
        flow_map.log_prob(x0, x0, 1.5, c)
    with pytest.raises(ValueError, match=r"params\[0\] lies outside"):
        flow_map.condition(x0, 0.7, c + 1.0)
    with pytest.raises(ValueError, match="lies outside"):
        flow_map.sample(x0 * math.nan, 0.7, c)


def test_or_flagged() -> None:
    flow_map = FlowMap(1, (0.5, 1.0), param_dim=1, outside="warn")
    flow_map.standardise(Data())
    x0, c = torch.tensor([[0.0], [3.0]]), torch.full((2, 1), 2.5)
    with pytest.warns(OutsideDomainWarning, match=r"x0\[0\]"):
        flow_map.sample(x0, 0.7, c)
    assert flow_map.is_outside(x0, 0.7, c).tolist() == [False, True]


@pytest.mark.parametrize("boundary", [Absorbing(0, low=0.0, high=1.0), Reflecting(0, low=0.0, high=1.0)])
def test_the_margin_ends_at_the_walls(boundary: Boundary) -> None:
    flow_map = FlowMap(1, 1.0, boundaries=[boundary])
    x0 = torch.linspace(0.0, 1.0, 50).unsqueeze(-1)
    flow_map.standardise(SimpleNamespace(x0=x0, time=1.0, state=x0, exited=None, params=None))
    assert flow_map.is_outside(torch.tensor([[-0.01], [0.0], [1.0], [1.01]]), 1.0).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_a_drift_too_stiff_for_the_steps_is_named() -> None:
    flow_map = FlowMap(1, 1.0, drift=lambda x: 8.0 * x * (1.0 - x.square()))
    x0 = torch.linspace(-2.0, 2.0, 100).unsqueeze(-1)
    with pytest.raises(ValueError, match="with drift_steps=8"):
        flow_map.standardise(SimpleNamespace(x0=x0, time=1.0, state=x0, exited=None, params=None))


def test_periodic_coordinates_are_never_outside() -> None:
    flow_map = FlowMap(1, (0.5, 1.0), param_dim=1, periods=[1.0])
    flow_map.standardise(Data())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow_map.sample(torch.tensor([[1000.0]]), 0.7, torch.tensor([[2.5]]))


def test_the_state_dict_carries_all_constants() -> None:
    flow_map = FlowMap(1, (0.5, 1.0), param_dim=1)
    flow_map.standardise(Data())
    other = FlowMap(1, (0.5, 1.0), param_dim=1)
    other.load_state_dict(flow_map.state_dict())
    x0, c, y = torch.zeros(3, 1), torch.full((3, 1), 2.5), torch.randn(3, 1)
    for twin in (other, copy.deepcopy(flow_map), pickle.loads(pickle.dumps(flow_map))):
        assert torch.equal(twin.log_prob(y, x0, 0.7, c), flow_map.log_prob(y, x0, 0.7, c))
        with pytest.raises(ValueError, match="lies outside"):
            twin.log_prob(y, x0 + 5.0, 0.7, c)


def test_shapes_and_precision_are_checked() -> None:
    flow_map = FlowMap(2, 1.0)
    with pytest.raises(ShapeError, match=r"initial states must have shape \(\*batch, 2\)"):
        flow_map.sample(torch.zeros(4, 3), 1.0)
    with pytest.raises(ShapeError, match=r"\.double\(\)"):
        flow_map.sample(torch.zeros(4, 2, dtype=torch.float64), 1.0)
    with pytest.raises(ShapeError, match="params must have shape"):
        flow_map.sample(torch.zeros(4, 2), 1.0, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="time must be positive"):
        FlowMap(2, (0.0, 1.0))


@pytest.mark.parametrize("boundary", [Clamped(0, low=0.5), Clamped(0, high=0.5), Absorbing(0, low=0.5)])
def test_states_on_the_ends_are_scored_by_the_distribution(boundary: Boundary) -> None:
    flow_map = FlowMap(1, 1.0, boundaries=[boundary])
    y, x0 = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.6], [0.9]] if boundary.low else [[0.4], [0.1]])
    with torch.no_grad():
        scored = flow_map.condition(x0, 1.0).log_prob(y)
        torch.testing.assert_close(scored, flow_map.log_prob(y, x0, 1.0))
    if isinstance(boundary, Clamped):
        atoms = torch.special.ndtr(-(x0 - 0.5).abs()).squeeze(-1)
        torch.testing.assert_close(scored.exp(), atoms, rtol=1e-3, atol=1e-3)


def test_the_law_as_a_distribution() -> None:
    flow_map = roughened(FlowMap(2, (0.1, 1.0)))
    x0, t = torch.randn(5, 2), torch.linspace(0.1, 1.0, 5)
    law = flow_map.condition(x0, t)
    y = law.rsample((7,))
    assert y.shape == (7, 5, 2) and law.batch_shape == (5,)
    torch.testing.assert_close(law.log_prob(y), flow_map.log_prob(y, x0, t))
    wide = law.expand((3, 5))
    torch.testing.assert_close(wide.log_prob(y[:3]), law.log_prob(y[:3]))
