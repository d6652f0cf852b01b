"""Brownian motion absorbed at both ends: flow maps of it against its exact law."""

from __future__ import annotations

import time as clock
from typing import Any

import numpy as np
import torch
from scipy import integrate

from pyro_boltzmann.diagnostics.metrics import ks_test
from pyro_boltzmann.experiments.exit_histories import ExitHistory, composed_history, direct_history
from pyro_boltzmann.experiments.run_metrics import stream_seed
from pyro_boltzmann.infer import fit_flow_map
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.sde import AbsorbedBrownianTransition, FlowMap, TransitionData
from pyro_boltzmann.sde.systems import absorbed_brownian_motion

__all__ = ["STARTS", "draw_absorbed", "exact_survivors", "run_companion"]

STARTS = (0.5, 1.0, 3.0)
STRIDE, NUM_STRIDES, LOOK_EVERY = 0.1, 30, 5
ROWS_PER_UPDATE = 2048
MOST_PAIRS = 1_000_000


def draw_absorbed(
    law: AbsorbedBrownianTransition, time: float | tuple[float, float], number: int, seed: int
) -> TransitionData:
    """Exact transitions over one time or uniform times; half of the initial states are uniform, half near the ends."""
    low, high = time if isinstance(time, tuple) else (time, time)
    width = law.high - law.low
    with seeded(seed):
        uniform = width * torch.rand(number, 1)
        near = (2.0 * law.scale * low**0.5 * torch.randn(number, 1)).abs()
        distance = torch.where(torch.rand(number, 1) < 0.5, uniform, near).clamp(1e-4 * width, (1.0 - 1e-4) * width)
        x0 = torch.where(torch.rand(number, 1) < 0.5, law.low + distance, law.high - distance)
        times = low + (high - low) * torch.rand(number)
        state, exited = law.sample(x0, times)
    return TransitionData(x0, times, torch.where(exited.unsqueeze(-1), law.low, state), exited)


def exact_survivors(law: AbsorbedBrownianTransition, start: float, time: float) -> Any:
    """The distribution function of those not yet absorbed, by quadrature of their density."""
    grid = torch.linspace(law.low, law.high, 4001, dtype=torch.float64).unsqueeze(-1)
    density = law.log_prob(grid, torch.full_like(grid, start), time).exp().numpy()
    mass = integrate.cumulative_trapezoid(density, grid[:, 0].numpy(), initial=0.0)
    return lambda y: np.interp(y, grid[:, 0].numpy(), mass / mass[-1])


def run_companion(*, updates: int, size: int, seed: int) -> dict[str, Any]:
    """Train both kinds of maps and follow ensembles from single points.

    :param size: of each ensemble.
    """
    system, rows = absorbed_brownian_motion(), {}
    law = system.transition
    assert isinstance(law, AbsorbedBrownianTransition)
    last = STRIDE * NUM_STRIDES
    for name, times in (("composed", STRIDE), ("direct", (STRIDE, last))):
        begin = clock.process_time()
        with seeded(stream_seed(seed, f"companion {name}")):
            flow_map = FlowMap.for_sde(system.sde, times, drift=None, width=48, coupling_width=48, num_bins=16)
        number = min(MOST_PAIRS, ROWS_PER_UPDATE * updates + 4000)
        data = draw_absorbed(law, times, number, stream_seed(seed, f"{name} data"))
        settings: dict[str, Any] = {"num_steps": updates, "batch_size": ROWS_PER_UPDATE, "learning_rate": 5e-3}
        fit = fit_flow_map(flow_map, data, seed=0, progress=False, **settings)
        flow_map.recentre(draw_absorbed(law, times, number, stream_seed(seed, f"{name} more data")))
        row: dict[str, Any] = {"cpu_seconds": clock.process_time() - begin, "nll": fit.validation, "starts": {}}
        for start in STARTS:
            x0 = torch.full((size, 1), start)
            noise = stream_seed(seed, f"{name} from {start}")
            if name == "composed":
                history = composed_history(flow_map, x0, STRIDE, NUM_STRIDES, every=LOOK_EVERY, seed=noise)
            else:
                looks = [STRIDE * LOOK_EVERY * (k + 1) for k in range(NUM_STRIDES // LOOK_EVERY)]
                history = direct_history(flow_map, x0, looks, seed=noise)
            row["starts"][str(start)] = _against_exact(law, history, start)
        rows[name] = row
    return rows


def _against_exact(law: AbsorbedBrownianTransition, history: ExitHistory, start: float) -> dict[str, Any]:
    point = torch.tensor([[start]], dtype=torch.float64)
    exact = [1.0 - float(law.survival(point, time)) for time in history.times]
    errors = [(max(p * (1.0 - p), 1e-12) / history.size) ** 0.5 for p in exact]
    deviations = [(found - p) / error for found, p, error in zip(history.exits, exact, errors, strict=True)]
    tests = [
        ks_test(states[:, 0].numpy(), exact_survivors(law, start, time))
        for states, time in zip(history.survivors, history.times, strict=True)
    ]
    return {
        "times": history.times,
        "exits": history.exits,
        "exact": exact,
        "deviations": deviations,
        "ks": [test.distance for test in tests],
        "ks_floor": [test.floor for test in tests],
        "cpu_seconds": history.seconds,
    }
