"""Vectorised simulation of stochastic differential equations: many trajectories, their ends only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_boltzmann.energies.columns import by_columns
from pyro_boltzmann.exceptions import ShapeError, SolverError
from pyro_boltzmann.sde.absorption import absorb
from pyro_boltzmann.sde.boundaries import Absorbing
from pyro_boltzmann.sde.equation import SDE
from pyro_boltzmann.sde.schemes import Scheme, scheme_of

__all__ = ["SimulationResult", "simulate"]

NUMBERS_IN_CACHE = 49152
"""Numbers of the states that a CPU advances together: with their noise and drift they fit a second-level cache."""


@dataclass(frozen=True)
class SimulationResult:
    """Ends of trajectories.

    :ivar state: ``(*batch, d)``, at the end time, or on the boundary that absorbed it; there its other
        coordinates lie on the straight line between the ends of the step, at the time of the exit, so that their
        spread lacks that of the bridge.
    :ivar exited: ``(*batch)``, whether a boundary absorbed the trajectory.
    :ivar exit_time: ``(*batch)``, infinite for those that were not absorbed.
    :ivar trajectory: ``(num_steps + 1, *batch, d)``, the first entry the initial states; ``None`` unless asked for.
    """

    state: Tensor
    exited: Tensor
    exit_time: Tensor
    trajectory: Tensor | None = None


@torch.no_grad()
def simulate(
    sde: SDE,
    x0: Tensor,
    time: float | Tensor,
    *,
    step_size: float,
    params: Tensor | None = None,
    scheme: str = "euler",
    seed: int | None = None,
    keep_trajectory: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> SimulationResult:
    r"""Follow one trajectory from each initial state.

    A trajectory over the time :math:`t` takes :math:`n = \lceil t / h \rceil` equal steps. Trajectories are advanced in
    chunks that fit a cache; only their present state is in memory. Those that are absorbed, or whose time is over,
    leave the chunk. The same seed gives the same result for the same chunk size.

    :param x0: ``(*batch, d)``; its dtype and device are those of the simulation.
    :param time: how long, one number or a tensor that broadcasts to ``(*batch)``.
    :param step_size: the longest step :math:`h`.
    :param params: parameters that broadcast to ``(*batch, param_dim)``.
    :param scheme: ``"euler"``, ``"milstein"`` or ``"runge_kutta"``, see :data:`SCHEMES`.
    :param seed: of the noise; ``None`` uses torch's global generator.
    :param keep_trajectory: whether all states are returned (one time for all only).
    :param chunk_size: trajectories that are advanced together.
    :param progress: whether to show a bar.
    :raises ShapeError: if a shape does not fit the equation.
    :raises ValueError: if a time or step is not usable, an initial state lies outside the domain of a boundary that is
        not absorbing, or the noise does not allow the scheme.
    :raises SolverError: if states become inf or NaN.

    >>> decay = SDE(lambda x: -x, 0.1, event_dim=1)
    >>> end = simulate(decay, torch.ones(20_000, 1), 1.0, step_size=0.01, seed=0)
    >>> round(end.state.mean().item(), 2), bool(end.exited.any())
    (0.37, False)
    """
    method = scheme_of(scheme)
    batch, states, times, parameters = _inputs(sde, x0, time, step_size, params)
    if keep_trajectory and len(times) > 1:
        raise ValueError("a trajectory needs one time for all states; pass time as a number")
    _check_domain(sde, states)
    generator = None if seed is None else Generator(states.device).manual_seed(seed)
    result = SimulationResult(
        torch.empty_like(states, memory_format=torch.contiguous_format),
        torch.zeros(len(states), dtype=torch.bool, device=states.device),
        torch.full((len(states),), math.inf, dtype=states.dtype, device=states.device),
    )
    num_steps = _num_steps(times, step_size)
    longest = int(num_steps.max()) if len(num_steps) else 0
    if keep_trajectory:
        shape = (longest + 1, *states.shape)
        result = SimulationResult(result.state, result.exited, result.exit_time, states.new_empty(shape))
    if len(states):
        method.check(sde, states[:8], None if parameters is None else parameters[:8])
    size = _chunk_size(states, chunk_size)
    chunks = range(0, len(states), size)
    with tqdm(total=len(chunks) * longest, disable=not progress, unit="step") as bar:
        for start in chunks:
            rows = slice(start, min(start + size, len(states)))
            chosen = rows if len(times) > 1 else slice(None)
            chunk = _Chunk(sde, method, states, rows, times[chosen], num_steps[chosen], parameters, result, generator)
            chunk.run(bar)
    trajectory = result.trajectory
    return SimulationResult(
        result.state.view(*batch, sde.event_dim),
        result.exited.view(batch),
        result.exit_time.view(batch),
        None if trajectory is None else trajectory.view(len(trajectory), *batch, sde.event_dim),
    )


class _Chunk:
    """Trajectories that are advanced together; those still on their way, the longest first."""

    def __init__(
        self,
        sde: SDE,
        scheme: Scheme,
        states: Tensor,
        rows: slice,
        times: Tensor,
        num_steps: Tensor,
        params: Tensor | None,
        result: SimulationResult,
        generator: Generator | None,
    ) -> None:
        self.sde, self.scheme, self.result, self.generator = sde, scheme, result, generator
        self.start = states
        self.rows = rows
        self.index = torch.arange(rows.start, rows.stop, device=states.device)
        self.dt: float | Tensor
        self.num_steps: Tensor | None = None
        self.longest = int(num_steps.max())
        if len(times) == 1:
            self.dt = float(times) / max(self.longest, 1)
        else:
            order = num_steps.argsort(descending=True, stable=True)
            self.index, self.num_steps = self.index[order], num_steps[order]
            self.dt = (times[order] / self.num_steps.clamp_min(1)).to(states).unsqueeze(-1)
        self.x = sde.fold(by_columns(states[self.index]))
        self.params = None if params is None else params[self.index]

    def run(self, bar: tqdm[Any]) -> None:
        """Advance all to their ends and write those into the result."""
        self._absorb_at_start()
        self._keep(0)
        for step in range(self.longest):
            self._leave_at_end(step)
            if len(self.index):
                self._advance(step)
            self._keep(step + 1)
            if step & (step + 1) == 0:
                self._check_finite(self.x, self.index)
            bar.update()
        self._write(slice(None))

    def _advance(self, step: int) -> None:
        x = self.x
        normals = x.new_empty(self.scheme.num_normals, x.shape[1], len(x)).normal_(generator=self.generator)
        y, diffusion = self.scheme.step(self.sde, x, self.dt, normals.mT.unbind(0), self.params)
        gone = None
        if self.sde.absorbing:
            gone, fraction, place = absorb(self.sde.absorbing, x, y, diffusion, self.dt, self.generator)
            if len(gone):
                dt = self.dt[gone, 0] if isinstance(self.dt, Tensor) else self.dt
                self._end(gone, (step + fraction) * dt, self.sde.fold(place))
        self.x = self.sde.fold(y)
        if gone is not None and len(gone):
            self._drop(gone)

    def _absorb_at_start(self) -> None:
        reached = torch.zeros_like(self.index, dtype=torch.bool)
        for boundary in self.sde.absorbing:
            reached |= boundary.reached(self.x[:, boundary.index])
        gone = reached.nonzero()[:, 0]
        if len(gone):
            self._end(gone, torch.zeros_like(gone, dtype=self.x.dtype), self.x[gone])
            self._drop(gone)

    def _leave_at_end(self, step: int) -> None:
        if self.num_steps is not None:
            number = int((self.num_steps > step).sum())
            if number < len(self.index):
                self._write(slice(number, None))
                self._select(slice(number))

    def _end(self, gone: Tensor, times: Tensor, place: Tensor) -> None:
        index = self.index[gone]
        self._check_finite(place, index)
        self.result.state[index] = place
        self.result.exited[index] = True
        self.result.exit_time[index] = times.to(self.result.exit_time)

    def _drop(self, gone: Tensor) -> None:
        if self.num_steps is not None:
            stays = torch.ones_like(self.index, dtype=torch.bool)
            stays[gone] = False
            self._select(stays.nonzero()[:, 0])
            return
        # Without an order to keep, the last ones fill the gaps: work for those that leave alone.
        number = len(self.index) - len(gone)
        is_free = torch.ones_like(gone, dtype=torch.bool)
        is_free[gone[gone >= number] - number] = False
        gaps, last = gone[gone < number], number + is_free.nonzero()[:, 0]
        for tensor in (self.x, self.index) if self.params is None else (self.x, self.index, self.params):
            tensor[gaps] = tensor[last]
        self._select(slice(number))

    def _select(self, rows: slice | Tensor) -> None:
        # By columns, so that the order in memory stays.
        self.x = self.x.mT[:, rows].mT
        self.index = self.index[rows]
        if self.num_steps is not None:
            assert isinstance(self.dt, Tensor)
            self.num_steps, self.dt = self.num_steps[rows], self.dt[rows]
        if self.params is not None:
            self.params = self.params[rows]

    def _write(self, rows: slice) -> None:
        index, x = self.index[rows], self.x[rows]
        self._check_finite(x, index)
        self.result.state[index] = x

    def _keep(self, step: int) -> None:
        if self.result.trajectory is not None:
            self.result.state[self.index] = self.x
            self.result.trajectory[step, self.rows] = self.result.state[self.rows]

    def _check_finite(self, x: Tensor, index: Tensor) -> None:
        wrong = ~x.isfinite().all(-1)
        if bool(wrong.any()):
            first = index[wrong][0]
            raise SolverError(
                f"{int(wrong.sum())} of {len(wrong)} trajectories became inf or NaN, one of them from the initial "
                f"state {[round(value, 6) for value in self.start[first].tolist()]}; make step_size smaller, confine "
                "the state by boundaries, or mend the drift or diffusion where it is not finite"
            )


def _inputs(
    sde: SDE, x0: Tensor, time: float | Tensor, step_size: float, params: Tensor | None
) -> tuple[torch.Size, Tensor, Tensor, Tensor | None]:
    """Batch shape, states ``(n, d)``, times ``(1,)`` or ``(n,)``, parameters ``(n, param_dim)``."""
    sde.arguments(x0, params)
    if not x0.is_floating_point():
        raise ShapeError(f"initial states must be floating-point numbers, got {x0.dtype}; convert them with .float()")
    if not (math.isfinite(step_size) and step_size > 0.0):
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    batch = x0.shape[:-1]
    states = x0.detach().reshape(-1, sde.event_dim)
    times = torch.as_tensor(time, dtype=torch.float64, device=x0.device).detach()
    if not bool((times.isfinite() & (times >= 0.0)).all()):
        raise ValueError(f"times must be finite and not negative, got {time}")
    try:
        times = times.reshape(1) if times.dim() == 0 else times.expand(batch).reshape(-1)
        if params is not None:
            params = params.detach().to(states).expand(*batch, sde.param_dim).reshape(-1, sde.param_dim)
    except RuntimeError as error:
        raise ShapeError(f"time and params must broadcast to the batch {tuple(batch)} of x0: {error}") from error
    return batch, states, times, params


def _num_steps(times: Tensor, step_size: float) -> Tensor:
    # A time that is a multiple of the step up to rounding takes no step more.
    return (times / step_size - 1e-6).ceil().clamp_min(0).long() + ((times > 0) & (times < 1e-6 * step_size)).long()


def _chunk_size(states: Tensor, chunk_size: int | None) -> int:
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
        return chunk_size
    numbers = NUMBERS_IN_CACHE if states.device.type == "cpu" else 256 * NUMBERS_IN_CACHE
    return max(256, numbers // states.shape[1])


def _check_domain(sde: SDE, states: Tensor) -> None:
    if not bool(states.isfinite().all()):
        wrong = int((~states.isfinite().all(-1)).sum())
        raise ValueError(f"initial states must be finite, got inf or NaN in {wrong} of {len(states)}")
    for boundary in sde.boundaries:
        if isinstance(boundary, Absorbing):
            continue
        outside = ~boundary.contains(states[:, boundary.index])
        if bool(outside.any()):
            raise ValueError(
                f"{int(outside.sum())} of {len(states)} initial states lie outside {boundary}, for example "
                f"{states[outside][0, boundary.index].item():.6g}; start inside"
            )
