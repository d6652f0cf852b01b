"""Training flow maps: exact laws are found, rows are counted, interrupted runs end as unbroken ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from pyro_boltzmann.exceptions import CheckpointError, ShapeError
from pyro_boltzmann.infer import fit_flow_map
from pyro_boltzmann.sde import Absorbing, Clamped, FlowMap, Reflecting


class Ends:
    def __init__(self, x0: Tensor, time: float | Tensor, state: Tensor, exited: Tensor | None = None) -> None:
        self.x0, self.time, self.state, self.exited, self.params = x0, time, state, exited, None


def uniform(n: int, dim: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(n, dim, generator=Generator().manual_seed(seed))


def ou_moments(x0: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Of dX = -X dt + dW."""
    t = time.unsqueeze(-1)
    return x0 * (-t).exp(), (-0.5 * (-2.0 * t).expm1()).sqrt().expand(x0.shape)


def ornstein_uhlenbeck(n: int, dim: int, time: Tensor) -> Ends:
    x0 = uniform(n, dim, -2.2, 2.2, seed=1)
    mean, std = ou_moments(x0, time)
    return Ends(x0, time, mean + std * torch.randn(n, dim, generator=Generator().manual_seed(2)))


def kl_of_gaussian(flow_map: FlowMap, time: float, n: int = 20_000) -> tuple[float, float]:
    """KL(exact || map) of OU laws, averaged over initial states, and its standard error."""
    x0 = uniform(n, flow_map.event_dim, -2.0, 2.0, seed=3)
    mean, std = ou_moments(x0, torch.full((n,), time))
    y = mean + std * torch.randn(x0.shape, generator=Generator().manual_seed(4))
    exact = torch.distributions.Normal(mean, std).log_prob(y).sum(-1)
    with torch.no_grad():
        difference = (exact - flow_map.log_prob(y, x0, time)).double()
    return float(difference.mean()), float(difference.std()) / math.sqrt(n)


def small_map(dim: int = 1, time: float | tuple[float, float] = 1.0, **settings: Any) -> FlowMap:
    return FlowMap(dim, time, width=32, coupling_width=16, **settings)


def test_a_gaussian_law_at_one_time_is_found_by_least_squares() -> None:
    flow_map = small_map(2)
    fit_flow_map(flow_map, ornstein_uhlenbeck(40_000, 2, torch.ones(40_000)), num_steps=10, progress=False)
    kl, error = kl_of_gaussian(flow_map, 1.0)
    assert kl < 1e-3 and kl > -4.5 * error and error < 3e-4


def test_one_map_learns_all_times() -> None:
    n = 40_000
    flow_map = small_map(1, (0.1, 1.0))
    data = ornstein_uhlenbeck(n, 1, 0.1 + 0.9 * torch.rand(n, generator=Generator().manual_seed(5)))
    fit_flow_map(flow_map, data, num_steps=200, batch_size=1024, learning_rate=5e-3, weight_decay=0.01, progress=False)
    for time in (0.1, 0.4, 1.0):
        kl, error = kl_of_gaussian(flow_map, time)
        assert kl < 5e-3 and kl > -4.5 * error


def test_exits_are_learned_with_the_survivors() -> None:
    n = 20_000
    x0 = uniform(n, 1, 0.5, 3.0, seed=6)
    chance = torch.rand(n, generator=Generator().manual_seed(7))
    exited = chance < (-x0[:, 0]).exp()
    state = x0 * (0.3 * torch.randn(n, 1, generator=Generator().manual_seed(8))).exp()
    flow_map = small_map(boundaries=[Absorbing(0, low=0.0)])
    data = Ends(x0, 1.0, torch.where(exited.unsqueeze(-1), 0.0, state), exited)
    fit_flow_map(flow_map, data, num_steps=120, learning_rate=1e-2, progress=False)
    grid = torch.linspace(0.6, 2.9, 24).unsqueeze(-1)
    with torch.no_grad():
        wrong = flow_map.exit_probability(grid, 1.0) - (-grid[:, 0]).exp()
        assert float(wrong.square().mean().sqrt()) < 0.02
        y = flow_map.sample(grid.repeat(200, 1), 1.0)
    assert float(y.min()) > 0.0
    spread = (y / grid.repeat(200, 1)).log()
    assert abs(float(spread.mean())) < 0.03 and abs(float(spread.std()) - 0.3) < 0.03


def test_the_atom_on_a_clamped_end_has_its_mass() -> None:
    n = 20_000
    x0 = uniform(n, 1, -1.0, 1.0, seed=9)
    free = x0 + torch.randn(n, 1, generator=Generator().manual_seed(10))
    flow_map = small_map(boundaries=[Clamped(0, low=-1.0)])
    fit_flow_map(flow_map, Ends(x0, 1.0, free.clamp_min(-1.0)), num_steps=200, learning_rate=1e-2, progress=False)
    grid = torch.linspace(-0.9, 0.9, 19).unsqueeze(-1)
    with torch.no_grad():
        atom = flow_map.log_prob(torch.full((19, 1), -1.0), grid, 1.0).exp()
        share = (flow_map.sample(grid.repeat(500, 1), 1.0) == -1.0).double().reshape(500, 19).mean(0)
    exact = torch.special.ndtr(-1.0 - grid[:, 0])
    assert float((atom - exact).square().mean().sqrt()) < 0.02
    assert bool(((share - atom).abs() < 4.5 * (atom * (1.0 - atom) / 500).sqrt() + 0.01).all())


def test_an_atom_beside_a_thin_layer_has_its_mass() -> None:
    """Three in five trajectories end on the wall, three in ten in an exponential layer of width 0.02 beside it, far
    less than the spread of the rest. The layer's density at the wall, 0.3 / 0.02, fixes the length of the far side."""
    n = 20_000
    x0 = uniform(n, 1, 0.0, 1.0, seed=30)
    state = x0 + 0.3 * torch.randn(n, 1, generator=Generator().manual_seed(31)) + 2.0
    kind = torch.rand(n, 1, generator=Generator().manual_seed(32))
    layer = torch.empty(n, 1).exponential_(generator=Generator().manual_seed(33)) * 0.02
    state = torch.where(kind < 0.9, torch.where(kind < 0.6, torch.zeros(()), layer), state)
    flow_map = small_map(boundaries=[Clamped(0, low=0.0)])
    fit_flow_map(flow_map, Ends(x0, 1.0, state), num_steps=300, learning_rate=1e-2, progress=False)
    exact, nearest = 0.6 * 0.02 / 0.3, 0.02 * 0.4 * n
    assert abs(float(flow_map.atom_scale[0]) / exact - 1.0) < 4.5 / math.sqrt(nearest)
    with torch.no_grad():
        y = flow_map.sample(x0, 1.0)
    error = math.sqrt(0.6 * 0.4 / n)
    assert abs(float((y == 0.0).double().mean()) - 0.6) < 4.5 * error + 0.01
    assert abs(float((y < 0.02).double().mean()) - float((state < 0.02).double().mean())) < 0.03


def test_every_row_is_shown_once_an_epoch_and_rows_held_back_never(monkeypatch: pytest.MonkeyPatch) -> None:
    flow_map, seen = small_map(), Counter[float]()
    data = ornstein_uhlenbeck(100, 1, torch.ones(100))
    start = flow_map.unchecked_start

    def spy(x0: Tensor, *args: Any) -> Any:
        if flow_map.training:
            seen.update(x0[:, 0].tolist())
        return start(x0, *args)

    monkeypatch.setattr(flow_map, "unchecked_start", spy)
    # 80 rows in batches of 32: three updates an epoch, the last one of 16 rows.
    result = fit_flow_map(flow_map, data, num_steps=6, batch_size=32, validation=0.2, progress=False)
    assert result.steps == 6
    assert len(seen) == 80 and set(seen.values()) == {2}


def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ornstein_uhlenbeck(200, 1, torch.ones(200))
    settings: dict[str, Any] = {"num_steps": 12, "batch_size": 64, "validate_every": 4, "progress": False, "seed": 3}

    mirror = [Reflecting(0, low=-100.0)]

    def fresh(seed: int) -> FlowMap:
        torch.manual_seed(seed)
        return small_map(dropout=0.2)

    whole = fresh(0)
    expected = fit_flow_map(whole, data, **settings)
    broken, calls = fresh(0), 0
    start = broken.unchecked_start

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += broken.training
        if calls > 7:
            raise KeyboardInterrupt
        return start(*args)

    monkeypatch.setattr(broken, "unchecked_start", stop)
    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_flow_map(broken, data, checkpoint=file, **settings)
    again = fresh(1)
    result = fit_flow_map(again, data, checkpoint=file, **settings)
    assert result.steps == 12 and result.history["validation"] == expected.history["validation"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match="learning_rate"):
        fit_flow_map(again, data, checkpoint=file, learning_rate=1.0, **settings)
    for other, name in ((small_map(dropout=0.1), "network"), (small_map(boundaries=mirror, dropout=0.2), "boundaries")):
        with pytest.raises(CheckpointError, match=f"differs in {name}"):
            fit_flow_map(other, data, checkpoint=file, **settings)


def test_patience_ends_a_run_that_learns_nothing() -> None:
    data = ornstein_uhlenbeck(60, 1, torch.ones(60))
    flow_map = small_map()
    result = fit_flow_map(
        flow_map, data, num_steps=400, learning_rate=0.05, validate_every=5, patience=3, progress=False
    )
    assert result.stopped == "patience" and result.steps < 400
    scores = result.history["validation"]
    assert result.validation == (min(scores) if result.best_step else scores[0])


def test_global_randomness_is_left_as_it_was() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    flow_map = small_map()
    torch.manual_seed(11)
    fit_flow_map(flow_map, ornstein_uhlenbeck(60, 1, torch.ones(60)), num_steps=2, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_data_that_do_not_fit_are_refused() -> None:
    x0 = torch.randn(50, 1)
    with pytest.raises(ValueError, match="no absorbing boundary"):
        fit_flow_map(small_map(), Ends(x0, 1.0, x0, torch.ones(50, dtype=torch.bool)))
    with pytest.raises(ValueError, match="state of the data must be finite, got 50"):
        fit_flow_map(small_map(), Ends(x0, 1.0, x0 * math.nan))
    with pytest.raises(ValueError, match="outside the boundaries"):
        fit_flow_map(small_map(boundaries=[Clamped(0, low=5.0)]), Ends(x0, 1.0, x0))
    with pytest.raises(ValueError, match=r"50 initial states of the data lie outside .* coordinate 0, \[5, inf\]"):
        fit_flow_map(small_map(boundaries=[Clamped(0, low=5.0)]), Ends(x0 - 9.0, 1.0, x0.abs() + 5.0))
    with pytest.raises(ValueError, match="the map is for times"):
        fit_flow_map(small_map(), Ends(x0, 2.0, x0))
    with pytest.raises(ShapeError, match="at least 4 transitions"):
        fit_flow_map(small_map(), Ends(x0[:2], 1.0, x0[:2]))
